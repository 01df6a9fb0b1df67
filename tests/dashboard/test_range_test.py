"""The range test on screen: asked for, followed, shown, adopted, given up."""

from __future__ import annotations

import math

import pytest
from driver import Play, compare, playing
from fake_run import CLIENT, started, vanishing

from tui_descent.dashboard.dialogs.range_test import RatesDialog, figures_of, still_true
from tui_descent.dashboard.panels.range_test import AheadPanel, SweepPanel
from tui_descent.protocol.commands import CancelSweep, SweepRates, TurnKnob
from tui_descent.protocol.events import (
    CommandDone,
    CommandRejected,
    RatesSwept,
    RunEnded,
    StateChanged,
)
from tui_descent.telemetry.history import History

PAST = vanishing(30)
SCALES = [0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
RATES = [1e-5 * 10 ** (n * 7 / 99) for n in range(80)]


def loss_at(rate: float) -> float:
    """Falls from 2.3 to about 1 at 0.6, then climbs."""
    return 2.3 - 1.4 * rate / (rate + 0.2) + 0.2 * rate**3


def swept(step: int = 30, **changed: object) -> RatesSwept:
    """A valley at 0.756."""
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
    return RatesSwept(**{**fields, **changed})  # type: ignore[arg-type]


FLAT = {"lowest": None, "suggestion": None, "words": "flat: no rate lowers the loss"}


def answer(play: Play, found: RatesSwept | None, *, reason: str = "", request: int = 1) -> None:
    place = {"client": CLIENT, "request": request, "segment": 0, "step": 30}
    if found is not None:
        play.keeper.tell(found, CommandDone(what="range test: 0.0756 suggested", **place))  # type: ignore[arg-type]
    else:
        play.keeper.tell(CommandRejected(source="key", knob="", reason=reason, **place))  # type: ignore[arg-type]


async def opened(play: Play) -> None:
    await play.sees("sigmoid")
    play.keeper.replies = False
    await play.press("f")
    await play.until(lambda: play.keeper.asked == [SweepRates()])


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_asked_followed_shown(size: tuple[int, int]) -> None:
    async with playing(size, PAST) as play:
        await play.until(lambda: play.app.bridge.history.steps == 30)
        play.keeper.replies = False
        await play.press("f")
        await play.sees("asked to test rates…", "escape gives it up")
        play.keeper.tell(StateChanged(state="testing", reason="rates 12/100"))
        await play.sees("testing rates 12/100…")
        play.keeper.tell(StateChanged(state="testing", reason="rates 40/100"))
        await play.sees("testing rates 40/100…")
        play.keeper.tell(StateChanged(state="running"))
        answer(play, swept())
        await play.sees("before step 30", "try ▲", "enter lr=0.0756", "loss 2.300 → 2.120 at s = 1")
        assert "testing rates" not in play.text()
        if size[0] < 200:
            compare(f"rates-{size[0]}x{size[1]}", play.text())


def figures(rows: list[str]) -> list[float]:
    """Those beside the picture, from the top."""
    return [float(row.split()[0]) for row in rows[:-2] if row[:1] == " " and row.split()[0][-1:].isdigit()]


@pytest.mark.parametrize("value", [-1.0, -1e-3, 0.0, 1.0])
def test_the_axis_of_a_loss_that_is_the_same_everywhere_holds_it(value: float) -> None:
    rows = [s.text for s in AheadPanel().picture(swept(ahead=[value] * len(SCALES)), 40, 14)]
    found = figures(rows)
    assert found[-1] < value < found[0]
    assert next(n for n, row in enumerate(rows) if "•" in row) in range(3, 10)


@pytest.mark.parametrize("ahead", [[-1.0 - s / 20 for s in SCALES], [0.0] * 5 + [1.0, 2.0, 4.0, 8.0]])
def test_the_axis_holds_losses_at_and_under_zero(ahead: list[float]) -> None:
    rows = [s.text for s in AheadPanel().picture(swept(ahead=ahead), 40, 30)]
    found = figures(rows)
    gap = found[0] - found[1]
    assert found[-1] - gap <= min(ahead)
    assert max(ahead) <= found[0] + gap


@pytest.mark.parametrize("width", [24, 31, 60])
def test_long_figures_do_not_shift_their_rows(width: int) -> None:
    ahead = [2.296609 + 1e-6 * n for n in range(len(SCALES))]
    strips = AheadPanel().picture(swept(ahead=ahead), width, 14)
    rows = [s.text for s in strips]
    assert {s.cell_length for s in strips} == {width}
    assert max(len(row.split()[0]) for row in rows if row.split()) > 6, rows
    upright = rows[-2].index("▲")
    assert {row[upright] for row in rows[:-2]} <= set("┊•") | {chr(c) for c in range(0x2800, 0x2900)}
    assert not any("…" in row for row in rows)


def test_what_climbs_far_above_the_small_steps_is_a_wall_under_zero_too() -> None:
    rows = [
        s.text for s in AheadPanel().picture(swept(ahead=[0.0, -0.2, -0.4, -0.8, -1.0, 0.5, 9.0, 1e3, 1e9]), 40, 30)
    ]
    assert figures(rows)[0] <= 4.0
    assert figures(rows)[-1] <= -0.5


async def test_enter_adopts_by_an_ordinary_turn() -> None:
    async with playing((120, 40), PAST) as play:
        await opened(play)
        answer(play, swept())
        await play.sees("enter lr=0.0756")
        play.keeper.replies = True
        await play.press("enter")
        await play.until(lambda: len(play.keeper.asked) == 2)
        lowest = swept().lowest
        assert lowest is not None
        assert play.keeper.asked[1] == TurnKnob(knob="lr", value=f"{lowest / 10:.3g}")
        await play.sees("applied at step 30")
        assert not isinstance(play.app.screen, RatesDialog)


async def test_enter_adopts_nothing_where_nothing_is_suggested() -> None:
    async with playing((80, 24), PAST) as play:
        await opened(play)
        answer(play, swept(**FLAT))
        await play.sees("no suggestion, flat: no rate lowers the loss")
        assert "enter lr" not in play.text()
        await play.press("enter", "escape")
        await play.until(lambda: not isinstance(play.app.screen, RatesDialog))
        assert play.keeper.asked == [SweepRates()]


async def test_escape_gives_it_up() -> None:
    async with playing((120, 40), PAST) as play:
        await opened(play)
        play.keeper.tell(StateChanged(state="testing", reason="rates 12/100"))
        await play.sees("testing rates 12/100…")
        await play.press("escape")
        await play.until(lambda: play.keeper.asked == [SweepRates(), CancelSweep()])
        await play.sees("● testing", "rates 12/100; all is put back")
        assert not isinstance(play.app.screen, RatesDialog)


async def test_escape_after_it_asks_for_nothing() -> None:
    async with playing((120, 40), PAST) as play:
        await opened(play)
        answer(play, swept())
        await play.sees("enter lr=0.0756")
        await play.press("escape")
        await play.until(lambda: not isinstance(play.app.screen, RatesDialog))
        assert play.keeper.asked == [SweepRates()]


async def test_a_refusal_says_why_and_f_asks_again() -> None:
    async with playing((80, 24), PAST) as play:
        await opened(play)
        answer(play, None, reason="a range test needs a loss that is a number; u goes back to the last good state")
        await play.sees("a loss that is a number; u goes back", "f tests again")
        await play.press("f")
        await play.until(lambda: play.keeper.asked == [SweepRates(), SweepRates()])
        answer(play, swept(), request=2)
        await play.sees("enter lr=0.0756")


async def test_the_result_of_another_one_is_not_taken_for_ones_own() -> None:
    async with playing((120, 40), PAST) as play:
        await opened(play)
        play.keeper.tell(swept(29, suggestion=0.7, seconds=0.1))
        await play.sees("asked to test rates…")
        answer(play, swept())
        await play.sees("enter lr=0.0756")


async def test_what_another_viewer_tested_here_is_shown_at_once() -> None:
    async with playing((120, 40), [*PAST, StateChanged(state="paused"), swept()]) as play:
        await play.sees("● paused")
        await play.press("f")
        await play.sees("enter lr=0.0756")
        assert play.keeper.asked == []
        await play.press("escape", "3")
        await play.sees("range test: 0.0756", "suggested")


async def test_the_keepers_end_ends_the_waiting() -> None:
    async with playing((120, 40), PAST) as play:
        await opened(play)
        play.keeper.tell(RunEnded(status="stopped", step=30))
        await play.sees("the run has ended", "escape changes nothing")
        await play.press("escape")
        await play.until(lambda: not isinstance(play.app.screen, RatesDialog))


async def test_an_own_loop_is_told_why_and_asked_nothing() -> None:
    async with playing((120, 40), [started(scenario=None), StateChanged(state="running")]) as play:
        await play.sees("● running")
        await play.press("f")
        await play.sees("not now", "an own loop's batches cannot be asked for again")
        assert play.keeper.asked == []


async def test_from_the_palette() -> None:
    async with playing((120, 40), PAST) as play:
        await play.sees("residual off")
        play.keeper.replies = False
        await play.press("ctrl+p")
        await play.sees("Search")
        await play.press(*"rangetest")
        await play.sees("range test")
        await play.press("enter", "enter")
        await play.until(lambda: play.keeper.asked == [SweepRates()])
        await play.sees("asked to test rates…")


async def test_numbers_that_are_none_are_drawn_as_far_as_they_are_some() -> None:
    wild = swept(
        ahead=[2.3, 2.2, 2.1, 2.0, 1.9, 1e200, math.inf, math.nan, math.nan],
        losses=[*[2.3] * 40, *[1e-300, 1e300, 0.0, -5.0] * 10],
        smooth=[*[2.3] * 79, 1e300],
    )
    async with playing((80, 24), PAST) as play:
        await opened(play)
        answer(play, wild)
        await play.sees("▲ next", "lowest 1.900 at s = 1")


@pytest.mark.parametrize("panel", [SweepPanel, AheadPanel])
@pytest.mark.parametrize("found", [swept(), swept(**FLAT), swept(rates=[], losses=[], smooth=[], still=[], ahead=[])])
def test_a_picture_is_as_large_as_its_room(panel: type[SweepPanel | AheadPanel], found: RatesSwept) -> None:
    for width, height in ((0, 3), (3, 3), (9, 4), (30, 12), (140, 50)):
        strips = panel().picture(found, width, height)
        assert len(strips) <= max(height, 4)
        assert {strip.cell_length for strip in strips} <= {width}


def history_of(*facts: object) -> History:
    history = History()
    for fact in (*PAST, *facts):
        history.apply(fact)  # type: ignore[arg-type]
    return history


def test_a_result_holds_until_the_run_moves_or_is_turned() -> None:
    from fake_run import steps, turned

    paused = StateChanged(state="paused")
    assert still_true(history_of(paused)) is None
    assert still_true(history_of(swept())) is None, "the run goes on"
    assert still_true(history_of(swept(), paused)) is not None
    assert still_true(history_of(swept(), paused, turned(30, "a", "b"))) is None
    assert still_true(history_of(swept(), paused, turned(30, "1", "2", knob="pace"))) is not None
    assert still_true(history_of(swept(), steps(30, [2.0]), paused)) is None
    assert History.receive(history_of(swept()).send()).swept == swept()


def test_the_figures_in_words() -> None:
    assert figures_of(swept(ahead=[], scales=[])).plain.endswith("the next update moves nothing")
    assert "blows up at 3.8" in figures_of(swept()).plain
    assert "lowest 1.820 at s = 4" in figures_of(swept()).plain


def test_after_it_a_held_run_is_not_held_anew() -> None:
    held = StateChanged(state="held", reason="loss is nan")
    log = history_of(held, StateChanged(state="testing", reason="rates 1/100"), held).log
    assert [fact for fact in log if isinstance(fact, StateChanged)] == [held]
