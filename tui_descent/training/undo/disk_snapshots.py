"""When a run is saved on disk, and which of its snapshots are kept.

The state is copied in the training thread, between two updates; a thread of its own writes the copy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tui_descent.protocol.events import SnapshotSaved
from tui_descent.training.progress import Progress
from tui_descent.training.steering.knobs.context import KnobContext
from tui_descent.training.undo import snapshot_file
from tui_descent.training.undo.memory_budget import bytes_needed, free_bytes
from tui_descent.training.undo.saved_run import save_run
from tui_descent.training.undo.snapshot_file import Place, SnapshotError, SnapshotFile
from tui_descent.training.undo.state_on_disk import StateOnDisk, state_on_disk
from tui_descent.training.undo.user_state import save_user_state

KEEP = 3  # the newest ones
KEEP_FOR_UNDO = 20  # further ones, which an undo needs
SHARE = 0.01  # the largest share of the time that snapshots may take
MAX_BYTES = 2_000_000_000  # of all snapshots of a run, by default
DISK_SHARE = 0.1  # of the free space that they may take, by default
MEMORY_SHARE = 0.5  # the largest share of the free memory that the copy of the state may take
WRITES_BYTES_PER_S = 200e6  # assumed before the first snapshot
CLOSES_WITHIN_S = 5.0  # how long the end of a run waits for a snapshot: a disk may not respond
Content = dict[str, Any]


class DiskSnapshots:
    """The snapshots of one run in its folder.

    A snapshot is saved every `every_s` seconds, or less often if that would take more than `SHARE` of the time. The
    newest `KEEP` are kept, and of those that an undo needs the newest `KEEP_FOR_UNDO`; fewer if together they are
    larger than `limit_bytes`. `user_state` has the objects that a user loop passed as `state=`. `position`, `in_effect`
    and `needed` are set by the owner: they return where the run is, its interventions in effect (both as plain values),
    and the places of the states that an undo needs.
    """

    def __init__(
        self,
        folder: Path,
        progress: Progress,
        context: KnobContext,
        *,
        every_s: float,
        limit_bytes: int | None = None,
        user_state: Mapping[str, object] | None = None,
    ) -> None:
        self.folder, self._progress, self._context = folder, progress, context
        self.position: Callable[[], Content] = dict
        self.in_effect: Callable[[], list[Content]] = list
        self.needed: Callable[[], Collection[Place]] = tuple
        self._every_s, self._limit_asked, self._user_state = every_s, limit_bytes, user_state or {}
        self._process = os.getpid()
        self._begun_s = time.monotonic()
        self._due_s = self._begun_s + every_s
        self._spent_s = 0.0
        self._cost_s: float | None = None  # of the last snapshot
        self._noted: tuple[type, int | None] | None = None  # the error that was reported last
        self._writing: Future[tuple[SnapshotFile, float]] | None = None
        self._thread: threading.Thread | None = None  # the last one that wrote
        self._saved: Content | None = None  # the position that was saved last
        self._saved_at: Place = (0, 0, 0)  # and the place of its file
        self._written: tuple[int, int, str] = (0, 0, "")  # segment and step of what is being written, and why
        snapshot_file.remove_temporaries(folder)

    @property
    def due(self) -> bool:
        """Whether it is time for the next snapshot, or a written one has to be reported."""
        return time.monotonic() >= self._due_s or (self._writing is not None and self._writing.done())

    def save_if_due(self) -> None:
        """Report what was written, and begin the next snapshot if it is time and the last one is written."""
        if self._writing is not None and not self._report():
            return
        if time.monotonic() >= self._due_s:
            self.save("periodic")

    def save_if_cheap(self, reason: str) -> None:
        """Save the state now, unless that has been done, if all snapshots together then still take less than `SHARE` of
        the time.
        """
        if self.place is not None or (self._writing is not None and not self._report()):
            return
        elapsed_s = time.monotonic() - self._begun_s
        if self._spent_s + self._expected_s() <= SHARE * elapsed_s:
            self.save(reason)

    def save_now(self, reason: str) -> None:
        """Save the state, unless that has been done, and wait until it is on the disk."""
        self.wait()
        if self._saved != _without_time(self.position()):
            self.save(reason)
            self.wait()

    def save(self, reason: str) -> None:
        """Copy the state and begin to write it. A state that is not finite is not saved."""
        if os.getpid() != self._process:  # a forked process, which is not the run's trainer
            return
        start_s, progress = time.monotonic(), self._progress
        self._due_s = start_s + self._every_s
        try:
            self._check_size()
            content = self._content()
            if not _is_finite(content):
                return
        except Exception as error:  # noqa: BLE001 - a user's objects may raise anything
            self._note(error)
            return
        self._saved = _without_time(content)
        self._saved_at = progress.segment, progress.step, progress.interventions
        self._written = progress.segment, progress.step, reason
        self._writing = future = Future[tuple[SnapshotFile, float]]()
        copied_s = time.monotonic() - start_s
        arguments = future, content, progress.segment, progress.step, set(self.needed()), copied_s
        self._thread = threading.Thread(target=self._write, args=arguments, name="tui-descent snapshot", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the snapshot that is being written, and report it."""
        if self._writing is not None:
            with contextlib.suppress(Exception):
                self._writing.result()
            self._report()
        self.close(None)

    def close(self, timeout_s: float | None = CLOSES_WITHIN_S) -> None:
        """Wait until the thread that writes has ended, at most so long.

        If it is still in torch when Python exits, the process is aborted (SIGABRT).
        """
        if self._thread is not None and os.getpid() == self._process:
            self._thread.join(timeout_s)

    def drop_abandoned(self) -> None:
        """Remove the snapshots of steps that an undo or a redo has abandoned."""
        self.wait()
        needed = set(self.needed())
        for file in snapshot_file.files(self.folder):
            if not self._progress.is_past(file.segment, file.step) and file.place not in needed:
                with contextlib.suppress(OSError):
                    file.path.unlink()

    @property
    def place(self) -> Place | None:
        """The place of the present state, if it has been saved or is being saved; otherwise None."""
        if self._saved is None:
            return None
        saved, present = ({**one, "goal": None} for one in (self._saved, _without_time(self.position())))
        return self._saved_at if saved == present else None

    def begin_at(self, place: Place) -> None:
        """Tell the snapshots of a run that was resumed which of them has the present state."""
        if place in {file.place for file in snapshot_file.files(self.folder)}:
            self._saved, self._saved_at = _without_time(self.position()), place

    def read(self, place: Place) -> StateOnDisk | None:
        """The state at `place`; None if there is no file of it. Raises `SnapshotError` if the file cannot be used."""
        self.wait()
        segment, step, interventions = place
        names = place, (segment, step, 0)  # an older version has left out the interventions
        found = [file for file in snapshot_file.files(self.folder) if file.place in names]
        if not found:
            return None
        content, run = snapshot_file.read(found[-1].path), self.position()["run"]
        return state_on_disk(self._context, content, run=run, interventions=interventions)

    def last_good(self, interventions: int, highest_loss: float) -> StateOnDisk | None:
        """The newest state in the past of the present one, from after that number of interventions, that can be used
        and whose mean loss is at most `highest_loss`; None if there is none. All saved states are finite.
        """
        self.wait()
        for file in reversed(snapshot_file.files(self.folder)):
            if file.interventions < interventions or not self._progress.is_past(file.segment, file.step):
                continue
            with contextlib.suppress(SnapshotError):
                saved = self.read(file.place)
                if saved is not None and not saved.loss > highest_loss:
                    return saved
        return None

    @property
    def limit_bytes(self) -> int:
        """The limit for all snapshots of the run together."""
        if self._limit_asked is not None:
            return self._limit_asked
        try:
            free = shutil.disk_usage(self.folder.parent).free
        except OSError:
            return MAX_BYTES
        return min(MAX_BYTES, int(DISK_SHARE * (free + self._total())))

    def _total(self) -> int:
        return sum(file.nbytes for file in snapshot_file.files(self.folder))

    def _expected_s(self) -> float:
        if self._cost_s is not None:
            return self._cost_s
        return 0.02 + self._bytes_needed() / WRITES_BYTES_PER_S

    def _bytes_needed(self) -> int:
        return bytes_needed(self._context.model, *(one.optimizer for one in self._context.optimizers))

    def _check_size(self) -> None:
        """Raises `SnapshotError` if the state is too large for the limit, or for a copy in memory."""
        needed, limit, free = self._bytes_needed(), self.limit_bytes, free_bytes(torch.device("cpu"))
        if needed > limit:
            raise SnapshotError(f"one takes {_size(needed)}, the limit is {_size(limit)} (--snapshot-size)")
        if needed > MEMORY_SHARE * free:
            raise SnapshotError(f"one takes {_size(needed)} of memory, and only {_size(free)} are free")

    def _content(self) -> Content:
        user_state, left_out = save_user_state(self._user_state)
        for name, why in left_out.items():
            self._progress.note(f'state["{name[:40]}"] is not saved on disk: {why}')
        undo, state = self.in_effect(), save_run(self._context)
        return {**self.position(), "undo": undo, "state": state, "user_state": user_state}

    def _write(
        self,
        future: Future[tuple[SnapshotFile, float]],
        content: Content,
        segment: int,
        step: int,
        needed: set[Place],
        copied_s: float,
    ) -> None:
        """Runs in a thread of its own."""
        start_s = time.monotonic()
        try:
            file = snapshot_file.write(self.folder, segment, step, content)
            self._remove_old(file, needed)
        except BaseException as error:  # noqa: BLE001 - reported by the training thread
            future.set_exception(error)
        else:
            future.set_result((file, copied_s + time.monotonic() - start_s))

    def _remove_old(self, newest: SnapshotFile, needed: set[Place]) -> None:
        others = [file for file in snapshot_file.files(self.folder) if file.path != newest.path]
        total, limit = newest.nbytes + sum(file.nbytes for file in others), self.limit_bytes
        older = others[: -(KEEP - 1)]
        too_many = {file.place for file in older if file.place not in needed}
        too_many |= {file.place for file in [file for file in older if file.place in needed][:-KEEP_FOR_UNDO]}
        for file in others:  # the oldest first
            if file.place in too_many or total > limit:
                total -= file.nbytes
                file.path.unlink(missing_ok=True)

    def _report(self) -> bool:
        """Report the snapshot that was being written. Returns False if it is not written yet."""
        writing = self._writing
        if writing is None or not writing.done():
            return False
        self._writing = None
        try:
            file, took_s = writing.result()
        except Exception as error:  # noqa: BLE001 - training goes on without this snapshot
            self._saved = None
            self._note(error)
            return True
        self._cost_s, self._noted = took_s, None
        self._spent_s += took_s
        self._due_s = max(self._due_s, time.monotonic() + took_s / SHARE)
        segment, step, reason = self._written
        self._progress.emit(
            SnapshotSaved(
                segment=segment,
                step=step,
                reason=reason,
                bytes=file.nbytes,
                total_bytes=self._total(),
                limit_bytes=self.limit_bytes,
                seconds=took_s,
            )
        )
        return True

    def _note(self, error: BaseException) -> None:
        """Report why there is no new snapshot; the same kind of error only once, until a snapshot is saved."""
        kind = type(error), getattr(error, "errno", None)
        if kind == self._noted:
            return
        self._noted = kind
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        left = snapshot_file.files(self.folder)
        then = f"; the one of step {left[-1].step:,} is kept" if left else ""
        self._progress.note(f"no snapshot was saved on disk: {why}{then}")


def _without_time(content: Content) -> Content:
    return {key: value for key, value in content.items() if key not in ("elapsed_s", "undo", "state", "user_state")}


def _is_finite(content: Content) -> bool:
    return all(bool(t.isfinite().all()) for t in _tensors(content["state"]["net"]) if t.is_floating_point())


def _tensors(value: object) -> Iterator[Tensor]:
    match value:
        case Tensor():
            yield value
        case dict():
            for one in value.values():
                yield from _tensors(one)
        case list() | tuple():
            for one in value:
                yield from _tensors(one)


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.3g} MB" if nbytes < 1e9 else f"{nbytes / 1e9:,.3g} GB"
