"""The terminal shows what it would show if Textual wrote its updates itself, cell by cell, for far fewer bytes."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyte
import pytest
from driver import open_dashboard
from factories import steps, vanishing
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
from textual.events import Key
from textual.geometry import Region
from textual.screen import ModalScreen
from textual.strip import Strip

from tui_descent.dashboard import screen_writer
from tui_descent.dashboard.app import DescentApp
from tui_descent.dashboard.screen_writer import ScreenWriter


@pytest.fixture
def nothing_written() -> None:
    """Here everything is written."""


class Pair:
    """Two emulated terminals: one gets the updates as Textual writes them, one as the writer shortens them."""

    def __init__(self, columns: int, rows: int, system: Any = "truecolor") -> None:
        self.console = Console(color_system=system, force_terminal=True)
        self.writer = ScreenWriter()
        self.screens = [pyte.Screen(columns, rows), pyte.Screen(columns, rows)]
        self._streams = [pyte.Stream(screen) for screen in self.screens]
        self.sent = [0, 0]

    def resize(self, columns: int, rows: int) -> None:
        for screen in self.screens:
            screen.resize(rows, columns)

    def update(self, update: CompositorUpdate, *, repair: bool = True) -> None:
        shortened: Any = self.writer.shortened(update, repair=repair)  # type: ignore[arg-type]
        for n, text in enumerate((update.render_segments(self.console), shortened.render_segments(self.console))):
            self._streams[n].feed(text.replace("\n", ""))
            self.sent[n] += len(text.encode())

    def differences(self) -> list[tuple[int, int, object, object]]:
        theirs, ours = self.screens
        return [
            (y, x, a, b)
            for y in range(theirs.lines)
            for x in range(theirs.columns)
            if (a := visible(theirs.buffer[y][x])) != (b := visible(ours.buffer[y][x]))
        ]


def visible(cell: Any) -> Any:
    """What can be seen of a cell. The text colour, bold and italics of a blank cannot."""
    if cell.data == " " and not (cell.underscore or cell.reverse or cell.strikethrough):
        return cell._replace(fg="", bold=False, italics=False, blink=False)
    return cell


def styles() -> list[Style]:
    """New objects each time: a style keeps the codes that it had in the first colour system."""
    return [
        Style(),
        Style(color="#c9ced6", bgcolor="#0f1115"),
        Style(color="#e1cc55", bgcolor="#0f1115", bold=True),
        Style(color="#e1cc55", bgcolor="#202734"),
        Style(color="red", bgcolor="default", italic=True),
        Style(bgcolor="#202734", underline=True),
        Style(color="#57ab7f", reverse=True),
        Style(color="#57ab7f", strike=True, bold=True),
    ]


PLAIN, ODD = tuple("ab  .│⠤▀█●"), ("a", "b", " ", "中", "é", "😀", "e\u0301")


def a_strip(rng: random.Random, width: int, letters: tuple[str, ...], looks: list[Style]) -> Strip:
    segments: list[Segment] = []
    while (left := width - sum(s.cell_length for s in segments)) > 0:
        text = "".join(rng.choice(letters) for _ in range(rng.randint(1, 9)))
        segments.append(Segment(text, rng.choice(looks)))
        if sum(s.cell_length for s in segments) > width:
            segments[-1] = Segment(" " * left, rng.choice(looks))
    return Strip(segments, width)


@pytest.mark.parametrize(
    ("letters", "system"),
    [(PLAIN, "truecolor"), (PLAIN, "256"), (PLAIN, "standard"), (ODD, "truecolor")],
    ids=["true colour", "256 colours", "16 colours", "wide and combining"],
)
def test_random_updates_leave_the_screen_that_textual_would_leave(letters: tuple[str, ...], system: str) -> None:
    for seed in range(5):
        rng = random.Random(seed)
        pair, looks = Pair(40, 6, system), styles()
        cuts = sorted({0, rng.randint(1, 39), rng.randint(1, 39)})
        ends = [*cuts[1:], 40]
        rows = [[a_strip(rng, b - a, letters, looks) for a, b in zip(cuts, ends, strict=True)] for _ in range(6)]
        pair.update(LayoutUpdate([list(row) for row in rows], Region(0, 0, 40, 6)))
        for _ in range(30):
            spans = []
            for y in sorted(rng.sample(range(6), rng.randint(1, 4))):
                n = rng.randrange(len(cuts))
                strip = a_strip(rng, ends[n] - cuts[n], letters, looks)
                if letters == PLAIN and rng.random() < 0.7:  # most updates change a few cells only
                    at = rng.randrange(ends[n] - cuts[n])
                    old = rows[y][n]
                    strip = Strip.join([old.crop(0, at), strip.crop(at, at + 2), old.crop(at + 2, old.cell_length)])
                rows[y][n] = strip
                spans.append((y, cuts[n], ends[n]))
            chops = [dict(zip(cuts, row, strict=True)) for row in rows]
            pair.update(ChopsUpdate(chops, spans, [ends] * 6))
            assert pair.differences() == []
        assert letters != PLAIN or pair.sent[1] < pair.sent[0] / 2


def test_only_the_cells_that_changed_are_sent() -> None:
    pair = Pair(40, 2)
    style = styles()[1]

    def row(text: str) -> list[Strip]:
        return [Strip([Segment(text.ljust(40), style)], 40)]

    pair.update(LayoutUpdate([row("step 100  loss 0.5"), row("")], Region(0, 0, 40, 2)))
    chops = [{0: row("step 101  loss 0.4")[0]}, {0: row("")[0]}]
    pair.sent = [0, 0]
    pair.update(ChopsUpdate(chops, [(0, 0, 40), (1, 0, 40)], [[40], [40]]))
    colours = "\x1b[38;2;201;206;214;48;2;15;17;21m"
    assert pair.sent[1] == len(f"\x1b[1;8H{colours}1\x1b[9C4\x1b[0m")
    assert pair.differences() == []
    pair.sent = [0, 0]
    pair.update(ChopsUpdate(chops, [(0, 0, 40), (1, 0, 40)], [[40], [40]]))
    assert pair.sent[1] == 0


def test_an_update_of_the_whole_screen_repairs_it() -> None:
    pair = Pair(10, 1)
    row = [Strip([Segment("0123456789", styles()[1])], 10)]
    pair.update(LayoutUpdate([row], Region(0, 0, 10, 1)))
    pair.screens[1].erase_in_display(2)  # another program has written to the terminal
    pair.update(LayoutUpdate([row], Region(0, 0, 10, 1)))
    assert pair.differences() == []
    pair.sent = [0, 0]
    pair.update(LayoutUpdate([row], Region(0, 0, 10, 1)), repair=False)
    assert pair.sent[1] == 0
    pair.screens[1].erase_in_display(2)
    pair.writer.forget()
    pair.update(LayoutUpdate([row], Region(0, 0, 10, 1)), repair=False)
    assert pair.differences() == []


@dataclass
class Watched:
    """Follows an app's updates with a pair of terminals."""

    pair: Pair
    updates: int = 0
    wrong: list[object] = field(default_factory=list)

    def attach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def display(app: DescentApp, screen: object, renderable: object) -> None:
            if isinstance(renderable, CompositorUpdate):
                self.pair.update(renderable, repair=not isinstance(screen, ModalScreen))
                self.updates += 1
            original(app, screen, renderable)  # type: ignore[arg-type]

        original = DescentApp._display
        monkeypatch.setattr(DescentApp, "_display", display)

    def check(self) -> None:
        self.wrong += self.pair.differences()[:3]
        assert self.wrong == []


@pytest.mark.parametrize("size", [(80, 24), pytest.param((120, 40), marks=pytest.mark.heavy)])
async def test_a_session_leaves_the_screens_that_textual_would_leave(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(Pair(*size))
    watched.attach(monkeypatch)
    async with open_dashboard(size, vanishing(200)) as dashboard:
        await dashboard.drawn()
        watched.check()
        for key in ("2", "4", "1", "down", "y", "o", "down", "escape"):
            await dashboard.press(key)
            dashboard.keeper.publish(steps(dashboard.keeper.history.steps, [2.0, 1.5, 0.5]))
            await dashboard.pilot.pause(0.05)
            watched.check()
        width, height = size
        watched.pair.resize(width + 20, height - 2)
        watched.pair.writer.forget()
        await dashboard.pilot.resize_terminal(width + 20, height - 2)
        await dashboard.drawn()
        watched.check()
    assert watched.updates > 12
    assert watched.pair.sent[1] < watched.pair.sent[0] / 2


async def test_the_app_shortens_its_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[object] = []

    def display(app: object, screen: object, renderable: object) -> None:
        written.append(renderable)

    monkeypatch.setattr("textual.app.App._display", display)
    async with open_dashboard((80, 24), vanishing(20)) as dashboard:
        await dashboard.drawn()
    updates: Iterable[object] = [one for one in written if one is not None]
    assert {type(one).__name__ for one in updates} == {"_Shortened"}


def test_with_another_version_of_textual_its_updates_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    update: Any = LayoutUpdate([], Region(0, 0, 10, 1))
    assert ScreenWriter().shortened(update) is not update
    assert ScreenWriter().shortened("text") == "text"
    monkeypatch.setattr(screen_writer, "CAN_SHORTEN", False)
    assert ScreenWriter().shortened(update) is update
    code = (
        "import textual._compositor as c; del c.ChopsUpdate; "
        "from tui_descent.dashboard import app, screen_writer; print(screen_writer.CAN_SHORTEN)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


async def test_a_resize_sends_the_whole_screen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[object] = []
    monkeypatch.setattr(ScreenWriter, "forget", lambda writer: forgotten.append(writer))
    async with open_dashboard((80, 24), vanishing(20)) as dashboard:
        await dashboard.drawn()
        count = len(forgotten)
        await dashboard.pilot.resize_terminal(90, 24)
        await dashboard.drawn()
        assert len(forgotten) > count


async def test_beneath_a_dialog_the_screen_is_drawn_once_a_second() -> None:
    async with open_dashboard((80, 24), vanishing(20)) as dashboard:
        screen = dashboard.app.run_screen
        screen.beneath_dialog_s = 1000.0  # type: ignore[misc]
        await dashboard.drawn()
        await dashboard.press("o")
        await dashboard.shows("Optimizer")
        dashboard.keeper.publish(steps(20, [1.0] * 30))
        await dashboard.wait_until(lambda: dashboard.app.bridge.history.steps == 50)
        await dashboard.pilot.pause(0.1)
        assert not screen.up_to_date
        await dashboard.press("escape")
        await dashboard.drawn()
        assert screen.up_to_date


async def test_a_view_that_is_opened_just_before_a_dialog_is_drawn_beneath_it() -> None:
    async with open_dashboard((80, 24), vanishing(120)) as dashboard:
        dashboard.app.run_screen.beneath_dialog_s = 1000.0  # type: ignore[misc]
        await dashboard.drawn()
        assert "held-out loss" not in dashboard.text()
        for key in ("3", "q"):  # without a frame between them
            dashboard.app.post_message(Key(key, key))
        await dashboard.shows("Leave this run?", "held-out loss")
