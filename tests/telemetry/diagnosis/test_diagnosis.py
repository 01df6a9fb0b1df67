"""The diagnosis: what it says and when, what it advises, what it predicts."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any, get_args

import msgspec
import pytest
from diagnosis_nets import Observed
from diagnosis_score import ALL, diagnosis_of, feed, finding_of, preset
from factories import reading_of

from tui_descent.protocol.events import KnobState, Layer, NotFinite, ReadingsTaken, WiringFound
from tui_descent.scenario import knobs
from tui_descent.telemetry.diagnosis import MIN_STEPS, Advice, Diagnosis, Outcome, RunContext, is_advised, sentence
from tui_descent.telemetry.diagnosis.advice import advice_for
from tui_descent.telemetry.diagnosis.diagnosis import CHANGE_EVERY, CHECK_EVERY, FINITE_AGAIN, FIRM, FIRM_STEPS, HOLD
from tui_descent.telemetry.diagnosis.features import LONG_WINDOW, WINDOW, expected_loss
from tui_descent.telemetry.diagnosis.findings import Name

AVAILABLE = frozenset(knobs.KNOBS)
FIRMLY = FIRM_STEPS + FIRM * CHECK_EVERY  # steps after which a judgement that is not certain is said


# --- what it says and when


def test_clipping_is_blamed_only_where_sgd_does_not_get_on() -> None:
    cut = WiringFound(segment=0, step=4, fault="gradients cut", evidence={"left": 1e-4})
    for optimizer, loss, said in (("sgd", 2.3, True), ("adam", 2.3, False), ("sgd", 0.1, False)):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer=optimizer, user_loop=True))
        diagnosis.add_wiring(cut)
        assert name_of(diagnosis) is None
        run_at(diagnosis, range(FIRMLY), loss=loss)
        assert (name_of(diagnosis) == "gradients cut") == said, (optimizer, loss)


def test_momentum_is_blamed_only_while_its_average_is_long_and_the_loss_does_not_fall() -> None:
    for values, loss, said in (
        ({"momentum": "0.999"}, 2.3, True),
        ({"betas": "0.999/0.999"}, 2.3, True),
        ({"momentum": "0.9"}, 2.3, False),
        ({"momentum": "0.99"}, 2.3, True),
        ({"momentum": "mixed"}, 2.3, False),
        ({"momentum": "0.999"}, 0.1, False),
    ):
        context = RunContext(classes=10, values=values, user_loop=True)
        diagnosis = Diagnosis(LAYERS, knobs=AVAILABLE, context=context)
        run_at(diagnosis, range(FIRMLY), loss=loss)
        assert (name_of(diagnosis) == "large momentum") == said, (values, loss)
        if said:
            finding = diagnosis.finding()
            assert finding is not None
            assert finding.advice == (
                Advice("momentum", "0.9", "o") if "momentum" in values else Advice("betas", "0.9/0.999", "o"),
            )


def test_nothing_is_found_in_the_first_steps_or_without_a_reading() -> None:
    scenario = preset("vanishing")
    seen = Observed(scenario).run(WINDOW, every=1)
    diagnosis = diagnosis_of(scenario, seen)
    for step in range(WINDOW):
        feed(diagnosis, seen, [step])
        assert (diagnosis.finding() is not None) == (step + 1 >= MIN_STEPS), step
    blind = diagnosis_of(scenario, seen)
    for step in range(WINDOW):
        blind.add_loss(step, seen.losses[step])
    assert blind.finding() is None


def test_vanishing_preset_is_found_with_its_evidence_and_key() -> None:
    scenario = preset("vanishing")
    seen = Observed(scenario).run(WINDOW, every=10)
    finding = finding_of(scenario, seen, knobs=AVAILABLE)
    assert finding is not None
    assert finding.layer == "blocks.0.linear"
    # Measured with each: accuracy .97, .96 and .49 after 310 more steps.
    cures = ("residual", "on", "r"), ("norm", "layer,way=instant", "n"), ("activation", "relu", "a")
    assert finding.advice == tuple(Advice(*cure) for cure in cures)
    reading = seen.readings[50]
    rms = dict(zip((layer.name for layer in seen.layers), reading.values["grad_rms"], strict=True))
    ratio = (rms["blocks.0.linear"] or 0.0) / (rms["blocks.19.linear"] or 1.0)
    assert finding.evidence["first_to_last_grad"] == ratio
    assert sentence(finding) == f"blocks.0 gets {ratio:.0e} of blocks.19's gradient. Press r: residual on."
    assert finding.sure > 0.9


def test_sentence_shows_the_product_if_the_first_gradient_is_not_small() -> None:
    """With large inputs the weight gradient of the first block is large, too."""
    for rms, words in (([0.0045, 0.01], "shrinks the gradient to 1.0e-04"), ([4.5e-6, 0.01], "gets 4e-04 of")):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10))
        run_at(diagnosis, range(60), loss=2.3, backprop_factor=[1e-2, 1e-2], grad_rms=list(rms))
        finding = diagnosis.finding()
        assert finding is not None
        assert finding.finding == "vanishing"
        assert words in sentence(finding)


def test_script_whose_gradients_explode_is_told_what_to_change() -> None:
    diagnosis = Diagnosis(LAYERS, knobs={"lr", "residual"}, context=RunContext(classes=10, user_loop=True))
    run_at(diagnosis, range(120), loss=5000.0, backprop_factor=[30.0, 40.0])
    finding = diagnosis.finding()
    assert finding is not None
    assert finding.finding == "exploding"
    assert sentence(finding) == "Gradient grows ×1200: draw smaller weights or add norms."
    assert len(f" {finding.finding}  {sentence(finding)}") <= 80


def test_only_available_knobs_are_advised() -> None:
    scenario = preset("plateau")
    seen = Observed(scenario).run(FIRMLY, every=10)
    for allowed in (ALL, AVAILABLE, {"lr"}, {"optimizer"}, set[str]()):
        finding = finding_of(scenario, seen, knobs=allowed)
        assert finding is not None
        assert {a.knob for a in finding.advice} <= set(allowed)
        assert sentence(finding).endswith(".")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_loss_is_found_at_once(bad: float) -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL)
    diagnosis.add_loss(0, 2.3)
    assert diagnosis.finding() is None
    diagnosis.add_loss(1, bad)
    diagnosis.add_loss(2, 1.0)
    finding = diagnosis.finding()
    assert finding is not None
    assert finding.kind == "numerics"
    assert finding.evidence["step"] == 1.0


def test_held_run_is_advised_to_go_back_only_if_something_can_be_undone() -> None:
    for knobs_of_run, advised in ((ALL, ["undo", "lr"]), (AVAILABLE, [])):
        diagnosis = Diagnosis(LAYERS, knobs=knobs_of_run)
        diagnosis.add_loss(0, 2.3)
        diagnosis.add_loss(1, 40.0)
        diagnosis.add_not_finite(not_finite(2, weights_finite=False))
        finding = diagnosis.finding()
        assert finding is not None
        assert finding.finding == "diverged"
        assert [a.knob for a in finding.advice] == advised, "no knob helps weights that are NaN"


def test_nan_after_an_update_larger_than_the_weights_is_divergence() -> None:
    for ratio, step, said in ((2.0, 1, "diverged"), (0.5, 1, "non-finite"), (2.0, 3, "non-finite")):
        diagnosis = Diagnosis(LAYERS, knobs=ALL)
        run_at(diagnosis, range(step), loss=2.3, update_ratio=[ratio, ratio])
        diagnosis.add_not_finite(not_finite(step))
        assert name_of(diagnosis) == said, (ratio, step)


def test_non_finite_numbers_are_over_after_some_finite_losses() -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
    diagnosis.add_loss(0, math.nan)
    for step in range(1, FINITE_AGAIN):
        diagnosis.add_loss(step, 2.3)
        assert diagnosis.finding() is not None
    diagnosis.add_loss(FINITE_AGAIN, 2.3)
    assert diagnosis.finding() is None


def test_constant_output_is_not_said_where_the_gradient_explains_it() -> None:
    fact = WiringFound(segment=0, step=16, fault="constant output", evidence={"samples": 64.0})
    weights: dict[str, list[float | None]] = {"weight_norm": [0.0, 0.0], "backprop_factor": [0.0, 0.0]}
    vanished: dict[str, list[float | None]] = {"backprop_factor": [1e-2, 1e-2]}
    dead: dict[str, list[float | None]] = {"dead_fraction": [1.0, 0.1]}
    for values, said in ((vanished, None), (dead, None), (weights, "constant output"), ({}, "constant output")):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd", user_loop=True))
        run_at(diagnosis, range(17), loss=2.3, **values)
        diagnosis.add_wiring(fact)
        assert name_of(diagnosis) == said, values


def test_constant_output_of_a_scenario_waits_until_the_gradients_can_be_judged() -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
    run_at(diagnosis, range(17), loss=2.3)
    diagnosis.add_wiring(WiringFound(segment=0, step=16, fault="constant output", evidence={"samples": 64.0}))
    assert name_of(diagnosis) is None
    run_at(diagnosis, range(17, MIN_STEPS), loss=2.3)
    assert name_of(diagnosis) == "constant output"


def test_the_fact_that_explains_more_is_said_first() -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(user_loop=True))
    evidence: dict[str, float | str] = {"rms": 300.0, "updates": 10.0, "layers": 2.0, "of": 2.0}
    for fault in ("input scale", "rate zero"):
        diagnosis.add_wiring(WiringFound(segment=0, step=3, fault=fault, evidence=evidence))
    assert name_of(diagnosis) == "rate zero"


def test_a_question_gives_way_to_a_run_that_trains_and_a_proof_does_not() -> None:
    for question, said in ((1.0, "healthy"), (0.0, "softmax twice")):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, user_loop=True))
        evidence: dict[str, float | str] = {"gets": "softmax", "takes": "cross_entropy", "question": question}
        diagnosis.add_wiring(WiringFound(segment=0, step=0, fault="softmax twice", evidence=evidence))
        assert name_of(diagnosis) == "softmax twice"
        for step in range(MIN_STEPS):
            run_at(diagnosis, range(step, step + 1), loss=2.3 * 0.97**step)
        assert name_of(diagnosis) == said


def test_weights_whose_gradient_is_exactly_0_are_named_where_nothing_else_was_measured() -> None:
    """A net that calls its activations as functions: behind a dead layer only the biases get a gradient."""
    zeros: dict[str, list[float | None]] = {"grad_norm": [0.0, 0.0], "backprop_factor": [None, None]}
    plain = tuple(Layer(name=f"fc{n}", kind="Linear", params=272) for n in range(2))
    for context in (RunContext(user_loop=True), RunContext(user_loop=True, loss_means_fit=False)):
        diagnosis = Diagnosis(plain, knobs=ALL, context=context)
        run_at(diagnosis, range(MIN_STEPS), loss=0.9, **zeros)
        finding = diagnosis.finding()
        assert finding is not None
        assert finding.finding == "dead units"
        assert sentence(finding).startswith("No weight gets a gradient, only biases do.")
    at_zero = Diagnosis(plain, knobs=ALL, context=RunContext(user_loop=True))
    run_at(at_zero, range(MIN_STEPS), loss=0.9, **(zeros | {"weight_norm": [0.0, 1.0]}))
    assert name_of(at_zero) is None, "a weight that is 0 passes nothing on"


def test_loss_of_unknown_scale_is_not_healthy_while_the_gradient_grows() -> None:
    for product, said in ((100.0, "exploding"), (1.0, "healthy")):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(user_loop=True))
        for step in range(FIRMLY):
            run_at(diagnosis, range(step, step + 1), loss=1e8 * 0.99**step, backprop_factor=[product, product])
        assert name_of(diagnosis) == said, product


def test_loss_that_changes_its_sign_is_given_without_a_percentage() -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(user_loop=True, loss_means_fit=False))
    for step in range(LONG_WINDOW + FIRMLY):
        run_at(diagnosis, range(step, step + 1), loss=0.5 - 0.01 * step)
    finding = diagnosis.finding()
    assert finding is not None
    assert sentence(finding).startswith("Loss from 0.49 to -")


def test_undo_is_advised_only_while_an_intervention_is_in_effect() -> None:
    for turned, advised in ((False, ["lr"]), (True, ["undo", "lr"])):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
        diagnosis.undoable = turned
        run_at(diagnosis, range(3), loss=2.3)
        run_at(diagnosis, range(3, FIRMLY), loss=40.0)
        finding = diagnosis.finding()
        assert finding is not None
        assert finding.finding == "diverging"
        assert [a.knob for a in finding.advice] == advised


def not_finite(step: int, **values: Any) -> NotFinite:
    known = {"segment": 0, "what": "loss", "layer": None, "text": "", "value": "nan", "then": "hold"}
    return NotFinite(step=step, **(known | values))


def test_outcome_of_an_intervention_that_helps_is_healthy() -> None:
    scenario = preset("vanishing")
    observed = Observed(scenario)
    observed.run(60, every=5)
    diagnosis = diagnosis_of(scenario, observed.seen)
    feed(diagnosis, observed.seen, range(60))
    assert diagnosis.outcome is None
    observed.turn_residual_on()
    diagnosis.turn_knob(60, "residual", "on")
    assert diagnosis.finding() is None, "a new window starts"
    assert diagnosis.context.residual
    observed.run(60, every=5)
    for step in range(60, 120):
        assert diagnosis.outcome is None or step >= 60 + MIN_STEPS
        feed(diagnosis, observed.seen, [step])
    assert diagnosis.outcome == Outcome(predicted="healthy", happened="healthy", held=True, before="vanishing")
    finding = diagnosis.finding()
    assert finding is not None
    assert finding.finding == "healthy"


def test_a_change_that_cannot_help_is_no_prediction_that_came_true() -> None:
    """Ten times the learning rate does nothing for vanishing gradients. No message has predicted that."""
    scenario = preset("vanishing")
    observed = Observed(scenario)
    observed.run(60, every=5)
    diagnosis = diagnosis_of(scenario, observed.seen)
    feed(diagnosis, observed.seen, range(60))
    for group in observed.setup.optimizer.param_groups:
        group["lr"] *= 10
    diagnosis.turn_knob(60, "lr", "*10")
    observed.run(60, every=5)
    feed(diagnosis, observed.seen, range(60, 120))
    assert diagnosis.outcome is None


def test_prediction_can_fail() -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
    run_at(diagnosis, range(FIRMLY), loss=2.3)
    finding = diagnosis.finding()
    assert finding is not None
    assert finding.finding == "plateau"
    diagnosis.turn_knob(FIRMLY, finding.advice[0].knob, finding.advice[0].value)
    run_at(diagnosis, range(FIRMLY, FIRMLY + LONG_WINDOW - 1), loss=2.3)
    assert diagnosis.outcome is None, "what was not predicted needs more evidence"
    run_at(diagnosis, range(FIRMLY + LONG_WINDOW - 1, FIRMLY + LONG_WINDOW), loss=2.3)
    assert diagnosis.outcome == Outcome(predicted="healthy", happened="plateau", held=False, before="plateau")
    diagnosis.turn_knob(400)
    run_at(diagnosis, range(400, 400 + LONG_WINDOW), loss=2.3)
    assert diagnosis.outcome is None, "there is no prediction without a knob"


def test_after_advice_that_has_not_helped_the_next_one_follows() -> None:
    """Deep sigmoid layers whose gradient stays lost with residual connections."""
    context = RunContext(classes=10, optimizer="sgd", activation="sigmoid", user_loop=True)
    vanished: dict[str, list[float | None]] = {"backprop_factor": [1e-3, 1e-3]}
    diagnosis = Diagnosis(LAYERS, knobs=ALL - {"norm"}, context=context)
    run_at(diagnosis, range(60), loss=2.3, **vanished)
    advised = []
    for step in (60, 120, 180):
        finding = diagnosis.finding()
        assert finding is not None
        assert finding.finding == "vanishing"
        assert ("has not helped" in sentence(finding)) == (step > 60)
        advised += [a.knob for a in finding.advice[:1]]
        if finding.advice:
            diagnosis.turn_knob(step, finding.advice[0].knob, finding.advice[0].value)
        run_at(diagnosis, range(step, step + 60), loss=2.3, **vanished)
    assert advised == ["residual", "activation"], "and then nothing is left"
    assert sentence(finding) == "a has not helped; loss 2.3."


@pytest.mark.parametrize(("gradual", "name"), [(50, "vanishing"), (0, "not clear")])
def test_losses_of_a_gradual_change_are_not_those_of_the_changed_net(gradual: int, name: str) -> None:
    """While a sigmoid is blended in, the loss is still low. Afterwards the gradient vanishes."""
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
    run_at(diagnosis, range(60), loss=0.05, backprop_factor=[1.0, 1.0])
    diagnosis.turn_knob(60, "activation", "sigmoid", gradual=gradual)
    run_at(diagnosis, range(60, 90), loss=0.05, backprop_factor=[0.1, 0.1])
    run_at(diagnosis, range(90, 300), loss=2.3, backprop_factor=[1e-3, 1e-3])
    assert name_of(diagnosis) == name


def test_a_knob_that_was_not_advised_is_not_said_to_have_failed() -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
    vanished: dict[str, list[float | None]] = {"backprop_factor": [1e-3, 1e-3]}
    run_at(diagnosis, range(60), loss=2.3, **vanished)
    diagnosis.turn_knob(60, "dropout", "0.1")
    run_at(diagnosis, range(60, 120), loss=2.3, **vanished)
    finding = diagnosis.finding()
    assert finding is not None
    assert [a.knob for a in finding.advice[:1]] == ["residual"]
    assert "has not helped" not in sentence(finding)


def test_constant_output_from_before_a_change_waits_for_new_readings() -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd", user_loop=True))
    run_at(diagnosis, range(17), loss=2.3)
    diagnosis.add_wiring(WiringFound(segment=0, step=16, fault="constant output", evidence={"samples": 64.0}))
    assert name_of(diagnosis) == "constant output"
    diagnosis.turn_knob(17, "residual", "on")
    assert name_of(diagnosis) is None


# --- rates that are too large, weight decay, saturated units


@pytest.mark.parametrize(
    ("ratio", "symptom", "name"),
    [
        (3.7, {"dead_fraction": [1.0, 0.1]}, "rate too large"),
        (3.7, {"backprop_factor": [1e-3, 1e-3]}, "rate too large"),
        (3.7, {"backprop_factor": [0.0, None]}, "rate too large"),
        (3.7, {}, "rate too large"),
        (0.1, {}, "plateau"),  # Adam in a wide net
        (0.002, {"dead_fraction": [1.0, 0.1]}, "dead units"),
        (0.002, {"backprop_factor": [1e-3, 1e-3]}, "vanishing"),
    ],
)
def test_what_follows_from_far_too_large_updates_is_not_the_finding(
    ratio: float, symptom: dict[str, list[float | None]], name: str
) -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="adam", activation="relu"))
    diagnosis.add_reading(reading(0, update_ratio=[ratio, ratio], dead_fraction=[0.0, 0.0]))
    run_at(diagnosis, range(1, FIRMLY), loss=2.3, **symptom)
    assert name_of(diagnosis) == name


def test_units_that_were_dead_before_the_first_update_are_not_blamed_on_the_rate() -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="adam", activation="relu"))
    diagnosis.add_reading(reading(0, update_ratio=[3.7, 3.7], dead_fraction=[1.0, 0.0]))
    run_at(diagnosis, range(1, FIRMLY), loss=2.3, dead_fraction=[1.0, 0.0])
    assert name_of(diagnosis) == "dead units"


def test_loss_that_large_updates_have_raised_above_its_best_is_blamed_on_the_rate() -> None:
    for end, name in ((1.9, "rate too large"), (1.3, "not clear")):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="adam"))
        diagnosis.add_reading(reading(0, update_ratio=[0.2, 0.2]))
        for n in range(1, LONG_WINDOW + CHANGE_EVERY + HOLD + FIRMLY):
            loss = 2.3 - 1.1 * min(1.0, n / 100) + (end - 1.2) * min(1.0, max(0.0, n / 20 - 8))
            run_at(diagnosis, range(n, n + 1), loss=loss)
        assert name_of(diagnosis) == name, end
        finding = diagnosis.finding()
        assert finding is not None
        if name == "rate too large":
            assert sentence(finding).startswith("Loss 1.9, best 1.2; updates of 20%.")


def test_weights_of_a_script_that_are_spoilt_need_a_new_start() -> None:
    """A smaller rate alone repairs nothing. With an intervention in effect, undo does."""
    for user_loop, turned, advised in ((True, False, []), (True, True, ["undo", "lr"]), (False, False, ["lr", "init"])):
        context = RunContext(classes=10, optimizer="adam", activation="relu", user_loop=user_loop)
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=context)
        diagnosis.undoable = turned
        diagnosis.add_reading(reading(0, update_ratio=[3.7, 3.7]))
        run_at(diagnosis, range(1, FIRMLY), loss=2.3, dead_fraction=[1.0, 0.1])
        finding = diagnosis.finding()
        assert finding is not None
        assert finding.finding == "rate too large"
        assert [a.knob for a in finding.advice] == advised
        assert ("start again" in sentence(finding)) == (not advised)


@pytest.mark.parametrize(
    ("optimizer", "decay", "rate", "name"),
    [
        ("sgd", 0.05, 0.5, "weights decaying"),  # 0.05 · 4 outweighs a gradient of 0.1
        ("sgd", 0.05, 1e-4, "not clear"),  # but has not acted for long enough
        ("sgd", 5e-4, 0.5, "not clear"),
        ("adamw", 1.0, 0.01, "weights decaying"),  # 0.01 · 1 · 4 against updates of 0.01
        ("adamw", 0.01, 0.01, "not clear"),
        ("adam", 1.0, 0.01, "not clear"),  # the weights have not shrunk
    ],
)
def test_decay_that_outweighs_the_gradient_is_named(optimizer: str, decay: float, rate: float, name: str) -> None:
    """The loss is level half way down, and so are the norms of the weights."""
    context = RunContext(classes=10, optimizer=optimizer, values={"weight_decay": f"{decay:g}"})
    diagnosis = Diagnosis(LAYERS, knobs=ALL | {"weight_decay"}, context=context)
    for step in range(LONG_WINDOW + 2 * CHECK_EVERY):
        diagnosis.add_loss(step, 1.3, rate=rate)
        if step % 10 == 0:
            diagnosis.add_reading(reading(step))
    finding = diagnosis.finding()
    assert finding is not None
    assert finding.finding == name
    assert [a.knob for a in finding.advice] == (["weight_decay"] if name == "weights decaying" else [])


def test_units_saturated_from_the_start_come_before_what_follows_from_them() -> None:
    context = RunContext(classes=10, optimizer="sgd", activation="tanh", user_loop=True)
    for factors in ([1e-3, 1e-3], [0.0, None], [30.0, 30.0]):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=context)
        run_at(diagnosis, range(FIRMLY), loss=20.0, backprop_factor=factors, saturated_fraction=[0.95, 0.9])
        assert name_of(diagnosis) == "saturated", factors


def test_saturated_units_with_far_too_small_updates_need_a_larger_rate_first() -> None:
    context = RunContext(classes=10, optimizer="adam", activation="tanh")
    for ratio, name in ((0.0025, "saturated"), (3e-6, "rate too small")):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=context)
        run_at(diagnosis, range(FIRMLY), loss=2.3, update_ratio=[ratio, ratio], saturated_fraction=[0.9, 0.9])
        assert name_of(diagnosis) == name


def test_small_steps_of_adam_are_blamed_on_the_rate_only_if_they_began_small() -> None:
    """With a gradient that has vanished; Adam's first step is as large as its rate, whatever the gradient."""
    context = RunContext(classes=10, optimizer="adam")
    for first, name in ((0.002, "vanishing"), (1e-4, "rate too small")):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=context)
        diagnosis.add_reading(reading(0, update_ratio=[first, first], backprop_factor=[1e-3, 1.0]))
        run_at(diagnosis, range(1, FIRMLY), loss=2.3, update_ratio=[1e-4, 1e-4], backprop_factor=[1e-3, 1.0])
        assert name_of(diagnosis) == name, first


def test_rate_that_a_schedule_made_tiny_is_not_to_be_multiplied() -> None:
    for user_loop, knob in ((True, []), (False, ["schedule"])):
        context = RunContext(classes=10, optimizer="sgd", user_loop=user_loop)
        knobs_of_run = {"lr"} if user_loop else {"lr", "schedule"}
        diagnosis = Diagnosis(LAYERS, knobs=knobs_of_run, context=context)
        for step in range(FIRMLY):
            diagnosis.add_loss(step, 2.3, rate=0.1 * 0.5**step)
            if step % 10 == 0:
                diagnosis.add_reading(reading(step, update_norm=[1e-9, 1e-9], update_ratio=[1e-9, 1e-9]))
        finding = diagnosis.finding()
        assert finding is not None
        assert finding.finding == "rate too small"
        assert [a.knob for a in finding.advice] == knob
        assert "schedule" in sentence(finding).lower()


def test_readings_from_before_an_intervention_are_ignored() -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
    diagnosis.turn_knob(100)
    for step in range(90, 100):
        diagnosis.add_reading(reading(step))
    for step in range(100, 100 + FIRMLY):
        diagnosis.add_loss(step, 2.3)
    assert diagnosis.finding() is None
    for step in range(100, 105):
        diagnosis.add_reading(reading(step))
    for step in range(100 + FIRMLY, 100 + 2 * FIRMLY):
        diagnosis.add_loss(step, 2.3)
    assert diagnosis.finding() is not None


def test_saddle_is_only_found_with_its_curvature() -> None:
    for lambda_min, name in ((0.0, "plateau"), (-0.5, "saddle")):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
        run_at(diagnosis, range(FIRMLY), loss=2.3)
        assert name_of(diagnosis) == "plateau"
        diagnosis.add_curvature(3.0, lambda_min)
        assert name_of(diagnosis) == name, "the first curvature, which somebody asked for, counts at once"
    again = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
    run_at(again, range(FIRMLY), loss=2.3)
    again.add_curvature(3.0, 0.0)
    again.add_curvature(3.0, -0.5)
    assert name_of(again) == "plateau"
    run_at(again, range(FIRMLY, FIRMLY + CHANGE_EVERY + HOLD + CHECK_EVERY), loss=2.3)
    assert name_of(again) == "saddle"


def test_rate_at_the_edge_is_found_only_where_the_curvature_was_read() -> None:
    for cosine in (None, -0.98):
        sharp = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
        for n in range(FIRMLY):
            run_at(sharp, range(n, n + 1), loss=2.3 * 0.99**n, cosine=cosine)
        assert name_of(sharp) == "healthy"
        sharp.add_curvature(4.99, 0.0, edge=0.998)
        finding = sharp.finding()
        assert finding is not None
        assert finding.finding == "rate at the edge"
        assert finding.advice == (), "the loss falls: nothing has to be done"
        assert "λmax is 100% of the stability limit" in sentence(finding)
        at_edge = 2.3 * 0.99**FIRMLY
        run_at(sharp, range(FIRMLY, FIRMLY + 150), loss=at_edge / 2, cosine=cosine)
        assert name_of(sharp) == "rate at the edge", "not far from where the curvature was measured"
        for n in range(200):
            run_at(sharp, range(FIRMLY + 150 + n, FIRMLY + 151 + n), loss=at_edge / 20 * 0.99**n, cosine=cosine)
        assert name_of(sharp) in ("healthy", "converged"), "the old curvature says nothing about the place where it is"


@pytest.mark.parametrize(
    ("values", "context", "name", "layer"),
    [
        ({"dead_fraction": [1.0, 0.1]}, RunContext(classes=10, activation="relu"), "dead units", "blocks.0.linear"),
        ({"saturated_fraction": [0.2, 0.9]}, RunContext(classes=10, activation="tanh"), "saturated", "blocks.1.linear"),
        ({"backprop_factor": [1e-2, 1e-2]}, RunContext(classes=10), "vanishing", "blocks.0.linear"),
        ({"backprop_factor": [0.0, None]}, RunContext(classes=10), "dead units", None),
        ({"update_norm": [1e-5, 1e-5]}, RunContext(classes=10, optimizer="sgd"), "rate too small", None),
    ],
)
def test_each_cause_of_a_stuck_loss_is_found(
    values: dict[str, list[float | None]], context: RunContext, name: str, layer: str | None
) -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=context)
    run_at(diagnosis, range(FIRMLY), loss=2.3, **values)
    assert name_of(diagnosis) == name
    finding = diagnosis.finding()
    assert finding is not None
    assert finding.layer == layer
    assert "  " not in sentence(finding)


@pytest.mark.parametrize(
    ("loss", "factors", "knob"), [(1e6, [30.0, 30.0], "norm"), (2.3, [30.0, 30.0], "lr"), (1e6, [1.0, 1.0], "lr")]
)
def test_after_divergence_by_large_weights_a_norm_is_advised_not_another_rate(
    loss: float, factors: list[float | None], knob: str
) -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd", norm=False))
    diagnosis.add_reading(reading(0, backprop_factor=factors))
    diagnosis.add_loss(0, loss)
    diagnosis.add_loss(1, 3 * loss)
    diagnosis.add_not_finite(not_finite(2))
    finding = diagnosis.finding()
    assert finding is not None
    assert [a.knob for a in finding.advice][:2] == ["undo", knob]


def test_net_with_an_embedding_is_not_advised_to_reinitialise() -> None:
    """Measured on the transformer preset: `init=he` at step 150 takes the loss from 3.3 to 8.65."""
    small: dict[str, list[float | None]] = {"backprop_factor": [1e-2, 1e-2], "weight_norm": [0.1, 0.1]}
    for embedding in (False, True):
        first = Layer(name="embedding", kind="Embedding", params=96) if embedding else LAYERS[0]
        diagnosis = Diagnosis([first, *LAYERS], knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
        run_at(diagnosis, range(60), loss=2.3, **{name: [None, *values] for name, values in small.items()})
        finding = diagnosis.finding()
        assert finding is not None
        assert finding.finding == "vanishing"
        assert ("init" in {a.knob for a in finding.advice}) == (not embedding)


def test_loss_half_way_down_is_judged_by_its_expected_value() -> None:
    """The same loss now; two windows ago it was different."""
    for before, name in ((1.61, "plateau"), (2.3, "healthy")):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
        for n in range(LONG_WINDOW + 2 * CHECK_EVERY):
            run_at(diagnosis, range(n, n + 1), loss=before + (1.6 - before) * n / LONG_WINDOW + 0.02 * (-1) ** n)
        assert name_of(diagnosis) == name, before


def test_steadily_falling_loss_is_healthy_if_nothing_else_is_wrong() -> None:
    """A fall by a tenth of a guess over three windows, far above the loss of a trained net."""
    saturated: dict[str, list[float | None]] = {"saturated_fraction": [0.2, 0.9]}
    short: dict[str, list[float | None]] = {"update_norm": [1e-5, 1e-5]}
    for begins, fall, noise, values, name in (
        (2.1, 0.25, 0.02, {}, "healthy"),
        (2.1, 0.1, 0.02, {}, "plateau"),
        (1.9, 0.25, 0.35, {}, "plateau"),
        (2.1, 0.25, 0.02, saturated, "saturated"),
        (2.1, 0.25, 0.02, short, "rate too small"),
    ):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
        for n in range(LONG_WINDOW + 2 * CHECK_EVERY):
            # The gradient shrinks meanwhile: the run does not escape a plateau.
            fades: dict[str, list[float | None]] = {"grad_norm": [0.1 - 0.0005 * n] * 2}
            loss = begins - fall * n / LONG_WINDOW + noise * (-1) ** n
            run_at(diagnosis, range(n, n + 1), loss=loss, **fades | values)
        assert name_of(diagnosis) == name, (fall, noise, values)


def test_loss_that_falls_is_healthy_a_level_one_only_converged_if_it_is_tiny() -> None:
    """A level loss half way down is not called healthy: nothing shows whether it could fall further."""
    levels = (2.3, 0.0, "plateau"), (1.4, 0.0, "not clear"), (1.2, 0.0, "not clear"), (0.01, 0.0, "converged")
    for end, fall, name in (*levels, (1.4, 0.1, "healthy")):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
        for n in range(LONG_WINDOW + 2 * CHECK_EVERY):
            run_at(diagnosis, range(n, n + 1), loss=end + fall * (1 - n / LONG_WINDOW))
        assert name_of(diagnosis) == name, (end, fall)


@pytest.mark.parametrize(
    ("norms", "text"),
    [([0.1, 0.1], "gradient norm 0.1"), ([0.1, 0.002], "gradients 0.002 to 0.1")],
)
def test_unclear_run_shows_the_range_of_the_gradients(norms: list[float | None], text: str) -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd", user_loop=True))
    unknown: dict[str, list[float | None]] = {"backprop_factor": [None, None], "grad_norm": norms}
    run_at(diagnosis, range(240), loss=1.4, **unknown)
    finding = diagnosis.finding()
    assert finding is not None
    assert sentence(finding) == f"Loss level at 1.4; {text}."


def test_loss_that_falls_with_far_too_small_steps_is_not_healthy_until_it_is_low() -> None:
    for end, name in ((1.9, "rate too small"), (0.4, "healthy")):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
        for n in range(LONG_WINDOW):
            loss = end + 0.8 * (1 - n / LONG_WINDOW)
            run_at(diagnosis, range(n, n + 1), loss=loss, update_norm=[1e-5, 1e-5])
        assert name_of(diagnosis) == name, end


def test_units_saturated_by_updates_are_distinguished_from_a_vanishing_gradient() -> None:
    for product, share, name in ((1.0, 0.0, "rate too large"), (1e-4, 0.0, "vanishing"), (1e-4, 0.9, "saturated")):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd", activation="tanh"))
        diagnosis.add_reading(reading(0, backprop_factor=[product, 1.0], saturated_fraction=[share, share]))
        run_at(diagnosis, range(1, FIRMLY), loss=2.3, backprop_factor=[1e-4, 1.0], saturated_fraction=[0.9, 0.9])
        assert name_of(diagnosis) == name, (product, share)


def test_saturated_units_need_reinitialising_first_if_the_gradient_grew() -> None:
    for factor, knob in ((3.0, "init"), (1.0, "residual")):
        layers = [Layer(name=f"blocks.{n}.linear", kind="Linear", params=272, block=n) for n in range(3)]
        diagnosis = Diagnosis(layers, knobs=ALL, context=RunContext(classes=10, optimizer="sgd", activation="tanh"))
        shares = {"backprop_factor": [factor] * 3, "saturated_fraction": [0.9] * 3}
        run_at(diagnosis, range(FIRMLY), loss=2.3, **shares)  # type: ignore[arg-type]
        finding = diagnosis.finding()
        assert finding is not None
        assert finding.finding == "saturated"
        assert finding.advice[0].knob == knob, factor


def test_level_loss_is_converged_if_it_has_fallen_far() -> None:
    for guess in (10, None):  # with and without a known loss of a guess
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=guess, optimizer="sgd"))
        said = []
        for n in range(600):
            run_at(diagnosis, range(n, n + 1), loss=0.2 + 2.1 * 0.97**n + 0.01 * (-1) ** n)
            said.append(name_of(diagnosis))
        assert set(said) == {None, "healthy", "converged"}
        assert said[-1] == "converged"
        assert said.index("converged") > 200


def test_loss_that_falls_slowly_is_never_called_converged() -> None:
    """Power laws and slow exponentials with noise, over thousands of steps."""
    chance = random.Random(1)
    falls: list[Callable[[int], float]] = [
        lambda n: 2.3 * (1 + n / 5) ** -0.3,
        lambda n: 2.3 * (1 + n / 5) ** -0.5,
        lambda n: 0.15 + 0.103 * math.exp(-n / 2000) + 2 * math.exp(-n / 60),
    ]
    for fall in falls:
        for noise in (0.01, 0.05, 0.2):
            diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
            said: list[str | None] = []
            for n in range(3000):
                run_at(diagnosis, range(n, n + 1), loss=fall(n) * math.exp(chance.gauss(0, noise)))
                said.append(name_of(diagnosis))
            assert set(said) <= {None, "healthy", "not clear"}, noise
            assert said[-1] == "healthy"


def test_tiny_loss_of_a_net_that_knew_its_data_is_converged_in_spite_of_noise() -> None:
    chance = random.Random(3)
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="adam", user_loop=True))
    said = {}
    for n in range(600):
        run_at(diagnosis, range(n, n + 1), loss=6e-4 * math.exp(chance.gauss(0, 0.5)))
        if (finding := diagnosis.finding()) is not None:
            said[finding.finding] = sentence(finding)
    assert list(said) in (["converged"], ["healthy", "converged"])
    assert said["converged"].startswith("Loss level at 0.000")
    assert "Training well" not in said.get("healthy", "")


@pytest.mark.parametrize("start", [2.3, 0.001])
def test_low_loss_that_rises_again_is_not_called_level_or_well(start: float) -> None:
    chance = random.Random(4)
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="adam"))
    for n in range(700):
        loss = max(0.001, start * 0.95**n) * (1 + max(0, n - 300) / 40)
        run_at(diagnosis, range(n, n + 1), loss=loss * math.exp(chance.gauss(0, 0.1)))
        if n == 300:
            assert name_of(diagnosis) in ("healthy", "converged")
    finding = diagnosis.finding()
    assert finding is not None
    assert finding.finding == "not clear"
    assert sentence(finding).startswith("Loss rose from 0.00")


def test_converged_run_stays_converged_with_noise() -> None:
    chance = random.Random(2)
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
    said = []
    for n in range(3000):
        run_at(diagnosis, range(n, n + 1), loss=0.1 + 2.2 * math.exp(-n / 80) + 0.02 * chance.gauss(0, 1))
        said.append(name_of(diagnosis))
    changes = [(a, b) for a, b in itertools.pairwise(said) if a != b]
    assert changes == [(None, "healthy"), ("healthy", "converged")]


def test_loss_that_jumps_up_is_no_longer_called_healthy() -> None:
    """A rate that is too large can reach a loss of 0 and leave it again."""
    for low in (0.0, 1e-7, 0.02):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="adam"))
        for n in range(70):
            run_at(diagnosis, range(n, n + 1), loss=max(low, 2.3 * 0.8**n))
        assert name_of(diagnosis) == "healthy"
        run_at(diagnosis, range(70, 90), loss=2.2)
        finding = diagnosis.finding()
        assert finding is not None
        assert finding.finding == "not clear"
        assert sentence(finding) == f"Loss rose from {finding.evidence['before']:.3g} to 2.2."


def run_losses(losses: list[float], **how: Any) -> Diagnosis:
    """A run of a regression with these losses, and with gradients that arrive."""
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(user_loop=True, **how))
    for step, loss in enumerate(losses):
        diagnosis.add_loss(step, loss)
        if step % 5 == 0:
            diagnosis.add_reading(reading(step, backprop_factor=[1.0, 1.0], update_ratio=[1e-3, 1e-3]))
    return diagnosis


NOISE = {
    "exponential": lambda r: r.expovariate(1.0),
    "squared normal": lambda r: r.gauss(0.0, 1.0) ** 2,
    "heavy tails": lambda r: 0.3 + abs(r.gauss(0.0, 1.0) / max(0.1, abs(r.gauss(0.0, 1.0)))) ** 2,
    "coin": lambda r: r.choice((0.05, 3.0)),
}


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("lowest_first", [False, True])
def test_loss_that_only_scatters_has_no_direction(noise: str, lowest_first: bool) -> None:
    """The first loss is that of one batch: it may be far below the mean."""
    for seed in range(8):
        r = random.Random(seed)
        losses = [NOISE[noise](r) for _ in range(600)]
        losses[0] = min(losses) if lowest_first else losses[0]
        for steps in (60, 140, 600):
            diagnosis = run_losses(losses[:steps])
            finding = diagnosis.finding()
            text = "" if finding is None else sentence(finding)
            assert "rose" not in text, (seed, steps, text)
            assert "up" not in text.split(), (seed, steps, text)
            assert name_of(diagnosis) in (None, "not clear"), (seed, steps, text)


@pytest.mark.parametrize(
    "rise",
    [
        lambda n: 1000.0 if n else 1.0,  # at the first update
        lambda n: min(1e6, 3.0**n),
        lambda n: 1.0 + n / 20,
        lambda n: 1.0 if n < 80 else 6.0,
        lambda n: max(0.2, 1 - n / 40) if n < 60 else 9.0,
    ],
)
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_loss_that_rises_out_of_its_scatter_diverges(rise: Callable[[int], float], noise: float) -> None:
    r = random.Random(3)
    losses = [rise(n) * math.exp(noise * r.gauss(0.0, 1.0)) for n in range(240)]
    assert name_of(run_losses(losses)) == "diverging"


def rates_until(rate_at: Callable[[int], float], steps: int, *, loss: float = 2.3) -> Diagnosis:
    diagnosis = Diagnosis(LAYERS, knobs=AVAILABLE, context=RunContext(classes=10, user_loop=True))
    for step in range(steps):
        diagnosis.add_loss(step, loss, rate=rate_at(step))
        if step % 5 == 0:
            diagnosis.add_reading(reading(step, backprop_factor=[1.0, 1.0], update_ratio=[1e-3, 1e-3]))
    return diagnosis


@pytest.mark.parametrize(
    ("rate_at", "steps", "text"),
    [
        (lambda n: 1e-3 * 0.5 ** (n // 10), 101, "1e-06 in 91 steps"),
        (lambda n: 0.1 * 0.9**n, 70, "1e-04 in 65 steps"),
        (lambda n: 0.1 * 0.1 ** (n // 30), 95, "1e-04 in 61 steps"),
        (lambda n: 1e-3 * min(1.0, n / 20) * 0.8 ** max(0, n - 20), 60, "1e-06 in 31 steps"),
    ],
)
def test_scheduler_that_is_stepped_too_often_is_named_at_once(
    rate_at: Callable[[int], float], steps: int, text: str
) -> None:
    finding = rates_until(rate_at, steps).finding()
    assert finding is not None
    assert sentence(finding) == f"Scheduler cut the rate to {text}: step() per batch?"
    assert len(f" {finding.finding}  {sentence(finding)}") <= 80


def cosine(n: int, period: int, *, least: float = 1e-9) -> float:
    return least + 0.05 * (1 + math.cos(math.pi * (n % period) / period))


@pytest.mark.parametrize(
    "rate_at",
    [
        lambda n: cosine(n, 150),
        lambda n: cosine(n, 50),  # warm restarts
        lambda n: 0.1 * (1 - n / 150) + 1e-12,
        lambda n: 0.1 * (1 - n / 150) ** 2 + 1e-12,
        lambda n: min(n / 20, 1.0) * 0.1 + 1e-12,
        lambda n: 0.1 * 0.96**n,  # 1/400 after 149 steps
        lambda n: 0.1 * 0.97 ** (n % 40),
        lambda n: 0.1 if n < 100 else 0.01,
    ],
)
def test_usual_schedules_are_not_blamed(rate_at: Callable[[int], float]) -> None:
    for steps in range(5, 150, 5):
        finding = rates_until(rate_at, steps).finding()
        assert finding is None or "within" not in finding.evidence, steps


def test_rate_that_a_scheduler_cut_does_not_matter_while_the_loss_is_low_or_the_rate_returns() -> None:
    assert name_of(rates_until(lambda n: 0.1 * 0.9**n, 200, loss=0.001)) in ("healthy", "converged")
    restarted = rates_until(lambda n: 0.1 * 0.9 ** (n % 80), 85).finding()
    assert restarted is None or "within" not in restarted.evidence


@pytest.mark.parametrize("change", [("lr", "/10"), ("activation", "leaky_relu")])
def test_dead_units_after_a_rate_that_spoilt_the_weights_keep_that_cause(change: tuple[str, str]) -> None:
    knob, value = change
    diagnosis = Diagnosis(LAYERS, knobs=AVAILABLE, context=RunContext(classes=10, user_loop=True))
    run_at(diagnosis, range(1), loss=2.3, backprop_factor=[1.0, 1.0], update_ratio=[0.6, 0.6], dead_fraction=[0.0, 0.0])
    dead: dict[str, list[float | None]] = {"backprop_factor": [0.0, 0.0], "dead_fraction": [1.0, 1.0]}
    run_at(diagnosis, range(1, 120), loss=2.31, update_ratio=[0.0, 0.0], **dead)
    assert name_of(diagnosis) == "rate too large"
    diagnosis.turn_knob(120, knob, value)
    diagnosis.allow_advice("undo")
    run_at(diagnosis, range(120, 300), loss=2.31, update_ratio=[0.0, 0.0], **dead)
    finding = diagnosis.finding()
    assert finding is not None
    assert sentence(finding) == "An update of 60% spoilt the weights: start again at lr ÷10."
    diagnosis.rewind(0, {})  # to weights that were still good
    run_at(diagnosis, range(300, 480), loss=2.31, update_ratio=[0.0, 0.0], **dead)
    assert name_of(diagnosis) == "dead units"


def test_plateau_of_a_script_is_given_time_before_it_is_to_be_checked() -> None:
    for context, early, late in (
        (RunContext(classes=2, user_loop=True), "Loss that of a guess after", "check labels and inputs"),
        (RunContext(user_loop=True), "Loss still 0.693 after", "check data, labels, masks"),
    ):
        diagnosis = Diagnosis(LAYERS, knobs=set(), context=context)
        run_at(diagnosis, range(200), loss=0.693, backprop_factor=[1.0, 1.0], update_ratio=[1e-2, 1e-2])
        finding = diagnosis.finding()
        assert finding is not None
        assert sentence(finding).startswith(early)
        assert sentence(finding).endswith("some tasks start so.")
        run_at(diagnosis, range(200, 1300), loss=0.693, backprop_factor=[1.0, 1.0], update_ratio=[1e-2, 1e-2])
        finding = diagnosis.finding()
        assert finding is not None
        assert late in sentence(finding)


def test_tiny_share_of_the_first_loss_is_healthy_whatever_the_loss_function() -> None:
    for several, name in ((False, "healthy"), (True, "not clear")):
        context = RunContext(user_loop=True, loss_means_fit=False, several_optimizers=several)
        diagnosis = Diagnosis(LAYERS, knobs=set(), context=context)
        for n in range(400):
            run_at(diagnosis, range(n, n + 1), loss=2.7 * 0.98**n, backprop_factor=[1.0, 1.0])
        assert name_of(diagnosis) == name
    assert sentence(diagnosis.finding()).startswith("Loss down from 2.65 to 0.0009")  # type: ignore[arg-type]


def test_sigmoids_that_cannot_all_be_bypassed_are_to_be_replaced_first() -> None:
    for bypassed, first in (("01", "residual"), ("1", "activation")):
        knobs_now = [
            KnobState(name="activation", value="sigmoid", acts_on=("0", "1")),
            KnobState(name="residual", value="off", acts_on=tuple(bypassed)),
        ]
        context = RunContext(classes=10, user_loop=True).with_knobs(knobs_now)
        diagnosis = Diagnosis(LAYERS, knobs=AVAILABLE, context=context)
        run_at(diagnosis, range(120), loss=2.3, backprop_factor=[1e-3, 1e-3])
        finding = diagnosis.finding()
        assert finding is not None
        assert finding.finding == "vanishing"
        assert next(a.knob for a in finding.advice) == first


def test_expected_loss_continues_the_last_falls() -> None:
    flat = [2.0] * LONG_WINDOW
    assert expected_loss(flat, 2.3) == 2.0
    even = [2.0 - 0.3 * n / LONG_WINDOW for n in range(LONG_WINDOW)]
    assert expected_loss(even, 2.3) == pytest.approx(2.0 - 0.3 * 164.5 / LONG_WINDOW - 4 * 0.1, abs=1e-9)
    rises = [2.0 + n / LONG_WINDOW for n in range(LONG_WINDOW)]
    assert expected_loss(rises, 2.3) == pytest.approx(2.0 + 164.5 / LONG_WINDOW)
    noisy = [2.0 - 0.02 * n / LONG_WINDOW + 0.3 * (-1) ** n for n in range(LONG_WINDOW)]
    assert expected_loss(noisy, 2.3) == pytest.approx(2.0, abs=0.03), "a fall that could be noise is ignored"
    steep = [2.0 - 1.9 * n / LONG_WINDOW for n in range(LONG_WINDOW)]
    assert expected_loss(steep, 2.3) == pytest.approx(0.5 * (2.0 - 1.9 * 164.5 / LONG_WINDOW)), "no more than half"
    above = [9.0 - 6.0 * n / LONG_WINDOW for n in range(LONG_WINDOW)]
    assert expected_loss(above, 2.3) == pytest.approx(9.0 - 6.0 * 164.5 / LONG_WINDOW), "a fall to a guess is ignored"


def test_nothing_is_found_while_a_loss_above_a_guess_falls() -> None:
    """It is neither healthy nor wrong until it is low or stuck."""
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
    said: dict[str | None, list[float]] = {}
    for n in range(250):
        run_at(diagnosis, range(n, n + 1), loss=30 * 0.98**n)
        if n >= MIN_STEPS:
            said.setdefault(name_of(diagnosis), []).append(30 * 0.98**n)
    assert set(said) == {None, "healthy"}
    assert min(said[None]) > max(said["healthy"])
    assert max(said["healthy"]) < 2.3


def test_gradient_that_bypasses_a_dead_layer_has_not_vanished() -> None:
    """Residual connections were just turned on: little of the gradient arrived before, now nearly half does."""
    dead: dict[str, list[float | None]] = {"dead_fraction": [0.97, 0.1], "weight_norm": [1.0, 1.0]}
    for now, name in ((0.45, "dead units"), (1e-5, "vanishing")):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd", residual=True))
        diagnosis.add_reading(reading(0, backprop_factor=[1e-5, 1.0], weight_norm=[1.0, 1.0]))
        run_at(diagnosis, range(1, FIRMLY), loss=2.3, backprop_factor=[now, 1.0], **dead)
        assert name_of(diagnosis) == name, now


def test_exploding_gradient_comes_before_a_saddle() -> None:
    """The Hessian of an exploding net has large eigenvalues of both signs; a larger rate makes it worse."""
    for factor, name in ((1.0, "saddle"), (30.0, "exploding")):
        diagnosis = Diagnosis(LAYERS, knobs=ALL, context=RunContext(classes=10, optimizer="sgd"))
        run_at(diagnosis, range(FIRMLY), loss=2.3, backprop_factor=[factor, factor])
        diagnosis.add_curvature(3.0, -0.5)
        assert name_of(diagnosis) == name


def test_learning_rate_follows_the_advice_by_its_direction() -> None:
    up = Advice("lr", "*100", "]")
    assert is_advised(up, "lr", "*10")
    assert is_advised(up, "lr", "/0.1")
    assert is_advised(up, "lr", "0.5", "0.05")
    assert not is_advised(up, "lr", "/10")
    assert not is_advised(up, "lr", "0.05", "0.5")
    assert not is_advised(up, "residual", "on")


@pytest.mark.parametrize("optimizer", ["sgd", "adam", None])
@pytest.mark.parametrize("size", [None, 0.0, 1e-300, 1e300, math.inf, math.nan])
def test_advice_has_a_value_for_any_measurement(size: float | None, optimizer: str | None) -> None:
    context = RunContext(classes=10, optimizer=optimizer)
    diagnosis = Diagnosis(LAYERS, knobs=ALL, context=context)
    run_at(diagnosis, range(LONG_WINDOW), loss=2.29)
    features = diagnosis.features()
    assert features is not None
    names = ("step_per_grad", "update_ratio", "product", "first_product", "kept", "first_update_ratio")
    sizes = dict.fromkeys(names, size)
    features = msgspec.structs.replace(features, **sizes, noise=size or 0.0)
    for name in get_args(Name):
        advised = advice_for(name, features, context)
        assert bool(advised) == (name not in ("healthy", "converged", "not clear")), name
        for a in advised:
            assert a.value


def test_diagnosis_does_not_import_torch() -> None:
    code = "import sys, tui_descent.telemetry.diagnosis; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


LAYERS = tuple(Layer(name=f"blocks.{n}.linear", kind="Linear", params=272, block=n) for n in range(2))


def reading(step: int, *, cosine: float | None = None, **values: list[float | None]) -> ReadingsTaken:
    plain: dict[str, list[float | None]] = {
        "grad_norm": [0.1, 0.1],
        "grad_rms": [0.01, 0.01],
        "weight_norm": [4.0, 4.0],
        "update_norm": [0.01, 0.01],
        "update_ratio": [0.0025, 0.0025],
        "backprop_factor": [1.0, 1.0],
    }
    return reading_of(step, plain | values, global_grad_norm=0.2, global_cosine=cosine)


def run_at(
    diagnosis: Diagnosis,
    steps: range,
    *,
    loss: float,
    cosine: float | None = None,
    **values: list[float | None],
) -> None:
    for step in steps:
        diagnosis.add_loss(step, loss)
        if step % 10 == 0:
            diagnosis.add_reading(reading(step, cosine=cosine, **values))


def name_of(diagnosis: Diagnosis) -> str | None:
    finding = diagnosis.finding()
    return finding.finding if finding else None
