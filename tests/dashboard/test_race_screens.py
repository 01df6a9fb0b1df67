"""The screens of a race: curves, table and map, and what its keys answer."""

from __future__ import annotations

import math
from array import array
from itertools import pairwise

import pytest
from driver import compare, open_dashboard
from factories import started, vanishing
from task_pictures import curve_picture, surface_picture, taken

from tui_descent.dashboard.charts.picture import Depth
from tui_descent.dashboard.lane_marks import lane_mark
from tui_descent.dashboard.pictures.draw import Drawings
from tui_descent.protocol.codec import encode
from tui_descent.protocol.commands import Pause, TurnKnob, WatchTask
from tui_descent.protocol.events import AnyEvent, KnobState, Lane, LaneEnded, LaneSteps, RunStarted, StateChanged
from tui_descent.protocol.task_pictures import MAX_RACE_PATHS, MAX_SURFACE_CELLS, LanePath, RacePicture
from tui_descent.scenario.knobs import KNOBS
from tui_descent.scenario.spec import MAX_LANES
from tui_descent.telemetry.history import History

WHY = "not in a race: its lanes may differ by nothing but their optimizer"
NAMES = ("sgd", "momentum", "rmsprop", "adam", "adamw")


def race_started(names: tuple[str, ...] = NAMES, *, surface: bool = True) -> RunStarted:
    model: dict[str, object] = {"name": "surface", "function": "saddle", "start": [1.0, 1e-6]}
    data = {} if surface else {"data": {"name": "digits"}}
    return started(
        scenario={"title": "A saddle", "model": model if surface else {"name": "mlp"}, **data},
        name="saddle",
        about="surface saddle",
        layers=(),
        steps=1200,
        lanes=tuple(Lane(name=name, optimizer=name, lr=0.01) for name in names),
        target=-0.5,
        knobs=tuple(
            KnobState(name=name, value="60") if name == "pace" else KnobState(name=name, unavailable=WHY)
            for name in KNOBS
        ),
    )


def curve(lane: int, steps: int) -> LaneSteps:
    """A lane that stays at 0 for 40 steps more than the lane before it, then falls to -1."""
    losses = [1.0 - n / 10 if n < 10 else 0.0 if n < 40 * (lane + 1) else -1.0 for n in range(steps)]
    reached = next((n for n, loss in enumerate(losses) if loss <= -0.5), None)
    return LaneSteps(lane=lane, first=0, losses=losses, reached=reached)


def race(steps: int = 150, *, surface: bool = True) -> list[AnyEvent]:
    return [
        race_started(surface=surface),
        StateChanged(state="running"),
        *(curve(n, steps) for n in range(len(NAMES))),
    ]


def race_picture(columns: int, rows: int, lanes: int = 5) -> RacePicture:
    """Lanes that leave the saddle more and more to the right."""
    paths = [
        [(1 - n / 20, 0.0) for n in range(12)] + [(0.4 - k / 10, n / 12) for n in range(1 + 15 * (k > 0))]
        for k in range(lanes)
    ]
    return RacePicture(
        surface=surface_picture(columns, rows, path=b""),
        lanes=tuple(LanePath(array("f", [x for at in path for x in at]).tobytes()) for path in paths),
    )


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_race_screens(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLORTERM", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    async with open_dashboard(size, race()) as dashboard:
        await dashboard.shows("steps to loss -0.5", "rmsprop")
        await dashboard.wait_until(lambda: dashboard.keeper.received != [])
        await dashboard.drawn()
        request = dashboard.keeper.received[-1]  # the first may have been sent before the panel had its size
        assert isinstance(request, WatchTask)
        dashboard.keeper.publish(taken(race_picture(request.columns, request.rows)))
        await dashboard.shows("▾ minimum")
        await dashboard.drawn()
        compare(f"race-{size[0]}x{size[1]}", dashboard.text())


async def test_race_of_nets_has_no_map() -> None:
    async with open_dashboard((80, 24), race(surface=False)) as dashboard:
        dashboard.keeper.publish(
            LaneEnded(lane=1, name="momentum", status="diverged", step=151, reason="the loss is NaN", reached=80)
        )
        dashboard.keeper.publish(
            LaneEnded(lane=0, name="sgd", status="finished", step=1200, loss=0.25, accuracy=0.915, reached=40)
        )
        await dashboard.shows("same start, same batches", "diverged  at step 151", "first  accuracy 0.915")
        assert "Map" not in dashboard.text()
        assert dashboard.keeper.received == []
        await dashboard.press("8")
        await dashboard.shows("the task view shows the map of a test surface")


async def test_keys_of_a_race_answer() -> None:
    async with open_dashboard((100, 30), race(surface=False)) as dashboard:
        await dashboard.shows("race  sgd was the first at loss -0.5, after 40 steps")
        for key, answer in {
            "plus": "not in a race",
            "o": "not in a race",
            "r": "not in a race",
            "k": "not in a race",
            "f": "range test: not in a race",
            "O": "this is a race already; R starts it again",
            "4": "no view chain rule in a race; 1: race, 3: events, 8: map",
            "5": "no view curvature in a race",
        }.items():
            await dashboard.press(key)
            await dashboard.shows(answer)
        assert dashboard.keeper.received == []
        await dashboard.press("space")
        await dashboard.wait_until(lambda: dashboard.keeper.received == [Pause()])
        await dashboard.press("semicolon")
        await dashboard.wait_until(lambda: dashboard.keeper.received[1:] == [TurnKnob(knob="pace", value="120")])
        await dashboard.press("3")
        await dashboard.shows("Events")


async def test_key_starts_a_race_after_a_question() -> None:
    async with open_dashboard((80, 24), vanishing(30)) as dashboard:
        await dashboard.shows("r res off")
        await dashboard.press("O")
        await dashboard.shows("Race optimizers?", "from its start")
        await dashboard.press("c")
        await dashboard.drawn()
        assert dashboard.app.then == "quit"
        await dashboard.press("O")
        await dashboard.shows("Race optimizers?")
        await dashboard.press("s")
        await dashboard.wait_until(lambda: dashboard.keeper.received != [])
        assert dashboard.app.then == "race"
    async with open_dashboard((80, 24), [started(scenario=None), StateChanged(state="running")]) as dashboard:
        await dashboard.press("O")
        await dashboard.shows("race: not available for your own loop")


def test_lanes_differ_in_glyph_and_colour() -> None:
    marks = [lane_mark(n) for n in range(MAX_LANES)]
    assert len({mark.glyph for mark in marks}) == len({mark.colour for mark in marks}) == MAX_LANES


@pytest.mark.parametrize("depth", ["truecolor", "256", "16", "none"])
def test_every_lane_is_seen_on_the_map(depth: Depth) -> None:
    for width, height in ((39, 20), (70, 34)):
        strips = Drawings().draw(taken(race_picture(width - 8, height - 2)), width, height, depth)
        text = "\n".join(strip.text for strip in strips)
        assert {strip.cell_length for strip in strips} == {width}
        assert [n for n in range(5) if lane_mark(n).glyph not in text] == []
        assert "○" in text


def test_largest_picture_of_a_race_fits_into_its_limit() -> None:
    columns, rows = 192, 64
    assert columns * rows == MAX_SURFACE_CELLS
    paths = tuple(LanePath(bytes(8 * (MAX_RACE_PATHS // MAX_LANES))) for _ in range(MAX_LANES))
    picture = RacePicture(surface=surface_picture(columns, rows, path=b""), lanes=paths)
    assert len(encode(picture)) < 64 * 1024


@pytest.mark.parametrize("values", [[], [1.0], [math.nan] * 6, [math.inf, -1e300, 1e300, 5e-324], [0.5, 0.5] * 9])
def test_any_path_is_drawn(values: list[float]) -> None:
    lanes = tuple(LanePath(array("f", [min(v, 3e38) for v in values[: len(values) // 2 * 2]]).tobytes()) for _ in "ab")
    for width, height in ((0, 0), (9, 3), (40, 12)):
        picture = RacePicture(surface=surface_picture(30, 10, path=b""), lanes=lanes)
        assert {s.cell_length for s in Drawings().draw(taken(picture), width, height, "truecolor")} <= {width}


def test_a_lane_far_above_the_others_leaves_them_room() -> None:
    from tui_descent.dashboard.panels.race import _axis

    curves: list[list[tuple[float, float]]] = [[(0, 2.0), (1, 1e30)], [(0, 2.0), (1, 1.0)]]
    assert _axis(curves, log=False).high <= 12
    assert _axis(curves, log=True).high <= math.log10(20)
    assert _axis([[], []], log=True).high > 0


def test_race_on_a_curve_shows_each_lane_at_its_loss() -> None:
    lanes = tuple(LanePath(array("f", path).tobytes()) for path in ([1.0, 1.4, 1.5], [1.0, 2.0]))
    picture = RacePicture(surface=curve_picture(70, path=b""), lanes=lanes)
    rows = [s.text for s in Drawings().draw(taken(picture), 78, 18, "truecolor")]
    heights = [next(n for n, row in enumerate(rows) if lane_mark(lane).glyph in row) for lane in range(2)]
    assert heights[0] > heights[1], "the first lane has the lower loss"


async def test_lanes_that_reach_the_target_together_are_both_first() -> None:
    together = [race_started(surface=False), StateChanged(state="running"), *(curve(0, 60) for _ in "a")]
    together.append(LaneSteps(lane=1, first=0, losses=[1.0] * 40 + [-1.0], reached=40))
    async with open_dashboard((100, 30), together) as dashboard:
        await dashboard.shows("sgd and momentum were the first at loss -0.5, after 40 steps")
        await dashboard.drawn()
        assert dashboard.text().count(" first ") >= 2


def test_history_of_a_race_survives_the_wire() -> None:
    history = History()
    for event in race(3000):
        history.apply(event)
    history.apply(LaneEnded(lane=2, name="rmsprop", status="diverged", step=3000, reason="NaN", reached=120))
    copy = History.receive(history.send())
    assert copy.steps == history.steps == 3000
    for ours, theirs in zip(history.lanes, copy.lanes, strict=True):
        assert (ours.loss, ours.steps, ours.reached, ours.ended) == (
            theirs.loss,
            theirs.steps,
            theirs.reached,
            theirs.ended,
        )
        points = ours.curve(0, 3000, 100)
        assert points == theirs.curve(0, 3000, 100)
        assert 50 <= len(points) <= 101
        assert all(a < b for (a, _), (b, _) in pairwise(points))
