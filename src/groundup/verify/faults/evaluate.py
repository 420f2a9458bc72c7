"""Faults of evaluation and serving."""
