"""The newest statement of the diagnosis about a run, and whether it still holds."""

from __future__ import annotations

from tui_descent.protocol.events import Diagnosed, KnobTurned
from tui_descent.scenario.knobs import NEUTRAL_KNOBS
from tui_descent.telemetry.diagnosis import for_next_run, verdict
from tui_descent.telemetry.history import History


def last_turn(history: History) -> KnobTurned | None:
    """The last intervention of the segment that can change the diagnosis."""
    turns = (turn for turn in reversed(history.interventions) if turn.segment == history.segment)
    return next((turn for turn in turns if turn.knob not in NEUTRAL_KNOBS), None)


def turned_since(history: History) -> KnobTurned | None:
    """The last intervention, if it is newer than the newest finding. Both may have the same step."""
    found, turn = history.diagnosis, last_turn(history)
    if found is None or turn is None or (turn.step <= found.step and turn.id <= history.diagnosed_after):
        return None
    return turn


def last_verdict(history: History) -> Diagnosed | None:
    """The newest finding; None if an intervention, an undo or a redo came after it."""
    found = history.diagnosis
    if found is None or found.segment != history.segment or turned_since(history) is not None:
        return None
    return found


def verdict_of_ended(history: History) -> tuple[str, str]:
    """The last finding of a run that is over, as a word and as a sentence without keys; ("", "") if there is none.
    There is none for a run that ended at a NaN, because the reason of its end says the same.
    """
    found, ended = last_verdict(history), history.ended
    if found is None or (found.kind == "numerics" and ended is not None and ended.status == "diverged"):
        return "", ""
    return verdict(found), for_next_run(found)
