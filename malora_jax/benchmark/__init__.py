"""Benchmarks that compare the training steps of several methods in one process."""
