"""Commands during a range test, and adopting its suggestion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from range_test_runs import SHUFFLED, Run, setup_of

from tui_descent.protocol.commands import (
    AnyCommand,
    CancelRangeTest,
    Mark,
    MeasureBackwardPass,
    RunRangeTest,
    Stop,
    TurnKnob,
    WatchLens,
)
from tui_descent.protocol.events import (
    CommandDone,
    CommandRejected,
    KnobTurned,
    Marked,
    RangeTestCompleted,
    StateChanged,
)
from tui_descent.scenario.knobs import parse
from tui_descent.training.probes.range_test import STEPS
from tui_descent.training.stop_run import StopRun


def send_during(run: Run, when: str, *commands: AnyCommand) -> None:
    """Let these commands arrive when the test is at place `when`."""
    range_test = run.watch.control._handler._range_test
    assert range_test is not None
    before_pass, waiting = range_test._before_pass, [*commands]

    def before_pass_with_commands(place: str, carry_out: Any) -> None:
        while place == when and waiting:
            run.keeper.send(waiting.pop(0))
        before_pass(place, carry_out)

    range_test._before_pass = before_pass_with_commands  # type: ignore[method-assign]


def test_range_test_reports_progress_and_then_the_previous_state(start_run: Any) -> None:
    run = start_run(setup_of(SHUFFLED))
    run.go(4, {3: [RunRangeTest()]})
    states = run.keeper.events(StateChanged)
    testing = [n for n, e in enumerate(states) if e.state == "testing"]
    assert states[testing[0]].reason == f"batches 0/{STEPS}"
    assert states[testing[-1] + 1].state == "running"


def test_range_test_ends_when_its_last_client_cancels(start_run: Any) -> None:
    run = start_run(setup_of(SHUFFLED))
    send_during(run, "rates 12/100", CancelRangeTest())
    run.go(2)
    run.step(RunRangeTest())
    found = run.keeper.events()
    (rejected,) = [e for e in found if isinstance(e, CommandRejected)]
    assert rejected.reason == f"cancelled at rates 12/{STEPS}; nothing was changed"
    assert [e.what for e in found if isinstance(e, CommandDone)] == ["range test cancelled"]
    assert not [e for e in found if isinstance(e, RangeTestCompleted)]


def test_range_test_continues_for_another_waiting_client(start_run: Any) -> None:
    run = start_run(setup_of(SHUFFLED))
    run.go(2)
    send_during(run, "rates 5/100", RunRangeTest(), Mark(text="during the test"))
    number = run.keeper.send(RunRangeTest())
    run.go(3)
    found = run.keeper.events()
    done = [e for e in found if isinstance(e, CommandDone)]
    assert len([e for e in found if isinstance(e, RangeTestCompleted)]) == 1
    assert sorted(e.request for e in done) == [number, number + 1, number + 2]
    kinds = [type(e) for e in found if isinstance(e, Marked | RangeTestCompleted)]
    assert kinds == [Marked, RangeTestCompleted], "a mark does not wait for the test"


def test_opening_a_view_does_not_end_the_range_test(start_run: Any) -> None:
    run = start_run(setup_of(SHUFFLED))
    run.go(2)
    send_during(run, "rates 5/100", WatchLens(on=True), WatchLens(on=False), MeasureBackwardPass())
    run.step(RunRangeTest())
    found = run.keeper.events()
    assert len([e for e in found if isinstance(e, RangeTestCompleted)]) == 1
    assert len([e for e in found if isinstance(e, CommandDone)]) == 3
    (rejected,) = [e for e in found if isinstance(e, CommandRejected)]
    assert rejected.reason == "the backward pass is not measured during a range test"


def test_intervention_ends_the_range_test_and_acts_on_the_state_before_it(start_run: Any) -> None:
    run, other = start_run(setup_of(SHUFFLED)), start_run(setup_of(SHUFFLED))
    turn = parse("lr=*2")
    torch.manual_seed(1)
    expected = other.go(30, {10: [turn]})
    send_during(run, "rates 40/100", turn)
    torch.manual_seed(1)
    assert run.go(30, {10: [RunRangeTest()]}) == expected
    found = run.keeper.events()
    (rejected,) = [e for e in found if isinstance(e, CommandRejected)]
    assert rejected.reason == f"cancelled by lr at rates 40/{STEPS}; nothing was changed"
    (turned,) = [e for e in found if isinstance(e, KnobTurned)]
    assert (turned.step, turned.old, turned.new) == (10, "0.00186603", "0.00373205")


def test_stop_ends_a_range_test(start_run: Any) -> None:
    run = start_run(setup_of(SHUFFLED))
    run.go(4)
    send_during(run, "rates 3/100", Stop())
    with pytest.raises(StopRun):
        run.step(RunRangeTest())
    (rejected,) = run.keeper.events(CommandRejected)
    assert rejected.reason == f"cancelled by stop at rates 3/{STEPS}; nothing was changed"
    assert run.watch.next_step == 5


def test_command_sent_together_with_a_range_test_ends_it(start_run: Any) -> None:
    run = start_run(setup_of(SHUFFLED))
    run.go(4)
    with pytest.raises(StopRun):
        run.step(RunRangeTest(), Stop())
    assert [e.reason for e in run.keeper.events(CommandRejected)] == [
        f"cancelled by stop at batches 0/{STEPS}; nothing was changed"
    ]


def test_cancel_without_a_range_test_is_no_error(start_run: Any) -> None:
    run = start_run(setup_of(SHUFFLED))
    run.go(2, {1: [CancelRangeTest()]})
    assert [e.what for e in run.keeper.events(CommandDone)] == ["no range test is running"]


def test_suggestion_is_adopted_by_an_ordinary_intervention(start_run: Any) -> None:
    run = start_run(setup_of(SHUFFLED))
    run.go(3, {2: [RunRangeTest()]})
    (found,) = run.keeper.events(RangeTestCompleted)
    run.go(5, {4: [TurnKnob(knob="lr", value=f"{found.suggestion:.3g}")]})
    (turned,) = run.keeper.events(KnobTurned)
    assert float(turned.new) == pytest.approx(found.suggestion, rel=1e-2)
