"""The curvature panel: the newest reading's numbers, each with its method and error."""

from __future__ import annotations

import math

from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.curvature_readings import curvature_readings, reading_key
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.panels.sharpness import limit_verdict
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import short, with_commas
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.view import View
from tui_descent.protocol.curvature_reading import CurvatureReading
from tui_descent.protocol.events import CurvatureTaken

NAME, VALUE, ERROR = 9, 9, 10
ROUNDING = 1e-6  # an eigenvalue this small compared with λmax may be a rounding error


class CurvaturePanel(Panel):
    """λmax and its limit, λmin, the share of negative eigenvalues, and the cost of the reading."""

    min_interval_s = 0.25
    help_text = (
        "The newest curvature reading: largest and smallest eigenvalue of the Hessian, each ± its residual |Hv − λv|, "
        "computed by Lanczos iteration on Hessian-vector products or, up to 1,500 parameters, from the full Hessian. "
        "The row 'below 0' is the share of negative eigenvalues, measured with every fourth reading."
    )

    def heading(self, view: View) -> tuple[str, str]:
        found = curvature_readings(view)
        return f"Curvature{f'  [dim]before step {with_commas(found[-1].step)}[/dim]' if found else ''}", ""

    def depends_on(self, view: View) -> object:
        """The newest reading."""
        return reading_key(view)

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        found = curvature_readings(view)
        if not found:
            return []
        taken, read = found[-1], found[-1].hessian
        lines = [_eigenvalue("λmax", read.lambda_max, read.error_max, method(read, read.residual_max))]
        if taken.scaled is not None:
            words = f"{method(taken.scaled, taken.scaled.residual_max)}; preconditioned Hessian"
            lines.append(_eigenvalue("precond.", taken.scaled.lambda_max, taken.scaled.error_max, words))
        lines.append(_limit(taken, width))
        lowest = _eigenvalue("λmin", read.lambda_min, read.error_min, method(read, read.residual_min))
        lines += [lowest.add(*_meaning_of_lambda_min(read)), _negative_share(found, width), _cost(taken)]
        return [line.to_strip(width) for line in lines[:height]]


def method(read: CurvatureReading, residual: float) -> str:
    """How an eigenvalue was computed, and whether it has converged."""
    if math.isnan(residual):
        return f"{read.how}: NaN"
    if read.how == "full Hessian":
        return "exact, full Hessian"
    return f"Lanczos, {'converged' if residual <= 1e-2 else 'not converged'}"


def _row(name: str, value: str, error: float = 0.0) -> Line:
    line = Line().add(f" {name:<{NAME}}", colours.DIM).add(f"{value:>{VALUE}}", colours.BRIGHT)
    text = f" ± {error:.0e}" if math.isfinite(error) and error > 0 else ""
    return line.add(text.ljust(ERROR), colours.DIM)


def _eigenvalue(name: str, value: float, error: float, how: str) -> Line:
    return _row(name, short(value), error).add(how, colours.DIM)


def _limit(taken: CurvatureTaken, width: int) -> Line:
    if taken.limit is None:
        return _row("limit", "–").add("not known for this optimizer", colours.DIM)
    line = _row("limit", short(taken.limit.lambda_max))
    words, stable = limit_verdict(taken)
    which = "precond. λmax" if taken.limit.preconditioned else "λmax"
    line.add(f"{which} is " if words else "precond. λmax is known after the first step", colours.DIM)
    if line.width + len(words) > width:
        words = words.removesuffix(" of stability")
    line.add(words, colours.GREEN if stable else colours.ORANGE)
    formula = f"  = {safe(taken.limit.formula, 40)}"  # left out first: the sharpness panel's border has it too
    return line.add(formula if line.width + len(formula) <= width else "", colours.DIM)


def _meaning_of_lambda_min(read: CurvatureReading) -> tuple[str, Style]:
    low, error = read.lambda_min, read.error_min
    if not math.isfinite(low):
        return "", colours.DIM
    if low < -max(error, ROUNDING * abs(read.lambda_max)):
        return "; the loss curves downwards", colours.ORANGE
    if low < -error:
        return "; zero next to λmax", colours.DIM
    if low <= error:
        return "; zero within the error", colours.DIM
    return "; positive in every direction", colours.GREEN


def _negative_share(found: list[CurvatureTaken], width: int) -> Line:
    latest = next((taken for taken in reversed(found) if taken.hessian.negative_fraction is not None), None)
    if latest is None or latest.hessian.negative_fraction is None:
        return _row("below 0", "–").add("not measured yet", colours.DIM)
    read = latest.hessian
    line = _row("below 0", f"{read.negative_fraction:.1%}")
    how = "counted" if read.how == "full Hessian" else "estimated by Lanczos"
    threshold = read.negative_below * max(abs(read.lambda_max), abs(read.lambda_min))
    line.add(f"of {with_commas(read.parameters)} are below -{threshold:.0e}, {how}", colours.DIM)
    when = "" if latest is found[-1] else f" at step {with_commas(latest.step)}"
    return line.add(when if line.width + len(when) <= width else "", colours.DIM)


def _cost(taken: CurvatureTaken) -> Line:
    products = taken.hessian.products + (taken.scaled.products if taken.scaled is not None else 0)
    row = _row("took", f"{taken.seconds:.2f} s")
    return row.add(f"{with_commas(products)} Hessian-vector products", colours.DIM)
