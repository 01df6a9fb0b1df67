"""The dashboard of a user's script: what it prints, the size of its terminal, and quitting while it saves."""

from __future__ import annotations

from pathlib import Path

import pytest
from driver import compare, open_dashboard
from factories import started, steps
from test_run_states import HOSTILE

from tui_descent.dashboard.terminal_size import script_size
from tui_descent.keeper.keeper import GOES_ON
from tui_descent.protocol.commands import ResizeTerminal, Stop
from tui_descent.protocol.events import AnyEvent, RunEnded, StateChanged

LOOP: list[AnyEvent] = [started(scenario=None, name="train"), StateChanged(state="running"), steps(0, [1.0] * 30)]
PRINTED = (
    "\x1b[32mloading\x1b[0m data\n"
    + "".join(f"epoch {n}: validation accuracy {0.5 + n / 200:.3f}\n" for n in range(60))
    + "".join(f"\repoch 60: {'█' * n}{' ' * (20 - n)}| {5 * n}%" for n in range(15))
)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_output_view(size: tuple[int, int], tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text(PRINTED)
    async with open_dashboard(size, LOOP, log_path=log, script=True) as dashboard:
        await dashboard.press("7")
        await dashboard.shows("epoch 60: ██████████████      | 70%", "newest at the bottom")
        await dashboard.drawn()
        compare(f"output-{size[0]}x{size[1]}", dashboard.text())


async def test_output_view_follows_what_is_printed_and_scrolls(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    async with open_dashboard((80, 24), LOOP, log_path=log, script=True) as dashboard:
        await dashboard.press("7")
        await dashboard.shows("the script has not printed anything")
        log.write_text(PRINTED)
        await dashboard.shows("| 70%")
        with log.open("a") as file:
            file.write("\repoch 60: done" + " " * 30)
        await dashboard.shows("epoch 60: done")
        for _ in range(100):
            await dashboard.press("up")
        await dashboard.shows("loading data", "lines below")
        await dashboard.press("down")
        await dashboard.wait_until(lambda: "loading data" not in dashboard.text())
        await dashboard.press("1")
        await dashboard.shows("Loss")


async def test_output_wraps_and_has_no_control_codes(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text(f"{'long ' * 20}END\n{HOSTILE}\n")
    async with open_dashboard((80, 24), LOOP, log_path=log, script=True) as dashboard:
        await dashboard.press("7")
        await dashboard.shows("END", "[bold]b[/]")
        seen = dashboard.text()
        assert not any((ord(c) < 32 and c != "\n") or c in "\u202e\u2066\x9b" for c in seen)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_output_of_a_script_that_was_not_started_by_us_is_in_its_own_terminal(size: tuple[int, int]) -> None:
    async with open_dashboard(size, LOOP, script=True) as dashboard:
        await dashboard.press("7")
        await dashboard.shows("what it prints is in its own terminal.", "tui-descent exec -- python train.py")


async def test_a_scenario_has_an_output_view_too() -> None:
    async with open_dashboard((80, 24), [started()]) as dashboard:
        await dashboard.press("7")
        await dashboard.shows("the trainer has not printed anything")


async def test_the_terminal_of_a_script_has_the_size_of_the_output_panel() -> None:
    async with open_dashboard((80, 24), LOOP, script=True) as dashboard:
        await dashboard.press("7")
        panel = dashboard.app.run_screen.query_one("#output")
        for size in ((80, 24), (120, 40), (100, 30)):
            await dashboard.pilot.resize_terminal(*size)
            await dashboard.wait_until(lambda: panel.content_size == script_size(*dashboard.app.size))
            columns, rows = script_size(*size)
            await dashboard.wait_until(
                lambda: dashboard.keeper.received[-1:] == [ResizeTerminal(columns=columns, rows=rows)]  # noqa: B023
            )
        await dashboard.pilot.resize_terminal(30, 10)  # too small to show anything
        await dashboard.shows("needs 60×20")
        assert len(dashboard.keeper.received) == 3
        assert "requested" not in dashboard.text()


async def test_a_scenario_has_no_terminal_to_resize() -> None:
    async with open_dashboard((80, 24), [started()]) as dashboard:
        await dashboard.pilot.resize_terminal(100, 30)
        await dashboard.drawn()
        assert dashboard.keeper.received == []


async def test_a_second_q_kills_a_script_that_still_saves() -> None:
    async with open_dashboard((80, 24), LOOP, replies=False, script=True) as dashboard:
        keeper = dashboard.keeper
        await dashboard.press("q")
        await dashboard.shows("Leave this run?")
        await dashboard.press("s")
        await dashboard.wait_until(lambda: Stop() in keeper.received)
        await dashboard.shows("waiting for the script's next step · q: kill it")
        keeper.publish(StateChanged(state="stopping", reason=GOES_ON))
        await dashboard.shows("the loop has ended; its script is still running · q: kill it")
        assert dashboard.app.return_value is None
        await dashboard.press("q")
        await dashboard.wait_until(lambda: Stop(kill=True) in keeper.received)
        keeper.publish(RunEnded(status="stopped", step=30, exit_code=-15, log_path="/x/run.log"))
        await dashboard.wait_until(lambda: dashboard.app.return_value is not None)
    assert dashboard.app.return_value == 143


async def test_the_dashboard_waits_for_a_script_that_saves() -> None:
    async with open_dashboard((80, 24), LOOP, replies=False, script=True) as dashboard:
        await dashboard.press("q", "s")
        await dashboard.wait_until(lambda: Stop() in dashboard.keeper.received)
        dashboard.keeper.publish(StateChanged(state="stopping", reason=GOES_ON))
        await dashboard.shows("q: kill it")
        dashboard.keeper.publish(RunEnded(status="stopped", step=30, exit_code=0))
        await dashboard.wait_until(lambda: dashboard.app.return_value is not None)
    assert dashboard.app.return_value == 0


async def test_a_keeper_that_has_exited_is_noticed_without_waiting(tmp_path: Path) -> None:
    async with open_dashboard((80, 24), keeper_gone=lambda: True) as dashboard:
        await dashboard.keeper.close()
        await dashboard.shows("disconnected", "the run's keeper has ended unexpectedly")


async def test_a_lost_connection_is_shown_while_the_run_lives() -> None:
    async with open_dashboard((80, 24), LOOP, run_lives=lambda: True) as dashboard:
        await dashboard.keeper.close()
        await dashboard.shows("reconnecting…", "the connection to the run's keeper was lost")
        await dashboard.press("space")
        await dashboard.shows("reconnecting to the run")
