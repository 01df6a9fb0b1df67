"""What a diagnosis can say, what it is told of a run besides its numbers, and its words for the screen."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from tui_descent.protocol.events import Advice

Name = Literal[
    "vanishing", "exploding", "diverged", "diverging", "dead units", "saturated", "plateau", "saddle",
    "rate too small", "rate at the edge", "healthy",
]  # fmt: skip


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run besides its numbers; None where nobody said.

    `classes` only for a cross-entropy over classes that can be told apart, whose loss can come near 0. `guess` is the
    loss of a best guess that does not look at the input, where `classes` does not say it: a text's entropy of single
    letters. `surface`: the loss is a function of its parameters, without a net or data.
    """

    classes: int | None = None
    guess: float | None = None
    optimizer: str | None = None
    activation: str | None = None
    residual: bool | None = None
    norm: bool | None = None
    surface: bool = False


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What holds the run up, or "healthy". `sure` is 0…1; `advice` stands best first and may be empty."""

    finding: Name
    layer: str | None = None
    sure: float
    evidence: dict[str, float | str] = {}
    advice: tuple[Advice, ...] = ()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an intervention was expected to lead to and what the next window showed."""

    predicted: Name
    happened: Name
    held: bool


SAID: dict[Name, str] = {
    "vanishing": "On its way back the gradient is multiplied by {product:.1e}.",
    "exploding": "The gradient grows {product:.1e}-fold.",
    "diverged": "The loss is no number since step {step:.0f}.",
    "diverging": "The updates are too large: the loss stands at {loss:.3g}.",
    "dead units": "{share:.0%} of {layer}'s units never answer.",
    "saturated": "{share:.0%} of {layer} is saturated.",
    "plateau": "The loss stands at {loss:.3g} though the gradient arrives.",
    "saddle": "The loss stands at {loss:.3g} on a saddle.",
    "rate too small": "The rate is too small: the loss stands at {loss:.3g}.",
    "rate at the edge": "Every step jumps to the other side of the valley.",
    "healthy": "It trains: the loss stands at {loss:.3g}.",
}


UNKNOWN = "unknown"  # evidence that was not asked for
FLAT = "Flat at {loss:.3g}: a minimum or a saddle? Try 5 curvature."
TELLS = 1e-2  # of the last block's gradient: with more than that in the first one the product tells more


def sentence(finding: Finding) -> str:
    """One line for the screen."""
    said, places = SAID[finding.finding], {"layer": finding.layer or "the net", "last": finding.evidence.get("last")}
    names = {key: ".".join(str(name).split(".")[:2]) for key, name in places.items()}
    ratio = finding.evidence.get("first_to_last_grad")
    # Where a layer's inputs are large, its weights' gradient is, too, however little came back to it.
    if finding.finding == "vanishing" and isinstance(ratio, float) and ratio < TELLS:
        said = "{layer} gets {first_to_last_grad:.1e} of {last}'s gradient."
    if finding.evidence.get("curvature") == UNKNOWN:
        said = FLAT
    text = said.format_map({"product": math.nan} | finding.evidence | names)
    for a in finding.advice[:1]:
        words = " ".join(part.rpartition("=")[2] for part in a.value.split(","))
        text += f" Try {a.key} {a.knob}" + ("." if a.knob in ("residual", "undo") else f" {words}.")
    return text
