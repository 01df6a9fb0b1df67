"""All findings in one table, in the order of their importance, and the sentence of each finding."""

from __future__ import annotations

import re

from tui_descent.protocol.events import Diagnosed
from tui_descent.telemetry.diagnosis import dynamics, numerics, wiring
from tui_descent.telemetry.diagnosis.findings import NEUTRAL, Finding, advice_words, filled

# Judgements that are less sure than this are shown with "maybe". About one in six of them is wrong, of the others
# hardly any.
CERTAIN = 0.8
ALL_RULES = (*numerics.RULES, *wiring.RULES, *dynamics.RULES)
_THOUSANDS = re.compile(r"\d(\.\d+)?e\+0[345]\b")  # shown in full, as in the loss chart
_SENTENCES = {rule.finding: rule.sentence for rule in ALL_RULES}


def sentence(finding: Finding) -> str:
    """One line for the screen: the finding, then the first piece of advice."""
    if finding.kind == "dynamics":
        text = dynamics.words(finding)
    elif finding.kind == "wiring":
        text = wiring.words(finding)
    else:
        text = filled(_SENTENCES.get(finding.finding, finding.finding), finding)
    text = _THOUSANDS.sub(lambda number: f"{float(number[0]):.0f}", text)
    return f"{text} {advice_words(finding.advice[0])}" if finding.advice else text


def verdict(found: Diagnosed) -> str:
    """A published finding in a word or two, as in `vanishing` or `maybe plateau`."""
    unsure = found.sure < CERTAIN and found.finding not in NEUTRAL
    return f"{'maybe ' if unsure else ''}{found.finding}"


def without_advice(found: Diagnosed) -> str:
    """The sentence of a published finding without its advice, for a run in which no key acts any more."""
    return found.sentence.removesuffix(advice_words(found.advice[0])).rstrip() if found.advice else found.sentence


def for_next_run(found: Diagnosed) -> str:
    """The sentence of a published finding, with advice for another run instead of a key to press in this one."""
    text, changes = without_advice(found), [a for a in found.advice if a.knob not in ("undo", "resume", "kick")]
    if not changes or found.advice[0] != changes[0]:
        return text
    return f"{text} Next time: {advice_words(changes[0]).partition(': ')[2]}"
