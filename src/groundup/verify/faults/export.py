"""Faults of export."""
