"""Benchmarks, one a file, beside the task files of those that `lm-eval` lacks."""
