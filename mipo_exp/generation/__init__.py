"""Sampling responses from the base model and from the trained one."""
