"""Norm layers that are added and removed during a run."""

from __future__ import annotations

import random

import msgspec
import pytest
from driver import Dashboard, compare, open_dashboard
from factories import fall_at, history_of, layers, loss_at, reading, started, steps, turned
from fake_run import view

from tui_descent.dashboard.charts.time_axis import gutter
from tui_descent.dashboard.panels.heatmap import HeatmapPanel
from tui_descent.dashboard.panels.layer_bars import rows_of
from tui_descent.dashboard.text.layer_names import find_again, layer_labels
from tui_descent.dashboard.view import View
from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import AnyEvent, Layer, LayersChanged, ReadingsTaken, Rewound, StateChanged

NORM_AT = 60


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


def run_with_norms(last: int, depth: int = 20) -> list[AnyEvent]:
    """A run whose norms are switched on at step NORM_AT."""
    noise = random.Random(3)
    events: list[AnyEvent] = [started(depth), StateChanged(state="running")]
    for step in range(last):
        if step == NORM_AT:
            events += [turned(step, "none", "layer", knob="norm"), changed(step, 1, normed(depth))]
        fall = fall_at(step, NORM_AT)
        events.append(reading(step, fall, depth) if step < NORM_AT else with_norms(step, 1, fall, depth))
        events.append(steps(step, [loss_at(step, NORM_AT, noise)]))
    return events


def undone(step: int, depth: int = 20) -> list[AnyEvent]:
    back = Rewound(
        from_segment=0, from_step=step, to_segment=0, to_step=NORM_AT, segment=1, step=NORM_AT, what="norm", in_force=()
    )
    return [back, changed(NORM_AT, 2, layers(depth), segment=1)]


def without_footer(text: str) -> str:
    """The screen without the knob line, which also contains the word norm."""
    return text.rstrip("\n").rpartition("\n")[0]


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
@pytest.mark.parametrize("screen", ["1", "2"])
async def test_screens_with_norm_layers(size: tuple[int, int], screen: str) -> None:
    name = f"norms-{'overview' if screen == '1' else 'layers'}-{size[0]}x{size[1]}"
    async with open_dashboard(size, run_with_norms(140)) as dashboard:
        await dashboard.press(screen)
        await dashboard.drawn()
        compare(name, dashboard.text())


async def test_norm_layers_appear_disappear_and_reappear() -> None:
    norms = [f"blocks.{n}.norm" for n in range(3)]
    async with open_dashboard((120, 40), run_with_norms(NORM_AT, 3)) as dashboard:
        await dashboard.press("2")
        await dashboard.drawn()
        assert "norm" not in without_footer(dashboard.text())
        dashboard.keeper.publish(turned(NORM_AT, "none", "layer", knob="norm"), changed(NORM_AT, 1, normed(3)))
        await dashboard.shows(*norms)
        for step in range(NORM_AT, 80):
            dashboard.keeper.publish(with_norms(step, 1, 0.5, 3), steps(step, [1.0]))
        await dashboard.drawn()
        rows = [row for row in dashboard.text().splitlines() if ".norm" in row]
        assert len(rows) == 3
        assert all("e-0" in row and row.rstrip(" │").endswith("–") for row in rows), rows
        dashboard.keeper.publish(*undone(80, 3))
        await dashboard.wait_until(lambda: "blocks.0.norm" not in dashboard.text())
        redo = Rewound(
            from_segment=1, from_step=NORM_AT, to_segment=0, to_step=80, segment=2, step=80, what="norm", back=False
        )
        dashboard.keeper.publish(redo, changed(80, 3, normed(3), segment=2))
        await dashboard.shows("waiting for the next reading")
        again = msgspec.structs.replace(with_norms(80, 3, 0.5, 3), segment=2)
        dashboard.keeper.publish(again, msgspec.structs.replace(steps(80, [1.0]), segment=2))
        await dashboard.shows(*norms)


def bodies(look: View, height: int) -> list[str]:
    """The heat-map's rows without names: # for a painted cell, a dot for an empty one."""
    left, rows = gutter(look, 60), []
    for strip in HeatmapPanel().draw(look, 60, height):
        cells = "".join(
            "." if s.style is None or s.style.bgcolor is None or s.style.bgcolor.name == "#0f1115" else "#"
            for s in strip
            for _ in s.text
        )
        rows.append(cells[left:])
    return rows


def test_heatmap_row_of_a_norm_is_empty_before_the_norm_existed() -> None:
    events = run_with_norms(80, 3)
    look = view(events)
    assert [layer.name for layer in look.layers][1:3] == ["blocks.0.norm", "blocks.0.linear"]
    for y, row in enumerate(bodies(look, 8)):  # as many rows as layers, the output's first
        assert row[30:38] == "########", y
        assert row[:25] == ("." * 25 if y in (2, 4, 6) else "#" * 25), (y, row)


def test_undo_removes_the_norm_rows_and_keeps_the_others() -> None:
    before = view(run_with_norms(NORM_AT, 3))
    after = View(history=history_of([*run_with_norms(80, 3), *undone(80, 3)]))
    assert after.layers == before.layers
    assert bodies(after, 5)[0][:25] == "#" * 25
    assert [row[:20] for row in bodies(after, 5)] == [row[:20] for row in bodies(before, 5)]


def test_norms_are_left_out_first_when_rows_are_few() -> None:
    look = view(run_with_norms(80))
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


def test_a_shortened_norm_name_keeps_its_block_number() -> None:
    names = layer_labels(normed(20), 10)
    assert names[:5] == ("inlet", "0.norm", "blocks.0", "1.norm", "blocks.1")
    assert names[-3:] == ("19.norm", "blocks.19", "outlet")
    assert layer_labels(normed(20), 30)[-3:] == ("blocks.19.norm", "blocks.19", "outlet")
    inner = ("attention.qkv", "attention.out", "norm")
    words = tuple(
        Layer(name=f"blocks.{n}.{part}", kind="LayerNorm" if part == "norm" else "Linear", params=9, block=n)
        for n in range(12)
        for part in inner
    )
    assert layer_labels(words, 16)[-3:] == ("11.attention.qkv", "11.attention.out", "11.norm")
    assert len(set(layer_labels(words, 11))) == len(words)


def test_names_are_not_shortened_to_the_same_text() -> None:
    twice = tuple(Layer(name=name, kind="Linear", params=9) for name in ("0.norm", "blocks.0.norm", "blocks.12.norm"))
    assert len(set(layer_labels(twice, 9))) == 3


def test_find_again_returns_the_new_index_of_a_layer() -> None:
    plain, more = layers(3), normed(3)
    assert [find_again(n, plain, more) for n in range(5)] == [0, 2, 4, 6, 7]
    assert [find_again(n, more, plain) for n in range(8)] == [0, 1, 1, 2, 2, 3, 3, 4]
    assert find_again(None, plain, more) is None
    assert find_again(2, plain, ()) is None
    assert find_again(4, plain, plain[:4]) is None
    assert find_again(2, (), plain) is None


def selected(dashboard: Dashboard) -> str | None:
    look = dashboard.app.run_screen.view
    return None if look.selected is None else look.layers[look.selected].name


async def test_the_selection_follows_its_layer() -> None:
    async with open_dashboard((120, 40), run_with_norms(NORM_AT, 3)) as dashboard:
        await dashboard.press("up", "up", "up")
        await dashboard.drawn()
        assert selected(dashboard) == "blocks.1.linear"
        dashboard.keeper.publish(changed(NORM_AT, 1, normed(3)), with_norms(NORM_AT, 1, 0.5, 3))
        # Before a frame is drawn: what was selected is what the key is for.
        dashboard.app.bridge.history.apply(changed(NORM_AT, 1, normed(3)))
        await dashboard.press("x")
        await dashboard.wait_until(lambda: bool(dashboard.keeper.received))
        assert dashboard.keeper.received == [TurnKnob(knob="freeze", value="on", target="blocks.1.linear")]
        await dashboard.drawn()
        assert selected(dashboard) == "blocks.1.linear"
        await dashboard.press("down")
        assert selected(dashboard) == "blocks.1.norm"
        dashboard.keeper.publish(*undone(NORM_AT + 1, 3))
        await dashboard.drawn()
        assert selected(dashboard) == "blocks.1.linear"


async def test_an_open_layer_dialog_follows_its_layer() -> None:
    async with open_dashboard((120, 40), run_with_norms(80, 3)) as dashboard:
        await dashboard.press("up", "up", "enter")
        await dashboard.shows("blocks.0.norm", "LayerNorm, 64 parameters", "not defined for this layer")
        dashboard.keeper.publish(*undone(80, 3))
        await dashboard.shows("blocks.0.linear", "1,024 parameters")
        dashboard.keeper.publish(changed(NORM_AT, 3, normed(3)[:1], segment=1))
        await dashboard.wait_until(lambda: dashboard.app.screen is dashboard.app.run_screen)


async def test_scenario_panel_counts_the_current_layers() -> None:
    async with open_dashboard((120, 40), run_with_norms(80, 3)) as dashboard:
        await dashboard.press("3")
        await dashboard.shows("25,000 parameters in 8 layers")


def test_the_middle_of_long_names_is_left_out_where_the_ends_are_unique() -> None:
    paths = [
        "tokens",
        *(f"blocks.{n}.{rest}" for n in (0, 10) for rest in ("attention.qkv", "up", "mlp.a.out", "mlp.b.out")),
    ]
    named = tuple(Layer(name=path, kind="Linear", params=4) for path in paths)
    labels = layer_labels(named, 9)
    assert labels[:3] == ("tokens", "0…qkv", "0.up")
    assert labels[5] == "10…qkv"
    assert len(set(labels)) == len(labels)
    assert all(len(label) <= 9 for label in labels)
