"""The raster of pictures: cells, dots, lines, and anything that may be drawn."""

from __future__ import annotations

import math
import random

import pytest
from rich.segment import Segment

from tui_descent.dashboard.charts.axis import Axis
from tui_descent.dashboard.charts.picture import Picture, depth_of, resampled
from tui_descent.dashboard.charts.plane import plane_size, with_axes

ODD = [math.nan, math.inf, -math.inf, 1e308, -1e308, 1e-300, -0.5, 0.0, 3.0, 40.0, 1e6]


def text(rows: list[list[Segment]]) -> list[str]:
    return ["".join(segment.text for segment in row) for row in rows]


def test_dots_become_braille_and_one_colour_wins_a_cell() -> None:
    picture = Picture(2, 1)
    for x, y in ((0, 0), (0, 3), (1, 2)):
        picture.dot(x, y, "#ffffff")
    picture.dot(2, 0, "#ff0000")
    picture.dot(3, 3, "#00ff00")
    assert text(picture.segments()) == ["⡡⢀"]
    assert [str(s.style.color.name) for s in picture.segments()[0] if s.style and s.style.color] == [
        "#ffffff",
        "#00ff00",
    ]


def test_halves_become_half_blocks_and_equal_neighbours_one_segment() -> None:
    picture = Picture(4, 1)
    picture.halves[0] = ["#111111", "#111111", "#222222", None]
    picture.halves[1] = ["#111111", "#111111", "#333333", "#444444"]
    first, second, third = picture.segments()[0]
    assert (first.text, second.text, third.text) == ("  ", "▀", "▄")
    assert third.style is not None
    assert third.style.bgcolor is None


def test_a_glyph_covers_dots_and_keeps_the_background() -> None:
    picture = Picture(1, 1)
    picture.halves[0] = ["#111111"]
    picture.dot(0, 0, "#ffffff")
    picture.glyph(0, 0, "●", "#ffffff", bold=True)
    (segment,) = picture.segments()[0]
    assert segment.text == "●"
    assert segment.style is not None
    assert segment.style.bgcolor is not None
    assert segment.style.bgcolor.name == "#111111"


def test_a_copy_can_be_drawn_on() -> None:
    picture = Picture(2, 1)
    picture.dot(0, 0, "#ffffff")
    copied = picture.copy()
    copied.dot(2, 0, "#ffffff")
    copied.halves[0][0] = "#111111"
    assert text(picture.segments()) == ["⠁ "]
    assert text(copied.segments()) == ["⠁⠁"]


def test_a_line_is_clipped_where_it_leaves_the_picture() -> None:
    inside, across = Picture(10, 5), Picture(10, 5)
    inside.line((0, 10), (19, 10), "#ffffff")
    across.line((-1e9, 10), (1e9, 10), "#ffffff")
    assert text(inside.segments()) == text(across.segments())
    outside = Picture(10, 5)
    outside.line((-5, -5), (30, -5), "#ffffff")
    assert text(outside.segments()) == [" " * 10] * 5


def draw_anything(numbers: random.Random, columns: int, rows: int) -> None:
    picture = Picture(columns, rows)
    for _ in range(60):
        a, b, c, d = (numbers.choice([*ODD, numbers.uniform(-10, 400)]) for _ in range(4))
        picture.line((a, b), (c, d), "#ffffff")
        picture.dot(numbers.randint(-9, 700), numbers.randint(-9, 500), "#ff0000")
        picture.glyph(numbers.randint(-9, 400), numbers.randint(-9, 120), "●", "#00ff00")
    drawn = picture.segments()
    assert len(drawn) == max(0, rows)
    assert {len(row) for row in text(drawn)} <= {max(0, columns)}
    for low, high in ((0.0, 1.0), (-1e308, 1e308), (5.0, 5.0 + 1e-12), (-1e-300, 1e-300)):
        axis = Axis(low, high, False)
        framed = with_axes(picture, axis, axis, max(1, columns + 8))
        assert {strip.cell_length for strip in framed} <= {max(1, columns + 8)}


def test_anything_can_be_drawn_in_any_size() -> None:
    numbers = random.Random(1)
    for columns, rows in [(1, 1), (1, 100), (300, 1), (0, 0), (-3, 4), (300, 100), *((n, 7) for n in range(1, 40))]:
        draw_anything(numbers, columns, rows)


@pytest.mark.heavy
def test_anything_can_be_drawn_in_every_size() -> None:
    numbers = random.Random(2)
    for columns in range(1, 301):
        for rows in range(1, 101, 1 + columns // 50):
            draw_anything(numbers, columns, rows)


def test_resampling_is_exact_for_the_same_size_and_for_planes() -> None:
    grid = [[math.sin(x * y) for x in range(7)] for y in range(5)]
    flat = [v for row in grid for v in row]
    assert resampled(flat, 7, 5, 7, 5) == grid
    plane = [x + 10.0 * y for y in range(5) for x in range(7)]
    twice = resampled(plane, 7, 5, 14, 10)
    assert twice[4][6] == pytest.approx((6.5 / 2 - 0.5) + 10 * (4.5 / 2 - 0.5))
    assert all(not math.isnan(v) for row in resampled(plane, 7, 5, 3, 2) for v in row)
    assert resampled([1.0], 1, 1, 3, 2) == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    ("system", "no_colour", "depth"),
    [
        ("truecolor", False, "truecolor"),
        ("256", False, "256"),
        ("standard", False, "16"),
        ("windows", False, "16"),
        (None, False, "none"),
        ("truecolor", True, "none"),
    ],
)
def test_depth_of_a_terminal(system: str | None, no_colour: bool, depth: str) -> None:
    assert depth_of(system, no_colour=no_colour) == depth


def test_a_panel_without_room_has_no_picture() -> None:
    assert plane_size(3, 0) == (0, 0)
