"""Connects a watched run with its snapshots on disk: saves it there, and lets it go on from one of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tui_descent.protocol.events import Rewound
from tui_descent.training.progress import Progress
from tui_descent.training.steering.control import Control
from tui_descent.training.steering.steering import Steering
from tui_descent.training.undo import resumption
from tui_descent.training.undo.disk_snapshots import DiskSnapshots
from tui_descent.training.undo.resumption import Plan, Resumption, plan_after, snapshots_folder
from tui_descent.training.undo.saved_run import load_run
from tui_descent.training.undo.user_state import load_user_state

NOT_CALLED = "the script did not call run.resume(): it started again from step 0"
NO_SNAPSHOT = "there is no snapshot to resume from: started again from step 0"


class Resuming:
    """The snapshots on disk of one run, and its resumption. `user_state` is what a user loop passed as `state=`.

    `found` is where a run goes on that was resumed, None for a new run.
    """

    def __init__(
        self, progress: Progress, control: Control, steering: Steering, user_state: Mapping[str, object]
    ) -> None:
        self.found: Resumption | None = None
        self._progress, self._control, self._steering = progress, control, steering
        self._user_state = user_state

    @property
    def elapsed_s(self) -> float:
        """How long the run had been trained before."""
        return 0.0 if self.found is None else self.found.elapsed_s

    def begin_scenario(self, found: Resumption | None) -> None:
        """Save a scenario run from now on. `found` is the snapshot that it was built from, if it is resumed."""
        self._save_on_disk()
        if found is not None:
            self._go_on_from(found)

    def begin_user_loop(self) -> int:
        """Save a user loop from now on, and restore its newest snapshot if it is resumed. Returns the next step.

        Raises `ValueError` if there are snapshots, but none fits.
        """
        link, progress = self._progress.link, self._progress
        if link is None or progress.step or self.found is not None:
            return progress.step
        self._save_on_disk()
        if link.launch.resume is None:
            return 0
        failed: list[str] = []

        def load(content: dict[str, Any]) -> None:
            load_run(self._steering.context, content["state"])
            failed.extend(load_user_state(self._user_state, content["user_state"]))

        found = resumption.resume(link.launch, load) or Resumption(notes=(NO_SNAPSHOT,))
        if not found.begun:
            self._steering.advance()
        if failed:
            found = replace(found, notes=(f"not restored: {', '.join(failed)}", *found.notes))
        self._go_on_from(found, plan_after([], link.launch.resume, found))
        for text in found.notes:
            print(f"tui-descent: {text}", file=sys.stderr)
        return progress.step

    def report(self) -> None:
        """Report from where a run goes on that was resumed. Call this when the run has been reported."""
        link, progress = self._progress.link, self._progress
        if link is None or (resume := link.launch.resume) is None:
            return
        if self.found is None:
            self._go_on_from(Resumption(notes=(NOT_CALLED,)))
        found = self.found
        assert found is not None
        *refused, text = found.notes
        progress.emit(
            Rewound(
                from_segment=resume.from_segment,
                from_step=resume.from_step,
                to_segment=found.segment,
                to_step=found.step,
                segment=progress.segment,
                step=progress.step,
                what=text,
                in_force=found.in_force,
                knobs=self._steering.states(),
                resumed=True,
            )
        )
        for note in refused:
            progress.note(note)

    def _go_on_from(self, found: Resumption, replay: Plan = ()) -> None:
        progress, link = self._progress, self._progress.link
        assert link is not None
        resume = link.launch.resume
        assert resume is not None
        self.found = found
        progress.segment = progress.segments = resume.segment
        progress.step, progress.interventions = found.step, resume.interventions
        progress.parents = {**found.parents, resume.segment: (found.segment, found.step + 1)}
        progress.start_s = time.perf_counter() - found.elapsed_s
        self._control.resume(found, replay)

    def _save_on_disk(self) -> None:
        link = self._progress.link
        if link is None or (every_s := link.launch.snapshot_every_s) is None:
            return
        self._control.save_on_disk(
            DiskSnapshots(
                snapshots_folder(link.launch),
                self._progress,
                self._steering.context,
                every_s=every_s,
                limit_bytes=link.launch.snapshot_bytes,
                user_state=self._user_state,
            )
        )
