"""What the first loss of a user loop shows: the loss function, and a softmax or sigmoid that is applied twice."""

from __future__ import annotations

import math

from torch import Tensor

from tui_descent.instruments.deferred import is_asynchronous
from tui_descent.instruments.loss_graph import LossGraph, read_loss_graph
from tui_descent.instruments.net_ends import NetEnds
from tui_descent.protocol.events import LoopObserved
from tui_descent.training.progress import Progress
from tui_descent.training.watch.facts import Evidence, Facts

# A first loss counts as that of a guess if it is this close to ln(classes).
NEAR = 0.1
# A binary cross-entropy that gets probabilities instead of logits: the range of its first loss, and its lowest possible
# loss.
SIGMOID_LOSSES, LOWEST_SIGMOID_LOSS = (0.7, 0.98), math.log1p(math.exp(-1))


class LossFacts:
    """Examines the graph of the first loss. If the loss is passed as a number, it has no graph, and the finding is only
    a question.
    """

    def __init__(self, facts: Facts, progress: Progress) -> None:
        self._facts, self._progress = facts, progress
        self._observed = False  # whether `LoopObserved` was sent
        self._is_nll = False  # whether the loss is `nll_loss` of something that no log-softmax has made

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
        self._is_nll = graph.loss_function == "nll" and graph.gets is None
        self._check_nll(loss)
        if graph.takes is not None and graph.gets is not None:
            self._facts.found("softmax twice", None, {"takes": graph.takes, "gets": graph.gets})
        elif not isinstance(loss, Tensor) or loss.grad_fn is None:
            self._ask(loss, ends)

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
