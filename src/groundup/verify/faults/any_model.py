"""Faults of other people's models: bugs patched into transformers' own code."""
