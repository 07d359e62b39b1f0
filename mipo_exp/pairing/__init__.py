"""Negative conditions, similarity, pairs."""
