"""Scoring of generated answers."""
