"""How much a client slows the training down that changes the learning rate two hundred times a second."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import pytest
from attended import Start, Viewer, last_reported

from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import KnobTurned

PER_SECOND, DURING_S, PAIRS = 200, 4.0, 15


def cpu_s(pid: int) -> float:
    """The CPU time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
    ratios = []
    for _ in range(PAIRS):  # by turns, since the speed of a machine changes
        plain = cpu_s_per_step(trainer, viewer, changes=False)
        ratios.append(plain / cpu_s_per_step(trainer, viewer, changes=True))
    assert viewer.events(KnobTurned)
    median = statistics.median(ratios)
    print(f"speed with {PER_SECOND} changes a second: {median:.3f}; {sorted(round(ratio, 3) for ratio in ratios)}")
    assert median > 0.95
