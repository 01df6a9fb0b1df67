"""The diagnosis: what is wrong with a run, where, how sure this is, and which knob helps. It needs only events, not
torch.
"""

from tui_descent.protocol.events import Advice
from tui_descent.telemetry.diagnosis.advice import is_advised
from tui_descent.telemetry.diagnosis.diagnosis import MIN_READINGS, MIN_STEPS, Diagnosis
from tui_descent.telemetry.diagnosis.findings import NEUTRAL, Finding, Name, Outcome
from tui_descent.telemetry.diagnosis.situation import RunContext
from tui_descent.telemetry.diagnosis.table import ALL_RULES, for_next_run, sentence, verdict, without_advice

__all__ = [
    "ALL_RULES", "MIN_READINGS", "MIN_STEPS", "NEUTRAL", "Advice", "Diagnosis", "Finding", "Name", "Outcome",
    "RunContext", "for_next_run", "is_advised", "sentence", "verdict", "without_advice",
]  # fmt: skip
