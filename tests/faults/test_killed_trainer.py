"""A trainer that is killed at any moment: the record has all that was acknowledged, and `resume` goes on."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from functools import cache
from pathlib import Path

import pytest
import same_process
from attended import Attended, Start, losses
from runs import run, temporary_home

from tui_descent.protocol.commands import TurnKnob, Undo
from tui_descent.protocol.events import HistorySent, KnobTurned, Rewound, RunEnded, SnapshotSaved, StepsCompleted
from tui_descent.scenario.knobs import parse
from tui_descent.telemetry.record import Record

STEPS = 100_000
MORE = 50  # steps after the resumption
FAST = ("run.steps=100000", "run.evaluate_every=0")


def twin(steps: int) -> list[float]:
    """The first losses of a run that nobody has disturbed."""
    return _twin(500 if steps <= 500 else -(-steps // 3000) * 3000)[:steps]


@cache
def _twin(steps: int) -> list[float]:
    options = ("--json", "--set", FAST[1], "--steps", str(steps))
    with temporary_home() as home:
        return same_process.run("run", "vanishing", *options, home=home).losses


def killed(start: Start, drawn: random.Random, *, within_s: float = 1.5) -> tuple[Attended, list[KnobTurned], int]:
    """Kill the trainer of a fast run at a random moment. Returns the run, the interventions that were acknowledged, and
    the number of steps that the viewer had received.
    """
    attended = start("vanishing", *FAST, snapshot_every_s=drawn.choice((None, 0.2)))
    viewer = attended.viewer()
    viewer.until_step(0)
    end_s = time.monotonic() + drawn.uniform(0.0, within_s)
    replies, asked = [], 0
    while time.monotonic() < end_s:
        asked += 1
        viewer.ask(TurnKnob(knob="pace", value=("max", "5000")[asked % 2]))  # it changes no loss
        viewer.take(within_s=drawn.uniform(0.0, 0.1))
    os.kill(attended.trainer, signal.SIGKILL)
    ended = viewer.until_event(RunEnded)
    assert (ended.status, "signal 9" in ended.reason) == ("lost", True)
    replies = [event for event in viewer.events(KnobTurned) if event.client == viewer.client]
    attended.wait()
    told = max([m.steps for m in viewer.events(HistorySent)] + [step + 1 for step in losses(viewer)])
    return attended, replies, told


def integrity(folder: Path) -> str:
    connection = sqlite3.connect(folder / "record.sqlite")
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()


def check(attended: Attended, replies: list[KnobTurned], told: int) -> None:
    """Nothing is lost, and the resumed run makes the same steps as the twin."""
    folder = attended.launch.path
    assert integrity(folder) == "ok"
    with Record.open(folder) as record:
        events = list(record.events())
        position = record.position()
        turned = [e for e in events if isinstance(e, KnobTurned)]
    made = [loss for e in events if isinstance(e, StepsCompleted) for loss in e.losses]
    assert len(made) >= told
    assert position == (0, len(made))
    assert made == twin(len(made))
    numbers = [event.id for event in turned]
    assert numbers == list(range(1, len(numbers) + 1))
    assert {reply.id for reply in replies} <= set(numbers)
    resumed = run("resume", attended.launch.run, "--json", "--steps", str(len(made) + MORE))
    assert resumed.code == 0, resumed.stderr
    steps = resumed.events("step")
    first = steps[0]["step"]
    assert first <= len(made)
    assert [line["loss"] for line in steps] == twin(len(made) + MORE)[first:]
    assert resumed.ended["status"] == "finished"
    assert integrity(folder) == "ok"


def test_nothing_is_lost_when_the_trainer_is_killed(start: Start) -> None:
    check(*killed(start, random.Random(0), within_s=0.3))


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(1, 201))
def test_nothing_is_lost_when_the_trainer_is_killed_at_random(start: Start, seed: int) -> None:
    check(*killed(start, random.Random(seed)))


@pytest.mark.heavy
def test_interventions_are_undone_when_the_trainer_was_killed(start: Start) -> None:
    """The states are on the disk only. A run must be some seconds old, so that saving one takes few of its time."""
    options = ("run.evaluate_every=0", "run.steps=5000", "run.threads=1")
    attended = start("healthy", *options, pace=40.0, undo_budget=0, snapshot_every_s=300.0)
    viewer = attended.viewer()
    viewer.until_step(400)
    first = viewer.do(parse("lr=*2"))
    viewer.until_event(SnapshotSaved, reason="before intervention 1")
    viewer.until_step(first.step + 20)
    os.kill(attended.trainer, signal.SIGKILL)
    assert viewer.until_event(RunEnded).status == "lost"
    attended.resume()  # makes the first intervention again
    viewer = attended.viewer()
    viewer.until_step(first.step + 400)
    second = viewer.do(parse("activation=silu"))
    viewer.until_event(SnapshotSaved, reason=f"before intervention {second.id}")
    viewer.until_step(second.step + 20)
    for turned in (second, first):
        undone = viewer.do(Undo())
        assert undone.what.endswith(" (from disk)")
        assert undone.step == turned.step
    viewer.until_step(first.step + 60)
    last = viewer.events(Rewound)[-1]
    assert (last.to_segment, last.to_step, last.in_force) == (0, first.step, ())
    made = {
        event.first + n: loss
        for event in viewer.events(StepsCompleted)
        if event.segment == last.segment
        for n, loss in enumerate(event.losses)
    }
    with temporary_home() as home:
        sets = [word for option in options for word in ("--set", option)]
        twin = run("run", "healthy", "--json", *sets, "--steps", str(first.step + 60), home=home).losses
    assert [made[step] for step in range(first.step, first.step + 60)] == twin[first.step :]
