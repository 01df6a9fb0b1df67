"""The dialog of one layer: every reading with its value, whatever the room and whenever it was measured."""

from __future__ import annotations

import re

import msgspec
import pytest
from driver import Play, playing
from fake_run import reading, steps, vanishing

from tui_descent.protocol.events import ReadingsTaken, Rewound


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


SLOW = ("backprop_factor", "saturated_fraction")


def quick(step: int, *, segment: int = 0) -> ReadingsTaken:
    """A reading without the slower tiers."""
    whole = reading(step, 0.9)
    values = {metric: column for metric, column in whole.values.items() if metric not in SLOW}
    return msgspec.structs.replace(whole, values=values, segment=segment)


async def test_what_the_newest_reading_lacks_stays_with_its_step() -> None:
    async with playing((120, 40), vanishing(40)) as play:
        await play.drawn()
        await play.press("down", "down", "enter")
        await play.sees("measured at")
        before = shown(play)
        assert not any("at step" in cell for cells in before.values() for cell in cells)
        play.keeper.tell(quick(40), steps(40, [1.0]))
        await play.until(lambda: shown(play)["measured at"][0] == "40")
        after = shown(play)
        assert [name for name, cells in after.items() if cells] == [name for name, cells in before.items() if cells]
        assert after["saturated"][0] == "2.0e-02"
        assert after["saturated"][-1].startswith("at step 39: outputs where")
        assert "at step" not in after["‖W‖"][-1]


async def test_who_comes_late_has_them_too_and_after_an_undo_nobody_has() -> None:
    back = Rewound(from_segment=0, from_step=41, to_segment=0, to_step=20, segment=1, step=20, what="lr", in_force=())
    async with playing((120, 40), [*vanishing(40), quick(40), steps(40, [1.0])]) as play:
        await play.drawn()
        await play.press("down", "down", "enter")
        await play.sees("measured at", "at step 39: outputs")
        play.keeper.tell(back)
        await play.sees("no reading yet")
        assert "saturated" not in shown(play)
        play.keeper.tell(quick(20, segment=1), steps(20, [1.0], segment=1))
        await play.until(lambda: shown(play)["measured at"][0] == "20")
        assert "‖W‖" in shown(play)
        assert "saturated" not in shown(play)
