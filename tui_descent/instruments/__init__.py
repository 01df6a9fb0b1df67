"""Instruments: one file for each measured quantity, and `sampler.py` for when to measure."""
