"""The event log: evaluations in a row and repeated messages take one line each, and E leaves out measurements."""

from __future__ import annotations

import pytest
from driver import open_dashboard
from factories import started, steps, turned

from tui_descent.dashboard.panels.event_lines import event_lines
from tui_descent.protocol.events import (
    AnyEvent,
    CommandRejected,
    Diagnosed,
    Evaluated,
    Noted,
    NotFinite,
    PredictionChecked,
    Rewound,
    StateChanged,
)
from tui_descent.telemetry.log import LogEntry


def evaluated(*losses: float, first: int = 50) -> list[LogEntry]:
    """One evaluation every 50 steps."""
    return [
        Evaluated(segment=0, step=first + 50 * n, loss=loss, accuracy=0.9 + n / 1000) for n, loss in enumerate(losses)
    ]


def sentences(log: list[LogEntry], **how: bool) -> list[str]:
    return [f"{line.step} {line.sentence}".strip() for line in event_lines(log, with_segment=False, **how)]


NAN = "loss is nan at step 6, first in blocks.1.linear, before the update"
FAILED: list[LogEntry] = [
    NotFinite(segment=0, step=6, what="loss", layer="blocks.1.linear", text=NAN),
    StateChanged(state="held", reason=f"{NAN}; u goes back 6 steps"),
]
FOUND = Diagnosed(segment=0, step=60, finding="plateau", sure=0.9, sentence="Loss stuck.")


def test_evaluations_in_a_row_are_one_line() -> None:
    losses = [0.41 - 0.0036 * n for n in range(26)]
    assert sentences(evaluated(*losses)) == ["1,300 held-out loss 0.41 → 0.32, accuracy 92.5%, ×26"]
    assert sentences(evaluated(0.41)) == ["50 held-out loss 0.41, accuracy 90.0%"]


def test_everything_between_evaluations_stays_visible_and_splits_their_line() -> None:
    turn = turned(160, "0.1", "0.01", knob="lr")
    log: list[LogEntry] = [*evaluated(2.0, 1.5, 1.0), turn, *evaluated(0.9, 0.8, first=200), FOUND]
    assert sentences(log) == [
        "150 held-out loss 2 → 1, accuracy 90.2%, ×3",
        "160 lr 0.1 → 0.01",
        "250 held-out loss 0.9 → 0.8, accuracy 90.1%, ×2",
        "60 plateau: Loss stuck.",
    ]


@pytest.mark.parametrize(
    ("predicted", "happened", "text"),
    [
        ("healthy", "vanishing", "after residual on: still vanishing (predicted: healthy)"),
        ("healthy", "healthy", "after residual on: healthy, as predicted"),
        ("vanishing", "vanishing", "after residual on: still vanishing, as predicted"),
        ("healthy", "plateau", "after residual on: plateau (predicted: healthy)"),
    ],
)
def test_outcome_of_an_intervention_names_what_was_changed(predicted: str, happened: str, text: str) -> None:
    outcome = PredictionChecked(
        segment=0,
        step=230,
        predicted=predicted,
        happened=happened,
        held=predicted == happened,
        change="residual on",
        before="vanishing",
    )
    assert sentences([outcome]) == [f"230 {text}"]


def test_without_measurements_interventions_findings_and_errors_remain() -> None:
    important: list[LogEntry] = [
        turned(60, "0.1", "0.01", knob="lr"),
        FOUND,
        CommandRejected(segment=0, step=70, client=1, request=1, source="key", knob="lr", reason="no"),
        Noted(step=80, text="readings are slow", level="warning"),
        Noted(step=80, text="measuring has failed", level="error"),
        *FAILED,
    ]
    log: list[LogEntry] = [*evaluated(2.0), Noted(step=70, text="plain"), *evaluated(1.0)]
    mixed = [entry for pair in zip(important, [*log] * 3, strict=False) for entry in pair]
    assert sentences(mixed, all_events=False) == sentences(important)
    assert len(sentences(mixed)) > len(important)
    assert sentences(log, all_events=False) == []


@pytest.mark.parametrize("between", [[], [FOUND], evaluated(1.0)], ids=["nothing", "a finding", "an evaluation"])
def test_a_hold_that_repeats_is_counted(between: list[LogEntry]) -> None:
    lines = sentences([FAILED[0], *between, FAILED[1], *FAILED * 3])
    assert lines.count(f"6 {NAN}, ×4") == 1
    assert lines.count("held; u goes back 6 steps, ×4") == 1
    assert len(lines) == 2 + len(between)


def test_a_nan_is_in_the_log_once() -> None:
    found = Diagnosed(segment=0, step=6, kind="numerics", finding="non-finite", sure=1.0, sentence="Loss nan (step 6).")
    assert sentences([FAILED[0], found, FAILED[1]]) == [f"6 {NAN}", "held; u goes back 6 steps"]
    assert sentences([found]) == ["6 non-finite: Loss nan (step 6)."]


def test_a_hold_after_an_intervention_or_an_undo_is_a_new_line() -> None:
    turn = turned(6, "1", "1.25", knob="lr")
    undone = Rewound(from_segment=0, from_step=6, to_segment=0, to_step=0, segment=1, step=0, what="lr")
    lines = sentences([*FAILED, turn, *FAILED, undone, *FAILED])
    assert lines.count(f"6 {NAN}") == 3
    assert lines.index("6 lr 1 → 1.25") == 2


def test_an_intervention_made_twice_is_shown_twice() -> None:
    kick = turned(6, "0", "0.01", knob="kick")
    assert sentences([kick, kick]) == ["6 kick 0 → 0.01"] * 2


def test_a_rate_has_at_most_four_digits() -> None:
    assert sentences([turned(9, "0.15625", "0.195312", knob="lr")]) == ["9 lr 0.1562 → 0.1953"]


async def test_e_leaves_out_evaluations_and_says_so_in_the_title() -> None:
    events: list[AnyEvent] = [started(), steps(0, [2.0] * 101), *evaluated(2.0, 1.9)]
    async with open_dashboard((80, 24), [*events, FOUND]) as dashboard:
        await dashboard.press("3")
        await dashboard.shows("all E", "held-out loss 2 → 1.9", "plateau: Loss stuck.")
        await dashboard.press("E")
        await dashboard.shows("changes, findings, errors E", "plateau: Loss stuck.")
        assert "held-out" not in dashboard.text()
        await dashboard.press("E")
        await dashboard.shows("all E", "held-out loss")
