"""What can be clicked: the footer, names of layers, words of titles, lists of dialogs."""

from __future__ import annotations

import pytest
from driver import Dashboard, open_dashboard, text_of, wait_until
from factories import curved, started, steps, vanishing
from test_lens_view import taken
from textual.events import MouseScrollDown, MouseScrollUp
from textual.widgets import OptionList

from tui_descent.dashboard import colours
from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.dialogs.leave import LeaveDialog
from tui_descent.dashboard.gallery import GalleryApp
from tui_descent.dashboard.panels.story import StoryPanel
from tui_descent.dashboard.terminal_size import TALL_ROWS
from tui_descent.dashboard.view import STORY, VIEWS
from tui_descent.protocol.commands import Pause, Stop, TurnKnob
from tui_descent.protocol.events import Rewound, RunStarted

EARLIER = vanishing(60)


async def click(dashboard: Dashboard, words: str, *, times: int = 1, last: bool = False) -> None:
    rows = dashboard.text().splitlines()
    found = [(row.index(words), y) for y, row in enumerate(rows) if words in row]
    assert found, f"{words!r} is not on the screen:\n{dashboard.text()}"
    await dashboard.pilot.click(offset=found[-1 if last else 0], times=times)


async def received(dashboard: Dashboard) -> None:
    await dashboard.wait_until(lambda: bool(dashboard.keeper.steered))


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("r res", TurnKnob(knob="residual", value="on")),
        ("+ - rate", TurnKnob(knob="lr", value="*1.25")),
        ("space", Pause()),
    ],
)
async def test_a_click_on_the_footer_acts_as_its_key(words: str, command: object) -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.drawn()
        await click(dashboard, words, last=True)
        await received(dashboard)
        assert dashboard.keeper.steered == [command]


@pytest.mark.parametrize("size", [(80, 24), pytest.param((80, 40), marks=pytest.mark.heavy), (120, 40), (200, 60)])
async def test_each_view_has_a_tab(size: tuple[int, int]) -> None:
    async with open_dashboard(size, EARLIER) as dashboard:
        await dashboard.drawn()
        screen = dashboard.app.run_screen
        for key, name in [*zip("987654321", reversed(VIEWS), strict=True), ("h", STORY)]:
            await dashboard.pilot.click(offset=_tab(dashboard, key))
            await dashboard.wait_until(lambda name=name: screen.view.shown == name)  # type: ignore[misc]
            assert screen.has_class(f"view-{name}")


def _tab(dashboard: Dashboard, key: str) -> tuple[int, int]:
    """Where the tab of a view is: in the second row, or on low screens in the last one."""
    rows = dashboard.text().splitlines()
    if dashboard.app.size.height >= TALL_ROWS:
        return f"{rows[1]} ".index(f" {key} ") + 1, 1
    return rows[-1].index("123456789h") + "123456789h".index(key), len(rows) - 1


async def test_the_tab_of_the_shown_view_stands_out() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.drawn()
        await dashboard.press("4")
        await dashboard.wait_until(lambda: _chosen(dashboard, 1) == "4 chain rule")
        await dashboard.pilot.resize_terminal(120, 29)
        await dashboard.shows("123456789h")
        await dashboard.wait_until(lambda: _chosen(dashboard, 28) == "4")


def _chosen(dashboard: Dashboard, y: int) -> str:
    """The text of a row in the colours of what is chosen."""
    row = dashboard.app.screen._compositor.render_strips()[y]
    background = colours.CHOSEN.bgcolor
    return "".join(s.text for s in row if s.style is not None and s.style.bgcolor == background)


def _underlined(dashboard: Dashboard) -> str:
    rows = dashboard.app.screen._compositor.render_strips()
    return "".join(s.text for row in rows for s in row if s.style is not None and s.style.underline)


@pytest.mark.parametrize(
    ("words", "underlined", "says"),
    [
        ("5 curvature", "5 curvature", ""),
        ("blocks.15 █", "blocks.15", ""),
        ("r res", "r res off", "r  switch residual connections"),
        ("; pace", ";", ";  more steps per second"),
        ("? help", "? help", "?  show all keys"),
        ("still measuring", "", "h: story and what to press"),
    ],
)
async def test_what_can_be_clicked_is_underlined_below_the_mouse(words: str, underlined: str, says: str) -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.drawn()
        await dashboard.pilot.hover(offset=_place(dashboard, words))
        await dashboard.wait_until(lambda: _underlined(dashboard).replace("residual", "res") == underlined)
        await dashboard.shows(says)


def _place(dashboard: Dashboard, words: str) -> tuple[int, int]:
    return next((row.index(words), y) for y, row in enumerate(dashboard.text().splitlines()) if words in row)


async def test_the_answer_to_a_click_replaces_what_the_entry_does() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.drawn()
        place = _place(dashboard, "+ - rate")
        await dashboard.pilot.hover(offset=place)
        await dashboard.shows("learning rate × 1.25")
        await dashboard.pilot.click(offset=place)
        await dashboard.shows("applied at step 60")
        assert "learning rate × 1.25" not in dashboard.text()


async def test_both_keys_of_an_entry_can_be_clicked() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.drawn()
        x, y = _place(dashboard, "+ - rate")
        await dashboard.pilot.click(offset=(x + 2, y))
        await received(dashboard)
        assert dashboard.keeper.steered == [TurnKnob(knob="lr", value="/1.25")]


async def test_a_click_on_the_legend_hides_a_line_and_shows_it_again() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.drawn()
        screen = dashboard.app.run_screen
        for words, line, drawn in (
            ("━ smooth", "smooth", " 2.33 "),
            ("○ held-out", "held-out", "○"),
            ("█ raw", "raw", ""),
        ):
            assert drawn in _chart(dashboard)
            await click(dashboard, words)
            await dashboard.shows(f"· {line}")
            await dashboard.drawn()
            assert screen.view.hidden == {line}
            assert not drawn or drawn not in _chart(dashboard)
            await click(dashboard, f"· {line}")
            await dashboard.shows(words)
        assert not screen.view.hidden


def _chart(dashboard: Dashboard) -> str:
    """The loss chart without its border."""
    return "\n".join(row[1:70] for row in dashboard.text().splitlines()[3:14])


async def test_a_click_on_the_undone_steps_hides_the_ghosts() -> None:
    undone = Rewound(from_segment=0, from_step=30, to_segment=0, to_step=10, segment=1, step=10, what="lr")
    async with open_dashboard((120, 40), [*EARLIER, undone, steps(10, [2.0] * 30, segment=1)]) as dashboard:
        await dashboard.drawn()
        await click(dashboard, "undone g")
        await dashboard.wait_until(lambda: not dashboard.app.run_screen.view.ghosts)
        await dashboard.shows("· undone g")


@pytest.mark.parametrize(
    ("view", "legend", "line"),
    [("9", "━ f(z)", "f"), ("9", "━ f′(z)", "slope"), ("9", "━ secant", "secant"), ("5", "─ limit", "limit")],
)
async def test_legends_of_other_charts_can_be_clicked(view: str, legend: str, line: str) -> None:
    events = [curved(n, 1.0, -0.3, negative_fraction=0.2) for n in range(10, 30, 5)]
    async with open_dashboard((120, 40), [*EARLIER, *events]) as dashboard:
        await dashboard.press(view)
        dashboard.keeper.publish(taken())
        await dashboard.shows(legend)
        await dashboard.drawn()
        before = dashboard.text()
        await click(dashboard, legend)
        await dashboard.wait_until(lambda: dashboard.app.run_screen.view.hidden == {line})
        await dashboard.drawn()
        changed = sum(a != b for a, b in zip(before, dashboard.text(), strict=True))
        assert changed > 10, "the line has disappeared"


async def test_a_click_on_a_row_of_the_heat_map_selects_its_layer() -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await dashboard.drawn()
        await click(dashboard, "blocks.15")
        await dashboard.shows("▸blocks.15")
        _, y = _place(dashboard, "inlet")
        await dashboard.pilot.click(offset=(30, y))
        await dashboard.wait_until(lambda: dashboard.app.run_screen.view.selected == 0)


async def test_the_hints_of_every_dialog_can_be_clicked() -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await dashboard.drawn()
        for key in ("a", "n", "o", "i", "s", "l", "greater_than_sign", "question_mark", "q", "R", "p", "enter"):
            await dashboard.press(key)
            await dashboard.wait_until(lambda: isinstance(dashboard.app.screen, Dialog))
            await dashboard.shows("escape ")
            await click(dashboard, "escape ", last=True)
            await dashboard.wait_until(lambda: dashboard.app.screen is dashboard.app.run_screen)
        assert dashboard.keeper.steered == []


async def test_a_click_on_enter_applies_what_is_highlighted() -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await dashboard.drawn()
        await dashboard.press("n", "down")
        await dashboard.shows("enter applies")
        await click(dashboard, "enter applies", last=True)
        await received(dashboard)
        assert dashboard.keeper.steered == [TurnKnob(knob="norm", value="layer")]


@pytest.mark.parametrize(("key", "row"), [("q", "end the run after"), ("R", "end this run"), ("p", "end this run")])
async def test_one_click_never_ends_a_run(key: str, row: str) -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await dashboard.drawn()
        await dashboard.press(key)
        await dashboard.shows("escape stays")
        await click(dashboard, row)
        await dashboard.pilot.pause()
        assert isinstance(dashboard.app.screen, LeaveDialog)
        assert dashboard.keeper.steered == []
        await click(dashboard, row, times=2)
        await received(dashboard)
        assert dashboard.keeper.steered == [Stop()]


async def test_the_wheel_scrolls_the_panel_below_the_mouse() -> None:
    story = " ".join(f"word{n}" for n in range(400))
    named = [started(scenario={"story": story}) if isinstance(event, RunStarted) else event for event in EARLIER]
    async with open_dashboard((120, 40), named) as dashboard:
        await dashboard.press("3")
        await dashboard.shows("word5 ", "more rows")
        await dashboard.drawn()
        x, y = _place(dashboard, "word5 ")
        panel = dashboard.app.run_screen.query_one(StoryPanel)
        assert dashboard.app.run_screen.focused is not panel
        for kind, shown in ((MouseScrollDown, False), (MouseScrollUp, True)):
            for _ in range(3):
                panel.post_message(kind(panel, x, y, 0, 0, 0, False, False, False, screen_x=x, screen_y=y))
            await dashboard.wait_until(lambda shown=shown: ("word5 " in dashboard.text()) == shown)  # type: ignore[misc]


async def test_a_click_selects_a_layer_and_the_next_one_opens_it() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.drawn()
        await click(dashboard, "blocks.15 █")
        await dashboard.shows("▸blocks.15")
        await dashboard.drawn()
        await click(dashboard, "blocks.15 █")
        await dashboard.shows("escape")
        assert "1,024 parameters" in dashboard.text()


@pytest.mark.parametrize(("words", "after"), [("log y", "linear y"), ("whole run t", "last 200+ steps t")])
async def test_a_click_on_a_word_of_the_title_switches_it(words: str, after: str) -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.drawn()
        await click(dashboard, words)
        await dashboard.shows(after)


async def test_a_click_highlights_and_a_double_click_applies() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.drawn()
        await dashboard.press("a")
        await dashboard.shows("gelu")
        await click(dashboard, "gelu ")
        await dashboard.shows("transformers")
        assert dashboard.keeper.steered == []
        await click(dashboard, "gelu ", times=2)
        await received(dashboard)
        assert dashboard.keeper.steered == [TurnKnob(knob="activation", value="gelu")]


async def test_a_click_in_the_gallery_shows_a_preset_and_a_double_click_starts_it() -> None:
    app = GalleryApp()
    async with app.run_test(size=(100, 40)) as pilot:
        await wait_until(pilot, lambda: "saddle" in text_of(app), lambda: text_of(app))
        y = next(n for n, row in enumerate(text_of(app).splitlines()) if "  saddle" in row)
        await pilot.click(offset=(8, y))
        await wait_until(pilot, lambda: "A saddle" in text_of(app), lambda: text_of(app))
        assert app.return_value is None
        await pilot.click(offset=(8, y), times=2)
    assert app.return_value == "saddle"


@pytest.mark.parametrize(
    ("words", "field", "chosen"),
    [("enter start", False, "vanishing"), ("/ filter", True, None), ("q quit", False, None)],
)
async def test_the_keys_below_the_gallery_can_be_clicked(words: str, chosen: str | None, *, field: bool) -> None:
    app = GalleryApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until(pilot, lambda: words in text_of(app), lambda: text_of(app))
        await pilot.click(offset=(text_of(app).splitlines()[-1].index(words), 23))
        await wait_until(pilot, lambda: app._exit or app.query_one("#filter").display, lambda: text_of(app))
        assert app.query_one("#filter").display == field
    assert app.return_value == chosen


async def test_typing_a_name_finds_it_in_a_list() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.drawn()
        await dashboard.press("a", "s", "i", "l")
        await dashboard.wait_until(lambda: dashboard.app.screen.query_one(OptionList).highlighted_option is not None)
        option = dashboard.app.screen.query_one(OptionList).highlighted_option
        assert option is not None
        assert option.id == "silu"
        await dashboard.press("enter")
        await received(dashboard)
        assert dashboard.keeper.steered == [TurnKnob(knob="activation", value="silu")]
