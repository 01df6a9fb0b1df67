"""The parts of a block at one step of a run, and the formula that takes the gradient back through them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from tui_descent.dashboard.dialogs.activation import FORMULAS
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.protocol.events import BlockPart, KnobTurned
from tui_descent.scenario.knobs import CHANGE_STEPS
from tui_descent.scenario.spec import NormSpec, ResidualSpec
from tui_descent.scenario.validate import convert
from tui_descent.telemetry.history import History

NORM_LINES = {
    "layer": "layer norm: (γ × gradient − mean − part along x̂) ÷ σ",
    "rms": "rms norm: (γ × gradient − part along x̂) ÷ rms",
}


class Explanation(NamedTuple):
    """What one part of a block does to the gradient; `symbol` is its name in the formula."""

    part: BlockPart
    symbol: str
    meaning: str


OTHER_PARTS: dict[BlockPart, tuple[str, str]] = {
    "attention": ("A′", "attention: through softmax(QKᵀ/√d)·V and its Linears"),
    "convolution": ("K′", "from the outputs to their inputs: the transposed convolution"),
    "out": ("W₂ᵀ", "× the transposed weights of the second Linear"),
    "dropout": ("m", "dropout: × the mask, 0 or 1/(1 − p)"),
}


class BlockParts(NamedTuple):
    """What a block consists of. Names are empty, and numbers None, if they are not known.

    `norm` is `none`, `layer` or `rms`, in the place `where`. The output is gate·x + branch·f(x) with a `skip`, else
    f(x). `blend_from` is the activation that is being replaced; `skip_changes`: the skip is being opened or closed.
    """

    activation: str = ""
    norm: str = "none"
    where: str = "pre"
    skip: bool = False
    gate: float | None = None
    branch: float | None = None
    blend_from: str = ""
    skip_changes: bool = False

    def formula(self, measured: Sequence[BlockPart] = ()) -> str:
        """∂L/∂in as a function of δ = ∂L/∂out. `measured` are the parts that were measured, if they are known."""
        if any(part in OTHER_PARTS for part in measured):
            symbols = [one.symbol for one in self.explanations(measured) if one.part != "skip"]
            after_skip = symbols.pop(0) if "skip" in measured and measured[0] == "norm" else ""
            inner = f"{after_skip} δ" if after_skip else "δ"
            through = " ".join([*reversed(symbols), inner]).replace(" s ", " s·")
            return f"∂L/∂in = {f'g·{inner} + ' if 'skip' in measured else ''}{through}, δ = ∂L/∂out"
        has = self.norm in NORM_LINES
        inner = "s·δ" if self.skip else "δ"
        if has and self.where == "post":
            inner = f"N′({inner})"
        inner = f"φ′ ⊙ {inner}"
        if has and self.where == "mid":
            inner = f"N′({inner})"
            through = f"Wᵀ {inner}"
        else:
            through = f"Wᵀ({inner})"
        if has and self.where == "pre":
            through = f"N′({through})"
        return f"∂L/∂in = {'g·δ + ' if self.skip else ''}{through}, δ = ∂L/∂out"

    def explanations(self, measured: Sequence[BlockPart] = ()) -> list[Explanation]:
        """Each part, in the order in which the gradient goes through them. `measured` are the parts that were measured,
        if they are known.
        """
        if any(part in OTHER_PARTS for part in measured):
            known = {one.part: one for one in self._replace(skip="skip" in measured).explanations()}
            unknown = "N′", "the norm layer"
            return [known.get(part) or Explanation(part, *OTHER_PARTS.get(part, unknown)) for part in measured]
        slope = FORMULAS.get(self.activation, ("", "", ""))[1]
        name = safe(self.activation, 20) or "the activation"
        name = f"{safe(self.blend_from, 20)} → {name}" if self.blend_from else f"{name}, {slope}" if slope else name
        parts = [
            Explanation("activation", "φ′", f"unit by unit × the slope of {name}"),
            Explanation("weights", "Wᵀ", "from the units to their inputs: × the transposed weights"),
        ]
        if self.norm in NORM_LINES:
            place = {"post": 0, "mid": 1, "pre": 2}.get(self.where, 2)
            parts.insert(place, Explanation("norm", "N′", NORM_LINES[self.norm]))
        if not self.skip:
            return parts
        scale, gate = (
            ", changing now" if self.skip_changes else "" if value is None else f", {symbol} = {value:.3g}"
            for symbol, value in (("s", self.branch), ("g", self.gate))
        )
        return [
            Explanation("scale", "s", f"scale of the branch beside the skip{scale}"),
            *parts,
            Explanation("skip", "g·δ", f"the skip adds g × the gradient at the sum{gate}"),
        ]


def parts_of(history: History, block: str, step: int, depth: int) -> BlockParts:
    """The parts of a block at a step of the current segment. `depth` is the number of blocks."""

    def newest(knob: str) -> KnobTurned | None:
        turns = (
            turn
            for turn in reversed(history.interventions)
            if turn.knob == knob and turn.target in ("all", block) and turn.segment == history.segment
        )
        return next((turn for turn in turns if turn.step <= step), None)

    def value(knob: str, turn: KnobTurned | None) -> str:
        return turn.new if turn is not None else history.initial_state(knob).value

    scenario = (history.started.scenario if history.started is not None else None) or {}
    model: dict[str, Any] = scenario.get("model", {})
    activation, residual, norm = newest("activation"), newest("residual"), newest("norm")
    residual_changes = _is_changing(residual, step)
    gate, branch = _skip_weights(residual, model, depth)
    spec = convert(NormSpec, model.get("norm", {}), "", [])
    where = norm.where if norm is not None else spec.where if isinstance(spec, NormSpec) else None
    return BlockParts(
        activation=value("activation", activation),
        norm=value("norm", norm) or "none",
        where=where or "pre",
        skip=value("residual", residual) == "on" or residual_changes,
        gate=gate,
        branch=branch,
        blend_from=activation.old if activation is not None and _is_changing(activation, step) else "",
        skip_changes=residual_changes,
    )


def _is_changing(turn: KnobTurned | None, step: int) -> bool:
    """Whether a gradual change is not complete at this step."""
    return turn is not None and step < turn.step + CHANGE_STEPS.get(turn.way or "", 1) - 1


def _skip_weights(turn: KnobTurned | None, model: dict[str, Any], depth: int) -> tuple[float | None, float | None]:
    """The factors of x and f(x) once a skip is open."""
    if turn is None:
        spec = convert(ResidualSpec, model.get("residual", {}), "", [])
        known = isinstance(spec, ResidualSpec)
        if known and spec.way == "rezero":
            return 1.0, None  # learnt, so it changes with every update
        return 1.0, (spec.scale if known else None) or depth**-0.5
    return (math.sqrt(0.5) if turn.way == "rotation" else 1.0), turn.scale
