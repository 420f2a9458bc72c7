"""Rows to fine-tune on, as published: what is wrong with them, and in which rows."""
