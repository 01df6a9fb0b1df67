"""What a headless run prints while it goes on."""

from __future__ import annotations

import pytest
from factories import started, steps

from tui_descent.headless import Progress
from tui_descent.protocol.events import AnyEvent, StateChanged

RUNNING = StateChanged(state="running")


def silent(silent_s: int, state: str = "running") -> StateChanged:
    return StateChanged(state=state, reason="the trainer has not responded", silent_s=silent_s)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("events", "lines"),
    [
        ([silent(4), silent(5), silent(60)], ["step 3: the trainer has been silent for 4 s"]),
        (
            [silent(4), silent(5), RUNNING, steps(3, [1.0]), silent(6)],
            ["step 3: the trainer has been silent for 4 s", "step 4: the trainer has been silent for 6 s"],
        ),
        ([RUNNING, RUNNING], []),
    ],
)
def test_silence_of_the_trainer_is_printed_once(
    events: list[AnyEvent], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress()
    for event in [started(), RUNNING, steps(0, [1.0] * 3), *events]:
        progress(event)
    printed = capsys.readouterr().err.splitlines()
    assert [line for line in printed if "silent for" in line] == lines
