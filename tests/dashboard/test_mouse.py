"""What can be clicked: the footer, names of layers, words of titles, lists of dialogs."""

from __future__ import annotations

import pytest
from driver import Dashboard, open_dashboard, text_of, wait_until
from factories import vanishing
from textual.widgets import OptionList

from tui_descent.dashboard.gallery import GalleryApp
from tui_descent.protocol.commands import Pause, TurnKnob

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


async def test_a_click_on_the_views_shows_the_next_one() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.drawn()
        for name in ("layers", "events", "chain"):
            await click(dashboard, "1-9", last=True)
            await dashboard.wait_until(lambda name=name: dashboard.app.run_screen.has_class(f"view-{name}"))  # type: ignore[misc]


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


async def test_the_wheel_scrolls_the_story() -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await dashboard.press("3")
        await dashboard.drawn()
        before = dashboard.text()
        dashboard.app.run_screen.scroll_focused(3)
        await dashboard.wait_until(lambda: dashboard.text() != before or "newest" in before)


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
