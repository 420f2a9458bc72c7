"""What happened, to look at: one self-contained HTML page (and its JSON) computed from a run's records."""
