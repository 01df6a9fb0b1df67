"""Optimizers, schedules, clipping, and an optimizer's state when it or the model changes."""
