"""Layers that are added and removed during a run: in the history, JSON lines, claims and the diagnosis."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import factories
import msgspec
import pytest
from factories import history_of, reading_of, received, rewound, started

from tui_descent.keeper.diagnosis import DiagnosisEvents
from tui_descent.protocol.codec import MAX_TO_VIEWER, frame
from tui_descent.protocol.events import (
    AnyEvent,
    Diagnosed,
    Layer,
    LayersChanged,
    ReadingsTaken,
    StepsCompleted,
)
from tui_descent.scenario.metrics import Transcript
from tui_descent.telemetry.gradient_history import GradientHistory, log_magnitude
from tui_descent.telemetry.history import History
from tui_descent.telemetry.jsonl import JsonLines

DEPTH = 4
LINEAR = tuple(Layer(name=f"blocks.{n}.linear", kind="Linear", params=1056, block=n) for n in range(DEPTH))
NORMS = tuple(Layer(name=f"blocks.{n}.norm", kind="LayerNorm", params=64, block=n) for n in range(DEPTH))
PLAIN = LINEAR
PRE = tuple(layer for pair in zip(NORMS, LINEAR, strict=True) for layer in pair)
POST = tuple(layer for pair in zip(LINEAR, NORMS, strict=True) for layer in pair)
ONE = (LINEAR[0], NORMS[1], *LINEAR[1:])
STARTED = started(scenario=None, parameters=4224, layers=PLAIN, knobs=())


def changed(structure: int, step: int, layers: tuple[Layer, ...], *, segment: int = 0) -> LayersChanged:
    parameters = sum(layer.params for layer in layers)
    return LayersChanged(segment=segment, step=step, structure=structure, parameters=parameters, layers=layers)


def reading(step: int, layers: tuple[Layer, ...], structure: int, *, segment: int = 0) -> ReadingsTaken:
    """Each number is different for every layer and step."""
    rms: list[float | None] = [value_of(layer, step) for layer in layers]
    return reading_of(
        step,
        {
            "grad_rms": rms,
            "update_ratio": [v if n.kind == "Linear" else None for v, n in zip(rms, layers, strict=True)],
        },
        segment=segment,
        ages=[n for n, _ in enumerate(layers)],
        statuses=["frozen" if layer.block == 1 else "used" for layer in layers],
        structure=structure,
    )


def value_of(layer: Layer, step: int) -> float:
    return 10.0 ** ((layer.block or 0) % 30 - 5 * (layer.kind == "LayerNorm")) * (1 + step / 1000)


def steps(first: int, last: int, *, segment: int = 0) -> StepsCompleted:
    return factories.steps(first, [2.3] * (last - first), segment=segment)


def rows(history: History) -> dict[str, dict[int, float]]:
    """For each current layer its gradients by step, as a panel reads them."""
    grads = history.grads[history.segment]
    found: dict[str, dict[int, float]] = {layer.name: {} for layer in history.layers}
    for step, values in grads.window(1, 0, 10_000):
        for layer, value in zip(history.layers, values, strict=True):
            if not math.isnan(value):
                found[layer.name][step] = value
    return found


def wanted(layers: tuple[Layer, ...], known: dict[str, range]) -> dict[str, dict[int, float]]:
    return {
        layer.name: {step: log_magnitude(value_of(layer, step)) for step in known.get(layer.kind, range(0))}
        for layer in layers
    }


def turned_on() -> History:
    """Readings of steps 0 to 9 without norms, of 10 to 19 with them."""
    history = history_of([STARTED, *(reading(n, PLAIN, 0) for n in range(10)), steps(0, 10), changed(1, 10, PRE)])
    for event in (*(reading(n, PRE, 1) for n in range(10, 20)), steps(10, 20)):
        history.apply(event)
    return history


def test_added_norm_has_its_row_in_forward_order() -> None:
    history = turned_on()
    assert history.layers == PRE
    assert history.parameters == 4224 + 256
    assert rows(history) == wanted(PRE, {"Linear": range(20), "LayerNorm": range(10, 20)})


def test_remaining_layers_keep_their_values_until_the_next_reading() -> None:
    history = history_of([STARTED, reading(3, PLAIN, 0), changed(1, 10, PRE)])
    kept, old = history.readings, reading(3, PLAIN, 0)
    assert kept is not None
    assert kept.values["grad_rms"] == [v for rms in old.values["grad_rms"] for v in (None, rms)]
    assert kept.ages == [0, 0, 0, 1, 0, 2, 0, 3]
    assert kept.statuses == ["used", "used", "used", "frozen", "used", "used", "used", "used"]
    assert (kept.structure, kept.step) == (1, 3)
    history.apply(changed(2, 11, PLAIN))
    assert history.readings == msgspec.structs.replace(old, structure=2)


def test_layer_that_is_added_again_has_its_past_back() -> None:
    history = turned_on()
    history.apply(changed(2, 20, PLAIN))
    history.apply(reading(20, PLAIN, 2))
    assert rows(history) == wanted(PLAIN, {"Linear": range(21)})
    history.apply(changed(3, 21, POST))
    history.apply(reading(21, POST, 3))
    found = rows(history)
    assert list(found) == [layer.name for layer in POST]
    assert list(found["blocks.2.linear"]) == list(range(22))
    assert list(found["blocks.2.norm"]) == [*range(10, 20), 21]


def newest(history: History) -> dict[str, tuple[int, list[float | None]]]:
    """For each metric its newest values in the current segment, and their step."""
    return {m: (r.step, r.values[m]) for m, r in history.newest_readings.of(history.segment).items()}


def test_metric_that_not_every_reading_has_follows_the_layer_changes() -> None:
    old, quick = reading(3, PLAIN, 0), reading(5, PLAIN, 0)
    quick = msgspec.structs.replace(quick, values={"grad_rms": quick.values["grad_rms"]})
    history = history_of([STARTED, reading(2, PLAIN, 0), old, quick])
    assert newest(history) == {"grad_rms": (5, quick.values["grad_rms"]), "update_ratio": (3, old.values["grad_rms"])}
    assert newest(received(history)) == newest(history)
    history.apply(changed(1, 6, PRE))
    step, column = newest(history)["update_ratio"]
    assert (step, column[1::2], column[::2]) == (3, old.values["grad_rms"], [None] * DEPTH)
    assert newest(received(history)) == newest(history)
    history.apply(rewound((0, 6), (0, 4), 1, back=True))
    assert {metric: at for metric, (at, _) in newest(history).items()} == dict.fromkeys(old.values, 3), (
        "5 was undone, 3 was not"
    )
    assert newest(received(history)) == newest(history)
    history.apply(msgspec.structs.replace(quick, structure=1, segment=1, step=4, values={"grad_rms": [1.0] * 8}))
    assert {metric: at for metric, (at, _) in newest(history).items()} == {"update_ratio": 3, "grad_rms": 4}


def test_undo_removes_added_layers_and_redo_brings_them_back_with_their_past() -> None:
    history = turned_on()
    history.apply(rewound((0, 20), (0, 10), 1, back=True))
    history.apply(changed(2, 10, PLAIN, segment=1))
    assert rows(history) == wanted(PLAIN, {"Linear": range(10)})
    for n in range(10, 13):
        history.apply(reading(n, PLAIN, 2, segment=1))
    assert rows(history) == wanted(PLAIN, {"Linear": range(13)})
    there = received(history)
    for side in (history, there):
        side.apply(rewound((1, 13), (0, 20), 2, back=False))
        side.apply(changed(3, 20, PRE, segment=2))
        side.apply(reading(20, PRE, 3, segment=2))
        assert rows(side) == wanted(PRE, {"Linear": range(21), "LayerNorm": range(10, 21)})


def test_undoing_a_removal_brings_the_whole_past_back() -> None:
    history = turned_on()
    history.apply(changed(2, 20, PLAIN))
    for n in range(20, 25):
        history.apply(reading(n, PLAIN, 2))
    history.apply(rewound((0, 25), (0, 20), 1, back=True))
    history.apply(changed(3, 20, PRE, segment=1))
    assert rows(history) == wanted(PRE, {"Linear": range(20), "LayerNorm": range(10, 20)})


def test_between_a_rewind_and_its_layer_change_the_rows_are_those_of_the_last_layers() -> None:
    """A frame may be drawn between the two events."""
    history = turned_on()
    history.apply(rewound((0, 20), (0, 10), 1, back=True))
    assert list(rows(history)) == [layer.name for layer in PRE]
    history.apply(changed(2, 10, PLAIN, segment=1))
    history.apply(rewound((1, 10), (0, 20), 2, back=False))
    assert rows(history) == wanted(PLAIN, {"Linear": range(20)})


@pytest.mark.parametrize("structure", [0, 2])
def test_reading_of_unknown_layers_is_ignored(structure: int) -> None:
    """Even if there are as many: norms after the Linear instead of before it."""
    history = turned_on()
    before = rows(history)
    history.apply(reading(20, POST, structure))
    assert rows(history) == before
    assert history.readings == reading(19, PRE, 1)
    history.apply(reading(21, PRE, 1))
    assert 21 in rows(history)["blocks.0.norm"]


@pytest.mark.parametrize("seed", range(20))
def test_received_history_equals_the_sent_one_through_random_changes(seed: int) -> None:
    draw = random.Random(seed)
    layers, structure, segment, step = PLAIN, 0, 0, 0
    known: dict[str, dict[int, float]] = {}
    history = history_of([STARTED])
    for _ in range(draw.randrange(1, 60)):
        kind = draw.randrange(6)
        if kind < 4:
            history.apply(reading(step, layers, structure, segment=segment))
            for layer in layers:
                known.setdefault(layer.name, {})[step] = log_magnitude(value_of(layer, step))
            history.apply(steps(step, step + 1, segment=segment))
            step += 1
        elif kind == 4:
            layers, structure = (
                draw.choice([other for other in (PLAIN, PRE, POST, ONE) if other != layers]),
                structure + 1,
            )
            history.apply(changed(structure, step, layers, segment=segment))
        elif step:
            to = draw.randrange(1, step + 1)
            history.apply(rewound((segment, step), (segment, to), segment + 1, back=True))
            segment, step = segment + 1, to
            known = {name: {n: v for n, v in row.items() if n < to} for name, row in known.items()}
            if draw.random() < 0.5:
                layers, structure = draw.choice((PLAIN, PRE)), structure + 1
                history.apply(changed(structure, step, layers, segment=segment))
        if draw.random() < 0.2:
            history = received(history)
    if segment in history.grads:
        assert rows(history) == {layer.name: known.get(layer.name, {}) for layer in layers}
    there = received(history)
    assert (there.layers, there.structure, there.parameters) == (history.layers, history.structure, history.parameters)
    assert there.readings == history.readings
    assert newest(there) == newest(history)


def test_number_of_removed_layers_is_bounded() -> None:
    grads = GradientHistory([layer.name for layer in PLAIN])
    for n in range(50):
        grads.add(n, [1.0] * len(grads.names[: grads.shown]))
        grads = grads.with_layers([Layer(name=f"{n}.{k}", kind="Linear", params=1) for k in range(3)])
    assert len(grads.names) == 6
    assert grads.shown == 3


def test_two_layers_with_the_same_name_are_accepted() -> None:
    twice = (*PLAIN, PLAIN[0])
    history = history_of(
        [STARTED, reading(0, PLAIN, 0), changed(1, 1, twice), reading(1, twice, 1), changed(2, 2, PLAIN)]
    )
    history.apply(reading(2, PLAIN, 2))
    assert list(rows(received(history))["blocks.3.linear"]) == [0, 1, 2]


def test_history_of_a_thousand_layers_does_not_grow_with_a_thousand_norms() -> None:
    linear = tuple(Layer(name=f"blocks.{n}.linear", kind="Linear", params=2, block=n) for n in range(1000))
    norms = tuple(Layer(name=f"blocks.{n}.norm", kind="LayerNorm", params=1, block=n) for n in range(1000))
    both = tuple(layer for pair in zip(norms, linear, strict=True) for layer in pair)

    def sized(history: History, layers: tuple[Layer, ...], structure: int, first: int) -> int:
        for step in range(first, first + 400):
            history.apply(reading(step * 64, layers, structure))
        return history.grads[0].nbytes()

    history = history_of([msgspec.structs.replace(STARTED, layers=linear)])
    plain = sized(history, linear, 0, 0)
    history.apply(changed(1, 400 * 64, both))
    assert history.grads[0].nbytes() <= 1.1 * plain
    assert sized(history, both, 1, 400) <= 1.3 * plain
    history.apply(changed(2, 800 * 64, linear))
    assert len(frame(history.send())) * 3 < MAX_TO_VIEWER


# --- JSON lines


def lines(*events: AnyEvent) -> list[dict[str, Any]]:
    printer = JsonLines()
    return [json.loads(line) for event in events for line in printer.lines(event)]


def test_layers_line_has_all_layers_and_readings_follow_it() -> None:
    found = lines(STARTED, reading(0, PLAIN, 0), changed(1, 10, PRE), reading(10, PRE, 1), reading(11, POST, 5))
    assert found[2] == {
        "event": "layers",
        "segment": 0,
        "step": 10,
        "structure": 1,
        "parameters": 4480,
        "layers": [{"name": la.name, "kind": la.kind, "params": la.params, "block": la.block} for la in PRE],
    }
    assert [row["name"] for row in found[1]["layers"]] == [layer.name for layer in PLAIN]
    assert [row["name"] for row in found[3]["layers"]] == [layer.name for layer in PRE]
    assert found[3]["layers"][4]["grad_rms"] == value_of(NORMS[2], 10)
    assert "update_ratio" not in found[3]["layers"][4]
    assert found[1]["first_to_last_grad"] == pytest.approx(1e-3)
    assert found[3]["first_to_last_grad"] == pytest.approx(1e-3)
    assert found[4]["layers"] == []
    assert "first_to_last_grad" not in found[4]


def test_claim_about_first_and_last_block_uses_their_matrices_before_and_after() -> None:
    transcript = Transcript(
        [STARTED, reading(0, PLAIN, 0), changed(1, 10, PRE), reading(10, PRE, 1), reading(11, POST, 5)]
    )
    for at in (0, 10):
        assert transcript.metric("first_to_last_grad", at) == pytest.approx(1e-3)
    assert transcript.metric("first_to_last_grad", 11) is None
    assert transcript.metric("update_ratio", 10) == pytest.approx(value_of(LINEAR[2], 10))


# --- the diagnosis


def test_diagnosis_uses_the_matrices_of_the_current_net() -> None:
    """The gradient vanishes; with the old rows the diagnosis would look at a norm and at a middle block."""

    def found(events: list[AnyEvent]) -> Diagnosed:
        diagnosis = DiagnosisEvents()
        said = [said for event in events for said in diagnosis.after(event)]
        diagnosed = [event for event in said if isinstance(event, Diagnosed)]
        return diagnosed[-1]

    def run(layers: tuple[Layer, ...], structure: int) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        for n in range(60):
            read = reading(n, layers, structure)
            factors = [1e-2 if layer.kind == "Linear" else None for layer in layers]
            events += [
                msgspec.structs.replace(read, values={**read.values, "backprop_factor": factors}),
                steps(n, n + 1),
            ]
        return events

    plain = found([STARTED, *run(PLAIN, 0)])
    normed = found([STARTED, changed(1, 0, PRE), *run(PRE, 1)])
    built = found([msgspec.structs.replace(STARTED, layers=PRE), *run(PRE, 0)])
    for event in (normed, built):
        assert event.layer == plain.layer == "blocks.0.linear"
        assert event.evidence["first_to_last_grad"] == pytest.approx(plain.evidence["first_to_last_grad"])
        assert event.evidence["last"] == "blocks.3.linear"
    assert normed.evidence == built.evidence


def test_diagnosis_ignores_a_reading_of_other_layers() -> None:
    diagnosis = DiagnosisEvents()
    for event in (STARTED, changed(1, 0, PRE), reading(0, PLAIN, 0), *(steps(n, n + 1) for n in range(80))):
        assert not list(diagnosis.after(event))
