"""What is wrong with a run, where, how sure that is, and which knob helps. Needs only losses and readings, no torch."""

from tui_descent.protocol.events import Advice
from tui_descent.telemetry.diagnosis.advice import is_advised
from tui_descent.telemetry.diagnosis.diagnosis import MIN_STEPS, Diagnosis
from tui_descent.telemetry.diagnosis.findings import Finding, Name, Outcome, RunContext, sentence

__all__ = ["MIN_STEPS", "Advice", "Diagnosis", "Finding", "Name", "Outcome", "RunContext", "is_advised", "sentence"]
