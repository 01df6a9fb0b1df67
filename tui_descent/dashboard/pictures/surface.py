"""A test surface: a contour map, or a curve for a loss of one parameter, with the run's path and the gradient on it."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from itertools import pairwise

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.axis import Axis
from tui_descent.dashboard.charts.picture import Depth, Picture, resampled
from tui_descent.dashboard.charts.plane import Plane, plane_size, with_axes
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import short, with_commas
from tui_descent.protocol.events import TaskTaken
from tui_descent.protocol.task_pictures import SurfacePicture

LEVELS = 14
# The share of the rank among all cells in a level; the rest is the logarithm of the loss. Ranks alone would hide how
# deep a valley is.
RANK_PART = 0.6
# There is no arrow where the gradient, along the whole map, would change the loss by less than this part of its range.
FLAT_BELOW = 1e-6
MOST_CONTOUR_DOTS = 4  # a cell with more contour dots has none: its background already shows the slope

PATH, GRADIENT, CURVE, NOW = "#ffffff", "#ff7fae", "#8a97a8", "#ffffff"
# Glyph and colour of each kind of critical point.
CRITICAL = {"minimum": ("▾", "#57ab7f"), "saddle": ("×", "#d07f30"), "maximum": ("▴", "#b48ead")}
UNDEFINED, UNDEFINED_COLOUR = "╱", "#4d5563"  # a cell where the loss is NaN or infinite
CONTOUR_16 = "#000080"  # blue: where a terminal has 16 colours, it takes the nearest one
# Dark enough for a white path: cividis up to 0.66, at 0.85 of its brightness.
_GROUNDS = (
    "#001d42", "#06244c", "#0d2a57", "#152f5e", "#20355e", "#2b3b5d", "#34415c",
    "#3c475c", "#444d5d", "#4c535e", "#545860", "#5d5f62", "#666562", "#706d64",
)  # fmt: skip
_CONTOURS = (
    "#1f3d66", "#254470", "#2c4b7b", "#355182", "#405882", "#4b5e81", "#556580",
    "#5d6b80", "#667281", "#6e7882", "#777d84", "#808486", "#8a8b86", "#949388",
)  # fmt: skip
# Greys of the 256 colours, because the nearest other colours would not be ordered by lightness.
_GROUNDS_256 = tuple(f"#{8 + 10 * n:02x}{8 + 10 * n:02x}{8 + 10 * n:02x}" for n in range(1, 1 + LEVELS))
_CONTOURS_256 = tuple(f"#{8 + 10 * n:02x}{8 + 10 * n:02x}{8 + 10 * n:02x}" for n in range(4, 4 + LEVELS))
_ARROWS = "→↘↓↙←↖↑↗"  # clockwise from the right


def draw(picture: SurfacePicture, width: int, height: int, depth: Depth, maps: ContourMaps) -> list[Strip]:
    """`height` rows of `width` cells; none if there is no room."""
    columns, rows = plane_size(width, height)
    if columns < 2 or rows < 2:
        return []
    if len(picture.point) == 1:
        return _curve(picture, columns, rows, width)
    drawn = maps.ground(picture, columns, rows, depth).copy()
    plane = Plane(picture.low, picture.high, columns, rows)
    _draw_path(drawn, plane, picture, depth, flat=is_flat(picture, maps.loss_range))
    across, up = (Axis(low, high, False) for low, high in zip(picture.low, picture.high, strict=True))
    return with_axes(drawn, across, up, width)


def legend(picture: SurfacePicture, width: int) -> str:
    """What the glyphs mean, for the panel's border, as Textual markup.

    If it does not fit, the first entries are left out.
    """
    found = [("○ start", ""), ("● now", "")]
    found.append(("→ −gradient" if len(picture.point) == 2 else "slope", GRADIENT))
    found += critical_legend(picture)
    while found and sum(len(text) + 2 for text, _ in found) > width:
        del found[0]
    return "  ".join(f"[{colour}]{text}[/]" if colour else text for text, colour in found)


def critical_legend(picture: SurfacePicture) -> list[tuple[str, str]]:
    """Text and colour of the entries for minima, saddles and maxima, and for cells without a finite loss."""
    kinds = {point.kind for point in picture.critical}
    found = [(f"{glyph} {kind}", colour) for kind, (glyph, colour) in CRITICAL.items() if kind in kinds]
    if len(picture.point) == 2 and not all(map(math.isfinite, array("f", picture.losses))):
        found.append((f"{UNDEFINED} not finite", UNDEFINED_COLOUR))
    return found


class ContourMaps:
    """Draws the part of a contour map that stays the same during a run, and keeps the newest such map."""

    def __init__(self) -> None:
        self.loss_range = 0.0  # from the lowest to the highest finite loss on the newest map
        self._key: object = None
        self._ground = Picture(0, 0)

    def ground(self, picture: SurfacePicture, columns: int, rows: int, depth: Depth) -> Picture:
        """The map without the path. It is drawn again for other losses, another size or another depth."""
        key = picture.low, picture.high, picture.columns, picture.rows, columns, rows, depth, picture.losses
        if key != self._key:
            self._key, self._ground = key, _contour_map(picture, columns, rows, depth)
            finite = [loss for loss in array("f", picture.losses) if math.isfinite(loss)]
            self.loss_range = max(finite, default=0.0) - min(finite, default=0.0)
        return self._ground


def heights(picture: SurfacePicture, columns: int, rows: int) -> list[list[float]]:
    """The height of each cell on the map, from 0 to `LEVELS`, rows from the top; NaN where the loss is not finite.

    It grows with the loss: it is `RANK_PART` of the loss's rank among all cells, and the rest its logarithm.
    """
    losses = [loss if math.isfinite(loss) else math.nan for loss in array("f", picture.losses)]
    grid = resampled(losses, picture.columns, picture.rows, columns, rows)
    known = sorted(loss for row in grid for loss in row if loss == loss)
    if not known or known[0] == known[-1]:
        return [[0.0 if loss == loss else math.nan for loss in row] for row in grid]
    # Above the lowest loss by a thousandth of the median: the logarithm of 0 is infinite.
    low = known[0]
    least = max((known[len(known) // 2] - low) * 1e-3, (known[-1] - low) * 1e-12, 1e-300)
    log_least = math.log(least)
    extent = math.log(known[-1] - low + least) - log_least
    last = max(1, len(known) - 1)

    def height(loss: float) -> float:
        if loss != loss:
            return math.nan
        rank = bisect_left(known, loss) / last
        log = (math.log(loss - low + least) - log_least) / extent
        return LEVELS * (RANK_PART * rank + (1 - RANK_PART) * log)

    return [[height(loss) for loss in row] for row in grid]


def level(height: float) -> int | None:
    """The level of a height, from 0 to `LEVELS` - 1; None for NaN."""
    return None if math.isnan(height) else min(max(int(height), 0), LEVELS - 1)


def _contour_map(picture: SurfacePicture, columns: int, rows: int, depth: Depth) -> Picture:
    drawn = Picture(columns, rows)
    by_cell = heights(picture, columns, rows)
    grounds, contours = (_GROUNDS_256, _CONTOURS_256) if depth == "256" else (_GROUNDS, _CONTOURS)
    levels = [[level(height) for height in row] for row in by_cell]
    has_ground = depth in ("truecolor", "256")
    if has_ground:
        for y, row in enumerate(levels):
            drawn.halves[2 * y] = [None if n is None else grounds[n] for n in row]
            drawn.halves[2 * y + 1] = drawn.halves[2 * y]
    by_dot = resampled([h for row in by_cell for h in row], columns, rows, 2 * columns, 4 * rows)
    whole = [[-1 if h != h else int(h) for h in row] for row in by_dot]
    for y, dots in enumerate(whole):
        below = whole[y + 1] if y + 1 < len(whole) else dots
        row = levels[y // 4]
        for x, n in enumerate(dots):
            right = dots[x + 1] if x + 1 < len(dots) else n
            if n != right or n != below[x]:
                colour = contours[row[x // 2] or 0] if has_ground else CONTOUR_16
                drawn.dot(x, y, colour)
    for y in range(rows):
        for x in range(columns):
            if drawn.dots_in(x, y) > MOST_CONTOUR_DOTS:
                drawn.clear_dots(x, y)
            if levels[y][x] is None:
                drawn.glyph(x, y, UNDEFINED, UNDEFINED_COLOUR)
    return drawn


def is_flat(picture: SurfacePicture, loss_range: float) -> bool:
    """Whether the gradient is so small that its direction is mostly rounding: it would hardly show on the whole map."""
    across = (abs(g) * (high - low) for g, low, high in zip(picture.gradient, picture.low, picture.high, strict=True))
    return max(across) < FLAT_BELOW * loss_range


def _draw_path(drawn: Picture, plane: Plane, picture: SurfacePicture, depth: Depth, *, flat: bool) -> None:
    """Draw the gradient, then the path, then the glyphs: later ones cover earlier ones."""
    positions = path_of(picture)
    now = plane.dot(*picture.point)
    arrow = None if flat else _arrow(picture, plane, now)
    if arrow is not None:
        drawn.line(now, arrow, GRADIENT)
    dots = [plane.dot(*position) for position in positions] + [now]
    for start, end in pairwise(dots):
        drawn.line(start, end, PATH)
    if arrow is not None:
        angle = math.atan2(arrow[1] - now[1], (arrow[0] - now[0]) * 2)  # a dot is half as wide as it is high
        tip = round(arrow[0]) // 2, round(arrow[1]) // 4
        drawn.glyph(*tip, _ARROWS[round(angle / (math.pi / 4)) % 8], GRADIENT)
    if depth == "none":  # a white line looks the same as white contours
        for position in positions:
            if (cell := plane.cell(*position)) is not None:
                drawn.glyph(*cell, "•", PATH)
    draw_critical(drawn, plane, picture)
    if positions and (cell := plane.cell(*positions[0])) is not None:
        drawn.glyph(*cell, "○", NOW)
    if (cell := plane.cell(*picture.point)) is not None:
        drawn.glyph(*cell, "●", NOW, bold=True)


def draw_critical(drawn: Picture, plane: Plane, picture: SurfacePicture) -> None:
    """Draw the glyphs of minima, saddles and maxima."""
    for point in picture.critical:
        if (cell := plane.cell(*point.at)) is not None:
            drawn.glyph(*cell, *CRITICAL[point.kind], bold=True)


def _arrow(picture: SurfacePicture, plane: Plane, now: tuple[float, float]) -> tuple[float, float] | None:
    """The dot at the tip of the arrow along the negative gradient; None if the gradient is 0 or not finite.

    It has the direction in which a small step of gradient descent moves the point on this picture. Its length has no
    meaning.
    """
    shares = [
        -g * size / (high - low)
        for g, low, high, size in zip(
            picture.gradient, picture.low, picture.high, (2 * plane.columns, -4 * plane.rows), strict=True
        )
    ]
    # Converted to lengths on the screen: a dot is half as wide as it is high.
    largest = max(map(abs, shares))
    if plane.cell(*picture.point) is None or largest == 0 or not all(map(math.isfinite, shares)):
        return None
    x, y = (share / largest for share in shares)
    length = max(5.0, 0.14 * min(plane.columns, 4 * plane.rows)) / math.hypot(x / 2, y)
    return now[0] + x * length, now[1] + y * length


def path_of(picture: SurfacePicture) -> list[tuple[float, ...]]:
    """The positions of the path, the oldest first."""
    values, size = array("d", picture.path), len(picture.point)
    return [tuple(values[n : n + size]) for n in range(0, len(values), size)]


def _curve(picture: SurfacePicture, columns: int, rows: int, width: int) -> list[Strip]:
    """A loss of one parameter: its curve, the positions so far on it, and the tangent and a ball at the current
    position.
    """
    plane, losses = curve_plane(picture, columns, rows)
    drawn = Picture(columns, rows)
    (w,), slope = picture.point, picture.gradient[0]
    if math.isfinite(slope) and plane.cell(w, picture.loss) is not None:
        reach = _tangent_reach(plane, slope)
        left, right = (plane.dot(w + d, picture.loss + slope * d) for d in (-reach, reach))
        drawn.line(left, right, GRADIENT)
    draw_curve(drawn, plane, losses)  # over the tangent, which is flat where the curve has its minimum

    def mark(x: float, character: str, colour: str) -> None:
        loss = picture.loss if x == w else loss_at(losses, plane, x)
        if (cell := plane.cell(x, loss)) is not None:
            drawn.glyph(*cell, character, colour, bold=True)

    for point in picture.critical:
        mark(point.at[0], *CRITICAL[point.kind])
    path = path_of(picture)
    for (x,) in path:
        mark(x, "•", PATH)
    if path:
        mark(path[0][0], "○", NOW)
    mark(w, "●", NOW)
    across, up = (Axis(low, high, False) for low, high in zip(plane.low, plane.high, strict=True))
    return with_axes(drawn, across, up, width)


def curve_plane(picture: SurfacePicture, columns: int, rows: int) -> tuple[Plane, list[float]]:
    """Where the points of a loss of one parameter lie on a picture of this size, and the losses of the grid."""
    losses = list(array("f", picture.losses))
    finite = [loss for loss in losses if math.isfinite(loss)] or [0.0]
    low, high = min(finite), max(finite)
    up = Axis.linear(low - 0.04 * (high - low), high)
    return Plane((picture.low[0], up.low), (picture.high[0], up.high), columns, rows), losses


def draw_curve(drawn: Picture, plane: Plane, losses: list[float]) -> None:
    """The curve of a loss of one parameter."""
    step = (plane.high[0] - plane.low[0]) / len(losses)
    points = [plane.dot(plane.low[0] + (n + 0.5) * step, loss) for n, loss in enumerate(losses)]
    for start, end in pairwise(points):
        drawn.line(start, end, CURVE)


def _tangent_reach(plane: Plane, slope: float) -> float:
    """Half of the tangent's extent along the parameter. It is chosen to give the same length on every picture."""
    x_dots = 2 * plane.columns / (plane.high[0] - plane.low[0])
    y_dots = slope * 4 * plane.rows / (plane.high[1] - plane.low[1])
    return 0.2 * min(plane.columns, 4 * plane.rows) / math.hypot(x_dots / 2, y_dots)


def loss_at(losses: list[float], plane: Plane, x: float) -> float:
    """The loss at x, interpolated between the centres of the grid's cells; NaN outside."""
    place = (x - plane.low[0]) / (plane.high[0] - plane.low[0]) * len(losses) - 0.5
    if not -0.5 <= place <= len(losses) - 0.5:
        return math.nan
    first = min(max(int(place), 0), len(losses) - 2)
    return losses[first] + (losses[first + 1] - losses[first]) * (place - first)


def numbers(taken: TaskTaken, width: int) -> Strip:
    """The row of numbers above the picture."""
    picture = taken.picture
    assert isinstance(picture, SurfacePicture)
    names = "w" if len(picture.point) == 1 else "xy"
    line = Line().add(" step ", colours.DIM).add(f"{with_commas(taken.step)}  ", colours.BRIGHT)
    for name, value in zip(names, picture.point, strict=False):
        line.add(f"{name} = ", colours.DIM).add(f"{short(value)}  ", colours.BRIGHT)
    if not all(low <= x <= high for low, x, high in zip(picture.low, picture.point, picture.high, strict=True)):
        return line.add("outside of the picture", colours.ORANGE).to_strip(width)
    loss = short(picture.loss)
    if line.width + len("loss ") + len(loss) > width:
        return line.to_strip(width)
    line.add("loss ", colours.DIM).add(loss, colours.BRIGHT)
    gradient = ", ".join(short(g) for g in picture.gradient)
    gradient = gradient if len(picture.gradient) == 1 else f"({gradient})"
    length = short(math.hypot(*picture.gradient))
    for label, number in (("  gradient ", gradient), ("  |gradient| ", length), ("  |g| ", length)):
        if line.width + len(label) + len(number) <= width:
            return line.add(label, colours.DIM).add(number, colours.BRIGHT).to_strip(width)
    return line.to_strip(width)
