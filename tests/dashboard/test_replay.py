"""The dashboard over a record: the cursor moves, everything is shown as it was, and nothing can be steered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from driver import text_of, wait_until
from factories import rewound, started, steps, vanishing
from msgspec.structs import replace as replace_struct
from textual.pilot import Pilot

from tui_descent import cli
from tui_descent.dashboard.bridge import Exchange
from tui_descent.dashboard.replay import LOOKING, MOVES, RECORDED, ReplayApp
from tui_descent.dashboard.view import Compared
from tui_descent.protocol.events import AnyEvent, RunEnded, StateChanged
from tui_descent.protocol.launch import Launch
from tui_descent.scenario.keys import KEYS
from tui_descent.telemetry.history import History
from tui_descent.telemetry.record import Record, RecordWriter
from tui_descent.telemetry.record.player import Player

ENDED = RunEnded(status="finished", step=400, loss=0.25)


def written(folder: Path, events: list[AnyEvent]) -> Path:
    history = History()
    writer = RecordWriter.open(Launch(run="r1", name="vanishing", folder=str(folder), socket=None), history.send)
    for event in events:
        history.apply(event)
        writer.add(event)
    writer.close()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("run"), [*vanishing(400), ENDED])


@pytest.fixture
def app(folder: Path) -> Iterator[ReplayApp]:
    with Record.open(folder) as record:
        yield ReplayApp(Player(record), None)


async def at(pilot: Pilot[int], app: ReplayApp, position: int) -> None:
    await wait_until(pilot, lambda: app.player.position == position, lambda: text_of(app))


async def shows(pilot: Pilot[int], app: ReplayApp, *texts: str) -> None:
    await wait_until(pilot, lambda: all(text in text_of(app) for text in texts), lambda: text_of(app))


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_keys_move_the_cursor(app: ReplayApp, size: tuple[int, int]) -> None:
    async with app.run_test(size=size) as pilot:
        await shows(pilot, app, "400 of 400", "replay", "finished", "◆", "←→")
        for key, position in (
            ("left", 396),
            ("shift+left", 395),
            ("home", 0),
            ("right", 4),
            ("shift+right", 5),
            ("full_stop", 6),
            ("left", 2),
            ("left", 0),
            ("end", 400),
            ("right", 400),
        ):
            await pilot.press(key)
            await at(pilot, app, position)
        await pilot.press("home", "right", "right")
        await shows(pilot, app, "8 of 400", "step     8")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_after_an_undo_the_cursor_is_a_segment_and_a_step(size: tuple[int, int], tmp_path: Path) -> None:
    events = [started(2), steps(0, [1.0] * 60), rewound((0, 60), (0, 40), 1, back=True)]
    events += [replace_struct(steps(40, [0.5] * 30), segment=1), RunEnded(status="stopped", step=70)]
    with Record.open(written(tmp_path, events)) as record:
        app = ReplayApp(Player(record), None)
        async with app.run_test(size=size) as pilot:
            await shows(pilot, app, "1·70 of 1·70", "step    70")
            for position, place, step in ((89, "1·69", 69), (61, "1·41", 41), (59, "0·59", 59), (0, "0·0", 0)):
                app.move_to(position)
                await shows(pilot, app, f" {place} of 1·70", f"step {step:>5}" if step else "replay")


async def test_space_plays_and_pauses_and_the_pace_keys_change_the_speed(app: ReplayApp) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("semicolon", "semicolon", "comma")
        assert app.player.speed == 2
        await pilot.press("space")
        await shows(pilot, app, "▸ ×2", "space: pause")
        await wait_until(pilot, lambda: 0 < app.player.position < 400, lambda: text_of(app))
        await pilot.press("space")
        assert not app.player.playing
        before = app.player.position
        await shows(pilot, app, f"{before} of 400", "space: play")
        await pilot.press(*["semicolon"] * 9, "space")
        await at(pilot, app, 400)
        await shows(pilot, app, "400 of 400", "finished")


async def test_keys_that_steer_say_that_a_recorded_run_cannot_be_steered(app: ReplayApp) -> None:
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("home", "right")
        await at(pilot, app, 4)
        log = list(app.player.history.log)
        keys = {key for binding in KEYS for key in binding.keys if binding.action not in LOOKING} - set(MOVES)
        assert {"r", "a", "plus", "f", "u", "R", "O"} <= keys
        for key in keys:
            app.bridge.exchange = Exchange()
            await pilot.press(key)
            assert app.bridge.exchange.refusal == RECORDED, key
            assert app.screen is app.run_screen, key
        await shows(pilot, app, RECORDED)
        assert app.player.history.log == log, "the events are those of the run"


async def test_views_that_need_the_trainer_say_what_is_not_recorded(app: ReplayApp) -> None:
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("home", "right", "8")
        await shows(pilot, app, "pictures are not recorded")
        await pilot.press("9")
        await shows(pilot, app, "what the lens counts is not recorded")
        await pilot.press("3")
        await shows(pilot, app, "1 overview", "held-out loss")


NEVER_ENDS = ("waiting for", "measuring the", "connecting", "takes a few seconds", "metrics yet", "act on all")


@pytest.mark.parametrize("scenario", ["a preset", None], ids=["a preset", "a user loop"])
async def test_no_view_of_a_replay_waits_for_what_will_never_come(scenario: str | None, tmp_path: Path) -> None:
    beginning: list[AnyEvent] = [StateChanged(state="importing torch"), started(2), StateChanged(state="running")]
    if scenario is None:
        beginning[1] = started(2, scenario=None)
    with Record.open(written(tmp_path, [*beginning, steps(0, [1.0] * 60), ENDED])) as record:
        app = ReplayApp(Player(record), None)
        async with app.run_test(size=(120, 40)) as pilot:
            for position in (0, 30, 60):
                app.move_to(position)
                await at(pilot, app, position)
                for key in "123456789h":
                    await pilot.press(key)
                    await wait_until(pilot, lambda: app.run_screen.up_to_date, lambda: text_of(app))
                    assert not [text for text in NEVER_ENDS if text in text_of(app)], text_of(app)
                if scenario is None:
                    await pilot.press("6")
                    await shows(pilot, app, "no metrics were logged" if position == 60 else "no metrics so far")


async def test_output_of_a_script_with_its_own_terminal_is_not_recorded(tmp_path: Path) -> None:
    launch = Launch(run="r1", name="x", folder=str(tmp_path), socket=None)
    with Record.open(written(tmp_path, [started(2, scenario=None), steps(0, [1.0] * 60), ENDED])) as record:
        app = ReplayApp(Player(record), launch)
        async with app.run_test(size=(80, 24)) as pilot:
            await pilot.press("7")
            await shows(pilot, app, "what it prints is in its own terminal.")


@pytest.mark.parametrize(("key", "then"), [("q", "quit"), ("p", "gallery"), ("ctrl+c", "quit")])
async def test_leaving_asks_nothing(app: ReplayApp, key: str, then: str) -> None:
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("home")
        await pilot.press(key)
        await wait_until(pilot, lambda: not app.is_running or app.return_value is not None, lambda: "still open")
    assert (app.return_value, app.then) == (0, then)


@pytest.mark.parametrize("state", ["held", "paused", "waiting"])
async def test_states_in_which_a_run_waits_offer_no_keys(state: str, tmp_path: Path) -> None:
    stopped = StateChanged(state=state, reason="why")  # type: ignore[arg-type]
    with Record.open(written(tmp_path, [started(2), steps(0, [1.0] * 60), stopped])) as record:
        app = ReplayApp(Player(record), None)
        async with app.run_test(size=(80, 24)) as pilot:
            await shows(pilot, app, f"{state}  before step 60: why")
            assert "resume" not in text_of(app)
            assert len(app.screen_stack) == 2, "no end card"


async def test_record_without_steps_is_shown(tmp_path: Path) -> None:
    with Record.open(written(tmp_path, [StateChanged(state="building")])) as record:
        app = ReplayApp(Player(record), None)
        async with app.run_test(size=(80, 24)) as pilot:
            await pilot.press("space", "left", "end")
            await shows(pilot, app, "0 of 0")


async def test_loss_of_another_run_is_drawn_as_a_ghost(app: ReplayApp, tmp_path: Path) -> None:
    with Record.open(written(tmp_path, [started(2), steps(0, [0.5] * 300)])) as record:
        history = record.history()
    other = Compared("the other", history.losses[0], history.steps)
    async with app.run_test(size=(120, 40)) as pilot:
        await shows(pilot, app, "400 of 400")
        assert "other run" not in text_of(app)
        app.run_screen.view = replace(app.run_screen.view, compared=other)
        await shows(pilot, app, "the other", "other run g")
        await pilot.press("g")
        await wait_until(pilot, lambda: "the other" not in text_of(app), lambda: text_of(app))
        await pilot.press("g", "home")
        await shows(pilot, app, "0 of 400")


def test_without_a_terminal_replay_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", "x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "tui-descent: replay needs a terminal; to print a run: tui-descent export RUN --to jsonl"
