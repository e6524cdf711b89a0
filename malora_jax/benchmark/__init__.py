"""Measuring methods side by side: what is timed, how, and what is reported."""
