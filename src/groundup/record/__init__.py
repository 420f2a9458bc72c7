"""What happened: the run directory, atomic writes, hashes, stage records, the metrics log."""
