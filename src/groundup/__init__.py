"""groundup: from raw text to a released language model, with one recipe."""

__version__ = "0.1.0"
