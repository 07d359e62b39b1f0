"""Artefacts, tables and record types: what runs, processes and machines share."""
