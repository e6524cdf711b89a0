"""Sections of reports. Each section has text, tables and pictures, and its numbers as JSON."""
