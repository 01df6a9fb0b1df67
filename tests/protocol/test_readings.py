"""Readings are packed into shared memory and unpacked: values, absent values, ages."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from tui_descent.protocol.readings import COLUMNS, pack_row, unpack
from tui_descent.protocol.ring import ReadingRecord, Ring, ring_file


def through_the_ring(home: Path, rows: list[list[float]]) -> ReadingRecord:
    ring = Ring.create(ring_file(home), layers=len(rows), columns=len(COLUMNS), steps=4)
    ring.write_reading(40, 2, 3.5, 0.007, rows)
    (record,) = ring.read_readings()
    ring.close()
    return record


def test_packed_rows_unpack_to_the_same_values(home: Path) -> None:
    random_ = random.Random(0)
    for _ in range(20):
        layers = random_.randrange(1, 30)
        values = [[random_.choice((None, 0.0, random_.expovariate(1), 1e-300)) for _ in COLUMNS] for _ in range(layers)]
        ages = [random_.choice((0, 1, 31, 5000, 2**31)) for _ in range(layers)]
        rows = [pack_row(row, age=age) for row, age in zip(values, ages, strict=True)]
        event = unpack(through_the_ring(home, rows))
        assert (event.segment, event.step, event.global_grad_norm, event.watch_cost) == (2, 40, 3.5, 0.007)
        assert event.ages == ages
        for n, name in enumerate(COLUMNS):
            column = [row[n] for row in values]
            assert event.values.get(name, [None] * layers) == column


@pytest.mark.parametrize("preclip", [None, 0.0, 340.5, math.inf])
@pytest.mark.parametrize("cosine", [None, -1.0, 0.0])
def test_values_of_the_whole_net_are_transferred_or_absent(
    home: Path, preclip: float | None, cosine: float | None
) -> None:
    ring = Ring.create(ring_file(home), layers=1, columns=len(COLUMNS), steps=4)
    ring.write_reading(4, 0, 1.0, 0.5, [pack_row([2.0])], global_cosine=cosine, grad_norm_preclip=preclip)
    (event,) = map(unpack, ring.read_readings())
    ring.close()
    assert (event.global_grad_norm, event.watch_cost) == (1.0, 0.5)
    assert (event.global_cosine, event.grad_norm_preclip) == (cosine, preclip)


def test_a_reading_carries_the_number_of_its_layer_list(home: Path) -> None:
    ring = Ring.create(ring_file(home), layers=3, columns=len(COLUMNS), steps=4)
    ring.write_reading(4, 0, 1.0, 0.5, [pack_row([2.0])], structure=5)
    (event,) = map(unpack, ring.read_readings())
    ring.close()
    assert (event.structure, event.values["grad_norm"], event.ages) == (5, [2.0], [0])


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinity_and_zero_are_values(home: Path, value: float) -> None:
    event = unpack(through_the_ring(home, [pack_row([value, None, 1.0, 0.0, None])]))
    assert event.values["grad_norm"] == [value]
    assert "grad_rms" not in event.values
    assert event.values["update_norm"] == [0.0], "zero is a value, not an absence"


def test_nan_is_a_value_and_differs_from_absent(home: Path) -> None:
    event = unpack(through_the_ring(home, [pack_row([math.nan, None, None, None, None])]))
    (norm,) = event.values["grad_norm"]
    assert norm is not None
    assert math.isnan(norm)
    assert "weight_norm" not in event.values


def test_the_columns_include_the_documented_metrics() -> None:
    names = "grad_norm grad_rms weight_norm update_norm update_ratio backprop_factor dead_fraction saturated_fraction"
    assert set(names.split()) <= set(COLUMNS)
    assert len(set(COLUMNS)) == len(COLUMNS)
