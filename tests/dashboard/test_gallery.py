"""The preset gallery."""

from __future__ import annotations

from driver import text_of, wait_until
from textual.widgets import OptionList

from tui_descent.dashboard.gallery import GalleryApp
from tui_descent.scenario import presets


async def test_enter_starts_the_highlighted_preset() -> None:
    app = GalleryApp()
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until(pilot, lambda: "vanishing" in text_of(app), lambda: text_of(app))
        for _ in range(presets.names().index("vanishing")):
            await pilot.press("down")
        await wait_until(pilot, lambda: "Twenty sigmoid layers" in text_of(app), lambda: text_of(app))
        assert "tui-descent FILE.toml" in text_of(app)
        await pilot.press("enter")
    assert app.return_value == "vanishing"


async def test_each_preset_has_one_row_at_80_columns() -> None:
    app = GalleryApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until(pilot, lambda: "vanishing" in text_of(app), lambda: text_of(app))
        assert app.query_one(OptionList).virtual_size.height == len(presets.names())


async def test_q_quits_the_gallery_without_a_choice() -> None:
    app = GalleryApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("j", "k", "q")
    assert app.return_value is None


async def test_a_long_story_can_be_read_to_its_end_at_80_columns() -> None:
    app = GalleryApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until(pilot, lambda: "first-descent" in text_of(app), lambda: text_of(app))
        assert "Claims, checked by a test" not in text_of(app)
        await pilot.press("pagedown")
        await wait_until(pilot, lambda: "Claims, checked by a test" in text_of(app), lambda: text_of(app))
        assert app.query_one(OptionList).highlighted == 0, "the same preset"
        await pilot.press("pageup")
        await wait_until(pilot, lambda: "Ten steps down a parabola" in text_of(app), lambda: text_of(app))
