"""A fresh norm's γ and β set so that the net does on a batch what it did before, as nearly as they can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tui_descent.instruments.same_batch import undisturbed
from tui_descent.training.setup.nets import parts
from tui_descent.training.setup.nets.block import Block, Where

# The net's outputs on a batch, and their loss.
Probe = Callable[[], tuple[Tensor, Tensor]]

# A loss that has risen by no more is near enough; else up to LOOKS times so many passes bring it down.
NEAR, PASSES_A_LOOK, LOOKS = 0.05, 5, 16


class Before:
    """What stood at each place, and what the net answered, before the norms came."""

    def __init__(self, model: nn.Module, blocks: Mapping[str, Block], where: Where, probe: Probe) -> None:
        self._model, self._blocks, self._probe = model, dict(blocks), probe
        self._signals: dict[str, Tensor] = {}
        handles = []
        for name, block in blocks.items():
            module, before = _place(block, where)
            if before:
                handles.append(module.register_forward_pre_hook(partial(_keep_input, self._signals, name)))
            else:
                handles.append(module.register_forward_hook(partial(_keep_output, self._signals, name)))
        with torch.no_grad():
            self._outputs, self._loss = self._answer()
        for handle in handles:
            handle.remove()

    def fit(self) -> None:
        """Set γ and β of the norms that stand there now: block after block by least squares, then all together.

        In one pass each norm is fitted to what stood at its place, so that it also makes good what those below it could
        not. A norm takes the size of each sample away, which no γ, β of a feature gives back: where that shows in the
        loss, L-BFGS on the squared difference of the net's outputs brings the norms to make it good together.
        """
        norms = {name: block.norm for name, block in self._blocks.items() if block.norm is not None}
        handles = [norm.register_forward_hook(partial(_fit_one, self._signals[name])) for name, norm in norms.items()]
        with torch.no_grad():
            self._answer()
        for handle in handles:
            handle.remove()
        with undisturbed(self._model):
            self._refine([p for norm in norms.values() for p in norm.parameters()])

    def _refine(self, weights: Sequence[nn.Parameter]) -> None:
        spread = (self._outputs - self._outputs.mean(dim=0)).square().mean()
        if not (bool(spread > 0) and bool(self._loss.isfinite())):
            return  # nothing that could be kept
        descent = torch.optim.LBFGS(weights, max_iter=PASSES_A_LOOK, line_search_fn="strong_wolfe")

        def off() -> Tensor:
            outputs, _ = self._probe()
            difference = (outputs - self._outputs).square().mean() / spread
            grads = torch.autograd.grad(difference, list(weights))
            for weight, grad in zip(weights, grads, strict=True):
                weight.grad = grad
            return difference.detach()

        best, kept = self._now(), [weight.detach().clone() for weight in weights]
        for _ in range(LOOKS):
            if best <= self._loss + NEAR:
                break
            with torch.enable_grad():
                descent.step(off)  # type: ignore[no-untyped-call]
            # What brings the outputs nearer may raise the loss at first.
            if (loss := self._now()) < best:
                best, kept = loss, [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
                weight.grad = None

    def _now(self) -> Tensor:
        with torch.no_grad():
            return self._probe()[1].detach()

    def _answer(self) -> tuple[Tensor, Tensor]:
        """One pass that leaves random numbers and buffers alone."""
        with undisturbed(self._model):
            outputs, loss = self._probe()
        return outputs.clone(), loss


def _place(block: Block, where: Where) -> tuple[nn.Module, bool]:
    """A module at whose input (True) or output the place lies."""
    if where == "pre":
        return block.core, True
    if where == "mid":
        return (block.activation, True) if block.activation is not None else (block.core, False)
    if block.norm_after_skip:
        return block, False
    return [m for m in (block.core, block.activation, block.out, block.norm) if m is not None][-1], False


def _fit_one(target: Tensor, norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """γ = cov(x̂, h)/var(x̂), β = mean h − γ·mean x̂; without a β, γ = Σx̂h/Σx̂². Fresh norms give x̂."""
    axis = 1 if isinstance(norm, parts.ChannelNorm | parts.ChannelRMSNorm) else -1
    hat, h = (t.double().movedim(axis, -1).flatten(0, -2) for t in (output, target))  # (samples, features)
    weight, bias = norm.weight, getattr(norm, "bias", None)
    assert isinstance(weight, nn.Parameter)
    middle, aim = (hat.mean(dim=0), h.mean(dim=0)) if isinstance(bias, nn.Parameter) else (0.0, 0.0)
    spread = (hat - middle).square().sum(dim=0)
    gamma = ((hat - middle) * (h - aim)).sum(dim=0) / spread.clamp_min(torch.finfo(torch.float32).tiny)
    weight.copy_(gamma)
    if isinstance(bias, nn.Parameter):
        bias.copy_(aim - gamma * middle)
    fitted: Tensor = norm.forward(args[0])
    return fitted


def _keep_input(kept: dict[str, Tensor], name: str, module: object, args: tuple[Any, ...]) -> None:
    kept[name] = args[0].detach().clone()


def _keep_output(kept: dict[str, Tensor], name: str, module: object, args: object, output: Tensor) -> None:
    kept[name] = output.detach().clone()
