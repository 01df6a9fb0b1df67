"""Shared memory between the trainer (writer) and the keeper (reader): two ring buffers and the command flag.

Both processes map one unnamed file, which exists until both have ended. On Linux it is in memory, because writes to a
file on disk can be slow. A write to a page that the kernel has just written back takes 35 µs, and much longer on a
network file system. The trainer reserves the whole size at the start, because a missing page would raise SIGBUS at a
later step. There is one writer and one reader. A record is valid once its number has been written.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import msgspec

from tui_descent.protocol.inherited_fds import close_mapping, map_file, move_to_high_fd

MAGIC = 0x7D1E5CE7
LAYOUT = 5
HEADER_BYTES = 4096
# Offsets in the header. The keeper sets FLAG, RECORDED and LEFT; the trainer writes the others. LAST_EVENTS is a
# length, then that many bytes: the events that must reach the keeper even if the socket is full or closed.
HEARTBEAT, FLAG, LEFT, RECORDED, LAST_EVENTS = 256, 512, 520, 640, 1024

# The fields of a step: number + 1, step, loss, lr, time_s, segment, skipped, number + 1. They are written in this
# order. The reader checks the last number before reading and the first number after it. The record is valid if both are
# the expected number.
STEP = struct.Struct("<QqdddiIQ")
NUMBER_AT = STEP.size - 8
STEP_CAPACITY = 1 << 17
# The ring has room for as many readings as fit into READINGS_BYTES, within these bounds. A fast loop can take a
# thousand readings per second.
READINGS_BYTES = 4 << 20
FEWEST_READINGS, MOST_READINGS = 32, 1024
# The fields before the rows of a reading: number + 1, step, segment, number of rows, structure, global_grad_norm,
# watch_cost, global_cosine, grad_norm_preclip.
READING_HEAD = struct.Struct("<QqiIIdddd")
_pack_step = STEP.pack_into
_head = struct.Struct("<IIIIII")
_word = struct.Struct("<Q")
MOST_LAST_BYTES = HEADER_BYTES - LAST_EVENTS - _word.size
_real = struct.Struct("<d")
# MADV_POPULATE_WRITE, since Linux 5.14; Python has no name for it. It maps all pages at once, so no step has to wait
# for a page.
_POPULATE_WRITE = 23


class StepRecord(msgspec.Struct, frozen=True):
    """One update. `time_s` is measured from the run's start."""

    step: int
    loss: float
    lr: float
    time_s: float
    segment: int
    skipped: bool


class ReadingRecord(msgspec.Struct, frozen=True):
    """One reading: `1 + columns` numbers per layer. The first of these is a bit set, defined in `readings.py`.

    `structure` is the number of the list of layers that the rows belong to.
    """

    step: int
    segment: int
    global_grad_norm: float
    watch_cost: float
    global_cosine: float  # NaN if not measured
    rows: list[tuple[float, ...]]
    grad_norm_preclip: float = math.nan  # NaN if clipping is off
    structure: int = 0


def ring_file(folder: Path) -> int:
    """A file descriptor for a new ring: in memory if the system supports it, otherwise an unnamed file in `folder`.

    The process that starts the other one creates the file and passes it on. Raises `OSError`.
    """
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # a sandbox may not allow it
            return move_to_high_fd(os.memfd_create("tui-descent", os.MFD_CLOEXEC))
    file, name = tempfile.mkstemp(dir=folder)
    os.unlink(name)
    return move_to_high_fd(file)


class Ring:
    """The mapped file. The trainer calls `create`, the keeper `open`. A reading has at most `layers` rows."""

    def __init__(self, memory: mmap.mmap, mapping: str | None = None) -> None:
        self._memory = memory
        self._mapping = mapping  # the descriptor that `memory` keeps, as `describe_fd` gives it
        magic, layout, self._steps, self._readings, self.layers, self.columns = _head.unpack_from(memory, 0)
        if magic != MAGIC or layout != LAYOUT:
            raise ValueError(f"the shared memory is not a ring of layout {LAYOUT}")
        self._row = struct.Struct(f"<{1 + self.columns}d")
        self._rows = struct.Struct("<")  # packs all rows of a reading; made again when the number of rows changes
        self._slot_bytes = READING_HEAD.size + self.layers * self._row.size
        self._readings_at = HEADER_BYTES + self._steps * STEP.size
        self._written = 0
        self._readings_written = 0
        self._read = 0
        self._readings_read = 0
        self.missed = self.missed_readings = 0

    @classmethod
    def create(cls, file: int, *, layers: int, columns: int, steps: int = STEP_CAPACITY) -> Ring:
        """A new ring in an empty file; its readings have at most `layers` rows.

        Raises `OSError` if there is not enough space, `FileExistsError` if the file is not empty.
        """
        if os.fstat(file).st_size:
            raise FileExistsError("the file already holds a ring")
        slot = READING_HEAD.size + layers * (1 + columns) * 8
        readings = min(max(READINGS_BYTES // slot, FEWEST_READINGS), MOST_READINGS)
        size = HEADER_BYTES + steps * STEP.size + readings * slot
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.ftruncate(file, size)
        memory, mapping = map_file(file, size)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                memory.madvise(_POPULATE_WRITE)
        _head.pack_into(memory, 0, MAGIC, LAYOUT, steps, readings, layers, columns)
        return cls(memory, mapping)

    @classmethod
    def open(cls, file: int) -> Ring:
        """The keeper's view. Raises `OSError` or `ValueError`."""
        return cls(mmap.mmap(file, 0))

    # The trainer's side.

    def write_step(self, step: int, loss: float, lr: float, time_s: float, segment: int, skipped: bool) -> None:
        """Append one update. If the ring is full, the oldest update is overwritten."""
        at = HEADER_BYTES + self._written % self._steps * STEP.size
        self._written += 1
        _pack_step(self._memory, at, self._written, step, loss, lr, time_s, segment, skipped, self._written)

    def write_reading(
        self,
        step: int,
        segment: int,
        global_grad_norm: float,
        watch_cost: float,
        rows: Sequence[Sequence[float]],
        *,
        global_cosine: float | None = None,
        grad_norm_preclip: float | None = None,
        structure: int = 0,
    ) -> None:
        """Append one reading, with one row per layer of the list with number `structure`."""
        assert len(rows) <= self.layers
        if self._rows.size != len(rows) * self._row.size:
            self._rows = struct.Struct(f"<{len(rows) * (1 + self.columns)}d")
        known = (math.nan if value is None else value for value in (global_cosine, grad_norm_preclip))
        at = self._readings_at + (self._readings_written % self._readings) * self._slot_bytes
        self._readings_written += 1
        head = (0, step, segment, len(rows), structure, global_grad_norm, watch_cost, *known)
        READING_HEAD.pack_into(self._memory, at, *head)
        self._rows.pack_into(self._memory, at + READING_HEAD.size, *chain.from_iterable(rows))
        _word.pack_into(self._memory, at, self._readings_written)

    def beat(self, now_s: float) -> None:
        """Record that the trainer is alive. `now_s` is `time.monotonic()`, which is the same in all processes."""
        _real.pack_into(self._memory, HEARTBEAT, now_s)

    def flagged(self) -> bool:
        """Whether the keeper has set the command flag."""
        return self._memory[FLAG] != 0

    def lower_flag(self) -> None:
        """Clear the command flag. Clear it before reading commands: a command that is sent in between sets it again."""
        self._memory[FLAG] = 0

    def write_last_events(self, body: bytes) -> None:
        """Write the encoded last events, at most `MOST_LAST_BYTES`. A second call replaces those of the first."""
        assert len(body) <= MOST_LAST_BYTES
        _word.pack_into(self._memory, LAST_EVENTS, 0)
        at = LAST_EVENTS + _word.size
        self._memory[at : at + len(body)] = body
        _word.pack_into(self._memory, LAST_EVENTS, len(body))

    def detach(self) -> None:
        """Write into private memory from now on. A forked process calls this: the ring belongs to its parent."""
        shared, self._memory = self._memory, mmap.mmap(-1, len(self._memory))
        close_mapping(shared, self._mapping)
        self._mapping = None

    def recorded(self) -> int:
        """How many of the events that the trainer has sent are in the run's record."""
        return int(_word.unpack_from(self._memory, RECORDED)[0])

    def left(self) -> bool:
        """Whether the keeper has ended on request, so that no other keeper takes its place."""
        return self._memory[LEFT] != 0

    # The keeper's side.

    def set_recorded(self, events: int) -> None:
        """Report how many of the trainer's events are in the run's record."""
        _word.pack_into(self._memory, RECORDED, events)

    def leave(self) -> None:
        """Report that the keeper ends on request, and that no other keeper must take its place."""
        self._memory[LEFT] = 1

    def skip_to(self, steps: int, readings: int) -> None:
        """Go on after the first `steps` updates and `readings` readings, which another keeper has recorded."""
        self._read, self._readings_read = steps, readings

    def last_events(self) -> bytes:
        """What the trainer has written with `write_last_events`; empty if nothing."""
        size = min(_word.unpack_from(self._memory, LAST_EVENTS)[0], MOST_LAST_BYTES)
        at = LAST_EVENTS + _word.size
        return self._memory[at : at + size]

    def raise_flag(self) -> None:
        """Set the command flag, so that the trainer reads its commands. Call it after sending them."""
        self._memory[FLAG] = 1

    def heartbeat(self) -> float:
        """When the trainer last called `beat`, in the seconds of `time.monotonic()`."""
        return float(_real.unpack_from(self._memory, HEARTBEAT)[0])

    @property
    def position(self) -> tuple[int, int]:
        """The numbers of the last update and of the last reading that were read or missed."""
        return self._read, self._readings_read

    def read_steps(self, *, limit: int = 4096) -> list[StepRecord]:
        """The next unread updates, at most `limit` of them. `missed` counts updates that were overwritten unread."""
        found: list[StepRecord] = []
        while len(found) < limit:
            at = HEADER_BYTES + (self._read % self._steps) * STEP.size
            number = _word.unpack_from(self._memory, at + NUMBER_AT)[0]
            if number != self._read + 1:
                if number <= self._read + 1:
                    break
                self._skip_to_oldest(number)
                continue
            _, step, loss, lr, time_s, segment, skipped, _ = STEP.unpack_from(self._memory, at)
            if _word.unpack_from(self._memory, at)[0] != number:
                continue
            found.append(StepRecord(step, loss, lr, time_s, segment, bool(skipped)))
            self._read += 1
        return found

    def _skip_to_oldest(self, number: int) -> None:
        # The slot has already been overwritten, so all records up to one ring before `number` are lost. Half a ring
        # more is skipped, because otherwise the writer would overtake the reader again at once.
        oldest = max(
            number - self._steps + self._steps // 2, self._read + 1
        )  # at least one record is skipped for any `number`
        self.missed += oldest - self._read
        self._read = oldest

    def read_readings(self) -> Iterator[ReadingRecord]:
        """The unread readings, oldest first. `missed_readings` counts readings that were overwritten unread."""
        number = self._readings_read + 1
        while (held := self._reading_number((number - 1) % self._readings)) >= number:
            if held > number:  # the slot has already been overwritten
                newest = max(self._reading_number(n) for n in range(self._readings))
                oldest = max(newest - self._readings + 1, number + 1)
                self.missed_readings += oldest - number
                number = oldest
                continue
            at = self._readings_at + ((number - 1) % self._readings) * self._slot_bytes
            head = READING_HEAD.unpack_from(self._memory, at)
            _, step, segment, count, structure, grad_norm, cost, cosine, preclip = head
            place = at + READING_HEAD.size
            # The count may be garbage if the slot is being overwritten at this moment.
            rows = [
                self._row.unpack_from(self._memory, place + n * self._row.size) for n in range(min(count, self.layers))
            ]
            self._readings_read = number
            if self._reading_number((number - 1) % self._readings) == number:
                yield ReadingRecord(step, segment, grad_norm, cost, cosine, rows, preclip, structure)
            else:
                self.missed_readings += 1
            number += 1

    def _reading_number(self, slot: int) -> int:
        return int(_word.unpack_from(self._memory, self._readings_at + slot * self._slot_bytes)[0])

    def close(self) -> None:
        close_mapping(self._memory, self._mapping)
