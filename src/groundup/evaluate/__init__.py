"""How good is it: bits per byte, tasks through lm-evaluation-harness, intervals, models side by side."""

RESULTS = "results.json"  # each task's value with a 95% interval, n and stderr; bits per byte
SAMPLES = "samples.jsonl"  # questions with the answers given
OUTCOMES = "outcomes.json"  # the score of every question, so that models can be compared question by question
