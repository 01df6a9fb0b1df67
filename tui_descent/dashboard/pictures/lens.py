"""Draws the activation lens: f and f′ over z, the histogram of z, and the nudge with its secant and tangent."""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection

from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.activation_functions import ActivationFunction
from tui_descent.dashboard.charts.axis import Axis, numbered_rows
from tui_descent.dashboard.charts.plane import GUTTER
from tui_descent.dashboard.charts.raster import Raster, Rgb
from tui_descent.dashboard.panels.panel import notice
from tui_descent.dashboard.text.clickable import legend_entry
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import axis_number, power_of_ten, short
from tui_descent.dashboard.view import Nudge
from tui_descent.protocol.events import LensTaken
from tui_descent.protocol.lens import BINS, Histogram

F, SLOPE, SECANT, ZERO, TEXT = (245, 208, 82), (86, 180, 233), (217, 115, 154), (58, 64, 74), (240, 243, 247)
CHOICE_RANGE = -2.0, 3.0  # of f and f′ in the dialog
DEFAULT_LIMIT = 4.0  # of the z axis, if there is no histogram
FLAT_BELOW = 0.1  # of the largest f′ on the axis: as for the saturated share in the readings
MUCH_FLAT = 0.5  # from this share of flat values on, it is shown as a warning
PLAIN_LEVEL = 12  # the palette's level of bars whose f′ is not known
LEAST_ERROR = 1e-17
H_DECADES = -13, 1  # the axis of h in the plot of the errors
ERROR_GUTTER = 6
WIDE_NUDGE = 26  # from this width on, the nudge has long labels
TICK_APART = 9  # the least number of columns between two numbers of the z axis


# The lines that can be hidden.
CURVE_F, CURVE_SLOPE, LINE_SECANT, LINE_TANGENT = "f", "slope", "secant", "tangent"
NONE: frozenset[str] = frozenset()


def legend(hidden: Collection[str]) -> tuple[str, str]:
    """The entries of f and f′ in the border."""
    f, slope = _hex(F), _hex(SLOPE)
    return (
        legend_entry(hidden, CURVE_F, f"[{f}]━[/] ", f"[{f}]f(z)[/]"),
        legend_entry(hidden, CURVE_SLOPE, f"[{slope}]━[/] ", f"[{slope}]f′(z)[/]"),
    )


def nudge_legend(hidden: Collection[str], *, short: bool) -> tuple[str, str]:
    """The entries of the secant and the tangent in the border; if `short`, without samples."""
    lines = ((LINE_SECANT, _hex(SECANT)), (LINE_TANGENT, _hex(SLOPE)))
    secant, tangent = (
        legend_entry(hidden, line, "" if short else f"[{colour}]━[/] ", f"[{colour}]{line}[/]")
        for line, colour in lines
    )
    return secant, tangent


def draw(
    taken: LensTaken,
    function: ActivationFunction,
    nudge: Nudge,
    width: int,
    height: int,
    hidden: Collection[str] = NONE,
) -> list[Strip]:
    """At most `height` rows of `width` cells; none if there is no room."""
    columns = width - GUTTER
    below = max(2, (height - 1) * 3 // 8)
    above = height - 1 - below
    if columns < 4 or above < 2:
        return []
    histogram = taken.histogram
    limit = histogram.limit if histogram is not None else DEFAULT_LIMIT
    if function.known:
        rows = _curves(function, limit, columns, above, width, nudge, hidden=hidden)
    else:
        rows = notice([(f"no formula for {taken.kind}" * taken.kind.isidentifier(), colours.DIM)], width, above)
        rows += [Line().to_strip(width)] * (above - len(rows))
    rows.append(_z_axis(limit, columns).to_strip(width))
    if histogram is None:
        return rows + notice([(taken.reason, colours.DIM)], width, below)
    return rows + _bars(function, histogram, columns, below, width)


def draw_choice(function: ActivationFunction, histogram: Histogram | None, width: int, height: int) -> list[Strip]:
    """Both curves over z, and below them the histogram of z, if it is known. At most `height` rows of `width` cells.

    Large values of f are left out, so that f′ can be seen.
    """
    columns = width - GUTTER
    below = 0 if histogram is None else max(2, (height - 1) // 3)
    above = height - 1 - below
    if columns < 4 or above < 2:
        return []
    limit = histogram.limit if histogram is not None else DEFAULT_LIMIT
    rows = [
        *_curves(function, limit, columns, above, width, within=CHOICE_RANGE),
        _z_axis(limit, columns).to_strip(width),
    ]
    return rows if histogram is None else rows + _bars(function, histogram, columns, below, width)


def slope_shares(function: ActivationFunction, zs: list[float]) -> list[float]:
    """|f′| at each z as a share of the largest of them, from 0 to 1."""
    slopes = [abs(function.slope(z)) for z in zs]
    most = max(slopes, default=0.0)
    return [slope / most if most > 0 else 0.0 for slope in slopes]


def flat_share(function: ActivationFunction, histogram: Histogram) -> float | None:
    """The share of the finite values whose f′ is below `FLAT_BELOW` of the largest on the axis; None if not known.

    A value has the f′ of the middle of its bin; one outside has that of the axis' end.
    """
    limit = histogram.limit
    middles = [(2 * n + 1 - BINS) * limit / BINS for n in range(BINS)]
    counts = [*array("I", histogram.counts), histogram.below, histogram.above]
    if not function.known or not sum(counts):
        return None
    shares = slope_shares(function, [*middles, -limit, limit])
    flat = sum(count for count, share in zip(counts, shares, strict=True) if share < FLAT_BELOW)
    return flat / sum(counts)


def by_column(histogram: Histogram, columns: int) -> list[float]:
    """The values per bin in each of `columns` equal parts of the axis. A part that covers several bins has the mean."""
    counts = array("I", histogram.counts)
    sums = [0]
    for count in counts:
        sums.append(sums[-1] + count)

    def until(place: float) -> float:
        """The number of values below a place, counted in bins."""
        n = min(int(place), BINS - 1)
        return sums[n] + (place - n) * counts[n]

    width = BINS / columns
    return [(until((n + 1) * width) - until(n * width)) / width for n in range(columns)]


def _curves(
    function: ActivationFunction,
    limit: float,
    columns: int,
    rows: int,
    width: int,
    nudge: Nudge | None = None,
    *,
    within: tuple[float, float] = (-math.inf, math.inf),
    hidden: Collection[str] = NONE,
) -> list[Strip]:
    """The rows with the curves; values that are not `within` these limits are left out, and the numbers are round."""
    zs = [-limit + (n + 0.5) * limit / columns for n in range(2 * columns)]  # one for each dot
    values, slopes = [function.value(z) for z in zs], [function.slope(z) for z in zs]
    shown = [v for v in (*values, *slopes) if within[0] <= v <= within[1]]
    up = Axis.linear(min(*shown, 0.0), max(shown))
    raster = Raster(columns, rows, paper=colours.PAPER)

    def dot(value: float) -> float:
        return up.position(value) * (4 * rows - 1) if up.contains(value) else math.nan

    raster.line([(0, dot(0.0)), (2 * columns - 1, dot(0.0))], ZERO)
    if CURVE_SLOPE not in hidden:
        raster.line([(n, dot(slope)) for n, slope in enumerate(slopes)], SLOPE)
    if CURVE_F not in hidden:
        raster.line([(n, dot(value)) for n, value in enumerate(values)], F)
    inside = [n for n, value in enumerate(values) if up.contains(value)]
    end = inside[-1] if inside else columns  # f leaves the picture here
    at_f, at_slope = up.row(values[end], rows), up.row(slopes[-1], rows)
    if at_slope == at_f:
        at_slope += 1 if at_f + 1 < rows else -1
    if CURVE_SLOPE not in hidden:
        raster.write(columns - 2, at_slope, "f′", _style(SLOPE))
    if CURVE_F not in hidden:
        raster.write(min(end // 2 + (end < len(values) - 1), columns - 1), at_f, "f", _style(F))

    def mark(x: float, value: float, character: str) -> None:
        if -limit <= x <= limit:
            column = min(int((x + limit) / (2 * limit) * columns), columns - 1)
            raster.write(column, up.row(value, rows), character, _style(TEXT))

    if nudge is not None:
        if CURVE_F not in hidden:
            mark(nudge.x + nudge.h, function.value(nudge.x + nudge.h), "○")
        if CURVE_SLOPE not in hidden:
            mark(nudge.x, function.slope(nudge.x), "●")
        if CURVE_F not in hidden:
            mark(nudge.x, function.value(nudge.x), "●")
    labels = up.labels(rows, width=GUTTER - 1) if math.isinf(within[1]) else _round_numbers(up, rows)
    return numbered_rows([raster.segments(y) for y in range(rows)], labels, GUTTER, width)


def _round_numbers(up: Axis, rows: int) -> dict[int, str]:
    """Whole numbers by row, or halves on a short axis."""
    unit = 1.0 if up.high - up.low > 2 else 0.5
    numbers = [n * unit for n in range(math.ceil(up.low / unit), math.floor(up.high / unit) + 1)]
    return {up.row(number, rows): f"{number:g}" for number in numbers}


def _z_axis(limit: float, columns: int) -> Line:
    """The numbers of the z axis: halves, quarters and so on of its limit, which is a power of two."""
    parts = next((n for n in (16, 8, 4, 2) if columns >= n * TICK_APART), 2)
    line = Line().add(f"{'z':>{GUTTER - 1}}", colours.DIM)
    for n in range(1, parts):
        text = f"{(2 * n / parts - 1) * limit:g}"
        start = GUTTER + n * columns // parts - len(text) // 2
        if line.width < start:
            line.pad_to(start).add(text, colours.DIM)
    return line


def _bars(function: ActivationFunction, histogram: Histogram, columns: int, rows: int, width: int) -> list[Strip]:
    heights = by_column(histogram, columns)
    up = Axis.linear(0.0, max(*heights, 1.0))
    palette = colours.palette()
    raster = Raster(columns, rows, paper=colours.PAPER, shaded=palette.shaded)
    limit, least = histogram.limit, palette.darkest_text
    zs = [-limit + (2 * n + 1) * limit / columns for n in range(columns)]
    for n, (share, height) in enumerate(zip(slope_shares(function, zs), heights, strict=True)):
        level = least + round(share * (colours.LEVELS - 1 - least)) if function.known else PLAIN_LEVEL
        colour = palette.colours[level].get_truecolor()
        rgb: Rgb = (colour.red, colour.green, colour.blue)
        top = up.position(height) * 4 * rows
        if height > 0:
            raster.fill(n, 0, top, rgb)
        if palette.shaded and function.known and share >= FLAT_BELOW:  # without backgrounds, flat bars are sparser
            for row in range(rows - round(top / 4), rows):
                raster.write(n, row, "▓", _style(rgb))
    labels = {0: axis_number(up.high), rows - 1: "0"}
    return numbered_rows([raster.segments(y) for y in range(rows)], labels, GUTTER, width)


def draw_nudge(
    function: ActivationFunction, nudge: Nudge, width: int, height: int, hidden: Collection[str] = NONE
) -> list[Strip]:
    """The secant and the tangent around x, their slopes, and the error of the secant's slope against h."""
    errors = max(3, (height - 5) // 3) if height >= 12 else 0
    zoomed = height - 4 - (errors + 1 if errors else 0)
    if width < 12 or zoomed < 2:
        return []
    x, h = nudge.x, nudge.h
    slope, quotient = function.slope(x), function.quotient(x, h)
    error = abs(quotient - slope)
    wide = width >= WIDE_NUDGE
    relative = f" ({100 * error / abs(slope):.2g} %)" if slope and wide else ""
    first = Line().add(" x ", colours.DIM).add(f"{x:.6g}", colours.BRIGHT)
    first.pad_to(max(first.width + 2, width - len(f"{h:.3g}") - 3)).add("h ", colours.DIM)
    first.add(f"{h:.3g}", colours.BRIGHT)
    rows = [*_zoomed(function, nudge, width, zoomed, hidden), first.to_strip(width)]
    for label, text, style in (
        ("(f(x+h)−f(x))/h" if wide else "secant", f"{quotient:.6g}", _style(SECANT)),
        ("f′(x)", f"{slope:.6g}", _style(SLOPE)),
        ("off by", f"{short(error)}{relative}", colours.TEXT),
    ):
        line = Line().add(f" {label} ", colours.DIM if label == "off by" else style)
        rows.append(line.pad_to(width - len(text) - 1).add(text, style).to_strip(width))
    return rows + (_errors(function, nudge, width, errors) if errors else [])


def _zoomed(function: ActivationFunction, nudge: Nudge, width: int, rows: int, hidden: Collection[str]) -> list[Strip]:
    """F from x − h to x + 2h, with the tangent at x and the secant from x to x + h."""
    x, h, columns = nudge.x, nudge.h, width
    zs = [x + h * (-1 + 3 * (n + 0.5) / (2 * columns)) for n in range(2 * columns)]
    values = [function.value(z) for z in zs]
    at_x, slope, quotient = function.value(x), function.slope(x), function.quotient(x, h)
    tangent, secant = ([at_x + s * (z - x) for z in zs] for s in (slope, quotient))
    low, high = min(*values, *secant), max(*values, *secant)
    pad = (high - low) * 0.1 or abs(at_x) * 1e-15 or 1e-300
    raster = Raster(columns, rows, paper=colours.PAPER)

    def dot(value: float) -> float:
        return (value - low + pad) / (high - low + 2 * pad) * (4 * rows - 1)

    for name, line, colour in ((LINE_TANGENT, tangent, SLOPE), (LINE_SECANT, secant, SECANT), ("", values, F)):
        if name in hidden:
            continue
        raster.line([(n, dot(value)) for n, value in enumerate(line)], colour)
    for share, value, character in ((2 / 3, at_x + quotient * h, "○"), (1 / 3, at_x, "●")):
        row = rows - 1 - min(max(round(dot(value)) // 4, 0), rows - 1)
        raster.write(int(share * columns), row, character, _style(TEXT))
    return [Line().extend(raster.segments(y)).to_strip(width) for y in range(rows)]


def _errors(function: ActivationFunction, nudge: Nudge, width: int, rows: int) -> list[Strip]:
    """The quotient's error against h; both axes are logarithmic."""
    columns = width - ERROR_GUTTER
    first, last = H_DECADES
    slope = function.slope(nudge.x)

    def error(h: float) -> float:
        return abs(function.quotient(nudge.x, h) - slope)

    hs = [10 ** (first + (last - first) * (n + 0.5) / (2 * columns)) for n in range(2 * columns)]
    errors = [error(h) for h in hs]
    known = [e for e in errors if e > LEAST_ERROR]
    if columns < 4 or not known:
        return notice([("the quotient is exact here", colours.DIM)], width, rows + 1)
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    high = max(high, low + 1)
    raster = Raster(columns, rows, paper=colours.PAPER)

    def dot(value: float) -> float:
        return (math.log10(value) - low) / (high - low) * (4 * rows - 1) if value > LEAST_ERROR else math.nan

    raster.line([(n, dot(e)) for n, e in enumerate(errors)], TEXT)
    place = (math.log10(nudge.h) - first) / (last - first)
    now = dot(error(nudge.h))
    if 0 <= place <= 1:
        row = rows - 1 if math.isnan(now) else rows - 1 - min(max(round(now) // 4, 0), rows - 1)
        raster.write(min(int(place * columns), columns - 1), row, "●", _style(SECANT))
    labels = {0: power_of_ten(high), rows - 1: power_of_ten(low)}
    below = Line().add(f"{'error':>{ERROR_GUTTER - 1}} ", colours.DIM).add("h ", colours.DIM)
    for power in (-12, -8, -4, 0):
        text = power_of_ten(power)
        start = ERROR_GUTTER + int((power - first) / (last - first) * columns) - len(text) // 2
        if below.width < start and start + len(text) <= width:
            below.pad_to(start).add(text, colours.DIM)
    cells = [raster.segments(y) for y in range(rows)]
    return [*numbered_rows(cells, labels, ERROR_GUTTER, width), below.to_strip(width)]


def _style(rgb: Rgb) -> Style:
    return Style.parse(f"bold {_hex(rgb)}" if rgb == TEXT else _hex(rgb))


def _hex(rgb: Rgb) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)
