"""Norms that come and go in mid-run, on screen: a row each in its place, for who was there and who comes late."""

from __future__ import annotations

import random

import msgspec
import pytest
from driver import Play, compare, playing
from fake_run import fall_at, layers, loss_at, reading, started, steps, turned
from test_panels import history, view

from tui_descent.dashboard.charts.time_axis import gutter
from tui_descent.dashboard.panels.heatmap import HeatmapPanel
from tui_descent.dashboard.panels.layer_bars import rows_of
from tui_descent.dashboard.text.layer_names import labels, moved
from tui_descent.dashboard.view import View
from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import AnyEvent, Layer, LayersChanged, ReadingsTaken, Rewound, StateChanged

CURE = 60


def normed(depth: int) -> tuple[Layer, ...]:
    """A norm before every block's Linear."""
    first, *inner, last = layers(depth)
    pairs = [
        layer
        for n, linear in enumerate(inner)
        for layer in (Layer(name=f"blocks.{n}.norm", kind="LayerNorm", params=64, block=n), linear)
    ]
    return (first, *pairs, last)


def changed(step: int, structure: int, now: tuple[Layer, ...], segment: int = 0) -> LayersChanged:
    return LayersChanged(segment=segment, step=step, structure=structure, parameters=25_000, layers=now)


def with_norms(step: int, structure: int, fall: float, depth: int, segment: int = 0) -> ReadingsTaken:
    """The norms' gradients are a tenth of their blocks'; they have no ratio and no factor."""
    plain = reading(step, fall, depth)

    def row(metric: str, column: list[float | None]) -> list[float | None]:
        own = {"update_ratio": None, "backprop_factor": None, "saturated_fraction": None}
        first, *inner, last = column
        pairs = [x for v in inner for x in (own.get(metric, None if v is None else v / 10), v)]
        return [first, *pairs, last]

    values = {metric: row(metric, column) for metric, column in plain.values.items()}
    ages = [0] * (2 * depth + 2)
    return msgspec.structs.replace(plain, values=values, ages=ages, structure=structure, segment=segment)


def cured(until: int, depth: int = 20) -> list[AnyEvent]:
    """Norm on at step CURE, and it learns."""
    noise = random.Random(3)
    told: list[AnyEvent] = [started(depth), StateChanged(state="running")]
    for step in range(until):
        if step == CURE:
            told += [turned(step, "none", "layer", knob="norm"), changed(step, 1, normed(depth))]
        fall = fall_at(step, CURE)
        told.append(reading(step, fall, depth) if step < CURE else with_norms(step, 1, fall, depth))
        told.append(steps(step, [loss_at(step, CURE, noise)]))
    return told


def undone(step: int, depth: int = 20) -> list[AnyEvent]:
    back = Rewound(
        from_segment=0, from_step=step, to_segment=0, to_step=CURE, segment=1, step=CURE, what="norm", in_force=()
    )
    return [back, changed(CURE, 2, layers(depth), segment=1)]


def above(text: str) -> str:
    """The screen without the line of keys, which has one for the norm."""
    return text.rstrip("\n").rpartition("\n")[0]


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
@pytest.mark.parametrize("screen", ["1", "2"])
async def test_the_screens_with_norms(size: tuple[int, int], screen: str) -> None:
    name = f"norms-{'overview' if screen == '1' else 'layers'}-{size[0]}x{size[1]}"
    async with playing(size, cured(140)) as play:
        await play.press(screen)
        await play.drawn()
        compare(name, play.text())


async def test_who_was_there_sees_them_come_go_and_come_again() -> None:
    norms = [f"blocks.{n}.norm" for n in range(3)]
    async with playing((120, 40), cured(CURE, 3)) as play:
        await play.press("2")
        await play.drawn()
        assert "norm" not in above(play.text())
        play.keeper.tell(turned(CURE, "none", "layer", knob="norm"), changed(CURE, 1, normed(3)))
        await play.sees(*norms)
        for step in range(CURE, 80):
            play.keeper.tell(with_norms(step, 1, 0.5, 3), steps(step, [1.0]))
        await play.drawn()
        rows = [row for row in play.text().splitlines() if ".norm" in row]
        assert len(rows) == 3
        assert all("e-0" in row and row.rstrip(" │").endswith("–") for row in rows), rows
        play.keeper.tell(*undone(80, 3))
        await play.until(lambda: "blocks.0.norm" not in play.text())
        redo = Rewound(
            from_segment=1, from_step=CURE, to_segment=0, to_step=80, segment=2, step=80, what="norm", back=False
        )
        play.keeper.tell(redo, changed(80, 3, normed(3), segment=2))
        await play.sees("waiting for the next reading")
        again = msgspec.structs.replace(with_norms(80, 3, 0.5, 3), segment=2)
        play.keeper.tell(again, msgspec.structs.replace(steps(80, [1.0]), segment=2))
        await play.sees(*norms)


def bodies(look: View, height: int) -> list[str]:
    """The heat-map's rows without their names: a painted cell is a #, and an empty one a dot."""
    left, rows = gutter(look, 60), []
    for strip in HeatmapPanel().draw(look, 60, height):
        cells = "".join(
            "." if s.style is None or s.style.bgcolor is None or s.style.bgcolor.name == "#0f1115" else "#"
            for s in strip
            for _ in s.text
        )
        rows.append(cells[left:])
    return rows


def test_on_the_heatmap_a_norms_row_is_dark_until_it_is_there() -> None:
    told = cured(80, 3)
    look = view(told)
    assert [layer.name for layer in look.layers][1:3] == ["blocks.0.norm", "blocks.0.linear"]
    for y, row in enumerate(bodies(look, 8)):  # as many rows as layers, the output's first
        assert row[30:38] == "########", y
        assert row[:25] == ("." * 25 if y in (2, 4, 6) else "#" * 25), (y, row)


def test_undone_its_rows_are_gone_and_all_others_stand_as_before() -> None:
    before = view(cured(CURE, 3))
    after = View(history=history([*cured(80, 3), *undone(80, 3)]))
    assert after.layers == before.layers
    assert bodies(after, 5)[0][:25] == "#" * 25
    assert [row[:20] for row in bodies(after, 5)] == [row[:20] for row in bodies(before, 5)]


def test_of_many_rows_the_norms_are_left_out_first() -> None:
    look = view(cured(80))
    names = [look.layers[n].name for n in rows_of(look, 24)]
    assert names[:3] == ["outlet", "blocks.19.linear", "blocks.19.norm"]
    assert [name for name in names if not name.endswith("norm")] == [layer.name for layer in layers()[::-1]]
    assert sum(name.endswith("norm") for name in names) == 2
    few = [look.layers[n].name for n in rows_of(look, 10)]
    assert len(few) == 10
    assert not any(name.endswith("norm") for name in few)
    chosen = [look.layers[n].name for n in rows_of(View(history=look.history, selected=21), 10)]
    assert "blocks.10.norm" in chosen
    assert sum(name.endswith("norm") for name in chosen) == 5


def test_a_norms_name_keeps_its_blocks_number() -> None:
    names = labels(normed(20), 10)
    assert names[:5] == ("inlet", "0.norm", "blocks.0", "1.norm", "blocks.1")
    assert names[-3:] == ("19.norm", "blocks.19", "outlet")
    assert labels(normed(20), 30)[-3:] == ("blocks.19.norm", "blocks.19", "outlet")
    inner = ("attention.qkv", "attention.out", "norm")
    words = tuple(
        Layer(name=f"blocks.{n}.{part}", kind="LayerNorm" if part == "norm" else "Linear", params=9, block=n)
        for n in range(12)
        for part in inner
    )
    assert labels(words, 16)[-3:] == ("11.attention.qkv", "11.attention.out", "11.norm")
    assert len(set(labels(words, 11))) == len(words)


def test_what_would_not_tell_two_apart_is_not_cut() -> None:
    twice = tuple(Layer(name=name, kind="Linear", params=9) for name in ("0.norm", "blocks.0.norm", "blocks.12.norm"))
    assert len(set(labels(twice, 9))) == 3


def test_a_selected_layer_is_found_again() -> None:
    plain, more = layers(3), normed(3)
    assert [moved(n, plain, more) for n in range(5)] == [0, 2, 4, 6, 7]
    assert [moved(n, more, plain) for n in range(8)] == [0, 1, 1, 2, 2, 3, 3, 4]
    assert moved(None, plain, more) is None
    assert moved(2, plain, ()) is None
    assert moved(4, plain, plain[:4]) is None
    assert moved(2, (), plain) is None


def selected(play: Play) -> str | None:
    look = play.app.run_screen.look
    return None if look.selected is None else look.layers[look.selected].name


async def test_the_selection_stays_with_its_layer_and_a_key_acts_on_it_at_once() -> None:
    async with playing((120, 40), cured(CURE, 3)) as play:
        await play.press("up", "up", "up")
        await play.drawn()
        assert selected(play) == "blocks.1.linear"
        play.keeper.tell(changed(CURE, 1, normed(3)), with_norms(CURE, 1, 0.5, 3))
        # Before a frame is drawn: what was selected is what the key is for.
        play.app.bridge.history.apply(changed(CURE, 1, normed(3)))
        await play.press("x")
        await play.until(lambda: bool(play.keeper.asked))
        assert play.keeper.asked == [TurnKnob(knob="freeze", value="on", target="blocks.1.linear")]
        await play.drawn()
        assert selected(play) == "blocks.1.linear"
        await play.press("down")
        assert selected(play) == "blocks.1.norm"
        play.keeper.tell(*undone(CURE + 1, 3))
        await play.drawn()
        assert selected(play) == "blocks.1.linear"


async def test_the_open_dialog_follows_its_layer() -> None:
    async with playing((120, 40), cured(80, 3)) as play:
        await play.press("up", "up", "enter")
        await play.sees("blocks.0.norm", "LayerNorm, 64 parameters", "does not apply here")
        play.keeper.tell(*undone(80, 3))
        await play.sees("blocks.0.linear", "1,024 parameters")
        play.keeper.tell(changed(CURE, 3, normed(3)[:1], segment=1))
        await play.until(lambda: play.app.screen is play.app.run_screen)


async def test_the_story_counts_the_net_as_it_stands() -> None:
    async with playing((120, 40), cured(80, 3)) as play:
        await play.press("3")
        await play.sees("25,000 parameters in 8 layers")
