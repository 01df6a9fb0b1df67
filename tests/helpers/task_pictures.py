"""Pictures of tasks, computed without torch."""

from __future__ import annotations

import math
from array import array
from itertools import chain

from tui_descent.protocol.events import TaskTaken
from tui_descent.protocol.task_pictures import (
    AdditionPicture,
    ClassesPicture,
    ClassGroup,
    Confusion,
    CriticalPoint,
    DigitsPicture,
    RegionsPicture,
    SurfacePicture,
    TaskPicture,
    TextPicture,
)


def taken(picture: TaskPicture, step: int = 40) -> TaskTaken:
    return TaskTaken(segment=0, step=step, picture=picture, seconds=0.001)


def saddle(x: float, y: float) -> float:
    return x * x - y * y + y**4 / 4


def surface_picture(columns: int = 70, rows: int = 20, **changed: object) -> SurfacePicture:
    """The saddle with a path that has reached (0.2, 0.3); `changed` replaces fields."""
    low, high = (-1.25, -1.8), (1.25, 1.8)
    xs = [low[0] + (n + 0.5) * 2.5 / columns for n in range(columns)]
    ys = [high[1] - (n + 0.5) * 3.6 / rows for n in range(rows)]
    path = [(1.0, 0.01), (0.6, 0.05), (0.4, 0.12)]
    fields: dict[str, object] = {
        "low": low,
        "high": high,
        "columns": columns,
        "rows": rows,
        "losses": array("f", [saddle(x, y) for y in ys for x in xs]).tobytes(),
        "critical": (
            CriticalPoint("saddle", (0.0, 0.0)),
            CriticalPoint("minimum", (0.0, 2**0.5)),
            CriticalPoint("minimum", (0.0, -(2**0.5))),
        ),
        "path": array("d", chain.from_iterable(path)).tobytes(),
        "point": (0.2, 0.3),
        "loss": saddle(0.2, 0.3),
        "gradient": (0.4, -0.573),
    }
    return SurfacePicture(**{**fields, **changed})  # type: ignore[arg-type]


def curve_picture(columns: int = 70, **changed: object) -> SurfacePicture:
    """The parabola (2w - 3)² with the point at 1.1; `changed` replaces fields."""
    ws = [0.88 + (n + 0.5) * 1.24 / columns for n in range(columns)]
    fields: dict[str, object] = {
        "low": (0.88,),
        "high": (2.12,),
        "columns": columns,
        "rows": 1,
        "losses": array("f", [(2 * w - 3) ** 2 for w in ws]).tobytes(),
        "critical": (CriticalPoint("minimum", (1.5,)),),
        "path": array("d", [1.0, 1.9]).tobytes(),
        "point": (1.1,),
        "loss": 0.64,
        "gradient": (-3.2,),
    }
    return SurfacePicture(**{**fields, **changed})  # type: ignore[arg-type]


def regions_picture(columns: int = 70, rows: int = 40, **changed: object) -> RegionsPicture:
    """Class 1 inside of a circle of radius 1; `changed` replaces fields."""
    xs = [-2 + (n + 0.5) * 4 / columns for n in range(columns)]
    ys = [2 - (n + 0.5) * 4 / rows for n in range(rows)]
    points = [(r * math.cos(n), r * math.sin(n)) for n in range(40) for r in (0.6, 1.4)]
    fields: dict[str, object] = {
        "low": (-2.0, -2.0),
        "high": (2.0, 2.0),
        "columns": columns,
        "rows": rows,
        "predictions": bytes(prediction(x, y) for y in ys for x in xs),
        "points": array("f", chain.from_iterable(points)).tobytes(),
        "classes": bytes([1, 0] * 40),
        "right": bytes([0] * 3 + [1] * 77),
    }
    return RegionsPicture(**{**fields, **changed})  # type: ignore[arg-type]


def prediction(x: float, y: float) -> int:
    p = 1 / (1 + math.exp(min(700.0, 6 * (x * x + y * y - 1))))
    return max(128, 1 + int(254 * p)) if p >= 0.5 else min(127, 1 + int(254 * p))


def digits_picture(count: int = 96, **changed: object) -> DigitsPicture:
    """Images of diagonals; every fourth one is not recognised. `changed` replaces fields."""
    image = bytes(16 if abs(x - y) < 2 else 5 * (x == 0) for y in range(8) for x in range(8))
    digits = [n % 10 for n in range(count)]
    fields: dict[str, object] = {
        "pixels": image * count,
        "digits": bytes(digits),
        "guesses": bytes((d + 3) % 10 if n % 4 == 2 else d for n, d in enumerate(digits)),
        "sureness": bytes(n * 29 % 256 for n in range(count)),
        "right": 270,
        "count": 360,
        "confusions": (Confusion(9, 4, 12), Confusion(8, 1, 7), Confusion(3, 5, 1)),
    }
    return DigitsPicture(**{**fields, **changed})  # type: ignore[arg-type]


def text_picture(windows: int = 24, context: int = 32, **changed: object) -> TextPicture:
    """Text that is predicted better and better along each window; `changed` replaces fields."""
    text = ("def f(x):\n    return x + 1  # " * 400)[: windows * context]
    losses = [4.5 * (1 - n % context / context) for n in range(len(text))]
    fields: dict[str, object] = {
        "lines": tuple(f"line {n} of what the net writes\nand on" for n in range(6)),
        "new": 3,
        "windows": tuple(text[n * context : (n + 1) * context] for n in range(windows)),
        "losses": array("f", losses).tobytes(),
        "loss": 2.3,
    }
    return TextPicture(**{**fields, **changed})  # type: ignore[arg-type]


def addition_picture(modulus: int = 41, **changed: object) -> AdditionPicture:
    """Two of three pairs are trained; the net is right on all of these, and on a third of the others."""
    cells = bytes((n % 3 == 0) + 2 * (n % 3 > 0 or n % 9 == 0) for n in range(modulus**2))
    fields: dict[str, object] = {
        "modulus": modulus,
        "cells": cells,
        "trained": 1120,
        "trained_right": 1120,
        "held_out": 561,
        "held_out_right": 187,
    }
    return AdditionPicture(**{**fields, **changed})  # type: ignore[arg-type]


def classes_picture(sizes: int = 8, **changed: object) -> ClassesPicture:
    """The rarer the classes, the larger their loss."""
    fields: dict[str, object] = {
        "groups": tuple(
            ClassGroup(classes=2**n, samples=2 ** (sizes - 1 - n), loss=0.02 + n, right=1 - n / sizes)
            for n in range(sizes)
        ),
        "guess": math.log(2**sizes - 1),
    }
    return ClassesPicture(**{**fields, **changed})  # type: ignore[arg-type]
