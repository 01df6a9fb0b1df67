"""The dialog of one layer: every reading with its value, at every size and however old it is."""

from __future__ import annotations

import re

import msgspec
import pytest
from driver import Dashboard, open_dashboard
from factories import reading, steps, vanishing

from tui_descent.dashboard.dialogs.layer import DEFINITIONS, NARROWEST
from tui_descent.protocol.events import ReadingsTaken, Rewound


def shown(dashboard: Dashboard) -> dict[str, list[str]]:
    """The dialog's rows: the cells after the first one, by the first one."""
    room = dashboard.app.screen.query_one("#readings").region
    rows = [row[room.x : room.right] for row in dashboard.text().splitlines()[room.y : room.bottom]]
    cells = [re.split(r" {2,}", row.strip()) for row in rows]
    return {name: others for name, *others in cells}


BETWEEN = [pytest.param(size, marks=pytest.mark.heavy) for size in ((99, 29), (80, 40), (120, 24))]


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40), *BETWEEN])
async def test_values_are_shown_at_every_size(size: tuple[int, int]) -> None:
    async with open_dashboard(size, vanishing(40)) as dashboard:
        await dashboard.drawn()
        await dashboard.press("down", "enter")
        await dashboard.shows("measured at")
        rows = shown(dashboard)
        assert rows["layer"][0] == "21"
        assert rows["‖W‖"][0] == "5.7e+00"
        assert rows["‖ΔW‖"][0] == "2.0e-03"
        assert rows["saturated"][0] == "–"
        assert rows["measured at"][0] == "39"


SLOW = ("backprop_factor", "saturated_fraction")


def quick(step: int, *, segment: int = 0) -> ReadingsTaken:
    """A reading without the metrics of the slower tiers."""
    whole = reading(step, 0.9)
    values = {metric: column for metric, column in whole.values.items() if metric not in SLOW}
    return msgspec.structs.replace(whole, values=values, segment=segment)


async def test_values_missing_from_the_newest_reading_keep_their_step() -> None:
    async with open_dashboard((120, 40), vanishing(40)) as dashboard:
        await dashboard.drawn()
        await dashboard.press("down", "down", "enter")
        await dashboard.shows("measured at")
        before = shown(dashboard)
        assert not any("at step" in cell for cells in before.values() for cell in cells)
        dashboard.keeper.publish(quick(40), steps(40, [1.0]))
        await dashboard.wait_until(lambda: shown(dashboard).get("measured at", [""])[0] == "40")
        after = shown(dashboard)
        assert [name for name, cells in after.items() if cells] == [name for name, cells in before.items() if cells]
        assert after["saturated"][0] == "2.0e-02"
        assert after["saturated"][-1].startswith("at step 39: outputs with")
        assert "at step" not in after["‖W‖"][-1]


async def test_no_definition_is_cut_at_80_columns() -> None:
    """A value that is older than the others has no step in its row: the last row names the oldest one."""
    async with open_dashboard((80, 24), vanishing(40)) as dashboard:
        await dashboard.drawn()
        await dashboard.press("down", "down", "enter")
        dashboard.keeper.publish(quick(40), steps(40, [1.0]))
        await dashboard.wait_until(lambda: shown(dashboard).get("measured at", [""])[0] == "40")
        after = shown(dashboard)
        assert after["measured at"][-1] == "newest; other values since step 39"
        assert not [cell for cells in after.values() for cell in cells if "…" in cell]
    assert all(len(what) <= NARROWEST for _, _, what in DEFINITIONS.values())


async def test_a_late_viewer_gets_older_values_and_an_undo_removes_them() -> None:
    back = Rewound(from_segment=0, from_step=41, to_segment=0, to_step=20, segment=1, step=20, what="lr", in_force=())
    async with open_dashboard((120, 40), [*vanishing(40), quick(40), steps(40, [1.0])]) as dashboard:
        await dashboard.drawn()
        await dashboard.press("down", "down", "enter")
        await dashboard.shows("measured at", "at step 39: outputs")
        dashboard.keeper.publish(back)
        await dashboard.shows("no reading since")
        assert "saturated" not in shown(dashboard)
        dashboard.keeper.publish(quick(20, segment=1), steps(20, [1.0], segment=1))
        await dashboard.wait_until(lambda: shown(dashboard).get("measured at", [""])[0] == "20")
        assert "‖W‖" in shown(dashboard)
        assert "saturated" not in shown(dashboard)
