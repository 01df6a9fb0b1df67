"""Curvature of the loss on a probe batch: both ends of the Hessian's spectrum, its share below zero, the step's limit.

Symbols: H the Hessian, n its order, P the optimizer's diagonal preconditioner, λ an eigenvalue and θ its Lanczos (Ritz)
estimate, η learning rate, β momentum, τ dampening, κ weight decay. Lanczos, since power iteration sees one end only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import normalize

from tui_descent.protocol.curvature_reading import RESIDUAL_FLOOR, CurvatureReading, How, StabilityLimit

# λmin, λmax, their relative residuals in the same order, the negative share.
_Ends = tuple[float, float, float, float, float | None]
UNKNOWN: _Ends = (math.nan, math.nan, math.nan, math.nan, None)
# Up to this order the negative share comes from the full Hessian: n products, n² numbers.
FULL_UP_TO, COLUMNS_AT_ONCE = 1500, 32
# An eigenvalue is negative below -this·max|λ|. Nearer to 0, where most of a net's are, 30 Lanczos steps cannot tell.
NEGATIVE: dict[How, float] = {"full Hessian": 1e-6, "Lanczos": 1e-2}
QUADRATURES, QUADRATURE_PRODUCTS = 2, 30
# The random part of a warm start: large enough to meet an eigenvector that is new, too small to delay the old ones.
NOISE = 0.1
ADAPTIVE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)


class Curvature:
    """Measures where the parameters are now; keeps random numbers of its own and the last eigenvectors to start from.

    `loss` computes the probe batch's loss anew, with the modules in eval mode: dropout would make H noise, batch norm
    would move its buffers. RuntimeError without a second derivative: a compiled net, a cuDNN RNN. Memory: n a step.
    """

    def __init__(self, loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], *, seed: int = 0) -> None:
        self._loss = loss
        self._parameters = list(parameters)
        self._generator = torch.Generator().manual_seed(seed)
        self._last: dict[bool, tuple[list[int], Tensor]] = {}

    def measure(
        self,
        *,
        index: bool = False,
        preconditioner: Sequence[Tensor] | None = None,
        tolerance: float = 1e-2,
        max_products: int = 40,
    ) -> CurvatureReading:
        """Both ends until |Hv − θv| ≤ tolerance·|θ|; θ never lies outside the spectrum, so a negative one is proof.

        `index` adds the negative share, at 60 products more or n. `preconditioner` is P^-½, from `preconditioner()`.
        """
        with _twice_differentiable(self._parameters):
            hessian = _Hessian(self._loss(), self._parameters, preconditioner)
            how: How = "full Hessian" if index and 0 < hessian.order <= FULL_UP_TO else "Lanczos"
            ends = _full(hessian) if how == "full Hessian" else self._ends(hessian, tolerance, max_products, index)
        low, high, residual_low, residual_high, fraction = ends
        return CurvatureReading(
            lambda_max=high,
            lambda_min=low,
            residual_max=residual_high,
            residual_min=residual_low,
            products=hessian.products,
            negative_fraction=fraction,
            negative_below=NEGATIVE[how],
            how=how,
            converged=fraction is not None if how == "full Hessian" else max(residual_high, residual_low) <= tolerance,
            parameters=hessian.order,
        )

    def lowest(self, *, tolerance: float = 1e-2, max_products: int = 60) -> Lowest | None:
        """The most negative curvature and where it points; None where nothing takes part or a product is not finite."""
        with _twice_differentiable(self._parameters):
            hessian = _Hessian(self._loss(), self._parameters, None)
            if not hessian.order:
                return None
            found = lanczos(hessian, self._random(hessian), most=max_products, tolerance=tolerance)
            if found is None:
                return None
            vector = normalize(found.entries[:, 0].to(found.basis) @ found.basis, dim=0)
            return Lowest(
                value=float(found.theta[0]),
                residual=found.residuals[0],
                slope=hessian.slope(vector),
                direction=hessian.by_parameter(vector, self._parameters),
                products=hessian.products,
                negative=bool(found.theta[0] < -NEGATIVE["full Hessian"] * found.theta.abs().max()),
            )

    def _ends(self, hessian: _Hessian, tolerance: float, most: int, index: bool) -> _Ends:
        """By Lanczos from the sum of the last two extreme eigenvectors, where the same parameters still take part."""
        start = self._random(hessian)
        taking_part = [id(p) for p in hessian.parameters]
        kind = hessian.scale is not None
        last, vector = self._last.get(kind, ([], start))
        if last == taking_part:
            start = normalize(vector, dim=0).to(start) + NOISE * normalize(start, dim=0)
        found = lanczos(hessian, start, most=most, tolerance=tolerance) if hessian.order else None
        if found is None:
            return UNKNOWN
        self._last[kind] = taking_part, found.entries[:, [0, -1]].sum(1).to(start) @ found.basis
        fraction = self._quadrature(hessian, float(found.theta.abs().max())) if index else None
        return float(found.theta[0]), float(found.theta[-1]), *found.residuals, fraction

    def _random(self, hessian: _Hessian) -> Tensor:
        """A uniform direction; drawn on the CPU, so the same on every device."""
        return torch.randn(hessian.order, generator=self._generator, dtype=torch.float64).to(hessian.like)

    def _quadrature(self, hessian: _Hessian, scale: float) -> float | None:
        """Stochastic Lanczos quadrature (Ubaru 2017): the squares of the first entries are the θ's shares of n.

        Averaged over the last third of the steps too: no product more, and it matters less where the θ happen to lie.
        """
        shares: list[Tensor] = []
        for _ in range(QUADRATURES):
            found = lanczos(hessian, self._random(hessian), most=QUADRATURE_PRODUCTS, tolerance=-1.0)
            if found is None:
                return None
            k = len(found.theta)
            for size in range(2 * k // 3 + 1 if not found.exact else k, k + 1):
                theta, entries = torch.linalg.eigh(found.tridiagonal[:size, :size])
                shares.append(entries[0, theta < -NEGATIVE["Lanczos"] * scale].square().sum())
        return float(torch.stack(shares).mean())


@contextmanager
def _twice_differentiable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Random numbers are as before when it is left."""
    cuda = sorted({p.device.index for p in parameters if p.device.type == "cuda"})
    # The other attention kernels have no second derivative.
    with torch.random.fork_rng(cuda, device_type="cuda"), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


class Lowest(NamedTuple):
    """The lower end: λ and its relative residual, the loss' slope along its unit eigenvector v, and v by parameter.

    None for parameters that take no part. `negative`: vᵀHv lies under 0 by more than rounding, so v is a way down
    whether λ has converged or not.
    """

    value: float
    residual: float
    slope: float
    direction: list[Tensor | None]
    products: int
    negative: bool


class _Hessian:
    """v ↦ P^-½HP^-½v on flat vectors, by double backward (Pearlmutter 1994); the gradient's graph is built once.

    Frozen parameters and those that the loss does not reach are left out.
    """

    def __init__(self, loss: Tensor, parameters: Sequence[nn.Parameter], scales: Sequence[Tensor] | None) -> None:
        assert scales is None or len(scales) == len(parameters)
        wanted = [n for n, p in enumerate(parameters) if p.requires_grad]
        grads: Sequence[Tensor | None] = [None] * len(wanted)
        if wanted and loss.requires_grad:
            grads = torch.autograd.grad(loss, [parameters[n] for n in wanted], create_graph=True, allow_unused=True)
        used = [(n, g) for n, g in zip(wanted, grads, strict=True) if g is not None]
        self.parameters = [parameters[n] for n, _ in used]
        self.products = 0
        self._grads = [g for _, g in used]
        self._sizes = [p.numel() for p in self.parameters]
        self.order = sum(self._sizes)
        wide = torch.float64 if any(p.dtype == torch.float64 for p in self.parameters) else torch.float32
        self.like = torch.empty(0, dtype=wide, device=loss.device)
        self.scale = None if scales is None else self._flat([scales[n] for n, _ in used])

    def __call__(self, v: Tensor) -> Tensor:
        """The product with v, shape (n,), or with each row of v, shape (b, n)."""
        rows = v.shape[:-1]
        self.products += rows.numel()
        parts = (v if self.scale is None else v * self.scale).split_with_sizes(self._sizes, dim=-1)
        # A gradient without a graph is constant: the loss is linear there.
        pairs = zip(self._grads, parts, strict=True)
        curved = [(g, u.reshape(rows + g.shape).to(g)) for g, u in pairs if g.requires_grad]
        if not curved:
            return torch.zeros_like(v)
        grads, vectors = zip(*curved, strict=True)
        found = torch.autograd.grad(
            grads, self.parameters, vectors, retain_graph=True, allow_unused=True, is_grads_batched=v.dim() == 2
        )
        blocks = zip(self.parameters, found, strict=True)
        product = self._flat([p.new_zeros(rows + p.shape) if h is None else h for p, h in blocks], rows)
        return product if self.scale is None else product * self.scale

    def slope(self, v: Tensor) -> float:
        """The gradient's part along v, shape (n,)."""
        return float(torch.dot(self._flat([g.detach() for g in self._grads]), v))

    def by_parameter(self, v: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """Of v the part of each parameter, in its shape, dtype and place."""
        parts = zip(self.parameters, v.split_with_sizes(self._sizes), strict=True)
        found = {id(p): part.reshape(p.shape).to(p) for p, part in parts}
        return [found.get(id(p)) for p in parameters]

    def _flat(self, tensors: Sequence[Tensor], rows: tuple[int, ...] = ()) -> Tensor:
        flat = [t.detach().reshape(*rows, -1).to(self.like) for t in tensors]
        return torch.cat(flat, dim=-1) if flat else self.like


class Krylov(NamedTuple):
    """k steps: basis (k, n), H in it (k, k), its eigenvalues θ ascending (k,) and eigenvectors (k, k), their errors."""

    basis: Tensor
    tridiagonal: Tensor
    theta: Tensor
    entries: Tensor
    residuals: tuple[float, float]
    exact: bool


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, *, most: int, tolerance: float) -> Krylov | None:
    """Until both residuals are within the tolerance, or `most` products; None where a product is not finite.

    Full re-orthogonalisation, twice. When a step finds nothing new the space is invariant: a start with a random part
    has then met every eigenvalue, and the ends are exact.
    """
    assert most >= 1
    wide = start.dtype if start.device.type == "mps" else torch.float64
    basis = start.new_empty((min(8, len(start)), len(start)))
    basis[0] = start / torch.linalg.vector_norm(start)
    tridiagonal = torch.zeros(most + 1, most + 1, dtype=torch.float64)
    for k in range(1, most + 1):
        w = product(basis[k - 1])
        alpha = torch.dot(w.to(wide), basis[k - 1].to(wide))
        w = w - (basis[:k] @ w) @ basis[:k]
        w = w - (basis[:k] @ w) @ basis[:k]
        diagonal, beta = torch.stack([alpha, torch.linalg.vector_norm(w, dtype=wide)]).tolist()  # the one read-back
        if not math.isfinite(diagonal + beta):
            return None
        tridiagonal[k - 1, k - 1] = diagonal
        theta, entries = torch.linalg.eigh(tridiagonal[:k, :k])
        rounding = torch.finfo(w.dtype).eps * float(theta.abs().max())
        exact = k == len(start) or beta <= 10 * rounding
        residuals = _relative(theta, entries[-1].abs() * (0.0 if exact else beta) + rounding)  # |Hv − θv| = |β_k s_k|
        if exact or k == most or max(residuals) <= tolerance:
            break
        tridiagonal[k - 1, k] = tridiagonal[k, k - 1] = beta
        if k == len(basis):
            basis = torch.cat([basis, torch.empty_like(basis)])
        basis[k] = w / beta
    return Krylov(basis[:k], tridiagonal[:k, :k], theta, entries, residuals, exact)


def _full(hessian: _Hessian) -> _Ends:
    """Every eigenvalue of the symmetrised Hessian; the residual is what the symmetrising took away."""
    unit = torch.eye(hessian.order, dtype=hessian.like.dtype, device=hessian.like.device)
    rows = [hessian(unit[n : n + COLUMNS_AT_ONCE]) for n in range(0, hessian.order, COLUMNS_AT_ONCE)]
    full = torch.cat(rows).cpu().double()  # (n, n)
    if not bool(full.isfinite().all()):
        return UNKNOWN
    theta = torch.linalg.eigvalsh((full + full.T) / 2)
    error = torch.linalg.matrix_norm(full - full.T) / 2
    below = theta < -NEGATIVE["full Hessian"] * theta.abs().max()
    return float(theta[0]), float(theta[-1]), *_relative(theta, error), float(below.double().mean())


def _relative(theta: Tensor, errors: Tensor) -> tuple[float, float]:
    relative = errors / theta.abs().clamp(min=RESIDUAL_FLOOR * float(theta.abs().max()) + 1e-300)
    return float(relative[0]), float(relative[-1])


@torch.no_grad()
def preconditioner(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> list[Tensor] | None:
    """P^-½ of the last step, so that the update is −ηP⁻¹m; for Adam P = (1−β₁ᵗ)(√v̂ + ε) (Cohen 2022, 2207.14484).

    0 where nothing moves: no state, or P = 0. None before the first step, and for an optimizer whose P is not known.
    """
    if type(optimizer) not in ADAPTIVE:
        return None
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    moved = {p for p, state in optimizer.state.items() if p in groups and float(state.get("step", 0))}
    roots = [_inverse_root(optimizer.state[p], groups[p]) if p in moved else torch.zeros_like(p) for p in parameters]
    return roots if moved else None


def _inverse_root(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    if "square_avg" in state:
        squares = state["square_avg"] - state["grad_avg"].square() if group["centered"] else state["square_avg"]
        p = squares.sqrt() + group["eps"]
    else:
        first, second = (1 - float(beta) ** float(state["step"]) for beta in group["betas"])
        squares = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        p = first * ((squares / second).sqrt() + group["eps"])
    return torch.where(p > 0, p.rsqrt(), 0.0)


def stability_limit(optimizer: torch.optim.Optimizer, lr: float) -> StabilityLimit | None:
    """Where −1 is a root of the step's characteristic polynomial on a quadratic; P held still, AdamW's decay left out.

    v ← βv + (1−τ)g, w ← w − ηv, or − η(g + βv) for Nesterov; Adam's τ is β₁. Heavy ball: Cohen 2021, 2103.00065; Adam:
    Cohen 2022, 2207.14484. None for another optimizer, groups that differ (of decays the largest counts), ascent,
    τ ≥ 1, and decay inside an adaptive gradient: P⁻¹κ does not shift λ evenly.
    """
    groups, first, adaptive = optimizer.param_groups, optimizer.param_groups[0], type(optimizer) in ADAPTIVE
    if lr <= 0 or not (adaptive or type(optimizer) is torch.optim.SGD) or first["maximize"]:
        return None
    decay = 0.0 if first.get("decoupled_weight_decay") else max(float(group["weight_decay"]) for group in groups)
    beta = float(first["betas"][0] if (adam := "betas" in first) else first["momentum"])
    damped = beta if adam else float(first.get("dampening", 0.0)) * bool(beta)
    differ = any(
        group | {"params": 0, "weight_decay": 0} != first | {"params": 0, "weight_decay": 0} for group in groups
    )
    if damped >= 1 or differ or (decay and adaptive):
        return None
    value, formula = 2 * (1 + beta) / (lr * (1 - damped)), "2(1+β)/η" if beta else "2/η"
    if first.get("nesterov"):
        value, formula = value / (1 + 2 * beta), "2(1+β)/(η(1+2β))"
    elif damped:
        formula = "2(1+β₁)/((1−β₁)η)" if adam else "2(1+β)/((1−τ)η)"
    return StabilityLimit(lambda_max=value - decay, formula=formula + " − κ" * bool(decay), preconditioned=adaptive)
