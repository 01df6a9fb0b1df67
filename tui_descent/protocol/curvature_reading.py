"""Results of measuring the curvature.

H is the Hessian, n is its order, P is the optimizer's preconditioner, η is the learning rate, θ is an eigenvalue's
estimate and v its vector.
"""

from __future__ import annotations

from typing import Literal

import msgspec

How = Literal["full Hessian", "Lanczos"]
# Residuals are relative to |θ|, or to this fraction of max|θ| if that is larger. Most eigenvalues are close to 0. With
# a fraction of 1e-2, an estimate near them would count as converged before it has reached the negative eigenvalue.
RESIDUAL_FLOOR = 1e-4


class CurvatureReading(msgspec.Struct, frozen=True, kw_only=True):
    """Largest and smallest eigenvalue of H or of P^-½HP^-½; NaN if no parameter affects the loss or H is not finite.

    `negative_fraction` is the fraction of eigenvalues below -`negative_below`·max|λ|. `parameters` is n, the number of
    parameters that affect the loss. `products` counts Hessian-vector products. Residuals |Hv − θv| are relative to |θ|.
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
        """|Hv − θv| for the largest eigenvalue. A true eigenvalue lies within this distance."""
        return self.residual_max * max(abs(self.lambda_max), RESIDUAL_FLOOR * self._largest)

    @property
    def error_min(self) -> float:
        """|Hv − θv| for the smallest eigenvalue. A true eigenvalue lies within this distance."""
        return self.residual_min * max(abs(self.lambda_min), RESIDUAL_FLOOR * self._largest)

    @property
    def _largest(self) -> float:
        return max(abs(self.lambda_max), abs(self.lambda_min))


class StabilityLimit(msgspec.Struct, frozen=True, kw_only=True):
    """The largest λmax for which the optimizer's steps on a quadratic do not grow.

    If `preconditioned`, this is the λmax of the preconditioned Hessian.
    """

    lambda_max: float
    formula: str
    preconditioned: bool
