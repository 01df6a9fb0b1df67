"""Norms added in a real run: their rows in JSON, and for early and late viewers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from attended import Viewer
from runs import Outcome, temporary_home
from same_process import AttendedHere, run

from tui_descent.protocol.commands import Pause, Redo, RunSteps, Undo
from tui_descent.protocol.events import HistorySent, KnobTurned, LayersChanged, ReadingsTaken, RunStarted, StateChanged
from tui_descent.scenario.knobs import parse
from tui_descent.telemetry.history import History

ON, OFF, END = 50, 90, 120


@pytest.fixture(scope="module")
def outcome() -> Iterator[Outcome]:
    turns = ["--at", f"{ON}:norm=layer,where=pre,way=instant", "--at", f"{OFF}:norm=none"]
    with temporary_home() as home:
        yield run("vanishing", "--json", "--steps", str(END), "--watch-every", "5", *turns, home=home)


def test_json_lists_the_layers_and_every_reading_has_a_row_for_each(outcome: Outcome) -> None:
    assert outcome.code == 0
    (started,) = outcome.events("run_started")
    layers, seen = [layer["name"] for layer in started["layers"]], {}
    for line in outcome.lines:
        if line["event"] == "layers":
            layers = [layer["name"] for layer in line["layers"]]
        elif line["event"] == "reading":
            assert [row["name"] for row in line["layers"]] == layers, line["step"]
            seen[line["step"]] = {row["name"]: row for row in line["layers"]}
    assert list(seen) == list(range(0, END, 5))
    plain = [layer["name"] for layer in started["layers"]]
    normed = [name for block in plain for name in ([block] if "." not in block else [norm_of(block), block])]
    assert [(e["segment"], e["step"], e["structure"]) for e in outcome.events("layers")] == [(0, ON, 1), (0, OFF, 2)]
    for step, rows in seen.items():
        assert list(rows) == (normed if ON <= step < OFF else plain)
    for step in range(ON, OFF, 5):
        norm, linear = seen[step]["blocks.7.norm"], seen[step]["blocks.7.linear"]
        assert norm["weight_norm"] == pytest.approx(math.sqrt(32), rel=0.2)
        assert norm["update_norm"] == pytest.approx(0.1 * norm["grad_norm"], rel=1e-3), "plain descent at 0.1"
        assert norm["grad_rms"] == pytest.approx(norm["grad_norm"] / math.sqrt(32))
        assert "update_ratio" not in norm
        assert "update_ratio" in linear
    before, after = seen[ON - 5], seen[ON]
    assert after["blocks.0.linear"]["grad_rms"] > 1e5 * before["blocks.0.linear"]["grad_rms"]


def norm_of(name: str) -> str:
    return f"{name.rpartition('.')[0]}.norm"


def test_a_layer_change_comes_after_its_intervention_and_before_its_step(outcome: Outcome) -> None:
    lines = [line for line in outcome.lines if line["event"] in ("step", "intervention", "layers", "reading")]
    for at in (ON, OFF):
        place = next(n for n, line in enumerate(lines) if line["event"] == "layers" and line["step"] == at)
        assert lines[place - 1]["event"] == "intervention"
        steps = [line["step"] for line in lines[:place] if line["event"] == "step"]
        assert steps == list(range(at))


@pytest.fixture
def attended(home: Path) -> Iterator[AttendedHere]:
    run = AttendedHere("vanishing", "run.steps=100000", "run.threads=1", pace=200.0, watch_every=1)
    yield run
    run.close()


def paused_after(viewer: Viewer, steps: int) -> None:
    viewer.do(RunSteps(steps=steps))
    viewer.until_event(StateChanged, state="paused")


def rows(history: History) -> dict[str, list[int]]:
    """For each current layer, the steps at which its gradient is known."""
    found: dict[str, list[int]] = {layer.name: [] for layer in history.layers}
    for step, values in history.grads[history.segment].window(1, 0, 10_000):
        for layer, value in zip(history.layers, values, strict=True):
            if not math.isnan(value):
                found[layer.name].append(step)
    return found


def test_early_and_late_viewers_have_the_same_rows_through_undo_and_redo(attended: AttendedHere) -> None:
    viewer = attended.viewer()
    here = History.receive(viewer.until_event(HistorySent))
    applied = len(viewer.heard)

    def caught_up() -> History:
        nonlocal applied
        for event in viewer.heard[applied:]:
            here.apply(event)  # type: ignore[arg-type]
        applied = len(viewer.heard)
        late = attended.viewer()
        there = History.receive(late.until_event(HistorySent))
        late.close()
        assert rows(there) == rows(here)
        assert (there.layers, there.structure, there.parameters) == (here.layers, here.structure, here.parameters)
        assert there.readings == here.readings
        return there

    viewer.until_event(RunStarted)
    viewer.do(Pause())
    viewer.until_event(StateChanged, state="paused")
    paused_after(viewer, 10)
    turned = viewer.do(parse("norm=layer,where=mid,way=instant"))
    assert isinstance(turned, KnobTurned)
    on = turned.step
    viewer.until_event(LayersChanged)  # also while the run is paused
    paused_after(viewer, 10)
    found = rows(caught_up())
    assert list(found)[1:3] == ["blocks.0.linear", "blocks.0.norm"]
    assert found["blocks.0.linear"] == list(range(on + 10))
    assert found["blocks.0.norm"] == list(range(on, on + 10))

    viewer.do(Undo())  # its reply comes after all its other events
    paused_after(viewer, 5)
    found = rows(caught_up())
    assert "blocks.0.norm" not in found
    assert found["blocks.0.linear"] == list(range(on + 5))

    viewer.do(Redo())  # its reply comes after all its other events
    paused_after(viewer, 5)
    found = rows(caught_up())
    assert found["blocks.19.norm"] == list(range(on, on + 15))
    assert {reading.structure for reading in viewer.events(ReadingsTaken)} == {0, 1, 2, 3}
    assert [e.parameters for e in viewer.events(LayersChanged)] == [24_810, 23_530, 24_810]
