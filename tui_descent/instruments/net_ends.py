"""Measures the inputs and outputs of a net: whether the output depends on the sample, how large the inputs are, whether
a batch norm gets a single sample, and whether the net is in training mode.

The numbers are computed in the forward pass itself, since a later operation may change a tensor in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from tui_descent.instruments.deferred import Deferred, is_asynchronous
from tui_descent.instruments.failures import Failures
from tui_descent.instruments.loss_graph import last_operation, node_number
from tui_descent.instruments.module_hooks import Args, Kwargs, ModuleHooks, plain
from tui_descent.instruments.net_structure import WatchedLayer

PART = "the inputs and outputs of the net"
# At most this many numbers of a tensor are measured: some numbers of every sample, evenly spaced.
MOST_NUMBERS = 1 << 16
# Layers for which the scale of their input does not matter.
_ANY_SCALE = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True, slots=True)
class Output:
    """The output of a net: the rms of its numbers, and the rms of their standard deviations over the samples.
    `inputs_vary` says whether the samples of the batch differ. `last` is the operation that the output comes from, with
    the number of classes, if it is a softmax or sigmoid; `node` is the number of the operation in the graph.
    """

    rms: float
    std: float
    samples: int
    inputs_vary: bool
    last: tuple[str, int] | None = None
    node: int | None = None


@dataclass(frozen=True, slots=True)
class Mode:
    """In which mode the dropouts and batch norms of a net were in the passes of one step, by their module paths.

    `training` are those that were in training mode in a pass. `evaluating` are the others whose parent is in eval mode,
    too, and has trainable parameters: not those that the loop has put into eval mode one by one. The outermost module
    in eval mode is the value, "" for a single net. `dropouts` are the dropouts among them; `fresh` are the batch norms
    among them whose running statistics are still those of a new net.
    """

    training: frozenset[str]
    evaluating: dict[str, str]
    dropouts: frozenset[str]
    fresh: frozenset[str]


@dataclass(frozen=True, slots=True)
class Ends:
    """What was measured in one pass.

    `outputs` are by the name of the net. `input_rms` is the rms of the non-zero inputs of each net's first layer, by
    its name; 0 if all are 0. `lone_norms` are the batch norms in training mode that got a batch of one sample; None if
    no batch norm was called. `modes` are by the name of the net.
    """

    outputs: dict[str, Output] = field(default_factory=dict)
    input_rms: dict[str, float] = field(default_factory=dict)
    lone_norms: tuple[str, ...] | None = None
    modes: dict[str, Mode] = field(default_factory=dict)


@dataclass(slots=True)
class _Call:
    samples: int
    numbers: Tensor  # (3,): mean square, mean variance over the samples, how much the inputs vary
    last: tuple[str, int] | None
    node: int | None


class NetEnds:
    """Measures one training pass of the `nets` after each `attach`: the first call of each module.

    `layers` are the watched layers in forward order, each named by its module path.
    """

    def __init__(
        self, nets: Mapping[str, nn.Module], layers: Sequence[WatchedLayer], failures: Failures | None = None
    ) -> None:
        self._hooks = ModuleHooks(failures)
        self._calls: dict[str, _Call] = {}
        self._inputs: dict[str, Tensor] = {}  # (2,): sum of squares, number of non-zero inputs
        self._modes: dict[str, Mode] = {}
        self._norms: dict[str, bool] = {}  # by the name of a batch norm: whether it got one sample
        # Of the last measured pass of a net: the number of samples, and the softmax or sigmoid that it ends with.
        self.batch: int | None = None
        self.last: tuple[str, int] | None = None
        for name, net in nets.items():
            self._hooks.on_output(net, partial(self._after_net, name), PART)
            if any(_has_modes(module) for module in net.modules()):
                self._hooks.on_input(net, partial(self._before_net, name, net), PART)
            own = {id(module) for module in net.modules()}
            first = next((watched for watched in layers if id(watched.module) in own), None)
            if first is not None and not isinstance(first.module, _ANY_SCALE):
                self._hooks.on_input(first.module, partial(self._before_first, first.layer.name), PART)
            for path, module in net.named_modules(prefix=name):
                if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
                    self._hooks.on_input(module, partial(self._before_norm, path, module), PART)

    def attach(self) -> None:
        """Measure the next forward pass."""
        self._clear()
        self._hooks.attach()

    def detach(self) -> None:
        """Remove the hooks. What they have measured is kept for `read`."""
        self._hooks.detach()

    def read(self) -> Deferred[Ends]:
        """What was measured since `attach`."""
        calls, inputs, norms, modes = dict(self._calls), dict(self._inputs), dict(self._norms), dict(self._modes)
        self._clear()
        lone = None if not norms else tuple(name for name, one in norms.items() if one)

        def read(values: Sequence[float]) -> Ends:
            numbers = iter(values)
            outputs = {}
            for name, call in calls.items():
                square, variance, vary = (next(numbers) for _ in range(3))
                outputs[name] = Output(_root(square), _root(variance), call.samples, vary > 0, call.last, call.node)
            rms = {}
            for name in inputs:
                total, count = next(numbers), next(numbers)
                rms[name] = _root(total / count) if count else 0.0
            return Ends(outputs, rms, lone, modes)

        return Deferred([*(call.numbers for call in calls.values()), *inputs.values()], read)

    def _clear(self) -> None:
        self._calls.clear()
        self._inputs.clear()
        self._norms.clear()
        self._modes.clear()

    def _before_net(self, name: str, net: nn.Module, args: Args) -> None:
        mode, before = _mode(name, net), self._modes.get(name)
        if before is not None:  # a step may have several passes, of which only some train
            training = mode.training | before.training
            evaluating = {path: top for path, top in before.evaluating.items() if path not in training}
            mode = Mode(training, evaluating, before.dropouts - training, before.fresh - training)
        self._modes[name] = mode

    def _after_net(self, name: str, args: Args, kwargs: Kwargs, output: Any) -> None:
        if name in self._calls:
            return
        given, made = _batch((*args, kwargs)), _batch(output, floating=True)
        if made is None and isinstance(output, Tensor) and output.dim() == 1 and output.is_floating_point():
            made = output  # one number for each sample
        if given is None or made is None or len(given) != len(made) or not made.numel():
            return
        # While a net is exported, none of our operations may be recorded, not even switching gradients off.
        ordinary = plain(made)
        if ordinary is None or ordinary.is_complex():
            return
        self.batch, self.last = len(made), last_operation(made)
        with torch.no_grad():
            rows = _rows(ordinary)
            numbers = torch.stack(
                [(rows * rows).mean(), (rows - rows.mean(dim=0)).square().mean(), _vary(given).to(rows)]
            )
        # A single output number for each sample, as in a regression, may well be constant for a while.
        samples = len(rows) if rows.shape[1] > 1 else 1
        self._calls[name] = _Call(samples, numbers, self.last, node_number(made))

    def _before_first(self, name: str, args: Args) -> None:
        if name in self._inputs or not args or not isinstance(args[0], Tensor):
            return
        ordinary = plain(args[0])
        if ordinary is None or ordinary.is_complex() or not ordinary.numel():
            return
        with torch.no_grad():
            numbers = _rows(ordinary)
            self._inputs[name] = torch.stack([(numbers * numbers).sum(), (numbers != 0).sum().to(numbers)])

    def _before_norm(self, path: str, module: _BatchNorm, args: Args) -> None:
        if module.training and args and isinstance(args[0], Tensor) and args[0].dim() > 1:
            self._norms.setdefault(path, args[0].shape[0] == 1)


def _has_modes(module: nn.Module) -> bool:
    """Whether a module computes something else in eval mode."""
    if isinstance(module, _DropoutNd):
        return module.p > 0
    return isinstance(module, _BatchNorm) and module.track_running_stats


def _mode(name: str, net: nn.Module) -> Mode:
    modules = dict(net.named_modules(prefix=name))
    training, evaluating = set(), {}
    dropouts, fresh = set(), set()
    for path, module in modules.items():
        if not _has_modes(module):
            continue
        if module.training:
            training.add(path)
            continue
        is_frozen = isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad
        parent = path if module is net else path.rpartition(".")[0]
        if is_frozen or modules[parent].training:
            continue
        if not any(parameter.requires_grad for parameter in modules[parent].parameters()):
            continue
        top = parent
        while top != name and not modules[above := top.rpartition(".")[0]].training:
            top = above
        evaluating[path] = top
        if isinstance(module, _DropoutNd):
            dropouts.add(path)
        elif isinstance(module, _BatchNorm) and _is_fresh(module):
            fresh.add(path)
    return Mode(frozenset(training), evaluating, frozenset(dropouts), frozenset(fresh))


def _is_fresh(norm: _BatchNorm) -> bool:
    """Whether the running statistics have never been updated. On a GPU that is not read."""
    batches, mean, variance = norm.num_batches_tracked, norm.running_mean, norm.running_var
    if batches is None or mean is None or variance is None or is_asynchronous(mean.device):
        return False
    return bool(batches == 0) and bool((mean == 0).all()) and bool((variance == 1).all())


def _batch(value: object, *, floating: bool = False) -> Tensor | None:
    """The first tensor with several dimensions, or for inputs with one, in a tensor, tuple, list or dict."""
    if isinstance(value, Tensor):
        fits = value.dim() > 1 and (value.is_floating_point() or value.is_complex()) if floating else value.dim() > 0
        return value if fits else None
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    for part in parts:
        if (tensor := _batch(part, floating=floating)) is not None:
            return tensor
    return None


def _vary(inputs: Tensor) -> Tensor:
    """Whether the samples differ, as a scalar tensor; true if this cannot be determined."""
    if inputs.layout is not torch.strided or inputs.is_nested:
        return torch.ones((), dtype=torch.bool)
    rows = _some(inputs.detach())
    return (rows != rows[:1]).any()


def _some(tensor: Tensor) -> Tensor:
    """The samples as rows (N, numbers)."""
    rows = tensor.reshape(len(tensor), -1) if tensor.dim() else tensor.reshape(1, 1)
    return rows[:, :: max(1, tensor.numel() // MOST_NUMBERS)]


def _rows(tensor: Tensor) -> Tensor:
    """The samples as rows in float64, or float32 on MPS, which has no float64."""
    return _some(tensor).to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def _root(value: float) -> float:
    return math.sqrt(value) if value >= 0 else math.nan
