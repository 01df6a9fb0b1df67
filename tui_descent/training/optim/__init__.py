"""Optimizers, schedules and clipping, and the transfer of optimizer state when the optimizer or the model changes."""
