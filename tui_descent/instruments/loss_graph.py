"""Finds out from the autograd graph of a loss which loss function it is, and whether it gets what it expects: logits
rather than probabilities, and outputs and targets of the same shape. Only names, shapes and settings of the graph's
nodes are read. The backward pass frees only the tensors, so these still exist after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# At most this many nodes of a graph are examined.
MOST_NODES = 100
MOST_SEARCHED = 10_000  # the same when parameters are looked for
# Operations that only give the same numbers another shape or type.
_SAME_NUMBERS = frozenset(
    f"{name}Backward{n}"
    for name in (
        "View", "UnsafeView", "ReshapeAlias", "Transpose", "Permute", "T", "ToCopy", "Squeeze", "Unsqueeze", "Clone",
        "Alias", "Slice", "Select", "Index", "Movedim", "Mt", "Contiguous", "Stack", "MaskedSelect",
    )
    for n in range(4)
)  # fmt: skip
_CROSS_ENTROPY = ("NllLossBackward0", "NllLoss2DBackward0")
_LOSSES = {
    "MseLossBackward0": "mse",
    "L1LossBackward0": "l1",
    "SmoothL1LossBackward0": "smooth_l1",
    "HuberLossBackward0": "huber",
    "BinaryCrossEntropyBackward0": "bce",
    "BinaryCrossEntropyWithLogitsBackward0": "bce_with_logits",
    "MultiMarginLossBackward0": "multi_margin",
    "MultilabelMarginLossBackward0": "multilabel_margin",
    "SoftMarginLossBackward0": "soft_margin",
    "CtcLossBackward0": "ctc",
}
# The operations that turn logits or log-probabilities into a loss, each with the operations that must not come directly
# before it.
_TAKES_LOGITS = {
    "LogSoftmaxBackward0": ("cross_entropy", ("softmax", "sigmoid")),
    "BinaryCrossEntropyWithLogitsBackward0": ("bce_with_logits", ("sigmoid", "softmax")),
    "NllLossBackward0": ("nll_loss", ("softmax", "sigmoid")),
    "NllLoss2DBackward0": ("nll_loss", ("softmax", "sigmoid")),
}
_SQUASHING = {"SoftmaxBackward0": "softmax", "SigmoidBackward0": "sigmoid"}
# Operations that cut off negative numbers.
_CUTTING = {"ReluBackward0": "relu", "ClampBackward1": "clamp", "ClampMinBackward0": "clamp"}
_MEANS = ("MeanBackward0", "MeanBackward1")
_MEAN, _SUM = 1, 2  # torch's numbers of `reduction="mean"` and "sum"
_LOSSES_OF_DISTANCES = ("MseLossBackward0", "SmoothL1LossBackward0", "HuberLossBackward0")
# Operations on the difference of predictions and targets.
_DISTANCES = (*_LOSSES_OF_DISTANCES, "PowBackward0", "AbsBackward0")


@dataclass(frozen=True, slots=True)
class LossGraph:
    """What the graph of a loss shows.

    `loss_function` is a name as in `torch.nn.functional`, without `_loss`; None for a sum of several losses and for an
    expression of the user's own. `classes` is the number of classes of a cross-entropy. It is known only if the loss is
    an unscaled mean over the targets, so ln(classes) is the loss of a guess. `takes` is an operation that expects
    logits, and `gets` is the operation directly before it, "softmax" or "sigmoid". Both are None if there is no such
    pair. `all_pairs` is the shape of N predictions, (N,) or (N, 1), that broadcasting has paired with N targets of the
    other shape, so that the loss compares each prediction with each target; None if there are no such pairs. If the
    loss is an unscaled mean of distances between predictions and targets, `predictions` is the number (`node_number`)
    of the operation that made the predictions.
    """

    loss_function: str | None = None
    classes: int | None = None
    takes: str | None = None
    gets: str | None = None
    all_pairs: tuple[int, ...] | None = None
    predictions: int | None = None


def read_loss_graph(loss: Tensor) -> LossGraph:
    """Read the graph of a loss, a scalar. The result holds no reference to the graph."""
    root = loss.grad_fn
    if root is None:
        return LossGraph()
    takes, gets = _squashed_twice(root)
    return LossGraph(*_loss_function(root), takes, gets, _all_pairs(root), _predictions(root))


def reaches(loss: Tensor, parameters: Iterable[Tensor]) -> bool:
    """Whether the graph of a loss leads to one of these parameters; true if the graph is too large to tell."""
    wanted = {id(p) for p in parameters}
    nodes, seen = [loss.grad_fn], {loss.grad_fn}
    for node in nodes:
        if id(getattr(node, "variable", None)) in wanted or len(nodes) > MOST_SEARCHED:
            return True
        for before, _ in () if node is None else node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                nodes.append(before)
    return False


def node_number(output: Tensor) -> int | None:
    """The number of the operation that has computed the numbers of an output, which no other operation of this thread
    has; None without a graph.
    """
    return _number(_origin(output.grad_fn))


def last_operation(output: Tensor) -> tuple[str, int] | None:
    """The operation that an output (N, …) comes from, "softmax", "sigmoid" or one that cuts off negative numbers, such
    as "relu", and the number of classes. That number is
    the size along the dimension of the softmax, or the number of sigmoids for each sample. None if the output comes
    from another operation, or has no graph.
    """
    node = _origin(output.grad_fn)
    name = None if node is None else (_SQUASHING | _CUTTING).get(node.name())
    if node is None or name is None:
        return None
    return name, _size(node) if name == "softmax" else output.numel() // max(1, len(output))


def _loss_function(root: Any) -> tuple[str | None, int | None]:
    """The name of the loss function, and the number of classes of a cross-entropy."""
    node, scaled = root, False
    for _ in range(MOST_NODES):
        name = node.name()
        before = [n for n, _ in node.next_functions if n is not None]
        if name in _CROSS_ENTROPY:
            origin = _origin(before[0]) if before else None
            if origin is None or origin.name() != "LogSoftmaxBackward0":
                return "nll", None
            scaled = scaled or getattr(node, "_saved_reduction", None) == _SUM
            return "cross_entropy", None if scaled else _size(origin)
        if name in _LOSSES:
            return _LOSSES[name], None
        if name == "PowBackward0" and getattr(node, "_saved_exponent", None) == 2:
            return "mse", None
        if name == "AbsBackward0":
            return "l1", None
        if len(before) != 1 or not (
            name in _SAME_NUMBERS or name in _MEANS or name[:3] in ("Mul", "Div", "Sum", "Neg")
        ):
            return None, None
        scaled = scaled or name[:3] in ("Mul", "Div", "Sum", "Neg")
        node = before[0]
    return None, None


def _all_pairs(root: Any) -> tuple[int, ...] | None:
    for node in _nodes(root):
        if node.name() not in _DISTANCES:
            continue
        whole = _inner(node)
        part = None if whole is None else _one_with_graph(whole)
        if whole is None or part is None or part.name() in ("UnsqueezeBackward0", "ExpandBackward0"):
            continue  # the loop has arranged the pairs itself
        pairs, shape = _shape(whole), _shape(part)
        n = shape[0] if shape else 0
        if n > 1 and pairs == (n, n) and shape in ((n,), (n, 1)):
            return shape
    return None


def _inner(distance: Any) -> Any:
    """The operation that broadcasts predictions and targets to one shape: the subtraction, or torch's own expansion."""
    node = _one_with_graph(distance)
    if node is not None and node.name() == "SubBackward0":
        inner = _one_with_graph(node)
        return inner if inner is not None and inner.name() == "ExpandBackward0" else node
    return node if node is not None and node.name() == "ExpandBackward0" else None


def _predictions(root: Any) -> int | None:
    """The number of the operation that made the predictions of which the loss is the mean distance to the targets."""
    node = root
    if node.name() in _MEANS:
        node = _one_with_graph(node)
        if node is None or node.name() not in ("PowBackward0", "AbsBackward0"):
            return None
        exponent = getattr(node, "_saved_exponent", 2)
        node = _one_with_graph(node)
        if exponent != 2 or node is None or node.name() != "SubBackward0":
            return None
    elif node.name() not in _LOSSES_OF_DISTANCES or getattr(node, "_saved_reduction", None) != _MEAN:
        return None
    elif getattr(node, "_saved_delta", 1.0) > 1:
        return None  # Huber's loss is then larger than the distance
    return _number(_origin(_one_with_graph(node)))


def _one_with_graph(node: Any) -> Any:
    """The operation before a node, if exactly one of its operands comes from an operation; None otherwise."""
    before = [n for n, _ in node.next_functions if n is not None and not n.name().endswith("AccumulateGrad")]
    return before[0] if len(before) == 1 else None


def _number(node: Any) -> int | None:
    return None if node is None else int(node._sequence_nr())


def _shape(node: Any) -> tuple[int, ...]:
    """The shape of a node's output."""
    return tuple(node._input_metadata[0].shape)


def _nodes(root: Any) -> list[Any]:
    """The first nodes of a graph, those next to the loss first."""
    nodes, seen = [root], {root}
    for node in nodes:
        for before, _ in node.next_functions:
            if before is not None and before not in seen and len(nodes) < MOST_NODES:
                seen.add(before)
                nodes.append(before)
    return nodes


def _squashed_twice(root: Any) -> tuple[str | None, str | None]:
    for node in _nodes(root):
        if (takes := _TAKES_LOGITS.get(node.name())) is not None:
            origin = _origin(next((n for n, _ in node.next_functions if n is not None), None))
            gets = None if origin is None else _SQUASHING.get(origin.name())
            if gets in takes[1]:
                return takes[0], gets
    return None, None


def _origin(node: Any) -> Any:
    """The first node, going back from `node`, that computes new numbers."""
    for _ in range(MOST_NODES):
        if node is None or node.name() not in _SAME_NUMBERS:
            return node
        node = next((before for before, _ in node.next_functions if before is not None), None)
    return None


def _size(node: Any) -> int:
    """The size of a node's output along the dimension that the node works on; along the last dimension if there is no
    such dimension.
    """
    shape = _shape(node)
    dim = getattr(node, "_saved_dim", -1)
    # Torch shows a negative dimension as an unsigned number.
    dim = dim - 2**64 if isinstance(dim, int) and dim >= 2**63 else dim
    return int(shape[dim]) if shape and isinstance(dim, int) else 1
