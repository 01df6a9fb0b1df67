"""The keeper records its run."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories import turned
from scripted_trainer import ScriptedTrainer

from tui_descent.protocol.events import Evaluated, KnobTurned, Noted, ReadingsTaken, StepsCompleted
from tui_descent.telemetry.record import RECORD_FILE, Record, writer


def test_record_has_all_that_the_keeper_published() -> None:
    trainer = ScriptedTrainer()
    trainer.start()
    trainer.steps(700, reading_every=100)
    trainer.peer.send(Evaluated(segment=0, step=700, loss=1.0))
    trainer.peer.send(turned(700, "1", "2", knob="lr", source="plan"))
    trainer.steps(300)
    trainer.ended()
    ended = trainer.run()
    with Record.open(trainer.launch.path) as record:
        events = list(record.events())
        about = record.about
        assert record.history().send().losses == trainer.keeper.history.send().losses
    losses = [loss for event in events if isinstance(event, StepsCompleted) for loss in event.losses]
    assert losses == [n * 0.5 for n in range(1000)]
    for kind in (ReadingsTaken, Evaluated, KnobTurned):
        assert [e for e in events if isinstance(e, kind)] == [e for e in trainer.events if isinstance(e, kind)]
    assert events[-1] == ended
    assert (about.run, about.name, about.status, about.step) == (trainer.launch.run, "scripted", "finished", 1000)


def test_intervention_is_in_the_record_before_it_is_published() -> None:
    trainer = ScriptedTrainer()
    found = []
    receive = trainer.keeper._on_event
    assert receive is not None

    def look(event: object) -> None:
        receive(event)  # type: ignore[arg-type]
        if isinstance(event, KnobTurned):
            with Record.open(trainer.launch.path) as record:
                found.append([made.step for made in record.interventions()])

    trainer.keeper._on_event = look
    trainer.start()
    trainer.steps(5)
    trainer.peer.send(turned(5, "1", "2", knob="lr"))
    trainer.ended()
    trainer.run()
    assert found == [[5]]


def test_run_goes_on_without_a_record_that_cannot_be_opened() -> None:
    trainer = ScriptedTrainer()
    (trainer.launch.path / RECORD_FILE).mkdir()
    trainer.start()
    trainer.steps(5)
    trainer.ended()
    assert trainer.run().status == "finished"
    (note,) = [event for event in trainer.events if isinstance(event, Noted)]
    assert note.text.startswith("this run is not recorded: ")
    assert note.level == "warning"


def test_slow_commits_do_not_delay_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not due yet waits in memory, and is written at the end."""
    monkeypatch.setattr(writer, "COMMIT_S", 1000.0)
    trainer = ScriptedTrainer()
    trainer.start()
    trainer.steps(5)
    trainer.ended()
    trainer.run()
    with Record.open(Path(trainer.launch.folder)) as record:
        assert record.position() == (0, 5)


def test_position_counts_only_the_steps_that_are_recorded() -> None:
    """A commit may come between two events of the same batch: a keeper that takes over must miss none."""
    trainer = ScriptedTrainer()
    found: list[tuple[int, int]] = []
    receive = trainer.keeper._on_event
    assert receive is not None
    made = 0

    def look(event: object) -> None:
        nonlocal made
        receive(event)  # type: ignore[arg-type]
        if isinstance(event, StepsCompleted):
            made += len(event.losses)
            found.append((trainer.keeper._stream.position.steps, made))

    trainer.keeper._on_event = look
    trainer.start()
    for segment in range(3):
        for step in range(10):
            trainer.ring.write_step(step, 1.0, 0.1, 0.0, segment, False)
    trainer.step = 10
    trainer.ended()
    trainer.run()
    assert found == [(10, 10), (20, 20), (30, 30)]
