"""A non-finite loss or gradient: what is known about it, and the sentence for the user."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tui_descent.protocol.layer_names import in_words
from tui_descent.training.probes.nonfinite_search import Cause, Kind, Origin


@dataclass(frozen=True, slots=True)
class LayerGradients:
    """Which layers of an optimizer had a non-finite weight gradient and which a finite one, in forward order.

    `kind` is the worst value among them. `from_input` means that the bias of the last bad layer has a finite gradient.
    Then the NaN in the gradient δ·x of its weight comes from the layer's input x.
    """

    bad: tuple[str, ...]
    finite: tuple[str, ...]  # the layers after the last bad layer
    before: tuple[str, ...]  # the layers before the last bad layer
    kind: Kind
    from_input: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A loss or a gradient that is not finite.

    `loss` is the loss of the step, None if it is not known. `weights` says which weight or buffer was not finite when
    the fault was found, None if all were finite. `updated` says that the update was made before the fault was handled.
    `text` is shown to the user.
    """

    step: int
    what: Literal["loss", "gradient"]
    text: str = ""
    loss: float | None = None
    gradients: LayerGradients | None = None
    weights: Origin | None = None
    weights_finite: bool | None = None
    updated: bool = False
    deferred: bool = False  # whether the fault was found some updates later, when the batch was gone
    layer: str | None = None
    cause: Cause = ""
    operation: str = ""

    where: str = ""

    @property
    def batch_can_be_dropped(self) -> bool:
        """Whether the run can go on without this batch: the weights are undamaged, and the next batch may be fine. If
        the weights make a number of the full range overflow, they do so with the next batch too.
        """
        too_large = "overflows" in self.where and "float16" not in self.where
        return bool(self.weights_finite) and not self.updated and not too_large

    @property
    def value(self) -> str:
        """The non-finite value: "nan", "inf" or "-inf"; "not finite" if it is not known which."""
        if self.what == "loss":
            return str(self.loss)
        return (self.gradients.kind if self.gradients is not None else "") or "not finite"


def lead(fault: Fault) -> str:
    """The first part of the sentence: what is not finite, and since which step."""
    if fault.what == "loss":
        return f"loss is {fault.value} at step {fault.step}"
    known = fault.loss is not None and math.isfinite(fault.loss)
    return f"gradient is {fault.value} at step {fault.step}{f', loss {fault.loss:.3g}' if known else ''}"


def where(fault: Fault, origin: Origin | None) -> str:
    """The second part: where the non-finite value comes from; empty if that is not known."""
    gradients = fault.gradients
    if origin is None or not origin.cause:
        return _which_layers(gradients) if fault.what == "gradient" and gradients is not None else ""
    layer = in_words(origin.layer or "the net")
    match origin.cause:
        case "loss function" if origin.words.endswith("?"):
            words = origin.words.removesuffix("?")
            return f"from the loss function {words}?" if words.startswith("or ") else f"{words} in the loss function?"
        case "loss function":
            return f"{origin.words} in the loss function" if origin.words else "from the loss function"
        case _ if origin.operation:
            known = gradients if origin.layer is None else None
            between = ""
            if known is not None and known.finite:
                between = f", between {in_words(known.finite[0])} and {in_words(known.bad[-1])}"
            return f"{origin.words} in {layer}{between}"
    return origin.words


def _which_layers(gradients: LayerGradients) -> str:
    if gradients.finite or gradients.before:
        return f"only in {', '.join(map(in_words, gradients.bad[:2]))}{', …' if len(gradients.bad) > 2 else ''}"
    return "in every layer" if len(gradients.bad) > 1 else ""
