"""The facts about a run's wiring that hold now. Each fact is reported when it is found and when it no longer holds."""

from __future__ import annotations

from tui_descent.protocol.events import WiringFound
from tui_descent.training.progress import Progress

Evidence = dict[str, float | str]


class Facts:
    """The facts of one run, by their names in `telemetry/diagnosis/wiring.py`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._present: dict[str, tuple[str | None, Evidence]] = {}  # the layer and evidence of each fact

    def __contains__(self, fault: object) -> bool:
        """Whether a fact holds now."""
        return fault in self._present

    def evidence(self, fault: str) -> Evidence:
        """The evidence with which a fact was reported; empty if the fact does not hold."""
        return self._present.get(fault, (None, {}))[1]

    def found(self, fault: str, layer: str | None, evidence: Evidence, *, keep: bool = False) -> None:
        """Report a fact if it is new, or if its layer or its evidence has changed.

        With `keep`, changed evidence alone is not reported. This is for evidence with numbers that differ from step to
        step.
        """
        known = self._present.get(fault)
        if known is None or (known != (layer, evidence) and not (keep and known[0] == layer)):
            self._present[fault] = layer, evidence
            self._emit(fault, layer, evidence, present=True)

    def ended(self, fault: str) -> None:
        """Report that a fact no longer holds, if it did."""
        if fault in self._present:
            self._emit(fault, self._present.pop(fault)[0], {}, present=False)

    def _emit(self, fault: str, layer: str | None, evidence: Evidence, *, present: bool) -> None:
        self._progress.emit(
            WiringFound(**self._progress.place, fault=fault, present=present, layer=layer, evidence=evidence)
        )
