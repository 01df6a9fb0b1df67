"""The state before an intervention that was read from a snapshot on disk, for an undo of a scenario run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tui_descent.training.run_description import describe
from tui_descent.training.steering.knobs.context import KnobContext
from tui_descent.training.steering.transaction import Transaction
from tui_descent.training.undo.saved_run import State, load_run
from tui_descent.training.undo.snapshot_file import SnapshotError


@dataclass(frozen=True, slots=True, eq=False)
class StateOnDisk:
    """The state before update `step` of `segment`, as `save_run` has saved it. It takes the place of a `Snapshot`."""

    segment: int
    step: int
    context: KnobContext
    saved: State

    @property
    def loss(self) -> float:
        """The mean of the last losses before it; NaN if there were none."""
        losses = self.saved["knobs"]["losses"]
        return sum(losses) / len(losses) if losses else math.nan

    def restore(self) -> None:
        """Give the run this state. Call `Steering.after_restore` next.

        Raises `SnapshotError`, with nothing changed, if the state does not fit or there is no memory for a copy of the
        present one.
        """
        before: Transaction | None = None
        try:
            before = Transaction(self.context)
            load_run(self.context, self.saved)
        except (ValueError, LookupError, TypeError, RuntimeError, MemoryError) as error:
            if before is not None:
                before.roll_back()
            reason = str(error) if isinstance(error, SnapshotError) else describe(error)
            raise SnapshotError(reason) from error


def state_on_disk(context: KnobContext, content: dict[str, Any], *, run: str, interventions: int) -> StateOnDisk:
    """The state in a snapshot's content. Raises `SnapshotError` unless it belongs to `run` and was saved after that
    number of interventions.
    """
    if content.get("run") != run:
        raise SnapshotError("it belongs to another run")
    if content.get("interventions") != interventions:
        raise SnapshotError("it was not saved just before the intervention")
    try:
        return StateOnDisk(int(content["segment"]), int(content["step"]), context, content["state"])
    except (KeyError, TypeError, ValueError) as error:
        raise SnapshotError(f"its content is not complete: {error}"[:200]) from error
