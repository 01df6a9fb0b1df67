"""Curvature of the loss on one fixed probe batch: both ends of the Hessian's spectrum, its share below zero, and the
curvature above which an optimizer's step grows instead of shrinking.

Symbols: H the Hessian, n its order, P the optimizer's diagonal preconditioner, λ and θ an eigenvalue and its Lanczos (Ritz)
estimate, η learning rate, β momentum, τ dampening, κ weight decay. Hessian-vector products by double backward (Pearlmutter 1994).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# Up to this order the index comes from the full Hessian: n products, n² numbers.
FULL_UP_TO = 1500
COLUMNS_AT_ONCE = 32
# An eigenvalue counts as negative below -NEGATIVE·max|λ|.
NEGATIVE = 1e-6
# Residuals are relative to |θ|, but to no less than this part of max|θ|: a λmin of 0 has no relative error.
FLOOR = 1e-2
# A warm start's random part: large enough to meet an eigenvector that is new, small enough not to delay the old ones.
NOISE = 0.1
QUADRATURES, QUADRATURE_PRODUCTS = 4, 30


class CurvatureReading(msgspec.Struct, frozen=True, kw_only=True):
    """Ends of the spectrum, of P^-½HP^-½ where preconditioned; nan when no parameter takes part or H is not finite.

    `parameters` is n, those that take part in the loss; `products` counts Hessian-vector products.
    """

    lambda_max: float
    lambda_min: float
    residual_max: float
    residual_min: float
    products: int
    negative_fraction: float | None
    how: Literal["full Hessian", "Lanczos"]
    converged: bool
    parameters: int


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """The λmax (of the preconditioned Hessian where `preconditioned`) above which steps on a quadratic grow."""

    lambda_max: float
    formula: str
    preconditioned: bool


class Curvature:
    """Measures at the parameters' present values; its own random numbers, and the last eigenvectors for the next start.

    `loss` computes the probe batch's loss anew, with the modules in eval mode (dropout would make H noise, batch norm
    would move its buffers) and on the net itself: a compiled one, or a cuDNN RNN, has no second derivative and raises
    RuntimeError. Memory: a vector of n a Lanczos step, beside the graph of one backward of a backward.
    """

    def __init__(self, loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], *, seed: int = 0) -> None:
        self._loss = loss
        self._parameters = list(parameters)
        self._generator = torch.Generator().manual_seed(seed)
        self._ends: dict[bool, tuple[list[nn.Parameter], Tensor]] = {}

    def measure(
        self,
        *,
        index: bool = False,
        preconditioner: Sequence[Tensor] | None = None,
        tolerance: float = 1e-2,
        max_products: int = 60,
    ) -> CurvatureReading:
        """Both ends until |Hv − θv| ≤ tolerance·|θ|; with `index` also the share of eigenvalues below zero.

        `preconditioner` is P^-½, a tensor a parameter, as `preconditioner()` makes it.
        """
        cuda = sorted({p.device.index for p in self._parameters if p.device.type == "cuda"})
        with (
            torch.random.fork_rng(cuda, device_type="cuda"),
            torch.enable_grad(),
            # The other attention kernels have no second derivative.
            sdpa_kernel(SDPBackend.MATH),
        ):
            hessian = _Hessian(self._loss(), self._parameters, preconditioner)
            if index and 0 < hessian.order <= FULL_UP_TO:
                return _read_full(hessian)
            return self._read_ends(hessian, tolerance, max_products, index=index)

    def _read_ends(self, hessian: _Hessian, tolerance: float, most: int, *, index: bool) -> CurvatureReading:
        if not hessian.order:
            return _unknown(hessian, "Lanczos")
        start = self._start(hessian)
        found = _lanczos(hessian, start, most=most, tolerance=tolerance)
        if found is None:
            return _unknown(hessian, "Lanczos")
        ends = found.vector(0) + found.vector(-1)
        self._ends[hessian.preconditioned] = (hessian.parameters, ends)
        residual_min, residual_max = found.residuals()
        return CurvatureReading(
            lambda_max=float(found.theta[-1]),
            lambda_min=float(found.theta[0]),
            residual_max=residual_max,
            residual_min=residual_min,
            negative_fraction=self._quadrature(hessian) if index else None,
            products=hessian.products,
            how="Lanczos",
            converged=max(residual_max, residual_min) <= tolerance,
            parameters=hessian.order,
        )

    def _start(self, hessian: _Hessian) -> Tensor:
        parameters, ends = self._ends.get(hessian.preconditioned, ([], None))
        noise = self._random(hessian)
        if ends is None or [id(p) for p in parameters] != [id(p) for p in hessian.parameters]:
            return noise
        return ends / ends.norm() + NOISE * noise

    def _random(self, hessian: _Hessian) -> Tensor:
        """A direction, uniform on the sphere; drawn on the CPU, so the same on every device."""
        drawn = torch.randn(hessian.order, generator=self._generator, dtype=torch.float64)
        return (drawn / drawn.norm()).to(hessian.like)

    def _quadrature(self, hessian: _Hessian) -> float | None:
        """Stochastic Lanczos quadrature (Ubaru 2017): the squared first entries are the Ritz values' shares of n."""
        shares = []
        for _ in range(QUADRATURES):
            found = _lanczos(hessian, self._random(hessian), most=QUADRATURE_PRODUCTS, tolerance=-1.0)
            if found is None:
                return None
            below = found.theta < -NEGATIVE * found.theta.abs().max()
            shares.append(float(found.shares[0][below].square().sum()))
        return sum(shares) / len(shares)


class _Hessian:
    """v ↦ P^-½HP^-½v on flat vectors of the parameters that take part; the gradient's graph is built once.

    Frozen parameters and those that the loss does not reach are left out.
    """

    def __init__(self, loss: Tensor, parameters: Sequence[nn.Parameter], scales: Sequence[Tensor] | None) -> None:
        assert scales is None or len(scales) == len(parameters)
        wanted = [n for n, p in enumerate(parameters) if p.requires_grad]
        grads: Sequence[Tensor | None] = []
        if wanted and loss.requires_grad:
            inputs = [parameters[n] for n in wanted]
            grads = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)
        used = [(n, g) for n, g in zip(wanted, grads, strict=False) if g is not None]
        self.parameters = [parameters[n] for n, _ in used]
        self.preconditioned = scales is not None
        self.products = 0
        self._grads = [g for _, g in used]
        self._sizes = [p.numel() for p in self.parameters]
        self.order = sum(self._sizes)
        double = any(p.dtype == torch.float64 for p in self.parameters)
        device = self.parameters[0].device if used else torch.device("cpu")
        self.like = torch.empty(0, dtype=torch.float64 if double else torch.float32, device=device)
        self._scale = None if scales is None else self._flat([scales[n] for n, _ in used])

    def __call__(self, v: Tensor) -> Tensor:
        """The product with v, shape (n,), or with each row of v, shape (b, n)."""
        rows = v.shape[:-1]
        self.products += rows.numel()
        parts = (v if self._scale is None else v * self._scale).split(self._sizes, dim=-1)
        # A gradient without a graph is constant: the loss is linear there.
        curved = [
            (g, part.reshape(rows + g.shape).to(g))
            for g, part in zip(self._grads, parts, strict=True)
            if g.requires_grad
        ]
        if not curved:
            return torch.zeros_like(v)
        outputs, vectors = zip(*curved, strict=True)
        found = torch.autograd.grad(
            outputs, self.parameters, vectors, retain_graph=True, allow_unused=True, is_grads_batched=v.dim() == 2
        )
        product = self._flat(
            [p.new_zeros(rows + p.shape) if h is None else h for h, p in zip(found, self.parameters, strict=True)], rows
        )
        return product if self._scale is None else product * self._scale

    def _flat(self, tensors: Sequence[Tensor], rows: tuple[int, ...] = ()) -> Tensor:
        flat = [t.detach().reshape(*rows, -1).to(self.like) for t in tensors]
        return torch.cat(flat, dim=-1) if flat else self.like


@dataclass(frozen=True, slots=True)
class _Krylov:
    """What k Lanczos steps know: θ ascending (k,), their eigenvectors as `shares` (k, k), the basis (k, n), the last β."""

    theta: Tensor
    shares: Tensor
    basis: Tensor
    beta: float

    def vector(self, end: int) -> Tensor:
        """The Ritz vector of the first or last θ, shape (n,)."""
        return self.shares[:, end].to(self.basis) @ self.basis

    def residuals(self) -> tuple[float, float]:
        """|Hv − θv| = |β_k s_k|, relative, at the lower and the upper end."""
        scale = float(self.theta.abs().max())
        low, high = (
            float(self.beta * self.shares[-1, end].abs() / max(abs(float(self.theta[end])), FLOOR * scale, 1e-300))
            for end in (0, -1)
        )
        return low, high


def _lanczos(product: Callable[[Tensor], Tensor], start: Tensor, *, most: int, tolerance: float) -> _Krylov | None:
    """Until both residuals are within the tolerance, or `most` products; None where a product is not finite.

    Full re-orthogonalisation, twice. When a step finds nothing new the space is invariant; a start with a random part has
    then met every eigenvalue, so the ends are exact.
    """
    n = start.numel()
    basis = start.new_empty((min(8, n), n))
    basis[0] = start / start.norm()
    alphas: list[float] = []
    betas: list[float] = []
    while True:
        k = len(alphas) + 1
        w = product(basis[k - 1])
        alpha = _dot(w, basis[k - 1])
        for _ in range(2):
            w = w - (basis[:k] @ w) @ basis[:k]
        # One read-back a product.
        a, squared = torch.stack([alpha, _dot(w, w)]).tolist()
        if not math.isfinite(a + squared):
            return None
        alphas.append(a)
        betas.append(math.sqrt(squared))
        theta, shares = torch.linalg.eigh(_tridiagonal(alphas, betas))
        exact = k == n or betas[-1] <= 10 * torch.finfo(w.dtype).eps * float(theta.abs().max())
        found = _Krylov(theta, shares, basis[:k], 0.0 if exact else betas[-1])
        if exact or k >= most or max(found.residuals()) <= tolerance:
            return found
        if k == len(basis):
            basis = torch.cat([basis, torch.empty_like(basis)])
        basis[k] = w / betas[-1]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product, summed in float64 where the device has it."""
    dtype = a.dtype if a.device.type == "mps" else torch.float64
    return torch.dot(a.to(dtype), b.to(dtype))


def _tridiagonal(alphas: Sequence[float], betas: Sequence[float]) -> Tensor:
    diagonal = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    beside = torch.diag(torch.tensor(betas[: len(alphas) - 1], dtype=torch.float64), 1) if len(alphas) > 1 else 0.0
    lower = beside.T if isinstance(beside, Tensor) else 0.0
    return diagonal + beside + lower


def _read_full(hessian: _Hessian) -> CurvatureReading:
    """Every eigenvalue of the symmetrised Hessian; the residual is what the symmetrising took away."""
    n = hessian.order
    unit = torch.eye(n, dtype=hessian.like.dtype, device=hessian.like.device)
    full = torch.cat([hessian(columns) for columns in unit.split(COLUMNS_AT_ONCE)]).cpu().double()  # (n, n)
    if not bool(full.isfinite().all()):
        return _unknown(hessian, "full Hessian")
    theta = torch.linalg.eigvalsh((full + full.T) / 2)
    scale = float(theta.abs().max())
    error = float(torch.linalg.matrix_norm(full - full.T)) / 2
    residual_min, residual_max = (error / max(abs(float(theta[end])), FLOOR * scale, 1e-300) for end in (0, -1))
    return CurvatureReading(
        lambda_max=float(theta[-1]),
        lambda_min=float(theta[0]),
        residual_max=residual_max,
        residual_min=residual_min,
        products=hessian.products,
        negative_fraction=float((theta < -NEGATIVE * scale).double().mean()),
        how="full Hessian",
        converged=True,
        parameters=n,
    )


def _unknown(hessian: _Hessian, how: Literal["full Hessian", "Lanczos"]) -> CurvatureReading:
    return CurvatureReading(
        lambda_max=math.nan,
        lambda_min=math.nan,
        residual_max=math.nan,
        residual_min=math.nan,
        products=hessian.products,
        negative_fraction=None,
        how=how,
        converged=False,
        parameters=hessian.order,
    )


@torch.no_grad()
def preconditioner(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> list[Tensor] | None:
    """P^-½ of the last step, so that the update is −ηP⁻¹m: P = (1−β₁ᵗ)(√v̂ + ε) for Adam (Cohen 2022, 2207.14484).

    0 where the optimizer moves nothing: a parameter without state, an entry with P = 0. None when there is no state at all
    or P is unknown for this optimizer.
    """
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop):
        return None
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    states = [optimizer.state.get(p, {}) if p in groups else {} for p in parameters]
    if not any(states):
        return None
    return [
        _inverse_root(p, s, groups[p]) if s else torch.zeros_like(p) for p, s in zip(parameters, states, strict=True)
    ]


def _inverse_root(parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    if "exp_avg_sq" in state:
        step = float(state["step"])
        first, second = (1 - float(beta) ** step for beta in group["betas"])
        squares = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        p = first * ((squares / second).sqrt() + group["eps"]) if step else torch.zeros_like(parameter)
    else:
        squares = state["square_avg"]
        if group["centered"]:
            squares = squares - state["grad_avg"].square()
        p = squares.sqrt() + group["eps"]
    return torch.where(p > 0, p.rsqrt(), 0.0)


def stability_limit(optimizer: torch.optim.Optimizer, lr: float) -> Limit | None:
    """Where −1 is a root of the step's characteristic polynomial on a quadratic. Of groups that differ in decay, the strictest.

    Heavy ball: Cohen 2021, 2103.00065. Adam, RMSprop: Cohen 2022, 2207.14484, P held still. None for another optimizer, for
    groups that differ in more than decay, for ascent, and for Adam or RMSprop with decay in the gradient (P⁻¹κ is no shift).
    """
    groups = optimizer.param_groups
    first = groups[0]
    alike = ("lr", "momentum", "dampening", "nesterov", "betas", "maximize", "decoupled_weight_decay")
    if lr <= 0 or first.get("maximize") or any(g.get(key) != first.get(key) for g in groups for key in alike):
        return None
    decay = max(float(group["weight_decay"]) for group in groups)
    kind = type(optimizer)
    if kind is torch.optim.SGD:
        value, formula = _momentum_limit(lr, first["momentum"], first["dampening"], nesterov=first["nesterov"])
        return Limit(lambda_max=value - decay, formula=formula + " − κ" * (decay > 0), preconditioned=False)
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        beta = float(first["betas"][0])
        if decay and not first["decoupled_weight_decay"]:
            return None
        formula = "2(1+β₁)/((1−β₁)η)" if not decay else "(1+β₁)(2/η − κ)/(1−β₁)"
        return Limit(lambda_max=(1 + beta) * (2 / lr - decay) / (1 - beta), formula=formula, preconditioned=True)
    if kind is torch.optim.RMSprop and not decay:
        value, formula = _momentum_limit(lr, first["momentum"], 0.0, nesterov=False)
        return Limit(lambda_max=value, formula=formula, preconditioned=True)
    return None


def _momentum_limit(lr: float, beta: float, dampening: float, *, nesterov: bool) -> tuple[float, str]:
    """As torch.optim.SGD moves: v ← βv + (1−τ)g, w ← w − η(v, or g + βv for Nesterov, where τ = 0)."""
    if not beta:
        return 2 / lr, "2/η"
    if nesterov:
        return 2 * (1 + beta) / (lr * (1 + 2 * beta)), "2(1+β)/(η(1+2β))"
    if dampening:
        return (2 * (1 + beta) / (lr * (1 - dampening)) if dampening < 1 else math.inf), "2(1+β)/(η(1−τ))"
    return 2 * (1 + beta) / lr, "2(1+β)/η"
