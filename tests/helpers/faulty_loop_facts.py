"""What really happens in a loop: losses, gradients, weights and updates of an unwatched run, measured by plain torch.

The labels of `faulty_loops` are checked against these facts, so that no label rests on the diagnosis that it judges.
Run as a script, it prints a line of facts for each loop.
"""

from __future__ import annotations

import math
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Self
from unittest import mock

import torch
from faulty_loops import LOOPS, FaultyLoop
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import optimizer as torch_optimizer
from torch.overrides import TorchFunctionMode

DISTANCES = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"}
EVERY = 10  # how often, in updates, gradients and weights are looked at


class Distances(TorchFunctionMode):
    """Looks at the losses and differences that a loop computes of outputs and targets."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.facts = facts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, both = getattr(func, "__name__", ""), args[:2]
        if len(both) == 2 and all(isinstance(one, Tensor) for one in both):
            out, target = both
            if name in DISTANCES:
                self.facts.target_rms = target.detach().square().mean().sqrt().item()
            if name in DISTANCES | {"sub", "__sub__"} and out.requires_grad and not target.requires_grad:
                self.facts.broadcasts |= out.shape != target.shape and out.numel() == target.numel()
        return func(*args, **(kwargs or {}))


class Update:
    """One update: by name of the parameter its gradient's rms, None without one, its norm before, and its change."""

    def __init__(self, number: int, rate: float) -> None:
        self.number, self.rate = number, rate
        self.grads: dict[str, float | None] = {}
        self.norms: dict[str, float] = {}
        self.changes: dict[str, float] = {}
        self.empty_rows: dict[str, float] = {}  # share of rows (units) whose gradient is exactly 0

    @property
    def matrices(self) -> list[str]:
        return [name for name in self.grads if name in self.empty_rows]


class Facts:
    """A stand-in for a run: it records what the loop does."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.updates: list[Update] = []
        self.made = 0
        self.closed: list[float] = []  # by reading: the largest share of an activation's outputs that are at a bound
        self.cleared = 0  # calls of `zero_grad`
        # Of the nets' forward passes: rms and number of samples of the input, deviation over samples by the rms.
        self.input_rms = self.output_deviation = math.nan
        self.samples = 0
        self.are_probabilities = False
        # Of the loss functions: whether outputs and targets differ in shape, and the rms of the targets.
        self.broadcasts, self.target_rms = False, math.nan
        # The share of the passes with gradients in which a batch norm or dropout was in eval mode, and what the last
        # call of `clip_grad_norm_` has left of the gradient.
        self.passes_in_eval, self.clipped_to = 0.0, 1.0
        self._passes: list[bool] = []
        self._names: dict[int, str] = {}
        self._before: dict[int, Tensor] = {}
        self._handles: list[Any] = []
        self._open = False

    def watch(self, model: object, optimizer: object) -> Self:
        nets: Mapping[str, nn.Module]
        if isinstance(model, nn.Module):
            nets = {"": model}
        else:
            items = model.items() if isinstance(model, Mapping) else enumerate(model)  # type: ignore[arg-type]
            nets = {f"{name}.": net for name, net in items}
        self.parameters = {f"{at}{name}": p for at, net in nets.items() for name, p in net.named_parameters()}
        self._names = {id(p): name for name, p in self.parameters.items()}
        several = list(optimizer.values()) if isinstance(optimizer, Mapping) else optimizer
        self.optimizers: list[Any] = several if isinstance(several, list) else [several]
        self.modules = [m for net in nets.values() for m in net.modules()]
        held = {id(p) for one in self.optimizers for group in one.param_groups for p in group["params"]}
        self.untrained = [n for n, p in self.parameters.items() if p.requires_grad and id(p) not in held]
        self.foreign = len(held - {*self._names})
        self.frozen = [n for n, p in self.parameters.items() if not p.requires_grad]
        self.nets = list(nets.values())
        self.unregistered = [
            name
            for module in self.modules
            for name, value in vars(module).items()
            if isinstance(value, list) and any(isinstance(one, nn.Module) for one in value)
        ]
        for one in self.optimizers:
            one.zero_grad = self._counted(one.zero_grad)
        for net in self.nets:
            net.zero_grad = self._counted(net.zero_grad)  # type: ignore[method-assign]
        return self

    def _counted(self, zero_grad: Callable[..., None]) -> Callable[..., None]:
        def clear(**how: Any) -> None:
            self.cleared += 1
            zero_grad(**how)

        return clear

    def __enter__(self) -> Self:
        self._handles = [
            torch_optimizer.register_optimizer_step_pre_hook(self._look),
            torch_optimizer.register_optimizer_step_post_hook(self._compare),
        ]
        self._handles += [net.register_forward_hook(self._pass) for net in self.nets]
        first = next((m for m in self.modules if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.RNNBase)), None)
        if first is not None:
            self._handles.append(first.register_forward_pre_hook(self._first_input))
        self._patched = mock.patch.object(nn.utils, "clip_grad_norm_", self._clip)
        self._patched.start()
        self._distances = Distances(self)
        self._distances.__enter__()
        for module in self.modules:
            if isinstance(module, nn.ReLU | nn.Sigmoid | nn.Tanh):
                self._handles.append(module.register_forward_hook(self._activation))
        return self

    def __exit__(self, *_: object) -> bool:
        for handle in self._handles:
            handle.remove()
        self._distances.__exit__(None, None, None)
        self._patched.stop()
        return False

    def step(self, loss: Any) -> bool:
        self.losses.append(float(loss))
        return True

    def _clip(self, parameters: Any, max_norm: float, **how: Any) -> Tensor:
        norm = clip_grad_norm_(parameters, max_norm, **how)
        self.clipped_to = max_norm / norm.item()
        return norm

    def _pass(self, net: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        modes = [m.training for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm | nn.Dropout)]
        if torch.is_grad_enabled() and modes:
            self._passes.append(not all(modes))
            self.passes_in_eval = statistics.fmean(self._passes)
        if isinstance(out, Tensor):
            last = out.detach().float()
            self.output_deviation = (last.std(0).max() / last.square().mean().sqrt().clamp(min=1e-30)).item()
            self.are_probabilities = bool(((last >= 0) & (last <= 1)).all())
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].is_floating_point():
            self.samples = len(inputs[0])

    def _first_input(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.input_rms = inputs[0].detach().float().square().mean().sqrt().item()

    def _activation(self, module: nn.Module, _: Any, out: Tensor) -> None:
        if self.made % EVERY:
            return
        match module:
            case nn.ReLU():
                share = (out.flatten(0, -2) if out.dim() == 2 else out.transpose(0, 1).flatten(1).t()).eq(0).all(0)
                self.closed.append(share.float().mean().item())
            case nn.Sigmoid():
                self.closed.append((4 * out * (1 - out) < 0.1).float().mean().item())
            case _:
                self.closed.append((1 - out * out < 0.1).float().mean().item())

    def _look(self, optimizer: Any, *_: Any) -> None:
        if optimizer not in self.optimizers:
            return
        self._open = self.made % EVERY == 0
        self.rates.append(optimizer.param_groups[0]["lr"])
        if not self._open:
            return
        self.updates.append(update := Update(self.made, self.rates[-1]))
        for name, p in self.parameters.items():
            update.grads[name] = None if p.grad is None else p.grad.float().square().mean().sqrt().item()
            update.norms[name] = p.detach().float().norm().item()
            if p.dim() > 1:
                rows = 1.0 if p.grad is None else p.grad.flatten(1).eq(0).all(1).float().mean().item()
                update.empty_rows[name] = rows
            self._before[id(p)] = p.detach().clone()

    def _compare(self, optimizer: Any, *_: Any) -> None:
        if optimizer not in self.optimizers:
            return
        self.made += 1
        if self._open:
            for name, p in self.parameters.items():
                self.updates[-1].changes[name] = (p.detach() - self._before[id(p)]).float().norm().item()

    # What the labels rest on

    @property
    def first_loss(self) -> float:
        return statistics.fmean(self.losses[:5])

    @property
    def last_loss(self) -> float:
        return statistics.fmean(self.losses[-20:])

    @property
    def fall(self) -> float:
        """By which share of its first value the loss has fallen."""
        return (self.first_loss - self.last_loss) / max(abs(self.first_loss), 1e-300)

    @property
    def not_finite(self) -> int | None:
        """The first step whose loss or gradient is not finite. Gradients are looked at in every tenth step only."""
        steps = [n for n, loss in enumerate(self.losses) if not math.isfinite(loss)]
        steps += [
            u.number for u in self.updates if not all(math.isfinite(g) for g in u.grads.values() if g is not None)
        ]
        return min(steps, default=None)

    def first_to_last(self, *, at: int = -1) -> float:
        """The gradient's rms of the first weight matrix over that of the last one."""
        update = self.updates[at]
        grads = [update.grads[name] for name in update.matrices]
        known = [g for g in grads if g is not None]
        return known[0] / known[-1] if known and known[-1] else math.nan

    def median_ratio(self) -> float:
        """Change over norm: the median over matrices and updates."""
        ratios = [u.changes[n] / max(u.norms[n], 1e-12) for u in self.updates for n in u.matrices if n in u.changes]
        return statistics.median(ratios) if ratios else math.nan

    def shrinkage(self) -> float:
        """The norm of all matrices at the end over that at the start."""
        first, last = [sum(u.norms[n] ** 2 for n in u.matrices) for u in (self.updates[0], self.updates[-1])]
        return math.sqrt(last / first) if first else math.nan

    def largest_change(self) -> float:
        """Change over norm: the largest median over matrices, of the updates looked at."""
        medians = [statistics.median(u.changes[n] / max(u.norms[n], 1e-12) for n in u.matrices) for u in self.updates]
        return max(medians)

    def decay_share(self) -> float:
        """The decay's part of the last update looked at, over the gradient's or, for AdamW, over the whole change."""
        u, group = self.updates[-1], self.optimizers[0].param_groups[0]
        decay, shares = group["weight_decay"], []
        for n in u.matrices:
            gradient = (u.grads[n] or 0.0) * math.sqrt(self.parameters[n].numel())
            whole = u.changes[n] if isinstance(self.optimizers[0], torch.optim.AdamW) else u.rate * gradient
            shares.append(u.rate * decay * u.norms[n] / max(whole, 1e-30))
        return statistics.median(shares)

    def parallel_rows(self) -> bool:
        """Whether all rows of a weight matrix but the last are multiples of each other."""
        matrices = [self.parameters[n].detach().flatten(1) for n in self.updates[-1].matrices[:-1]]
        return any(bool((torch.linalg.svdvals(m)[1:] <= 0.01 * torch.linalg.svdvals(m)[0]).all()) for m in matrices)

    @property
    def empty(self) -> float:
        """The largest share of units of a layer without any gradient, in the last update looked at."""
        return max(self.updates[-1].empty_rows.values())


def facts_of(loop: FaultyLoop) -> Facts:
    """Train a loop unwatched, with the seed that its watched runs have."""
    facts = Facts()
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about schedulers
        loop.train(facts.watch, loop.steps)
    return facts


def _is_cut(f: Facts) -> bool:
    """Whether the same weights that may change never got a gradient while others did."""
    without = [{n for n, g in u.grads.items() if g is None and f.parameters[n].requires_grad} for u in f.updates]
    return bool(without[0]) and all(one == without[0] for one in without) and len(without[0]) < len(f.updates[0].grads)


def _without_update(f: Facts) -> bool:
    late = f.updates[-3:]
    moved = max(u.changes[n] for u in late for n in u.matrices)
    return moved == 0 and min(u.rate for u in late) > 0 and all(u.grads[n] for u in late for n in u.matrices)


def _rose(f: Facts, times: float) -> bool:
    end = 100 if f.not_finite is None else f.not_finite
    known = [loss for loss in f.losses[:end] if math.isfinite(loss)]
    return bool(known) and max(known) > times * known[0]


def _is_level(f: Facts) -> bool:
    """Whether the loss is at its floor: no lower in the last fifty steps than noise explains, or tiny."""
    before, last = f.losses[-100:-50], f.losses[-50:]
    noise = statistics.stdev(last) / math.sqrt(25)
    return f.last_loss < 0.01 or statistics.fmean(before) - statistics.fmean(last) < 3 * noise


# What must be the case if a finding is to be true of a loop.
TRUTHS: dict[str, Callable[[Facts], bool]] = {
    "untrained parameters": lambda f: bool(f.untrained),
    "foreign parameters": lambda f: f.foreign > 0,
    "gradient cut": _is_cut,
    "unregistered": lambda f: bool(f.unregistered),
    "zero output": lambda f: not f.output_deviation > 0 and f.empty == 1,
    "no gradient": lambda f: all(g is None for u in f.updates for g in u.grads.values()),
    "all pairs": lambda f: f.broadcasts,
    "target scale": lambda f: not 1e-2 < f.target_rms < 1e2,
    "eval mode": lambda f: f.passes_in_eval > 0.5,
    "gradients cut": lambda f: f.clipped_to < 1e-2,
    "large momentum": lambda f: (
        max(g.get("momentum", 0.0) for g in f.optimizers[0].param_groups) > 0.99
        and max(f.losses[50:]) > 2 * min(f.losses)
    ),
    "frozen layers": lambda f: bool(f.frozen),
    "rate zero": lambda f: len(f.rates) > 20 and not any(f.rates[-20:]),
    "no update": _without_update,
    "no optimizer step": lambda f: f.made == 0,
    "every update skipped": lambda f: f.made == 0,
    "gradients not cleared": lambda f: f.cleared < 0.1 * f.made,
    "constant output": lambda f: f.output_deviation < 1e-6,
    "softmax twice": lambda f: f.are_probabilities,
    "input scale": lambda f: not 1e-2 < f.input_rms < 1e2,
    "batch norm of one sample": lambda f: f.samples == 1,
    "non-finite": lambda f: f.not_finite is not None and not _rose(f, 1.5),
    "diverged": lambda f: f.not_finite is not None and _rose(f, 10),
    "vanishing": lambda f: f.first_to_last() < 1e-4 and abs(f.fall) < 0.07,
    "exploding": lambda f: f.losses[0] > 1000 and f.last_loss > 100,
    "dead units": lambda f: f.empty > 0.9,
    "saturated": lambda f: max(f.closed[-3:]) > 0.8,
    "weights decaying": lambda f: f.shrinkage() < 0.05 or (f.decay_share() > 0.4 and f.last_loss > 0.3),
    "plateau": lambda f: abs(f.fall) < 0.06 and f.median_ratio() > 1e-4,
    "diverging": lambda f: _rose(f, 1.5) and f.last_loss > 0.8 * f.losses[0],
    "rate too large": lambda f: f.largest_change() > 0.1 and f.last_loss > 0.85 * f.losses[0] and _rose(f, 1.05),
    "equal weights": lambda f: f.parallel_rows(),
    "rate too small": lambda f: abs(f.fall) < 0.05 and f.median_ratio() < 1e-5,
    "healthy": lambda f: f.fall > 0.3,
    "converged": _is_level,
    "not clear": lambda f: True,
}


def main() -> None:
    torch.set_num_threads(1)
    names = sys.argv[1:] or list(LOOPS)
    for name in names:
        loop = LOOPS[name]
        f = facts_of(loop)
        u = f.updates
        line = f"{loop.kind:9s}{name[:52]:53s}{f.first_loss:10.3g} →{f.last_loss:10.3g} {f.fall:6.0%} upd {f.made:3d}"
        if u:
            none = sum(g is None for g in u[-1].grads.values())
            line += f" 1st/last {f.first_to_last(at=0):8.1e} {f.first_to_last():8.1e} none {none}/{len(u[-1].grads)}"
            line += f" ratio {f.median_ratio():8.1e} shrink {f.shrinkage():6.2f} empty {f.empty:4.0%}"
        closed = f.closed[-12:]
        line += f" closed {max(closed, default=0):4.0%} nan@{f.not_finite}"
        line += f" untr {len(f.untrained)} foreign {f.foreign} frozen {len(f.frozen)}"
        print(line)


if __name__ == "__main__":
    main()
