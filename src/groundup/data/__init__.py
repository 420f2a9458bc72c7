"""From sources of text to batches: read, prepare (dedup, split, encode), shard, load."""
