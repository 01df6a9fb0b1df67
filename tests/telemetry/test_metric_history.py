"""The metrics of a user's loop in the history: bounded, undone with the run, sent to viewers, held-out losses."""

from __future__ import annotations

import itertools
import math

import factories
import pytest
from factories import history_of, logged, received, started, steps

from tui_descent.protocol.codec import frame
from tui_descent.protocol.events import Evaluated, MetricLogged
from tui_descent.telemetry.history import MAX_ENTRIES, History
from tui_descent.telemetry.metric_history import MAX_COUNTED, MAX_NAMES, MetricHistory, thinned


def metric(step: int, value: float, name: str = "x", segment: int = 0) -> MetricLogged:
    return MetricLogged(segment=segment, step=step, name=name, value=value)


def points(history: History, name: str = "x") -> list[tuple[int, float]]:
    return history.metrics[history.segment].metrics[name].points(1, 0, 10_000)


def test_newest_value_and_curve_of_each_name() -> None:
    history = history_of([started(), metric(0, 1.0), metric(0, 5.0, "y"), metric(3, 2.0), metric(7, math.nan)])
    x = history.metrics[0].metrics["x"]
    assert (x.step, math.isnan(x.value)) == (7, True)
    assert points(history) == [(0, 1.0), (3, 2.0)]
    assert history.metrics[0].metrics["y"].value == 5.0
    assert list(history.metrics[0].metrics) == ["x", "y"]


def test_values_of_one_step_are_averaged_and_an_earlier_step_counts_as_the_newest() -> None:
    history = history_of([metric(4, 1.0), metric(4, 3.0), metric(2, 8.0)])
    assert points(history) == [(4, 4.0)]
    assert history.metrics[0].metrics["x"].value == 8.0


def test_names_and_curves_are_bounded() -> None:
    history = history_of([metric(0, 1.0, f"name {n:0100}") for n in range(5000)])
    assert len(history.metrics[0].metrics) == MAX_NAMES
    assert len(history.metrics[0].left_out) == MAX_COUNTED
    for step in range(20_000):
        history.apply(metric(step, step % 7, f"name {step % 3:0100}"))
        history.apply(metric(step, 1.0, "val_loss"))
    assert len(frame(history.send())) < 1_000_000
    assert len(history.evaluations) <= MAX_ENTRIES


def test_viewer_receives_the_metrics() -> None:
    history = history_of([started(), *logged(300), *(metric(0, 1.0, f"more {n}") for n in range(MAX_NAMES))])
    copy = received(history)
    for name, one in history.metrics[0].metrics.items():
        other = copy.metrics[0].metrics[name]
        assert other.points(1, 0, 300) == one.points(1, 0, 300)
        assert (other.step, repr(other.value)) == (one.step, repr(one.value))
    assert copy.metrics[0].left_out == history.metrics[0].left_out
    assert len(copy.metrics[0].left_out) == len(factories_names(history)) - MAX_NAMES
    for later in (metric(300, 5.0, "train/accuracy"), metric(300, 6.0, "val_loss")):
        history.apply(later)
        copy.apply(later)
    assert copy.evaluations == history.evaluations
    assert copy.metrics[0].metrics["train/accuracy"].value == 5.0


def factories_names(history: History) -> set[str]:
    return {*history.metrics[0].metrics, *history.metrics[0].left_out}


@pytest.mark.parametrize("cut", [1, 40, 99])
def test_undo_takes_the_metrics_of_undone_steps_back_and_redo_returns_them(cut: int) -> None:
    history = history_of([started(), steps(0, [1.0] * 100), *(metric(n, float(n)) for n in range(0, 100, 2))])
    history.apply(factories.rewound((0, 100), (0, cut), 1, back=True))
    kept = [(n, float(n)) for n in range(0, cut, 2)]
    assert points(history) == kept
    newest = history.metrics[1].metrics["x"]
    assert (newest.step, newest.value) == kept[-1]
    history.apply(metric(cut, 7.0, segment=1))
    assert points(history)[-1][1] in (7.0, (7.0 + cut) / 2)
    history.apply(factories.rewound((1, cut + 1), (0, 100), 2, back=False))
    assert points(history) == [(n, float(n)) for n in range(0, 100, 2)]


@pytest.mark.parametrize(
    "name",
    ["val_loss", "val/loss", "Val-Loss", "validation_loss", "eval_loss", "eval/loss", "valid_loss", "test loss"],
)
def test_held_out_losses_are_recognised_by_their_name(name: str) -> None:
    values = (5, 2.0), (10, 1.5), (10, 1.25), (15, math.inf)
    history = history_of([metric(step, value, name) for step, value in values])
    assert history.evaluations == [Evaluated(segment=0, step=5, loss=2.0), Evaluated(segment=0, step=10, loss=1.25)]
    assert history.log == [], "metrics are not entries of the event log"


@pytest.mark.parametrize("name", ["loss", "val_accuracy", "train_loss", "val_loss_scale", "interval_loss"])
def test_other_metrics_are_no_held_out_losses(name: str) -> None:
    assert history_of([metric(5, 2.0, name)]).evaluations == []


@pytest.mark.parametrize("count", [501, 2000, 100_000])
def test_thinned_evaluations_span_the_run_evenly(count: int) -> None:
    kept: list[Evaluated] = []
    for step in range(count):
        kept.append(Evaluated(segment=0, step=step, loss=1.0))
        kept = thinned(kept, 500)
    places = [one.step for one in kept]
    assert 200 <= len(places) <= 500
    assert places[0] == 0
    assert places[-1] == count - 1
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert max(gaps) <= 8 * count / 500 + 1


def test_metrics_before_a_step_leave_the_original_unchanged() -> None:
    whole = MetricHistory()
    for step in range(100):
        whole.add(metric(step, float(step)))
    cut = whole.before(50)
    cut.add(metric(50, -1.0))
    assert whole.metrics["x"].points(1, 0, 100) == [(n, float(n)) for n in range(100)]
    assert cut.metrics["x"].points(1, 0, 100)[-1] == (50, -1.0)
