"""The task view: what it requests, what it shows, and what it says if there is nothing to show."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable

import pytest
from driver import compare, open_dashboard
from factories import started, steps, vanishing
from rich.cells import cell_len
from task_pictures import (
    addition_picture,
    classes_picture,
    curve_picture,
    digits_picture,
    prediction,
    regions_picture,
    saddle,
    surface_picture,
    taken,
    text_picture,
)
from textual.content import Content

from tui_descent.dashboard.charts.picture import Depth
from tui_descent.dashboard.panels.task import TaskPanel
from tui_descent.dashboard.pictures.draw import Drawings, grid, legend
from tui_descent.dashboard.pictures.regions import class_one_ahead
from tui_descent.dashboard.pictures.surface import LEVELS, RANK_PART, heights, level
from tui_descent.protocol.commands import WatchTask
from tui_descent.protocol.events import AnyEvent, RunEnded, StateChanged
from tui_descent.protocol.task_pictures import (
    MAX_NET_CELLS,
    NO_GUESS,
    ClassGroup,
    CriticalPoint,
    SurfacePicture,
    TaskPicture,
    grid_size,
)
from tui_descent.scenario import presets
from tui_descent.scenario.toml import to_table

EARLIER = vanishing(30)
DEPTHS: tuple[Depth, ...] = ("truecolor", "256", "16", "none")
SIZES = [(80, 24), (120, 40), (200, 60)]


def text(picture: TaskPicture, width: int, height: int, depth: Depth = "truecolor") -> str:
    strips = Drawings().draw(taken(picture), width, height, depth)
    assert len(strips) <= max(1, height)
    assert {strip.cell_length for strip in strips} == {width}
    return "\n".join(strip.text for strip in strips)


async def test_pictures_are_requested_only_while_the_view_is_open_and_in_its_size() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("residual off")
        await dashboard.press("8")
        await dashboard.shows("waiting for the first picture")
        await dashboard.wait_until(lambda: dashboard.keeper.received == [WatchTask(on=True, columns=110, rows=31)])
        dashboard.keeper.publish(taken(surface_picture(110, 31), step=31))
        await dashboard.shows("step 31", "x = 0.2000", "gradient (0.4000, -0.5730)", "minimum")
        await dashboard.pilot.resize_terminal(80, 24)
        await dashboard.wait_until(lambda: dashboard.keeper.received[1:] == [WatchTask(on=True, columns=70, rows=16)])
        await dashboard.press("1")
        await dashboard.wait_until(lambda: dashboard.keeper.received[2:] == [WatchTask(on=False)])


def surface_run() -> list[AnyEvent]:
    run = started(0, scenario=to_table(presets.find("saddle")[1]), layers=(), steps=1200)
    return [run, StateChanged(state="running"), steps(0, [math.exp(-n / 10) for n in range(40)])]


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_a_test_surface_is_shown_in_the_overview_and_beside_the_story(size: tuple[int, int]) -> None:
    async with open_dashboard(size, surface_run()) as dashboard:
        received = dashboard.keeper.received
        await dashboard.shows("waiting for the first picture")
        await dashboard.wait_until(lambda: bool(received))
        columns, rows = dashboard.app.run_screen.query_one("#map", TaskPanel).grid
        assert received == [WatchTask(on=True, columns=columns, rows=rows)]
        dashboard.keeper.publish(taken(surface_picture(columns, rows), step=31))
        await dashboard.shows("contour map of the loss", "step 31")
        await dashboard.drawn()
        compare(f"overview-surface-{size[0]}x{size[1]}", dashboard.text())
        await dashboard.press("h")
        await dashboard.shows("contour map of the loss", "Next: watch until about step 300")
        await dashboard.press("2")
        await dashboard.wait_until(lambda: dashboard.keeper.received[-1] == WatchTask(on=False))


async def test_the_view_says_why_it_is_empty() -> None:
    user_loop = started(scenario=None)
    async with open_dashboard((80, 24), [user_loop, StateChanged(state="running")]) as dashboard:
        await dashboard.press("8")
        await dashboard.shows("not available for your own loop", "are not known here")
        assert dashboard.keeper.received == []
        dashboard.keeper.publish(RunEnded(status="finished", step=3, loss=0.1))
    async with open_dashboard((80, 24), [*EARLIER, RunEnded(status="finished", step=3, loss=0.1)]) as dashboard:
        await dashboard.press("8")
        await dashboard.shows("this view was not open during the run")
        assert dashboard.keeper.received == []


@pytest.mark.parametrize("size", SIZES)
async def test_task_screens(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    # In 16 colours, because there everything can be told by its characters.
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLORTERM", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    async with open_dashboard(size, vanishing(40)) as dashboard:
        await dashboard.press("8")
        await dashboard.wait_until(lambda: dashboard.keeper.received != [])
        await dashboard.drawn()
        request = dashboard.keeper.received[-1]  # the first may have been sent before the panel had its size
        assert isinstance(request, WatchTask)
        for name, picture in pictures(request.columns, request.rows).items():
            dashboard.keeper.publish(taken(picture))
            history = dashboard.app.bridge.history
            await dashboard.wait_until(
                lambda history=history, it=picture: history.task is not None and history.task.picture == it
            )  # type: ignore[misc]
            await dashboard.drawn()
            compare(f"task-{name}-{size[0]}x{size[1]}", dashboard.text())


def pictures(columns: int, rows: int) -> dict[str, TaskPicture]:
    return {
        "surface": surface_picture(columns, rows),
        "curve": curve_picture(columns),
        "regions": regions_picture(*grid_size(columns, 2 * rows, MAX_NET_CELLS)),
        "digits": digits_picture(),
        "text": text_picture(),
        "addition": addition_picture(),
        "classes": classes_picture(),
    }


def test_the_map_agrees_with_the_surface_in_every_cell() -> None:
    columns, rows = 60, 24
    picture = surface_picture(columns, rows)
    found = heights(picture, columns, rows)
    losses = [
        [saddle(-1.25 + (x + 0.5) * 2.5 / columns, 1.8 - (y + 0.5) * 3.6 / rows) for x in range(columns)]
        for y in range(rows)
    ]
    ordered = sorted(loss for row in losses for loss in row)
    low, extent = ordered[0], ordered[-1] - ordered[0]
    least = (ordered[len(ordered) // 2] - low) * 1e-3
    wrong = 0
    for y in range(rows):
        for x in range(columns):
            rank = sum(loss < losses[y][x] - 1e-7 for loss in ordered) / (len(ordered) - 1)
            log = math.log((losses[y][x] - low) / least + 1) / math.log(extent / least + 1)
            wrong += level(found[y][x]) != min(LEVELS - 1, int(LEVELS * (RANK_PART * rank + (1 - RANK_PART) * log)))
    assert wrong <= 0.01 * columns * rows


def test_a_map_of_another_size_is_interpolated() -> None:
    # Another viewer has a larger screen: the picture has its size.
    fine = heights(surface_picture(120, 48), 60, 24)
    exact = heights(surface_picture(60, 24), 60, 24)
    same = sum(level(a) == level(b) for f, e in zip(fine, exact, strict=True) for a, b in zip(f, e, strict=True))
    assert same >= 0.97 * 60 * 24


def test_the_point_lies_where_the_numbers_say() -> None:
    rows = text(surface_picture(70, 20, point=(0.98, 0.95), path=b""), 78, 22).splitlines()
    (row,) = [n for n, line in enumerate(rows) if "●" in line]
    assert row == 1 + int((1.8 - 0.95) / 3.6 * 20)
    assert rows[row].index("●") == 8 + int((0.98 + 1.25) / 2.5 * 70)


def test_the_arrow_points_down() -> None:
    for gradient, arrow in (((1, 0), "←"), ((-1, 0), "→"), ((0, 1), "↓"), ((0, -1), "↑")):
        picture = surface_picture(70, 20, gradient=tuple(map(float, gradient)), path=b"")
        assert [c for c in text(picture, 78, 22) if c in "←↖↑↗→↘↓↙"] == [arrow]
    for gradient in ((0.0, 0.0), (1e-9, -1e-8)):
        none = text(surface_picture(70, 20, gradient=gradient), 78, 22)
        assert not set(none) & set("←↖↑↗→↘↓↙"), "its direction would be rounding"
    assert "gradient (1.0e-09, -1.0e-08)" in none
    small = text(surface_picture(70, 20, gradient=(1e-5, 0.0), path=b""), 78, 22)
    assert "←" in small


def test_a_point_that_has_left_the_picture_is_reported() -> None:
    assert "outside of the picture" in text(surface_picture(70, 20, point=(1e9, 0.0)), 78, 22)
    assert "outside of the picture" in text(curve_picture(70, point=(math.nan,), loss=math.nan), 78, 22)


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_surface_is_drawn_in_any_size(depth: Depth) -> None:
    odd = [math.nan, math.inf, -math.inf, 1e308, 0.0, 1.0]
    losses = array("f", [(odd + [n / 7 for n in range(20)])[n % 26] if n % 26 != 3 else 3e38 for n in range(600)])
    path = array("d", [x for a in odd for b in odd for x in (a, b)]).tobytes()
    for width, height in ((1, 1), (8, 4), (10, 3), (12, 5), (40, 9), (198, 54)):
        for x in odd if height < 20 else odd[:1]:
            strange = surface_picture(
                30, 20, losses=losses.tobytes(), path=path, point=(x, 0.5), loss=x, gradient=(x, -x)
            )
            text(strange, width, height, depth)
            for gradient in ((x, 1.0), (1.0, x)):
                text(surface_picture(30, 20, gradient=gradient, loss=x), width, height, depth)
            text(
                curve_picture(600, losses=losses.tobytes(), path=path, point=(x,), loss=x, gradient=(x,)), width, height
            )
    flat = surface_picture(30, 20, losses=array("f", [2.0] * 600).tobytes())
    text(flat, 78, 17, depth)
    assert legend(flat, depth, 60)


def test_a_terminal_without_colours_shows_the_path_by_bullets() -> None:
    path = array("d", [1.0, 0.0, 0.5, 0.0]).tobytes()
    assert "•" in text(surface_picture(70, 20, path=path), 78, 22, "none")
    assert "•" not in text(surface_picture(70, 20, path=path), 78, 22, "truecolor")


def test_the_size_asked_for_is_that_of_the_picture() -> None:
    assert grid(78, 18) == (70, 16)
    assert isinstance(pictures(70, 16)["surface"], SurfacePicture)


@pytest.mark.parametrize("size", [(70, 32), (110, 64), (190, 108)])
def test_regions_agree_with_the_net_in_each_half_cell(size: tuple[int, int]) -> None:
    columns, half_rows = size
    found = class_one_ahead(regions_picture(*grid_size(*size, MAX_NET_CELLS)), columns, half_rows)
    right = sum(
        (found[y][x] > 0) == (prediction(-2 + (x + 0.5) * 4 / columns, 2 - (y + 0.5) * 4 / half_rows) >= 128)
        for y in range(half_rows)
        for x in range(columns)
    )
    assert right >= 0.99 * columns * half_rows


def test_each_point_is_where_it_belongs_and_a_wrong_one_is_never_covered() -> None:
    points = array("f", [-1.9, 1.9, 0.0, 0.0, 1.0, -1.0, 1.0, -1.0]).tobytes()
    picture = regions_picture(70, 40, points=points, classes=bytes([0, 1, 1, 0]), right=bytes([1, 1, 0, 1]))
    rows = text(picture, 78, 22).splitlines()
    assert "1 of 4" in rows[0]
    assert rows[1][8 + 1] == "●"
    assert (rows[10][8 + 34], rows[15][8 + 52]) == ("◆", "✕")
    assert sum(row.count("●") for row in rows) == 1


def test_regions_without_colours_are_shaded() -> None:
    for depth in ("16", "none"):
        rows = text(regions_picture(), 78, 22, depth).splitlines()
        assert rows[10][8 + 35] == "░"
        assert rows[2][8 + 2] == " "
        assert any("·" in row for row in rows)
        assert legend(regions_picture(), depth, 60).endswith("· unsure")
    assert "░" not in text(regions_picture(), 78, 22, "truecolor")


@pytest.mark.parametrize(
    ("names", "width", "shown"),
    [
        ((), 60, ("● class 0", "◆ class 1")),
        (("dark", "light"), 76, ("● dark", "◆ light")),
        (("a very long name of a class", "b"), 60, ("● a very long…", "◆ b")),
        (("[red]", "x\x1b[2J"), 76, ("● [red]", r"◆ x\x1b[2J")),
        (("[/]", "back\\"), 76, ("● [/]", "◆ back\\")),
        (("漢字漢字漢字漢字漢字", "b"), 60, ("● 漢字漢字漢…", "◆ b")),
        (("a very long name", "b"), 10, ("● a v…", "◆ b")),
    ],
)
def test_the_legend_of_regions_has_the_labels_of_the_file(names: tuple[str, ...], width: int, shown: object) -> None:
    found = Content.from_markup(legend(regions_picture(names=names), "truecolor", width)).plain
    assert tuple(found.split("  ")[:2]) == shown
    assert cell_len(found) <= max(width - 4, 42)


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_regions_are_drawn_in_any_size(depth: Depth) -> None:
    odd = array("f", [math.nan, math.inf, -math.inf, 3e38, 0.0, -1.0] * 2).tobytes()
    for size in ((1, 1), (8, 4), (12, 5), (78, 17), (198, 54)):
        unknown = regions_picture(
            9, 7, predictions=bytes(63), points=odd, classes=bytes([0, 1] * 3), right=bytes([0, 1, 1] * 2)
        )
        assert size[0] < 50 or "the outputs are NaN or infinite" in text(unknown, *size, depth)
        text(unknown, *size, depth)
        text(regions_picture(9, 7, predictions=bytes(n * 4 for n in range(63))), *size, depth)
        text(regions_picture(2, 1, points=b"", classes=b"", right=b""), *size, depth)


def test_digits_show_guess_truth_and_sureness() -> None:
    rows = text(digits_picture(sureness=bytes([255, 128, 255] + [0] * 93)), 78, 17).splitlines()
    assert "270 of 360" in rows[0]
    assert rows[5][1:9] == "0✓ ━━━━━"
    assert rows[5][11:19] == "1✓ ━━━──"
    assert rows[5][21:29] == "5✗(2)━━━"
    assert rows[1].rstrip().endswith("most often confused")
    assert rows[2].rstrip().endswith("9 taken for 4   12×")
    perfect = digits_picture(confusions=(), right=360)
    assert text(perfect, 78, 17).splitlines()[1].rstrip().endswith("no class is confused")


def test_images_are_whole_and_as_many_as_fit() -> None:
    for width, height, count in ((78, 17, 15), (118, 33, 45), (10, 6, 1), (9, 6, 0), (10, 5, 0), (198, 54, 96)):
        drawn = text(digits_picture(), width, height)
        assert sum(drawn.count(mark) for mark in "✓✗") == count, (width, height)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (12, 12), (16, 5), (5, 16), (13, 7)])
@pytest.mark.parametrize("depth", DEPTHS)
def test_images_of_any_size_are_drawn_whole(height: int, width: int, depth: Depth) -> None:
    one = bytes(16 if x in (0, width - 1) or y in (0, height - 1) else 0 for y in range(height) for x in range(width))
    picture = digits_picture(30, pixels=one * 30, height=height, width=width)
    rows = text(picture, 98, 30, depth).splitlines()
    step, down = max(width, 8) + 2, (height + 1) // 2 + 1
    assert rows[down][1:3] == "0✓"
    assert rows[down][1 + step : 3 + step] == "1✓"
    if depth == "none":
        left = 1 + max(0, 8 - width) // 2
        image = [row[left : left + width] for row in rows[1:down]]
        assert {row[0] for row in image} <= {"█", "▀"}
        assert {row[-1] for row in image} <= {"█", "▀"}
        assert image[0].strip("▀█") == ""
    for size in ((1, 1), (12, 5), (42, 3), (78, 17), (198, 54)):
        text(picture, *size, depth)
    letters = digits_picture(30, digits=bytes([34] * 30), guesses=bytes([12] * 30))
    assert "12✗(34)" in text(letters, 78, 17, depth)


def test_the_table_shows_each_pair_of_a_modular_addition() -> None:
    def right(a: int, b: int) -> bool:
        return (7 * a + b) % 3 > 0 or (7 * a + b) % 9 == 0

    large = text(addition_picture(7), 60, 12, "none").splitlines()
    assert "right: trained 1,120/1,120  held out 187/561" in large[0]
    for a in range(7):
        assert large[1 + a][:5] == {0: " a 0 ", 5: "   5 "}.get(a, "     ")
        assert large[1 + a][5:19] == "".join("██" if right(a, b) else "  " for b in range(7))
    small = text(addition_picture(7), 60, 6, "none").splitlines()
    for row in range(3):
        halves = [(right(2 * row, b), right(2 * row + 1, b)) for b in range(7)]
        assert small[1 + row][5:12] == "".join(" ▄▀█"[2 * upper + lower] for upper, lower in halves)
    assert small[4][5:12] == "".join("▀" if right(6, b) else " " for b in range(7))
    assert "needs more rows" not in "".join([*large, *small])


def test_a_table_that_is_cut_says_so() -> None:
    cut = text(addition_picture(41), 78, 18, "none").splitlines()
    assert cut[-1].rstrip().endswith("  a from 34 on: needs more rows")
    assert "needs more rows" not in text(addition_picture(41), 46, 18, "none")


def test_bars_show_the_loss_of_each_size_of_class() -> None:
    rows = text(classes_picture(), 98, 22).splitlines()
    assert "25% of the held-out samples are recognised" in rows[0]
    bars = {row[:28].strip(): row.count("━") for row in rows if "━" in row}
    assert next(iter(bars)) == "2 classes of 64 samples"
    assert list(bars)[-1] == "128 classes of 1 sample"
    assert sorted(bars.values()) == list(bars.values())
    assert "0.0200 nats" in rows[3]
    assert "100% right" in rows[3]
    assert "5.541 nats, the loss of a guess" in text(classes_picture(), 98, 22)


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_table_and_any_classes_are_drawn_in_any_size(depth: Depth) -> None:
    for size in ((1, 1), (5, 3), (8, 4), (42, 3), (58, 15), (78, 17), (118, 33), (198, 54)):
        for modulus in (5, 41, 97):
            text(addition_picture(modulus), *size, depth)
        for groups in (2, 8, 10):
            text(classes_picture(groups), *size, depth)
        for loss in (math.nan, math.inf, 0.0, 1e30):
            broken = (ClassGroup(classes=1, samples=100_000, loss=loss, right=0.0),)
            text(classes_picture(groups=broken, guess=0.7), *size, depth)
    assert "the outputs are NaN" in text(
        classes_picture(groups=(ClassGroup(classes=1, samples=1, loss=math.nan, right=0.0),)), 78, 9
    )
    assert legend(addition_picture(), depth, 60)


def test_images_without_colours_have_shapes() -> None:
    assert "█" in text(digits_picture(), 78, 17, "none")
    assert "█" not in text(digits_picture(), 78, 17, "16")


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_digits_are_drawn_in_any_size(depth: Depth) -> None:
    unknown = digits_picture(guesses=bytes([NO_GUESS] * 96), sureness=bytes(96), pixels=bytes([255] * 64 * 96))
    few = digits_picture(3)
    none = digits_picture(0)
    for size in ((1, 1), (8, 4), (12, 5), (42, 3), (43, 30), (78, 17), (198, 54)):
        for picture in (unknown, few, none):
            text(picture, *size, depth)
    assert "NaN/inf" in text(unknown, 78, 17, depth)
    broken = digits_picture(guesses=bytes([NO_GUESS] * 96), confusions=(), right=0)
    assert "the outputs are" in text(broken, 78, 17, depth).splitlines()[1]
    assert legend(few, depth, 60)


def test_bars_show_the_loss_of_each_character() -> None:
    losses = array("f", [0.0, 4.564, 2.4, math.nan, 99.0, -1.0, 0.3, math.inf])
    picture = text_picture(1, 8, losses=losses.tobytes())
    for height, bars in ((8, ["▁█▅?█▁▁?"]), (17, [" █  █   ", " █▁ █   ", " ██ █   ", "▁██?█▁▃?"])):
        rows = text(picture, 78, height).splitlines()
        (at,) = [n for n, row in enumerate(rows) if row.strip() == "def f(x)"]
        assert [row[1:9] for row in rows[at + 1 : at + 1 + len(bars)]] == bars, "as high as there is room for"
    assert "2.300 nats" in rows[0]
    assert "4.564 by guessing" in rows[0]


def test_the_end_of_what_the_net_writes_is_shown() -> None:
    picture = text_picture(lines=("x" * 200 + "\nend",) * 6)
    assert sum(row.rstrip().endswith("x↵end") for row in text(picture, 78, 17).splitlines()) == 5


def test_any_text_is_drawn_in_any_size() -> None:
    strange = text_picture(2, 1024, losses=array("f", [math.nan, math.inf, -1.0, 1e30] * 512).tobytes(), loss=math.nan)
    nothing = text_picture(0, lines=("",) * 6, new=0)
    for size in ((1, 1), (8, 4), (12, 5), (42, 3), (78, 17), (198, 54)):
        for picture in (strange, nothing, text_picture(24, 2), text_picture(4, 77)):
            text(picture, *size)
    assert legend(nothing, "none", 60)


@pytest.mark.parametrize(
    "picture",
    [
        surface_picture,
        curve_picture,
        regions_picture,
        digits_picture,
        text_picture,
        addition_picture,
        classes_picture,
    ],
)
def test_no_text_is_cut_in_a_narrow_terminal(picture: Callable[[], TaskPicture]) -> None:
    long = {"point": (-0.00233, -0.00038), "loss": -5.3e-06, "gradient": (-0.00467, -0.00076)}
    shown = surface_picture(**long) if picture is surface_picture else picture()
    (numbers,) = Drawings().draw(taken(shown, step=1_200_000), 78, 1, "truecolor")[:1]
    assert "…" not in numbers.text
    assert "|gradient| 0.00473" in numbers.text or picture is not surface_picture
    assert "…" not in text(picture(), 58, 15)


@pytest.mark.parametrize("depth", DEPTHS)
def test_cells_without_a_finite_loss_are_hatched(depth: Depth) -> None:
    columns, rows = 40, 16
    losses = array("f", surface_picture(columns, rows).losses)
    for y in range(rows):
        for x in range(10):
            losses[y * columns + x] = (math.nan, math.inf, -math.inf)[x % 3]
    picture = surface_picture(columns, rows, losses=losses.tobytes())
    drawn = text(picture, columns + 8, rows + 2, depth).splitlines()[1:-1]
    assert [row[8:18] for row in drawn] == ["╱" * 10] * rows
    assert "╱" not in "".join(row[18:] for row in drawn)
    assert "╱ not finite" in legend(picture, depth, 60)
    assert "not finite" not in legend(surface_picture(columns, rows), depth, 60)


def test_a_maximum_has_its_own_glyph() -> None:
    picture = surface_picture(critical=(CriticalPoint("maximum", (0.5, 0.5)),))
    assert "▴" in text(picture, 80, 24)
    assert "▴ maximum" in legend(picture, "truecolor", 60)


def test_the_legend_and_the_numbers_of_a_surface_fit_into_a_narrow_panel() -> None:
    assert "○ start" in legend(surface_picture(), "truecolor", 60)
    narrow = legend(surface_picture(), "truecolor", 34)
    assert "start" not in narrow
    assert narrow.endswith("× saddle[/]")
    for width in range(20, 80):
        first = text(surface_picture(20, 8), width, 10).splitlines()[0]
        assert "…" not in first or width < 34, first


def test_the_tangent_does_not_hide_the_curve() -> None:
    at_minimum = {"point": (1.5,), "loss": 0.0, "path": b""}
    with_tangent = text(curve_picture(gradient=(0.0,), **at_minimum), 80, 20).splitlines()
    without = text(curve_picture(gradient=(math.nan,), **at_minimum), 80, 20).splitlines()
    assert with_tangent[1:] != without[1:]
    for row, expected in zip(with_tangent[1:], without[1:], strict=True):
        assert all(found == dots for found, dots in zip(row, expected, strict=True) if "\u2800" < dots <= "\u28ff")
