"""The preset gallery."""

from __future__ import annotations

import pytest
from driver import text_of, wait_until
from textual.widgets import OptionList

from tui_descent.dashboard.gallery import GalleryApp
from tui_descent.run_actions import RunSummary
from tui_descent.scenario import presets


async def test_enter_starts_the_highlighted_preset() -> None:
    app = GalleryApp()
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until(pilot, lambda: "vanishing" in text_of(app), lambda: text_of(app))
        while app.query_one(OptionList).highlighted_option.id != "exploding":  # type: ignore[union-attr]
            await pilot.press("down")
        await wait_until(pilot, lambda: "Exploding gradients: every layer" in text_of(app), lambda: text_of(app))
        assert "tui-descent FILE.toml" in text_of(app)
        await pilot.press("enter")
    assert app.return_value == "exploding"


async def test_each_preset_has_one_row_at_80_columns() -> None:
    app = GalleryApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until(pilot, lambda: "vanishing" in text_of(app), lambda: text_of(app))
        themes = {presets.find(name)[1].theme for name in presets.names()}
        rows = app.query_one(OptionList).virtual_size.height
        assert len(presets.names()) < rows <= len(presets.names()) + len(themes) + 1, "and one for each theme"


async def test_q_quits_the_gallery_without_a_choice() -> None:
    app = GalleryApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("j", "k", "q")
    assert app.return_value is None


async def test_a_long_story_can_be_read_to_its_end_at_80_columns() -> None:
    app = GalleryApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until(pilot, lambda: "Twenty sigmoid layers" in text_of(app), lambda: text_of(app))
        assert "Claims, checked by a test" not in text_of(app)
        await pilot.press("pagedown", "pagedown")
        await wait_until(pilot, lambda: "Claims, checked by a test" in text_of(app), lambda: text_of(app))
        assert _highlighted(app) == "vanishing", "the same preset"
        await pilot.press("pageup", "pageup")
        await wait_until(pilot, lambda: "Twenty sigmoid layers" in text_of(app), lambda: text_of(app))


async def test_the_best_first_minute_is_the_first_entry() -> None:
    app = GalleryApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until(pilot, lambda: "vanishing" in text_of(app), lambda: text_of(app))
        assert _highlighted(app) == presets.START
        assert "Start here" in text_of(app)
        await pilot.press("enter")
    assert app.return_value == presets.START


async def test_the_gallery_returns_to_the_preset_that_was_left() -> None:
    app = GalleryApp(highlighted="saddle")
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until(pilot, lambda: "A saddle" in text_of(app), lambda: text_of(app))
        assert _highlighted(app) == "saddle"


CURVATURE = [
    "narrow-valley",
    "saddle",
    "monkey-saddle",
    "saddles-not-minima",
    "saddle-to-saddle",
    "edge-of-stability",
]
RELU = ["activations", "dead-relu", "born-dead", "break-it"]


@pytest.mark.parametrize(("typed", "left"), [("curv", CURVATURE), ("RELU", RELU)])
async def test_the_filter_finds_names_themes_and_titles(typed: str, left: list[str]) -> None:
    app = GalleryApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until(pilot, lambda: "vanishing" in text_of(app), lambda: text_of(app))
        await pilot.press("/", *typed)
        await wait_until(pilot, lambda: _listed(app) == left, lambda: text_of(app))
        await pilot.press("escape")
        await wait_until(pilot, lambda: _listed(app) == presets_by_theme(app), lambda: text_of(app))
        await pilot.press("/", *typed, "enter", "enter")
    assert app.return_value == left[0]


async def test_a_filter_that_matches_nothing_says_so() -> None:
    app = GalleryApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("/", *"zebra")
        await wait_until(pilot, lambda: "no preset or run matches" in text_of(app), lambda: text_of(app))
        await pilot.press("enter", "enter", "escape", "q")
    assert app.return_value is None


def test_every_preset_has_a_picture_that_fits_beside_the_list_at_80_columns() -> None:
    for name in presets.names():
        rows = presets.still(name).splitlines()
        assert 5 <= len(rows) <= 10, name
        assert max(map(len, rows)) <= 36, name
        plan = presets.find(name)[1].plan
        assert ("▲" in presets.still(name)) == any(entry.turn for entry in plan), name


def presets_by_theme(app: GalleryApp) -> list[str]:
    found = _listed(app)
    assert sorted(found) == sorted(presets.names())
    return found


def _listed(app: GalleryApp) -> list[str]:
    return [option.id for option in app.query_one(OptionList).options if option.id is not None]


def _highlighted(app: GalleryApp) -> str | None:
    option = app.query_one(OptionList).highlighted_option
    return None if option is None else option.id


RUNS = [
    RunSummary(
        run=f"{name}-20261130-{hour}0000-{word}",
        name=name,
        state=state,
        live=live,
        step=1234,
        loss=0.25,
        train_loss=0.3,
        held_out_loss=0.25,
        seconds=90.0,
        size=2_000_000,
        started=0.0,
        folder="/x",
    )
    for name, hour, word, state, live in (
        ("mine", 12, "cafe", "held", True),
        ("vanishing", 11, "beef", "finished", False),
        ("saddle", 10, "dead", "lost", False),
    )
]


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_live_runs_come_first_and_recorded_ones_last(size: tuple[int, int]) -> None:
    app = GalleryApp(runs=RUNS)
    async with app.run_test(size=size) as pilot:
        await wait_until(pilot, lambda: "enter attaches" in text_of(app), lambda: text_of(app))
        text = text_of(app)
        assert text.index("Running now") < text.index("mine") < text.index("Start here")
        assert "held · step 1,234" in text
        assert "training loss 0.3 " in text
        assert "held-out loss 0.25 " in text
        await pilot.press("end")
        await wait_until(pilot, lambda: "enter replays it" in text_of(app), lambda: text_of(app))
        assert "Recorded runs" in text_of(app)
        assert "saddle-20261130-100000-dead" in text_of(app)
        await pilot.press("slash", *"beef")
        await wait_until(pilot, lambda: "vanishing-20261130-110000-beef" in text_of(app), lambda: text_of(app))
        await pilot.press("enter", "enter")
    assert app.return_value == "run:vanishing-20261130-110000-beef"
