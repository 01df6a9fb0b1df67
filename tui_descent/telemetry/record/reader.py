"""Reads a run's record, also while the keeper writes it.

Every query is short, so that the writer's log does not grow because of a reader. Damaged rows are left out and counted.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import math
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tui_descent.protocol.events import AnyEvent, KnobTurned, Rewound, StepsCompleted, TaskTaken
from tui_descent.telemetry.history import History
from tui_descent.telemetry.record import checkpoints, event_rows, step_rows
from tui_descent.telemetry.record.schema import RECORD_FILE, RecordError, connect_to_read
from tui_descent.telemetry.record.step_rows import checksum
from tui_descent.telemetry.smoothing import SmoothedLoss, window_of

_CHANGES = "kind IN ('intervention', 'rewound')"  # the condition of an index
_SEQ = "SELECT value FROM about WHERE key = 'seq'"
ROWS = 512  # how many sequence numbers one query covers


def has_steps(folder: Path) -> bool:
    """Whether the run in this folder has a record with at least one step, or a damaged record."""
    path = folder / RECORD_FILE
    try:
        if not path.stat().st_size:
            return False
        with contextlib.closing(connect_to_read(path)[0]) as connection:
            found = connection.execute("SELECT value FROM about WHERE key = 'step'").fetchone()
            return bool(found and found[0])
    except OSError:
        return False
    except (RecordError, sqlite3.DatabaseError):
        return True


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about a recorded run.

    `status` is that of `RunEnded`, or "running" if the run has not ended or was killed. `state` is its last state.
    `started` and `updated` are times since 1970, `seconds` is how long the run was recorded, `size` the file's bytes.
    `scenario` is None for a user loop. `loss` is the last loss that was reported: that of the last step, or after the
    end what was evaluated then; NaN if there is none. `held_out_loss` is the newest one of the last segment. `values`
    is the whole table `about`.
    """

    run: str
    name: str
    title: str
    status: str
    state: str
    reason: str
    segment: int
    step: int
    planned_steps: int | None
    loss: float
    held_out_loss: float | None
    accuracy: float | None
    started: float
    updated: float
    seconds: float
    device: str
    parameters: int
    scenario: dict[str, Any] | None
    size: int
    values: dict[str, Any]


class Place(NamedTuple):
    """A place in the record: after `after` steps of the row of steps `row`, and after the events up to number `seq`."""

    seq: int
    row: int
    after: int


class Span(NamedTuple):
    """A row of steps: `length` steps from step `first` on. In a race, one `LaneSteps` event, with a `length` of 1."""

    row: int
    segment: int
    first: int
    length: int
    is_lane: bool = False


class Record:
    """A record that is open for reading."""

    def __init__(self, connection: sqlite3.Connection, path: Path, *, cut_off: bool = False) -> None:
        self.path = path
        self._connection = connection
        self._cut_off = cut_off
        self._about_lost = False
        self._lost: set[int] = set()  # the numbers of rows that cannot be read

    @classmethod
    def open(cls, folder: Path) -> Record:
        """Open the record in a run's folder.

        Raises `RecordError` if there is none, if another version has written it, or if nothing of it can be read.
        """
        path = folder / RECORD_FILE
        connection, cut_off = connect_to_read(path)
        record = cls(connection, path, cut_off=cut_off)
        try:
            record._last_seq()
        except RecordError:
            record.close()
            raise
        return record

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def damage(self) -> str:
        """What could not be read so far, as a sentence; "" if nothing is missing. A row holds up to 1,024 steps, or one
        other event.
        """
        parts = ["the end of its file is missing"] * self._cut_off
        if self._lost:
            parts.append(f"{len(self._lost):,} of {self._last_seq():,} rows cannot be read")
        if self._about_lost:
            parts.append("what it says about the run cannot be read")
        return f"the record is damaged: {', '.join(parts)}" if parts else ""

    @property
    def about(self) -> RunInfo:
        """What is known about the run. Its `status` is "damaged" if that cannot be read."""
        known: dict[str, Any] = {"status": "damaged"}
        scenario = None
        try:
            known |= dict(self._connection.execute("SELECT key, value FROM about").fetchall())
            scenario = None if known.get("scenario") is None else json.loads(known["scenario"])
        except (sqlite3.DatabaseError, ValueError, TypeError):
            self._about_lost = True
        size = 0
        for end in ("", "-wal"):
            with contextlib.suppress(OSError):
                size += Path(f"{self.path}{end}").stat().st_size
        return RunInfo(
            run=str(known.get("run", self.path.parent.name)),
            name=str(known.get("name", "")),
            title=str(known.get("title", "")),
            status=str(known.get("status", "running")),
            state=str(known.get("state", "")),
            reason=str(known.get("reason") or ""),
            segment=int(_number(known.get("segment"), 0)),
            step=int(_number(known.get("step"), 0)),
            planned_steps=known.get("planned_steps"),
            loss=_number(known.get("loss"), math.nan),
            held_out_loss=known.get("held_out_loss"),
            accuracy=known.get("accuracy"),
            started=_number(known.get("started"), 0.0),
            updated=_number(known.get("updated"), 0.0),
            seconds=_number(known.get("seconds"), 0.0),
            device=str(known.get("device", "")),
            parameters=int(_number(known.get("parameters"), 0)),
            scenario=scenario,
            size=size,
            values=known,
        )

    def position(self) -> tuple[int, int]:
        """The segment, and how many steps of it are made."""
        about = self.about
        return about.segment, about.step

    def training_loss(self) -> float | None:
        """The training loss at the end, smoothed as the status line shows it; None if no step was made.

        It is computed from the last two rows of steps, so its last digits may differ from those of the status line.
        """
        about = self.about
        try:
            rows = self._connection.execute(
                f"SELECT {step_rows.PACKED} FROM steps WHERE first < ? ORDER BY seq DESC LIMIT 2", (about.step,)
            ).fetchall()
        except sqlite3.DatabaseError:  # a part of the table is damaged
            return None
        losses: list[tuple[int, float]] = []  # by step
        end = about.step
        for row in rows:  # the newest first; the steps of an older one may have been undone
            if isinstance(steps := self._unpacked("steps", row), StepsCompleted):
                losses[:0] = enumerate(steps.losses[: max(0, end - steps.first)], steps.first)
                end = min(end, steps.first)
        window, smoothed = window_of(about.scenario), SmoothedLoss()
        for step, loss in losses:
            if math.isfinite(loss):
                smoothed.add(step, loss, window)
        if not losses or not math.isfinite(losses[-1][1]):
            return losses[-1][1] if losses else None
        return smoothed.value

    def events(self) -> Iterator[AnyEvent]:
        """All recorded events in their order, with the steps among them."""
        return self._events(Place(0, 0, 0))

    def history(self) -> History:
        """The history at the end of the record."""
        return self._history(None)

    def history_at(self, segment: int, step: int) -> History:
        """The history just before update `step` of a segment; at the segment's end if there is no such update."""
        return self._history(self._place(segment, step))

    def changes(self) -> list[KnobTurned | Rewound]:
        """Every intervention, undo, redo and resumption, in the order in which they happened."""
        return list(self._interventions_and_undos())

    def interventions(self) -> list[KnobTurned]:
        """The interventions that led to the present state, in the order of their steps: without those undone."""
        lineages: dict[int, list[KnobTurned]] = {}  # by segment
        segment = 0
        for event in self._interventions_and_undos():
            segment = event.segment
            if isinstance(event, KnobTurned):
                lineages.setdefault(segment, []).append(event)
            else:
                before = lineages.get(event.to_segment, [])
                lineages[segment] = [
                    made
                    for made in before
                    if made.step < event.to_step or (made.step == event.to_step and made.id in event.in_force)
                ]
        return lineages.get(segment, [])

    def spans(self) -> list[Span]:
        """The rows of steps in the order in which they were made."""
        try:
            rows = self._connection.execute("SELECT seq, segment, first, count FROM steps ORDER BY seq").fetchall()
            if not rows:
                lanes = self._connection.execute("SELECT seq FROM events WHERE kind = 'lane_steps' ORDER BY seq")
                return [Span(seq, 0, n, 1, is_lane=True) for n, (seq,) in enumerate(lanes.fetchall())]
        except sqlite3.DatabaseError:  # a part of the table is damaged
            rows = [packed[:4] for _, packed, is_steps in self._rows(Place(0, 0, 0)) if is_steps]
        return [Span(*row) for row in rows]

    def place_before(self, span: Span, number: int) -> Place:
        """The place just before step `number` of a span."""
        if span.is_lane:
            return Place(span.row - 1, 0, step_rows.MOST_STEPS)
        return Place(self._newest_event(span.row, number), span.row, number)

    def events_from(self, place: Place) -> Iterator[AnyEvent]:
        """The events after a place."""
        return self._events(place)

    def checkpoints(self) -> list[Place]:
        """The places of the checkpoints, the newest first."""
        try:
            rows = self._connection.execute(
                "SELECT seq, ifnull((SELECT max(seq) FROM steps WHERE steps.seq <= checkpoints.seq), 0), after "
                "FROM checkpoints ORDER BY id DESC"
            ).fetchall()
        except sqlite3.DatabaseError:
            return []
        return [Place(*row) for row in rows]

    def history_in(self, checkpoint: Place) -> History | None:
        """The history in a checkpoint; None if it cannot be read."""
        with contextlib.suppress(sqlite3.DatabaseError, TypeError):
            body, crc = self._connection.execute(
                "SELECT body, crc FROM checkpoints WHERE seq = ? AND after = ?", (checkpoint.seq, checkpoint.after)
            ).fetchone()
            is_good = checksum(checkpoint.seq, checkpoint.after, body) == crc
            if is_good and (sent := checkpoints.unpack(body)) is not None:
                return History.receive(sent)
        return None

    def picture_at(self, place: Place | None) -> TaskTaken | None:
        """The newest recorded picture of the task before a place, or of the whole record; None if there is none."""
        sql = f"SELECT {event_rows.PACKED} FROM events WHERE kind = 'task' AND seq <= ? ORDER BY seq DESC LIMIT 1"
        with contextlib.suppress(sqlite3.DatabaseError):
            row = self._connection.execute(sql, (1 << 60 if place is None else place.seq,)).fetchone()
            found = None if row is None else self._unpacked("events", row)
            return found if isinstance(found, TaskTaken) else None
        return None

    def places_of_interventions(self) -> list[tuple[int, int]]:
        """The places of the interventions, each as the row of steps before it and how many of its steps."""
        query = (
            "SELECT ifnull((SELECT max(seq) FROM steps WHERE steps.seq < events.seq), 0), after FROM events "
            f"WHERE kind = 'intervention' AND {_CHANGES} ORDER BY seq"
        )
        with contextlib.suppress(sqlite3.DatabaseError):
            return self._connection.execute(query).fetchall()
        return []

    def _newest_event(self, row: int, number: int) -> int:
        """The number of the last event before step `number` of a row of steps; the row's own if there is none."""
        with contextlib.suppress(sqlite3.DatabaseError):
            found = self._connection.execute(
                "SELECT max(seq) FROM events WHERE seq > ? AND after <= ? "
                "AND seq < ifnull((SELECT min(seq) FROM steps WHERE seq > ?), 1 << 60)",
                (row, number, row),
            ).fetchone()[0]
            return max(row, int(found or 0))
        return row

    def _last_seq(self) -> int:
        """The number of the last row. Raises `RecordError` if it cannot be found."""
        numbers = []
        problem: Exception | None = None
        for query in ("SELECT max(seq) FROM steps", "SELECT max(seq) FROM events", _SEQ):
            try:
                found = self._connection.execute(query).fetchone()
                numbers.append(int(_number(found and found[0], 0)))
            except sqlite3.DatabaseError as error:
                problem = error
        if not any(numbers) and problem is not None:
            raise RecordError(f"{self.path}: damaged, nothing can be read: {problem}")
        return max(numbers)

    def _interventions_and_undos(self) -> Iterator[KnobTurned | Rewound]:
        sql = f"SELECT {event_rows.PACKED} FROM events WHERE {_CHANGES} ORDER BY seq"
        try:
            rows = self._connection.execute(sql).fetchall()
            found: Iterable[AnyEvent | None] = (self._unpacked("events", row) for row in rows)
        except sqlite3.DatabaseError:  # a part of the table or of its index is damaged
            found = self.events()
        for event in found:
            if isinstance(event, KnobTurned | Rewound):
                yield event

    def _history(self, end: Place | None) -> History:
        """The history at a place; at the end of the record if that is None."""
        history, start = History(), Place(0, 0, 0)
        for place in self.checkpoints():
            is_before = end is None or (place.seq <= end.seq and (place.row, place.after) <= (end.row, end.after))
            if is_before and (found := self.history_in(place)) is not None:
                history, start = found, place
                break
        for event in self._events(start, end):
            history.apply(event)
        return history

    def _place(self, segment: int, step: int) -> Place | None:
        """The place just before update `step` of a segment; None for the end of the record."""
        last = self._last_seq()
        execute = self._connection.execute
        try:
            found = execute(
                "SELECT seq, first FROM steps WHERE segment = ? AND first + count > ? ORDER BY seq LIMIT 1",
                (segment, step),
            ).fetchone()
            if found is not None:
                return Place(last, found[0], max(0, step - found[1]))
            # The end of a segment that was left by an undo.
            newest = execute("SELECT ifnull(max(seq), 0) FROM steps WHERE segment = ?", (segment,)).fetchone()[0]
            query = f"SELECT min(seq) FROM events WHERE kind = 'rewound' AND {_CHANGES} AND seq > ?"
            left = execute(query, (newest,)).fetchone()[0]
            if left is None:
                return None
            row = execute("SELECT max(seq) FROM steps WHERE seq < ?", (left,)).fetchone()[0]
            return Place(left - 1, row or 0, step_rows.MOST_STEPS)
        except sqlite3.DatabaseError:  # a part of the table or of its index is damaged
            for seq, packed, is_steps in self._rows(Place(0, 0, 0)):
                if is_steps and packed[1] == segment and packed[2] + packed[3] > step:
                    return Place(last, seq, max(0, step - packed[2]))
            return None

    def _events(self, start: Place, end: Place | None = None) -> Iterator[AnyEvent]:
        """The events between two places, with the steps among them."""
        steps: StepsCompleted | None = None  # the newest row
        row, made = start.row, start.after  # its number, and how many of its steps have been passed on

        for seq, packed, is_steps in self._rows(start):
            if end is not None and (seq > max(end.seq, end.row) or (is_steps and seq > end.row > 0)):
                break
            limit = end.after if end is not None and row == end.row else None
            if is_steps:
                yield from _part(steps, made, None)
                unpacked = self._unpacked("steps", packed)
                steps = unpacked if isinstance(unpacked, StepsCompleted) else None
                row, made = seq, start.after if seq == start.row else 0
                continue
            if seq <= start.seq:
                continue
            event, after = self._unpacked("events", packed), packed[1]
            if event is None:
                continue
            if limit is not None and after > limit:
                break
            yield from _part(steps, made, after)
            made = max(made, after)
            yield event
        limit = end.after if end is not None and row == end.row else None
        yield from _part(steps, made, limit)

    def _rows(self, start: Place) -> Iterator[tuple[int, tuple[Any, ...], bool]]:
        """The rows of both tables in their order, each with its number and whether it holds steps."""
        last, first = self._last_seq(), start.row or start.seq + 1
        while first <= last:
            until = min(first + ROWS, last + 1)
            unread: set[int] = set()
            steps = [(row[0], row, True) for row in self._read("steps", first, until, unread)]
            events = [(row[0], row, False) for row in self._read("events", first, until, unread)]
            self._lost |= unread.difference(row[0] for row in (*steps, *events))
            yield from heapq.merge(steps, events, key=lambda found: found[0])
            first = until

    def _read(self, table: str, first: int, until: int, unread: set[int]) -> list[tuple[Any, ...]]:
        """The rows with numbers from `first` to before `until`.

        The numbers on damaged pages are added to `unread`; they may be those of rows of the other table.
        """
        columns = step_rows.PACKED if table == "steps" else event_rows.PACKED
        try:
            return self._connection.execute(
                f"SELECT {columns} FROM {table} WHERE seq >= ? AND seq < ? ORDER BY seq", (first, until)
            ).fetchall()
        except sqlite3.DatabaseError:
            if until - first > 1:
                middle = (first + until) // 2
                return self._read(table, first, middle, unread) + self._read(table, middle, until, unread)
            unread.add(first)
            return []

    def _unpacked(self, table: str, row: tuple[Any, ...]) -> AnyEvent | None:
        try:
            return step_rows.unpack(row) if table == "steps" else event_rows.unpack(row)
        except ValueError:
            self._lost.add(row[0])
            return None


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) else otherwise


def part_of(steps: StepsCompleted, start: int, end: int | None) -> StepsCompleted:
    """The steps from number `start` to before number `end`."""
    losses, first = steps.losses[start:end], steps.first + start
    return StepsCompleted(
        segment=steps.segment,
        first=first,
        losses=losses,
        lrs=steps.lrs[start:end],
        times_s=steps.times_s[start:end],
        skipped=tuple(step for step in steps.skipped if first <= step < first + len(losses)),
    )


def _part(steps: StepsCompleted | None, start: int, end: int | None) -> Iterator[StepsCompleted]:
    """The same, if there are any such steps."""
    if steps is not None and steps.losses[start:end]:
        yield part_of(steps, start, end)
