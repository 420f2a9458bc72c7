"""Faults of checkpoint folders."""
