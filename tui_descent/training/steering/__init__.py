"""Changing a run between two steps."""
