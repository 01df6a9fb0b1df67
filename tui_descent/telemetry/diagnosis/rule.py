"""One row of the table of findings: when the finding is shown, where its threshold comes from, and what helps."""

from __future__ import annotations

import msgspec

from tui_descent.protocol.events import FindingKind


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A finding as `docs/diagnosis.md` and the screen describe it.

    `condition` is the condition in readings, `threshold` its numbers and where they come from. `sentence` is a format
    string for the finding's evidence and layer; it fits in one line of 80 columns together with the first advice.
    `check` is how to check the finding by eye, `helps` what helps, `useless` what people try that does not help.
    """

    finding: str
    kind: FindingKind
    condition: str
    threshold: str
    sentence: str
    check: str
    helps: str
    useless: str = ""
