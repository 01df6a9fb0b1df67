"""Builds model, data and optimizer from a scenario."""
