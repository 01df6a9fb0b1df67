"""Runs that are watched in a terminal: the step on the screen, and a record without a gap at the end."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import tiny_trainer
from runs import run

from tui_descent.protocol.events import StepsCompleted
from tui_descent.run_list import find_run
from tui_descent.telemetry.record import Record

TINY = ("exec", "--", sys.executable, tiny_trainer.__file__)
VANISHING = ("vanishing", "--pace", "60", "--set", "run.steps=1000000", "--set", "run.threads=1")


def step_of(text: str) -> int:
    """The step that a screen shows; -1 if it shows none."""
    found = re.search(r"step\s+([\d,]+)", text)
    return int(found[1].replace(",", "")) if found else -1


def beyond(step: int) -> Callable[[str], bool]:
    """Whether a screen shows a later step."""
    return lambda text: step_of(text) > step


def check_record(command: tuple[str, ...]) -> None:
    """Stop the run. No step is missing in its record, and its losses are those of an undisturbed run."""
    folder = find_run(None, live=True).folder
    assert run("stop", folder.name).code == 0
    with Record.open(folder) as record:
        steps = [event for event in record.events() if isinstance(event, StepsCompleted)]
    losses = [loss for event in steps for loss in event.losses]
    assert [event.first + n for event in steps for n in range(len(event.losses))] == list(range(len(losses)))
    if command is TINY:
        assert losses == [1 / (step + 1) for step in range(len(losses))]
    else:
        twin = run("run", "vanishing", "--json", "--steps", str(len(losses)), "--set", "run.threads=1")
        assert losses == twin.losses
