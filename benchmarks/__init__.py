"""Measuring this framework: against the plain way with public tools, and against itself."""
