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
    Evaluated,
    Layer,
    LedgerEntry,
    LedgerTaken,
    ReadingsTaken,
    RunEnded,
    RunStarted,
    StepsCompleted,
)
from tui_descent.scenario.claims import Sample, Verdict, claim_sentence, judge, samples
from tui_descent.scenario.metrics import METRICS, Transcript, curvature_steps
from tui_descent.scenario.spec import Claim, Divisor

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


def entry(product: float, discrepancy: float | None) -> LedgerEntry:
    return LedgerEntry(block="b", factor=0.1, autograd=0.1, discrepancy=discrepancy, product=product)


def test_a_block_without_a_known_difference_leaves_the_ledger_unjudged() -> None:
    ledger = LedgerTaken(segment=0, step=0, entries=[entry(1.0, None), entry(1.0, 1e-7)])
    assert Transcript([ledger]).metric("chain_error", 0) is None
    assert Transcript([ledger]).metric("chain_product", 0) == 1.0


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
        reading(
            40,
            grad_rms=[7.0, 2e-9, 4.0, 7.0],
            update_ratio=[0.4, 0.1, None, 0.2],
            dead_fraction=[None, 0.25, 0.75, None],
        ),
        reading(80, grad_rms=[7.0, 1.0, 4.0, 7.0], update_ratio=[0.4, 0.1, 0.3, 0.2]),
        LedgerTaken(segment=0, step=40, entries=[entry(6e-3, 1e-7), entry(0.1, 2e-7)]),
        curvature(40, 3.0),
        curvature(90, 5.0),
        Evaluated(segment=0, step=50, loss=1.0, accuracy=0.3),
        Evaluated(segment=0, step=80, loss=1.0, accuracy=0.6),
        RunEnded(**(end | ended)),
    ]
    return Transcript(events)


def verdict(claim: Claim, transcript: Transcript) -> Verdict:
    return judge(claim, lambda sample: transcript.metric(sample.metric, sample.at, target=sample.target))


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
        ("loss_max", 50, 99.0),
        ("loss_max", 1, 10.0),
        ("loss_max", 0, None),
        ("accuracy", None, 0.9),
        ("accuracy", 49, None),
        ("accuracy", 50, 0.3),
        ("accuracy", 79, 0.3),
        ("accuracy", 80, 0.6),
        ("first_to_last_grad", 40, 5e-10),
        ("first_to_last_grad", None, 0.25),
        ("first_to_last_grad", 41, None),
        ("global_grad_norm", 40, 3.5),
        ("grad_norm_preclip", 40, 7.5),
        ("grad_norm_preclip", 41, None),
        ("chain_product", 40, 6e-3),
        ("chain_product", 41, None),
        ("chain_error", 40, 2e-7),
        ("update_ratio", 40, 0.2),
        ("dead_layer", 40, 0.75),
        ("dead_layer", 80, None),
        ("sharpness", 40, 3.0),
        ("sharpness", None, 5.0),
        ("sharpness", 41, None),
        ("lambda_min", 90, -0.5),
        ("negative_fraction", 90, 0.25),
        ("stability_limit", 40, 4.0),
        ("edge", 40, 0.75),
        ("edge", 90, 1.25),
        ("edge_mean", 40, 0.75),
        ("edge_mean", 90, 1.0),
        ("edge_mean", 41, None),
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


def test_the_mean_of_the_edge_is_over_two_hundred_updates() -> None:
    assert [*curvature_steps("edge_mean", 1200)] == [1020, 1040, 1060, 1080, 1100, 1120, 1140, 1160, 1180, 1200]
    assert [*curvature_steps("edge_mean", 45)] == [5, 25, 45]
    assert [*curvature_steps("edge", 1200)] == [1200]
    taken = [curvature(step, sharpness) for step, sharpness in ((100, 90.0), (101, 4.0), (200, 5.0), (300, 6.0))]
    assert Transcript([*taken, curvature(310, 40.0)]).metric("edge_mean", 300) == 1.25
    edgeless = msgspec.structs.replace(taken[-1], limit=None)
    assert Transcript([*taken[:-1], edgeless]).metric("edge_mean", 300) == 1.125
    assert Transcript([edgeless]).metric("edge_mean", 300) is None


def test_every_metric_has_a_value_in_a_complete_run() -> None:
    for metric in METRICS:
        at = 40 if metric in ("dead_layer", "chain_product", "chain_error") else None
        assert run().metric(metric, at, target=5.0) is not None, metric


def test_without_events_no_metric_has_a_value() -> None:
    for metric in METRICS:
        for at in (None, 0, 10):
            assert Transcript().metric(metric, at, target=5.0) is None, metric


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
    found = verdict(Claim(metric="loss", **condition), run())
    assert found.holds is holds
    assert found.found == 0.25
    assert str(found).startswith("holds " if holds else "BROKEN")


@pytest.mark.parametrize("loss", [math.nan, None])
@pytest.mark.parametrize("condition", [{"below": 1e9}, {"above": -1e9}, {"equals": 0.0, "within": 1e9}])
def test_a_missing_or_nan_value_breaks_every_claim(loss: float | None, condition: dict[str, Any]) -> None:
    assert not verdict(Claim(metric="loss", **condition), run(loss=loss)).holds


def test_an_infinite_loss_is_above_every_bound() -> None:
    assert verdict(Claim(metric="loss", above=1.0), run(loss=math.inf)).holds
    assert not verdict(Claim(metric="loss", below=1e300), run(loss=math.inf)).holds


def test_a_claim_about_the_status_is_judged() -> None:
    claim = Claim(metric="status", equals="diverged")
    assert verdict(claim, run(status="diverged")).holds
    assert not verdict(claim, run()).holds


def test_a_verdict_shows_the_claim_its_interventions_and_the_value_found() -> None:
    claim = Claim(metric="loss_ratio", at=50, above=0.5, below=1.0, given=("30:residual=on",))
    assert str(verdict(claim, run())) == (
        "BROKEN  loss ÷ first loss below 1 and above 0.5 at step 50, after residual=on at step 30: found 6.05"
    )


@pytest.mark.parametrize(
    ("target", "at", "since", "found"),
    [
        (50.0, None, 0, 0.0),
        (9.5, None, 0, 91.0),
        (9.5, None, 90, 1.0),
        (9.5, 91, 0, math.inf),
        (0.5, None, 0, math.inf),
    ],
)
def test_steps_to_a_loss_are_counted_from_the_intervention(
    target: float, at: int | None, since: int, found: float
) -> None:
    assert run().metric("steps_to", at, target=target, since=since) == found


def test_a_nan_loss_is_the_largest_and_never_below_a_target() -> None:
    transcript = Transcript([STARTED, steps(0, [1.0, math.nan, 2.0])])
    assert math.isnan(transcript.metric("loss_max"))  # type: ignore[arg-type]
    assert transcript.metric("steps_to", target=0.5) == math.inf


def by_rate(sample: Sample) -> float:
    """A metric that is 10 times the rate of the sample, and its seed more."""
    rate = next((float(o.partition("=")[2]) for o in sample.overrides[::-1] if "lr=" in o), 1.0)
    return 10 * rate + sample.seed


@pytest.mark.parametrize(
    ("claim", "seed", "found", "holds", "numbers"),
    [
        ({"divided_by": Divisor(overrides=("optimizer.lr=5",)), "below": 0.3}, 0, 0.2, True, "10 ÷ 50"),
        ({"divided_by": Divisor(overrides=("optimizer.lr=5",)), "above": 0.3}, 0, 0.2, False, "10 ÷ 50"),
        ({"divided_by": Divisor(overrides=("optimizer.lr=0",)), "above": 0.3}, 0, None, False, "10 ÷ 0"),
        ({"seeds": 4, "below": 12.5, "at_least": 0.75}, 0, 0.75, True, "3 of 4"),
        ({"seeds": 4, "below": 12.5, "at_least": 0.76}, 0, 0.75, False, "3 of 4"),
        ({"seeds": 4, "below": 12.5, "at_most": 0.1}, 1, 0.0, True, "0 of 4"),
        ({"seeds": 2, "above": 13, "at_least": 1}, 2, 1.0, True, "2 of 2"),
        ({"largest": "optimizer.lr", "among": (1, 2, 4), "below": 25, "at_least": 2}, 0, 2.0, True, "not with 4"),
        ({"largest": "optimizer.lr", "among": (1, 2, 4), "below": 5, "at_least": 2}, 0, None, False, "not with 1"),
        (
            {"largest": "optimizer.lr", "among": (1, 2), "below": 25, "at_most": 1},
            *(0, 2.0, False, "no larger value was tried"),
        ),
        (
            {"seeds": 4, "below": 12.5, "divided_by": Divisor(overrides=("optimizer.lr=1.1",)), "at_least": 1.5},
            *(0, 1.5, True, "0.75 ÷ 0.5"),
        ),
    ],
)
def test_claims_about_several_runs_are_judged(
    claim: dict[str, Any], seed: int, found: float | None, holds: bool, numbers: str
) -> None:
    judged = judge(Claim(metric="loss", **claim), by_rate, seed=seed)
    assert (judged.found, judged.holds, judged.numbers) == (found, holds, numbers)


def test_a_ladder_is_climbed_only_to_the_first_failure() -> None:
    measured: list[Sample] = []

    def measure(sample: Sample) -> float:
        measured.append(sample)
        return 0.0 if len(measured) < 3 else 9.0

    claim = Claim(metric="loss", below=1, largest="optimizer.lr", among=(0.1, 0.2, 0.3, 0.4, 0.5), at_least=0.2)
    assert judge(claim, measure).found == 0.2
    assert [sample.overrides for sample in measured] == [(f"optimizer.lr=0.{n}",) for n in (1, 2, 3)]
    assert len(samples(claim, seed=0)) == 5


def test_seeds_of_different_verifications_do_not_overlap() -> None:
    claim = Claim(metric="loss", below=1, seeds=3, at_least=1)
    assert [[s.seed for s in samples(claim, seed=n)] for n in (0, 1)] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (
            {"metric": "dead_layer", "at": 0, "equals": 1.0, "seeds": 40, "at_least": 0.85},
            "share of dead units in the worst layer = 1 at step 0 for at least 85% of 40 seeds",
        ),
        (
            {"metric": "loss", "below": 0.1, "overrides": ("optimizer.lr=0.24",)},
            "loss below 0.1 at the end, with optimizer.lr=0.24",
        ),
        (
            {"metric": "loss", "below": 0.1, "given": ("9:residual=on",), "divided_by": Divisor(given=())},
            "loss at the end, after residual=on at step 9, divided by that without residual=on: below 0.1",
        ),
        (
            {"metric": "sharpness", "at": 90, "below": 0.9, "divided_by": Divisor(at=0)},
            "largest curvature at step 90, divided by that at step 0: below 0.9",
        ),
        (
            {"metric": "steps_to", "target": 1.8, "below": 30, "at": 500, "given": ("300:optimizer=adam",)},
            "steps to a loss below 1.8 below 30 within step 500, after optimizer=adam at step 300",
        ),
        (
            {
                "metric": "status",
                "equals": "finished",
                "largest": "optimizer.lr",
                "among": (0.1, 1),
                "overrides": ("schedule.name=cosine",),
                "divided_by": Divisor(overrides=()),
                "at_least": 2,
            },
            "largest optimizer.lr with end of the run = finished, with schedule.name=cosine, "
            "divided by that without schedule.name=cosine: at least 2",
        ),
    ],
)
def test_a_claim_in_words(claim: dict[str, Any], words: str) -> None:
    assert claim_sentence(Claim(**claim)) == words
