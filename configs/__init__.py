"""Configs of the experiments, one file per experiment."""
