"""Evaluation: answers to held-out questions, their scores, and the sandbox for generated code."""
