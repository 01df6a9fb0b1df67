"""What a diagnosis can say: the finding as data, and as a sentence for the screen."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from tui_descent.protocol.events import Advice, FindingKind
from tui_descent.protocol.layer_names import pair_in_words

# Judgements of how the loss and the gradients develop. Those of wiring and numerics are in their tables.
Name = Literal[
    "vanishing", "exploding", "diverging", "dead units", "saturated", "weights decaying", "plateau", "saddle",
    "rate too large", "large momentum", "rate too small", "rate at the edge", "healthy", "converged", "not clear",
]  # fmt: skip
STARTS = ("layer ", "the net", "loss ", "gradient ")  # of sentences that begin with a word of ours, not with a name
FINE = frozenset({"healthy", "converged"})  # nothing is wrong
NEUTRAL = FINE | {"not clear", "rate at the edge", "frozen layers"}  # nothing has to be done


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong, or "healthy". `sure` is 0…1. The best piece of `advice` comes first; there may be none."""

    finding: str
    kind: FindingKind = "dynamics"
    layer: str | None = None
    sure: float
    evidence: dict[str, float | str] = {}
    advice: tuple[Advice, ...] = ()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an intervention was predicted to lead to, and what happened. `before` is the finding at that time."""

    predicted: str
    happened: str
    held: bool
    before: str = ""


def filled(template: str, finding: Finding) -> str:
    """A sentence with the finding's layer and evidence filled in. A number that is missing is shown as `nan`."""
    first, last = pair_in_words(finding.layer or "the net", str(finding.evidence.get("last")))
    return sentence_case(template.format_map(_Missing(finding.evidence | {"layer": first, "last": last})))


def sentence_case(text: str) -> str:
    """The text with a capital letter at the start, unless it starts with the name of a module."""
    return text[:1].upper() + text[1:] if text.startswith(STARTS) else text


class _Missing(dict[str, float | str]):
    def __missing__(self, key: str) -> float:
        return math.nan


def advice_words(advice: Advice) -> str:
    """The advice as the end of a sentence: `Press r: residual on.`"""
    key, value = advice.key, advice.value
    plain = value.partition(",")[0]
    match advice.knob:
        case "undo":
            return f"Press {key} to go back."
        case "resume":
            return f"Press {key} to drop this batch."
        case "schedule" | "batch_size":
            return f"Press {key}: {advice.knob.replace('_', ' ')} {plain}."
        case "norm":
            if "where=pre" in value:
                return f"Press {key}: {'pre-LN' if plain == 'layer' else 'pre-RMSNorm'}."
            kind = {"layer": "LayerNorm", "rms": "RMSNorm"}.get(plain, plain)
            return f"Press {key}: {kind}{' before the activation' if 'where=mid' in value else ''}."
        case "init":
            return f"Press {key}: init {value}."
        case "lr":
            tens = len(value) - 2 if value.startswith("*10") else 1  # the key multiplies by 10
            times = f" {tens} times" if tens > 1 else ""
            return f"Press {key}{times}: lr {value.replace('*', '×').replace('/', '÷')}."
        case "weight_decay":
            return f"Press {key}: decay {value}."
        case "kick":
            return f"Press {key}: a small push."
        case "activation":
            return f"Press {key}: {plain}."
        case "freeze":
            return f"Press {key}: unfreeze."
        case knob:
            return f"Press {key}: {knob.replace('_', ' ')} {plain}."
