"""How a dashboard was left, and what its user wants next. Imports nothing slow, because the command line needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Then = Literal["quit", "restart", "gallery", "race"]


@dataclass(frozen=True, slots=True)
class Left:
    """The exit code, what the user wants next, and whether the run goes on without the dashboard."""

    code: int
    then: Then = "quit"
    run_goes_on: bool = False
