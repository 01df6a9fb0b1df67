"""Lost trainers and keepers, small terminals, non-finite numbers, many layers, foreign text."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from driver import open_dashboard, text_of, wait_until
from factories import reading, started, steps, vanishing
from fake_run import FakeKeeper

from tui_descent.dashboard import bridge
from tui_descent.dashboard.app import DescentApp
from tui_descent.dashboard.colours import state_glyph
from tui_descent.protocol import channel
from tui_descent.protocol.commands import Stop
from tui_descent.protocol.events import (
    Evaluated,
    KnobState,
    Layer,
    Marked,
    Noted,
    ReadingsTaken,
    RunEnded,
    State,
    StateChanged,
    Status,
)

EARLIER = vanishing(60)


def heavy(*cases: object) -> list[Any]:
    """Further cases, for the heavy suite."""
    return [pytest.param(case, marks=pytest.mark.heavy) for case in cases]


async def test_a_lost_trainer_is_reported_and_the_screen_stays() -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await dashboard.shows("● running")
        tail = ("Traceback", "RuntimeError: no memory")
        dashboard.keeper.publish(RunEnded(status="lost", step=60, reason="signal 9", exit_code=-9, log_tail=tail))
        await dashboard.shows("trainer lost (signal 9)", "at step 60", "RuntimeError: no memory", "✕ lost")
        await dashboard.press("r")
        await dashboard.shows("not now", "the run has ended")
        await dashboard.press("2")
        await dashboard.shows("Gradient", "blocks.19")
        await dashboard.press("q")
        await dashboard.wait_until(lambda: dashboard.app.return_value is not None)
    assert dashboard.app.return_value == 4


async def test_a_lost_keeper_is_reported_and_the_screen_stays() -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await dashboard.shows("● running")
        await dashboard.keeper.close()
        await dashboard.shows("disconnected", "display frozen")
        await dashboard.press("r")
        await dashboard.shows("not connected to the run")
        await dashboard.press("q")
    assert dashboard.app.return_value == 4


async def test_the_dashboard_waits_for_the_keeper_to_start() -> None:
    with tempfile.TemporaryDirectory(prefix="d") as folder:
        socket = Path(folder) / "s"
        app = DescentApp(socket, name="vanishing", fps=50)
        async with app.run_test(size=(80, 24)) as pilot:
            await wait_until(pilot, lambda: app.run_screen.up_to_date, lambda: "no frame")
            async with FakeKeeper(socket, before=EARLIER):
                await wait_until(pilot, lambda: app.bridge.history.steps == 60, lambda: app.bridge.trouble)


@pytest.mark.parametrize(
    ("status", "code"), [("finished", 0), ("stopped", 0), ("diverged", 0), ("failed", 1), ("lost", 4)]
)
async def test_exit_code_of_an_ended_run(status: Status, code: int) -> None:
    async with open_dashboard((80, 24), [*EARLIER, RunEnded(status=status, step=60)]) as dashboard:
        await dashboard.shows(f"{state_glyph(status)} {status}")
        await dashboard.press("q")
    assert dashboard.app.return_value == code


@pytest.mark.parametrize(("own", "code"), [(1, 1), (7, 7), (-11, 139)])
async def test_exit_code_of_a_script_that_failed_after_its_run(own: int, code: int) -> None:
    ended = RunEnded(status="finished", step=60, exit_code=own, log_tail=("KeyError: 'x'",), log_path="/x/run.log")
    async with open_dashboard((80, 24), [*EARLIER, ended]) as dashboard:
        await dashboard.shows("✓ finished", "KeyError: 'x'", "full log: /x/run.log")
        await dashboard.press("q")
    assert dashboard.app.return_value == code


async def test_quitting_stops_the_run_only_after_confirmation() -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await dashboard.press("q")
        await dashboard.shows("Leave this run?")
        await dashboard.press("escape")
        await dashboard.wait_until(lambda: "Leave this run?" not in dashboard.text())
        assert dashboard.keeper.received == []
        await dashboard.press("ctrl+c")
        await dashboard.shows("Leave this run?")
        await dashboard.press("s")
        await dashboard.wait_until(lambda: dashboard.app.return_value is not None)
    assert dashboard.keeper.received == [Stop()]
    assert dashboard.app.return_value == 0


@pytest.mark.parametrize("key", ["q", "ctrl+c", "ctrl+q"])
async def test_every_key_for_quitting_asks(key: str) -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await dashboard.press(key)
        await dashboard.shows("Leave this run?")
        await dashboard.press(key)
        await dashboard.wait_until(lambda: "Leave this run?" not in dashboard.text())
        assert dashboard.app.is_running
        assert dashboard.keeper.received == []
        dashboard.keeper.publish(RunEnded(status="finished", step=60))
        await dashboard.shows("✓ finished")
        await dashboard.press(key)
        await dashboard.wait_until(lambda: dashboard.app.return_value is not None)
    assert dashboard.app.return_value == 0


@pytest.mark.parametrize("key", ["ctrl+c", *heavy("ctrl+q")])
async def test_quitting_in_a_dialog_closes_only_the_dialog(key: str) -> None:
    async with open_dashboard((100, 30), EARLIER) as dashboard:
        await dashboard.shows("● running")
        for opening in ("l", "s", "f", "enter", "ctrl+p"):
            await dashboard.press(opening)
            await dashboard.wait_until(lambda: dashboard.app.screen is not dashboard.app.run_screen)
            await dashboard.press(key)
            await dashboard.wait_until(lambda: dashboard.app.screen is dashboard.app.run_screen)
        assert dashboard.app.is_running
        await dashboard.press(key)
        await dashboard.shows("Leave this run?")


async def test_a_small_terminal_shows_the_size_needed() -> None:
    async with open_dashboard((50, 12), EARLIER) as dashboard:
        await dashboard.shows("needs 60×20, this is 50×12")
        await dashboard.pilot.resize_terminal(80, 24)
        await dashboard.shows("Gradient flow", "step")
        await dashboard.pilot.resize_terminal(59, 24)
        await dashboard.shows("needs 60×20, this is 59×24")


async def test_many_resizes_in_a_row() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        for n in range(15):
            await dashboard.pilot.resize_terminal(20 + (n * 37) % 200, 4 + (n * 13) % 60)
        await dashboard.pilot.resize_terminal(60, 20)
        await dashboard.drawn()
        await dashboard.shows("Loss", "Gradient flow")
        assert all(len(row) <= 60 for row in dashboard.text().splitlines())
        assert len(dashboard.text().splitlines()) == 20


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300, 0.0, -3.0, *heavy(-math.inf, -1e300)])
async def test_non_finite_losses_and_readings_are_drawn(value: float) -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        bad: list[float | None] = [value] * 22
        values = dict.fromkeys(("grad_norm", "grad_rms", "update_ratio"), bad)
        taken = ReadingsTaken(
            segment=0, step=60, values=values, ages=[0] * 22, global_grad_norm=value, watch_cost=math.nan
        )
        dashboard.keeper.publish(steps(60, [value, 2.0, value]), taken, Evaluated(segment=0, step=61, loss=value))
        await dashboard.wait_until(lambda: dashboard.app.bridge.history.steps == 63)
        for key in ("y", "t", "y", "2", "3", "1"):
            await dashboard.press(key)
            await dashboard.drawn()
        assert dashboard.app.is_running


async def test_a_held_run_says_why_and_what_to_press() -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        dashboard.keeper.publish(steps(60, [math.nan]), StateChanged(state="held", reason="loss is nan"))
        await dashboard.shows("▲ held", "loss is nan · space: resume", "space resume", "loss nan")


@pytest.mark.parametrize("state", ["running", "held", "stopping", *heavy("paused", "waiting", "testing")])
async def test_a_silent_trainer_is_shown_in_every_state_and_keys_answer(state: State) -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        before = StateChanged(state=state, reason="loss is nan")
        dashboard.keeper.publish(before)
        await dashboard.shows(f"{state_glyph(state)} {state}")
        dashboard.keeper.publish(StateChanged(state=state, reason="the trainer has not responded", silent_s=4))
        await dashboard.shows("▲ silent for 4 s", "the trainer is suspended or in a long step · q: leave")
        dashboard.keeper.publish(StateChanged(state=state, reason="the trainer has not responded", silent_s=12))
        await dashboard.shows("▲ silent for 12 s")
        dashboard.keeper.replies = False
        await dashboard.press("plus")
        await dashboard.shows("requested  lr=*1.25")
        dashboard.keeper.publish(before)
        await dashboard.shows(f"{state_glyph(state)} {state}")
        assert "silent for" not in dashboard.text()


@pytest.mark.parametrize(
    "state", ["running", "held", "stopping", "importing torch", *heavy("paused", "waiting", "testing", "building")]
)
async def test_a_silent_keeper_is_shown_until_it_sends_again(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [] if state in ("importing torch", "building") else EARLIER
    async with open_dashboard((80, 24), [*before, StateChanged(state=state)], heartbeat=True) as dashboard:
        await dashboard.shows(f"{state_glyph(state)} {state}")
        await dashboard.wait_until(lambda: dashboard.app.bridge.client is not None)
        late_s = time.monotonic() + 9
        monkeypatch.setattr(bridge, "time", SimpleNamespace(monotonic=lambda: late_s))
        await dashboard.shows("▲ silent for ", "the run's keeper does not respond (suspended?) · q: leave")
        assert any(f"▲ silent for {n} s" in dashboard.text() for n in range(9, 20)), "more on a busy machine"
        dashboard.keeper.beat()
        await dashboard.shows(f"{state_glyph(state)} {state}")
        assert "silent for" not in dashboard.text()


async def test_a_keeper_that_is_silent_from_the_start_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="d") as folder:
        socket = Path(folder) / "s"
        with channel.listen(socket):  # it has no more than a socket, which nobody reads
            app = DescentApp(socket, name="vanishing", fps=50)
            async with app.run_test(size=(80, 24)) as pilot:
                await wait_until(pilot, lambda: app.bridge.connected, lambda: text_of(app))
                late_s = time.monotonic() + 5
                monkeypatch.setattr(bridge, "time", SimpleNamespace(monotonic=lambda: late_s))
                await wait_until(pilot, lambda: "silent for 5 s" in text_of(app), lambda: text_of(app))
                await pilot.press("q")
    assert app.return_value == 4


@pytest.mark.parametrize("state", ["running", "held", *heavy("paused", "waiting")])
@pytest.mark.parametrize("script", [False, pytest.param(True, marks=pytest.mark.heavy)])
async def test_a_silent_keeper_is_left_at_once(state: State, script: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [*EARLIER, StateChanged(state=state)]
    async with open_dashboard((80, 24), events, heartbeat=True, replies=False, script=script) as dashboard:
        await dashboard.shows(f"{state_glyph(state)} {state}")
        late_s = time.monotonic() + 9
        monkeypatch.setattr(bridge, "time", SimpleNamespace(monotonic=lambda: late_s))
        await dashboard.shows("silent for 9 s")
        await dashboard.press("q")
        await dashboard.wait_until(lambda: dashboard.app.return_value is not None)
        assert dashboard.app.bridge.trouble == "the run's keeper has not responded for 9 s"
        assert Stop() not in dashboard.keeper.received
    assert dashboard.app.return_value == 4


async def test_a_keeper_that_falls_silent_while_the_run_stops_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_dashboard((80, 24), EARLIER, heartbeat=True, replies=False, script=True) as dashboard:
        await dashboard.shows("● running")
        await dashboard.press("q", "s")
        await dashboard.wait_until(lambda: Stop() in dashboard.keeper.received)
        assert dashboard.app.return_value is None
        late_s = time.monotonic() + 9
        monkeypatch.setattr(bridge, "time", SimpleNamespace(monotonic=lambda: late_s))
        await dashboard.wait_until(lambda: dashboard.app.return_value is not None)
    assert dashboard.app.return_value == 4


@pytest.mark.parametrize("state", ["paused", "held", "waiting"])
async def test_a_keeper_with_nothing_to_send_is_not_silent(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [*EARLIER, StateChanged(state=state, reason="loss is nan")]
    async with open_dashboard((80, 24), before, heartbeat=True) as dashboard:
        await dashboard.shows(f"{state_glyph(state)} {state}")
        late_s = time.monotonic() + 900
        monkeypatch.setattr(bridge, "time", SimpleNamespace(monotonic=lambda: late_s))
        dashboard.keeper.beat()
        await dashboard.shows(f"{state_glyph(state)} {state}")
        await dashboard.press("y")
        await dashboard.drawn()
        assert "silent for" not in dashboard.text()


async def test_a_user_loop_that_calls_nothing_is_not_called_a_trainer() -> None:
    silent = StateChanged(state="running", reason="the trainer has not responded for 400 s", silent_s=400)
    async with open_dashboard((80, 24), [started(scenario=None), StateChanged(state="running"), silent]) as dashboard:
        await dashboard.shows("silent for 400 s  your loop has not called run.step since · q: leave")


@pytest.mark.parametrize("state", ["importing torch", "building"])
async def test_a_silent_trainer_is_shown_before_the_first_step(state: State) -> None:
    async with open_dashboard((80, 24), [StateChanged(state=state, silent_s=7)]) as dashboard:
        await dashboard.shows(f"{state_glyph(state)} {state}", "silent for 7 s")


async def test_a_net_of_two_hundred_layers() -> None:
    async with open_dashboard((120, 40), vanishing(40, depth=200)) as dashboard:
        await dashboard.shows("outlet", "inlet")
        for _ in range(3):
            await dashboard.press("down")
        await dashboard.shows("▸blocks.198")
        await dashboard.press("escape")
        await dashboard.drawn()
        assert "▸" not in dashboard.text()


async def test_a_net_of_one_parameter() -> None:
    only = (Layer(name="w", kind="Point", params=1),)
    knobs = (KnobState(name="lr", value="0.1"),)
    taken = ReadingsTaken(
        segment=0, step=0, values={"grad_norm": [2.0], "grad_rms": [2.0]}, ages=[0], global_grad_norm=2.0, watch_cost=0
    )
    async with open_dashboard((80, 24), [started(layers=only, knobs=knobs), taken, steps(0, [1.0] * 10)]) as dashboard:
        await dashboard.drawn()
        await dashboard.shows("w", "Loss")


HOSTILE = "\x1b[31mred\x1b]0;title\x07[bold]b[/] [@click=app.exit]x[/] \u202eright\u2066 \x9b31m\x00end"


async def test_control_codes_and_markup_in_foreign_text_have_no_effect() -> None:
    layers = tuple(Layer(name=f"blocks.{n}.{HOSTILE}", kind=HOSTILE, params=1, block=n) for n in range(3))
    knobs = (KnobState(name="lr", value=HOSTILE), KnobState(name="residual", unavailable=HOSTILE))
    begin = started(layers=layers, knobs=knobs, name=HOSTILE, title=HOSTILE, about=HOSTILE, device=HOSTILE)
    past = [begin, StateChanged(state="running"), reading(0, 0.5, 1), steps(0, [1.0] * 20)]
    past += [Marked(segment=0, step=3, text=HOSTILE), Noted(step=4, text=HOSTILE)]
    async with open_dashboard((120, 40), past) as dashboard:
        dashboard.keeper.reject = HOSTILE
        await dashboard.press("plus")
        await dashboard.shows("rejected")
        for keys in (["3"], ["1", "r"], ["up", "enter"], ["escape", "a"], ["escape", "l"], ["escape"]):
            await dashboard.press(*keys)
            await dashboard.drawn()
            seen = dashboard.text()
            # The dialogs of the activation and of the rate show no foreign text.
            assert "[bold]b[/]" in seen or "Learning" in seen or "Activation of" in seen
            assert not any((ord(c) < 32 and c != "\n") or c in "\u202e\u2066\x9b" for c in seen)
        dashboard.keeper.publish(StateChanged(state="held", reason=HOSTILE))
        await dashboard.shows("held")
        dashboard.keeper.publish(
            RunEnded(status="failed", step=20, reason=HOSTILE, log_tail=(HOSTILE,), log_path=HOSTILE)
        )
        await dashboard.shows("✕ failed", "red[bold]b[/] [@click=app.exit]x[/] right 31mend"[:20])


async def test_events_do_not_trigger_redraws() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.drawn()
        app, draws = dashboard.app, 0
        first = app.run_screen.draw

        def counting() -> None:
            nonlocal draws
            draws += 1
            first()

        app.run_screen.draw = counting  # type: ignore[method-assign]
        for step in range(60, 160):
            dashboard.keeper.publish(steps(step, [2.0]))
        await dashboard.wait_until(lambda: app.bridge.history.steps == 160)
        # A hundred events within a few frames; each frame may draw once, however many arrive.
        assert draws < 50


async def test_panels_with_a_redraw_interval_catch_up() -> None:
    async with open_dashboard((120, 40), EARLIER, min_interval_s=0.3) as dashboard:
        await dashboard.drawn()
        for step in range(60, 64):
            dashboard.keeper.publish(reading(step, 0.9), steps(step, [2.0]))
            await dashboard.pilot.pause(0.03)
        await dashboard.shows("still measuring", "blocks.0 gets 0.14×")
        await dashboard.shows(f"inlet     {2e-2 * 0.9**21:11.1e}"[-7:])
        await dashboard.drawn()


async def test_the_whole_path_of_the_log_is_shown_and_no_panel_for_an_empty_log() -> None:
    path = f"/home/somebody/{'a-long-folder-name/' * 6}run.log"
    ended = RunEnded(status="failed", step=60, reason="KeyError: 'x'", log_tail=("KeyError: 'x'",), log_path=path)
    async with open_dashboard((80, 24), [*EARLIER, ended]) as dashboard:
        await dashboard.shows("Last lines of the trainer's log", "full log: /home/somebody/")
        rows = [row.strip("│ ") for row in dashboard.text().splitlines() if row.startswith("│")]
        assert f"full log: {path}" in "".join(rows)
    empty = msgspec.structs.replace(ended, log_tail=())
    async with open_dashboard((80, 24), [*EARLIER, empty]) as dashboard:
        await dashboard.shows("KeyError: 'x'", "Gradient flow")
        assert "Last lines" not in dashboard.text()


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40)])
async def test_the_status_line_says_that_a_dashboard_is_read_only(size: tuple[int, int]) -> None:
    for read_only in (True, False):
        async with open_dashboard(size, vanishing(30), read_only=read_only) as dashboard:
            await dashboard.shows("● running")
            await dashboard.drawn()
            status = dashboard.text().splitlines()[0]
            assert status.endswith("  read-only  ● running") == read_only
            assert ("read-only" in dashboard.text()) == read_only
