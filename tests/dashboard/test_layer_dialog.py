"""The dialog of one layer: every reading with its value, whatever the room and whenever it was measured."""

from __future__ import annotations

import re

import pytest
from playing import Play, playing
from scripted import vanishing


def shown(play: Play) -> dict[str, list[str]]:
    """What stands in the dialog: a row's name, and its other columns."""
    room = play.app.screen.query_one("#readings").region
    rows = [row[room.x : room.right] for row in play.text().splitlines()[room.y : room.bottom]]
    cells = [re.split(r" {2,}", row.strip()) for row in rows]
    return {name: others for name, *others in cells}


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (99, 29), (80, 40), (120, 24), (120, 40)])
async def test_values_are_there_whatever_the_room(size: tuple[int, int]) -> None:
    async with playing(size, vanishing(40)) as play:
        await play.drawn()
        await play.press("down", "enter")
        await play.sees("measured at")
        rows = shown(play)
        assert rows["layer"][0] == "21"
        assert rows["‖W‖"][0] == "5.7e+00"
        assert rows["‖ΔW‖"][0] == "2.0e-03"
        assert rows["saturated"][0] == "–"
        assert rows["measured at"][0] == "39"
