"""The activation lens: what it requests, what it shows, its keys, and what it says if there is nothing to show."""

from __future__ import annotations

import math
import random
import re
from array import array

import pytest
from driver import compare, open_dashboard
from factories import started, vanishing

from tui_descent.dashboard import colours
from tui_descent.dashboard.activation_functions import ActivationFunction
from tui_descent.dashboard.panels.lens import LEAST_H, MOST_H
from tui_descent.dashboard.pictures.lens import by_column, draw, draw_nudge, flat_share, slope_shares
from tui_descent.dashboard.view import Nudge
from tui_descent.protocol.commands import TurnKnob, WatchLens
from tui_descent.protocol.events import LensTaken, RunEnded, StateChanged
from tui_descent.protocol.lens import BINS, ActivationPart, Histogram
from tui_descent.scenario import presets
from tui_descent.scenario.toml import to_table

EARLIER = vanishing(30)
SIGMOID = (ActivationPart(name="sigmoid"),)
SIZES = [(80, 24), (120, 40), pytest.param((200, 60), marks=pytest.mark.heavy)]


def histogram(limit: float = 8.0, *, below: int = 0, above: int = 0, not_finite: int = 0) -> Histogram:
    """A bell curve in the middle and a second one at the right."""
    places = [(2 * n + 1 - BINS) / BINS * 8 for n in range(BINS)]
    counts = [round(300 * math.exp(-((z + 1) ** 2)) + 120 * math.exp(-((z - 4) ** 2) / 2)) for z in places]
    values = sum(counts) + below + above + not_finite
    return Histogram(
        limit=limit,
        counts=array("I", counts).tobytes(),
        below=below,
        above=above,
        not_finite=not_finite,
        values=values,
    )


def taken(**changed: object) -> LensTaken:
    fields: dict[str, object] = {
        "segment": 0,
        "step": 40,
        "asked": "",
        "layer": "blocks.0.linear",
        "kind": "Sigmoid",
        "parts": SIGMOID,
        "histogram": histogram(),
    }
    return LensTaken(**(fields | changed))  # type: ignore[arg-type]


async def test_the_lens_of_the_selected_layer_is_requested_while_the_view_is_open() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("residual off")
        received = dashboard.keeper.received
        await dashboard.press("9")
        await dashboard.shows("waiting for the first count")
        await dashboard.wait_until(lambda: received == [WatchLens(on=True)])
        dashboard.keeper.publish(taken())
        await dashboard.shows("blocks.0.linear", "sigmoid", "% flat", "f′(x)")
        await dashboard.press("down", "down")
        layers = dashboard.app.bridge.history.layers
        selected = dashboard.app.run_screen.view.selected
        assert selected is not None
        await dashboard.wait_until(lambda: received[-1] == WatchLens(on=True, layer=layers[selected].name))
        await dashboard.shows("waiting for the first count")
        reason = "no activation module follows this layer"
        dashboard.keeper.publish(
            taken(asked=layers[selected].name, layer=layers[selected].name, parts=(), histogram=None, reason=reason)
        )
        await dashboard.shows(reason, "select another layer with ↑ ↓")
        await dashboard.press("escape")
        await dashboard.shows("blocks.0.linear", "% flat")
        await dashboard.press("1")
        await dashboard.wait_until(lambda: received[-1] == WatchLens(on=False))


async def test_keys_move_x_and_change_h_only_in_this_view() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("residual off")
        await dashboard.press("left")
        await dashboard.shows("press 9 to open it")
        screen = dashboard.app.run_screen
        assert screen.view.nudge == Nudge(1.0, 1.0)
        await dashboard.press("9")
        dashboard.keeper.publish(taken())
        await dashboard.shows("0.149738", "0.196612", "0.04687 (24 %)")
        await dashboard.press("left", "left", "left")
        assert screen.view.nudge == Nudge(0.25, 1.0)
        await dashboard.press("right", "(", "(")
        assert screen.view.nudge == Nudge(0.5, 0.25)
        await dashboard.shows("x 0.5", "h 0.25", f"{ActivationFunction(SIGMOID).quotient(0.5, 0.25):.6g}")
        await dashboard.press(")")
        assert screen.view.nudge == Nudge(0.5, 0.5)
        for key, wanted in (("left", Nudge(-8.0, 0.5)), ("right", Nudge(8.0, 0.5))):
            for _ in range(70):
                screen.change_nudge(key)
            assert screen.view.nudge == wanted, "x stays on the axis"
        for key, h in (("left_parenthesis", LEAST_H), ("right_parenthesis", MOST_H)):
            for _ in range(70):
                screen.change_nudge(key)
            assert screen.view.nudge.h == h
        assert not [command for command in dashboard.keeper.received if isinstance(command, TurnKnob)]


async def test_the_view_says_why_it_is_empty() -> None:
    surface = started(scenario=to_table(presets.find("saddle")[1]))
    async with open_dashboard((80, 24), [surface, StateChanged(state="running")]) as dashboard:
        await dashboard.press("9")
        await dashboard.shows("a test surface has no activations")
        assert dashboard.keeper.received == []
    async with open_dashboard((80, 24), [*EARLIER, RunEnded(status="finished", step=3, loss=0.1)]) as dashboard:
        await dashboard.press("9")
        await dashboard.shows("this view was not open during the run")
        assert dashboard.keeper.received == []
    async with open_dashboard((80, 24), [started(scenario=None), StateChanged(state="running")]) as dashboard:
        await dashboard.press("9")
        await dashboard.wait_until(lambda: dashboard.keeper.received == [WatchLens(on=True)])
        dashboard.keeper.publish(taken(parts=(), kind="PReLU", in_training=True))
        await dashboard.shows("no formula for PReLU", "PReLU", "values")


@pytest.mark.parametrize("size", SIZES)
async def test_lens_screens(size: tuple[int, int]) -> None:
    async with open_dashboard(size, vanishing(40)) as dashboard:
        await dashboard.press("9")
        cases = {
            "sigmoid": taken(histogram=histogram(below=3, above=2, not_finite=7)),
            "relu": taken(step=41, parts=(ActivationPart(name="relu"),), kind="ReLU"),
            "no-counts": taken(step=42, histogram=None, reason="the activation was not called in the last step"),
        }
        for name, event in cases.items():
            dashboard.keeper.publish(event)
            lenses = dashboard.app.bridge.history.lens
            await dashboard.wait_until(lambda lenses=lenses, event=event: lenses.get("") == event)  # type: ignore[misc]
            await dashboard.drawn()
            compare(f"lens-{name}-{size[0]}x{size[1]}", dashboard.text())


def test_columns_hold_the_values_of_their_bins() -> None:
    shown = histogram()
    counts = list(array("I", shown.counts))
    assert by_column(shown, BINS) == counts
    assert by_column(shown, 2 * BINS) == [count for count in counts for _ in range(2)]
    assert by_column(shown, BINS // 2) == [(a + b) / 2 for a, b in zip(counts[::2], counts[1::2], strict=True)]
    for columns in (1, 7, 41, 113):
        assert sum(by_column(shown, columns)) * BINS / columns == pytest.approx(sum(counts))


def test_flat_share_counts_the_values_with_a_small_slope() -> None:
    relu = ActivationFunction([ActivationPart(name="relu")])
    shown = histogram(below=5, above=10)
    counts = array("I", shown.counts)
    assert flat_share(relu, shown) == (sum(counts[: BINS // 2]) + 5) / (sum(counts) + 15)
    assert flat_share(ActivationFunction([ActivationPart(name="identity")]), shown) == 0.0
    assert flat_share(ActivationFunction([]), shown) is None
    nothing = Histogram(limit=4.0, counts=bytes(4 * BINS), below=0, above=0, not_finite=9, values=9)
    assert flat_share(relu, nothing) is None
    assert slope_shares(relu, [-1.0, 1.0]) == [0.0, 1.0]
    assert slope_shares(relu, [-2.0, -1.0]) == [0.0, 0.0]


def test_bars_are_as_bright_as_the_slope_is_large() -> None:
    width, height = 72, 30
    counts = array("I", [100] * BINS).tobytes()
    even = taken(histogram=Histogram(limit=8.0, counts=counts, below=0, above=0, not_finite=0, values=100 * BINS))
    function = ActivationFunction(SIGMOID)
    rows = draw(even, function, Nudge(), width, height)
    grounds = [
        segment.style.bgcolor.get_truecolor() if segment.style and segment.style.bgcolor else None
        for segment in rows[-1]
        for _ in segment.text
    ][8:]
    shades = colours.palette().colours
    levels = [shades.index(next(c for c in shades if c.get_truecolor() == g)) for g in grounds if g is not None]
    assert len(levels) == width - 8
    middle = len(levels) // 2
    assert levels[:middle] == sorted(levels[:middle])
    assert levels[middle:] == sorted(levels[middle:], reverse=True)
    assert levels[middle] == len(shades) - 1


def test_the_picture_fits_every_size_and_survives_every_number() -> None:
    chance = random.Random(0)
    shown = [
        taken(),
        taken(parts=(), kind="Odd [name]"),
        taken(histogram=None, reason="why"),
        taken(histogram=histogram(2.0**20, not_finite=1000)),
        taken(histogram=Histogram(limit=4.0, counts=bytes(4 * BINS), below=0, above=0, not_finite=0, values=0)),
        taken(parts=(ActivationPart(name="celu", parameters=(1e-3,)),)),
    ]
    for _ in range(60):
        width, height = chance.randint(1, 200), chance.randint(1, 60)
        event = chance.choice(shown)
        function = ActivationFunction(event.parts)
        nudge = Nudge(chance.uniform(-8, 8), 2.0 ** chance.randint(-46, 4))
        rows = draw(event, function, nudge, width, height)
        beside = draw_nudge(function, nudge, width, height) if function.known else []
        for drawn in (rows, beside):
            assert len(drawn) <= height
            assert {row.cell_length for row in drawn} <= {width}


def test_the_numbers_of_the_nudge_are_exact() -> None:
    function = ActivationFunction(SIGMOID)
    text = "\n".join(row.text for row in draw_nudge(function, Nudge(1.2, 0.5), 28, 18))
    quotient = (1 / (1 + math.exp(-1.7)) - 1 / (1 + math.exp(-1.2))) / 0.5
    slope = math.exp(-1.2) / (1 + math.exp(-1.2)) ** 2
    numbers = [float(number) for number in re.findall(r"(?:/h|\(x\)|off by) +([\d.]+)", text)]
    assert numbers == pytest.approx([quotient, slope, abs(quotient - slope)], abs=1e-5)
