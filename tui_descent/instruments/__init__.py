"""Measured things, one file each, and `sampler.py`, which says when."""
