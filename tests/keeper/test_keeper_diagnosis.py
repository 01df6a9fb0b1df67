"""The diagnosis in the keeper: events in, findings out."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from factories import curved, reading_of, started, steps, turned

from tui_descent.keeper.diagnosis import DiagnosisEvents
from tui_descent.protocol.events import (
    AnyEvent,
    Diagnosed,
    KnobState,
    Layer,
    PredictionChecked,
    RunStarted,
    StateChanged,
)
from tui_descent.scenario import presets
from tui_descent.scenario.toml import to_table
from tui_descent.telemetry.diagnosis.situation import LETTER_ENTROPY, context_of


def start_of(preset: str) -> RunStarted:
    return started(
        scenario=to_table(presets.find(preset)[1]),
        layers=tuple(Layer(name=f"blocks.{n}.linear", kind="Linear", params=272, block=n) for n in range(2)),
        knobs=(KnobState(name="lr", value="0.1"), KnobState(name="optimizer", value="sgd")),
    )


def findings(diagnosis: DiagnosisEvents, loss: float, at: range) -> list[str]:
    published: list[AnyEvent] = []
    for step in at:
        if step % 5 == 0:
            values: dict[str, list[float | None]] = {
                "backprop_factor": [1.0, 1.0],
                "update_norm": [0.01, 0.01],
                "grad_norm": [0.1, 0.1],
            }
            published += diagnosis.after(reading_of(step, values, global_grad_norm=0.2))
        published += diagnosis.after(steps(step, [loss]))
    return [event.finding for event in published if isinstance(event, Diagnosed)]


def test_saddle_is_found_once_the_curvature_is_known() -> None:
    diagnosis = DiagnosisEvents()
    assert not list(diagnosis.after(start_of("plateau")))
    assert findings(diagnosis, 2.3, range(140)) == ["plateau"]
    assert not list(diagnosis.after(curved(140, 3.0, -0.5, 40.0)))
    assert findings(diagnosis, 2.3, range(140, 160)) == ["saddle"]


def test_edge_of_stability_is_found_once_the_curvature_is_known() -> None:
    diagnosis = DiagnosisEvents()
    list(diagnosis.after(start_of("edge-of-stability")))
    list(diagnosis.after(curved(50, 1.30, -0.1, 1.33)))
    assert not findings(diagnosis, 1.0, range(3))
    assert findings(diagnosis, 0.2, range(3, 60)) == ["rate at the edge"]


@pytest.mark.parametrize("state", ["paused", "stopping"])
def test_numbers_of_a_run_that_pauses_or_stops_are_the_newest(state: Literal["paused", "stopping"]) -> None:
    diagnosis = DiagnosisEvents()
    list(diagnosis.after(start_of("healthy")))
    assert not findings(diagnosis, 2.3, range(3))
    assert findings(diagnosis, 0.2, range(3, 60)) == ["healthy"]
    assert not findings(diagnosis, 0.1, range(60, 120)), "the same finding is repeated every few seconds at most"
    said = [event for event in diagnosis.after(StateChanged(state=state)) if isinstance(event, Diagnosed)]
    assert [one.evidence["loss"] for one in said] == [pytest.approx(0.1)]
    assert not list(diagnosis.newest()), "it has been published"


@pytest.mark.parametrize("source", ["send", "key", "plan"])
def test_the_outcome_of_a_change_names_what_was_changed(source: Literal["send", "key", "plan"]) -> None:
    diagnosis = DiagnosisEvents()
    list(diagnosis.after(start_of("healthy")))
    findings(diagnosis, 2.3, range(3))
    assert findings(diagnosis, 0.2, range(3, 60)) == ["healthy"]
    change = turned(60, "0.0195312", "0.009765625", knob="lr", value="0.009765625", source=source)
    published = list(diagnosis.after(change))
    for step in range(60, 160):
        values: dict[str, list[float | None]] = {"backprop_factor": [1.0, 1.0], "update_norm": [0.01, 0.01]}
        published += diagnosis.after(reading_of(step, values, global_grad_norm=0.2))
        published += diagnosis.after(steps(step, [0.1]))
    (outcome,) = [event for event in published if isinstance(event, PredictionChecked)]
    assert (outcome.change, outcome.happened, outcome.held) == ("lr 0.009766", "healthy", True)


def test_context_has_the_loss_of_a_guess() -> None:
    contexts = {name: context_of(to_table(presets.find(name)[1])) for name in presets.names()}
    assert contexts["vanishing"].classes == 10
    assert (contexts["transformer"].classes, contexts["transformer"].guess) == (None, LETTER_ENTROPY)
    assert (contexts["edge-of-stability"].classes, contexts["edge-of-stability"].guess) == (None, None)
    assert contexts["saddle"].surface
    assert not contexts["vanishing"].surface
    assert context_of(None).optimizer is None


@pytest.mark.parametrize("factor", [0.0, 1e-160, 1.0, 1e200, math.inf])
def test_loss_that_grows_to_the_float64_limit_is_diverging_and_raises_nothing(factor: float) -> None:
    diagnosis, published = DiagnosisEvents(), []
    published += diagnosis.after(start_of("healthy"))
    for n in range(300):
        loss = min(10.0 ** (2 * n), 1.7e308) if n < 154 else 1.7e308
        values = {"backprop_factor": [factor, factor], "update_norm": [factor] * 2, "grad_norm": [1e300] * 2}
        reading = reading_of(n, values, global_grad_norm=1e300)
        published += diagnosis.after(reading)
        published += diagnosis.after(steps(n, [loss]))
    found = [event.finding for event in published if isinstance(event, Diagnosed)]
    assert factor != 1.0 or "diverging" in found
