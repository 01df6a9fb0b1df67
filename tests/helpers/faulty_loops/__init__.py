"""User loops with one known fault each, and healthy ones; `table.py` describes what each entry promises."""

from faulty_loops import dynamics, healthy, numerics, wiring  # noqa: F401 - they register their loops
from faulty_loops.table import LOOPS, FaultyLoop, Watching

__all__ = ["LOOPS", "FaultyLoop", "Watching"]
