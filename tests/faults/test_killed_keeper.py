"""The trainer replaces a keeper that is killed: no step and no intervention is lost, and viewers can come back."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import same_process
from attended import Attended, Start, Viewer
from runs import Live, children, kill_and_wait, wait_for_end, wait_until_free

from tui_descent.protocol.commands import Pause, Stop, TurnKnob
from tui_descent.protocol.events import HistorySent, KnobTurned, RunEnded, StepsCompleted
from tui_descent.telemetry.record import Record

FAST = ("run.steps=200000", "run.evaluate_every=0")


def end_of(viewer: Viewer) -> RunEnded:
    """Stop the run, or let it end; returns its end."""
    viewer.ask(Stop())
    return viewer.until_event(RunEnded)


def recorded(folder: Path) -> tuple[list[float], list[KnobTurned]]:
    """The losses in the order in which they are recorded, without a gap, and the interventions."""
    with Record.open(folder) as record:
        events = list(record.events())
    steps = [e for e in events if isinstance(e, StepsCompleted)]
    losses = [loss for e in steps for loss in e.losses]
    assert [e.first + n for e in steps for n in range(len(e.losses))] == list(range(len(losses)))
    return losses, [e for e in events if isinstance(e, KnobTurned)]


def kill_keepers(attended: Attended, kills: int, *, seed: int = 0) -> list[KnobTurned]:
    """Kill one keeper after the other, each after a few interventions; returns the acknowledged ones."""
    drawn, replies, keeper = random.Random(seed), [], attended.keeper.pid
    first = attended.viewer()
    first.until_step(10)
    trainer = attended.trainer
    for kill in range(kills):
        viewer = attended.viewer(another=kill > 0)
        viewer.until_event(HistorySent)
        for _ in range(drawn.randrange(1, 4)):
            reply = viewer.do(TurnKnob(knob="lr", value="*1.01"))
            assert isinstance(reply, KnobTurned)
            replies.append(reply)
        if drawn.random() < 0.5:
            viewer.ask(
                TurnKnob(knob="lr", value="*0.99")
            )  # its reply may be lost, but then it is recorded once or never
        kill_and_wait(keeper)
        viewer.until_closed()
        again = attended.viewer(another=True)
        again.until_event(HistorySent)
        again.close()
        (keeper,) = children(trainer)
    return replies


def check_twin(attended: Attended, replies: list[KnobTurned]) -> None:
    """The record has every acknowledged intervention once, and every loss of an undisturbed run that repeats them."""
    viewer = attended.viewer(another=True)
    end_of(viewer)
    viewer.until_closed()
    losses, turned = recorded(attended.launch.path)
    numbers = [event.id for event in turned]
    assert len(numbers) == len(set(numbers))
    assert {reply.id for reply in replies} <= set(numbers)
    plan = [part for event in turned for part in ("--at", f"{event.step}:lr={event.value}")]
    fast = (part for setting in FAST for part in ("--set", setting))
    twin = same_process.run("run", "vanishing", "--json", *fast, *plan, "--steps", str(len(losses)))
    assert twin.losses == losses


def test_no_step_and_no_intervention_is_lost_when_keepers_are_killed(start: Start) -> None:
    """The last keeper is killed while the run is paused; another one comes at once."""
    attended = start("vanishing", *FAST)
    attended.viewer().until_step(10)
    trainer = attended.trainer
    replies = kill_keepers(attended, 2)
    viewer = attended.viewer(another=True)
    viewer.do(Pause())
    (keeper,) = children(trainer)
    kill_and_wait(keeper)
    again = attended.viewer(another=True)
    assert again.until_event(HistorySent).steps >= 10
    check_twin(attended, replies)


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(12))
def test_no_step_is_lost_when_keepers_are_killed_at_random(start: Start, seed: int) -> None:
    attended = start("vanishing", *FAST)
    check_twin(attended, kill_keepers(attended, 4, seed=seed))


def test_run_stops_when_its_command_in_the_foreground_is_killed(home: Path) -> None:
    with Live("run", "vanishing", "--json", "--set", "run.steps=100000", "--set", "run.evaluate_every=0") as live:
        live.until(lambda line: line["event"] == "step" and line["step"] > 100)
        (trainer,) = children(live.process.pid)
        live.process.kill()
        live.process.wait()
        wait_for_end(trainer)
    (folder,) = (home / "runs").iterdir()
    wait_until_free(folder)
    losses, _ = recorded(folder)
    assert len(losses) > 100
    with Record.open(folder) as record:
        assert (record.about.status, record.about.reason) == ("stopped", "its command was killed")
