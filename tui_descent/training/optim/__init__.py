"""Optimizers, schedules, clipping, and what happens to optimizer state when the optimizer or the model changes."""
