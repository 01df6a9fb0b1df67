"""Runs a batch again, after a fault, to find where NaN or infinity first arose: which operation, in which module.

The pass leaves no trace: random numbers, buffers, attributes and gradients are as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tui_descent.instruments.module_hooks import Args, Kwargs, ModuleHooks
from tui_descent.instruments.not_measured import why_not_measured
from tui_descent.protocol.layer_names import in_words
from tui_descent.training.probes.operation_names import (
    SOFTMAX,
    backward_words,
    forward_words,
    node_operation,
    operation_of,
)
from tui_descent.training.steering.surgery.observer import tensors_in
from tui_descent.training.torch_internals import uncompiled
from tui_descent.training.undo.random_state import RandomState
from tui_descent.training.undo.torch_state import unchanged

Cause = Literal["", "weights", "batch", "forward", "loss function", "backward"]
Kind = Literal["", "nan", "inf", "-inf"]  # the worst value of a tensor; "" if all are finite


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the first non-finite value came from. `layer` is None outside the net's modules.

    `words` describes what happened, such as "log of 0".
    """

    cause: Cause
    layer: str | None = None
    operation: str = ""
    words: str = ""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """`origin` is None if every value in the pass was finite. `exact` means that the pass drew no random numbers, so it
    was an exact repetition.
    """

    origin: Origin | None
    exact: bool


@dataclass(frozen=True, slots=True)
class _Source:
    """A non-finite input of an operation, and the operation that made it; None if it was not made in the pass."""

    kind: Kind
    tensor: Tensor
    made: _Made | None


@dataclass(slots=True)
class _Made:
    """An operation with a non-finite result."""

    operation: str
    module: str | None
    kind: Kind
    sources: list[_Source]
    on_purpose: bool  # an infinity was passed as a number, as in `masked_fill(mask, -inf)`
    words: str = field(default="")


def search(
    model: nn.Module, run: Callable[[], object], *, batch: object, gives_loss: bool, backward: bool
) -> SearchResult:
    """Run the forward pass again, and with `backward` the backward pass too.

    `run` returns the loss if `gives_loss`, else the net's outputs. `batch` has the tensors that count as the batch.
    Without a loss, the backward pass starts from gradients of 1 at the outputs. Raises what the net raises.
    """
    trace = _ForwardTrace(model)
    state = RandomState()
    before = state.state()
    try:
        with uncompiled(), unchanged(model), torch.enable_grad():
            with trace.listening(), trace:
                result = run()
            # The generators' states are compared before they are restored.
            exact = _same(before, state.state())
            ends = list(tensors_in(result))
            found = trace.origin(ends, model, batch)
            if found is None and backward:
                found = _search_backward(model, ends, trace, batch, gives_loss=gives_loss)
    finally:
        state.restore(before)
    return SearchResult(found, exact)


def kind_of(tensor: Tensor) -> Kind:
    """The worst value in a tensor: NaN, else an infinity; "" if all are finite or cannot be read. Waits for a GPU."""
    values = tensor.coalesce().values() if tensor.is_sparse else tensor
    if why_not_measured(values) is not None:
        return ""
    values = values.detach()
    if bool(values.isfinite().all()):
        return ""
    if bool(values.isnan().any()):
        return "nan"
    return "inf" if values.is_complex() or bool((values == torch.inf).any()) else "-inf"


def non_finite_in(batch: object) -> str | None:
    """What is wrong with a batch, as in "the batch has nan in sample 3"; None if all its numbers are finite."""
    for tensor in tensors_in(batch):
        if kind := kind_of(tensor):
            return f"the batch has {kind}{_which_sample(tensor)}"
    return None


def weight_origin(name: str, kind: Kind) -> Origin:
    """The origin of a value that a parameter or buffer already had."""
    layer, _, short = name.rpartition(".")
    words = f"the {short} of {in_words(layer)} is {kind}" if layer else f"{short} is {kind}"
    return Origin("weights", layer or name, words=words)


def _which_sample(tensor: Tensor) -> str:
    if tensor.dim() < 1 or len(tensor) < 2:
        return ""
    bad = (~tensor.detach().isfinite()).reshape(len(tensor), -1).any(1).nonzero().flatten().tolist()
    return f" in sample {bad[0]}" if len(bad) == 1 else f" in {len(bad)} of {len(tensor)} samples"


class _ForwardTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation with a non-finite result, with the module that it ran in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # By storage: the operation whose non-finite result it holds. Views share the storage, so they need no entry.
        self._made: dict[int, _Made] = {}
        self._stack: list[tuple[str, int]] = []
        # The spans of autograd's sequence numbers in which the calls of modules created their nodes.
        self._spans: list[tuple[int, int, str]] = []
        self._hooks = ModuleHooks(every_pass=True)
        for name, module in model.named_modules():
            self._hooks.on_input(module, partial(self._enter, name), "the search for the first NaN")
            self._hooks.on_output(module, partial(self._leave, name), "the search for the first NaN")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """A context in which the calls of modules are recorded."""
        self._hooks.attach()
        try:
            yield
        finally:
            self._hooks.detach()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        mutable = func._schema.is_mutable
        sources = self._sources(inputs) if mutable else None  # the operation may overwrite them
        outcome = func(*args, **kwargs)
        own = {_storage(t) for t in inputs}
        for result in pytree.tree_leaves(outcome):
            if not isinstance(result, Tensor) or not (place := _storage(result)) or (place in own and not mutable):
                continue
            kind = kind_of(result)
            if not kind:
                self._made.pop(place, None)
                continue
            sources = self._sources(inputs) if sources is None else sources
            operation = operation_of(func)
            numbers = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, float)]
            self._made[place] = _Made(
                operation,
                self._stack[-1][0] if self._stack else None,
                kind,
                sources,
                on_purpose=not inputs or any(x in (torch.inf, -torch.inf) or x != x for x in numbers),
                words=forward_words(operation, kind, args, result),
            )
        return outcome

    def _sources(self, inputs: Iterable[Tensor]) -> list[_Source]:
        return [_Source(kind, t, self._made.get(_storage(t))) for t in inputs if (kind := kind_of(t))]

    def _enter(self, name: str, args: Args) -> None:
        self._stack.append((name, _sequence_number()))

    def _leave(self, name: str, args: Args, kwargs: Kwargs, output: Any) -> None:
        while self._stack:
            top, start = self._stack.pop()
            if top == name:  # a module that raised was never left
                self._spans.append((start, _sequence_number(), name))
                return

    def module_of(self, node: Any) -> str | None:
        """The innermost module whose call created a node of the graph; None for a node created outside the net."""
        number = node._sequence_nr()
        inside = [(start, name) for start, end, name in self._spans if start < number < end]
        return max(inside)[1] if inside else None

    def origin(self, ends: Iterable[Tensor], model: nn.Module, batch: object) -> Origin | None:
        """Where the non-finite values in the results of the pass come from; None if the results are finite."""
        finals = [_Source(kind, end, self._made.get(_storage(end))) for end in ends if (kind := kind_of(end))]
        finals.sort(key=lambda final: final.kind != "nan")
        for final in finals:
            first = _first(final)
            if first.made is not None:
                made = first.made
                if made.on_purpose:
                    continue
                cause: Cause = "loss function" if made.module is None else "forward"
                return Origin(cause, made.module or None, made.operation, made.words)
            return _from_outside(first, model, batch)
        return None


def _first(source: _Source) -> _Source:
    """Follow a non-finite value back to the operation that made it from finite values, or to a value from outside the
    pass.
    """
    while source.made is not None:
        made = source.made
        bad = [s for s in made.sources if s.kind == "nan"]
        if not bad:
            infinite = made.sources
            if made.operation in SOFTMAX and infinite and all(s.kind == "-inf" for s in infinite):
                return source  # -inf in a mask is normal, but a row that is masked completely gives NaN
            # An infinity that was set on purpose, as in a mask, is not a fault by itself.
            bad = [s for s in infinite if not _is_on_purpose(s)]
        if not bad:
            return source
        source = bad[0]
    return source


def _is_on_purpose(source: _Source) -> bool:
    while source.made is not None:
        if source.made.on_purpose:
            return True
        if not source.made.sources:
            return False
        source = source.made.sources[0]
    return False


def _from_outside(source: _Source, model: nn.Module, batch: object) -> Origin:
    """The origin of a value that the pass did not compute: a weight, a buffer, or else the batch."""
    place = _storage(source.tensor)
    for tensors in (model.named_parameters(), model.named_buffers()):
        for name, tensor in tensors:
            if _storage(tensor) == place:
                return weight_origin(name, source.kind)
    return Origin("batch", words=non_finite_in(batch) or non_finite_in(source.tensor) or "")


def _search_backward(
    model: nn.Module, results: list[Tensor], trace: _ForwardTrace, batch: object, *, gives_loss: bool
) -> Origin | None:
    ends = [end for end in results if end.requires_grad and end.grad_fn is not None]
    weights = [p for p in model.parameters() if p.requires_grad]
    if not ends or not weights:
        return None
    found: list[tuple[Any, Kind]] = []

    def check(node: Any, outgoing: tuple[Tensor | None, ...], incoming: tuple[Tensor | None, ...]) -> None:
        if not found and (kind := _worst(outgoing)) and not _worst(incoming):
            found.append((node, kind))

    handles = [node.register_hook(partial(check, node)) for node in nodes_of(end.grad_fn for end in ends)]
    starts = None if gives_loss else [torch.ones_like(end) for end in ends]
    try:
        torch.autograd.grad(ends, weights, starts, allow_unused=True, retain_graph=True)
    finally:
        for handle in handles:
            handle.remove()  # a hook refers to its own node, so it would keep the graph in memory
    if not found:
        return None
    (node, kind), operation = found[0], node_operation(found[0][0])
    # In the forward pass a value was not finite but did not reach the loss, for example because `torch.where` discarded
    # it.
    if (origin := trace.origin(_saved_tensors(node), model, batch)) is not None:
        return origin
    module = trace.module_of(node)
    cause: Cause = "loss function" if module is None and gives_loss else "backward"
    return Origin(cause, module or None, operation, backward_words(operation, kind))


def nodes_of(starts: Iterable[Any], until: Callable[[Any], bool] = lambda node: False) -> list[Any]:
    """The nodes of an autograd graph that are reachable from `starts`, without those that accumulate gradients. The
    search does not go beyond nodes for which `until` is true.
    """
    waiting, seen, nodes = list(starts), set(), []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or node.name().endswith("AccumulateGrad"):
            continue
        seen.add(node)
        nodes.append(node)
        if not until(node):
            waiting += [before for before, _ in node.next_functions]
    return nodes


def _saved_tensors(node: Any) -> list[Tensor]:
    """The tensors that an operation has kept for its backward pass."""
    saved = (getattr(node, name, None) for name in dir(node) if name.startswith("_saved_"))
    return [tensor for tensor in saved if isinstance(tensor, Tensor)]


def _worst(gradients: tuple[Tensor | None, ...]) -> Kind:
    kinds = [kind_of(g) for g in gradients if g is not None]
    return "nan" if "nan" in kinds else next((kind for kind in kinds if kind), "")


def _storage(tensor: Tensor) -> int:
    """The address of a tensor's numbers; 0 if it has none, or keeps them elsewhere."""
    try:
        return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0
    except (RuntimeError, NotImplementedError):
        return 0


def _sequence_number() -> int:
    """A number between those of the autograd nodes created before and after this call."""
    with torch.enable_grad():
        node: Any = torch.zeros((), requires_grad=True).view(()).grad_fn
    return 0 if node is None else int(node._sequence_nr())


def _same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor):
            return torch.equal(a, b)
        if isinstance(a, list | tuple):
            return all(map(equal, a, b))
        return str(a) == str(b)

    return all(equal(before[name], after[name]) for name in before)
