"""Loops with one known fault each: it is named in time, nothing false is said, and the verdict does not flicker."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import pytest
from faulty_loop_runs import BETWEEN, Outcome, figures, run_loop
from faulty_loops import LOOPS

SHARE = 0.95  # of the loops must be named in time, and keep their verdict
EVERY = (1, 5, 20)
FACTS = [name for name, loop in LOOPS.items() if loop.kind in ("wiring", "numerics")]
# Each of these takes long, and the same is found of a smaller net, by which it is usually tested.
SLOW = {
    "adamw_with_a_decay_of_a_hundred", "conv_net_drawn_too_large", "conv_net_with_a_dead_second_layer",
    "conv_net_with_adam_at_a_ten_millionth", "dcgan", "deep_residual_net_that_starts_as_the_identity",
    "deep_sigmoid_conv_net", "few_images_learnt_by_heart", "gpt_built_again_after_the_optimizer",
    "gpt_on_random_tokens", "gpt_whose_blocks_get_a_copied_embedding", "gpt_with_a_rate_of_a_half",
    "gradient_accumulation", "one_cycle_on_digits", "relu_net_drawn_too_large_and_clipped",
    "lstm_whose_outputs_are_squeezed_and_whose_targets_are_not", "lstm_for_prices_of_thousands",
    "body_left_in_eval_mode_after_validation", "conv_net_clipped_to_next_to_nothing",
    "regression_with_nesterov_of_0_998", "momentum_of_0_99_at_a_small_rate", "conv_net_with_validation_in_between",
    "encoder_with_adam_at_a_tenth", "labels_that_are_random_for_a_wide_net", "conv_net_with_adam_at_three_tenths",
    "deep_tanh_net_with_small_weights", "conv_net_with_momentum_at_one", "first_updates_kill_the_units",
    "lstm_with_a_rate_of_a_millionth", "deep_tanh_net_drawn_far_too_large", "deep_sigmoid_mlp", "gpt_with_warm_up",
    "sigmoid_net_whose_biases_are_far_too_large", "adam_with_a_decay_of_one", "labels_that_are_random",
    "adam_with_a_decay_of_a_tenth_in_its_gradient", "fine_tuning_of_a_frozen_backbone", "wasserstein_gan",
}  # fmt: skip
USUAL = [name for name in LOOPS if name not in SLOW]
NUMERICS = [name for name, loop in LOOPS.items() if loop.kind == "numerics"]


@functools.cache
def outcome(name: str, every: int | None = None, under_exec: bool = False) -> Outcome:
    return run_loop(LOOPS[name], every=every, under_exec=under_exec)


def check_truth(one: Outcome) -> None:
    """Nothing false is said, and no advice would be refused or do harm."""
    assert [(said.step, said.finding, said.layer) for said in one.false] == []
    assert one.bad_advice == []


def check_shares(names: Iterable[str], of: Callable[[str], Outcome]) -> None:
    """Faults of wiring and numerics are named in time, and the verdict changes rarely."""
    all_of_them = [of(name) for name in names]
    facts = [one for one in all_of_them if one.loop.name in FACTS]
    report = figures(all_of_them)
    assert sum(one.named for one in facts) >= SHARE * len(facts), report
    assert sum(one.most_changes <= 1 for one in all_of_them) >= SHARE * len(all_of_them), (BETWEEN, report)


def check_dynamics(names: Iterable[str]) -> None:
    missed = [str(one) for name in names if (one := outcome(name)).loop.kind == "dynamics" and not one.named]
    # Measured: all but two. One has vanishing gradients too, of the other only the too large updates are named.
    assert len(missed) <= 2, missed


def test_every_finding_is_usually_tested() -> None:
    assert set(LOOPS) > SLOW
    assert {finding for name in USUAL for finding in LOOPS[name].finds} == {
        f for loop in LOOPS.values() for f in loop.finds
    }


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.heavy if n in SLOW else ()) for n in LOOPS])
def test_nothing_false_is_said(name: str) -> None:
    check_truth(outcome(name))


def test_faults_are_named_in_time_and_verdicts_are_steady() -> None:
    check_shares(USUAL, outcome)


@pytest.mark.heavy
def test_faults_of_all_loops_are_named_in_time_and_verdicts_are_steady() -> None:
    check_shares(LOOPS, outcome)


def test_problems_of_the_dynamics_are_found() -> None:
    check_dynamics(USUAL)


@pytest.mark.heavy
def test_problems_of_the_dynamics_of_all_loops_are_found() -> None:
    check_dynamics(LOOPS)


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
    check_shares(LOOPS, lambda name: outcome(name, every))


@pytest.mark.heavy
def test_last_verdict_does_not_depend_on_how_often_readings_are_taken() -> None:
    finals = {name: {outcome(name, every).final for every in EVERY} for name in LOOPS}
    differ = {name: found for name, found in finals.items() if len(found) > 1}
    assert len(differ) <= (1 - SHARE) * len(LOOPS), differ
