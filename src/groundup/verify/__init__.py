"""Checks for bugs that stay silent, and planted faults that prove the checks."""
