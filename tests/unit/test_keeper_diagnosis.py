"""The diagnosis in the keeper: events in, findings out."""

from __future__ import annotations

import math

import pytest

from tui_descent.keeper.diagnosis import LETTER_ENTROPY, DiagnosisEvents, context_of
from tui_descent.protocol.curvature import CurvatureReading, Limit
from tui_descent.protocol.events import (
    CurvatureTaken,
    Diagnosed,
    KnobState,
    Layer,
    ReadingsTaken,
    RunStarted,
    StepsCompleted,
)
from tui_descent.scenario import presets
from tui_descent.scenario.toml import to_table


def started(name: str) -> RunStarted:
    return RunStarted(
        run="x",
        title="x",
        name=name,
        scenario=to_table(presets.find(name)[1]),
        device="cpu",
        threads=1,
        parameters=544,
        layers=tuple(Layer(name=f"blocks.{n}.linear", kind="Linear", params=272, block=n) for n in range(2)),
        knobs=(KnobState(name="lr", value="0.1"), KnobState(name="optimizer", value="sgd")),
    )


def curvature(lambda_max: float, lambda_min: float, limit: float) -> CurvatureTaken:
    hessian = CurvatureReading(
        lambda_max=lambda_max,
        lambda_min=lambda_min,
        residual_max=0.0,
        residual_min=0.0,
        products=9,
        negative_fraction=None,
        negative_below=0.01,
        how="Lanczos",
        converged=True,
        parameters=544,
    )
    allowed = Limit(lambda_max=limit, formula="2/lr", preconditioned=False)
    return CurvatureTaken(segment=0, step=50, hessian=hessian, limit=allowed, seconds=0.1)


def steps_at(loss: float, steps: range) -> StepsCompleted:
    n = len(steps)
    return StepsCompleted(segment=0, first=steps.start, losses=[loss] * n, lrs=[0.1] * n, times_s=[0.0] * n)


def findings(diagnosis: DiagnosisEvents, loss: float, steps: range) -> list[str]:
    reading = ReadingsTaken(
        segment=0,
        step=steps.start,
        values={"backprop_factor": [1.0, 1.0], "update_norm": [0.01, 0.01], "grad_norm": [0.1, 0.1]},
        ages=[0, 0],
        global_grad_norm=0.2,
        watch_cost=0.0,
    )
    published = list(diagnosis.after(reading))
    published += diagnosis.after(steps_at(loss, steps))
    return [event.finding for event in published if isinstance(event, Diagnosed)]


def test_saddle_is_found_once_the_curvature_is_known() -> None:
    diagnosis = DiagnosisEvents()
    assert not list(diagnosis.after(started("plateau")))
    assert findings(diagnosis, 2.3, range(60)) == ["plateau"]
    assert not list(diagnosis.after(curvature(3.0, -0.5, 40.0)))
    assert findings(diagnosis, 2.3, range(60, 80)) == ["saddle"]


def test_edge_of_stability_is_found_once_the_curvature_is_known() -> None:
    diagnosis = DiagnosisEvents()
    list(diagnosis.after(started("edge-of-stability")))
    list(diagnosis.after(curvature(1.30, -0.1, 1.33)))
    assert not findings(diagnosis, 1.0, range(3))
    assert findings(diagnosis, 0.2, range(3, 60)) == ["rate at the edge"]


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
    published += diagnosis.after(started("healthy"))
    for n in range(300):
        loss = min(10.0 ** (2 * n), 1.7e308) if n < 154 else 1.7e308
        values = {"backprop_factor": [factor, factor], "update_norm": [factor] * 2, "grad_norm": [1e300] * 2}
        reading = ReadingsTaken(segment=0, step=n, values=values, ages=[0, 0], global_grad_norm=1e300, watch_cost=0.0)
        published += diagnosis.after(reading)
        published += diagnosis.after(steps_at(loss, range(n, n + 1)))
    found = [event.finding for event in published if isinstance(event, Diagnosed)]
    assert factor != 1.0 or "diverging" in found
