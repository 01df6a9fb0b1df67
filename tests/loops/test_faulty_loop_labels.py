"""The loops with a known fault really have it, by plain measurements that know nothing of the diagnosis."""

from __future__ import annotations

from collections import Counter

import pytest
from faulty_loop_facts import TRUTHS, facts_of
from faulty_loops import LOOPS

# How many loops there are at least: of each fault of wiring and numerics, and of each problem of the dynamics.
FACTS, PROBLEMS, HEALTHY = 2, 3, 10
SEVERAL = {
    "vanishing", "exploding", "dead units", "saturated", "weights decaying", "plateau", "diverging", "rate too small",
    "rate too large", "converged",
}  # fmt: skip
EXPENSIVE = {
    "dcgan", "conv_net_with_a_new_head_after_the_optimizer", "gpt_with_warm_up",
    "gpt_whose_blocks_get_a_copied_embedding", "labels_that_are_random_for_a_wide_net",
}  # fmt: skip
CHEAP = [name for n, name in enumerate(LOOPS) if n % 12 == 0 and name not in EXPENSIVE]


def test_there_are_enough_loops_of_each_kind() -> None:
    loops = list(LOOPS.values())
    kinds = {finding: loop.kind for loop in loops for finding in loop.finds if loop.kind in ("wiring", "numerics")}
    found = Counter(finding for loop in loops for finding in loop.finds)
    assert len(loops) >= 64
    assert {finding for finding in kinds if found[finding] < FACTS} == set()
    assert {finding for finding in SEVERAL if found[finding] < PROBLEMS} == set()
    assert sum(loop.kind == "healthy" for loop in loops) >= HEALTHY
    assert {*found} == {*TRUTHS}


def check(name: str) -> None:
    loop = LOOPS[name]
    facts = facts_of(loop)
    true = {finding: TRUTHS[finding](facts) for finding in loop.finds}
    # Of a fault of the wiring all findings are true. Of the others one may be: an odd update can lead to either.
    assert all(true.values()) if loop.kind == "wiring" else any(true.values()), true


@pytest.mark.parametrize("name", CHEAP)
def test_loop_has_its_fault(name: str) -> None:
    check(name)


@pytest.mark.heavy
@pytest.mark.parametrize("name", [name for name in LOOPS if name not in CHEAP])
def test_further_loop_has_its_fault(name: str) -> None:
    check(name)
