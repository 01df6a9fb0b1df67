"""A two-layer net that learns a linear map, one mode after the other (Saxe, McClelland and Ganguli 2013)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tui_descent.scenario.spec import TwoLayerModel
from tui_descent.training.setup.nets import parts


class TwoLayerNet(nn.Module):
    """The loss ½‖W₂φ(W₁) - A‖² of two matrices without biases; φ is the activation.

    It is the squared error over whitened inputs. A = U·diag(s)·Vᵀ with random orthogonal U and V. The numbers s are the
    `singular_values`, and A is 0 in all other directions. Both weights begin normal with standard deviation `std`.
    """

    inputs: Tensor
    targets: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, spec: TwoLayerModel, generator: torch.Generator) -> None:
        super().__init__()
        ends, kept = spec.ends, len(spec.singular_values)
        self.first = nn.Linear(ends, spec.width, bias=False)
        self.second = nn.Linear(spec.width, ends, bias=False)
        left, right = (_orthogonal(ends, generator)[:, :kept] for _ in range(2))
        scales = torch.tensor(spec.singular_values, dtype=torch.float64)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64) * spec.std)
        self.register_buffer("inputs", torch.eye(ends, dtype=torch.float64))  # (ends samples, ends)
        self.register_buffer("targets", (left * scales @ right.T).T.contiguous())  # row n: A applied to input n
        self.register_buffer("left", left)
        self.register_buffer("right", right)
        self.singular_values = spec.singular_values
        self.activation = parts.activation(spec.activation)

    def forward(self) -> Tensor:
        """The loss, a scalar."""
        return (self._outputs() - self.targets).square().sum() / 2

    def _outputs(self) -> Tensor:
        """Row n is the output for input n, (ends, ends)."""
        outputs: Tensor = self.second(self.activation(self.first(self.inputs)))
        return outputs

    @torch.no_grad()
    def strengths(self) -> tuple[float, ...]:
        """How much of each mode is learnt: uₖᵀW₂φ(W₁)vₖ, which goes from 0 to the k-th singular value."""
        return tuple((self.left * (self._outputs().T @ self.right)).sum(dim=0).tolist())


def _orthogonal(width: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix (width, width), float64."""
    q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    signed: Tensor = q * r.diagonal().sign()
    return signed
