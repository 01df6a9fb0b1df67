"""Races: several optimizers train the same net from the same start, by turns, in one process."""
