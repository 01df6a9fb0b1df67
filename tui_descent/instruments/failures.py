"""Keeps errors of our own code away from a user's training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Failures:
    """The parts that were switched off because they raised an exception.

    A part is an instrument or a hook; its name is the one that the user sees. When it fails for the first time,
    `report` gets one sentence for the event log. Training goes on without this part.
    """

    def __init__(self, report: Callable[[str], None] = lambda text: None) -> None:
        self._report = report
        self._off: set[str] = set()
        self._left_out: set[str] = set()

    def __contains__(self, part: object) -> bool:
        """Whether this part is switched off."""
        return part in self._off

    def add(self, part: str, error: Exception) -> None:
        """Switch a part off because of `error`, and report it the first time."""
        if part in self._off:
            return
        self._off.add(part)
        line = next(iter(str(error).splitlines()), "")[:200]
        with suppress(Exception):  # an error in the report must not reach the loop either
            self._report(f"switched off: {part} ({type(error).__name__}{': ' if line else ''}{line}); training goes on")

    def leave_out(self, part: str, reason: str) -> None:
        """Report that a part cannot measure something in this run, although the part itself works. Each part reports
        this only once.
        """
        if part in self._left_out:
            return
        self._left_out.add(part)
        with suppress(Exception):
            self._report(f"not measured: {part}, because {reason}")

    @contextmanager
    def guard(self, part: str) -> Iterator[None]:
        """A context that switches `part` off if its body raises. Only `Exception` is caught, not an interrupt."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever fails here must not end the user's training
            self.add(part, error)
