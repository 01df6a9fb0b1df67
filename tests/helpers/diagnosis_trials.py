"""Trains many copies of a net as one batch. They may differ in weights, rate, optimizer, batches and structure.

The weights of copies with the same structure are stacked, so that a step of all of them is one batched product a layer.
Up to rounding the losses are those of training each copy alone (`tests/telemetry/diagnosis/test_diagnosis_trials.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.training.setup.build import Setup
from tui_descent.training.setup.nets.block import Block
from tui_descent.training.setup.nets.mlp import Mlp
from tui_descent.training.steering import surgery

LOST = 1e12  # a loss beyond it has diverged
SWEEP = 40  # how often, in steps, diverged copies are removed from their stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A copy of a net to train, and its transitions under way."""

    setup: Setup
    transitions: Sequence[surgery.Transition] = ()


def train_all(trials: Sequence[Trial], steps: int) -> list[list[float]]:
    """Each trial's losses. They end with NaN where the loss is not finite or beyond `LOST`."""
    stacks: dict[tuple[object, ...], list[int]] = {}
    for n, trial in enumerate(trials):
        stacks.setdefault(_parts(trial), []).append(n)
    losses: dict[int, list[float]] = {}
    for members in stacks.values():
        losses |= zip(members, _Stack([trials[n] for n in members]).train(steps), strict=True)
    return [losses[n] for n in range(len(trials))]


class _Stack:
    """K copies with the same structure: parameters (K, N), batches (K, B, features)."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._model, self._transitions = trials[0].setup.model, list(trials[0].transitions)
        assert isinstance(self._model, Mlp)
        assert all(trial.setup.loss_function is F.cross_entropy for trial in trials)
        self._shapes = {name: p.shape for name, p in self._model.named_parameters()}
        flat = torch.stack([_flat(t.setup.model.parameters()) for t in trials])  # (K, N)
        self._flat = flat.detach().requires_grad_()
        self._update = _Update([trial.setup for trial in trials])
        self._streams, self._stream = _streams(trials)
        self._members = torch.arange(len(trials))

    def train(self, steps: int) -> list[list[float]]:
        losses = torch.full((steps, len(self._members)), math.nan, dtype=self._flat.dtype)
        for step in range(steps):
            self._transitions = [t for t in self._transitions if not t.advance()]
            now = self._losses()
            losses[step, self._members] = now.detach()
            self._flat.grad = None
            now.sum().backward()
            assert self._flat.grad is not None
            with torch.no_grad():
                self._update(self._flat, self._flat.grad)
            if step % SWEEP == SWEEP - 1 and not self._keep(losses[: step + 1].abs().amax(dim=0) < LOST):
                break
        return [_until_lost(column) for column in losses.T.tolist()]

    def _losses(self) -> Tensor:
        batches = [stream.setup.batches.next() for stream in self._streams if stream.setup.batches is not None]
        x = torch.stack([x for x, _ in batches])[self._stream]  # (K, B, features)
        y = torch.stack([y for _, y in batches])[self._stream]  # (K, B)
        logits = self._forward(x)  # (K, B, classes)
        each = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
        return each.view(y.shape).mean(dim=1)

    def _forward(self, x: Tensor) -> Tensor:
        pieces = self._flat.split([shape.numel() for shape in self._shapes.values()], dim=1)
        p = {name: piece.unflatten(1, self._shapes[name]) for name, piece in zip(self._shapes, pieces, strict=True)}
        h = _linear(p, "stem", x)
        assert isinstance(self._model, Mlp)
        for n, block in enumerate(self._model.blocks):
            assert isinstance(block, Block)
            h = _block(block, p, f"blocks.{n}", h)
        return _linear(p, "head", h)

    def _keep(self, alive: Tensor) -> bool:
        """Keep only the members that have not diverged. Returns whether there are any."""
        kept = alive[self._members]
        if not kept.all():
            self._flat = self._flat.detach()[kept].requires_grad_()
            self._update.keep(kept)
            self._stream, self._members = self._stream[kept], self._members[kept]
        return bool(kept.any())


def _block(block: Block, p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """One block of every copy."""
    assert block.kind == "linear"
    assert block.out is None
    assert block.dropout is None

    def normed(h: Tensor, where: str) -> Tensor:
        return h if block.norm is None or block.where != where else _norm(block.norm, p, f"{name}.norm", h)

    h = normed(_linear(p, f"{name}.linear", normed(x, "pre")), "mid")
    h = normed(h if block.activation is None else block.activation(h), "post")
    return h if block.skip is None else block.skip.combine(x, h)


def _linear(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """(K, B, in) → (K, B, out)."""
    return torch.baddbmm(p[f"{name}.bias"].unsqueeze(1), x, p[f"{name}.weight"].transpose(1, 2))


def _norm(norm: nn.Module, p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = p[f"{name}.weight"].unsqueeze(1)
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(x, x.shape[-1:], eps=norm.eps) * weight + p[f"{name}.bias"].unsqueeze(1)
    assert isinstance(norm, nn.RMSNorm)
    return F.rms_norm(x, list(x.shape[-1:]), eps=norm.eps) * weight


class _Update:
    """The updates of all copies at once, by the formulas in the docs of `torch.optim`, without weight decay."""

    def __init__(self, setups: Sequence[Setup]) -> None:
        optimizers = [setup.optimizer for setup in setups]
        groups = [optimizer.param_groups[0] for optimizer in optimizers]
        assert all(len(o.param_groups) == 1 and not o.param_groups[0]["weight_decay"] for o in optimizers)
        self._options = groups[0]
        dtype = next(setups[0].model.parameters()).dtype
        self._lr = torch.tensor([[group["lr"]] for group in groups], dtype=dtype)  # (K, 1)
        kind = type(optimizers[0])
        rules: dict[type[torch.optim.Optimizer], tuple[tuple[str, ...], Callable[[Tensor], Tensor]]] = {
            torch.optim.SGD: (("momentum_buffer",), self._sgd),
            torch.optim.Adam: (("exp_avg", "exp_avg_sq", "step"), self._adam),
            torch.optim.AdamW: (("exp_avg", "exp_avg_sq", "step"), self._adam),
            torch.optim.RMSprop: (("square_avg",), self._rmsprop),
        }
        names, self._rule = rules[kind]
        self._state = {name: torch.stack([_state(setup, name) for setup in setups]) for name in names}

    def __call__(self, parameters: Tensor, gradient: Tensor) -> None:
        parameters.sub_(self._lr * self._rule(gradient))

    def keep(self, kept: Tensor) -> None:
        self._lr = self._lr[kept]
        self._state = {name: value[kept] for name, value in self._state.items()}

    def _sgd(self, g: Tensor) -> Tensor:
        assert not self._options["nesterov"]
        return self._state["momentum_buffer"].mul_(self._options["momentum"]).add_(g)

    def _adam(self, g: Tensor) -> Tensor:
        first, second = self._options["betas"]
        at = self._state["step"].add_(1).double()  # (K, 1)
        mean = self._state["exp_avg"].lerp_(g, 1 - first)
        square = self._state["exp_avg_sq"].mul_(second).addcmul_(g, g, value=1 - second)
        size = square.sqrt().div_((1 - second**at).sqrt().to(g)).add_(self._options["eps"])
        return mean / (1 - first**at).to(g) / size

    def _rmsprop(self, g: Tensor) -> Tensor:
        alpha = self._options["alpha"]
        square = self._state["square_avg"].mul_(alpha).addcmul_(g, g, value=1 - alpha)
        return g / square.sqrt().add_(self._options["eps"])


def _state(setup: Setup, name: str) -> Tensor:
    """The optimizer state of this name, (N,), or (1,) for its steps; zeros before the first step."""
    states = [(p, setup.optimizer.state.get(p, {}).get(name)) for p in setup.model.parameters()]
    if name == "step":
        return _flat([torch.zeros(1) if states[0][1] is None else states[0][1].float()])
    return _flat(torch.zeros_like(p) if value is None else value for p, value in states)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _streams(trials: Sequence[Trial]) -> tuple[list[Trial], Tensor]:
    """One trial for each different sequence of batches, and for each trial the index of its sequence."""
    known: dict[tuple[object, ...], int] = {}
    kept, stream = [], []
    for trial in trials:
        assert trial.setup.batches is not None
        generator, order, cursor, _ = trial.setup.batches.state()
        key = (generator.numpy().tobytes(), order.numpy().tobytes(), cursor)
        if key not in known:
            known[key] = len(known)
            kept.append(trial)
        stream.append(known[key])
    return kept, torch.tensor(stream)


def _parts(trial: Trial) -> tuple[object, ...]:
    """What must be equal for two trials to be stacked."""
    optimizer = trial.setup.optimizer
    options = {k: v for k, v in optimizer.param_groups[0].items() if k not in ("params", "lr")}
    return str(trial.setup.model), _skips(trial), len(trial.transitions), type(optimizer), str(options)


def _skips(trial: Trial) -> tuple[object, ...]:
    blocks = [m for m in trial.setup.model.modules() if isinstance(m, Block)]
    return tuple((b.where, b.skip and (b.skip.gate, b.skip.branch)) for b in blocks)


def _until_lost(losses: Sequence[float]) -> list[float]:
    lost = next((n for n, loss in enumerate(losses) if not math.isfinite(loss) or abs(loss) > LOST), None)
    return list(losses) if lost is None else [*losses[:lost], math.nan]
