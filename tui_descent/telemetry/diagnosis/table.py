"""All findings in one table, in the order of their importance, and the sentence of each finding."""

from __future__ import annotations

from tui_descent.telemetry.diagnosis import dynamics, numerics, wiring
from tui_descent.telemetry.diagnosis.findings import Finding, advice_words, filled

ALL_RULES = (*numerics.RULES, *wiring.RULES, *dynamics.RULES)
_SENTENCES = {rule.finding: rule.sentence for rule in ALL_RULES}


def sentence(finding: Finding) -> str:
    """One line for the screen: the finding, then the first piece of advice."""
    if finding.kind == "dynamics":
        text = dynamics.words(finding)
    elif finding.kind == "wiring":
        text = wiring.words(finding)
    else:
        text = filled(_SENTENCES.get(finding.finding, finding.finding), finding)
    return f"{text} {advice_words(finding.advice[0])}" if finding.advice else text
