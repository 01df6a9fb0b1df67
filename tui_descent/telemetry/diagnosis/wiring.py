"""Facts about how loop, net and optimizer are connected, as findings."""

from __future__ import annotations

from tui_descent.protocol.events import WiringFound
from tui_descent.telemetry.diagnosis.findings import Finding
from tui_descent.telemetry.diagnosis.rule import Rule

RULES: tuple[Rule, ...] = ()


def wiring_finding(event: WiringFound, available: frozenset[str], user_loop: bool) -> Finding:
    """The finding of one fact, with advice that this run would accept."""
    return Finding(finding=event.fault, kind="wiring", layer=event.layer, sure=1.0, evidence=event.evidence)
