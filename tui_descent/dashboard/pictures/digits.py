"""Digits or other images: what the net takes them for, and which ones it confuses most often."""

from __future__ import annotations

from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.picture import Depth, Picture
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import with_commas
from tui_descent.protocol.events import TaskTaken
from tui_descent.protocol.task_pictures import NO_GUESS, DigitsPicture

MOST = 16  # the largest value of a pixel
GUESS = 8  # columns of the guess below an image
GAP = 2  # columns between two images
GAPS_FROM = 4  # with as many rows of images there is also a gap between them
LIST_WIDTH = 22  # for the confused digits, if there is room beside at least two images
INK_FROM = 6  # without colours, pixels from this value on are drawn
RIGHT, WRONG, UNKNOWN, REST = "#57ab7f", "#f0625d", "#7d8590", "#3a3a3a"

_GREYS = tuple(
    "#" + "".join(f"{dark + (light - dark) * n // MOST:02x}" for dark, light in ((27, 232), (32, 235), (41, 240)))
    for n in range(MOST + 1)
)
_GREYS_256 = tuple("#" + 3 * f"{28 + 10 * (21 * n // MOST):02x}" for n in range(MOST + 1))
_GREYS_16 = ("#000000",) * 3 + ("#808080",) * 4 + ("#c0c0c0",) * 5 + ("#ffffff",) * 5


def draw(picture: DigitsPicture, width: int, height: int, depth: Depth) -> list[Strip]:
    """`height` rows of `width` cells: as many whole images as fit, and at the right the confused digits."""
    # Cells from one image to the next: a gap beside it, below it the guess.
    step, down = max(picture.width, GUESS) + GAP, (picture.height + 1) // 2 + 1
    list_width = LIST_WIDTH if width >= LIST_WIDTH + 2 * step else 0
    across, row_height = (width - list_width) // step, down + ((height + 1) // (down + 1) >= GAPS_FROM)
    drawn = Picture(across * step, height)
    for n in range(min(across * (height // row_height), len(picture.digits))):
        left, top = n % across * step, n // across * row_height
        _draw_image(drawn, picture, n, left + 1, top, depth)
        _draw_guess(drawn, picture, n, left + 1, top + down - 1)
    beside = _confusions(picture, height) if list_width else []
    rows = []
    for y, segments in enumerate(drawn.segments()):
        line = Line().extend(segments).pad_to(width - list_width)
        for text, style in beside[y] if y < len(beside) else ():
            line.add(text, style)
        rows.append(line.to_strip(width))
    return rows


def numbers(taken: TaskTaken, width: int) -> Strip:
    """The row of numbers above the picture."""
    picture = taken.picture
    assert isinstance(picture, DigitsPicture)
    line = Line().add(" step ", colours.DIM).add(f"{with_commas(taken.step)}  ", colours.BRIGHT)
    line.add(with_commas(picture.right), colours.BRIGHT).add(f" of {with_commas(picture.count)} ", colours.DIM)
    return line.add("held-out images are recognised", colours.DIM).to_strip(width)


def legend() -> str:
    """What the glyphs mean, as Textual markup."""
    return f"[{RIGHT}]✓[/] right  [{WRONG}]✗[/] wrong (true class)  ━ how sure"


def _draw_image(drawn: Picture, picture: DigitsPicture, n: int, left: int, top: int, depth: Depth) -> None:
    size = picture.height * picture.width
    pixels = picture.pixels[n * size : (n + 1) * size]
    rows = [pixels[y * picture.width : (y + 1) * picture.width] for y in range(picture.height)]
    left += max(0, GUESS - picture.width) // 2
    if depth == "none":
        for y in range(0, picture.height, 2):
            below = rows[y + 1] if y + 1 < picture.height else bytes(picture.width)
            for x, (upper, lower) in enumerate(zip(rows[y], below, strict=True)):
                glyph = " ▄▀█"[2 * (upper >= INK_FROM) + (lower >= INK_FROM)]
                drawn.glyph(left + x, top + y // 2, glyph, "#ffffff")
        return
    greys = {"truecolor": _GREYS, "256": _GREYS_256, "16": _GREYS_16}[depth]
    for half_row, row in enumerate(rows, 2 * top):
        if half_row < len(drawn.halves):
            drawn.halves[half_row][left : left + picture.width] = (greys[min(pixel, MOST)] for pixel in row)


def _draw_guess(drawn: Picture, picture: DigitsPicture, n: int, left: int, row: int) -> None:
    """The guess, and beside it a bar: how sure the net is."""
    digit, guess = picture.digits[n], picture.guesses[n]
    if guess == NO_GUESS:
        text, colour = "NaN/inf ", UNKNOWN
    else:
        text, colour = (f"{guess}✓ ", RIGHT) if guess == digit else (f"{guess}✗({digit})", WRONG)
    bar = max(0, GUESS - len(text))
    filled = round(picture.sureness[n] / 255 * bar)
    for x, character in enumerate(text + "━" * filled + "─" * (bar - filled)):
        drawn.glyph(left + x, row, character, REST if character == "─" else colour)


def _confusions(picture: DigitsPicture, height: int) -> list[list[tuple[str, Style]]]:
    """The rows of the list, each as pieces of styled text."""
    if not picture.confusions and picture.right < picture.count:
        return [[(text, colours.ORANGE)] for text in ("the outputs are", "NaN or infinite")]
    if not picture.confusions:
        return [[("no class is confused", colours.DIM)]]
    rows = [[("most often confused", colours.DIM)]]
    for pair in picture.confusions[: max(0, height - 1)]:
        rows.append(
            [
                (f"{pair.true}", colours.BRIGHT),
                (" taken for ", colours.DIM),
                (f"{pair.guess}", Style.parse(f"bold {WRONG}")),
                (f"{pair.count:>5}×", colours.TEXT),
            ]
        )
    return rows
