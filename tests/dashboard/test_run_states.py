"""Bad days: lost trainers and keepers, no room, numbers that are none, many layers, hostile words."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
from driver import playing, until
from fake_run import ScriptedKeeper, reading, started, steps, vanishing

from tui_descent.dashboard.app import DescentApp
from tui_descent.protocol.commands import Stop
from tui_descent.protocol.events import (
    Evaluated,
    KnobState,
    Layer,
    Marked,
    Noted,
    ReadingsTaken,
    RunEnded,
    StateChanged,
    Status,
)

PAST = vanishing(60)


async def test_a_lost_trainer_is_told_and_the_screen_stays() -> None:
    async with playing((80, 24), PAST) as play:
        await play.sees("● running")
        tail = ("Traceback", "RuntimeError: no memory")
        play.keeper.tell(RunEnded(status="lost", step=60, reason="signal 9", exit_code=-9, log_tail=tail))
        await play.sees("trainer lost (signal 9)", "at step 60", "RuntimeError: no memory", "● lost")
        await play.press("r")
        await play.sees("not now", "the run has ended")
        await play.press("2")
        await play.sees("Gradient", "blocks.19")
        await play.press("q")
        await play.until(lambda: play.app.return_value is not None)
    assert play.app.return_value == 4


async def test_a_lost_keeper_is_told_and_the_screen_stays() -> None:
    async with playing((80, 24), PAST) as play:
        await play.sees("● running")
        await play.keeper.close()
        await play.sees("keeper lost", "what was seen stays on screen")
        await play.press("r")
        await play.sees("there is no keeper to ask")
        await play.press("q")
    assert play.app.return_value == 4


async def test_a_keeper_that_comes_late() -> None:
    with tempfile.TemporaryDirectory(prefix="d") as folder:
        socket = Path(folder) / "s"
        app = DescentApp(socket, name="vanishing", fps=50)
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: app.run_screen.up_to_date, lambda: "no frame")
            async with ScriptedKeeper(socket, before=PAST):
                await until(pilot, lambda: app.bridge.history.steps == 60, lambda: app.bridge.trouble)


@pytest.mark.parametrize(
    ("status", "code"), [("finished", 0), ("stopped", 0), ("diverged", 0), ("failed", 1), ("lost", 4)]
)
async def test_exit_code_of_an_ended_run(status: Status, code: int) -> None:
    async with playing((80, 24), [*PAST, RunEnded(status=status, step=60)]) as play:
        await play.sees(f"● {status}")
        await play.press("q")
    assert play.app.return_value == code


@pytest.mark.parametrize(("own", "code"), [(1, 1), (7, 7), (-11, 139)])
async def test_exit_code_of_a_script_that_failed_behind_its_run(own: int, code: int) -> None:
    ended = RunEnded(status="finished", step=60, exit_code=own, log_tail=("KeyError: 'x'",), log_path="/x/run.log")
    async with playing((80, 24), [*PAST, ended]) as play:
        await play.sees("● finished", "KeyError: 'x'", "all of it: /x/run.log")
        await play.press("q")
    assert play.app.return_value == code


async def test_leaving_stops_the_run_only_when_told_to() -> None:
    async with playing((80, 24), PAST) as play:
        await play.press("q")
        await play.sees("Leave this run?")
        await play.press("escape")
        await play.until(lambda: "Leave this run?" not in play.text())
        assert play.keeper.asked == []
        await play.press("ctrl+c")
        await play.sees("Leave this run?")
        await play.press("s")
        await play.until(lambda: play.app.return_value is not None)
    assert play.keeper.asked == [Stop()]
    assert play.app.return_value == 0


async def test_too_small_says_what_it_needs() -> None:
    async with playing((50, 12), PAST) as play:
        await play.sees("needs 60×20, this is 50×12")
        await play.pilot.resize_terminal(80, 24)
        await play.sees("Gradient flow", "step")
        await play.pilot.resize_terminal(59, 24)
        await play.sees("needs 60×20, this is 59×24")


async def test_a_storm_of_sizes() -> None:
    async with playing((120, 40), PAST) as play:
        for n in range(15):
            await play.pilot.resize_terminal(20 + (n * 37) % 200, 4 + (n * 13) % 60)
        await play.pilot.resize_terminal(60, 20)
        await play.drawn()
        await play.sees("Loss", "Gradient flow")
        assert all(len(row) <= 60 for row in play.text().splitlines())
        assert len(play.text().splitlines()) == 20


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e300, 0.0, -3.0])
async def test_losses_that_are_none(value: float) -> None:
    async with playing((120, 40), PAST) as play:
        bad: list[float | None] = [value] * 22
        values = dict.fromkeys(("grad_norm", "grad_rms", "update_ratio"), bad)
        told = ReadingsTaken(
            segment=0, step=60, values=values, ages=[0] * 22, global_grad_norm=value, watch_cost=math.nan
        )
        play.keeper.tell(steps(60, [value, 2.0, value]), told, Evaluated(segment=0, step=61, loss=value))
        await play.until(lambda: play.app.bridge.history.steps == 63)
        for key in ("y", "t", "y", "2", "3", "1"):
            await play.press(key)
            await play.drawn()
        assert play.app.is_running


async def test_a_held_run_says_why_and_what_to_press() -> None:
    async with playing((80, 24), PAST) as play:
        play.keeper.tell(steps(60, [math.nan]), StateChanged(state="held", reason="loss is nan"))
        await play.sees("● held", "loss is nan; space goes on", "space goes on", "loss nan")


async def test_two_hundred_layers() -> None:
    async with playing((120, 40), vanishing(40, depth=200)) as play:
        await play.sees("outlet", "inlet")
        for _ in range(3):
            await play.press("down")
        await play.sees("▸blocks.198")
        await play.press("escape")
        await play.drawn()
        assert "▸" not in play.text()


async def test_a_net_of_one_parameter() -> None:
    only = (Layer(name="w", kind="Point", params=1),)
    knobs = (KnobState(name="lr", value="0.1"),)
    told = ReadingsTaken(
        segment=0, step=0, values={"grad_norm": [2.0], "grad_rms": [2.0]}, ages=[0], global_grad_norm=2.0, watch_cost=0
    )
    async with playing((80, 24), [started(layers=only, knobs=knobs), told, steps(0, [1.0] * 10)]) as play:
        await play.drawn()
        await play.sees("w", "Loss")


HOSTILE = "\x1b[31mred\x1b]0;title\x07[bold]b[/] [@click=app.exit]x[/] \u202eright\u2066 \x9b31m\x00end"


async def test_hostile_words_stay_words() -> None:
    layers = tuple(Layer(name=f"blocks.{n}.{HOSTILE}", kind=HOSTILE, params=1, block=n) for n in range(3))
    knobs = (KnobState(name="lr", value=HOSTILE), KnobState(name="residual", unavailable=HOSTILE))
    begin = started(layers=layers, knobs=knobs, name=HOSTILE, title=HOSTILE, about=HOSTILE, device=HOSTILE)
    past = [begin, StateChanged(state="running"), reading(0, 0.5, 1), steps(0, [1.0] * 20)]
    past += [Marked(segment=0, step=3, text=HOSTILE), Noted(step=4, text=HOSTILE)]
    async with playing((120, 40), past) as play:
        play.keeper.reject = HOSTILE
        await play.press("plus")
        await play.sees("rejected")
        for keys in (["3"], ["1", "r"], ["up", "enter"], ["escape", "a"], ["escape", "l"], ["escape"]):
            await play.press(*keys)
            await play.drawn()
            seen = play.text()
            assert "[bold]b[/]" in seen or "Learning" in seen
            assert not any((ord(c) < 32 and c != "\n") or c in "\u202e\u2066\x9b" for c in seen)
        play.keeper.tell(StateChanged(state="held", reason=HOSTILE))
        await play.sees("held")
        play.keeper.tell(RunEnded(status="failed", step=20, reason=HOSTILE, log_tail=(HOSTILE,), log_path=HOSTILE))
        await play.sees("● failed", "red[bold]b[/] [@click=app.exit]x[/] right 31mend"[:20])


async def test_events_alone_never_draw() -> None:
    async with playing((120, 40), PAST) as play:
        await play.drawn()
        app, draws = play.app, 0
        first = app.run_screen.draw

        def counting() -> None:
            nonlocal draws
            draws += 1
            first()

        app.run_screen.draw = counting  # type: ignore[method-assign]
        for step in range(60, 160):
            play.keeper.tell(steps(step, [2.0]))
        await play.until(lambda: app.bridge.history.steps == 160)
        # A hundred events within a few frames; each frame may draw once, whatever was told.
        assert draws < 50


async def test_slower_panels_catch_up() -> None:
    async with playing((120, 40), PAST, pace_s=0.3) as play:
        await play.drawn()
        for step in range(60, 64):
            play.keeper.tell(reading(step, 0.9), steps(step, [2.0]))
            await play.pilot.pause(0.03)
        await play.sees("flows", "blocks.0 gets 1.4e-01")
        await play.sees(f"inlet     {2e-2 * 0.9**21:11.1e}"[-7:])
        await play.drawn()
