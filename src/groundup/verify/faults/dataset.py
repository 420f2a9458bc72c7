"""Faults of rows, planted in files."""
