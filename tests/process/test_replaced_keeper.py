"""A keeper that is killed is replaced by the trainer: no step and no intervention is lost, and viewers can come back."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from attended import Attended, Start, Viewer
from runs import TUI, WITHIN_S, Live, children, run

from tui_descent.protocol.commands import Stop, TurnKnob
from tui_descent.protocol.events import HistorySent, KnobTurned, RunEnded, StepsCompleted
from tui_descent.telemetry.record import Record

STEPS = 4000
FAST = ("run.steps=4000", "run.pace='max'", "run.evaluate_every=0")


def kill_keeper(attended: Attended) -> None:
    attended.keeper.kill()
    attended.keeper.wait()


def come_back(attended: Attended) -> Viewer:
    """A viewer of the keeper that takes the place of the dead one."""
    end_s = time.monotonic() + WITHIN_S
    while True:
        try:
            return Viewer(attended.connect_again())
        except OSError:
            assert time.monotonic() < end_s, "no other keeper came"
            time.sleep(0.02)


def recorded(folder: Path) -> tuple[list[float], list[KnobTurned]]:
    """The losses of the first segment in the order in which they are recorded, and the interventions."""
    with Record.open(folder) as record:
        events = list(record.events())
    steps = [e for e in events if isinstance(e, StepsCompleted)]
    assert [e.first for e in steps] == [0, *(e.first + len(e.losses) for e in steps[:-1])], "a gap or an overlap"
    return [loss for e in steps for loss in e.losses], [e for e in events if isinstance(e, KnobTurned)]
