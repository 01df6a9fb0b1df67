"""The knobs of a run, a class each: what it is set to, why it cannot act, and how it is turned."""

from tui_descent.training.knobs.table import knobs_of

__all__ = ["knobs_of"]
