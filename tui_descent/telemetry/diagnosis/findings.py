"""What a diagnosis can say, in data and in a sentence for the screen."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from tui_descent.protocol.events import Advice, FindingKind

Name = Literal[
    "vanishing", "exploding", "diverged", "diverging", "dead units", "saturated", "plateau", "saddle",
    "rate too small", "rate at the edge", "healthy",
]  # fmt: skip


class RunContext(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run besides its losses and readings; None where it is not known.

    `classes`: how many, if the loss is a cross-entropy that can come close to 0. `guess`: otherwise the loss of the
    best guess that ignores the input, such as the entropy of single letters for text. `surface`: the loss is a function
    of its parameters alone, without a net or data.
    """

    classes: int | None = None
    guess: float | None = None
    optimizer: str | None = None
    activation: str | None = None
    residual: bool | None = None
    norm: bool | None = None
    surface: bool = False


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong, or "healthy". `sure` is 0…1. The best piece of `advice` comes first; there may be none."""

    finding: Name
    kind: FindingKind = "dynamics"
    layer: str | None = None
    sure: float
    evidence: dict[str, float | str] = {}
    advice: tuple[Advice, ...] = ()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an intervention was predicted to lead to, and what the next window of steps showed."""

    predicted: Name
    happened: Name
    held: bool


UNKNOWN = "unknown"  # as evidence: nobody has asked for it

SENTENCES: dict[Name, str] = {
    "vanishing": "Backpropagation multiplies the gradient by {product:.1e}.",
    "exploding": "Gradient grows ×{product:.1e}.",
    "diverged": "The loss has been NaN or infinite since step {step:.0f}.",
    "diverging": "The updates are too large: loss {loss:.3g}.",
    "dead units": "{share:.0%} of the units in {layer} are dead.",
    "saturated": "{share:.0%} of the units in {layer} are saturated.",
    "plateau": "Loss stuck at {loss:.3g}; gradients look fine.",
    "saddle": "Loss stuck at {loss:.3g} on a saddle.",
    "rate too small": "The steps are too small: loss stuck at {loss:.3g}.",
    "rate at the edge": "Every step overshoots to the other side of the valley.",
    "healthy": "Training well: loss {loss:.3g}.",
}
FIRST_TO_LAST = "{layer} gets {first_to_last_grad:.1e} of {last}'s gradient."
FLAT = "Flat at {loss:.3g}: a minimum or a saddle? Press 5 for the curvature."
# With a larger ratio than this of first to last gradient, the product says more: a layer with large inputs has a large
# weight gradient, however little was propagated back to it.
SMALL_RATIO = 1e-2


def sentence(finding: Finding) -> str:
    """One line for the screen: the finding, then the first piece of advice."""
    text, evidence = SENTENCES[finding.finding], finding.evidence
    ratio = evidence.get("first_to_last_grad")
    if finding.finding == "vanishing" and isinstance(ratio, float) and ratio < SMALL_RATIO:
        text = FIRST_TO_LAST
    if evidence.get("curvature") == UNKNOWN:
        text = FLAT
    layers = {"layer": finding.layer or "the net", "last": evidence.get("last")}
    short = {key: ".".join(str(name).split(".")[:2]) for key, name in layers.items()}
    text = text.format_map({"product": math.nan} | evidence | short)
    return f"{text} {_advice_words(finding.advice[0])}" if finding.advice else text


def _advice_words(advice: Advice) -> str:
    key, value = advice.key, advice.value
    match advice.knob:
        case "undo":
            return f"Press {key} to go back."
        case "norm":
            return f"Press {key}: LayerNorm{' before the activation' if 'where=mid' in value else ''}."
        case "init":
            return f"Press {key}: re-initialise ({value})."
        case "lr":
            tens = len(value) - 2 if value.startswith("*10") else 1  # the key multiplies by 10
            times = f" {tens} times" if tens > 1 else ""
            return f"Press {key}{times}: lr {value.replace('*', '×').replace('/', '÷')}."
        case knob:
            return f"Press {key}: {knob} {value}."
