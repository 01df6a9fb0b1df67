"""Loops with one known fault each: it is named in time, nothing false is said, and the verdict does not flicker."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from faulty_loop_runs import BETWEEN, Outcome, figures, run_loop
from faulty_loops import LOOPS

SHARE = 0.95  # of the loops must be named in time, and keep their verdict
EVERY = (1, 5, 20)
FACTS = [name for name, loop in LOOPS.items() if loop.kind in ("wiring", "numerics")]
JUDGED = [name for name in LOOPS if name not in FACTS]
NUMERICS = [name for name, loop in LOOPS.items() if loop.kind == "numerics"]


@functools.cache
def outcome(name: str, every: int | None = None, under_exec: bool = False) -> Outcome:
    return run_loop(LOOPS[name], every=every, under_exec=under_exec)


def check_truth(one: Outcome) -> None:
    """Nothing false is said, and no advice would be refused or do harm."""
    assert [(said.step, said.finding, said.layer) for said in one.false] == []
    assert one.bad_advice == []


def check_shares(of: Callable[[str], Outcome]) -> None:
    """Faults of wiring and numerics are named in time, and the verdict changes rarely."""
    facts, all_of_them = [of(name) for name in FACTS], [of(name) for name in LOOPS]
    report = figures(all_of_them)
    assert sum(one.named for one in facts) >= SHARE * len(facts), report
    assert sum(one.most_changes <= 1 for one in all_of_them) >= SHARE * len(all_of_them), (BETWEEN, report)


@pytest.mark.parametrize("name", LOOPS)
def test_nothing_false_is_said(name: str) -> None:
    check_truth(outcome(name))


def test_faults_are_named_in_time_and_verdicts_are_steady() -> None:
    check_shares(outcome)


def test_problems_of_the_dynamics_are_found() -> None:
    sick = [one for name in JUDGED if (one := outcome(name)).loop.kind == "dynamics"]
    # Measured: all but two. One has vanishing gradients too, of the other only the too large updates are named.
    assert sum(one.named for one in sick) >= 0.93 * len(sick), [str(one) for one in sick if not one.named]


@pytest.mark.parametrize("name", NUMERICS)
def test_nothing_false_is_said_of_a_run_that_ends_at_the_fault(name: str) -> None:
    one = outcome(name, under_exec=True)
    check_truth(one)
    assert one.named


@pytest.mark.heavy
@pytest.mark.parametrize("every", EVERY)
def test_readings_at_fixed_steps_lead_to_the_truth_too(every: int) -> None:
    found = [outcome(name, every) for name in LOOPS]
    assert [str(one) for one in found if one.false or one.bad_advice] == []
    check_shares(lambda name: outcome(name, every))


@pytest.mark.heavy
def test_last_verdict_does_not_depend_on_how_often_readings_are_taken() -> None:
    finals = {name: {outcome(name, every).final for every in EVERY} for name in LOOPS}
    differ = {name: found for name, found in finals.items() if len(found) > 1}
    assert len(differ) <= (1 - SHARE) * len(LOOPS), differ
