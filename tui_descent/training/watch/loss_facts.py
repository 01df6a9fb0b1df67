"""What the losses of a user loop show: the loss function, a softmax or sigmoid that is applied twice, outputs and
targets of different shapes, and targets of a wrong scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from tui_descent.instruments.deferred import is_asynchronous
from tui_descent.instruments.loss_graph import LossGraph, read_loss_graph
from tui_descent.instruments.net_ends import NetEnds, Output
from tui_descent.protocol.events import LoopObserved
from tui_descent.training.progress import Progress
from tui_descent.training.watch.facts import Evidence, Facts

# A first loss counts as that of a guess if it is this close to ln(classes).
NEAR = 0.1
# A binary cross-entropy that gets probabilities instead of logits: the range of its first loss, and its lowest possible
# loss.
SIGMOID_LOSSES, LOWEST_SIGMOID_LOSS = (0.7, 0.98), math.log1p(math.exp(-1))
# The scale of targets: the usual limits of their rms, how many times as large as the outputs the distance to them must
# be so that it nearly is their rms, in how many measured steps in a row this must hold, and from which step on.
TARGET_RMS, FAR, SCALE_PASSES, SCALE_FROM = (1e-2, 1e2), 4.0, 2, 10


class LossFacts:
    """Examines the graph of the first loss, and compares later ones with the outputs that they were computed from.

    If the loss is passed as a number, it has no graph, and the finding is only a question.
    """

    def __init__(self, facts: Facts, progress: Progress) -> None:
        self._facts, self._progress = facts, progress
        self._observed = False  # whether `LoopObserved` was sent
        self._is_nll = False  # whether the loss is `nll_loss` of something that no log-softmax has made
        self._is_distance = False  # whether the loss is a mean distance between predictions and targets
        self._squared = False
        self._loss: tuple[int, float, int | None] | None = None  # a step, its loss, and what made the predictions
        self._outputs: tuple[int, Mapping[str, Output]] | None = None  # a step, and what came out of the nets
        self._far: dict[str, int] = {}  # by net: measured steps in a row with targets of a wrong scale

    def observe(self, loss: object, ends: NetEnds) -> None:
        """Called at `run.step(loss)`. `ends` has measured what comes out of the net."""
        if self._observed:
            self._withdraw(loss)
            self._check_nll(loss)
            return
        self._observed = True
        graph = read_loss_graph(loss) if isinstance(loss, Tensor) else LossGraph()
        self._progress.emit(
            LoopObserved(
                **self._progress.place, loss_function=graph.loss_function, classes=graph.classes, batch=ends.batch
            )
        )
        self._is_distance, self._squared = graph.predictions is not None, graph.loss_function == "mse"
        if graph.all_pairs is not None:
            self._found_pairs(graph.all_pairs, graph.loss_function or "loss")
        self._is_nll = graph.loss_function == "nll" and graph.gets is None
        self._check_nll(loss)
        if graph.takes is not None and graph.gets is not None:
            self._facts.found("softmax twice", None, {"takes": graph.takes, "gets": graph.gets})
        elif not isinstance(loss, Tensor) or loss.grad_fn is None:
            self._ask(loss, ends)

    def _found_pairs(self, shape: tuple[int, ...], name: str) -> None:
        n = shape[0]
        shapes: Evidence = {"outputs": f"({n})", "targets": f"({n}, 1)"}
        if len(shape) > 1:
            shapes = {"outputs": f"({n}, 1)", "targets": f"({n})"}
        self._facts.found("all pairs", None, {"samples": float(n), "loss": name, **shapes})

    def add_loss(self, step: int, loss: object) -> None:
        """The loss of a measured step."""
        if self._is_distance and isinstance(loss, Tensor) and (value := _number(loss)) is not None:
            self._loss = step, value, read_loss_graph(loss).predictions
            self._check_scale()

    def add_outputs(self, step: int, outputs: Mapping[str, Output]) -> None:
        """What came out of the nets in the pass of this step."""
        self._outputs = step, outputs
        self._check_scale()

    def _check_scale(self) -> None:
        """Whether the targets are far larger or smaller than outputs of a net usually are.

        With the rms d of the differences, |rms(targets) − rms(outputs)| ≤ d ≤ rms(targets) + rms(outputs). The mean
        absolute difference, which L1 and Huber's losses do not exceed, is at most d.
        """
        if self._loss is None or self._outputs is None or self._loss[0] != self._outputs[0]:
            return
        (step, value, node), outputs = self._loss, self._outputs[1]
        self._loss = self._outputs = None
        name = next((name for name, one in outputs.items() if node is not None and one.node == node), None)
        if name is None or not 0 <= value < math.inf or step < SCALE_FROM:
            return
        rms, distance = outputs[name].rms, math.sqrt(value) if self._squared else value
        large = distance > max(TARGET_RMS[1], FAR * rms)
        small = self._squared and 0 < distance + rms < TARGET_RMS[0]
        self._far[name] = self._far.get(name, 0) + 1 if large or small else 0
        if not self._far[name]:
            self._facts.ended("target scale")
        elif self._far[name] >= SCALE_PASSES:
            evidence: Evidence = {"rms": distance, "outputs": rms}
            if small:
                evidence["question"] = 1.0
            self._facts.found("target scale", name or None, evidence, keep=True)

    def _check_nll(self, loss: object) -> None:
        """`nll_loss` of log-probabilities is never negative, because no probability is above 1."""
        if self._is_nll and (value := _number(loss)) is not None and value < 0:
            self._is_nll = False
            self._facts.found("no log-softmax", None, {"loss": value}, keep=True)

    def _ask(self, loss: object, ends: NetEnds) -> None:
        """Ask whether a softmax or sigmoid is applied twice, if the net ends in one and the first loss looks like it.
        With C classes, the cross-entropy of numbers between 0 and 1 that add up to 1 is at least ln(1 + (C − 1)/e).
        """
        value = _number(loss)
        if value is None or ends.last is None:
            return
        gets, classes = ends.last
        if gets == "softmax" and classes > 1:
            guess, lowest = math.log(classes), math.log1p((classes - 1) * math.exp(-1))
            asks = abs(value - guess) < NEAR * guess
        else:
            lowest = LOWEST_SIGMOID_LOSS
            # With several sigmoids, as in an autoencoder, the loss may well be a cross-entropy that takes
            # probabilities.
            asks = gets == "sigmoid" and classes == 1 and SIGMOID_LOSSES[0] < value < SIGMOID_LOSSES[1]
        if asks:
            evidence: Evidence = {"gets": gets, "loss": value, "lowest": lowest, "question": 1.0}
            self._facts.found("softmax twice", None, evidence)

    def _withdraw(self, loss: object) -> None:
        """Withdraw the question once the loss is lower than it could be if a softmax or sigmoid were applied twice."""
        asked = self._facts.evidence("softmax twice")
        if "question" in asked and (value := _number(loss)) is not None and value < float(asked["lowest"]):
            self._facts.ended("softmax twice")


def _number(loss: object) -> float | None:
    """The loss as a number; None if reading it would mean waiting for a device."""
    if isinstance(loss, Tensor):
        waits = is_asynchronous(loss.device)
        return None if waits or loss.numel() != 1 or loss.is_complex() else float(loss.detach())
    return float(loss) if isinstance(loss, int | float) else None
