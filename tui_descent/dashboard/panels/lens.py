"""The activation lens: f and f′ of a layer's activation over a histogram of its inputs, and beside it the nudge."""

from __future__ import annotations

from array import array

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.activation_functions import ActivationFunction, name_of
from tui_descent.dashboard.panels.panel import Panel, notice, waiting_notice
from tui_descent.dashboard.panels.story import scenario_of
from tui_descent.dashboard.pictures import lens
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import plural, with_commas
from tui_descent.dashboard.text.safe_text import safe, shorten
from tui_descent.dashboard.view import Nudge, View
from tui_descent.protocol.events import LensTaken
from tui_descent.protocol.layer_names import in_words

LEAST_H, MOST_H = 2.0**-46, 16.0
SURFACE = "a test surface has no activations"


def asked_layer(view: View) -> str:
    """The name of the layer to ask for: the selected one, or an empty name for the first one with an activation."""
    return view.layers[view.selected].name if view.selected is not None and view.selected < len(view.layers) else ""


def limit_of(view: View) -> float:
    """The lens shows z from minus this limit to this limit."""
    taken = view.history.lens.get(asked_layer(view))
    return taken.histogram.limit if taken is not None and taken.histogram is not None else lens.DEFAULT_LIMIT


class LensPanel(Panel):
    """f and f′ over z, and below them on the same axis how often each z occurs."""

    lines = lens.CURVE_F, lens.CURVE_SLOPE
    min_interval_s = 0.1
    help_text = (
        "The activation of the selected layer, or of the first one that has an activation: the function f and its "
        "derivative f′ over the pre-activation z. Below: how often each z occurs, for the first training samples or, "
        "in your own loop, for a training batch. A bar is bright where f′ is large and dark where it is small: the "
        "gradient of a dark bar's values hardly passes. 'Flat' is the share of values whose f′ is below a tenth of the "
        "largest f′ on this axis. The trainer counts at most five times a second, while this view or the dialog of the "
        "key a is open."
    )

    def heading(self, view: View) -> tuple[str, str]:
        f, slope = lens.legend(view.hidden)
        return f"Activation lens {f} {slope}", "dark bars: f′ ≈ 0  ↑ ↓ layer"

    def depends_on(self, view: View) -> object:
        """The newest counts of the selected layer."""
        history, asked = view.history, asked_layer(view)
        state = history, history.started, history.state, view.connected, history.live
        return *state, asked, history.lens.get(asked), view.nudge, view.hidden

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        taken = view.history.lens.get(asked_layer(view))
        if taken is None:
            return _nothing_to_show(view, width, height)
        function = ActivationFunction(taken.parts)
        if taken.histogram is None and not function.known:
            hint = "select another layer with ↑ ↓" if taken.asked else ""
            return notice([(safe(taken.reason), colours.TEXT), (hint, colours.DIM)], width, height)
        rows = lens.draw(taken, function, _inside(view), width, height - 1, view.hidden)
        return [_numbers(taken, function, width), *rows]


class NudgePanel(Panel):
    """A difference quotient of f beside its derivative."""

    lines = lens.LINE_SECANT, lens.LINE_TANGENT
    min_interval_s = 0.1
    help_text = (
        "The nudge: move x by h and see by how much f changes. The quotient (f(x+h) − f(x))/h is the slope of the "
        "secant, f′(x) that of the tangent. Halve h with ( and the secant turns into the tangent. The lower plot shows "
        "the quotient's error against h, both logarithmic: it falls with h until the rounding of the 16 digits of "
        "float64 takes over, from h = 1e-8 or so. ← → move x, ) doubles h."
    )

    def heading(self, view: View) -> tuple[str, str]:
        narrow = self.content_size.width < lens.WIDE_NUDGE
        secant, tangent = lens.nudge_legend(view.hidden, short=narrow)
        return f"{'' if narrow else 'Nudge '}{secant} {tangent}", "← → x  ( ) h"

    def depends_on(self, view: View) -> object:
        """The activation, x and h."""
        taken = view.history.lens.get(asked_layer(view))
        return view.history, None if taken is None else taken.parts, _inside(view), view.hidden

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        taken = view.history.lens.get(asked_layer(view))
        function = ActivationFunction(taken.parts if taken is not None else ())
        if not function.known:
            known = f"no formula for {taken.kind}" if taken is not None and taken.kind.isidentifier() else ""
            return notice([(known, colours.DIM)], width, height)
        return lens.draw_nudge(function, _inside(view), width, height, view.hidden)


def _inside(view: View) -> Nudge:
    """The nudge with its x on the axis."""
    limit = limit_of(view)
    return Nudge(min(max(view.nudge.x, -limit), limit), view.nudge.h)


def _numbers(taken: LensTaken, function: ActivationFunction, width: int) -> Strip:
    """The row of numbers above the picture."""
    line = Line().add(f" step {with_commas(taken.step)}  ", colours.DIM)
    line.add(shorten(safe(in_words(taken.layer), 200), 24), colours.NAME).add("  ")
    line.add(name_of(taken.parts) if function.known else safe(taken.kind), colours.BRIGHT)
    histogram = taken.histogram
    if histogram is None:
        return line.to_strip(width)
    counts = array("I", histogram.counts)
    outside, counted = histogram.below + histogram.above, sum(counts) + histogram.below + histogram.above
    flat = lens.flat_share(function, histogram)
    notes = []
    if flat is not None:
        notes.append((f"{100 * flat:.0f} % flat", colours.ORANGE if flat >= lens.MUCH_FLAT else colours.TEXT))
    if histogram.not_finite:
        notes.insert(0, (f"{with_commas(histogram.not_finite)} NaN or inf", colours.ORANGE))
    if outside:
        share = 100 * outside / counted
        notes.append((f"{share:{'.0f' if share >= 10 else '.2g'}} % outside", colours.DIM))
    notes.append((plural(histogram.values, "value"), colours.DIM))
    for text, style in notes:
        if line.width + 2 + len(text) <= width:
            line.add("  ").add(text, style)
    return line.to_strip(width)


def _nothing_to_show(view: View, width: int, height: int) -> list[Strip]:
    """Why there is no picture."""
    scenario = scenario_of(view.history.started)
    if scenario is not None and scenario.data is None:
        return notice([(SURFACE, colours.TEXT)], width, height)
    if not view.history.live and not view.replay:
        return notice([("this view was not open during the run", colours.DIM)], width, height)
    return waiting_notice(view, width, height, "count", state=True)
