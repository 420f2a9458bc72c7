"""Text to token ids and back: train, load and save, chat template, audit."""
