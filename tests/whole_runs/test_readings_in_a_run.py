"""When readings are taken in an attended run: after single steps, and after a change of pace."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from attended import Start

from tui_descent.protocol.commands import Mark, RunSteps, TurnKnob
from tui_descent.protocol.events import ReadingsTaken, StateChanged


def test_a_complete_reading_is_taken_where_single_steps_end(start: Start) -> None:
    run = start("healthy", "run.steps=20")
    viewer = run.viewer()
    viewer.until_event(StateChanged, state="waiting")
    step = viewer.do(Mark()).step
    ends = [19]  # the last step of the run is read, too
    for steps in (1, 1, 7, 1):
        step += steps
        ends.append(step - 1)
        viewer.do(RunSteps(steps=steps))
        viewer.until(lambda _, end=step - 1: any(r.step == end for r in viewer.events(ReadingsTaken)))
        assert viewer.do(Mark()).step == step
    readings = [r for r in viewer.events(ReadingsTaken) if r.step in ends]
    assert [r.step for r in readings] == ends
    assert all(any(factor is not None for factor in r.values["backprop_factor"]) for r in readings), "signals too"
    assert not any(age for r in readings for age in r.ages)


@pytest.mark.heavy
def test_readings_continue_after_the_pace_is_set_to_max(start: Start) -> None:
    run = start("healthy", "run.steps=1000000", pace=100.0)
    viewer = run.viewer()
    viewer.until_step(200)
    turned = viewer.do(TurnKnob(knob="pace", value="max"))
    begun_s, cpu_begun_s = time.monotonic(), cpu_s(run.trainer)
    viewer.until_step(turned.step + 4000, 60)
    # On a loaded machine the trainer may lose the processor while the clock of the watching runs.
    cpu_share = (cpu_s(run.trainer) - cpu_begun_s) / (time.monotonic() - begun_s)
    after = [r for r in viewer.events(ReadingsTaken) if r.step >= turned.step]
    assert len(after) >= 3, "readings must continue within the budget"
    assert after[-1].watch_cost < 0.06 / min(cpu_share, 1.0)


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
