"""Sections of reports: each returns the same numbers as text, tables, pictures and JSON."""
