"""Anybody's tokenizer and chat template, from outside."""
