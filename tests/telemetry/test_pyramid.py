"""The multi-resolution series against a twin that keeps every step and adds up by brute force."""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict

import pytest

from tui_descent.telemetry.pyramid import Merge, Pyramid

KINDS: tuple[Merge, ...] = ("min", "max", "mean")
JOIN = {"min": min, "max": max, "mean": lambda values: math.fsum(values) / len(values)}
Bins = list[tuple[int, list[float]]]


class Twin:
    """Keeps every step."""

    def __init__(self, merges: tuple[Merge, ...]) -> None:
        self.merges = merges
        self.steps: list[tuple[int, tuple[float, ...]]] = []

    def add(self, step: int, values: tuple[float, ...]) -> None:
        self.steps.append((step, values))

    def window(self, width: int, first: int, last: int) -> Bins:
        """For a window that starts and ends at bin borders."""
        bins: dict[int, list[tuple[float, ...]]] = defaultdict(list)
        for step, values in self.steps:
            if first <= step <= last:
                bins[step // width].append(values)
        return [
            (b, [self._join(m, c) for m, c in zip(self.merges, zip(*rows, strict=True), strict=True)])
            for b, rows in bins.items()
        ]

    def _join(self, merge: Merge, column: tuple[float, ...]) -> float:
        known = [value for value in column if not math.isnan(value)]
        return JOIN[merge](known) if known else math.nan  # type: ignore[operator]


def same(found: Bins, wanted: Bins) -> bool:
    return [b for b, _ in found] == [b for b, _ in wanted] and all(
        math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(x) and math.isnan(y))
        for (_, row), (_, want) in zip(found, wanted, strict=True)
        for x, y in zip(row, want, strict=True)
    )


def filled(
    random_: random.Random,
    steps: int,
    *,
    capacity: int,
    skips: float = 0.0,
    nan: float = 0.0,
    merges: tuple[Merge, ...] = KINDS,
) -> tuple[Pyramid, Twin, int]:
    pyramid, twin = Pyramid(merges, capacity=capacity), Twin(merges)
    step = random_.choice((0, 0, 17, 1000))
    for _ in range(steps):
        values = tuple(math.nan if random_.random() < nan else random_.gauss(0, 10) for _ in merges)
        pyramid.add(step, values)
        twin.add(step, values)
        step += 1
        while random_.random() < skips:
            step += random_.choice((1, 2, 50))
    return pyramid, twin, twin.steps[-1][0]


def aligned(random_: random.Random, last: int, pyramid: Pyramid) -> tuple[int, int, int]:
    """A bin width, and a window of whole bins that the pyramid still has at that width."""
    width = 1 << random_.randrange(0, 8)
    reach = next(
        (level.bins[0] * level.width for level in pyramid.levels if level.width == width and level.bins),
        pyramid.first_step(),
    )
    first = random_.randrange(reach // width, last // width + 1) * width
    if first < reach:
        first += width
    end = random_.randrange(first // width, max(first, last) // width + 1) * width + width - 1
    return width, first, end


@pytest.mark.parametrize("seed", range(40))
def test_window_equals_the_twins(seed: int) -> None:
    random_ = random.Random(seed)
    skips = random_.choice((0.0, 0.1, 0.5))
    pyramid, twin, last = filled(random_, random_.randrange(1, 3000), capacity=random_.choice((4, 64)), skips=skips)
    for _ in range(30):
        width, first, end = aligned(random_, last, pyramid)
        assert same(pyramid.window(width, first, end), twin.window(width, first, end)), (width, first, end)


@pytest.mark.parametrize("seed", range(10))
def test_whole_run_equals_the_twins_after_every_step(seed: int) -> None:
    random_ = random.Random(seed)
    pyramid, twin = Pyramid(KINDS, capacity=8), Twin(KINDS)
    for step in range(300):
        values = tuple(random_.gauss(0, 1) for _ in KINDS)
        pyramid.add(step, values)
        twin.add(step, values)
        width = pyramid.levels[-1].width
        assert same(pyramid.window(width, 0, step), twin.window(width, 0, step)), step


@pytest.mark.parametrize("seed", range(10))
def test_nan_means_no_value(seed: int) -> None:
    random_ = random.Random(seed)
    kinds: tuple[Merge, ...] = ("min", "max")
    pyramid, twin, last = filled(random_, 2000, capacity=32, nan=0.4, merges=kinds)
    for _ in range(30):
        width, first, end = aligned(random_, last, pyramid)
        assert same(pyramid.window(width, first, end), twin.window(width, first, end))


def test_only_nan_stays_nan() -> None:
    pyramid = Pyramid(KINDS, capacity=4)
    for step in range(100):
        pyramid.add(step, (math.nan,) * 3)
    for _, row in pyramid.window(16, 0, 99):
        assert all(math.isnan(value) for value in row)


@pytest.mark.parametrize(("low", "high"), [(-math.inf, math.inf), (1e308, -1e308), (math.inf, math.inf)])
def test_infinities_and_huge_numbers_are_kept(low: float, high: float) -> None:
    pyramid = Pyramid(("min", "max"), capacity=4)
    for step in range(64):
        pyramid.add(step, (low, high))
    assert pyramid.window(64, 0, 63) == [(0, [low, high])]


def test_mean_of_equal_infinities_is_that_infinity() -> None:
    pyramid = Pyramid(("mean",), capacity=4)
    for step in range(64):
        pyramid.add(step, (math.inf,))
    assert pyramid.window(64, 0, 63) == [(0, [math.inf])]


@pytest.mark.parametrize("seed", range(10))
def test_window_that_cuts_a_bin_has_only_bins_that_overlap_it(seed: int) -> None:
    random_ = random.Random(seed)
    pyramid, twin, last = filled(random_, 1500, capacity=1500)  # nothing is forgotten
    for _ in range(50):
        width = 1 << random_.randrange(0, 8)
        first = random_.randrange(twin.steps[0][0], last + 1)
        end = random_.randrange(first, last + 1)
        found = [b for b, _ in pyramid.window(width, first, end)]
        assert found == sorted({step // width for step, _ in twin.steps if first <= step <= end})


def test_dropped_fine_bins_are_replaced_by_coarser_ones_without_a_gap() -> None:
    pyramid = Pyramid(("mean",), capacity=16)
    for step in range(5000):
        pyramid.add(step, (float(step),))
    found = pyramid.window(1, 0, 4999)
    starts = [b for b, _ in found]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    gaps = {b - a for a, b in itertools.pairwise(starts)}
    assert max(gaps) <= pyramid.levels[-1].width
    assert math.isclose(found[0][1][0], (gaps and max(gaps) - 1) / 2)


def test_older_bins_do_not_change_while_the_newest_grows() -> None:
    pyramid = Pyramid(("mean",), capacity=64)
    before: Bins = []
    for step in range(1000):
        pyramid.add(step, (math.sin(step),))
        now = pyramid.window(32, 0, step)
        assert same(before[:-1], now[: max(0, len(before) - 1)])
        assert len(now) == step // 32 + 1
        before = now


def test_repeated_step_is_merged_into_its_bin() -> None:
    pyramid = Pyramid(KINDS, capacity=4)
    for value in (3.0, 1.0, 5.0):
        pyramid.add(7, (value, value, value))
    assert pyramid.window(1, 0, 10) == [(7, [1.0, 5.0, 3.0])]


def test_empty_pyramid_has_no_bins() -> None:
    pyramid = Pyramid(KINDS, capacity=4)
    assert not pyramid
    assert pyramid.first_step() == 0
    assert pyramid.window(4, 0, 100) == []
    assert pyramid.window(1, 50, 60) == []


def test_window_after_the_end_or_before_the_start_is_empty() -> None:
    pyramid = Pyramid(("mean",), capacity=4)
    for step in range(100, 120):
        pyramid.add(step, (1.0,))
    assert pyramid.window(1, 120, 500) == []
    assert pyramid.window(4, 0, 95) == []
    assert pyramid.first_step() == 100 // pyramid.levels[-1].width * pyramid.levels[-1].width


def test_memory_is_bounded_over_many_times_the_capacity() -> None:
    capacity, channels, steps = 64, 2, 125_000
    pyramid = Pyramid(("min", "mean"), capacity=capacity)
    sizes = []
    for step in range(steps):
        pyramid.add(step, (float(step & 1023), 1.0))
        if step & (step - 1) == 0:
            sizes.append(pyramid.nbytes())
    bin_bytes = 8 * (2 + channels)
    levels = math.ceil(math.log2(steps / capacity)) + 1
    assert len(pyramid.levels) <= levels
    assert pyramid.nbytes() <= levels * 2 * capacity * bin_bytes
    assert sizes[-1] - sizes[-2] <= 2 * capacity * bin_bytes, "twice the steps cost one level, not twice the memory"
    assert pyramid.first_step() == 0, "the whole run is still there"
    top = pyramid.levels[-1].width
    whole = pyramid.window(top, 0, steps - 1)
    assert [b for b, _ in whole] == list(range(steps // top + 1))
    assert all(row[0] == 0.0 and row[1] == 1.0 for _, row in whole[:-1])
    last = list(range(steps - 50, steps))
    assert [b for b, _ in pyramid.window(1, last[0], last[-1])] == last, "the end, each step"


@pytest.mark.parametrize("seed", range(5))
def test_received_pyramid_equals_the_sent_one_now_and_later(seed: int) -> None:
    random_ = random.Random(seed)
    pyramid, _, last = filled(random_, 1200, capacity=32, skips=0.1)
    twin = Pyramid(KINDS, capacity=32)
    twin.receive(pyramid.send())
    for step in range(last + 1, last + 400):
        values = tuple(random_.random() for _ in KINDS)
        pyramid.add(step, values)
        twin.add(step, values)
        assert pyramid.send() == twin.send()


@pytest.mark.parametrize("seed", range(20))
def test_remapped_pyramid_equals_one_fed_with_the_new_channels(seed: int) -> None:
    random_ = random.Random(seed)
    skips, many = random_.choice((0.0, 0.3)), random_.randrange(1, 6)
    steps = random_.randrange(0, 2000)
    merges = tuple(random_.choice(KINDS) for _ in range(many))
    pyramid, _, last = (
        filled(random_, steps, capacity=16, skips=skips, nan=0.1, merges=merges)
        if steps
        else (Pyramid(merges, capacity=16), None, 0)
    )
    sources = [random_.choice((None, *range(many))) for _ in range(random_.randrange(1, 9))]
    kinds: list[Merge] = [random_.choice(KINDS) if n is None else merges[n] for n in sources]
    found = pyramid.remapped(sources, kinds, capacity=16)
    assert [lv.bins for lv in found.levels] == [lv.bins for lv in pyramid.levels]
    for width in (1, 4, 64, 1024):
        wanted = [
            (bin_, [math.nan if n is None else row[n] for n in sources]) for bin_, row in pyramid.window(width, 0, last)
        ]
        assert same(found.window(width, 0, last), wanted)
    for step in range(last + 1, last + 200):
        row = [random_.random() for _ in range(many)]
        pyramid.add(step, row)
        found.add(step, [math.nan if n is None else row[n] for n in sources])
    assert [lv.bins for lv in found.levels] == [lv.bins for lv in pyramid.levels]


@pytest.mark.parametrize("steps", [0, 1, 7, 8, 9, 10, 11, 63, 64, 65, 79, 80, 81, 500, 1500])
@pytest.mark.parametrize("capacity", [2, 8, 60])
def test_remapped_to_less_capacity_it_keeps_the_whole_run_coarser(steps: int, capacity: int) -> None:
    pyramid, twin = Pyramid(("mean",), capacity=64), Twin(("mean",))
    for step in range(steps):
        pyramid.add(step, (step % 7,))
        twin.add(step, (step % 7,))
    small = pyramid.remapped([0], ("mean",), capacity=capacity)
    for step in range(steps, steps + 300):
        if step % 50 == 0 or step == steps:
            top = small.levels[-1].width
            end = -(-step // top) * top - 1
            assert same(small.window(top, 0, end), twin.window(top, 0, end)), step
            assert all(len(lv.bins) <= capacity + max(1, capacity // 4) for lv in small.levels)
        small.add(step, (step % 7,))
        twin.add(step, (step % 7,))
