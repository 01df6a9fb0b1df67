"""Pictures of what is being learnt, for the task view. The trainer makes them; each has a bounded size."""

from __future__ import annotations

from typing import Literal

import msgspec

# The largest number of cells of a grid. A net has to be evaluated at every cell; a test surface costs almost nothing.
MAX_NET_CELLS = 4096
MAX_SURFACE_CELLS = 12_288
MAX_PATH = 768  # positions of the path on a surface
MAX_RACE_PATHS = 1536  # positions of all paths of a race together
MAX_SAMPLES = 512  # points of a data set in the plane
MAX_INDEX_PATH, MAX_FOUND = 512, 64  # pictures of the path, and critical points
MAX_DIGITS = 96  # images
MAX_IMAGE_SIDE = 16  # larger images are made smaller
MAX_CONFUSIONS = 8
MAX_TEXT = 2048  # characters of held-out text
TEXT_LINES, MAX_LINE = 6, 120  # lines that the net writes, and their characters


CriticalPointKind = Literal["minimum", "saddle", "maximum"]


class CriticalPoint(msgspec.Struct, frozen=True):
    """A point of a test surface where the gradient is 0."""

    kind: CriticalPointKind
    at: tuple[float, ...]


class SurfacePicture(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="surface"):
    """A test surface around the run's path, and the run's position on it.

    `losses` are the bytes of an `array('f')`, at the centres of `rows` × `columns` equal cells between the corners
    `low` and `high`. The row with the largest second coordinate comes first. A loss of one parameter has one row.

    `path` has the bytes of an `array('d')`: the positions from the start on, without the current position, `point`. Of
    a long path only some positions are kept. `loss` and `gradient` are measured at `point`.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    columns: int
    rows: int
    losses: bytes
    critical: tuple[CriticalPoint, ...]
    path: bytes
    point: tuple[float, ...]
    loss: float
    gradient: tuple[float, ...]


class LanePath(msgspec.Struct, frozen=True):
    """The path of one lane of a race: the bytes of an `array('f')`, from the start to the current position."""

    path: bytes


class RacePicture(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="race"):
    """A test surface with the path of each lane of a race, in the order of `RunStarted.lanes`.

    The path, the point, the loss and the gradient of `surface` are not used.
    """

    surface: SurfacePicture
    lanes: tuple[LanePath, ...]


class FoundPoint(msgspec.Struct, frozen=True):
    """A critical point of the loss that was found: `index` of the Hessian's eigenvalues are negative there."""

    kind: Literal["minimum", "saddle"]
    index: int
    loss: float


class IndexPicture(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="index"):
    """The loss of a small net against its index, the number of negative eigenvalues of the Hessian, along the run.

    `path` has the bytes of an `array('f')`: index and loss at each picture so far, the last one now. `found` are the
    critical points that were found by minimising ‖∇L‖² from there, each once. `parameters` is the largest index.
    """

    parameters: int
    path: bytes
    found: tuple[FoundPoint, ...]


class ModesPicture(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="modes"):
    """How much of each mode of its map a two-layer net has learnt. `targets` are the map's singular values.

    `steps` are the bytes of an `array('q')`: numbers of updates, the oldest first, the last one is the current. For
    each of them, `strengths`, the bytes of an `array('f')`, has the strength of each mode, from 0 to its target.
    """

    targets: tuple[float, ...]
    steps: bytes
    strengths: bytes


class RegionsPicture(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="regions"):
    """Data in the plane with two classes, and which class the net predicts where.

    `predictions` has a byte for the centre of each of `rows` × `columns` equal cells between the corners `low` and
    `high`, the upper row first: 0 where an output is not finite, 1 to 127 for class 0, 128 to 255 for class 1. The
    probability of class 1 is (byte - 1) / 254.

    `points` are the bytes of an `array('f')` with x and y of each point; `classes` and `right` have a byte for each
    point: its true class, and 1 if the net predicts that class. `names` are the labels of the two classes in the
    user's file, or empty.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    columns: int
    rows: int
    predictions: bytes
    points: bytes
    classes: bytes
    right: bytes
    names: tuple[str, ...] = ()


class Confusion(msgspec.Struct, frozen=True):
    """How many images of the digit `true` the net takes for a `guess`."""

    true: int
    guess: int
    count: int


class DigitsPicture(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="digits"):
    """What the net takes held-out digits for, or other images with numbered classes.

    The first images of the held-out data are always the same ones. `pixels` has `height` · `width` bytes from 0 to 16
    for each, row by row; large images are made smaller. The other fields have one byte for each: the digit, the net's
    guess (`NO_GUESS` if an output is not finite) and how sure it is, from 0 to 255: its probability or, with mse, its
    output.

    `right` of all `count` held-out images are recognised; `confusions` are their most frequent mistakes.
    """

    pixels: bytes
    digits: bytes
    guesses: bytes
    sureness: bytes
    right: int
    count: int
    confusions: tuple[Confusion, ...]
    height: int = 8
    width: int = 8


NO_GUESS = 255


class TextPicture(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="text"):
    """What the net writes, and how well it predicts held-out text.

    `lines` are written character by character, each drawn from the net's predictions for the characters before it.
    From one picture to the next they get a few characters longer; `new` is how many.

    `windows` are pieces of held-out text that the net sees one by one. `losses` are the bytes of an `array('f')`: the
    cross-entropy of each of their characters, in nats. `loss` is their mean.
    """

    lines: tuple[str, ...]
    new: int
    windows: tuple[str, ...]
    losses: bytes
    loss: float


class AdditionPicture(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="addition"):
    """The table of a modular addition: which sums the net gets right.

    `cells` has a byte for each pair (a, b), the pairs with a = 0 first: 1 if the pair is held out, plus 2 if the net's
    answer is right. The numbers count pairs.
    """

    modulus: int
    cells: bytes
    trained: int
    trained_right: int
    held_out: int
    held_out_right: int


class ClassGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The classes of one size: how many they are, the training samples of each, and what the net makes of them.

    `loss` is the mean over their training samples, in nats; NaN if an output is not finite. `right` is the share of
    their held-out samples that are recognised.
    """

    classes: int
    samples: int
    loss: float
    right: float


class ClassesPicture(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="classes"):
    """Loss and accuracy by the size of the classes, the largest classes first. `guess` is the loss of a guess."""

    groups: tuple[ClassGroup, ...]
    guess: float


TaskPicture = (
    SurfacePicture
    | RacePicture
    | ModesPicture
    | IndexPicture
    | RegionsPicture
    | DigitsPicture
    | TextPicture
    | AdditionPicture
    | ClassesPicture
)


def grid_size(columns: int, rows: int, most: int) -> tuple[int, int]:
    """The grid for a picture of `columns` × `rows` cells: the same, or a coarser one with at most `most` cells."""
    columns, rows = max(2, columns), max(1, rows)
    if columns * rows > most:
        shrink = (most / (columns * rows)) ** 0.5
        columns, rows = max(2, int(columns * shrink)), max(1, int(rows * shrink))
    return min(columns, most), max(1, min(rows, most // min(columns, most)))
