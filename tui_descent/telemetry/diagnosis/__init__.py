"""What is wrong, where, how sure, and which knob helps in this case: from losses and readings alone, without torch."""

from tui_descent.protocol.events import Advice
from tui_descent.telemetry.diagnosis.advice import agrees
from tui_descent.telemetry.diagnosis.diagnosis import DARES, Diagnosis
from tui_descent.telemetry.diagnosis.findings import Finding, Name, Outcome, Situation, sentence

__all__ = ["DARES", "Advice", "Diagnosis", "Finding", "Name", "Outcome", "Situation", "agrees", "sentence"]
