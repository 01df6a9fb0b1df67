"""What a reading of the curvature holds. H is the Hessian, n its order, P the optimizer's preconditioner, η rate."""

from __future__ import annotations

from typing import Literal

import msgspec

How = Literal["full Hessian", "Lanczos"]
# Residuals are relative to |θ|, but to no less than this part of max|θ|: with 1e-2 a θ among the many eigenvalues next
# to 0 counts as settled before it has found the negative one.
FLOOR = 1e-4


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

    @property
    def error_max(self) -> float:
        """|Hv − θv| of the upper end: an eigenvalue lies within it."""
        return self.residual_max * max(abs(self.lambda_max), FLOOR * self._largest)

    @property
    def error_min(self) -> float:
        """The same of the lower end."""
        return self.residual_min * max(abs(self.lambda_min), FLOOR * self._largest)

    @property
    def _largest(self) -> float:
        return max(abs(self.lambda_max), abs(self.lambda_min))


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """The λmax, of the preconditioned Hessian where `preconditioned`, above which steps on a quadratic grow."""

    lambda_max: float
    formula: str
    preconditioned: bool
