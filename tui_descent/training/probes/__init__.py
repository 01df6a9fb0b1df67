"""Measurements between two steps that need their own forward and backward passes."""
