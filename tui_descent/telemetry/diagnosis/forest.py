"""A second opinion where the rules are not sure: trees fitted to nets on which changes were tried out.

`tests/diagnosis_fit.py` fits them: extremely randomized trees (Geurts, Ernst, Wehenkel 2006), each of whose leaves
holds how many of its nets had which illness and which changes made them train.
"""

from __future__ import annotations

import functools
import lzma
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import msgspec

from tui_descent.telemetry.diagnosis.findings import Name, Situation
from tui_descent.telemetry.diagnosis.judging import ADAPTIVE
from tui_descent.telemetry.diagnosis.signs import Signs

FILE = "forest.json.xz"
MISSING, MOST = -50.0, 1e3  # what was not measured; as large as a number counts
LEAST = 1e-40  # as small as a size counts


class Opinion(msgspec.Struct, frozen=True):
    """Shares of the votes, 0…1: for each illness that it is one, for each change that it makes the net train."""

    names: Mapping[Name, float]
    cures: Mapping[str, float]


class Forest(msgspec.Struct, frozen=True, kw_only=True):
    """`nets`: the seeds it was fitted to, first and end. A tree is a leaf or [feature, threshold, low, high].

    A leaf has the percentage of its nets by output, names first; 0 is left out.
    """

    nets: tuple[int, int]
    features: tuple[str, ...]
    names: tuple[Name, ...]
    cures: tuple[str, ...]
    trees: tuple[Any, ...]

    def opinion(self, s: Signs, situation: Situation) -> Opinion:
        """Of a window in a run whose loss at a guess is known."""
        shares = self.shares(list(numbers(s, situation).values()))
        split = len(self.names)
        return Opinion(
            names=dict(zip(self.names, shares[:split], strict=True)),
            cures=dict(zip(self.cures, shares[split:], strict=True)),
        )

    def shares(self, values: Sequence[float]) -> list[float]:
        """By output, of values in the order of `features`."""
        votes = dict.fromkeys(range(len(self.names) + len(self.cures)), 0)
        for node in self.trees:
            while isinstance(node, list):
                feature, threshold, low, high = node
                node = low if values[feature] <= threshold else high
            for output, percent in node.items():
                votes[int(output)] += percent
        return [count / 100 / len(self.trees) for count in votes.values()]


@functools.cache
def forest() -> Forest:
    """The one that is part of the program."""
    packed = resources.files(__package__).joinpath(FILE).read_bytes()
    return msgspec.json.decode(lzma.decompress(packed), type=Forest)


def knows(s: Signs, situation: Situation) -> bool:
    """Whether it is a run of the kind that the trees know: classes to tell apart, a net of blocks, three windows."""
    return situation.classes is not None and not situation.surface and s.blocks > 0 and s.coming is not None


def numbers(s: Signs, situation: Situation) -> dict[str, float]:
    """What the trees look at: losses in those of a guess, sizes as powers of ten."""
    g = s.guess
    losses = {"first": s.first, "now": s.now, "fell": s.fell, "noise": s.noise, "coming": s.coming, "fallen": s.fallen}
    sizes = {
        "product": s.product,
        "first_product": s.first_product,
        "growth": s.growth,
        "moved": s.moved,
        "first_moved": s.first_moved,
        "stride": s.stride,
    }
    plain = {
        "fall": s.fall,
        "slope": s.slope,
        "blocks": s.blocks,
        "dead": s.dead,
        "saturated": s.saturated,
        "scale": s.scale,
        "cosine": s.cosine,
        "adaptive": situation.optimizer in ADAPTIVE,
        "bounded": situation.activation in ("tanh", "sigmoid"),
        "sigmoid": situation.activation == "sigmoid",
        "relu": situation.activation == "relu",
        "residual": situation.residual,
        "norm": situation.norm,
    }
    found: dict[str, float | None] = {name: None if loss is None else loss / g for name, loss in losses.items()}
    found |= {name: None if v is None else math.log10(min(max(v, LEAST), 1 / LEAST)) for name, v in sizes.items()}
    found |= plain
    return {name: MISSING if v is None else max(-MOST, min(float(v), MOST)) for name, v in found.items()}
