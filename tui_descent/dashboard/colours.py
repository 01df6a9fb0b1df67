"""Colours for magnitude (cividis) and state (green, orange, red); everything else is grey on near-black.

Where a terminal has 16 colours, it takes the nearest one: green, brown, bright red; yellow for keys, magenta for marks.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from rich.color import Color
from rich.style import Style

from tui_descent.protocol.events import RunEnded
from tui_descent.protocol.exit_status import script_failed_after_run

Rgb = tuple[int, int, int]

LEVELS = 24
_CIVIDIS = ("00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "e1cc55", "fee838")

BACKGROUND = "#0f1115"
TEXT = Style.parse("#c9ced6")
BRIGHT = Style.parse("bold #f0f3f7")
DIM = Style.parse("#7d8590")
FAINT = Style.parse("#4a5260")
KEY = Style.parse("bold #e1cc55")
NAME = Style.parse("bold #e1cc55")
GREEN = Style.parse("#57ab5f")
ORANGE = Style.parse("#d07f30")
RED = Style.parse("bold #f0625d")
CHOSEN = Style.parse("bold #f0f3f7 on #2b313b")
PICTURE = Style.parse("#f5d052")
MARK = Style.parse("#d96dac")
PAPER = (15, 17, 21)  # the background
CURVE = (245, 208, 82)
BAND = (78, 100, 138)  # a second curve
DIMMING = 0.6  # the share of the background in a dimmed colour
CURVE_TEXT = Style.parse("bold #f5d052")
POINT = Style.parse("bold #f0f3f7")

_STATES = {
    "running": GREEN,
    "finished": GREEN,
    "held": ORANGE,
    "stopping": ORANGE,
    "paused": Style.parse("#e1cc55"),
    "testing": Style.parse("#e1cc55"),
    "diverged": RED,
    "failed": RED,
    "lost": RED,
}
# A state can also be told by its character: without colours, and by those who see red and green alike.
_GLYPHS = {
    **dict.fromkeys(("running", "testing"), "●"),
    "paused": "‖",
    **dict.fromkeys(("held", "stopping", "silent"), "▲"),
    "finished": "✓",
    **dict.fromkeys(("diverged", "failed", "lost", "disconnected"), "✕"),
}


def state_glyph(word: str) -> str:
    """The character before a run state's word, which may have more words after it; a circle for neutral states."""
    return _GLYPHS.get(word.partition(" ")[0], "○")


def state_style(word: str) -> Style:
    """The style of a run state's word; grey for neutral states."""
    return _STATES.get(word, DIM)


def end_style(ended: RunEnded) -> Style:
    """The style for the end of a run. It is also red if the run ended well but its script failed afterwards."""
    return state_style("failed" if script_failed_after_run(ended) else ended.status)


def diagnosis_style(finding: str) -> Style:
    known = {"healthy": GREEN, "converged": GREEN, "diverged": RED, "non-finite": RED}
    known |= {"not clear": DIM, "rate at the edge": TEXT, "frozen layers": TEXT}
    return known.get(finding, ORANGE)


def _mixed(level: int) -> tuple[int, int, int]:
    place = level / (LEVELS - 1) * (len(_CIVIDIS) - 1)
    low = min(int(place), len(_CIVIDIS) - 2)
    a, b = (bytes.fromhex(_CIVIDIS[n]) for n in (low, low + 1))
    r, g, b_ = (round(x + (y - x) * (place - low)) for x, y in zip(a, b, strict=True))
    return r, g, b_


# A ramp among the 256 colours of a terminal without true colour, from dark to bright. Among these, the colours nearest
# to cividis would be teal, olive and pink, and not ordered by lightness.
_RAMP_256 = (233, 235, 236, 238, 239, 241, 242, 244, 246, 144, 185, 227)


class Palette(NamedTuple):
    """The colours of the levels; `darkest_text` is the lowest level in which text can be read on near-black.

    `band` is the colour of the band from the lowest to the highest loss. With `shaded` it is drawn as `░`, because no
    colour is dark enough for a background. `grid`: the lines at the axis numbers; None if no colour is dark enough.
    `ghost`: the loss curves of undone steps. `can_dim`: there is a darker colour for each level.
    """

    colours: tuple[Color, ...]
    darkest_text: int
    band: Rgb
    grid: Rgb | None
    ghost: Rgb
    shaded: bool = False
    can_dim: bool = True


TRUE_COLOUR = Palette(
    tuple(Color.from_rgb(*_mixed(level)) for level in range(LEVELS)),
    darkest_text=4,
    band=(37, 46, 66),
    grid=(38, 44, 54),
    ghost=(122, 110, 78),
)
# With 16 colours each of them is replaced by the nearest one; without colours, Textual turns them into greys.
FEW_COLOURS = TRUE_COLOUR._replace(band=(125, 133, 144), grid=None, shaded=True, can_dim=False)
# Each true colour is exactly the palette colour with its number, so the terminal does not replace it by another one.
COLOURS_256 = Palette(
    tuple(
        Color.from_triplet(Color.from_ansi(_RAMP_256[level * len(_RAMP_256) // LEVELS]).get_truecolor())
        for level in range(LEVELS)
    ),
    darkest_text=8,
    band=(48, 48, 48),
    grid=(38, 38, 38),
    ghost=(135, 135, 95),
    can_dim=False,
)
_palette = TRUE_COLOUR


def choose_palette(colour_system: str | None) -> None:
    """Use the palette for a terminal's `colour_system`, as rich names it: `truecolor`, `256`, `standard`; or `none`."""
    global _palette
    _palette = {"256": COLOURS_256, "standard": FEW_COLOURS, "none": FEW_COLOURS}.get(colour_system or "", TRUE_COLOUR)
    for cached in (heat_cell, level_style, marked_cell, dimmed_cell, _dimmed):
        cached.cache_clear()


def palette() -> Palette:
    """The palette in use."""
    return _palette


@cache
def heat_cell(top: int | None, bottom: int | None, *, dim: bool = False) -> Style:
    """The style of `▀` with palette levels for its upper and lower half; None is the background colour."""
    ground = Color.parse(BACKGROUND)
    shades = [_dimmed(level) if dim else _palette.colours[level] for level in (top, bottom) if level is not None]
    return Style(
        color=shades[0] if top is not None else ground,
        bgcolor=shades[-1] if bottom is not None else ground,
    )


@cache
def _dimmed(level: int) -> Color:
    """A level's colour mixed with the background."""
    r, g, b = (
        round(DIMMING * dark + (1 - DIMMING) * bright)
        for dark, bright in zip(PAPER, _palette.colours[level].get_truecolor(), strict=True)
    )
    return Color.from_rgb(r, g, b)


@cache
def dimmed_cell(top: int | None, bottom: int | None) -> tuple[str, Style]:
    """A heat-map cell without a reading of its own: character and style.

    With few colours a dimmed colour would look like another level, so the cell is stippled.
    """
    if _palette.can_dim or (top is None and bottom is None):
        return "▀" if top != bottom else " ", heat_cell(top, bottom, dim=True)
    return "░", Style(color=heat_cell(top, bottom).color if top is not None else heat_cell(bottom, None).color)


@cache
def level_style(level: int) -> Style:
    """The style for text in a level's colour.

    The darkest levels are lightened, because they cannot be read on near-black.
    """
    return Style(color=_palette.colours[max(level, _palette.darkest_text)])


@cache
def marked_cell(level: int | None, *, dim: bool = False) -> Style:
    """The style for an intervention mark on a heat-map cell."""
    level = None if dim and not _palette.can_dim else level
    return Style(color=MARK.color, bgcolor=heat_cell(None, level, dim=dim).bgcolor)


def level_of(log: float, low: int, high: int) -> int | None:
    """The palette level of a log10 magnitude on a scale of decades; None for NaN."""
    if math.isnan(log):
        return None
    place = (log - low) / (high - low) * LEVELS
    return 0 if place < 0 else LEVELS - 1 if place >= LEVELS else int(place)


def legend(width: int) -> str:
    """The palette as Textual markup, for the legend in a panel's border."""
    colours = [_palette.colours[n * (LEVELS - 1) // max(1, width - 1)] for n in range(width)]
    return "".join(f"[{c.triplet.hex}]█[/]" for c in colours if c.triplet is not None)


def band_sample() -> str:
    """The loss chart's band as Textual markup, for its legend."""
    r, g, b = _palette.band
    return f"[#{r:02x}{g:02x}{b:02x}]{'░' if _palette.shaded else '█'}[/]"
