"""Training loops in the style of public code. Each takes `watch` and trains a few steps; see `table.py`."""

from user_loops import generative, language, science, unusual, vision  # noqa: F401 - they register their loops
from user_loops.table import LOOPS

__all__ = ["LOOPS"]
