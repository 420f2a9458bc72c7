"""What leaves a run: the model card, filled from the records alone."""
