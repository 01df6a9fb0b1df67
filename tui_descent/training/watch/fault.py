"""A non-finite loss or gradient: what is known of it, and the sentence that says so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tui_descent.training.probes.nonfinite_search import Cause, Kind, Origin


@dataclass(frozen=True, slots=True)
class LayerGradients:
    """Which layers of an optimizer had a non-finite weight gradient and which a finite one, in forward order.

    `kind` is the worst value among them.
    """

    bad: tuple[str, ...]
    finite: tuple[str, ...]  # those after the last bad layer
    before: tuple[str, ...]  # those before it
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A loss or a gradient that is not finite.

    `loss` is the loss of the step, None if it is not known. `weights` says which weight or buffer was not finite when
    the fault was found, None if all were finite. `updated`: the update was made before the fault was handled. `text` is
    shown to the user.
    """

    step: int
    what: Literal["loss", "gradient"]
    text: str = ""
    loss: float | None = None
    gradients: LayerGradients | None = None
    weights: Origin | None = None
    weights_finite: bool | None = None
    updated: bool = False
    deferred: bool = False  # found some updates later, when the batch was gone
    layer: str | None = None
    cause: Cause = ""
    operation: str = ""


def describe(fault: Fault, origin: Origin | None) -> str:
    """The sentence: what is not finite, since which step, and where that comes from."""
    return f"{_what(fault)}{_where(fault, origin)}"


def _what(fault: Fault) -> str:
    if fault.what == "loss":
        return f"loss is {fault.loss} at step {fault.step}"
    kind = (fault.gradients.kind if fault.gradients is not None else "") or "not finite"
    known = fault.loss is not None and math.isfinite(fault.loss)
    return f"gradient is {kind.lstrip('-')} at step {fault.step}{f', loss {fault.loss:.3g}' if known else ''}"


def _where(fault: Fault, origin: Origin | None) -> str:
    if origin is None:
        return _which_layers(fault.gradients) if fault.what == "gradient" and fault.gradients is not None else ""
    where = origin.layer or "the net"
    match origin.cause:
        case "weights":
            return f": {where}.{origin.words}"
        case "batch":
            return f": the batch has {origin.words}"
        case "loss function" if origin.words.endswith("?"):
            return f": from the loss function ({origin.words})"
        case "loss function" if origin.words:
            return f": {origin.words} in the loss function"
        case "loss function":
            return ": from the loss function"
        case "forward" | "backward":
            return f": {origin.words} in {where}" if origin.operation else f": {origin.words}"
    return ""


def _which_layers(gradients: LayerGradients) -> str:
    if gradients.finite or gradients.before:
        return f" in {', '.join(gradients.bad[:2])}{', …' if len(gradients.bad) > 2 else ''}"
    return " in every layer" if len(gradients.bad) > 1 else ""
