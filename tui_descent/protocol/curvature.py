"""What a reading of the curvature holds. H is the Hessian, n its order, P the optimizer's preconditioner, η rate."""

from __future__ import annotations

from typing import Literal

import msgspec

How = Literal["full Hessian", "Lanczos"]


class CurvatureReading(msgspec.Struct, frozen=True, kw_only=True):
    """The ends of H, or of P^-½HP^-½; nan where no parameter takes part or H is not finite.

    `negative_fraction` is the share of eigenvalues under -`negative_below`·max|λ|; `parameters` is n, those that take
    part in the loss; `products` counts Hessian-vector products; residuals |Hv − θv| are relative to |θ|.
    """

    lambda_max: float
    lambda_min: float
    residual_max: float
    residual_min: float
    products: int
    negative_fraction: float | None
    negative_below: float
    how: How
    converged: bool
    parameters: int


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """The λmax, of the preconditioned Hessian where `preconditioned`, above which steps on a quadratic grow."""

    lambda_max: float
    formula: str
    preconditioned: bool
