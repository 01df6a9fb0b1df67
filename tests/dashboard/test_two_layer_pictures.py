"""The pictures of a two-layer net: its modes over time, and its loss against the index."""

from __future__ import annotations

from array import array

import pytest
from task_pictures import taken
from textual.content import Content

from tui_descent.dashboard.lane_marks import lane_mark
from tui_descent.dashboard.pictures.draw import Drawings, legend, title
from tui_descent.protocol.codec import encode
from tui_descent.protocol.task_pictures import (
    MAX_FOUND,
    MAX_INDEX_PATH,
    MAX_PATH,
    FoundPoint,
    IndexPicture,
    ModesPicture,
    TaskPicture,
)

SIZES = [(0, 0), (9, 2), (40, 12), (78, 18), (118, 34)]


def modes(steps: int) -> ModesPicture:
    strengths = [target * min(1.0, n * target / 400) for n in range(steps) for target in (4.0, 2.0, 1.0)]
    return ModesPicture(
        targets=(4.0, 2.0, 1.0), steps=array("q", range(steps)).tobytes(), strengths=array("f", strengths).tobytes()
    )


def overshooting(*strengths: float) -> ModesPicture:
    steps = array("q", range(len(strengths)))
    return ModesPicture(targets=(0.5,), steps=steps.tobytes(), strengths=array("f", strengths).tobytes())


def index(path: list[float], *found: FoundPoint) -> IndexPicture:
    return IndexPicture(parameters=72, path=array("f", path).tobytes(), found=found)


FOUND = (FoundPoint("saddle", 36, 8.35), FoundPoint("saddle", 5, 0.625), FoundPoint("minimum", 0, 1e-29))
PICTURES: list[TaskPicture] = [
    modes(300),
    modes(1),
    modes(0),
    overshooting(0.1, -0.4, float("inf"), float("nan"), -1e30),
    index([36, 8.4, 20, 2.0, 6, 0.7, 2, 0.1], *FOUND),
    index([]),
    index([3, float("inf"), 2, float("nan"), 0, 0.0]),
]


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("size", SIZES)
def test_any_picture_is_drawn_in_any_size(picture: TaskPicture, size: tuple[int, int]) -> None:
    strips = Drawings().draw(taken(picture), *size, "truecolor")
    assert len(strips) <= max(1, size[1])
    assert {strip.cell_length for strip in strips} <= {size[0]}


def test_modes_are_drawn_with_their_marks_and_named_in_the_border() -> None:
    text = "\n".join(strip.text for strip in Drawings().draw(taken(modes(300)), 78, 18, "truecolor"))
    assert [n for n in range(3) if lane_mark(n).glyph not in text] == []
    assert "learnt 3 of 3 modes" in text
    assert "s = 4" in legend(modes(300), "truecolor", 78)


def test_the_only_mode_of_a_net_with_one_output_is_called_f() -> None:
    picture = overshooting(0.1, -0.4, 0.3)
    assert title(picture) == "the net's output f over time"
    assert "f = 0.3" in Drawings().draw(taken(picture), 78, 18, "truecolor")[0].text
    assert Content.from_markup(legend(picture, "truecolor", 78)).plain == "● f  ╌ 0.5, to be learnt"
    assert "f = –" in Drawings().draw(taken(overshooting()), 78, 18, "truecolor")[0].text


def test_the_path_of_new_weights_is_not_joined_to_the_old_one() -> None:
    def dots(path: list[float]) -> int:
        text = "".join(strip.text for strip in Drawings().draw(taken(index(path)), 78, 18, "truecolor"))
        return sum("\u2800" < character < "\u28ff" for character in text)

    assert dots([22, 5.0, 2, 0.06]) > 20
    assert dots([2, 0.06, 22, 5.0]) <= 1


def test_axis_of_the_modes_shows_where_one_overshoots() -> None:
    def drawn(picture: ModesPicture) -> str:
        return "\n".join(strip.text for strip in Drawings().draw(taken(picture), 78, 18, "truecolor"))

    assert "-2.00" not in drawn(overshooting(0.1, 0.4, 0.5))
    for number in ("2.00", "-2.00"):
        assert number in drawn(overshooting(0.1, 2.9, -2.9, 0.5))


def test_saddles_are_labelled_with_their_index() -> None:
    picture = PICTURES[4]
    text = "\n".join(strip.text for strip in Drawings().draw(taken(picture), 78, 18, "truecolor"))
    for words in ("×36", "×5", "▾", "●", "index 2 of 72", "found: 2 saddles"):
        assert words in text
    assert text.index("×36") < text.index("×5"), "a higher loss is above"


def test_largest_pictures_fit_into_their_limit() -> None:
    points = tuple(FoundPoint("saddle", n, n / 7) for n in range(MAX_FOUND))
    assert len(encode(index([1.0] * 2 * MAX_INDEX_PATH, *points))) < 64 * 1024
    wide = ModesPicture(targets=(1.0,) * 8, steps=bytes(8 * MAX_PATH), strengths=bytes(4 * 8 * MAX_PATH))
    assert len(encode(wide)) < 64 * 1024
