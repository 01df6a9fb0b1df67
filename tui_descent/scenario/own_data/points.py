"""Points in the plane with two classes from a CSV file: x, y, label."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import msgspec

from tui_descent.scenario.own_data.files import SAMPLES, read_text, shown, version
from tui_descent.scenario.spec import OwnPointsData
from tui_descent.scenario.validate import escape_controls, shorten

MAX_BYTES = 10_000_000
MIN_POINTS, MAX_POINTS = 20, 100_000
LARGEST = 1e9  # of a coordinate
MAX_LABEL = 40  # characters
HELD_OUT = 0.2  # fraction of the points
CLASSES = 2
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class Points(msgspec.Struct, frozen=True, kw_only=True):
    """Coordinates and class numbers, one of each per point. `names` are the labels of the classes."""

    x: list[float]
    y: list[float]
    classes: bytes
    names: tuple[str, ...]


def training_count(data: OwnPointsData) -> int:
    """How many points are for training."""
    count = len(read(data).x)
    return count - int(count * HELD_OUT)


def read(data: OwnPointsData) -> Points:
    """Read the points. The columns are separated by commas, semicolons or tabs; the first line may be a heading, and
    empty lines and lines that begin with # are skipped. Raises `ValueError`.
    """
    path = Path(data.path) if data.path else SAMPLES / "two-fields.csv"
    return _read(path, version(path))


@lru_cache(maxsize=1)
def _read(path: Path, version: object) -> Points:
    xs: list[float] = []
    ys: list[float] = []
    labels: list[str] = []
    for line, (x, y, label) in _rows(path, read_text(path, MAX_BYTES)):
        if len(xs) == MAX_POINTS:
            raise ValueError(f"{shown(path)} has more than {MAX_POINTS:,} points, the limit")
        xs.append(_number(path, line, "x", x))
        ys.append(_number(path, line, "y", y))
        if not label or len(label) > MAX_LABEL:
            found = "no label" if not label else f"a label of {len(label)} characters"
            raise ValueError(f"{shown(path)}: line {line:,} has {found}; allowed: 1 to {MAX_LABEL} characters")
        labels.append(label)
    if len(xs) < MIN_POINTS:
        raise ValueError(f"{shown(path)} has {len(xs)} points; needs at least {MIN_POINTS}")
    for name, values in (("x", xs), ("y", ys)):
        if max(values) - min(values) <= 1e-9 * max(map(abs, values)):
            raise ValueError(f"{shown(path)}: {name} is {values[0]:g} for all points; it must differ")
    names = sorted(set(labels), key=_in_order)
    if len(names) != CLASSES:
        some = ", ".join(escape_controls(name) for name in names[:4]) + (", …" if len(names) > 4 else "")
        raise ValueError(f"{shown(path)} has {len(names)} different labels ({some}); allowed: {CLASSES}")
    return Points(x=xs, y=ys, classes=bytes(names.index(label) for label in labels), names=tuple(names))


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows with points: the number of each line, and its three columns."""
    separator = ""
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip() or content.lstrip().startswith("#"):
            continue
        first = not separator
        separator = separator or next((sign for sign in ";\t" if sign in content), ",")
        if len(content) > 1000:
            raise ValueError(f"{shown(path)}: line {line:,} has {len(content):,} characters; allowed: 1,000")
        try:
            row = [column.strip() for column in next(csv.reader([content], delimiter=separator))]
        except csv.Error as error:
            raise ValueError(f"{shown(path)}: line {line:,}: {error}") from None
        if len(row) != 3:
            raise ValueError(f"{shown(path)}: line {line:,} has {_columns(len(row))}; allowed: three, x,y,label")
        if first and not any(_NUMBER.fullmatch(column) for column in row[:2]):
            continue  # a heading
        yield line, row


def _columns(count: int) -> str:
    return "one column" if count == 1 else f"{count} columns"


def _number(path: Path, line: int, name: str, text: str) -> float:
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not abs(value) <= LARGEST:
        found = escape_controls(shorten(text, 40))
        raise ValueError(f'{shown(path)}: line {line:,}: {name} is "{found}"; allowed: a number up to {LARGEST:g}')
    return value


def _in_order(label: str) -> tuple[float, str]:
    """Numbers by their value, other labels by the alphabet and after all numbers."""
    return (float(label) if _NUMBER.fullmatch(label) else math.inf), label
