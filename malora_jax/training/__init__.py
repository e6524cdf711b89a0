"""Objective, optimizer, checkpoints and the loop."""
