"""Draws a picture of the task, of any kind."""

from __future__ import annotations

from textual.strip import Strip

from tui_descent.dashboard.charts.picture import Depth
from tui_descent.dashboard.charts.plane import plane_size
from tui_descent.dashboard.pictures import addition, classes, digits, index, modes, race, regions, surface, text
from tui_descent.protocol.events import TaskTaken
from tui_descent.protocol.task_pictures import (
    AdditionPicture,
    ClassesPicture,
    DigitsPicture,
    IndexPicture,
    ModesPicture,
    RacePicture,
    RegionsPicture,
    SurfacePicture,
    TaskPicture,
    TextPicture,
)

INFO_ROWS = 1  # above each picture: the numbers that belong to it


def grid(width: int, height: int) -> tuple[int, int]:
    """The columns and rows of the picture to ask for, for a panel of `width` × `height` cells."""
    return plane_size(width, height - INFO_ROWS)


class Drawings:
    """Draws the pictures of one panel. It keeps the parts that stay the same from one picture to the next."""

    def __init__(self) -> None:
        self._maps = surface.ContourMaps()

    def draw(self, taken: TaskTaken, width: int, height: int, depth: Depth) -> list[Strip]:
        """At most `height` rows of `width` cells: a row of numbers, and below it the picture."""
        below = height - INFO_ROWS
        match taken.picture:
            case SurfacePicture() as picture:
                return [surface.numbers(taken, width), *surface.draw(picture, width, below, depth, self._maps)]
            case RacePicture() as picture:
                return [race.numbers(taken, width), *race.draw(picture, width, below, depth, self._maps)]
            case IndexPicture() as picture:
                return [index.numbers(taken, width), *index.draw(picture, width, below)]
            case ModesPicture() as picture:
                return [modes.numbers(taken, width), *modes.draw(picture, width, below)]
            case RegionsPicture() as picture:
                return [regions.numbers(taken, width), *regions.draw(picture, width, below, depth)]
            case DigitsPicture() as picture:
                return [digits.numbers(taken, width), *digits.draw(picture, width, below, depth)]
            case TextPicture() as picture:
                return [text.numbers(taken, width), *text.draw(picture, width, below)]
            case AdditionPicture() as picture:
                return [addition.numbers(taken, width), *addition.draw(picture, width, below, depth)]
            case ClassesPicture() as picture:
                return [classes.numbers(taken, width), *classes.draw(picture, width, below)]


def title(picture: TaskPicture) -> str:
    """What kind of picture it is, in a few words."""
    match picture:
        case SurfacePicture():
            return "contour map of the loss" if len(picture.point) == 2 else "the loss as a function of w"
        case RacePicture():
            return "the path of each lane"
        case IndexPicture():
            return "loss against the number of negative curvatures"
        case ModesPicture():
            return modes.title(picture)
        case RegionsPicture():
            return "the class that the net predicts"
        case DigitsPicture():
            return "held-out images and what the net takes them for"
        case TextPicture():
            return "what the net writes, and how well it predicts"
        case AdditionPicture():
            return f"which sums a + b mod {picture.modulus} are right"
        case ClassesPicture():
            return "the loss of common and of rare classes"


def legend(picture: TaskPicture, depth: Depth, width: int) -> str:
    """What the glyphs mean, for the border of a panel of `width` cells, as Textual markup."""
    match picture:
        case SurfacePicture():
            return surface.legend(picture, width)
        case RacePicture():
            return race.legend(picture)
        case IndexPicture():
            return index.legend()
        case ModesPicture():
            return modes.legend(picture)
        case RegionsPicture():
            return regions.legend(picture, depth, width)
        case DigitsPicture():
            return digits.legend()
        case TextPicture():
            return text.legend()
        case AdditionPicture():
            return addition.legend(depth)
        case ClassesPicture():
            return ""
