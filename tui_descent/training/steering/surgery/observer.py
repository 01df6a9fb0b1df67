"""Observes the first forward pass of a user's net: which of its modules are blocks, and which activations are hidden.

It only listens. Nothing is run again, and no tensor is kept after the pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from tui_descent.instruments.module_hooks import Args, Kwargs, ModuleHooks, version
from tui_descent.instruments.net_structure import is_activation
from tui_descent.training.several_nets import whole_nets
from tui_descent.training.steering.surgery.forward_graph import ForwardGraph, node_of, nodes_of
from tui_descent.training.steering.surgery.known_functions import BOUNDED, SAMPLE, recognise
from tui_descent.training.steering.surgery.user_blocks import CONTAINERS, refuse_compiled, shape_problem
from tui_descent.training.steering.surgery.weights import NORMS

# Why an activation is left alone.
OUTPUT = "the net's output"
GATE = "a gate (it multiplies another tensor)"
UNKNOWN = "unknown function"
HAS_WEIGHTS = "an activation with weights"
UNSEEN = "perhaps a gate (no gradient passes through it)"
# Activations with bounded values, which gates and outputs need.
_BOUNDED = (nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh, nn.Softsign, nn.ReLU6)
# Elementwise modules of torch that `is_activation` does not list.
_MORE_ACTIVATIONS = (nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold)
MAX_CALLS = 4  # of a module that runs more often than this in one pass, only the first and the last calls are judged
MIN_LAYERS = 3  # a part of the net that is called from outside counts as a net of its own if it has this many layers


@dataclass(slots=True)
class Observation:
    """What the first forward pass has shown.

    `blocks` are in the order of registration; `reasons` says why other modules are not blocks. `own_skips` are the
    blocks that add their input to their output already. `left` has the activations that must not be replaced, with the
    reason. `custom` has the user's own modules that were recognised as activations, with the name of the function they
    compute.
    """

    blocks: dict[str, nn.Module] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    own_skips: set[str] = field(default_factory=set)
    left: dict[str, str] = field(default_factory=dict)
    custom: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Call:
    """A call of a module. `x` is the node of its first input, None outside the graph; `outputs` are nodes too.
    `version` counts the in-place changes of the input, and `sample` has some of the input's numbers from before the
    call.
    """

    name: str
    version: int = 0
    sample: Tensor | None = None
    x: Node | None = None
    shape: tuple[int, ...] = ()
    outputs: list[Node] = field(default_factory=list)
    is_top: bool = False


class ForwardObserver:
    """Listens to the first forward pass: call `attach` before it and `finish` after it.

    A child of an outermost `Sequential` or `ModuleList` is a block under three conditions: it has weights, it runs once
    and in the order of registration, and its output has the shape of its input. Raises `ValueError` for a net that is
    compiled or scripted.
    """

    def __init__(self, model: nn.Module) -> None:
        refuse_compiled(model)
        # The exception that was raised while observing; nothing is observed after it.
        self.error: Exception | None = None
        self._modules = dict(model.named_modules())
        self._parameters = {id(p) for p in model.parameters()}
        self._nets = whole_nets(model).keys()
        children = dict(_children(model))
        self._candidates = {n: m for n, m in children.items() if not isinstance(m, torch.jit.ScriptModule)}
        scripted = children.keys() - self._candidates.keys()
        self._found = Observation(reasons=dict.fromkeys(scripted, "it is TorchScript"))
        self._activations = {name: m for name, m in self._modules.items() if name and _may_be_activation(m)}
        self._hooks = ModuleHooks(every_pass=True)
        for name, module in self._modules.items():
            self._hooks.on_input(module, partial(self._before, name), "the observation of the net")
            self._hooks.on_output(module, partial(self._after, name), "the observation of the net")
        self._stack: list[_Call] = []  # the calls in progress
        self._calls: list[_Call] = []  # the calls that have not been judged yet
        self._recomputed: list[_Call] = []  # calls of checkpointed modules, repeated by the backward pass
        self._counts: dict[str, int] = {}  # the calls of each candidate, in the order of the first calls
        self._passes: dict[str, int] = {}  # the calls of each module from outside the net
        self._top_of: dict[str, str] = {}  # the module whose call from outside the net led to this module
        self._data: list[Tensor] = []  # inputs and outputs of modules outside the graph, until the pass is judged
        self._adds_input: dict[str, bool] = {}  # for each block whose input is in the graph
        # For the other blocks: whether they add something of the same shape.
        self._adds_from_outside: dict[str, bool] = {}
        self._same_shape: set[str] = set()
        self._judged: set[str] = set()
        self._judged_nets: set[str] = set()

    def attach(self) -> None:
        """Start listening."""
        self._hooks.attach()

    def finish(self) -> Observation:
        """Stop listening. Returns what was observed."""
        self._hooks.detach()
        try:
            self._judge(self._calls)
            self._judge(self._recomputed, only_blocks=True)
        except Exception as error:  # noqa: BLE001 - the user's training must go on
            self.error = error
        self._calls, self._recomputed, self._stack, self._data = [], [], [], []
        self._judge_rest()
        found = self._found
        if self.error is not None:
            found.reasons = dict.fromkeys(self._candidates, "the first forward pass could not be observed")
        for name, module in self._candidates.items():
            try:
                refuse_compiled(module)  # the loop may have compiled the net meanwhile
            except ValueError as error:
                found.reasons[name] = str(error)
        if list(self._counts) != [name for name in self._candidates if name in self._counts]:
            for name in self._candidates:
                found.reasons.setdefault(name, "children run in another order than registered")
        for name in self._candidates:
            if name in found.reasons:
                continue
            runs, top = self._counts.get(name, 0), self._top_of.get(name, name)
            passes = self._passes.get(top, 1)
            if runs != passes:
                why = f"it runs {self._hooks.reason}" if not runs and self._hooks.reason else None
                found.reasons[name] = why or f"it runs {runs / passes:.3g} times in a pass, not once"
        found.blocks = {name: module for name, module in self._candidates.items() if name not in found.reasons}
        found.own_skips = {name for name in found.blocks if self._has_own_skip(name)}
        return found

    def _before(self, name: str, args: Args) -> None:
        if name in self._nets:
            self._stack.clear()  # an earlier call raised
        trains = bool(self._stack) or torch.is_grad_enabled()  # otherwise it is a validation pass
        if self.error is not None or not trains or _in_transform():
            return
        try:
            call = _Call(name)
            if args and isinstance(args[0], Tensor):
                x = args[0]
                call.version, call.x, call.shape = version(x), node_of(x), tuple(x.shape)
                if name in self._activations and not _is_known(self._modules[name]):
                    call.sample = x.detach().flatten()[:SAMPLE].clone()
            self._stack.append(call)
        except Exception as error:  # noqa: BLE001
            self.error = error

    def _after(self, name: str, args: Args, kwargs: Kwargs, output: Any) -> None:
        if self.error is not None or _in_transform():
            return
        try:
            while self._stack and self._stack[-1].name != name:
                self._stack.pop()  # a call that raised
            if self._stack:
                self._record(self._stack.pop(), args, output)
        except Exception as error:  # noqa: BLE001
            self.error = error

    def _record(self, call: _Call, args: Args, output: Any) -> None:
        name, call.is_top = call.name, not self._stack
        top = name if call.is_top else self._stack[0].name
        returned = list(tensors_in(output))
        call.outputs = list(nodes_of(returned))
        if torch._C._current_graph_task_id() != -1:  # a backward pass is in progress
            self._recomputed.append(call)
            return
        x = args[0] if args and isinstance(args[0], Tensor) else None
        if call.is_top:
            self._passes[name] = self._passes.get(name, 0) + 1
        if name in self._candidates:
            self._counts[name] = self._counts.get(name, 0) + 1
            self._top_of[name] = top
            self._check_block(call, x, output)
        if call.sample is not None and isinstance(output, Tensor) and call.shape == tuple(output.shape):
            self._recognise(call, output, is_same=output is x)
        if top in self._judged_nets:
            return
        self._calls.append(call)
        outside = (tensor for tensor in (*tensors_in(args), *returned) if not tensor.requires_grad)
        self._data += [tensor for tensor in outside if tensor.is_floating_point()]
        if call.is_top and name in self._nets and call.outputs:
            self._judged_nets.add(name)
            calls, self._calls = self._calls, []
            self._judge(calls)
            self._data.clear()

    def _check_block(self, call: _Call, x: Tensor | None, output: Any) -> None:
        reasons, name = self._found.reasons, call.name
        if x is None or not isinstance(output, Tensor) or x.shape != output.shape:
            reasons[name] = shape_problem(x, output)
        elif isinstance(self._modules[name], NORMS):
            reasons[name] = "it is a norm layer"
        elif not x.is_floating_point():
            reasons[name] = "its input is not floating point"
        elif version(x) != call.version:
            reasons[name] = "it changes its input in place"

    def _recognise(self, call: _Call, output: Tensor, *, is_same: bool) -> None:
        assert call.sample is not None
        function = recognise(call.sample, output.detach().flatten()[:SAMPLE])
        if function is not None and function != "identity":
            self._found.custom[call.name] = function
        elif function is None and not is_same:
            self._same_shape.add(call.name)

    def _judge(self, calls: list[_Call], *, only_blocks: bool = False) -> None:
        """Judge the activations and blocks among these calls, which make up one pass."""
        outputs = [node for call in calls if call.is_top for node in call.outputs]
        # If the net returned an unknown kind of object, the outputs of all calls count.
        outputs = outputs or [node for call in calls for node in call.outputs]
        if not outputs:
            return
        computed = {node for call in calls if ".parametrizations." not in call.name for node in call.outputs}
        data = [tensor for tensor in self._data if tensor.layout == torch.strided]
        graph = ForwardGraph(outputs, self._parameters, computed, data)
        by_name: dict[str, list[_Call]] = {}
        for call in calls:
            by_name.setdefault(call.name, []).append(call)
        self._find_own_skips(graph, by_name)
        if only_blocks:
            return
        nets = [call.outputs for call in calls if call.is_top and self._is_net(call.name)]
        for name in self._activations.keys() & by_name.keys() - self._judged:
            nodes = [node for call in by_name[name] for node in call.outputs if node in graph]
            if len(nodes) == len(by_name[name]):  # otherwise a part of it is outside the graph
                self._judged.add(name)
                self._leave(name, self._reason(name, graph, list(dict.fromkeys(nodes)), nets))

    def _reason(self, name: str, graph: ForwardGraph, nodes: list[Node], nets: list[list[Node]]) -> str | None:
        """Why an activation with these outputs is left alone; None if it is hidden."""
        some = dict.fromkeys((*nodes[:MAX_CALLS], *nodes[-MAX_CALLS:]))
        if any(not graph.is_before_layer(node) or graph.returns(node, net) for node in some for net in nets or [[]]):
            return OUTPUT
        if any(graph.is_gate(node, bounded=self._is_bounded(name)) for node in some):
            return GATE
        return None

    def _judge_rest(self) -> None:
        """Judge the activations outside the graph, for example in a frozen part. An activation that cannot be a gate
        counts as hidden.
        """
        for name in self._activations.keys() - self._judged:
            self._leave(name, UNSEEN if self._is_bounded(name) else None)
        self._found.left = {name: self._found.left[name] for name in self._modules if name in self._found.left}
        for name in self._found.custom:  # a recognised module is replaced as a whole
            for inner in [inner for inner in self._found.left if inner.startswith(f"{name}.")]:
                del self._found.left[inner]

    def _leave(self, name: str, reason: str | None) -> None:
        """Record why an activation is left alone, unless it is hidden or is not an activation at all."""
        module = self._activations[name]
        if not _is_known(module) and name not in self._found.custom:
            reason = UNKNOWN if name in self._same_shape else None
        elif reason is None and any(True for _ in module.parameters()):
            reason = HAS_WEIGHTS
        if reason is not None:
            self._found.left[name] = reason

    def _find_own_skips(self, graph: ForwardGraph, by_name: dict[str, list[_Call]]) -> None:
        calls = {name: by_name[name][0] for name in self._candidates if name in by_name and by_name[name][0].outputs}
        ends = {call.outputs[0] for call in calls.values()}
        for name, call in calls.items():
            output = call.outputs[0]
            if call.x is None:
                self._adds_from_outside.setdefault(name, graph.adds_from_outside(output, call.shape))
            else:
                self._adds_input.setdefault(name, graph.adds_input(call.x, output, ends - {output}))

    def _has_own_skip(self, name: str) -> bool:
        """Whether a block adds its input. If the input is outside the graph, the other blocks of its class decide."""
        if name in self._adds_input:
            return self._adds_input[name]
        kind = type(self._modules[name])
        others = [adds for other, adds in self._adds_input.items() if type(self._modules[other]) is kind]
        if others and kind is not nn.Sequential:
            return any(others)
        return self._adds_from_outside.get(name, False)

    def _is_net(self, name: str) -> bool:
        layers = sum(any(True for _ in m.parameters(recurse=False)) for m in self._modules[name].modules())
        return name in self._nets or layers >= MIN_LAYERS

    def _is_bounded(self, name: str) -> bool:
        return isinstance(self._activations[name], _BOUNDED) or self._found.custom.get(name) in BOUNDED


def tensors_in(value: object, depth: int = 4) -> Iterator[Tensor]:
    """The tensors in nested containers, dataclasses and other objects, as nets return them."""
    if isinstance(value, Tensor):
        yield value
    elif depth and not isinstance(value, str | bytes | nn.Module | type):
        if isinstance(value, Mapping):
            parts: Iterable[object] = value.values()
        elif isinstance(value, list | tuple | set):
            parts = value
        else:
            parts, depth = getattr(value, "__dict__", {}).values(), 1
        for part in parts:
            yield from tensors_in(part, depth - 1)


def _is_known(module: nn.Module) -> bool:
    return is_activation(module) or isinstance(module, _MORE_ACTIVATIONS)


def _may_be_activation(module: nn.Module) -> bool:
    """Whether a module is an activation of torch, or may be a user's own: one without weights and buffers."""
    if isinstance(module, nn.Identity):
        return False
    if _is_known(module):
        return True
    own = not type(module).__module__.startswith("torch.") and not isinstance(module, torch.jit.ScriptModule)
    return own and not any(True for _ in (*module.parameters(), *module.buffers()))


def _children(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    in_container = isinstance(model, CONTAINERS)
    for name, child in model.named_children():
        if not in_container:
            yield from _children(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            yield f"{prefix}{name}", child


def _in_transform() -> bool:
    """Whether a transform of `torch.func` or a trace of `torch.jit` is running. Its tensors are not the real ones."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return bool(torch._C._get_tracing_state())
