"""The diagnosis of the presets: each problem is found soon after it began, healthy runs stay healthy."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from typing import Any

import msgspec
import pytest
from diagnosis_nets import Observed, RunData
from diagnosis_score import diagnosis_of, feed, finding_of, preset

from tui_descent.instruments.curvature import Curvature, stability_limit
from tui_descent.protocol.events import NotFinite
from tui_descent.scenario import knobs, presets
from tui_descent.scenario.keys import KEYS
from tui_descent.scenario.spec import Scenario
from tui_descent.scenario.toml import to_table
from tui_descent.telemetry.diagnosis import Advice, Diagnosis, sentence
from tui_descent.telemetry.diagnosis.advice import usable
from tui_descent.telemetry.diagnosis.diagnosis import CHANGE_EVERY, CHECK_EVERY, FIRM, FIRM_STEPS
from tui_descent.telemetry.diagnosis.findings import advice_words
from tui_descent.telemetry.diagnosis.situation import LETTER_ENTROPY, context_of
from tui_descent.training.setup.data import text

AVAILABLE = frozenset(knobs.KNOBS)
# Presets with a problem from the first step on.
NAMED = {
    "vanishing": {"vanishing"},
    "exploding": {"exploding"},
    "plateau": {"plateau", "rate too small"},
    "too-hot": {"diverging", "diverged"},
    "dead-relu": {"dead units"},
    "transformer": {"vanishing"},
}
# The knob in each preset's story and claims. Only going back helps against too-hot's NaN.
HELPS = {
    "vanishing": "residual",
    "exploding": "norm",
    "plateau": "lr",
    "too-hot": "undo",
    "dead-relu": "activation",
    "transformer": "residual",
}
WITHIN = 60
FIRMLY = FIRM_STEPS + FIRM * CHECK_EVERY  # steps after which a judgement that is not certain is said
SCHEDULE = (1, 2, 5, 10, 20, 35, 50, 75, 113)  # steps with a reading at the usual budget
SEEDS = [0, *(pytest.param(n, marks=pytest.mark.heavy) for n in (1, 2))]


@functools.cache
def first_steps(name: str, seed: int) -> RunData:
    """The steps within which the problem is found, with a reading at each."""
    return Observed(preset(name, seed=seed)).run(FIRMLY if name == "plateau" else WITHIN, every=1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", sorted(NAMED))
def test_problem_of_a_preset_is_found_within_sixty_steps(name: str, seed: int) -> None:
    scenario = preset(name, seed=seed)
    seen = first_steps(name, seed)
    scheduled = dataclasses.replace(
        seen, readings={step: seen.readings[step] for step in SCHEDULE if step in seen.readings}
    )
    for every, data in ((1, seen), (7, seen), (1, scheduled)):
        diagnosis = diagnosis_of(scenario, data, knobs=AVAILABLE | {"undo"})
        feed(diagnosis, data, range(len(data.losses)), every=every)
        if name == "too-hot":
            assert math.isnan(data.losses[-1])
            fault: dict[str, Any] = {"what": "loss", "layer": None, "text": "", "loss": math.nan, "then": "hold"}
            diagnosis.add_not_finite(NotFinite(segment=0, step=len(data.losses) - 1, **fault))
        finding = diagnosis.finding()
        assert finding is not None
        assert finding.finding in NAMED[name], every
        assert finding.sure >= 0.6
        assert HELPS[name] in {a.knob for a in finding.advice}
        if name == "too-hot":
            assert [(a.knob, a.value) for a in finding.advice][:2] == [("undo", "1"), ("lr", "/10")], "its own remedies"


@pytest.mark.parametrize("name", sorted({*NAMED} - {"too-hot"}))
def test_preset_with_a_problem_is_never_called_healthy(name: str) -> None:
    scenario = preset(name)
    observed = Observed(scenario)
    seen = observed.run(240 if name != "transformer" else 120, every=5)
    diagnosis = diagnosis_of(scenario, seen)
    said = Counter[str]()
    for step in range(len(seen.losses)):
        feed(diagnosis, seen, [step])
        said[_said(diagnosis)] += 1
    assert set(said) <= NAMED[name] | {"nothing"}


def test_exploding_net_is_still_exploding_after_a_larger_rate() -> None:
    """Its loss jumps between thousands and that of a guess. The curvature is measured, too."""
    scenario = preset("exploding")
    observed = Observed(scenario)
    curvature = Curvature(observed.setup.probe, observed.parameters)
    diagnosis = diagnosis_of(scenario, observed.seen)
    said = Counter[str]()
    for step in range(300):
        if step == 100:
            for group in observed.setup.optimizer.param_groups:
                group["lr"] *= 10
            diagnosis.turn_knob(step, "lr", "*10")
        if step % 20 == 0:
            reading = curvature.measure()
            diagnosis.add_curvature(reading.lambda_max, reading.lambda_min)
        observed.run(1, every=5)
        feed(diagnosis, observed.seen, [step])
        said[_said(diagnosis)] += 1
    assert said["exploding"] > 120
    assert set(said) <= {"exploding", "nothing"}


def test_finding_and_advice_fit_in_eighty_columns() -> None:
    scenario = preset("exploding")
    finding = finding_of(scenario, first_steps("exploding", 0), knobs=AVAILABLE, every=10)
    assert finding is not None
    assert sentence(finding).endswith(" Press n: LayerNorm before the activation.")
    assert len(f" {finding.finding}  {sentence(finding)}") <= 80


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("layer", "Press n: LayerNorm."),
        ("layer,where=pre", "Press n: pre-LN."),
        ("rms,where=pre,way=instant", "Press n: pre-RMSNorm."),
        ("rms,where=mid,way=instant", "Press n: RMSNorm before the activation."),
    ],
)
def test_advice_says_where_a_norm_belongs(value: str, words: str) -> None:
    assert advice_words(Advice(knob="norm", value=value, key="n")) == words


def test_every_preset_is_tested_here() -> None:
    judged = {*NAMED, "healthy", "first-descent", "saddle", "edge-of-stability"}
    assert judged <= set(presets.names())
    assert {p for p in presets.names() if p in {*HELPS}} == {*NAMED}


def test_advice_can_be_sent_as_a_command() -> None:
    for name in NAMED:
        scenario = preset(name)
        finding = finding_of(scenario, first_steps(name, 0), knobs=AVAILABLE, every=10)
        assert finding is not None
        for advice in finding.advice:
            knobs.parse(f"{advice.knob}={advice.value}")
            assert any(advice.key in (key.shown, *key.keys) and key.knob == advice.knob for key in KEYS)


@pytest.mark.parametrize("seed", SEEDS)
def test_healthy_run_stays_healthy(seed: int) -> None:
    scenario = preset("healthy", seed=seed)
    seen = Observed(scenario).run(600, every=5)
    diagnosis = diagnosis_of(scenario, seen)
    sparse = diagnosis_of(scenario, seen)
    names = Counter[str]()
    for step in range(600):
        feed(diagnosis, seen, [step])
        feed(sparse, seen, [step], every=20)
        names.update((_said(diagnosis), _said(sparse)))
    assert set(names) == {"healthy", "nothing"}
    assert names["healthy"] > 1000


@pytest.mark.parametrize("seed", SEEDS)
def test_cured_run_stays_healthy(seed: int) -> None:
    scenario = preset("vanishing", seed=seed)
    observed = Observed(scenario)
    observed.run(100, every=5)
    diagnosis = diagnosis_of(scenario, observed.seen)
    feed(diagnosis, observed.seen, range(100))
    assert _said(diagnosis) == "vanishing"
    observed.turn_residual_on()
    diagnosis.turn_knob(100, "residual", "on")
    observed.run(500, every=5)
    names = Counter[str]()
    for step in range(100, 600):
        feed(diagnosis, observed.seen, [step])
        names[_said(diagnosis)] += 1
    assert set(names) == {"healthy", "nothing"}
    assert names["nothing"] < 50


def test_transformer_with_residual_connections_is_healthy() -> None:
    """Its loss stays at the entropy of single letters for a while; it is healthy only below that."""
    scenario = preset("transformer")
    observed = Observed(scenario)
    observed.run(100, every=10)
    diagnosis = diagnosis_of(scenario, observed.seen)
    feed(diagnosis, observed.seen, range(100))
    assert _said(diagnosis) == "vanishing"
    observed.turn_residual_on()
    diagnosis.turn_knob(100, "residual", "on")
    observed.run(240, every=10)
    for step in range(100, 340):
        feed(diagnosis, observed.seen, [step])
        if (finding := diagnosis.finding()) is not None and finding.finding != "healthy":
            assert finding.sure < 0.8, step
    assert _said(diagnosis) == "healthy"


def test_descent_of_a_parabola_has_no_problem() -> None:
    scenario = preset("first-descent")
    seen = Observed(scenario).run(200, every=1)
    diagnosis = diagnosis_of(scenario, seen)
    for step in range(200):
        feed(diagnosis, seen, [step])
        # Near the minimum the loss is flat, and only the curvature can tell a minimum from a saddle.
        assert _said(diagnosis) in ("healthy", "nothing", "not clear"), step


def test_the_curvature_of_a_saddle_is_forgotten_after_the_point_has_left_it() -> None:
    """The curvature is measured only while its view is open, here on the saddle; the run ends in a minimum."""
    scenario = preset("saddle")
    observed = Observed(scenario)
    curvature = Curvature(observed.setup.probe, observed.parameters)
    diagnosis = diagnosis_of(scenario, observed.seen)
    said = []
    for step in range(1200):
        if step in (360, 420, 480):
            reading = curvature.measure()
            diagnosis.add_curvature(reading.lambda_max, reading.lambda_min)
        observed.run(1, every=10)
        feed(diagnosis, observed.seen, [step])
        said.append(_said(diagnosis))
    assert set(said[480:600]) == {"saddle"}
    assert abs(observed.seen.losses[800] + 1) < 1e-3
    assert "saddle" not in said[800:]


def test_saddle_is_found_from_where_the_loss_is_flat_until_it_falls() -> None:
    """Flat means that twenty steps change the loss by less than 2 % of the first one."""
    scenario = preset("saddle")
    observed = Observed(scenario)
    curvature = Curvature(observed.setup.probe, observed.parameters)
    diagnosis, blind = diagnosis_of(scenario, observed.seen), diagnosis_of(scenario, observed.seen)
    said, asks = [], []
    for step in range(800):
        if step % 20 == 0:
            reading = curvature.measure()
            diagnosis.add_curvature(reading.lambda_max, reading.lambda_min)
        observed.run(1, every=10)
        feed(diagnosis, observed.seen, [step])
        feed(blind, observed.seen, [step])
        said.append(_said(diagnosis))
        assert _said(blind) in ("healthy", "nothing", "not clear"), "without the curvature a saddle cannot be found"
        asks.append((found := blind.finding()) is not None and sentence(found).endswith("Press 5 for the curvature."))
    losses = observed.seen.losses
    fallen = [losses[n - 20] - losses[n] for n in range(20, 800)]
    flat = next(n for n in range(20, 800) if fallen[n - 20] < 0.02 * losses[0])
    leaves = next(n for n in range(flat + WITHIN, 800) if fallen[n - 20] > 0.02 * losses[0])
    assert leaves > flat + 400
    assert set(said[: flat - 20]) == {"healthy", "nothing"}
    assert set(said[flat + WITHIN : leaves]) == {"saddle"}
    nothing = [n for n in range(20, leaves) if abs(losses[n]) < 1e-3 * losses[0]]
    assert len(nothing) > 250
    assert all(asks[nothing[0] + 20 : nothing[-1]])
    assert not any(asks[: flat - 20])
    assert not all(asks[leaves:]), "while it falls the curvature is not asked for"
    assert said[-1] == "healthy"


@pytest.mark.parametrize(("start", "lr"), [([10.0, 10.0], 0.01), ([10.0, 1.0], 0.019999)], ids=["falls", "bounces"])
def test_curvature_is_not_asked_for_while_the_loss_falls_or_bounces(start: list[float], lr: float) -> None:
    scenario = preset("saddle")
    valley = msgspec.structs.replace(scenario.model, function="valley", start=tuple(start))
    rate = msgspec.structs.replace(scenario.optimizer, lr=lr, rates={})
    scenario = msgspec.structs.replace(scenario, model=valley, optimizer=rate, claim=())
    seen = Observed(scenario).run(300, every=1)
    diagnosis = diagnosis_of(scenario, seen)
    for step in range(300):
        feed(diagnosis, seen, [step])
        finding = diagnosis.finding()
        assert finding is None or "curvature" not in finding.evidence or seen.losses[step] < 2e-3 * seen.losses[0], step


def said_on(scenario: Scenario, steps: int) -> list[str]:
    """The sentence at every tenth step, or an empty text."""
    observed = Observed(scenario)
    diagnosis, said = diagnosis_of(scenario, observed.seen), []
    for step in range(steps):
        observed.run(1, every=10)
        feed(diagnosis, observed.seen, [step])
        if step % 10 == 9:
            found = diagnosis.finding()
            said.append("" if found is None else sentence(found))
    return said


@pytest.mark.parametrize(
    ("name", "start", "words"),
    [
        ("narrow-valley", 300, "Slow: a step moves the point by 0.001, the gradient is "),
        ("monkey-saddle", 200, "Slow: a step moves the point by 4e-06, the gradient is 0.0003"),
    ],
)
def test_a_point_that_crawls_is_said_to_be_slow(name: str, start: int, words: str) -> None:
    said = said_on(preset(name), 400)
    assert all(text.startswith(words) for text in said[start // 10 :])
    assert all(len(f" not clear  {text}") <= 80 for text in said)


@pytest.mark.heavy
def test_steps_of_adam_that_shrink_with_a_vanishing_gradient_are_no_small_rate() -> None:
    said = said_on(preset("spirals"), 420)
    assert all("gradient" in text and text.endswith("Press r: residual on.") for text in said[5:])


@pytest.mark.parametrize(
    ("name", "changed", "steps"),
    [
        ("narrow-valley", {"lr": 0.01}, 600),
        ("saddle", {"lr": 0.0025, "start": (1.0, 0.1)}, 1500),  # to a minimum away from 0
        ("saddle", {"start": (1.0, 0.1)}, 600),
        ("narrow-valley", {"function": "himmelblau", "start": (0.0, 0.0), "lr": 0.001}, 300),
        ("narrow-valley", {"function": "bowl", "start": (3.0, 2.0), "lr": 0.01}, 600),
    ],
)
def test_a_point_on_its_way_to_a_minimum_is_not_slow(name: str, changed: dict[str, Any], steps: int) -> None:
    scenario = preset(name)
    rate = msgspec.structs.replace(scenario.optimizer, lr=changed.pop("lr", scenario.optimizer.lr))
    model = msgspec.structs.replace(scenario.model, **changed)
    scenario = msgspec.structs.replace(scenario, optimizer=rate, model=model, claim=())
    said = said_on(scenario, steps)
    assert not any(text.startswith("Slow") for text in said)


def test_edge_of_stability_is_found_once_the_curvature_reaches_it() -> None:
    """Healthy until then: the curvature grows while the loss falls."""
    scenario = preset("edge-of-stability")
    observed = Observed(scenario)
    curvature = Curvature(observed.setup.probe, observed.parameters)
    limit = stability_limit(observed.setup.optimizer, observed.setup.optimizer.param_groups[0]["lr"])
    assert limit is not None
    diagnosis = diagnosis_of(scenario, observed.seen)
    said, arrived = [], 0
    for step in range(560):
        if step % 20 == 0:
            reading = curvature.measure()
            edge = reading.lambda_max / limit.lambda_max
            arrived = arrived or (step if edge >= 0.95 else 0)
            diagnosis.add_curvature(reading.lambda_max, reading.lambda_min, edge=edge)
        observed.run(1, every=10)
        feed(diagnosis, observed.seen, [step])
        said.append(_said(diagnosis))
    assert arrived > 100
    assert set(said[:arrived]) == {"healthy", "nothing"}
    assert "rate at the edge" in said[arrived : arrived + WITHIN + CHANGE_EVERY]
    assert set(said[arrived:]) <= {"rate at the edge", "healthy"}


def test_letter_entropy_is_that_of_the_text() -> None:
    counts = Counter(c for c in text.pages() if c in text.SYMBOLS)
    shares = [n / counts.total() for n in counts.values()]
    assert abs(LETTER_ENTROPY + math.fsum(p * math.log(p) for p in shares)) < 0.03


def _said(diagnosis: Diagnosis) -> str:
    finding = diagnosis.finding()
    return finding.finding if finding else "nothing"


def test_norm_in_another_place_is_advised_though_the_net_has_norm_layers() -> None:
    _, scenario = presets.find("post-ln")
    table = to_table(scenario)
    context = msgspec.structs.replace(context_of(table), values={"norm": "layer"})
    available = {"norm", "lr"}
    assert [a.value for a in usable([], context, available, first=context.remedies)] == ["layer,where=pre"]
    table["model"]["norm"]["where"] = "pre"
    context = msgspec.structs.replace(context_of(table), values={"norm": "layer"})
    assert usable([], context, available, first=context.remedies) == ()


@pytest.mark.parametrize(
    ("name", "classes"),
    [("rare-classes", 255), ("grokking", 41), ("own-text", None), ("own-images", None), ("own-points", 2)],
)
def test_the_classes_of_the_data_are_known_or_said_to_be_unknown(name: str, classes: int | None) -> None:
    assert context_of(to_table(presets.find(name)[1])).classes == classes
