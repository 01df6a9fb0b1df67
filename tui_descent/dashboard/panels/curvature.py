"""The newest reading of the curvature in figures: each with how it was got and how far it converged."""

from __future__ import annotations

import math

from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.time_plot import place_of, readings
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.panels.sharpness import verdict
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import count, short
from tui_descent.dashboard.text.safe_text import plain
from tui_descent.dashboard.view import View
from tui_descent.protocol.curvature import CurvatureReading
from tui_descent.protocol.events import CurvatureTaken

NAME, VALUE, ERROR = 9, 9, 10


class CurvaturePanel(Panel):
    """λmax, its limit, λmin, the share under zero, and what reading them took."""

    pace_s = 0.25
    about = (
        "The newest reading, each figure ± how far it has converged (|Hv − λv|), got by Lanczos on Hessian-vector "
        "products or from the full Hessian of up to 1,500 parameters. Below 0: the share of eigenvalues that are "
        "negative; it comes with every fourth reading."
    )

    def heading(self, view: View) -> tuple[str, str]:
        """When it was read."""
        found = readings(view)
        return f"Curvature{f'  [dim]before step {count(found[-1].step)}[/dim]' if found else ''}", ""

    def cares(self, view: View) -> object:
        """A new reading."""
        return place_of(view)

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """A row a figure."""
        found = readings(view)
        if not found:
            return []
        taken, read = found[-1], found[-1].hessian
        lines = [_figure("λmax", read.lambda_max, read.error_max, got(read, read.residual_max), colours.DIM)]
        if taken.scaled is not None:
            words = f"{got(taken.scaled, taken.scaled.residual_max)}; as the optimizer scales it"
            lines.append(_figure("scaled", taken.scaled.lambda_max, taken.scaled.error_max, words, colours.DIM))
        lines.append(_limit(taken, width))
        words, style = _way_down(read)
        lines.append(_figure("λmin", read.lambda_min, read.error_min, got(read, read.residual_min), colours.DIM))
        lines[-1].put(f"{words}", style)
        lines += [_share(found), _price(taken)]
        return [line.strip(width) for line in lines[:height]]


def got(read: CurvatureReading, residual: float) -> str:
    """How an eigenvalue was got, and whether it has converged."""
    if math.isnan(residual):
        return f"{read.how}: no number"
    if read.how == "full Hessian":
        return "full Hessian, exact"
    return f"Lanczos, {'converged' if residual <= 1e-2 else 'not converged'}"


def _figure(name: str, value: float, error: float | None, words: str, style: Style) -> Line:
    line = Line().put(f" {name:<{NAME}}", colours.DIM).put(f"{short(value):>{VALUE}}", colours.BRIGHT)
    told = error is not None and math.isfinite(error) and error > 0
    line.put(f" ± {error:.0e}".ljust(ERROR) if told else " " * ERROR, colours.DIM)
    return line.put(words, style)


def _limit(taken: CurvatureTaken, width: int) -> Line:
    if taken.limit is None:
        return (
            Line()
            .put(f" {'limit':<{NAME}}", colours.DIM)
            .put(f"{'–':>{VALUE}}")
            .put(" " * ERROR)
            .put("not known for this optimizer", colours.DIM)
        )
    line = _figure("limit", taken.limit.lambda_max, None, "", colours.DIM)
    words, well = verdict(taken)
    which = "scaled λmax" if taken.limit.preconditioned else "λmax"
    line.put(f"{which} is " if words else "about the scaled λmax, after the first step", colours.DIM)
    line.put(words, colours.GREEN if well else colours.ORANGE)
    formula = f"  = {plain(taken.limit.formula, 40)}"  # the sharpness panel's border has it, too
    return line.put(formula if line.width + len(formula) <= width else "", colours.DIM)


def _way_down(read: CurvatureReading) -> tuple[str, Style]:
    low, error = read.lambda_min, read.error_min
    if not math.isfinite(low):
        return "", colours.DIM
    if low < -error:
        return ": a way down on both sides", colours.ORANGE
    if low <= error:
        return ": 0 as far as can be told", colours.DIM
    return ": a bowl", colours.GREEN


def _share(found: list[CurvatureTaken]) -> Line:
    counted = next((taken for taken in reversed(found) if taken.hessian.negative_fraction is not None), None)
    line = Line().put(f" {'below 0':<{NAME}}", colours.DIM)
    if counted is None or counted.hessian.negative_fraction is None:
        return line.put(f"{'–':>{VALUE}}").put(" " * ERROR).put("not counted yet", colours.DIM)
    read = counted.hessian
    how = "counted" if read.how == "full Hessian" else "by Lanczos"
    line.put(f"{counted.hessian.negative_fraction:>{VALUE}.1%}", colours.BRIGHT).put(" " * ERROR)
    under = read.negative_below * max(abs(read.lambda_max), abs(read.lambda_min))
    line.put(f"of {count(read.parameters)} under -{under:.0e}, {how}", colours.DIM)
    return line.put("" if counted is found[-1] else f" at {count(counted.step)}", colours.DIM)


def _price(taken: CurvatureTaken) -> Line:
    products = taken.hessian.products + (taken.scaled.products if taken.scaled is not None else 0)
    line = (
        Line()
        .put(f" {'took':<{NAME}}", colours.DIM)
        .put(f"{taken.seconds:>{VALUE - 2}.2f} s", colours.TEXT)
        .put(" " * ERROR)
    )
    return line.put(f"{count(products)} Hessian-vector products", colours.DIM)
