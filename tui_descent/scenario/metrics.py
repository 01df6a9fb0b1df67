"""The metrics that a claim can be about, and their values in the events of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tui_descent.protocol.events import (
    AnyEvent,
    CurvatureTaken,
    Evaluated,
    Layer,
    LayersChanged,
    LedgerTaken,
    ReadingsTaken,
    RunEnded,
    RunStarted,
    StepsCompleted,
)

METRICS = {
    "loss": "training loss of update `at`; if `at` is left out, the final loss of the run",
    "loss_mean": "mean training loss of the 20 updates before `at`",
    "loss_ratio": "loss_mean divided by the loss of update 0",
    "loss_max": "largest training loss of the updates before `at`",
    "steps_to": "updates until the training loss is below `target`, counted from the last intervention of `given`; "
    "inf if it does not get there before `at`",
    "accuracy": "held-out accuracy at the run's end, or in the newest evaluation up to step `at`",
    "first_to_last_grad": "grad_rms of the first block's weight divided by the last block's, at step `at`",
    "chain_product": "product of all blocks' factors ‖dL/dx‖/‖dL/dy‖ by the chain rule, at step `at`",
    "chain_error": "largest relative difference of the blocks' dL/dx, by the chain rule and by autograd, at step `at`",
    "global_grad_norm": "L2 norm of all gradients as the optimizer receives them, at step `at`",
    "grad_norm_preclip": "L2 norm of all gradients before clipping, at step `at`; only while clipping is on",
    "update_ratio": "median over the layers of ‖Δ‖/‖W‖, at step `at`",
    "dead_layer": "share of dead units in the layer that has most of them, at step `at`; 1 is a dead net",
    "sharpness": "largest Hessian eigenvalue λmax on the probe batch, with the weights before update `at`",
    "lambda_min": "smallest Hessian eigenvalue, measured as `sharpness`; negative at a saddle",
    "negative_fraction": "share of negative Hessian eigenvalues, measured as `sharpness`",
    "stability_limit": "the λmax above which this optimizer's steps grow; 2/η for plain gradient descent",
    "edge": "λmax / stability_limit (Adam, RMSprop: λmax of the preconditioned Hessian); 1 is the edge of stability",
    "edge_mean": "mean of `edge` over the 200 updates up to `at`, measured at every 20th",
    "position": "the first parameter of a test surface after the last update",
    "status": "how the run ended: finished, diverged, failed, stopped",
    "steps": "number of updates",
}
# The metrics in the words of the end card and the gallery.
METRIC_WORDS = {
    "loss": "loss",
    "loss_mean": "mean loss",
    "loss_ratio": "loss ÷ first loss",
    "loss_max": "largest loss",
    "steps_to": "steps to a loss below {target:g}",
    "accuracy": "held-out accuracy",
    "first_to_last_grad": "gradient of the first block ÷ last block",
    "chain_product": "product of the blocks' factors",
    "chain_error": "chain rule against autograd, relative difference",
    "global_grad_norm": "norm of the gradient",
    "grad_norm_preclip": "norm of the gradient before clipping",
    "update_ratio": "typical ‖ΔW‖/‖W‖",
    "dead_layer": "share of dead units in the worst layer",
    "sharpness": "largest curvature",
    "lambda_min": "smallest curvature",
    "negative_fraction": "share of directions with negative curvature",
    "stability_limit": "limit of the curvature",
    "edge": "largest curvature ÷ its limit",
    "edge_mean": "mean of largest curvature ÷ its limit",
    "position": "w",
    "status": "end of the run",
    "steps": "steps",
}
FROM_LEDGER = frozenset({"chain_product", "chain_error"})
NEEDS_READING = FROM_LEDGER.union(
    {"first_to_last_grad", "global_grad_norm", "grad_norm_preclip", "update_ratio", "dead_layer"}
)
NEEDS_CURVATURE = frozenset({"sharpness", "lambda_min", "negative_fraction", "stability_limit", "edge", "edge_mean"})
NEEDS_TARGET = frozenset({"steps_to"})
WORDS = frozenset({"status"})  # their values are words, not numbers
# `edge_mean`: over this many updates, measured at every so many of them.
MEAN_OVER, MEAN_EVERY = 200, 20


def curvature_steps(metric: str, at: int) -> range:
    """The steps at which the curvature has to be measured for one of the metrics `NEEDS_CURVATURE` at step `at`."""
    first = at - MEAN_OVER + MEAN_EVERY if metric == "edge_mean" else at
    return range(max(first, at % MEAN_EVERY), at + 1, MEAN_EVERY)


def curvature_value(metric: str, taken: Sequence[CurvatureTaken]) -> float | None:
    """One of the metrics `NEEDS_CURVATURE` at the last of the measurements `taken`, which are in the order of steps."""
    if not taken:
        return None
    last = taken[-1]
    if metric == "edge_mean":
        edges = [one.edge for one in taken if one.step > last.step - MEAN_OVER and one.edge is not None]
        return math.fsum(edges) / len(edges) if edges else None
    return {
        "sharpness": last.sharpness,
        "lambda_min": last.hessian.lambda_min,
        "negative_fraction": last.hessian.negative_fraction,
        "stability_limit": None if last.limit is None else last.limit.lambda_max,
        "edge": last.edge,
    }[metric]


class Transcript:
    """Collects the values that claims refer to from the events of one run."""

    def __init__(self, events: Iterable[AnyEvent] = ()) -> None:
        self.losses: dict[int, float] = {}
        self.readings: dict[int, ReadingsTaken] = {}
        self.ledgers: dict[int, LedgerTaken] = {}
        self.curvatures: dict[int, CurvatureTaken] = {}
        self.evaluated: dict[int, Evaluated] = {}
        self.layers: dict[int, tuple[Layer, ...]] = {}  # by the `structure` number that readings carry
        self.ended: RunEnded | None = None
        for event in events:
            self.add(event)

    def add(self, event: AnyEvent) -> None:
        """Record one event."""
        match event:
            case StepsCompleted():
                self.losses.update(zip(range(event.first, event.first + len(event.losses)), event.losses, strict=True))
            case ReadingsTaken():
                self.readings[event.step] = event
            case LedgerTaken():
                self.ledgers[event.step] = event
            case CurvatureTaken():
                self.curvatures[event.step] = event
            case Evaluated():
                self.evaluated[event.step] = event
            case RunStarted():
                self.layers[0] = event.layers
            case LayersChanged():
                self.layers[event.structure] = event.layers
            case RunEnded():
                self.ended = event
            case _:
                pass

    def metric(
        self, name: str, at: int | None = None, *, target: float | None = None, since: int = 0
    ) -> float | str | None:
        """A metric's value; None if the run has no value for it. `steps_to` counts from step `since`."""
        if name in FROM_LEDGER:
            return ledger_value(name, self.ledgers.get(at if at is not None else max(self.ledgers, default=-1)))
        if name in NEEDS_READING:
            return self._reading_metric(name, at)
        if name in NEEDS_CURVATURE:
            return self._curvature_metric(name, at)
        ended = self.ended
        if name == "loss":
            return self.losses.get(at) if at is not None else ended.loss if ended else None
        if name.startswith("loss_") or name == "steps_to":
            return self._loss_metric(name, at if at is not None else len(self.losses), target, since)
        if name == "accuracy" and at is not None:
            return next((self.evaluated[step].accuracy for step in sorted(self.evaluated)[::-1] if step <= at), None)
        if ended is None:
            return None
        if name == "position":
            return ended.position[0] if ended.position else None
        return {"accuracy": ended.accuracy, "status": ended.status, "steps": float(ended.step)}.get(name)

    def _loss_metric(self, name: str, end: int, target: float | None, since: int) -> float | None:
        if name == "steps_to":
            assert target is not None
            reached = [k for k in range(since, end) if self.losses.get(k, math.inf) < target]
            return float(reached[0] - since) if reached else math.inf if self.losses else None
        if name == "loss_max":
            return max((loss for k, loss in self.losses.items() if k < end), key=_size, default=None)
        last = [self.losses[k] for k in range(max(0, end - 20), end) if k in self.losses]
        mean = math.fsum(last) / len(last) if last else None
        if name == "loss_mean" or mean is None:
            return mean
        return mean / self.losses[0] if self.losses.get(0) else None

    def _reading_metric(self, name: str, at: int | None) -> float | None:
        step = at if at is not None else max(self.readings, default=None)
        if step is None or step not in self.readings:
            return None
        reading = self.readings[step]
        if name in ("global_grad_norm", "grad_norm_preclip"):
            found: float | None = getattr(reading, name)
            return found
        if name == "update_ratio":
            ratios = sorted(v for v in reading.values.get("update_ratio", []) if v is not None)
            return ratios[len(ratios) // 2] if ratios else None
        if name == "dead_layer":
            return max((v for v in reading.values.get("dead_fraction", []) if v is not None), default=None)
        return first_to_last_grad(self.layers.get(reading.structure, ()), reading)

    def _curvature_metric(self, name: str, at: int | None) -> float | None:
        end = at if at is not None else max(self.curvatures, default=-1)
        if end not in self.curvatures:
            return None
        return curvature_value(name, [self.curvatures[step] for step in sorted(self.curvatures) if step <= end])


def ledger_value(name: str, ledger: LedgerTaken | None) -> float | None:
    """One of the metrics `FROM_LEDGER`. None if a block's value is not known."""
    if ledger is None or not ledger.entries:
        return None
    if name == "chain_product":
        return ledger.entries[0].product
    off = [entry.discrepancy for entry in ledger.entries]
    return None if None in off else max(value for value in off if value is not None)


def _size(loss: float) -> float:
    """NaN counts as the largest loss."""
    return math.inf if math.isnan(loss) else loss


def first_to_last_grad(layers: Sequence[Layer], reading: ReadingsTaken) -> float | None:
    """grad_rms of the first block's weights divided by that of the last block. `layers` are the rows of the reading.

    None if there are fewer than two blocks or the last value is 0.
    """
    rms = reading.values.get("grad_rms", [])
    blocks = [layer.block for layer in layers if layer.block is not None]
    if len(set(blocks)) < 2 or len(rms) != len(layers):
        return None
    first, last = (rms[_weight_of(layers, number)] for number in (min(blocks), max(blocks)))
    return first / last if first is not None and last else None


def _weight_of(layers: Sequence[Layer], block: int) -> int:
    """The index of the block's largest layer. This is its weight matrix, not its normalisation layer."""
    return max((n for n, layer in enumerate(layers) if layer.block == block), key=lambda n: layers[n].params)
