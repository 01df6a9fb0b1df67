"""Instruments: one file for each measured quantity. `sampler.py` decides when to measure."""
