"""Rows of steps: every loss and rate comes back exactly, and they are small."""

from __future__ import annotations

import math
import random
import struct
from array import array

import pytest
from factories import steps

from tui_descent.protocol.events import StepsCompleted
from tui_descent.telemetry.record import step_rows
from tui_descent.telemetry.record.step_rows import MOST_STEPS, StepRow, thinned, unpack

COLUMN = {name: n for n, name in enumerate(step_rows.COLUMNS)}


def bits(values: list[float]) -> bytes:
    return array("d", values).tobytes()


def row_of(event: StepsCompleted) -> tuple[object, ...]:
    row = StepRow(7, event.segment, event.first)
    assert row.add(event, 0) == len(event.losses)
    return row.packed()


def stored(event: StepsCompleted) -> StepsCompleted:
    values = row_of(event)
    return unpack(tuple(values[COLUMN[name]] for name in step_rows.PACKED.split(", ")))


def float32(values: list[float]) -> list[float]:
    return array("f", values).tolist()


NAN_WITH_A_PAYLOAD = struct.unpack("<d", bytes.fromhex("010000000000f87f"))[0]


@pytest.mark.parametrize(
    ("losses", "width"),
    [
        (float32([2.3, 0.1, 1e-30, 0.0, -0.0]), 4),
        (float32([1.0, math.nan, math.inf, -math.inf]), 4),
        ([0.1, 0.2], 8),
        ([1e300, -1e-300], 8),
        ([5e-324, 1.0], 8),
        ([NAN_WITH_A_PAYLOAD], 8),
    ],
)
def test_losses_come_back_bit_by_bit(losses: list[float], width: int) -> None:
    event = steps(40, losses)
    assert bits(stored(event).losses) == bits(losses)
    assert len(row_of(event)[COLUMN["losses"]]) == width * len(losses)  # type: ignore[arg-type]


def test_rates_come_back_bit_by_bit_whatever_the_schedule() -> None:
    noise = random.Random(1)
    cosine = [0.05 * (1 + math.cos(math.pi * n / 9000)) for n in range(MOST_STEPS)]
    warmup = [1e-3 * (n + 1) / MOST_STEPS for n in range(MOST_STEPS)]
    jumps = [noise.choice([0.1, 1e-3, math.nan, math.inf, 0.0, -0.0]) for _ in range(MOST_STEPS)]
    constant = [0.1] * MOST_STEPS
    for rates, most_bytes in (
        (constant, 8),
        (cosine, 2 * MOST_STEPS),
        (warmup, 2 * MOST_STEPS),
        (jumps, 8 * MOST_STEPS),
    ):
        packed = step_rows.pack_rates(array("d", rates))
        assert bits(step_rows.unpack_rates(packed, len(rates))) == bits(rates)
        assert len(packed) <= most_bytes
    for few in ([0.1], [0.1, 0.2], [-0.0, 0.0]):
        assert bits(step_rows.unpack_rates(step_rows.pack_rates(array("d", few)), len(few))) == bits(few)


def test_times_are_close_and_exact_around_a_pause() -> None:
    times = [n / 1000 for n in range(500)] + [60.0 + n / 1000 for n in range(500)]
    event = StepsCompleted(segment=0, first=0, losses=[1.0] * 1000, lrs=[0.1] * 1000, times_s=times)
    found = stored(event).times_s
    assert max(abs(a - b) for a, b in zip(times, found, strict=True)) <= step_rows.TIME_WITHIN_S
    assert [found[n] for n in (0, 499, 500, 999)] == pytest.approx([0.0, 0.499, 60.0, 60.499], abs=1e-5)
    assert found == sorted(found)
    assert len(row_of(event)[COLUMN["times"]]) < 100  # type: ignore[arg-type]


@pytest.mark.parametrize("times", [[1e9, 1e9 + 0.5, 1e9 + 1], [5.0, 3.0, 1.0], [0.0] * 3])
def test_times_of_any_clock_are_kept(times: list[float]) -> None:
    event = StepsCompleted(segment=0, first=0, losses=[1.0] * 3, lrs=[0.1] * 3, times_s=times)
    assert stored(event).times_s == pytest.approx(times, abs=0.1)


def test_skipped_steps_are_kept() -> None:
    event = StepsCompleted(segment=2, first=90, losses=[1.0] * 4, lrs=[0.1] * 4, times_s=[0.0] * 4, skipped=(90, 93))
    assert stored(event) == event


def test_row_takes_only_what_fits() -> None:
    row = StepRow(1, 0, 0)
    event = steps(0, [1.0] * (MOST_STEPS + 5))
    assert row.add(event, 0) == MOST_STEPS
    rest = StepRow(2, 0, MOST_STEPS)
    assert rest.add(event, MOST_STEPS) == 5


@pytest.mark.parametrize("column", ["losses", "rates", "times", "skipped"])
def test_changed_byte_is_noticed(column: str) -> None:
    event = StepsCompleted(segment=0, first=0, losses=[0.5] * 9, lrs=[0.1] * 9, times_s=[0.1] * 9, skipped=(3,))
    values = list(row_of(event))
    data = bytearray(values[COLUMN[column]])  # type: ignore[call-overload]
    data[len(data) // 2] ^= 0x10
    values[COLUMN[column]] = bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        unpack(tuple(values[COLUMN[name]] for name in step_rows.PACKED.split(", ")))


@pytest.mark.parametrize(("per_s", "most"), [(30, 8.0), (1000, 5.2), (20_000, 5.0)])
def test_a_step_takes_four_to_eight_bytes(per_s: float, most: float) -> None:
    event = steps(1 << 20, float32([1.0 + n for n in range(MOST_STEPS)]), per_s=per_s)
    size = sum(len(value) if isinstance(value, bytes | str) else 9 for value in row_of(event))
    assert 4.0 <= size / MOST_STEPS <= most


def test_thinned_curve_has_every_step_at_first_and_means_later() -> None:
    losses = array("d", [float(n) for n in range(64)])
    assert list(thinned(0, losses)) == [(n, float(n)) for n in range(64)]
    assert list(thinned(1 << 20, losses)) == [(1 << 20, 15.5), ((1 << 20) + 32, 47.5)]
    assert list(thinned(0, array("d", [math.nan, 1.0]))) == [(0, None), (1, 1.0)]
