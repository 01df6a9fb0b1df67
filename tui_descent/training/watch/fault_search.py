"""Finds where a non-finite loss or gradient came from, if possible. It first checks the weights. Then it runs the batch
again, if the batch is available. Last, it examines the gradients of the layers and the graph of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tui_descent.instruments.failures import Failures
from tui_descent.protocol.layer_names import in_words
from tui_descent.training.probes.nonfinite_search import Origin, nodes_of, non_finite_in, search
from tui_descent.training.probes.operation_names import all_are_finite, divides_by_data, node_operation, possible_causes
from tui_descent.training.several_nets import whole_nets
from tui_descent.training.watch.fault import Fault, lead, where
from tui_descent.training.watch.nan_guard import nan_buffer, non_finite_weights

PART = "the search for the first NaN"
# Operations that only rearrange or cast a weight before its layer uses it.
_REARRANGE = frozenset(
    {"t", "transpose", "permute", "view", "unsafe_view", "expand", "to_copy", "squeeze", "unsqueeze"}
)


class FaultSearch:
    """Explains the faults of one run.

    `replay` computes the loss of the current batch again; None if the run cannot do that. The batch of a user loop is
    passed to `offered`. `muted` is a context in which the instruments do not measure.
    """

    def __init__(
        self,
        model: nn.Module,
        failures: Failures,
        *,
        replay: Callable[[], object] | None,
        muted: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._model, self._failures = model, failures
        self._replay, self._muted = replay, muted
        self._loss: object = None
        self._batch: object = None
        self._passes_batch = False  # whether the loop has ever passed a batch
        self._weights: list[tuple[nn.Parameter, Tensor]] | None = None  # the weights before a bad update

    @contextmanager
    def offered(self, loss: object, batch: object) -> Iterator[None]:
        """A context in which the loss and the batch of the loop's current call are available. See `Watch.step`."""
        self._loss, self._batch = loss, batch
        self._passes_batch = self._passes_batch or batch is not None
        try:
            yield
        finally:
            self._loss = self._batch = self._weights = None

    def keep_weights(self) -> None:
        """Copy the weights before an update with a bad gradient, if the batch can be run again after the update."""
        if (self._replay is not None or self._passes_batch) and PART not in self._failures:
            self._weights = [(p, p.detach().clone()) for p in self._model.parameters()]

    def explain(self, fault: Fault) -> Fault:
        """The fault with its cause, operation, layer and sentence, as far as these can be found."""
        if fault.deferred:
            return fault
        try:
            return self._explained(fault)
        except Exception as error:  # noqa: BLE001 - the fault itself must be reported
            self._failures.add("the cause of a NaN", error)
            return replace(fault, text=lead(fault))

    def _explained(self, fault: Fault) -> Fault:
        weights, buffer = non_finite_weights(self._model), nan_buffer(self._model)
        origin = fault.weights
        if origin is None and not fault.updated:
            origin = weights
        if origin is None and PART not in self._failures and not _is_distributed():
            with self._failures.guard(PART):
                origin = self._run_again(fault)
        if origin is None:
            origin = self._from_gradients(fault)
        found = where(fault, origin)
        text = f"{lead(fault)}{f': {found}' if found else ''}"
        when = ""
        if not fault.updated:
            when = "before the update"
        elif fault.what == "loss" and fault.gradients is None:
            when = "found just after the update"
        if when:
            text += f" ({when})" if text.endswith("?") else f", {when}"
        damage = weights if fault.weights is None and fault.updated else None
        damage = damage or buffer
        if damage is not None and damage != origin:
            text += f"{' Now' if text.endswith(('?', ')')) else '; now'} {damage.words}"
        cause, layer, operation = ("", None, "") if origin is None else (origin.cause, origin.layer, origin.operation)
        if fault.what == "gradient" and fault.gradients and (not cause or (cause == "backward" and layer is None)):
            layer = fault.gradients.bad[-1]
        return replace(
            fault,
            text=text,
            where=found,
            layer=layer,
            cause=cause,
            operation=operation,
            weights_finite=weights is None and buffer is None,
        )

    def _replay_of(self) -> tuple[Callable[[], object], bool] | None:
        """A function that runs the batch again, and whether it returns the loss; None if there is no batch."""
        if self._replay is not None:
            return self._replay, True
        batch, nets = self._batch, list(whole_nets(self._model).values())
        if batch is None:
            return None
        if callable(batch) and not isinstance(batch, nn.Module | Tensor):
            return batch, True
        if len(nets) != 1:  # with several nets, it is not known which one gets the batch
            return None
        if isinstance(batch, Mapping):
            return partial(nets[0], **batch), False
        return partial(nets[0], batch[0] if isinstance(batch, list | tuple) else batch), False

    def _run_again(self, fault: Fault) -> Origin | None:
        """What a second run of the batch shows; None if the batch cannot be run again or shows nothing. An origin
        without a cause means that nothing in the passes can have made the fault.
        """
        if (found := self._replay_of()) is None:
            return None
        run, gives_loss = found
        backward = fault.what == "gradient"
        with self._muted(), self._weights_before():
            result = search(self._model, run, batch=self._batch, gives_loss=gives_loss, backward=backward)
        if result.origin is not None:
            return result.origin
        if not result.exact or (fault.updated and self._weights is None):
            return None
        if gives_loss:  # the passes are fine, so the loop has changed the loss or the gradients after them
            return Origin("")
        if (words := non_finite_in(self._batch)) is not None:
            return Origin("batch", words=words)
        # The net's outputs are finite, so the fault is in what follows it, unless the loop ran the net in another
        # precision.
        nodes = self._nodes()
        if any(node_operation(node) == "to_copy" for node in nodes):
            return None
        after_net = fault.what == "loss" or (fault.gradients is not None and not fault.gradients.finite)
        return self._suspect(fault, nodes) if after_net else None

    @contextmanager
    def _weights_before(self) -> Iterator[None]:
        """A context with the weights from before the bad update, if they were kept. The parameters remain the same
        objects with the same versions.
        """
        now = [(parameter, parameter.data) for parameter, _ in self._weights or ()]
        for parameter, before in self._weights or ():
            parameter.data = before
        try:
            yield
        finally:
            for parameter, data in now:
                parameter.data = data

    def _from_gradients(self, fault: Fault) -> Origin | None:
        """What the gradients of the layers show, together with the operations in the loss's graph."""
        gradients = fault.gradients
        if fault.what == "loss":
            return self._from_loss(fault)
        if gradients is None:
            return None
        last, name = gradients.bad[-1], in_words(gradients.bad[-1])
        if gradients.from_input and gradients.bad == (last,) and not gradients.before:
            return Origin("batch", last, words=f"the input of {name}, the first layer, is not finite")
        if gradients.from_input:
            return Origin("forward", last, words=f"the input of {name} is not finite")
        if gradients.finite:
            return Origin("backward", last, words=f"it arises between {in_words(gradients.finite[0])} and {name}")
        return None if gradients.before else self._suspect(fault, self._nodes())

    def _from_loss(self, fault: Fault) -> Origin | None:
        """What the graph of a non-finite loss lets one suspect, if the weights are finite: an operation in the loss
        function, or the batch if no operation of the net and the loss can make NaN of finite numbers.
        """
        nodes, loss = self._nodes(), self._loss
        if not nodes or not isinstance(loss, Tensor):
            return None
        causes = self._causes(fault, [node for node in nodes if not divides_by_data(node)])
        if causes:
            return Origin("loss function", words=f"{' or '.join(list(causes.values())[:2])}?")
        all_nodes = nodes_of([loss.grad_fn])
        divisions = [node for node in all_nodes if divides_by_data(node)]
        if fault.value != "nan" or not all_are_finite(node for node in all_nodes if node not in divisions):
            return None
        return Origin("batch", words="NaN in the batch, or 0/0?" if divisions else "NaN in the batch itself?")

    def _suspect(self, fault: Fault, nodes: list[Any]) -> Origin:
        """The part after the last layer as the suspect, unless the graph of the loss rules it out."""
        if not nodes:  # the loop has passed the loss as a number
            return Origin("loss function", words="or clipping?" if fault.what == "gradient" else "")
        causes = self._causes(fault, nodes)
        if not causes and fault.what == "gradient":
            # None of these operations can have made the fault: the loop may have changed the gradients.
            return Origin("")
        words = " or ".join(list(causes.values())[:2])
        operation = next(iter(causes)) if len(causes) == 1 else ""
        return Origin("loss function", operation=operation, words=f"{words}?" if words else "")

    @staticmethod
    def _causes(fault: Fault, nodes: Iterable[Any]) -> dict[str, str]:
        return possible_causes(nodes, loss_is_finite=fault.what == "gradient")

    def _nodes(self) -> list[Any]:
        """The nodes of the loss's graph that come after the last layers with weights; none if there is no graph."""
        loss = self._loss
        if not isinstance(loss, Tensor) or loss.grad_fn is None:
            return []
        return nodes_of([loss.grad_fn], until=_uses_weights)


def _uses_weights(node: Any) -> bool:
    """Whether an operation of a graph belongs to a layer, that is, whether one of its operands is a weight, perhaps
    transposed.
    """
    for before, _ in node.next_functions:
        while before is not None and node_operation(before) in _REARRANGE:
            before = before.next_functions[0][0]
        if before is not None and before.name().endswith("AccumulateGrad"):
            return True
    return False


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
