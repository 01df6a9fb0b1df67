"""Steps in the record: one row for up to 1024 consecutive steps, with their losses, rates and times packed.

The losses and rates are exact. A time is exact, to float32, at a step that began or ended a pause, and else within
`TIME_WITHIN_S`.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from array import array
from collections.abc import Iterator
from typing import Any

from tui_descent.protocol.events import StepsCompleted

MOST_STEPS = 1024  # rows larger than a page of SQLite waste little of it
TIME_WITHIN_S = 0.1
# The thinned curve has all steps at first, later the mean of up to this many.
WIDEST_BIN = 32
STEPS_PER_WIDTH = 128
DIFFERENCES = 3  # of the rates: the rest of a cosine schedule is then about one byte a step
COLUMNS = (
    "seq", "segment", "first", "count", "mean", "lowest", "highest", "lr", "began_s", "ended_s",
    "losses", "rates", "times", "skipped", "curve", "crc",
)  # fmt: skip
PACKED = "seq, segment, first, count, began_s, losses, rates, times, skipped, crc"
_TIME = struct.Struct("<Hf")  # the number of the step in the row, and the seconds since the row's first step
_MASK = (1 << 64) - 1


class StepRow:
    """A row that is being filled."""

    def __init__(self, seq: int, segment: int, first: int) -> None:
        self.seq, self.segment, self.first = seq, segment, first
        self.losses, self.rates, self.times = array("d"), array("d"), array("d")
        self.skipped: list[int] = []

    @property
    def count(self) -> int:
        return len(self.losses)

    @property
    def end(self) -> int:
        return self.first + self.count

    def add(self, event: StepsCompleted, start: int) -> int:
        """Add the event's steps from number `start` on, as many as fit; returns how many."""
        taken = slice(start, start + MOST_STEPS - self.count)
        self.losses.extend(event.losses[taken])
        self.rates.extend(event.lrs[taken])
        self.times.extend(event.times_s[taken])
        first = event.first + start
        self.skipped += [step - self.first for step in event.skipped if first <= step < self.end]
        return self.end - first

    def packed(self) -> tuple[Any, ...]:
        """The values of `COLUMNS`."""
        finite = [loss for loss in self.losses if math.isfinite(loss)]
        data = pack_losses(self.losses), pack_rates(self.rates), pack_times(self.times)
        skipped = array("H", self.skipped).tobytes() if self.skipped else None
        return (
            self.seq,
            self.segment,
            self.first,
            self.count,
            math.fsum(finite) / len(finite) if finite else None,
            min(finite, default=None),
            max(finite, default=None),
            self.rates[-1],
            self.times[0],
            self.times[-1],
            *data,
            skipped,
            json.dumps(list(thinned(self.first, self.losses)), separators=(",", ":")),
            checksum(self.seq, self.segment, self.first, self.count, *data, skipped or b""),
        )


def unpack(row: tuple[Any, ...]) -> StepsCompleted:
    """The steps of one row, given as `PACKED`. Raises `ValueError` if the row is damaged."""
    seq, segment, first, count, began_s, losses, rates, times, skipped, crc = row
    try:
        if checksum(seq, segment, first, count, losses, rates, times, skipped or b"") != crc:
            raise ValueError("the checksum is wrong")
        left_out = array("H", skipped or b"")
        return StepsCompleted(
            segment=segment,
            first=first,
            losses=unpack_losses(losses, count),
            lrs=unpack_rates(rates, count),
            times_s=unpack_times(began_s, times, count),
            skipped=tuple(first + n for n in left_out),
        )
    except (TypeError, struct.error, zlib.error) as error:
        raise ValueError(str(error)) from None


def checksum(*values: int | bytes) -> int:
    """The CRC-32 of a row's values, each number as text."""
    crc = 0
    for value in values:
        crc = zlib.crc32(value if isinstance(value, bytes) else b"%d," % value, crc)
    return crc


def pack_losses(losses: array[float]) -> bytes:
    """The losses as float32 if all of them are float32 numbers, else as float64."""
    short = array("f", losses)
    return short.tobytes() if array("d", short).tobytes() == losses.tobytes() else losses.tobytes()


def unpack_losses(data: bytes, count: int) -> list[float]:
    return array("f" if len(data) == 4 * count else "d", data).tolist()


def pack_rates(rates: array[float]) -> bytes:
    """One float64 if all rates are equal. Else the third differences of their bits, byte by byte, compressed: a
    schedule changes the rate at every step, but smoothly.
    """
    if rates.tobytes() == rates[:1].tobytes() * len(rates):
        return rates[:1].tobytes()
    bits = array("Q", rates.tobytes())
    for _ in range(DIFFERENCES):
        bits = array("Q", (b - a & _MASK for a, b in zip((0, *bits), bits, strict=False)))
    data = bits.tobytes()
    return zlib.compress(b"".join(data[n::8] for n in range(8)), 1)


def unpack_rates(data: bytes, count: int) -> list[float]:
    if len(data) == 8:
        return array("d", data * count).tolist()
    shuffled = zlib.decompress(data)
    plain = bytearray(len(shuffled))
    for n in range(8):
        plain[n::8] = shuffled[n * count : (n + 1) * count]
    bits = list(array("Q", bytes(plain)))
    for _ in range(DIFFERENCES):
        total = 0
        for n, value in enumerate(bits):
            bits[n] = total = total + value & _MASK
    return array("d", array("Q", bits).tobytes()).tolist()


def pack_times(times: array[float]) -> bytes:
    """The times of some steps: of the last one, of each that comes TIME_WITHIN_S after the one stored before it, and of
    those before and after a longer wait.
    """
    kept = []
    stored_s = -math.inf
    last = len(times) - 1
    for n, time_s in enumerate(times):
        waits = n < last and times[n + 1] - time_s > TIME_WITHIN_S
        if n == last or waits or not stored_s <= time_s < stored_s + TIME_WITHIN_S:
            kept.append(_TIME.pack(n, time_s - times[0]))
            stored_s = time_s
    return b"".join(kept)


def unpack_times(began_s: float, data: bytes, count: int) -> list[float]:
    """The time of each step, interpolated between those stored."""
    times: list[float] = []
    before_s = began_s
    for number, since_s in _TIME.iter_unpack(data):
        time_s = began_s + since_s
        missing = number - len(times) + 1
        times += [before_s + (time_s - before_s) * k / missing for k in range(1, missing)]
        times.append(time_s)
        before_s = time_s
    if len(times) != count:
        raise ValueError("the number of times is wrong")
    return times


def thinned(first: int, losses: array[float]) -> Iterator[tuple[int, float | None]]:
    """The first step and the mean loss of each bin; None if no loss in it is finite.

    The bins become wider with the number of the step, up to WIDEST_BIN.
    """
    width = 1
    while width < WIDEST_BIN and first >= 2 * width * STEPS_PER_WIDTH:
        width *= 2
    for start in range(0, len(losses), width):
        finite = [loss for loss in losses[start : start + width] if math.isfinite(loss)]
        yield first + start, float(f"{math.fsum(finite) / len(finite):.6g}") if finite else None
