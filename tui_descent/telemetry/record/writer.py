"""Writes a run's record. Only the run's keeper does.

What cannot be written, because the disk is full for example, waits in memory up to a limit and is written later.
Nothing here raises after the file has been opened, because training goes on without a record too.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tui_descent.protocol.events import (
    AnyEvent,
    DeviceTaken,
    EndReached,
    Evaluated,
    HistorySent,
    KnobTurned,
    LaneSteps,
    LedgerTaken,
    MetricLogged,
    Noted,
    ReadingsTaken,
    RecordingChanged,
    Rewound,
    RunEnded,
    RunStarted,
    StateChanged,
    StepsCompleted,
    TaskTaken,
)
from tui_descent.protocol.launch import Launch
from tui_descent.telemetry.metric_history import held_out_loss
from tui_descent.telemetry.record import checkpoints, event_rows, step_rows
from tui_descent.telemetry.record.byte_rate import ByteRate
from tui_descent.telemetry.record.schema import RECORD_FILE, connect_to_write, error_code
from tui_descent.telemetry.record.step_rows import StepRow, checksum

COMMIT_S = 0.1  # the longest time that an event waits for its commit
MANY_WAITING = 64 << 10  # bytes that are written without waiting: to print so many steps may take seconds
LOOK_S = 0.5  # how often to check that the file is still there, and to try again to write it
WELL_AFTER_S = 2.0  # recording goes on if there was no trouble for this long: a full disk may have room for a moment
MAX_WAITING = 16 << 20  # bytes that wait in memory while nothing can be written
# Readings are recorded at up to this many bytes per second on average: 9 MB an hour. The first ones, and those after
# quiet times, may come faster.
READINGS_PER_S, READINGS_AT_ONCE = 2_500, 1_000_000
PICTURES_PER_S, PICTURES_AT_ONCE = 2_500, 1_000_000  # the same for pictures of the task
# A checkpoint is the whole history, so that a reader need not begin at the first step. There are between half of
# MAX_CHECKPOINTS and all of them, or fewer if they are large.
MAX_CHECKPOINTS, MAX_CHECKPOINT_BYTES = 64, 6 << 20
FIRST_SPACING = 2048  # in steps; an event counts as EVENT_COST steps
EVENT_COST = 16
_INSERT_STEPS = (
    f"INSERT OR REPLACE INTO steps ({', '.join(step_rows.COLUMNS)}) VALUES ({', '.join('?' * len(step_rows.COLUMNS))})"
)
_INSERT_EVENT = "INSERT INTO events (seq, segment, step, after, time, kind, body, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


class RecordWriter:
    """The record of one run, written in batches. `history` returns the history that includes every added event.

    `trouble` says why nothing is written at present; "" if all is well.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        history: Callable[[], HistorySent],
        position: Callable[[], dict[str, int]],
    ) -> None:
        self.trouble = ""
        self.position: dict[str, int] = {}  # what `position` returned at the last commit
        self._history, self._position = history, position
        self._path = path
        self._connection: sqlite3.Connection | None = connection
        self._file = os.stat(path)
        self._about: dict[str, Any] = {}
        self._row: StepRow | None = None  # the newest row of steps
        self._row_changed = False
        self._waiting: list[tuple[str, tuple[Any, ...]]] = []  # statements with their values
        self._waiting_bytes = 0
        self._lost = (0, 0)  # steps and other events that there was no room for, since recording has stopped
        self._reported, self._well_s = "", 0.0
        self._readings = ByteRate(READINGS_PER_S, READINGS_AT_ONCE)
        self._pictures = ByteRate(PICTURES_PER_S, PICTURES_AT_ONCE)
        self._began_s = self._committed_s = self._looked_s = time.monotonic()
        self._spacing, self._since_checkpoint = FIRST_SPACING, 0
        self._seq, self._before_s = 0, 0.0
        self._segment = self._steps = 0
        self._continue()

    @classmethod
    def open(
        cls, launch: Launch, history: Callable[[], HistorySent], position: Callable[[], dict[str, int]] = dict
    ) -> RecordWriter:
        """Create the run's record, or continue it. Raises `OSError` or `RecordError` if that is not possible.

        `position` is asked at every commit; it returns values of the table `about` that say how much of the trainer's
        output is recorded.

        A damaged record is renamed, so that what is left of it can still be read, and a new one is begun.
        """
        path = launch.path / RECORD_FILE
        try:
            try:
                writer = cls(connect_to_write(path), path, history, position)
            except sqlite3.DatabaseError as error:
                if error_code(error) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    raise
                for end in ("", "-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(f"{path}{end}", f"{path.with_stem('record-damaged')}{end}")
                writer = cls(connect_to_write(path), path, history, position)
        except sqlite3.Error as error:
            raise OSError(f"{path}: {describe(error)}") from None
        writer.set(run=launch.run, name=launch.name)
        return writer

    def _continue(self) -> None:
        assert self._connection is not None
        execute = self._connection.execute
        numbers = [execute(f"SELECT max(seq) FROM {table}").fetchone()[0] or 0 for table in ("steps", "events")]
        self._seq = max(numbers)
        known = dict(execute("SELECT key, value FROM about").fetchall())
        self._before_s = float(known.get("seconds") or 0.0)
        self._segment, self._steps = int(known.get("segment") or 0), int(known.get("step") or 0)
        if "started" not in known:
            self.set(started=time.time(), status="running", segment=0, step=0)
        else:
            self.set(status="running", accuracy=None)  # that of the end, if a run is resumed

    def set(self, **values: str | float | None) -> None:
        """Set values of the table `about`, together with the next commit."""
        self._about |= values

    def add(self, event: AnyEvent) -> None:
        """Add an event. It is written by the next `commit`; an intervention is written at once."""
        if self._connection is None:
            return
        if isinstance(event, StepsCompleted):
            self._add_steps(event)
            return
        if isinstance(event, event_rows.NOT_RECORDED):
            return
        body = event_rows.pack(event)
        if isinstance(event, ReadingsTaken | LedgerTaken | DeviceTaken) and not self._readings.allows(len(body)):
            return
        if isinstance(event, TaskTaken) and not self._pictures.allows(len(body)):
            return
        after = self._after
        self._note(event)
        step = getattr(event, "step", None)
        place = getattr(event, "segment", self._segment), self._steps if step is None else step
        if self._waiting_bytes > MAX_WAITING:
            self._lost = (self._lost[0], self._lost[1] + 1)
            return
        seq = self._next_seq()
        crc = checksum(seq, after, body.encode() if isinstance(body, str) else body)
        self._wait(_INSERT_EVENT, (seq, *place, after, time.time(), event_rows.kind_of(event), body, crc), len(body))
        self._since_checkpoint += EVENT_COST
        if isinstance(event, KnobTurned | Rewound | RunEnded):
            self.commit(checkpoint=False)  # somebody waits for the reply

    def _note(self, event: AnyEvent) -> None:
        """Note what the event changes in the table `about`."""
        match event:
            case RunStarted():
                scenario = None if event.scenario is None else json.dumps(event.scenario)
                self.set(title=event.title, device=event.device, parameters=event.parameters, scenario=scenario)
                self.set(planned_steps=event.steps)
            case StateChanged():
                self.set(state=event.state, reason=event.reason)
            case Rewound():
                self._segment, self._steps = event.segment, event.step
                self._row_ended()
                self.set(segment=self._segment, step=self._steps, held_out_loss=None)
            case EndReached():
                self._note_end_loss(event)
            case Evaluated():
                self.set(held_out_loss=event.loss)
            case MetricLogged() if (evaluated := held_out_loss(event)) is not None:
                self.set(held_out_loss=evaluated.loss)
            case LaneSteps():
                self._steps = max(self._steps, event.first + len(event.losses))
                self.set(step=self._steps)
            case RunEnded():
                self.set(status=event.status, reason=event.reason, state="ended", accuracy=event.accuracy)
                if event.loss is not None:
                    self.set(loss=event.loss)
                self._note_end_loss(event)

    def _note_end_loss(self, event: EndReached | RunEnded) -> None:
        """The loss at the end is that of the held-out data, if there is any: then there is an accuracy too."""
        if event.accuracy is not None:
            self.set(held_out_loss=event.loss)

    def _add_steps(self, event: StepsCompleted) -> None:
        start, count = 0, len(event.losses)
        while start < count:
            row = self._row
            if (
                row is None
                or (row.segment, row.end) != (event.segment, event.first + start)
                or (row.count == step_rows.MOST_STEPS)
            ):
                self._row_ended()
                if self._waiting_bytes > MAX_WAITING:
                    self._lost = (self._lost[0] + count - start, self._lost[1])
                    break
                row = self._row = StepRow(self._next_seq(), event.segment, event.first + start)
            start += row.add(event, start)
            self._row_changed = True
        if count:
            self._since_checkpoint += count
            self._segment, self._steps = event.segment, event.first + count
            self.set(segment=event.segment, step=self._steps, loss=event.losses[-1])
        if self._waiting_bytes > MANY_WAITING and not self.trouble:
            self.commit(checkpoint=False)

    def _row_ended(self) -> None:
        """Let the newest row of steps wait for the next commit; the next steps get a row of their own."""
        if self._row is not None and self._row_changed:
            values = self._row.packed()
            self._wait(_INSERT_STEPS, values, sum(len(v) for v in values if isinstance(v, str | bytes)))
        self._row, self._row_changed = None, False

    @property
    def _after(self) -> int:
        """How many steps of the newest row come before what is added now; MOST_STEPS for all of them."""
        return step_rows.MOST_STEPS if self._row is None else self._row.count

    def _wait(self, statement: str, values: tuple[Any, ...], size: int) -> None:
        self._waiting.append((statement, values))
        self._waiting_bytes += size + 200  # and Python's own objects

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def maintain(self) -> list[AnyEvent]:
        """Write what has waited long enough. Call it often.

        Returns events that say when recording has stopped and when it goes on; they are to be added too.
        """
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            self._look()
            if self.trouble:
                self.commit()
        if not self.trouble and now_s - self._committed_s >= COMMIT_S and (self._waiting or self._row_changed):
            self.commit()
        if self.trouble:
            self._well_s = now_s + WELL_AFTER_S
        if self.trouble == self._reported or (not self.trouble and now_s < self._well_s):
            return []
        self._reported = self.trouble
        change = RecordingChanged(step=self._steps, trouble=self.trouble)
        return [change, Noted(step=self._steps, text=self._report(), level="warning")]

    def _report(self) -> str:
        if self.trouble:
            return f"recording has stopped: {self.trouble}; training goes on"
        steps, events = self._lost
        self._lost = (0, 0)
        if not steps and not events:
            return "recording goes on; nothing is missing"
        return f"recording goes on; {steps:,} steps and {events:,} events are missing in the record"

    def _look(self) -> None:
        """Notice that the file was removed or replaced: what is written to it would be lost."""
        try:
            there = os.path.samestat(self._file, os.stat(self._path))
        except OSError:
            there = False
        if not there and self._connection is not None:
            self._connection.close()
            self._connection = None
            self._waiting, self._waiting_bytes, self._row = [], 0, None
            self.trouble = "its file was removed"

    def commit(self, *, checkpoint: bool = True) -> None:
        """Write everything that was added, in one transaction, with a checkpoint if one is due.

        If that fails, `trouble` says why.
        """
        connection = self._connection
        if connection is None:  # the file was removed
            return
        self._committed_s = now_s = time.monotonic()
        seconds = self._before_s + now_s - self._began_s
        position = self._position()
        about = {**self._about, **position, "updated": time.time(), "seconds": seconds, "seq": self._seq}
        try:
            connection.execute("BEGIN IMMEDIATE")
            for statement, values in self._waiting:
                connection.execute(statement, values)
            if self._row is not None and self._row_changed:
                connection.execute(_INSERT_STEPS, self._row.packed())
            connection.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", about.items())
            if checkpoint and self._since_checkpoint >= self._spacing:
                self._add_checkpoint(connection)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            if error_code(error) == sqlite3.SQLITE_FULL:  # the log may be what fills the disk
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            # A reader of a record with a rollback journal holds it up for a moment.
            if error_code(error) != sqlite3.SQLITE_BUSY or self._waiting_bytes > MAX_WAITING // 2:
                self.trouble = describe(error)
            return
        self._waiting, self._waiting_bytes, self._about, self._row_changed = [], 0, {}, False
        self.trouble, self.position = "", position

    def _add_checkpoint(self, connection: sqlite3.Connection) -> None:
        self._since_checkpoint = 0
        body = checkpoints.pack(self._history())
        after = self._after
        connection.execute(
            "INSERT INTO checkpoints (seq, after, segment, step, body, crc) VALUES (?, ?, ?, ?, ?, ?)",
            (self._seq, after, self._segment, self._steps, body, checksum(self._seq, after, body)),
        )
        count, size = connection.execute("SELECT count(*), sum(length(body)) FROM checkpoints").fetchone()
        if count > MAX_CHECKPOINTS or size > MAX_CHECKPOINT_BYTES:
            self._spacing *= 2
            connection.execute(
                "DELETE FROM checkpoints WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id DESC) "
                "AS n FROM checkpoints) WHERE n % 2 = 0)"
            )

    def close(self) -> None:
        """Write the rest, with a checkpoint of the end, and leave one file without a log beside it."""
        if self._since_checkpoint:
            self._spacing = 0
        self.commit()
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA journal_mode = DELETE")
            self._connection.close()
            self._connection = None


def describe(error: sqlite3.Error) -> str:
    """An error of SQLite in plain words."""
    match error_code(error):
        case sqlite3.SQLITE_FULL:
            return "disk full"
        case sqlite3.SQLITE_READONLY:
            return "its file is read-only"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return "its file was damaged"
        case sqlite3.SQLITE_IOERR:
            return "its file cannot be written (input/output error)"
    return str(error)
