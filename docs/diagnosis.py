"""Prints docs/diagnosis.md, made from the tables of findings: `python docs/diagnosis.py > docs/diagnosis.md`."""

from __future__ import annotations

import textwrap

from tui_descent.telemetry.diagnosis import dynamics, numerics, wiring
from tui_descent.telemetry.diagnosis.diagnosis import CHANGE_EVERY, HOLD, MIN_READINGS, MIN_STEPS
from tui_descent.telemetry.diagnosis.rule import Rule

WIDTH = 120
INTRO = f"""\
# What the diagnosis says

This page is made from the tables in `tui_descent/telemetry/diagnosis/` by `python docs/diagnosis.py`.

The diagnosis is the first line of the footer, and the event `diagnosis` of `--json`. It reads only what the screen
shows: losses, readings, facts about the loop. NaN and infinity come first, then facts about the wiring, then judgements
of how loss and gradients develop.

- **When it speaks.** Facts and NaN are reported at once. A judgement needs {MIN_STEPS} steps and {MIN_READINGS}
  readings since the start or the last intervention; until then the line says "still measuring". Readings come 1, 2, 5,
  10, 20, 35 and 50 steps after it and then ever more rarely, unless the budget is 0.
- **How sure it is.** A "maybe", or `sure` in JSON: ½ at a rule's threshold, more beyond it, less with few
  readings. Below a limit it says "not clear" with what is known.
- **When it changes.** A judgement stays until another one has held for {HOLD} steps, and for at least
  {CHANGE_EVERY} steps, except after an intervention.
- **What it advises.** Only what the run would accept and what is not so already. A scenario can name its own `remedy`.
  In your own loop it never advises to draw the weights again.
- **After an intervention** it says what was predicted and, once there is evidence, what happened.
"""
PARTS = (
    ("NaN and infinity", numerics.RULES),
    ("Wiring: how loop, net and optimizer are connected", wiring.RULES),
    ("Dynamics: how loss and gradients develop", dynamics.RULES),
)


def page() -> str:
    """The whole page."""
    parts = [INTRO]
    for title, rules in PARTS:
        parts += [f"## {title}\n", *(_entry(rule) for rule in rules)]
    return "\n".join(parts)


def _entry(rule: Rule) -> str:
    rows = [
        ("Says", f"`{rule.sentence}`"),
        ("When", rule.condition),
        ("Threshold", rule.threshold),
        ("Check by eye", rule.check),
        ("Helps", rule.helps),
        ("Does not help", rule.useless),
    ]
    lines = [f"### {rule.finding}\n"]
    for name, text in rows:
        if text:
            lines.append(textwrap.fill(f"- **{name}**: {text}", WIDTH, subsequent_indent="  ", break_long_words=False))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
