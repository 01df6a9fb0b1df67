"""Predict, then reveal: the learner predicts what a key will do to the loss. Later the prediction is compared with the
run.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from tui_descent.protocol.command_replies import KnobTurned
from tui_descent.telemetry.history import History
from tui_descent.telemetry.story import EFFECT_STEPS, loss_change

Guess = Literal["falls", "stays about the same", "rises"]
GUESSES: tuple[Guess, ...] = ("falls", "stays about the same", "rises")
PAST: dict[Guess, str] = {"falls": "fell", "stays about the same": "stayed about the same", "rises": "rose"}
# A smaller relative change of the smoothed loss counts as none.
SAME = 0.05


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What was guessed about the change that the viewer `client` asked for with this request."""

    client: int
    request: int
    guess: Guess


def reveal(prediction: Prediction, history: History) -> tuple[str, bool | None]:
    """The prediction and what happened, in words, and whether it was right; None while that is not known.

    If the change was undone, there is nothing to say.
    """
    guessed = f"You predicted: the loss {prediction.guess}."
    made = _changes(prediction, history)
    turned = next((turned for turned in made if turned.segment == history.segment), None)
    if turned is None:
        return "" if made else guessed, None
    since = history.steps - turned.step
    if since < EFFECT_STEPS:
        return f"{guessed} {max(0, since)} of {EFFECT_STEPS} steps so far.", None
    change = loss_change(history, turned.step, EFFECT_STEPS)
    if change is None:
        return guessed, None
    before, after = change
    happened = what_happened(before, after)
    right = happened == prediction.guess
    found = f"It {PAST[happened]}: from {before:.3g} to {after:.3g} in {EFFECT_STEPS} steps."
    return f"{guessed} {'Right! ' if right else ''}{found}", right


def what_happened(before: float, after: float) -> Guess:
    """Which of the guesses was right."""
    scale = max(abs(before), abs(after))
    if scale == 0 or abs(after - before) <= SAME * scale:
        return "stays about the same"
    return "falls" if after < before else "rises"


def _changes(prediction: Prediction, history: History) -> list[KnobTurned]:
    """The predicted change, also if it was undone; empty if it was not made yet, or rejected."""
    wanted = (prediction.client, prediction.request)
    return [turned for turned in history.interventions if (turned.client, turned.request) == wanted]
