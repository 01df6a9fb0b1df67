"""The pre-activations of one layer, for the activation lens: counted between two steps while a client watches."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from tui_descent.instruments.failures import Failures
from tui_descent.instruments.forward_order import ForwardOrder
from tui_descent.instruments.module_hooks import Args, ModuleHooks, has_compiled, plain, why_not_plain
from tui_descent.instruments.net_structure import NetStructure, structure
from tui_descent.instruments.same_batch import undisturbed
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import LensTaken
from tui_descent.protocol.lens import BINS, ActivationPart, Histogram
from tui_descent.training.progress import Progress
from tui_descent.training.setup.build import Setup

PART = "the activation lens"
MOST_VALUES = 1 << 16  # of more values only every n-th is counted
# The histogram's limit is a power of two, so its bins are exact. It shrinks when less than 1/SHRINKS of it is needed.
LEAST_LIMIT, MOST_LIMIT, SHRINKS = 4.0, 2.0**20, 4.0
DEVIATIONS = 4.0  # the limit is at least this many standard deviations from the mean
NO_MODULES = "this net has no activation modules; functions such as F.relu cannot be seen"
NO_ACTIVATION = "no activation module follows this layer"
NOT_CALLED = "the activation was not called in the last step"
NOT_CALLED_OR_COMPILED = "the activation was not called in the last step, or torch.compile has compiled it"

_NAMES: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {  # the name, and the attributes that are its parameters
    nn.ReLU: ("relu", ()),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.GELU: ("gelu", ()),
    nn.SiLU: ("silu", ()),
    nn.Sigmoid: ("sigmoid", ()),
    nn.Tanh: ("tanh", ()),
    nn.ELU: ("elu", ("alpha",)),
    nn.Softplus: ("softplus", ("beta", "threshold")),
    nn.Identity: ("identity", ()),
    nn.ReLU6: ("relu6", ()),
    nn.Hardswish: ("hardswish", ()),
    nn.Hardsigmoid: ("hardsigmoid", ()),
    nn.Mish: ("mish", ()),
    nn.SELU: ("selu", ()),
    nn.CELU: ("celu", ("alpha",)),
    nn.Softsign: ("softsign", ()),
    nn.LogSigmoid: ("logsigmoid", ()),
}


class LensProbe:
    """Counts the inputs of the activations that clients watch, at most five times a second.

    In a scenario run the first training samples are evaluated, without a change of the run. In a user loop, without a
    `setup`, the inputs are copied in the next training pass; torch's global hooks are registered for that step only.
    """

    def __init__(
        self,
        model: nn.Module,
        order: ForwardOrder,
        sampler: Sampler,
        failures: Failures,
        setup: Setup | None,
    ) -> None:
        self._model, self._order, self._failures = model, order, failures
        self._evaluate = None if setup is None else setup.evaluate_few
        self._schedule, self._sampler = sampler.lens, sampler
        self._asked: dict[int, str] = {}  # the name of the layer, by client
        self._requests = 0
        self._last: tuple[int, ...] | None = None  # the state in which inputs were counted last
        self._limits: dict[str, float] = {}  # by the asked layer
        self._hooks: ModuleHooks | None = None  # while a training pass is awaited
        self._targets: dict[str, tuple[str, nn.Module | None, str]] = {}  # by the asked layer: as `_target` returns it
        self._kept: dict[int, tuple[Tensor, int]] = {}  # inputs by the module's id, and the number of all values
        self._took_s = 0.0
        self._reasons: dict[int, str] = {}

    def set_watching(self, client: int, *, on: bool, layer: str) -> str:
        """Add or remove a client that watches, and return the reply. An empty `layer` is the first one with an
        activation. Raises `ValueError` if counting was switched off, because it failed.
        """
        self._asked.pop(client, None)
        if on and PART in self._failures:
            raise ValueError(f"{PART} was switched off, because it failed")
        if on:
            self._asked[client] = layer
            self._requests += 1
        self._limits = {asked: limit for asked, limit in self._limits.items() if asked in self._asked.values()}
        if not self._asked:
            self.stop()
        return "pre-activations are counted" if self._asked else "pre-activations are no longer counted"

    @property
    def evaluates(self) -> bool:
        """Whether samples are evaluated, so `start` has copied everything."""
        return self._evaluate is not None

    @property
    def awaits_pass(self) -> bool:
        """Whether the inputs of the current training pass are copied."""
        return self._hooks is not None

    def due(self, progress: Progress, *, paused: bool) -> bool:
        """Whether to count before the next update. The same state is never counted twice."""
        if (
            not self._asked
            or PART in self._failures
            or self._hooks is not None
            or self._last == self._subject(progress)
        ):
            return False
        if paused:
            return self._evaluate is not None
        return self._schedule.due(
            self._sampler.now_s, wait_s=self._sampler.wait_s if self._evaluate is not None else 0.0
        )

    def start(self, progress: Progress) -> None:
        """Copy the inputs from now on: in a user loop until `finish`, otherwise by evaluating samples."""
        start_s = time.thread_time()
        self._last = self._subject(progress)
        with self._failures.guard(PART):
            self._copy_inputs()
        self._took_s = time.thread_time() - start_s

    def _copy_inputs(self) -> None:
        self._hooks = hooks = ModuleHooks(self._failures, every_pass=self._evaluate is not None)
        net = structure(self._model, order=self._order.of(self._model))
        self._targets = {asked: _target(net, asked) for asked in set(self._asked.values())}
        for _, module, _ in self._targets.values():
            if module is not None and id(module) not in hooks.inputs:
                hooks.on_input(module, partial(self._keep, id(module)), PART)
        hooks.attach()
        if self._evaluate is not None:
            try:
                with undisturbed(self._model), torch.no_grad():
                    self._evaluate()
            finally:
                hooks.detach()

    def finish(self, progress: Progress, *, paid: bool) -> list[LensTaken]:
        """Stop copying, count what was copied, and return the events to send. With `paid`, the time counts for its
        share. On a GPU this waits for the device.
        """
        start_s = time.thread_time()
        reason = None if self._hooks is None else self._hooks.reason
        # Which modules a compiled graph contains is not known, only that something in this process was compiled.
        not_called = NOT_CALLED_OR_COMPILED if has_compiled() else NOT_CALLED
        if reason is not None:
            not_called = f"the activation runs {reason}"
        events: list[LensTaken] = []
        with self._failures.guard(PART):
            events = [self._event(asked, progress, not_called) for asked in self._targets]
        self.stop()
        self._schedule.took(self._took_s + time.thread_time() - start_s, self._sampler.now_s, paid=paid)
        return events

    def stop(self) -> None:
        """Remove the hooks and forget what was copied."""
        if self._hooks is not None:
            self._hooks.detach()
        self._hooks = None
        self._targets, self._kept, self._reasons = {}, {}, {}

    def _event(self, asked: str, progress: Progress, not_called: str) -> LensTaken:
        layer, module, missing = self._targets[asked]
        parts: tuple[ActivationPart, ...] = ()
        histogram = None
        if module is not None:
            parts = tuple(parts_of(module))
            kept = self._kept.get(id(module))
            missing = self._reasons.get(id(module), not_called)
            if kept is not None:
                missing = ""
                self._limits[asked] = limit = limit_for(kept[0], self._limits.get(asked))
                histogram = counted(kept[0], limit, kept[1])
        return LensTaken(
            asked=asked,
            layer=layer,
            parts=parts,
            kind="" if module is None else type(module).__name__[:40],
            histogram=histogram,
            reason=missing,
            in_training=self._evaluate is None,
            **progress.place,
        )

    @torch.no_grad()
    def _keep(self, module: int, args: Args) -> None:
        if module in self._kept:
            return
        start_s = time.thread_time()
        if not args:
            self._reasons[module] = "the activation is called with keyword arguments"
            return
        z = plain(args[0]) if isinstance(args[0], Tensor) else None
        if z is None or z.is_complex():
            self._reasons[module] = why_not_plain(args[0]) if z is None else "its numbers are complex"
            return
        self._kept[module] = some_values(z), z.numel()
        self._took_s += time.thread_time() - start_s

    def _subject(self, progress: Progress) -> tuple[int, ...]:
        return progress.segment, progress.step, progress.interventions, self._requests


def _target(net: NetStructure, asked: str) -> tuple[str, nn.Module | None, str]:
    """The layer whose activation is shown for the layer `asked`, that activation, and why there is none.

    If a layer has no activation of its own, as a norm layer, the activation of its block is used.
    """
    if not net.activations:
        return asked, None, NO_MODULES
    rows = [row for row, watched in enumerate(net.layers) if watched.layer.name == asked] if asked else []
    if asked and not rows:
        return asked, None, "this layer is no longer in the net"
    block = net.layers[rows[0]].layer.block if rows else None
    near = [a for a in net.activations if not rows or a.row == rows[0]] or [
        a for a in net.activations if block is not None and net.layers[a.row].layer.block == block
    ]
    if not near:
        return asked, None, NO_ACTIVATION
    first = [a for a in near if a.row == near[0].row]
    found = next((a for a in first if not isinstance(a.module, nn.Identity)), first[0])
    return net.layers[found.row].layer.name, found.module, ""


def parts_of(module: nn.Module) -> Iterable[ActivationPart]:
    """The functions of an activation; none if one of them is not known, or if it differs from unit to unit."""
    old, new, t = (getattr(module, name, None) for name in ("old", "new", "t"))
    if isinstance(t, float) and isinstance(old, nn.Module) and isinstance(new, nn.Module):  # a `Blend`
        blended = [
            (part, share * part.share) for of, share in ((old, 1 - t), (new, t)) if share for part in parts_of(of)
        ]
        sum_of_shares = math.fsum(share for _, share in blended)
        known = abs(sum_of_shares - 1) < 1e-6
        return [ActivationPart(name=p.name, parameters=p.parameters, share=share) for p, share in blended if known]
    if type(module) is nn.PReLU:
        slopes = module.weight.detach()
        return [ActivationPart(name="prelu", parameters=(slopes.item(),))] if slopes.numel() == 1 else []
    if type(module) not in _NAMES or "forward" in vars(module):
        return []
    name, parameters = _NAMES[type(module)]
    if name == "gelu" and getattr(module, "approximate", "none") == "tanh":
        name = "gelu_tanh"
    return [ActivationPart(name=name, parameters=tuple(float(getattr(module, p)) for p in parameters))]


def some_values(z: Tensor) -> Tensor:
    """A copy of at most `MOST_VALUES` of the values, (n,): every value, or every k-th. k shares no factor with the last
    dimension, so that all units occur.
    """
    every = -(-z.numel() // MOST_VALUES)
    while every > 1 and math.gcd(every, max(1, z.shape[-1])) > 1:
        every += 1
    return z.reshape(-1)[::every].clone()


def limit_for(z: Tensor, before: float | None) -> float:
    """The histogram's limit for the values z (n,): a power of two. The limit `before` is kept as long as it is fit."""
    z = z.double() if z.device.type != "mps" else z.float()
    finite = z[z.isfinite()]
    needed = 0.0
    if finite.numel():
        needed = abs(finite.mean().item()) + DEVIATIONS * finite.std(correction=0).item()
    if before is not None and before / SHRINKS < max(needed, LEAST_LIMIT) <= before:
        return before
    needed = min(max(needed, LEAST_LIMIT), MOST_LIMIT) if needed == needed else MOST_LIMIT
    return 2.0 ** math.ceil(math.log2(needed))


def counted(z: Tensor, limit: float, values: int) -> Histogram:
    """The histogram of the values z (n,). A value on the edge of two bins counts for the upper one."""
    z = z.double() if z.device.type != "mps" else z.float()
    bins = ((z + limit) * (BINS / (2 * limit))).floor().clamp(-1, BINS) + 1
    bins = torch.where(z.isfinite(), bins, BINS + 2).long()  # NaN and infinity have a bin of their own
    below, *inside, above, not_finite = torch.bincount(bins, minlength=BINS + 3).tolist()
    return Histogram(
        limit=limit, counts=array("I", inside).tobytes(), below=below, above=above, not_finite=not_finite, values=values
    )
