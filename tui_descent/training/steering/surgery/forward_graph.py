"""The autograd graph of one forward pass: which activations are hidden, and which blocks already add their input.

A node is an autograd `Node`, which represents the tensor that its operation computed. The graph runs from the net's
outputs back to its inputs; it ends where no gradient is needed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

# Operations that only move numbers, or that scale and shift them by constants or parameters.
_MOVES = frozenset(
    "View UnsafeView ReshapeAlias Unsqueeze Squeeze Expand Permute Transpose T Slice Select Split SplitWithSizes "  # noqa: SIM905
    "Unbind Clone ToCopy Alias AsStrided Cat Stack Repeat Index IndexSelect Gather ConstantPadNd Roll Flip CopySlices "
    "Neg Rsub Clamp MaskedFill NativeDropout FusedDropout".split()
)
_SCALES = frozenset(("Mul", "Div", "Add", "Sub"))
_SUMS = frozenset(("Add", "Sub"))
_PRODUCTS = frozenset(("Mul", "Div", "Bmm", "Mm", "Mv", "Dot", "Baddbmm", "Addcmul", "Addcdiv", "Lerp"))
# Operations that may have a parameter as operand but do not count as a layer.
_ELEMENTWISE = _MOVES | _SCALES | {"Lerp", "Addcmul", "Addcdiv", "PreluKernel", "Where", "Pow", "Maximum", "Minimum"}
# Operations that always count as layers: if their weights are frozen, these do not appear in the graph.
_LAYERS = re.compile(r"Addmm|Addbmm|Addmv|Linear|Convolution|SlowConv|Embedding|Rnn")
_NORMS = re.compile(r"LayerNorm|BatchNorm|GroupNorm|RmsNorm")


def node_of(tensor: Tensor) -> Node | None:
    """The node of a tensor; None for a tensor through which no gradient passes."""
    return get_gradient_edge(tensor).node if tensor.requires_grad else None


class ForwardGraph:
    """The graph behind `outputs`, the nodes of what a net returned.

    `parameters` are the ids of the net's parameters. `computed` are nodes known to depend on the data, such as the
    outputs of modules. `data` are tensors outside the graph, such as the net's inputs.
    """

    def __init__(
        self,
        outputs: Iterable[Node],
        parameters: Collection[int],
        computed: Collection[Node] = (),
        data: Iterable[Tensor] = (),
    ) -> None:
        self._storages = {tensor.untyped_storage().data_ptr() for tensor in data}
        self._operands: dict[Node, list[Node | None]] = {}
        self._users: dict[Node, list[Node]] = {}
        waiting = [*outputs, *computed]
        while waiting:
            node = waiting.pop()
            if node in self._operands:
                continue
            operands = [operand for operand, _ in node.next_functions]
            self._operands[node] = operands
            for operand in operands:
                if operand is not None:
                    self._users.setdefault(operand, []).append(node)
                    waiting.append(operand)
        # An operation was recorded after the operations that computed its operands.
        order = sorted(self._operands, key=_time)
        self._data: set[Node] = set()  # nodes that depend on the data, not only on parameters
        for node in order:
            if node in computed or self._reads_data(node, parameters):
                self._data.add(node)
        self._before_layer: set[Node] = set()  # nodes that a layer of the net uses later
        for node in reversed(order):
            if any(user in self._before_layer or self._is_layer(user) for user in self._users.get(node, ())):
                self._before_layer.add(node)

    def __contains__(self, node: object) -> bool:
        return node in self._operands

    def is_before_layer(self, node: Node) -> bool:
        """Whether a layer of the net uses this tensor, or anything computed from it."""
        return node in self._before_layer

    def returns(self, node: Node, outputs: Collection[Node]) -> bool:
        """Whether this tensor is one of the outputs, unchanged except for its shape and scale."""
        return any(moved in outputs for moved in self._moved(node))

    def is_gate(self, node: Node, *, bounded: bool) -> bool:
        """Whether this tensor multiplies another tensor that depends on the data. If the other tensor is computed from
        this one, as in squeeze-and-excitation, the other one is the gate, and this one is not. A product with the data
        themselves counts only for an activation that is `bounded`, like a sigmoid; for other activations the data may
        be a mask.
        """
        moved = self._moved(node)
        for one in moved:
            for user in self._users.get(one, ()):
                if _name(user) not in _PRODUCTS or self._is_layer(user):
                    continue
                for other in self._operands[user]:
                    if other is None:
                        if bounded and self._has_data_factor(user):
                            return True
                    elif other in self._data and other not in moved and not self._depends(other, node):
                        return True
        return False

    def adds_input(self, x: Node, output: Node, other_outputs: Collection[Node]) -> bool:
        """Whether the block's input `x` is added to something computed from `x`, inside the block or after the block.
        The search after the block ends at `other_outputs`, the outputs of the other blocks.
        """
        if output not in self._operands or x not in self._operands:
            return False
        moved = self._moved(x, scaled=True)
        while (normed := self._normed(x)) is not None:  # h + block(norm(h))
            x = normed
            moved |= self._moved(x, scaled=True)
        after = self._after(output, other_outputs)
        for one in moved:
            for user in self._users.get(one, ()):
                if _name(user) not in _SUMS:
                    continue
                if self._depends(output, user):  # the sum is part of the block
                    computed_from = x
                elif user in after:
                    computed_from = output
                else:
                    continue
                for other in self._operands[user]:
                    if other is not None and other not in moved and self._depends(other, computed_from):
                        return True
        return False

    def adds_from_outside(self, output: Node, shape: tuple[int, ...]) -> bool:
        """Whether a block adds something of this shape from outside the graph. This is for a block whose input is
        outside the graph, for example the data. Autograd does not keep the operands of a sum, so a constant of the same
        shape looks the same.
        """
        waiting, seen = [output], {output}
        while waiting:
            node = waiting.pop()
            operands = self._operands.get(node, [])
            is_sum = _name(node) in _SUMS and None in operands and any(operand in self._data for operand in operands)
            if is_sum and tuple(node._input_metadata[0].shape) == shape:
                return True
            for operand in operands:
                if operand is not None and operand not in seen:
                    seen.add(operand)
                    waiting.append(operand)
        return False

    def _reads_data(self, node: Node, parameters: Collection[int]) -> bool:
        if _is_leaf(node):
            return id(node.variable) not in parameters  # type: ignore[attr-defined]
        operands = self._operands[node]
        if any(operand in self._data for operand in operands):
            return True
        # The data themselves need no gradient, so they do not appear as an operand in the graph.
        return None in operands and (_LAYERS.search(_name(node)) is not None or _name(node) in ("Mm", "Bmm"))

    def _is_layer(self, node: Node) -> bool:
        name, operands = _name(node), self._operands[node]
        if _LAYERS.search(name):
            return True
        if name in _ELEMENTWISE or node not in self._data:
            return False
        if name in ("Mm", "Bmm", "Mv"):  # the product of a tensor and a weight, which may be frozen
            return any(operand is None or operand not in self._data for operand in operands)
        return any(operand is not None and operand not in self._data for operand in operands)

    def _has_data_factor(self, product: Node) -> bool:
        """Whether a factor outside the graph is part of the data. This cannot be known after the backward pass, which
        frees the factor.
        """
        for name in ("_saved_other", "_saved_self"):
            try:
                saved = getattr(product, name, None)
            except RuntimeError:
                return False
            if not isinstance(saved, Tensor) or saved.numel() <= 1:
                continue
            if saved.untyped_storage().data_ptr() in self._storages:
                return True
        return False

    def _moved(self, node: Node, *, scaled: bool = False) -> set[Node]:
        """The node and all nodes that are the same tensor except for shape, constant factors and constant terms. With
        `scaled`, the factors may also depend on the data.
        """
        found, waiting = {node}, deque([node])
        while waiting:
            for user in self._users.get(waiting.popleft(), ()):
                if user not in found and self._only_moves(user, found, scaled=scaled):
                    found.add(user)
                    waiting.append(user)
        return found

    def _only_moves(self, user: Node, moved: set[Node], *, scaled: bool) -> bool:
        name = _name(user)
        if name in _MOVES or name.startswith("Upsample"):
            return True
        if name not in _SCALES:
            return False
        if scaled and name == "Mul":
            return True
        return all(o is None or o in moved or o not in self._data for o in self._operands[user])

    def _depends(self, node: Node, on: Node) -> bool:
        """Whether `node` was computed from `on`. Nodes older than `on` are not searched."""
        oldest, waiting, seen = _time(on), [node], {node}
        while waiting:
            node = waiting.pop()
            if node is on:
                return True
            for operand in self._operands.get(node, ()):
                if operand is not None and operand not in seen and _time(operand) >= oldest:
                    seen.add(operand)
                    waiting.append(operand)
        return False

    def _normed(self, node: Node) -> Node | None:
        """The input of the norm layer whose output is `node`. None if `node` is another operation, or if the input is
        outside the graph.
        """
        operands = self._operands.get(node, [])
        if _NORMS.search(_name(node)):
            return operands[0]
        return self._normed(operands[0]) if _name(node) in _MOVES and len(operands) == 1 and operands[0] else None

    def _after(self, node: Node, until: Collection[Node]) -> set[Node]:
        found, waiting = {node}, [node]
        while waiting:
            for user in self._users.get(waiting.pop(), ()):
                if user not in found:
                    found.add(user)
                    if user not in until:
                        waiting.append(user)
        return found


def nodes_of(tensors: Iterable[Tensor]) -> Iterator[Node]:
    """The nodes of those tensors through which a gradient passes."""
    for tensor in tensors:
        if (node := node_of(tensor)) is not None:
            yield node


def _name(node: Node) -> str:
    return re.sub(r"Backward\d*$", "", node.name())


def _time(node: Node) -> int:
    """When the operation was recorded. Leaves, which have no operation, come first."""
    return -1 if _is_leaf(node) else node._sequence_nr()


def _is_leaf(node: Node) -> bool:
    return node.name().endswith("AccumulateGrad")
