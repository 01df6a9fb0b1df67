"""How long a preset is run to check its claims."""

from __future__ import annotations

import msgspec
import pytest

from tui_descent.scenario import presets
from tui_descent.scenario.spec import ScheduleSpec
from tui_descent.verify import steps_needed

ALL = 600


@pytest.mark.parametrize(
    ("ats", "steps"), [((140,), 141), ((140, 0), 141), ((ALL,), ALL), ((5 * ALL,), ALL), ((140, None), ALL)]
)
def test_a_run_ends_with_the_last_step_that_a_claim_is_about(ats: tuple[int | None, ...], steps: int) -> None:
    _, scenario = presets.find("vanishing")
    assert scenario.run.steps == ALL
    assert steps_needed(scenario, (), ats) == steps


def test_a_schedule_needs_all_steps() -> None:
    _, scenario = presets.find("vanishing")
    assert steps_needed(scenario, ["50:lr=*2"], [100]) == 101
    assert steps_needed(scenario, ["50:schedule=cosine"], [100]) == ALL
    cosine = msgspec.structs.replace(scenario, schedule=ScheduleSpec(name="cosine"))
    assert steps_needed(cosine, (), [100]) == ALL
