"""Moving through a record: each position has the history that the run had there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from factories import rewound, started, steps, turned
from task_pictures import surface_picture, taken
from test_record import recorded, sent

from tui_descent.protocol.events import AnyEvent, Evaluated, LaneEnded, LaneSteps, RunEnded, StepsCompleted
from tui_descent.protocol.race import Lane
from tui_descent.telemetry.history import History
from tui_descent.telemetry.record import Record, player, writer
from tui_descent.telemetry.record.player import SPEEDS, Player


def run() -> list[AnyEvent]:
    """60 steps, an undo, and 30 more; a step takes 1/30 s."""
    events: list[AnyEvent] = [started(2)]
    for n in range(60):
        events += [*([turned(40, "off", "on")] if n == 40 else []), steps(n, [1.0 + n])]
        events += [Evaluated(segment=0, step=n + 1, loss=2.0)] if n % 20 == 19 else []
    events.append(rewound((0, 60), (0, 40), 1, back=True))
    events += [steps(n, [0.5], segment=1) for n in range(40, 70)]
    return [*events, RunEnded(status="finished", step=70)]


def histories(events: list[AnyEvent]) -> list[bytes]:
    """The history at each position: that before each step, and the last one."""
    found, history = [], History()
    for event in events:
        if isinstance(event, StepsCompleted | LaneSteps):
            found.append(sent(history))
        history.apply(event)
    return [*found, sent(history)]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Player]:
    monkeypatch.setattr(writer, "FIRST_SPACING", 150)
    recorded(tmp_path, run(), batch=3)
    with Record.open(tmp_path) as record:
        yield Player(record)


def test_it_opens_at_the_end(opened: Player) -> None:
    assert (opened.position, opened.total, opened.at_end) == (90, 90, True)
    assert opened.history.ended is not None
    assert opened.changes == (40,)


@pytest.mark.parametrize("kept", [1, 7, 8192])
def test_every_position_has_the_history_that_the_run_had_there(
    opened: Player, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(player, "KEEP_EVERY", kept)
    wanted = histories(run())
    for position in (0, 1, 2, 7, 39, 40, 41, 59, 60, 61, 89, 90, 60, 40, 0, 90, 3, 89):
        opened.seek(position)
        assert opened.position == position
        assert sent(opened.history) == wanted[position], position
        assert len(opened._kept) <= player.MOST_KEPT


def test_positions_outside_of_the_record_are_its_ends(opened: Player) -> None:
    opened.seek(-5)
    assert opened.position == 0
    opened.seek(1000)
    assert opened.at_end


def test_it_plays_at_the_speed_of_the_run(opened: Player) -> None:
    opened.seek(0)
    opened.play()
    opened.advance(0.5)
    assert opened.position in (15, 16)
    opened.change_speed(1)
    opened.advance(0.25)
    assert opened.position in (30, 31)
    opened.playing = False
    before = opened.position
    opened.advance(9.0)
    assert opened.position == before


def test_it_stops_at_the_end_and_plays_again_from_the_beginning(opened: Player) -> None:
    opened.seek(0)
    opened.play()
    for _ in range(100):
        opened.advance(0.1)
    assert (opened.at_end, opened.playing) == (True, False)
    assert sent(opened.history) == histories(run())[-1]
    opened.play()
    assert (opened.position, opened.playing) == (0, True)


def test_speeds_end_at_one_and_a_hundred(opened: Player) -> None:
    opened.change_speed(-1)
    assert opened.speed == SPEEDS[0] == 1
    for _ in range(20):
        opened.change_speed(1)
    assert opened.speed == SPEEDS[-1] == 100


@pytest.mark.parametrize(
    "second", [[3600.0 + n for n in range(5)], [n / 10 for n in range(5)]], ids=["pause", "resume"]
)
def test_long_waits_and_a_clock_that_starts_again_do_not_stop_it(second: list[float], tmp_path: Path) -> None:
    events: list[AnyEvent] = [started(2)]
    for first, times in ((0, [10.0 + n / 10 for n in range(5)]), (5, second)):
        events.append(StepsCompleted(segment=0, first=first, losses=[1.0] * 5, lrs=[0.1] * 5, times_s=times))
    recorded(tmp_path, events)
    with Record.open(tmp_path) as record:
        opened = Player(record)
        opened.play()
        for _ in range(65):
            opened.advance(0.1)
        assert opened.at_end


def test_a_race_is_played_lap_by_lap(tmp_path: Path) -> None:
    lanes = (Lane(name="sgd", optimizer="sgd", lr=0.1), Lane(name="adam", optimizer="adam", lr=0.01))
    events: list[AnyEvent] = [started(2, lanes=lanes)]
    for first in range(0, 50, 10):
        events += [LaneSteps(lane=n, first=first, losses=[1.0 + n] * 10) for n in range(2)]
    events += [LaneEnded(lane=n, name="x", status="finished", step=50) for n in range(2)]
    events.append(RunEnded(status="finished", step=50))
    recorded(tmp_path, events)
    with Record.open(tmp_path) as record:
        opened = Player(record)
        assert opened.total == 10
        wanted = histories(events)
        for position in (0, 5, 10, 3):
            opened.seek(position)
            assert sent(opened.history) == wanted[position], position
        opened.play()
        for _ in range(20):
            opened.advance(0.1)
        assert opened.at_end


@pytest.mark.parametrize("events", [[], [started(2)]], ids=["nothing", "no steps"])
def test_record_without_steps_has_one_position(events: list[AnyEvent], tmp_path: Path) -> None:
    recorded(tmp_path, events)
    with Record.open(tmp_path) as record:
        opened = Player(record)
        opened.play()
        opened.advance(1.0)
        assert (opened.position, opened.total, opened.playing) == (0, 0, False)


def test_every_position_has_the_picture_that_was_shown_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FIRST_SPACING", 150)
    events: list[AnyEvent] = []
    for event in run():
        pictured = isinstance(event, StepsCompleted) and event.segment == 0 and event.first % 10 == 5
        events += [taken(surface_picture(8, 4), event.first)] if pictured else []
        events.append(event)
    recorded(tmp_path, events, batch=3)
    with Record.open(tmp_path) as record:
        opened = Player(record)
        assert record.checkpoints()
        for position in (90, 0, 4, 5, 6, 30, 60, 14, 90, 3):
            opened.seek(position)
            last = 55 if position > 55 else position // 10 * 10 - 5 + 10 * (position % 10 >= 5)
            assert opened.history.task == (taken(surface_picture(8, 4), last) if last > 0 else None), position
        opened.seek(4)
        opened.play()
        opened.advance(1.0)
        assert opened.history.task == taken(surface_picture(8, 4), 35)
