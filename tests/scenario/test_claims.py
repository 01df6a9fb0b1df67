"""Claims of presets, judged from the events of a run."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from tui_descent.protocol.curvature_reading import CurvatureReading, StabilityLimit
from tui_descent.protocol.events import (
    AnyEvent,
    CurvatureTaken,
    Layer,
    ReadingsTaken,
    RunEnded,
    RunStarted,
    StepsCompleted,
)
from tui_descent.scenario.claims import METRICS, Transcript, judge
from tui_descent.scenario.spec import Claim

STARTED = RunStarted(
    run="r",
    title="t",
    name="n",
    scenario=None,
    device="cpu",
    threads=1,
    parameters=9,
    layers=(
        Layer(name="stem", kind="Linear", params=3),
        Layer(name="blocks.0.linear", kind="Linear", params=3, block=0),
        Layer(name="blocks.1.linear", kind="Linear", params=3, block=1),
        Layer(name="head", kind="Linear", params=3),
    ),
    knobs=(),
)
LOSSES = [10.0, *(float(n) for n in range(99, 0, -1))]


def steps(first: int, losses: list[float]) -> StepsCompleted:
    return StepsCompleted(segment=0, first=first, losses=losses, lrs=[0.1] * len(losses), times_s=[0.0] * len(losses))


def reading(step: int, **values: list[float | None]) -> ReadingsTaken:
    return ReadingsTaken(
        segment=0,
        step=step,
        values=dict(values),
        ages=[0] * 4,
        global_grad_norm=3.5,
        grad_norm_preclip=7.5,
        watch_cost=0.0,
    )


def curvature(step: int, sharpness: float) -> CurvatureTaken:
    read = CurvatureReading(
        lambda_max=sharpness,
        lambda_min=-0.5,
        residual_max=1e-6,
        residual_min=1e-3,
        products=12,
        negative_fraction=0.25,
        negative_below=1e-2,
        how="Lanczos",
        converged=True,
        parameters=9,
    )
    return CurvatureTaken(
        segment=0,
        step=step,
        hessian=read,
        limit=StabilityLimit(lambda_max=4.0, formula="2/η", preconditioned=False),
        seconds=0.1,
    )


def run(**ended: Any) -> Transcript:
    end: dict[str, Any] = {"status": "finished", "step": 100, "loss": 0.25, "accuracy": 0.9, "position": (1.5, 2.0)}
    events: list[AnyEvent] = [
        STARTED,
        steps(0, LOSSES[:60]),
        steps(60, LOSSES[60:]),
        reading(40, grad_rms=[7.0, 2e-9, 4.0, 7.0], update_ratio=[0.4, 0.1, None, 0.2]),
        reading(80, grad_rms=[7.0, 1.0, 4.0, 7.0], update_ratio=[0.4, 0.1, 0.3, 0.2]),
        curvature(40, 3.0),
        curvature(90, 5.0),
        RunEnded(**(end | ended)),
    ]
    return Transcript(events)


@pytest.mark.parametrize(
    ("metric", "at", "found"),
    [
        ("loss", None, 0.25),
        ("loss", 0, 10.0),
        ("loss", 99, 1.0),
        ("loss", 100, None),
        ("loss_mean", 50, sum(LOSSES[30:50]) / 20),
        ("loss_mean", 5, sum(LOSSES[:5]) / 5),
        ("loss_mean", None, sum(LOSSES[80:]) / 20),
        ("loss_mean", 0, None),
        ("loss_ratio", 50, sum(LOSSES[30:50]) / 20 / 10.0),
        ("accuracy", None, 0.9),
        ("first_to_last_grad", 40, 5e-10),
        ("first_to_last_grad", None, 0.25),
        ("first_to_last_grad", 41, None),
        ("global_grad_norm", 40, 3.5),
        ("grad_norm_preclip", 40, 7.5),
        ("grad_norm_preclip", 41, None),
        ("update_ratio", 40, 0.2),
        ("sharpness", 40, 3.0),
        ("sharpness", None, 5.0),
        ("sharpness", 41, None),
        ("lambda_min", 90, -0.5),
        ("negative_fraction", 90, 0.25),
        ("stability_limit", 40, 4.0),
        ("edge", 40, 0.75),
        ("edge", 90, 1.25),
        ("position", None, 1.5),
        ("status", None, "finished"),
        ("steps", None, 100.0),
    ],
)
def test_metrics_are_computed_from_the_events(metric: str, at: int | None, found: float | str | None) -> None:
    value = run().metric(metric, at)
    if isinstance(found, float):
        assert isinstance(value, float)
        assert math.isclose(value, found, rel_tol=1e-12)
    else:
        assert value == found


def test_every_metric_has_a_value_in_a_complete_run() -> None:
    for metric in METRICS:
        assert run().metric(metric, None) is not None, metric


def test_without_events_no_metric_has_a_value() -> None:
    for metric in METRICS:
        for at in (None, 0, 10):
            assert Transcript().metric(metric, at) is None, metric


def test_first_to_last_grad_uses_the_weight_matrices_and_not_the_norms() -> None:
    layers = [
        Layer(name=f"blocks.{n}.{kind}", kind=kind, params=params, block=n)
        for n in range(3)
        for kind, params in (("norm", 64), ("linear", 1056), ("scale", 1))
    ]
    started = msgspec.structs.replace(STARTED, layers=tuple(layers))
    rms: list[float | None] = [100.0, 1.0, 100.0, 5.0, 5.0, 5.0, 1e-9, 4.0, 1e-9]
    assert Transcript([started, reading(0, grad_rms=rms)]).metric("first_to_last_grad", 0) == 0.25


def test_without_a_last_gradient_there_is_no_ratio() -> None:
    events: list[AnyEvent] = [STARTED, reading(0, grad_rms=[1.0, 1.0, 0.0, 1.0])]
    assert Transcript(events).metric("first_to_last_grad", 0) is None
    events = [STARTED, reading(0, grad_rms=[1.0, None, 1.0, 1.0])]
    assert Transcript(events).metric("first_to_last_grad", 0) is None


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({"below": 0.26}, True),
        ({"below": 0.25}, False),
        ({"above": 0.24}, True),
        ({"above": 0.25}, False),
        ({"above": 0.2, "below": 0.3}, True),
        ({"above": 0.2, "below": 0.22}, False),
        ({"equals": 0.25}, True),
        ({"equals": 0.2500001}, False),
        ({"equals": 0.2500001, "within": 1e-6}, True),
        ({"equals": "finished"}, False),
    ],
)
def test_a_claim_about_a_number_is_judged(condition: dict[str, Any], holds: bool) -> None:
    verdict = judge(Claim(metric="loss", **condition), run())
    assert verdict.holds is holds
    assert verdict.found == 0.25
    assert str(verdict).startswith("holds " if holds else "BROKEN")


@pytest.mark.parametrize("loss", [math.nan, None])
@pytest.mark.parametrize("condition", [{"below": 1e9}, {"above": -1e9}, {"equals": 0.0, "within": 1e9}])
def test_a_missing_or_nan_value_breaks_every_claim(loss: float | None, condition: dict[str, Any]) -> None:
    assert not judge(Claim(metric="loss", **condition), run(loss=loss)).holds


def test_an_infinite_loss_is_above_every_bound() -> None:
    assert judge(Claim(metric="loss", above=1.0), run(loss=math.inf)).holds
    assert not judge(Claim(metric="loss", below=1e300), run(loss=math.inf)).holds


def test_a_claim_about_the_status_is_judged() -> None:
    claim = Claim(metric="status", equals="diverged")
    assert judge(claim, run(status="diverged")).holds
    assert not judge(claim, run()).holds


def test_a_verdict_shows_the_claim_its_interventions_and_the_value_found() -> None:
    claim = Claim(metric="loss_ratio", at=50, above=0.5, below=1.0, given=("30:residual=on",))
    assert str(judge(claim, run())) == (
        "BROKEN  loss_ratio at 50 after 30:residual=on below 1 and above 0.5: found 6.05"
    )
