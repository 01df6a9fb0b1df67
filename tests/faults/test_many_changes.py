"""How much a client slows the training down that changes the learning rate two hundred times a second."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest
from attended import Start, Viewer, last_reported

from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import KnobTurned

PER_SECOND, DURING_S, PAIRS = 200, 1.0, 60


def cpu_s(pid: int) -> float:
    """The CPU time of a process so far, in seconds."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def cpu_s_per_step(trainer: int, viewer: Viewer, *, changes: bool) -> float:
    viewer.take()
    first, before_s, begun_s, made = last_reported(viewer), cpu_s(trainer), time.monotonic(), 0
    while (passed_s := time.monotonic() - begun_s) < DURING_S:
        while changes and made < passed_s * PER_SECOND:
            made += 1
            viewer.ask(TurnKnob(knob="lr", value="*1.01" if made % 2 else "/1.01"))
        viewer.take(0.005)
    return (cpu_s(trainer) - before_s) / (last_reported(viewer) - first)


@pytest.mark.heavy  # usual: test_viewers_and_commands.py counts and coalesces them
def test_two_hundred_rate_changes_a_second_leave_the_training_its_speed(start: Start) -> None:
    run = start("healthy", "run.steps=10000000", "run.threads=1", "run.evaluate_every=0")
    viewer, trainer = run.viewer(), run.trainer
    viewer.until_step(3000)
    plain, changed = [], []
    for _ in range(PAIRS):  # by turns, since the speed of a machine changes
        plain.append(cpu_s_per_step(trainer, viewer, changes=False))
        changed.append(cpu_s_per_step(trainer, viewer, changes=True))
    assert viewer.events(KnobTurned)
    ratio = statistics.median(plain) / statistics.median(changed)
    print(f"speed with {PER_SECOND} changes a second: {ratio:.3f}; {sorted(plain)}; {sorted(changed)}")
    assert ratio > 0.95
