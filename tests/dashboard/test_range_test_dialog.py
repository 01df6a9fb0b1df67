"""The range-test dialog: requested, followed, shown, used, cancelled."""

from __future__ import annotations

import math

import pytest
from driver import Dashboard, compare, open_dashboard
from factories import started, vanishing
from fake_run import CLIENT

from tui_descent.dashboard.dialogs.range_test import RangeTestDialog, result_text, still_valid
from tui_descent.dashboard.panels.look_ahead import LookAheadPanel
from tui_descent.dashboard.panels.range_test import RangeTestPanel
from tui_descent.protocol.commands import CancelRangeTest, RunRangeTest, TurnKnob
from tui_descent.protocol.events import (
    CommandDone,
    CommandRejected,
    RangeTestCompleted,
    RunEnded,
    StateChanged,
)
from tui_descent.telemetry.history import History

EARLIER = vanishing(30)
SCALES = [0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
RATES = [1e-5 * 10 ** (n * 7 / 99) for n in range(80)]


def loss_at(rate: float) -> float:
    """Falls from 2.3 to about 1 at a rate of 0.6, then rises."""
    return 2.3 - 1.4 * rate / (rate + 0.2) + 0.2 * rate**3


def swept(step: int = 30, **changed: object) -> RangeTestCompleted:
    """A result with the lowest loss at a rate of 0.756."""
    losses = [loss_at(rate) for rate in RATES]
    lowest = RATES[losses.index(min(losses))]
    fields: dict[str, object] = {
        "segment": 0,
        "step": step,
        "rate": 0.1,
        "level": 2.3,
        "rates": RATES,
        "losses": [loss + 0.1 * math.sin(40 * n) for n, loss in enumerate(losses)],
        "still": [2.3] * len(RATES),
        "smooth": losses,
        "ended_at": RATES[-1],
        "lowest": lowest,
        "suggestion": lowest / 10,
        "scales": SCALES,
        "ahead": [2.3 - 0.2 * s + 0.02 * s * s for s in SCALES],
        "seconds": 0.5,
    }
    return RangeTestCompleted(**{**fields, **changed})  # type: ignore[arg-type]


FLAT = {"lowest": None, "suggestion": None, "words": "flat: no rate lowers the loss"}


def answer(dashboard: Dashboard, found: RangeTestCompleted | None, *, reason: str = "", request: int = 1) -> None:
    place = {"client": CLIENT, "request": request, "segment": 0, "step": 30}
    if found is not None:
        dashboard.keeper.publish(found, CommandDone(what="range test: 0.0756 suggested", **place))  # type: ignore[arg-type]
    else:
        dashboard.keeper.publish(CommandRejected(source="key", knob="", reason=reason, **place))  # type: ignore[arg-type]


async def opened(dashboard: Dashboard) -> None:
    await dashboard.shows("sigmoid")
    dashboard.keeper.replies = False
    await dashboard.press("f")
    await dashboard.wait_until(lambda: dashboard.keeper.received == [RunRangeTest()])


@pytest.mark.parametrize("size", [(80, 24), (120, 40), pytest.param((200, 60), marks=pytest.mark.heavy)])
async def test_range_test_is_requested_followed_and_shown(size: tuple[int, int]) -> None:
    async with open_dashboard(size, EARLIER) as dashboard:
        await dashboard.wait_until(lambda: dashboard.app.bridge.history.steps == 30)
        dashboard.keeper.replies = False
        await dashboard.press("f")
        await dashboard.shows("range test requested…", "escape cancels")
        dashboard.keeper.publish(StateChanged(state="testing", reason="rates 12/100"))
        await dashboard.shows("testing rates 12/100…")
        dashboard.keeper.publish(StateChanged(state="testing", reason="rates 40/100"))
        await dashboard.shows("testing rates 40/100…")
        dashboard.keeper.publish(StateChanged(state="running"))
        answer(dashboard, swept())
        await dashboard.shows("before step 30", "try ▲", "enter sets lr=0.0756", "loss 2.300 → 2.120 at s = 1")
        assert "testing rates" not in dashboard.text()
        if size[0] < 200:
            await dashboard.drawn()
            compare(f"rates-{size[0]}x{size[1]}", dashboard.text())


def axis_numbers(rows: list[str]) -> list[float]:
    """The numbers beside the plot, from the top."""
    return [float(row.split()[0]) for row in rows[:-2] if row[:1] == " " and row.split()[0][-1:].isdigit()]


@pytest.mark.parametrize("value", [-1.0, -1e-3, 0.0, 1.0])
def test_look_ahead_axis_includes_a_constant_loss(value: float) -> None:
    rows = [s.text for s in LookAheadPanel().plot(swept(ahead=[value] * len(SCALES)), 40, 14)]
    found = axis_numbers(rows)
    assert found[-1] < value < found[0]
    assert next(n for n, row in enumerate(rows) if "•" in row) in range(3, 10)


@pytest.mark.parametrize("ahead", [[-1.0 - s / 20 for s in SCALES], [0.0] * 5 + [1.0, 2.0, 4.0, 8.0]])
def test_look_ahead_axis_includes_losses_at_and_below_zero(ahead: list[float]) -> None:
    rows = [s.text for s in LookAheadPanel().plot(swept(ahead=ahead), 40, 30)]
    found = axis_numbers(rows)
    gap = found[0] - found[1]
    assert found[-1] - gap <= min(ahead)
    assert max(ahead) <= found[0] + gap


@pytest.mark.parametrize("width", [24, 31, 60])
def test_long_numbers_do_not_shift_their_rows(width: int) -> None:
    ahead = [2.296609 + 1e-6 * n for n in range(len(SCALES))]
    strips = LookAheadPanel().plot(swept(ahead=ahead), width, 14)
    rows = [s.text for s in strips]
    assert {s.cell_length for s in strips} == {width}
    assert max(len(row.split()[0]) for row in rows if row.split()) > 6, rows
    marker = rows[-2].index("▲")
    assert {row[marker] for row in rows[:-2]} <= set("┊•") | {chr(c) for c in range(0x2800, 0x2900)}
    assert not any("…" in row for row in rows)


def test_look_ahead_axis_ends_above_the_small_steps() -> None:
    rows = [
        s.text for s in LookAheadPanel().plot(swept(ahead=[0.0, -0.2, -0.4, -0.8, -1.0, 0.5, 9.0, 1e3, 1e9]), 40, 30)
    ]
    assert axis_numbers(rows)[0] <= 4.0
    assert axis_numbers(rows)[-1] <= -0.5


async def test_enter_sets_the_suggested_rate() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await opened(dashboard)
        answer(dashboard, swept())
        await dashboard.shows("enter sets lr=0.0756")
        dashboard.keeper.replies = True
        await dashboard.press("enter")
        await dashboard.wait_until(lambda: len(dashboard.keeper.received) == 2)
        lowest = swept().lowest
        assert lowest is not None
        assert dashboard.keeper.received[1] == TurnKnob(knob="lr", value=f"{lowest / 10:.3g}")
        await dashboard.shows("applied at step 30")
        assert not isinstance(dashboard.app.screen, RangeTestDialog)


async def test_enter_does_nothing_without_a_suggestion() -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await opened(dashboard)
        answer(dashboard, swept(**FLAT))
        await dashboard.shows("no suggestion: flat: no rate lowers the loss")
        assert "enter sets lr" not in dashboard.text()
        await dashboard.press("enter", "escape")
        await dashboard.wait_until(lambda: not isinstance(dashboard.app.screen, RangeTestDialog))
        assert dashboard.keeper.received == [RunRangeTest()]


async def test_escape_cancels_a_running_test() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await opened(dashboard)
        dashboard.keeper.publish(StateChanged(state="testing", reason="rates 12/100"))
        await dashboard.shows("testing rates 12/100…")
        await dashboard.press("escape")
        await dashboard.wait_until(lambda: dashboard.keeper.received == [RunRangeTest(), CancelRangeTest()])
        await dashboard.shows("● testing", "rates 12/100; the run is restored")
        assert not isinstance(dashboard.app.screen, RangeTestDialog)


async def test_escape_after_the_test_sends_nothing() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await opened(dashboard)
        answer(dashboard, swept())
        await dashboard.shows("enter sets lr=0.0756")
        await dashboard.press("escape")
        await dashboard.wait_until(lambda: not isinstance(dashboard.app.screen, RangeTestDialog))
        assert dashboard.keeper.received == [RunRangeTest()]


async def test_a_rejected_test_shows_why_and_f_tests_again() -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await opened(dashboard)
        answer(dashboard, None, reason="a range test needs a loss that is a number; u goes back to the last good state")
        await dashboard.shows("a loss that is a number; u goes back", "f tests again")
        await dashboard.press("f")
        await dashboard.wait_until(lambda: dashboard.keeper.received == [RunRangeTest(), RunRangeTest()])
        answer(dashboard, swept(), request=2)
        await dashboard.shows("enter sets lr=0.0756")


async def test_another_viewers_result_is_not_taken_for_our_own() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await opened(dashboard)
        dashboard.keeper.publish(swept(29, suggestion=0.7, seconds=0.1))
        await dashboard.shows("range test requested…")
        answer(dashboard, swept())
        await dashboard.shows("enter sets lr=0.0756")


async def test_a_valid_result_of_another_viewer_is_shown_at_once() -> None:
    async with open_dashboard((120, 40), [*EARLIER, StateChanged(state="paused"), swept()]) as dashboard:
        await dashboard.shows("‖ paused")
        await dashboard.press("f")
        await dashboard.shows("enter sets lr=0.0756")
        assert dashboard.keeper.received == []
        await dashboard.press("escape", "3")
        await dashboard.shows("range test: suggests 0.0756")


async def test_the_end_of_the_run_ends_the_waiting() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await opened(dashboard)
        dashboard.keeper.publish(RunEnded(status="stopped", step=30))
        await dashboard.shows("the run has ended", "escape closes")
        await dashboard.press("escape")
        await dashboard.wait_until(lambda: not isinstance(dashboard.app.screen, RangeTestDialog))


async def test_a_user_loop_shows_why_it_has_no_range_test() -> None:
    async with open_dashboard((120, 40), [started(scenario=None), StateChanged(state="running")]) as dashboard:
        await dashboard.shows("● running")
        await dashboard.press("f")
        await dashboard.shows("not now", "not available for your own loop: its batches cannot be replayed")
        assert dashboard.keeper.received == []


async def test_the_palette_starts_a_range_test() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("residual off")
        dashboard.keeper.replies = False
        await dashboard.press("ctrl+p")
        await dashboard.shows("Search")
        await dashboard.press(*"rangetest")
        await dashboard.shows("range test")
        await dashboard.press("enter", "enter")
        await dashboard.wait_until(lambda: dashboard.keeper.received == [RunRangeTest()])
        await dashboard.shows("range test requested…")


async def test_non_finite_results_are_drawn() -> None:
    wild = swept(
        ahead=[2.3, 2.2, 2.1, 2.0, 1.9, 1e200, math.inf, math.nan, math.nan],
        losses=[*[2.3] * 40, *[1e-300, 1e300, 0.0, -5.0] * 10],
        smooth=[*[2.3] * 79, 1e300],
    )
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await opened(dashboard)
        answer(dashboard, wild)
        await dashboard.shows("▲ next", "lowest 1.900 at s = 1")


@pytest.mark.parametrize("panel", [RangeTestPanel, LookAheadPanel])
@pytest.mark.parametrize("found", [swept(), swept(**FLAT), swept(rates=[], losses=[], smooth=[], still=[], ahead=[])])
def test_plots_fill_their_size(panel: type[RangeTestPanel | LookAheadPanel], found: RangeTestCompleted) -> None:
    for width, height in ((0, 3), (3, 3), (9, 4), (30, 12), (140, 50)):
        strips = panel().plot(found, width, height)
        assert len(strips) <= max(height, 4)
        assert {strip.cell_length for strip in strips} <= {width}


def history_of(*facts: object) -> History:
    history = History()
    for fact in (*EARLIER, *facts):
        history.apply(fact)  # type: ignore[arg-type]
    return history


def test_a_result_is_valid_until_the_run_moves_or_a_knob_changes() -> None:
    from factories import steps, turned

    paused = StateChanged(state="paused")
    assert still_valid(history_of(paused)) is None
    assert still_valid(history_of(swept())) is None, "the run is not stopped"
    assert still_valid(history_of(swept(), paused)) is not None
    assert still_valid(history_of(swept(), paused, turned(30, "a", "b"))) is None
    assert still_valid(history_of(swept(), paused, turned(30, "1", "2", knob="pace"))) is not None
    assert still_valid(history_of(swept(), steps(30, [2.0]), paused)) is None
    assert History.receive(history_of(swept()).send()).swept == swept()


def test_the_result_in_text() -> None:
    assert result_text(swept(ahead=[], scales=[])).plain.endswith("the next update changes nothing")
    assert "diverges at 3.8" in result_text(swept()).plain
    assert "lowest 1.820 at s = 4" in result_text(swept()).plain


def test_a_range_test_does_not_log_a_second_hold() -> None:
    held = StateChanged(state="held", reason="loss is nan")
    log = history_of(held, StateChanged(state="testing", reason="rates 1/100"), held).log
    assert [fact for fact in log if isinstance(fact, StateChanged)] == [held]
