"""The instruments that compute the gradient of a batch a second time: local step α and gradient noise scale."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from tui_descent.instruments.deferred import Deferred

if TYPE_CHECKING:
    from collections.abc import Iterator

# The decay of the moving averages of the noise scale's numerator and denominator.
NOISE_DECAY = 0.9


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restores the random number generators and the buffers on exit. It does not restore `.grad`, so do not change
    `.grad` inside.
    """
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    buffers = [(b, b.clone()) for b in model.buffers()]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """dL/dw for each parameter, without changing `.grad`; None where the loss does not depend on it."""
    return list(torch.autograd.grad(loss, list(parameters), allow_unused=True))


def dot(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Tensor:
    """Σ a·b over all pairs of tensors, in float64, as a tensor (1,) on their device. None counts as zeros."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if not pairs:
        like = next((x for x in (*a, *b) if x is not None), None)
        return torch.zeros(1, dtype=torch.float64, device=None if like is None else like.device)
    return torch.stack([(x.double() * y.double()).sum() for x, y in pairs]).sum().reshape(1)


def local_step(slope_before: float, slope_after: float) -> float | None:
    """α = −f′(1)/f′(0), where f(s) is the loss of one batch at the fraction s of the step Δ.

    The slopes are f′(0) = g_t·Δ before the step and f′(1) = g_{t+1}·Δ after it. α = −1: the slope is the same after the
    step. α = 0: the step ends at the minimum along Δ. α = +1: it ends equally high on the other side of the valley.
    None if f′(0) is 0. Source: Schneider et al. 2021 (Cockpit), arXiv 2102.06604.
    """
    return -slope_after / slope_before if slope_before else None


class NoiseScale:
    """tr Σ / ‖G‖² from the gradients of a batch and of its halves (McCandlish et al. 2018, arXiv 1812.06162, App. A).

    G is the true gradient, Σ the covariance of the gradients of single samples, and g_B the gradient of a batch of B
    samples. With b = B/2: ‖G‖² ≈ (B·‖g_B‖² − b·‖g_b‖²)/(B − b), tr Σ ≈ (‖g_b‖² − ‖g_B‖²)/(1/b − 1/B). Estimates from
    single steps differ by a factor of two to three. So numerator and denominator are averaged over steps before they
    are divided.
    """

    def __init__(self) -> None:
        self._signal = 0.0
        self._noise = 0.0

    def add(self, whole: float, half: float, batch: int) -> None:
        """Add a step: `whole` is ‖g_B‖², `half` the mean ‖g_b‖² of both halves, `batch` the number of samples B."""
        small = batch / 2
        signal = (batch * whole - small * half) / (batch - small)
        noise = (half - whole) / (1 / small - 1 / batch)
        self._signal = NOISE_DECAY * self._signal + (1 - NOISE_DECAY) * signal
        self._noise = NOISE_DECAY * self._noise + (1 - NOISE_DECAY) * noise

    @property
    def value(self) -> float | None:
        """The noise scale, in samples; None until the averaged estimate of ‖G‖², which can be negative, is positive."""
        return self._noise / self._signal if self._signal > 0 else None


class ReplayableBatch(Protocol):
    """The batch of the current step. Its loss can be computed again."""

    def replay_forward(self) -> Tensor:
        """The loss of the batch with the current weights."""

    def loss_of_part(self, where: slice) -> Tensor | None:
        """The mean loss of the samples with the indices `where`; None for a loss without data."""

    def size(self) -> int:
        """The number of samples in the batch."""


class SameBatch:
    """Measures the tier `rare`: call `before_update` in the optimizer's pre-hook, `after_update` in its post-hook."""

    def __init__(self, model: nn.Module, batch: ReplayableBatch) -> None:
        self._model = model
        self._batch = batch
        self._parameters: list[nn.Parameter] = []
        self._noise = NoiseScale()
        self._grads: list[Tensor | None] = []
        self._weights: list[Tensor] = []
        # Results not returned yet: the squared gradient norms of a batch and of its two halves, and the batch size.
        self._squares: list[tuple[tuple[Tensor, Tensor, Tensor], int]] = []

    @torch.no_grad()
    def before_update(self) -> None:
        """Keep the gradients and weights, and compute the gradients of both halves of the batch."""
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]  # surgery may have changed them
        self._grads = [None if p.grad is None else p.grad.clone() for p in self._parameters]
        self._weights = [p.clone() for p in self._parameters]
        half = self._batch.size() // 2
        if half < 1:
            return
        with undisturbed(self._model), torch.enable_grad():
            losses = [self._batch.loss_of_part(slice(0, half)), self._batch.loss_of_part(slice(half, 2 * half))]
            first, second = (None if loss is None else gradient(loss, self._parameters) for loss in losses)
        if first is None or second is None:
            return
        whole = [None if a is None or b is None else (a + b) / 2 for a, b in zip(first, second, strict=True)]
        self._squares.append(((dot(whole, whole), dot(first, first), dot(second, second)), 2 * half))

    def after_update(self) -> Deferred[dict[str, float]]:
        """`local_step` and `noise_scale`, without those that are not known. The results of several steps must be read
        in the order of the steps.
        """
        moves = [p.detach() - w for p, w in zip(self._parameters, self._weights, strict=True)]
        with undisturbed(self._model), torch.enable_grad():
            after = gradient(self._batch.replay_forward(), self._parameters)
        columns = [dot(self._grads, moves), dot(after, moves)]
        squares, self._squares = self._squares, []
        for norms, _ in squares:
            columns += norms
        self._grads, self._weights = [], []

        def read(values: Sequence[float]) -> dict[str, float]:
            for n, (_, batch) in enumerate(squares):
                whole, first, second = values[2 + 3 * n : 5 + 3 * n]
                self._noise.add(whole, (first + second) / 2, batch)
            readings = {"local_step": local_step(values[0], values[1]), "noise_scale": self._noise.value}
            return {name: value for name, value in readings.items() if value is not None}

        return Deferred(columns, read)
