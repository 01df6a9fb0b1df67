"""Curvature of the loss on a probe batch: the extreme eigenvalues of the Hessian, its share of negative eigenvalues,
and the largest eigenvalue at which the optimizer's steps are stable.

Symbols: H is the Hessian, n the number of its rows, P the optimizer's diagonal preconditioner. λ is an eigenvalue, θ
the Ritz value that estimates λ in Lanczos iteration. η is the learning rate, β momentum, τ dampening, κ weight decay. A
product is one Hessian-vector product. Lanczos iteration is used because it finds both extreme eigenvalues; power
iteration finds only the eigenvalue of the largest magnitude.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import normalize

from tui_descent.protocol.curvature_reading import RESIDUAL_FLOOR, CurvatureReading, How, StabilityLimit

# λmin, λmax, the relative residual of each, and the share of negative eigenvalues (None if it was not measured).
_Ends = tuple[float, float, float, float, float | None]
UNKNOWN: _Ends = (math.nan, math.nan, math.nan, math.nan, None)
# With at most this many parameters, negative eigenvalues are counted in the full Hessian, which takes n products.
FULL_UP_TO, COLUMNS_AT_ONCE = 1500, 32
# An eigenvalue counts as negative if it is below −NEGATIVE·max|λ|. Most eigenvalues of a net are closer to 0 than
# that, and 30 Lanczos steps cannot determine their sign.
NEGATIVE: dict[How, float] = {"full Hessian": 1e-6, "Lanczos": 1e-2}
QUADRATURES, QUADRATURE_PRODUCTS = 2, 30
# The share of random noise in a warm start: large enough to find a new eigenvector, too small to delay convergence to
# the known ones.
NOISE = 0.1
# With fewer products the Ritz values say little about the eigenvalues.
LEAST_PRODUCTS = 4
ADAPTIVE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)


class Curvature:
    """Measures the curvature at the current parameters, starting from the eigenvectors of the last measurement.

    `loss` computes the loss of the probe batch with the modules in eval mode. In training mode dropout would add noise
    to H, and batch norm would update its buffers. The methods raise RuntimeError if the loss has no second derivative,
    as in a compiled net or a cuDNN RNN. They need memory for n numbers per Lanczos step.
    """

    def __init__(self, loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], *, seed: int = 0) -> None:
        self._loss = loss
        self._parameters = list(parameters)
        self._generator = torch.Generator().manual_seed(seed)
        # The key says whether H was preconditioned. The value has the ids of H's parameters, and the sum of H's two
        # extreme eigenvectors, (n,).
        self._last: dict[bool, tuple[list[int], Tensor]] = {}

    def measure(
        self,
        *,
        index: bool = False,
        preconditioner: Sequence[Tensor] | None = None,
        tolerance: float = 1e-2,
        max_products: int = 40,
        limit_s: float = math.inf,
    ) -> CurvatureReading:
        """Measure λmin and λmax. The iteration ends at |Hv − θv| ≤ tolerance·|θ|, or after `max_products` products.

        It also ends after `limit_s` seconds, but not before `LEAST_PRODUCTS` products, and the share is then measured
        only if the time is expected to suffice.

        A Ritz value θ never lies outside the spectrum, so a negative θ proves that an eigenvalue is negative. With
        `index` the share of negative eigenvalues is measured too (Dauphin et al. 2014, arXiv 1406.2572). With
        n ≤ `FULL_UP_TO` parameters the whole measurement costs n products; with more, the share costs 60 additional
        products. `preconditioner` is P^-½, as returned by `preconditioner()`; P^-½HP^-½ is then measured instead of H.
        All results are NaN if a product is not finite or the loss depends on no parameter.
        """
        begun_s = time.perf_counter()
        with _twice_differentiable(self._parameters):
            hessian = _Hessian(self._loss(), self._parameters, preconditioner)
            until_s = begun_s + limit_s
            how: How = "full Hessian" if index and 0 < hessian.order <= FULL_UP_TO else "Lanczos"
            if how == "full Hessian":
                ends = _full(hessian)
            else:
                ends = self._ends(hessian, tolerance, max_products, index=index, until_s=until_s)
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
        """The lowest eigenvalue and its eigenvector.

        None if the loss depends on no parameter or a product is not finite.
        """
        with _twice_differentiable(self._parameters):
            hessian = _Hessian(self._loss(), self._parameters, None)
            if not hessian.order:
                return None
            krylov = lanczos(hessian, self._random(hessian), max_products=max_products, tolerance=tolerance)
            if krylov is None:
                return None
            vector = normalize(krylov.vectors[:, 0].to(krylov.basis) @ krylov.basis, dim=0)
            return Lowest(
                value=float(krylov.theta[0]),
                residual=krylov.residuals[0],
                slope=hessian.slope(vector),
                direction=hessian.by_parameter(vector, self._parameters),
                products=hessian.products,
                negative=bool(krylov.theta[0] < -NEGATIVE["full Hessian"] * krylov.theta.abs().max()),
            )

    def _ends(self, hessian: _Hessian, tolerance: float, max_products: int, *, index: bool, until_s: float) -> _Ends:
        """The extreme eigenvalues by Lanczos iteration.

        Starts from the sum of the two extreme eigenvectors of the last measurement, if it had the same parameters.
        """
        start = self._random(hessian)
        parameters = [id(p) for p in hessian.parameters]
        preconditioned = hessian.scale is not None
        last_parameters, last_vectors = self._last.get(preconditioned, ([], start))
        if last_parameters == parameters:
            start = normalize(last_vectors, dim=0).to(start) + NOISE * normalize(start, dim=0)
        begun_s = time.perf_counter()
        if not hessian.order:
            return UNKNOWN
        krylov = lanczos(hessian, start, max_products=max_products, tolerance=tolerance, until_s=until_s)
        if krylov is None:
            return UNKNOWN
        now_s = time.perf_counter()
        product_s = (now_s - begun_s) / hessian.products
        index = index and now_s + QUADRATURES * QUADRATURE_PRODUCTS * product_s <= until_s
        self._last[preconditioned] = parameters, krylov.vectors[:, [0, -1]].sum(1).to(start) @ krylov.basis
        fraction = self._quadrature(hessian, float(krylov.theta.abs().max())) if index else None
        return float(krylov.theta[0]), float(krylov.theta[-1]), *krylov.residuals, fraction

    def _random(self, hessian: _Hessian) -> Tensor:
        """A random direction (n,), uniformly distributed. It is drawn on the CPU, so it is the same on every device."""
        return torch.randn(hessian.order, generator=self._generator, dtype=torch.float64).to(hessian.like)

    def _quadrature(self, hessian: _Hessian, scale: float) -> float | None:
        """The share of negative eigenvalues by stochastic Lanczos quadrature (Ubaru et al. 2017).

        From a random start, the squared first entry of an eigenvector of the tridiagonal matrix estimates the share of
        eigenvalues near its Ritz value θ. The estimate is averaged over the last third of the steps. This needs no
        additional products, and the result depends less on where the Ritz values happen to lie. None if a product is
        not finite. `scale` is max|θ|.
        """
        shares: list[Tensor] = []
        for _ in range(QUADRATURES):
            krylov = lanczos(hessian, self._random(hessian), max_products=QUADRATURE_PRODUCTS, tolerance=-1.0)
            if krylov is None:
                return None
            k = len(krylov.theta)
            for size in range(2 * k // 3 + 1 if not krylov.exact else k, k + 1):
                theta, vectors = torch.linalg.eigh(krylov.tridiagonal[:size, :size])
                shares.append(vectors[0, theta < -NEGATIVE["Lanczos"] * scale].square().sum())
        return float(torch.stack(shares).mean())


@contextmanager
def _twice_differentiable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Allows second derivatives, and restores the random number generators on exit."""
    cuda = sorted({p.device.index for p in parameters if p.device.type == "cuda"})
    # Among the attention kernels, only MATH has a second derivative.
    with torch.random.fork_rng(cuda, device_type="cuda"), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


class Lowest(NamedTuple):
    """The lowest eigenvalue λ (`value`), its relative residual, and its unit eigenvector v.

    `slope` is the slope of the loss along v. `direction` is v split into one tensor per parameter, with None for a
    parameter that the loss does not depend on. `negative` means that vᵀHv is below 0 by more than rounding errors. Then
    the loss curves downwards along v, even if λ has not converged.
    """

    value: float
    residual: float
    slope: float
    direction: list[Tensor | None]
    products: int
    negative: bool


class _Hessian:
    """Multiplies a flat vector v, (n,), by H, or by P^-½HP^-½ with `scales`, which are P^-½ by parameter.

    The product is the derivative of the gradient along v (Pearlmutter 1994). The graph of the gradient is built once.
    Frozen parameters and those that the loss does not depend on are left out.
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
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in self.parameters) else torch.float32
        self.like = torch.empty(0, dtype=dtype, device=loss.device)
        self.scale = None if scales is None else self._flat([scales[n] for n, _ in used])

    def __call__(self, v: Tensor) -> Tensor:
        """The product with v, shape (n,), or with each row of v, shape (b, n)."""
        rows = v.shape[:-1]
        self.products += rows.numel()
        parts = (v if self.scale is None else v * self.scale).split_with_sizes(self._sizes, dim=-1)
        # A gradient without a graph is constant, because the loss is linear there.
        pairs = zip(self._grads, parts, strict=True)
        curved = [(g, u.reshape(rows + g.shape).to(g)) for g, u in pairs if g.requires_grad]
        if not curved:
            return torch.zeros_like(v)
        grads, vectors = zip(*curved, strict=True)
        products = torch.autograd.grad(
            grads, self.parameters, vectors, retain_graph=True, allow_unused=True, is_grads_batched=v.dim() == 2
        )
        blocks = zip(self.parameters, products, strict=True)
        product = self._flat([p.new_zeros(rows + p.shape) if h is None else h for p, h in blocks], rows)
        return product if self.scale is None else product * self.scale

    def slope(self, v: Tensor) -> float:
        """The slope of the loss along v, shape (n,): the dot product of v and the gradient."""
        return float(torch.dot(self._flat([g.detach() for g in self._grads]), v))

    def by_parameter(self, v: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """Split v, shape (n,), into one tensor per parameter, in its shape and dtype.

        None for a parameter that is not part of the Hessian.
        """
        pieces = zip(self.parameters, v.split_with_sizes(self._sizes), strict=True)
        by_id = {id(p): piece.reshape(p.shape).to(p) for p, piece in pieces}
        return [by_id.get(id(p)) for p in parameters]

    def _flat(self, tensors: Sequence[Tensor], rows: tuple[int, ...] = ()) -> Tensor:
        flat = [t.detach().reshape(*rows, -1).to(self.like) for t in tensors]
        return torch.cat(flat, dim=-1) if flat else self.like


class Krylov(NamedTuple):
    """The result of k Lanczos steps."""

    basis: Tensor  # (k, n), orthonormal rows
    tridiagonal: Tensor  # (k, k): H in this basis
    theta: Tensor  # (k,): the Ritz values, which are the eigenvalues of `tridiagonal`, ascending
    vectors: Tensor  # (k, k): the eigenvectors of `tridiagonal`, as columns
    residuals: tuple[float, float]  # |Hv − θv| / |θ| for the lowest and for the highest θ
    exact: bool  # the basis spans an invariant subspace


def lanczos(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    max_products: int,
    tolerance: float,
    until_s: float = math.inf,
) -> Krylov | None:
    """Lanczos steps from `start` (n,) until both residuals are within `tolerance`, or `max_products` are made.

    They also end at `until_s` of `time.perf_counter`, but not before `LEAST_PRODUCTS` are made.

    Every vector is orthogonalised twice against the whole basis. If a step finds no new direction, the subspace is
    invariant. Both extreme eigenvalues are then exact, provided that `start` has a random part. None if a product is
    not finite.
    """
    assert max_products >= 1
    sum_dtype = start.dtype if start.device.type == "mps" else torch.float64
    basis = start.new_empty((min(8, len(start)), len(start)))
    basis[0] = start / torch.linalg.vector_norm(start)
    tridiagonal = torch.zeros(max_products + 1, max_products + 1, dtype=torch.float64)
    for k in range(1, max_products + 1):
        w = product(basis[k - 1])
        alpha = torch.dot(w.to(sum_dtype), basis[k - 1].to(sum_dtype))
        w = w - (basis[:k] @ w) @ basis[:k]
        w = w - (basis[:k] @ w) @ basis[:k]
        diagonal, beta = torch.stack([alpha, torch.linalg.vector_norm(w, dtype=sum_dtype)]).tolist()
        if not math.isfinite(diagonal + beta):
            return None
        tridiagonal[k - 1, k - 1] = diagonal
        theta, vectors = torch.linalg.eigh(tridiagonal[:k, :k])
        rounding = torch.finfo(w.dtype).eps * float(theta.abs().max())
        exact = k == len(start) or beta <= 10 * rounding
        residuals = _relative(theta, vectors[-1].abs() * (0.0 if exact else beta) + rounding)  # |Hv − θv| = |β_k s_k|
        late = k >= LEAST_PRODUCTS and time.perf_counter() >= until_s
        if exact or k == max_products or max(residuals) <= tolerance or late:
            break
        tridiagonal[k - 1, k] = tridiagonal[k, k - 1] = beta
        if k == len(basis):
            basis = torch.cat([basis, torch.empty_like(basis)])
        basis[k] = w / beta
    return Krylov(basis[:k], tridiagonal[:k, :k], theta, vectors, residuals, exact)


def _full(hessian: _Hessian) -> _Ends:
    """Results from all eigenvalues of the symmetrised Hessian. The norm of its asymmetric part is the residual."""
    unit = torch.eye(hessian.order, dtype=hessian.like.dtype, device=hessian.like.device)
    rows = [hessian(unit[n : n + COLUMNS_AT_ONCE]) for n in range(0, hessian.order, COLUMNS_AT_ONCE)]
    full = torch.cat(rows).cpu().double()  # (n, n)
    if not bool(full.isfinite().all()):
        return UNKNOWN
    theta = torch.linalg.eigvalsh((full + full.T) / 2)
    error = torch.linalg.matrix_norm(full - full.T) / 2
    negative = theta < -NEGATIVE["full Hessian"] * theta.abs().max()
    return float(theta[0]), float(theta[-1]), *_relative(theta, error), float(negative.double().mean())


def _relative(theta: Tensor, errors: Tensor) -> tuple[float, float]:
    """The relative errors of the lowest and the highest eigenvalue, from their absolute `errors` (k,) or ().

    An eigenvalue near 0 is replaced by a floor in the denominator.
    """
    relative = errors / theta.abs().clamp(min=RESIDUAL_FLOOR * float(theta.abs().max()) + 1e-300)
    return float(relative[0]), float(relative[-1])


@torch.no_grad()
def preconditioner(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> list[Tensor] | None:
    """P^-½ of the last step, one tensor per parameter in its shape. P is defined by the update −ηP⁻¹m.

    For Adam P = (1−β₁ᵗ)(√v̂ + ε) (Cohen et al. 2022, arXiv 2207.14484). P^-½ is set to 0 for a parameter without
    optimizer state, and where P = 0. Returns None before the first step, and for an optimizer whose P is not known.
    """
    if type(optimizer) not in ADAPTIVE:
        return None
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    stepped = {p for p, state in optimizer.state.items() if p in groups and float(state.get("step", 0))}
    roots = [_inverse_root(optimizer.state[p], groups[p]) if p in stepped else torch.zeros_like(p) for p in parameters]
    return roots if stepped else None


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
    """The largest eigenvalue of H (or of P^-½HP^-½) at which steps on a quadratic loss do not diverge.

    At this eigenvalue, −1 is a root of the characteristic polynomial of the update: v ← βv + (1−τ)g, w ← w − ηv, or w ←
    w − η(g + βv) for Nesterov. For Adam τ is β₁, P is assumed to be constant, and AdamW's decay is ignored. Sources:
    Cohen et al. 2021, arXiv 2103.00065 (heavy ball); Cohen et al. 2022, arXiv 2207.14484 (Adam).

    The limit is None for other optimizers, for maximisation, and for τ ≥ 1. It is None if the parameter groups differ
    in anything but weight decay. If they differ only in weight decay, the largest one is used. It is None if an
    adaptive optimizer adds weight decay to the gradient, since P⁻¹κ shifts each λ differently.
    """
    groups, first, adaptive = optimizer.param_groups, optimizer.param_groups[0], type(optimizer) in ADAPTIVE
    if lr <= 0 or not (adaptive or type(optimizer) is torch.optim.SGD) or first["maximize"]:
        return None
    decay = 0.0 if first.get("decoupled_weight_decay") else max(float(group["weight_decay"]) for group in groups)
    beta = float(first["betas"][0] if (adam := "betas" in first) else first["momentum"])
    dampening = beta if adam else float(first.get("dampening", 0.0)) * bool(beta)
    differ = any(
        group | {"params": 0, "weight_decay": 0} != first | {"params": 0, "weight_decay": 0} for group in groups
    )
    if dampening >= 1 or differ or (decay and adaptive):
        return None
    value, formula = 2 * (1 + beta) / (lr * (1 - dampening)), "2(1+β)/η" if beta else "2/η"
    if first.get("nesterov"):
        value, formula = value / (1 + 2 * beta), "2(1+β)/(η(1+2β))"
    elif dampening:
        formula = "2(1+β₁)/((1−β₁)η)" if adam else "2(1+β)/((1−τ)η)"
    return StabilityLimit(lambda_max=value - decay, formula=formula + " − κ" * bool(decay), preconditioned=adaptive)
