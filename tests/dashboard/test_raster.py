"""The raster: dots, lines, fills, pixels and text are where they should be, and no input can break it."""

from __future__ import annotations

import math
import random

import pytest
from rich.segment import Segment
from rich.style import Style

from tui_descent.dashboard.charts.cells import Point
from tui_descent.dashboard.charts.raster import Raster

RED, BLUE, WHITE = (200, 40, 40), (37, 46, 66), (255, 255, 255)
ODD = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e308, -1e308, 5e-324, 1.0, -1.0]


def text(raster: Raster) -> list[str]:
    return ["".join(segment.text for segment in raster.segments(row)) for row in range(raster.rows)]


def cells(raster: Raster, row: int) -> list[tuple[str, object, object]]:
    """Each cell as character, text colour and background."""

    def rgb(segment: Segment, name: str) -> object:
        colour = getattr(segment.style, name)
        return tuple(colour.get_truecolor()) if colour is not None else None

    return [(c, rgb(s, "color"), rgb(s, "bgcolor")) for s in raster.segments(row) for c in s.text]


def dots(raster: Raster) -> set[tuple[int, int]]:
    """The dots that are set, from the bottom left."""
    bits = ((0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08))
    return {
        (2 * column + x, 4 * (raster.rows - 1 - row) + y)
        for row, line in enumerate(text(raster))
        for column, c in enumerate(line)
        if "\u2800" <= c <= "\u28ff"
        for x in (0, 1)
        for y in range(4)
        if (ord(c) - 0x2800) & bits[x][y]
    }


def test_each_dot_is_at_its_place() -> None:
    for x in range(14):
        for y in range(12):
            raster = Raster(7, 3)
            raster.dot(x, y, RED)
            assert dots(raster) == {(x, y)}


@pytest.mark.parametrize(
    "ends", [(0, 0, 13, 11), (13, 11, 0, 0), (3, 9, 3, 1), (1, 5, 12, 5), (2, 0, 5, 11), (6, 6, 6, 6)]
)
def test_a_line_is_within_half_a_dot_of_the_exact_one(ends: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = ends
    raster = Raster(7, 3)
    raster.line([(x0, y0), (x1, y1)], RED)
    found = dots(raster)
    assert {(x0, y0), (x1, y1)} <= found
    assert len(found) == max(abs(x1 - x0), abs(y1 - y0)) + 1
    for x, y in found:
        if abs(x1 - x0) >= abs(y1 - y0) > 0:
            assert abs(y0 + (x - x0) * (y1 - y0) / (x1 - x0) - y) <= 0.5
        elif abs(y1 - y0) > 0:
            assert abs(x0 + (y - y0) * (x1 - x0) / (y1 - y0) - x) <= 0.5


def test_a_line_that_leaves_the_picture_is_cut_off_at_its_edge() -> None:
    raster = Raster(10, 5)
    raster.line([(-10.0, -10.0), (30.0, 30.0)], RED)
    assert dots(raster) == {(n, n) for n in range(20)}
    raster = Raster(10, 5)
    raster.line([(5.0, 5.0), (5.0, math.inf)], RED)
    assert dots(raster) == {(5, y) for y in range(5, 20)}
    raster = Raster(10, 5)
    raster.line([(-5.0, 30.0), (25.0, 31.0)], RED)
    assert dots(raster) == set()


def test_nan_makes_a_gap_and_a_point_alone_is_a_dot() -> None:
    nan = (math.nan, 0.0)
    raster = Raster(10, 2)
    raster.line([(0, 2), (3, 2), nan, (8, 2), nan, nan, (15, 2), (17, 2), (18.0, math.nan), (19, 7)], RED)
    assert dots(raster) == {(x, 2) for x in (0, 1, 2, 3, 8, 15, 16, 17)} | {(19, 7)}


def test_a_thick_line_is_centred_on_the_exact_one() -> None:
    raster = Raster(4, 2)
    raster.line([(0, 3.5), (7, 3.5)], RED, thickness=2)
    assert dots(raster) == {(x, y) for x in range(8) for y in (3, 4)}
    raster = Raster(4, 2)
    raster.line([(0, 7), (7, 7)], RED, thickness=2)
    raster.line([(0, 0), (7, 0)], RED, thickness=2)
    assert {y for _, y in dots(raster)} >= {0, 7}


def test_a_later_line_takes_the_cells_that_it_crosses() -> None:
    raster = Raster(3, 1)
    raster.line([(0, 0), (5, 0)], BLUE)
    raster.line([(2, 0), (2, 3)], RED)
    assert [colour for _, colour, _ in cells(raster, 0)] == [BLUE, RED, BLUE]
    assert cells(raster, 0)[1][0] == "⡇"


@pytest.mark.parametrize(
    ("low", "high", "column"),
    [
        (0, 8, [(" ", None, BLUE), (" ", None, BLUE), (" ", None, None)][::-1]),
        (0, 6, [(" ", None, None), ("▄", BLUE, None), (" ", None, BLUE)]),
        (2.5, 8.5, [("▁", BLUE, None), (" ", None, BLUE), ("▅", (1, 2, 3), BLUE)]),
        (-9, math.inf, [(" ", None, BLUE)] * 3),
        (12, 15, [(" ", None, None)] * 3),
        (-3, -1, [(" ", None, None)] * 3),
        (math.nan, 5, [(" ", None, None)] * 3),
    ],
)
def test_a_fill_ends_in_eighths_of_a_cell(low: float, high: float, column: list[object]) -> None:
    raster = Raster(1, 3, paper=(1, 2, 3))
    raster.fill(0, low, high, BLUE)
    assert [cells(raster, row)[0] for row in range(3)] == column


def test_a_fill_inside_one_cell_is_drawn_as_dots() -> None:
    raster = Raster(1, 2)
    raster.fill(0, 5, 7, BLUE)
    assert dots(raster) == {(x, y) for x in (0, 1) for y in (5, 6)}
    assert cells(raster, 0)[0][1] == BLUE


def test_a_line_over_a_fill_keeps_its_colour_and_the_fill_its_own() -> None:
    raster = Raster(4, 2)
    for column in range(4):
        raster.fill(column, 0, 7 if column < 2 else 6, BLUE)
    raster.line([(0, 1), (7, 1)], RED)
    raster.line([(0, 6), (7, 6)], RED)
    assert {(colour, ground) for _, colour, ground in cells(raster, 1)} == {(RED, BLUE)}
    # The background is that of three quarters of the cell.
    assert [ground for _, _, ground in cells(raster, 0)] == [BLUE, BLUE, None, None]
    assert {colour for _, colour, _ in cells(raster, 0)} == {RED}


def test_shaded_fills_need_no_background() -> None:
    raster = Raster(3, 2, shaded=True)
    for column in range(3):
        raster.fill(column, 0, 6, BLUE)
    raster.line([(0, 1), (1, 1)], RED)
    raster.write(1, 1, "┊", Style(color="red"))
    assert text(raster) == ["░░░", "⠤┊░"]
    assert all(ground is None for row in (0, 1) for _, _, ground in cells(raster, row))


def test_pixels_are_half_cells() -> None:
    raster = Raster(3, 1)
    for column, half_row, colour in ((0, 0, RED), (1, 1, RED), (2, 0, BLUE), (2, 1, BLUE), (9, 0, RED), (0, 9, RED)):
        raster.pixel(column, half_row, colour)
    assert cells(raster, 0) == [("▀", RED, raster.paper), ("▀", raster.paper, RED), (" ", None, BLUE)]


def test_text_keeps_the_background_and_is_cut_off_at_the_edges() -> None:
    raster = Raster(4, 1)
    raster.background(1, 0, BLUE)
    raster.write(-1, 0, "abcdefg", Style(color="#ffffff", bold=True))
    raster.write(0, 5, "below", Style())
    assert text(raster) == ["bcde"]
    assert [ground for _, _, ground in cells(raster, 0)] == [None, BLUE, None, None]
    assert not raster.is_blank(0, 0)
    assert all(segment.style is not None and segment.style.bold for segment in raster.segments(0))


def test_equal_rows_have_equal_keys_and_changed_rows_have_others() -> None:
    rasters = [Raster(9, 2), Raster(9, 2), Raster(9, 2)]
    for raster in rasters:
        raster.line([(0, 1), (9, 2)], RED)
    rasters[2].background(3, 1, BLUE)
    assert rasters[0].row_key(1) == rasters[1].row_key(1) != rasters[2].row_key(1)
    assert rasters[0].row_key(0) == rasters[2].row_key(0)


def number(rng: random.Random) -> float:
    return rng.choice(ODD) if rng.random() < 0.3 else rng.uniform(-20, 700)


def draw_anything(rng: random.Random, columns: int, rows: int) -> None:
    raster = Raster(columns, rows, shaded=rng.random() < 0.2)
    for _ in range(rng.randint(0, 3)):
        points: list[Point] = [(number(rng), number(rng)) for _ in range(rng.choice([0, 1, 2, 30]))]
        if rng.random() < 0.3:
            points = [(float(n), 3.0) for n in range(2 * columns)]
        raster.line(points, RED, thickness=rng.randint(1, 3))
    for column in range(-1, columns + 1, max(1, columns // 9)):
        raster.fill(column, number(rng), number(rng), BLUE)
        raster.pixel(column, rng.randint(-1, 2 * rows), WHITE)
    raster.write(rng.randint(-3, columns), rng.randint(-1, rows), "label", Style(color="red"))
    assert [len(line) for line in text(raster)] == [columns] * rows


def test_no_input_and_no_size_breaks_the_raster() -> None:
    rng = random.Random(1)
    sizes = [(columns, rows) for columns in (0, 1, 2, 3, 79, 300) for rows in (0, 1, 2, 3, 24, 100)]
    for columns, rows in sizes:
        draw_anything(rng, columns, rows)
    for _ in range(150):
        draw_anything(rng, rng.randint(0, 40), rng.randint(0, 9))


@pytest.mark.heavy
def test_no_input_breaks_the_raster_at_any_size() -> None:
    rng = random.Random(2)
    for columns in range(1, 301):
        for rows in range(1, 101):
            draw_anything(rng, columns, rows)


@pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=pytest.mark.heavy)])
def test_many_points_are_drawn(count: int) -> None:
    raster = Raster(100, 20)
    raster.line(((n * 200 / count, 40 + 39 * math.sin(n * 20 / count)) for n in range(count)), RED)
    found = dots(raster)
    assert {x for x, _ in found} == set(range(200))
    assert min(y for _, y in found) == 1
    assert max(y for _, y in found) == 79
