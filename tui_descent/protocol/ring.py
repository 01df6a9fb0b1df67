"""The shared memory between one trainer (writer) and one keeper (reader): losses, readings, the command flag.

One file without a name, mapped by both; it outlives either and goes with the last. It lies in memory where the system
has such files, not on a disk, whose pages stop the writer for 35 µs each time they have been written back, and for as
long as a network's disk likes. The trainer lays it out with all of it reserved, where the system can, since what is
missing would kill by SIGBUS at some later step. Single writer, single reader; a record counts once its number is in
place.
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

from tui_descent.protocol.inherited_fds import move_to_high_fd

MAGIC = 0x7D1E5CE7
LAYOUT = 4
HEADER_BYTES = 4096
# Offsets of the header's single words. The trainer writes all; the keeper raises FLAG.
HEARTBEAT, FLAG = 256, 512

# number + 1, step, loss, lr, time_s, segment, skipped, number + 1. Written from front to back; whoever reads looks at
# the last number first and at the first one last, and has a record where both are the one expected.
STEP = struct.Struct("<QqdddiIQ")
NUMBER_AT = STEP.size - 8
STEP_CAPACITY = 1 << 17
# Readings for as long as these bytes allow, within these bounds: a fast loop makes a thousand a second on demand.
READINGS_BYTES = 4 << 20
FEWEST_READINGS, MOST_READINGS = 32, 1024
# number + 1, step, segment, rows, structure, global_grad_norm, watch_cost, global_cosine, grad_norm_preclip
READING_HEAD = struct.Struct("<QqiIIdddd")
_pack_step = STEP.pack_into
_head = struct.Struct("<IIIIII")
_word = struct.Struct("<Q")
_real = struct.Struct("<d")
# Linux 5.14's, which Python has no name for: all pages at hand at once, where the first step in each would wait for it.
_POPULATE_WRITE = 23


class StepRecord(msgspec.Struct, frozen=True):
    """One update as the trainer wrote it."""

    step: int
    loss: float
    lr: float
    time_s: float
    segment: int
    skipped: bool


class ReadingRecord(msgspec.Struct, frozen=True):
    """One reading: a row a layer, `1 + columns` wide, that starts with the bits of the columns that apply.

    `structure` numbers the list of layers that the rows are of.
    """

    step: int
    segment: int
    global_grad_norm: float
    watch_cost: float
    global_cosine: float  # NaN where there is none
    rows: list[tuple[float, ...]]
    grad_norm_preclip: float = math.nan  # where nothing is clipped
    structure: int = 0


def ring_file(folder: Path) -> int:
    """A file descriptor for a ring to come: of memory where the system has such files, else of `folder`'s disk.

    Whoever starts the other process makes it and hands it on. Raises `OSError`.
    """
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            return move_to_high_fd(os.memfd_create("tui-descent", os.MFD_CLOEXEC))
    file, name = tempfile.mkstemp(dir=folder)
    os.unlink(name)
    return move_to_high_fd(file)


class Ring:
    """The mapped file. Lay it out in the trainer, open it in the keeper. A reading has room for `layers` rows."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        magic, layout, self._steps, self._readings, self.layers, self.columns = _head.unpack_from(memory, 0)
        if magic != MAGIC or layout != LAYOUT:
            raise ValueError(f"the shared memory is no ring of layout {LAYOUT}")
        self._row = struct.Struct(f"<{1 + self.columns}d")
        self._rows = struct.Struct("<")  # as many as the last reading had
        self._slot_bytes = READING_HEAD.size + self.layers * self._row.size
        self._readings_at = HEADER_BYTES + self._steps * STEP.size
        self._written = 0
        self._readings_written = 0
        self._read = 0
        self._readings_read = 0
        self.missed = self.missed_readings = 0

    @classmethod
    def create(cls, file: int, *, layers: int, columns: int, steps: int = STEP_CAPACITY) -> Ring:
        """A fresh ring in an empty file, whose readings have `layers` rows at most.

        Raises `OSError` when there is no room for it, and where the file has one already.
        """
        if os.fstat(file).st_size:
            raise FileExistsError("there is a ring in this file")
        slot = READING_HEAD.size + layers * (1 + columns) * 8
        readings = min(max(READINGS_BYTES // slot, FEWEST_READINGS), MOST_READINGS)
        size = HEADER_BYTES + steps * STEP.size + readings * slot
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.ftruncate(file, size)
        memory = mmap.mmap(file, size)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                memory.madvise(_POPULATE_WRITE)
        _head.pack_into(memory, 0, MAGIC, LAYOUT, steps, readings, layers, columns)
        return cls(memory)

    @classmethod
    def open(cls, file: int) -> Ring:
        """The keeper's view. Raises `OSError` or `ValueError`."""
        return cls(mmap.mmap(file, 0))

    # The trainer's side.

    def write_step(self, step: int, loss: float, lr: float, time_s: float, segment: int, skipped: bool) -> None:
        """Append one update; overwrites the oldest when nobody has read for a whole ring."""
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
        """Append one reading, a row a layer of the list that `structure` numbers."""
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
        """Show that the trainer is alive; `time.monotonic()`, which all processes share."""
        _real.pack_into(self._memory, HEARTBEAT, now_s)

    def flagged(self) -> bool:
        """Whether the keeper has said "look at your commands"."""
        return self._memory[FLAG] != 0

    def lower_flag(self) -> None:
        """Say that the look begins: lowered before the commands are read, so that none sent meanwhile is missed."""
        self._memory[FLAG] = 0

    # The keeper's side.

    def raise_flag(self) -> None:
        """Tell the trainer to look at its commands; raised after they are sent."""
        self._memory[FLAG] = 1

    def heartbeat(self) -> float:
        """When the trainer last showed itself."""
        return float(_real.unpack_from(self._memory, HEARTBEAT)[0])

    def read_steps(self, *, limit: int = 4096) -> list[StepRecord]:
        """The next unread updates, at most `limit`; `missed` counts those overwritten before they were read."""
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
        # The slot was written a round later than expected: all up to one ring before that write is gone. Half a
        # ring more is given up, or the writer would overtake again at once.
        oldest = max(number - self._steps + self._steps // 2, self._read + 1)  # forward, whatever is written there
        self.missed += oldest - self._read
        self._read = oldest

    def read_readings(self) -> Iterator[ReadingRecord]:
        """The unread readings that are still there, oldest first; `missed_readings` counts the others."""
        number = self._readings_read + 1
        while (held := self._reading_number((number - 1) % self._readings)) >= number:
            if held > number:  # a round later than expected
                newest = max(self._reading_number(n) for n in range(self._readings))
                oldest = max(newest - self._readings + 1, number + 1)
                self.missed_readings += oldest - number
                number = oldest
                continue
            at = self._readings_at + ((number - 1) % self._readings) * self._slot_bytes
            head = READING_HEAD.unpack_from(self._memory, at)
            _, step, segment, count, structure, grad_norm, cost, cosine, preclip = head
            place = at + READING_HEAD.size
            # Of a slot that is being written over the count may be anything.
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
        """Unmap it."""
        with contextlib.suppress(BufferError):
            self._memory.close()
