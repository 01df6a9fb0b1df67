"""Calibrates new norm layers: fits their γ and β so that the net's outputs on a batch change as little as possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tui_descent.instruments.same_batch import undisturbed
from tui_descent.training.setup.nets import parts
from tui_descent.training.setup.nets.block import Block, Where

# Returns the net's outputs on a batch, and their loss.
Probe = Callable[[], tuple[Tensor, Tensor]]

# L-BFGS stops when the loss is at most LOSS_TOLERANCE above the loss before the change, or after MAX_ROUNDS.
LOSS_TOLERANCE, STEPS_PER_ROUND, MAX_ROUNDS = 0.05, 5, 16


class Calibration:
    """Records, before norm layers are added, the activations at the place of each one, and the net's outputs and loss.

    `fit`, called after they were added, uses these to fit the norm layers.
    """

    def __init__(self, model: nn.Module, blocks: Mapping[str, Block], where: Where, probe: Probe) -> None:
        self._model, self._blocks, self._probe = model, dict(blocks), probe
        self._activations: dict[str, Tensor] = {}
        handles = []
        for name, block in blocks.items():
            module, at_input = _place(block, where)
            if at_input:
                handles.append(module.register_forward_pre_hook(partial(_keep_input, self._activations, name)))
            else:
                handles.append(module.register_forward_hook(partial(_keep_output, self._activations, name)))
        with torch.no_grad():
            self._outputs, self._loss = self._run()
        for handle in handles:
            handle.remove()

    def fit(self) -> None:
        """Set γ and β of the norm layers that the blocks have now: one block after another, then all together.

        First, in one forward pass, each norm layer is fitted by least squares to the recorded activation at its place.
        So it also corrects what the norm layers before it could not fit. A norm layer removes the scale of each sample,
        which γ and β cannot restore, since they are the same for all samples. If the loss is still too high because of
        this, L-BFGS then minimises the squared difference of the net's outputs over γ and β of all norm layers.
        """
        norms = {name: block.norm for name, block in self._blocks.items() if block.norm is not None}
        handles = [
            norm.register_forward_hook(partial(_fit_one, self._activations[name])) for name, norm in norms.items()
        ]
        with torch.no_grad():
            self._run()
        for handle in handles:
            handle.remove()
        with undisturbed(self._model):
            self._refine([p for norm in norms.values() for p in norm.parameters()])

    def _refine(self, weights: Sequence[nn.Parameter]) -> None:
        spread = (self._outputs - self._outputs.mean(dim=0)).square().mean()
        if not (bool(spread > 0) and bool(self._loss.isfinite())):
            return  # constant outputs or a non-finite loss: nothing to preserve
        optimizer = torch.optim.LBFGS(weights, max_iter=STEPS_PER_ROUND, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            outputs, _ = self._probe()
            difference = (outputs - self._outputs).square().mean() / spread
            grads = torch.autograd.grad(difference, list(weights))
            for weight, grad in zip(weights, grads, strict=True):
                weight.grad = grad
            return difference.detach()

        best_loss, best_weights = self._current_loss(), [weight.detach().clone() for weight in weights]
        for _ in range(MAX_ROUNDS):
            if best_loss <= self._loss + LOSS_TOLERANCE:
                break
            with torch.enable_grad():
                optimizer.step(closure)  # type: ignore[no-untyped-call]
            # The loss may rise at first, although the difference of the outputs falls. The best weights are kept.
            if (loss := self._current_loss()) < best_loss:
                best_loss, best_weights = loss, [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for weight, value in zip(weights, best_weights, strict=True):
                weight.copy_(value)
                weight.grad = None

    def _current_loss(self) -> Tensor:
        with torch.no_grad():
            return self._probe()[1].detach()

    def _run(self) -> tuple[Tensor, Tensor]:
        """Outputs and loss of one forward pass. Random number generators and buffers are left unchanged."""
        with undisturbed(self._model):
            outputs, loss = self._probe()
        return outputs.clone(), loss


def _place(block: Block, where: Where) -> tuple[nn.Module, bool]:
    """Where the norm layer is placed: a module, and True for its input or False for its output."""
    if where == "pre":
        return block.core, True
    if where == "mid":
        return (block.activation, True) if block.activation is not None else (block.core, False)
    if block.norm_after_skip:
        return block, False
    return [m for m in (block.core, block.activation, block.out, block.norm) if m is not None][-1], False


def _fit_one(target: Tensor, norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Fit one norm layer by least squares: γ = cov(x̂, h)/var(x̂), β = mean h − γ·mean x̂; without β, γ = Σx̂h/Σx̂².

    x̂ is the output of the new norm layer, which still has γ = 1 and β = 0. h is the target, of the same shape. Returns
    the output after the fit.
    """
    axis = 1 if isinstance(norm, parts.ChannelNorm | parts.ChannelRMSNorm) else -1
    x, h = (t.double().movedim(axis, -1).flatten(0, -2) for t in (output, target))  # (samples, features)
    weight, bias = norm.weight, getattr(norm, "bias", None)
    assert isinstance(weight, nn.Parameter)
    x_mean, h_mean = (x.mean(dim=0), h.mean(dim=0)) if isinstance(bias, nn.Parameter) else (0.0, 0.0)
    spread = (x - x_mean).square().sum(dim=0)
    gamma = ((x - x_mean) * (h - h_mean)).sum(dim=0) / spread.clamp_min(torch.finfo(torch.float32).tiny)
    weight.copy_(gamma)
    if isinstance(bias, nn.Parameter):
        bias.copy_(h_mean - gamma * x_mean)
    fitted: Tensor = norm.forward(args[0])
    return fitted


def _keep_input(activations: dict[str, Tensor], name: str, module: object, args: tuple[Any, ...]) -> None:
    activations[name] = args[0].detach().clone()


def _keep_output(activations: dict[str, Tensor], name: str, module: object, args: object, output: Tensor) -> None:
    activations[name] = output.detach().clone()
