"""Faults of other people's tokenizers and templates."""
