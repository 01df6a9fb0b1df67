"""Every dialog, the gallery and further views as text, at three sizes. Other views are in test_golden.py."""

from __future__ import annotations

import pytest
from driver import Dashboard, compare, open_dashboard, text_of, wait_until
from factories import curved, ledger, logged, vanishing
from test_story_view import run_of

from tui_descent.dashboard.gallery import GalleryApp
from tui_descent.scenario import presets

SIZES = [(80, 24), (120, 40), (200, 60)]
# On the largest screen most dialogs look as on the middle one.
FEWER = [(80, 24), (120, 40), pytest.param((200, 60), marks=pytest.mark.heavy)]
# The name of the golden file: the keys that open the dialog, and words that it shows.
DIALOGS: dict[str, tuple[list[str], str]] = {
    "norm": (["n"], "Normalisation"),
    "optimizer": (["o"], "set betas"),
    "init": (["i"], "orthogonal"),
    "schedule": (["s", "down", "down"], "cosine"),
    "rate": (["l"], "Learning rate"),
    "betas": (["o", "end", "enter"], "of its square"),
    "steps": (["greater_than_sign"], "then pause"),
    "layer": (["up", "up", "enter"], "measured at"),
    "quit": (["q"], "Leave this run?"),
    "restart": (["R"], "Restart this run?"),
    "to-gallery": (["p"], "Back to the gallery?"),
    "help": (["question_mark"], "learning rate"),
}


async def box_of(dashboard: Dashboard) -> str:
    """The open dialog alone, once it does not change any more."""
    seen, text = None, ""
    while seen != text:
        seen = text
        await dashboard.frames(1)
        left, top, width, height = dashboard.app.screen.query_one(".dialog").region
        rows = dashboard.text().splitlines()[top : top + height]
        text = "\n".join(row[left : left + width] for row in rows) + "\n"
    return text


async def close_all(dashboard: Dashboard) -> None:
    while dashboard.app.screen is not dashboard.app.run_screen:
        await dashboard.press("escape")
    await dashboard.press("escape")  # no layer is selected


@pytest.mark.parametrize("size", FEWER)
async def test_dialog_screens(size: tuple[int, int]) -> None:
    async with open_dashboard(size, vanishing(60)) as dashboard:
        await dashboard.drawn()
        for name, (keys, words) in DIALOGS.items():
            await dashboard.press(*keys)
            await dashboard.shows(words)
            compare(f"dialog-{name}-{size[0]}x{size[1]}", await box_of(dashboard))
            await close_all(dashboard)


@pytest.mark.parametrize("size", FEWER)
async def test_prediction_screen(size: tuple[int, int]) -> None:
    async with open_dashboard(size, run_of(200)) as dashboard:
        await dashboard.press("h", "r")
        await dashboard.shows("what will the loss do")
        compare(f"dialog-predict-{size[0]}x{size[1]}", await box_of(dashboard))


@pytest.mark.parametrize("size", SIZES)
async def test_screens_of_other_views(size: tuple[int, int]) -> None:
    """Views that have no test of their own at this size."""
    earlier = [*vanishing(140), *logged(140), ledger(130, 0.3), curved(120, 1.0, -0.3, negative_fraction=0.2)]
    async with open_dashboard(size, earlier) as dashboard:
        for key, name in (("2", "layers"), ("3", "events"), ("6", "metrics"), ("7", "output"), ("8", "task")):
            await dashboard.press(key)
            await dashboard.drawn()
            compare(f"view-{name}-{size[0]}x{size[1]}", dashboard.text())


@pytest.mark.parametrize("size", FEWER)
async def test_gallery_keeps_its_shape(size: tuple[int, int]) -> None:
    app = GalleryApp()
    async with app.run_test(size=size) as pilot:
        await wait_until(pilot, lambda: presets.START in text_of(app), lambda: text_of(app))
        text = text_of(app)
    rows = text.splitlines()
    assert "Start here" in text
    assert "What it shows" in text
    assert "q quit" in rows[-1]
    assert len(rows) == size[1]
    assert all(len(row) <= size[0] for row in rows)
