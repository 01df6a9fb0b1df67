"""Recorded runs in other forms: a scenario file, a plain PyTorch script. Nothing here imports torch."""
