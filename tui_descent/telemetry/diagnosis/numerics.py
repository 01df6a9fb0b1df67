"""NaN and infinity as findings."""

from __future__ import annotations

from tui_descent.protocol.events import Advice, NotFinite
from tui_descent.telemetry.diagnosis.findings import Finding
from tui_descent.telemetry.diagnosis.rule import Rule

RULES: tuple[Rule, ...] = (
    Rule(
        finding="diverged",
        kind="numerics",
        condition="the loss or a gradient is NaN or infinite",
        threshold="not finite",
        sentence="The {what} has been NaN or infinite since step {step:.0f}.",
        check="Look at the loss chart: the curve ends.",
        helps="Undo, then a smaller learning rate.",
    ),
)


def numerics_finding(event: NotFinite, *, available: frozenset[str], user_loop: bool, rising: bool) -> Finding:
    """The finding of one non-finite number, with advice that this run would accept."""
    advice = [Advice("undo", "1", "u"), Advice("lr", "/10", "[")] if "undo" in available else []
    return Finding(
        finding="diverged",
        kind="numerics",
        layer=event.layer,
        sure=1.0,
        evidence={"step": float(event.step), "what": event.what},
        advice=tuple(a for a in advice if a.knob in available),
    )
