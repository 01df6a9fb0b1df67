"""The diagnosis: against an oracle that tries changes out, on the presets, and by its rules of honesty."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import pytest
from diagnosis_nets import TRIAL, WINDOW, Observed, Oracle, Seen, Verdict, changed, draw, judge, situation_of

from tui_descent.protocol.events import Layer, ReadingsTaken
from tui_descent.scenario import knobs, presets
from tui_descent.scenario.keys import KEYS
from tui_descent.scenario.spec import Scenario
from tui_descent.telemetry.diagnosis import (
    DARES,
    Advice,
    Diagnosis,
    Finding,
    Outcome,
    Situation,
    agrees,
    sentence,
)

ALL = frozenset({"lr", "activation", "residual", "pace", "norm", "optimizer", "init", "undo"})
TODAY = frozenset(knobs.KNOBS)
SICK = {"vanishing", "exploding", "diverged", "diverging", "dead units", "saturated", "plateau", "rate too small"}
# Thresholds were set on seeds from 100,000 on. The few are the first of the many, their oracle's gains kept in a file.
FEW = range(1000, 1030)
MANY = range(1000, 1230)
KEPT = Path(__file__).parent / "diagnosis_gains.json"
SURE = 0.8


def diagnosis_of(scenario: Scenario, seen: Seen, *, may: Collection[str] = ALL) -> Diagnosis:
    return Diagnosis(seen.layers, knobs=may, situation=situation_of(scenario))


def feed(diagnosis: Diagnosis, seen: Seen, steps: Iterable[int], *, every: int = 1) -> None:
    for step in steps:
        diagnosis.stepped(step, seen.losses[step])
        if step % every == 0 and step in seen.readings:
            diagnosis.read(seen.readings[step])


def found(scenario: Scenario, seen: Seen, *, may: Collection[str] = ALL, every: int = 1) -> Finding | None:
    diagnosis = diagnosis_of(scenario, seen, may=may)
    feed(diagnosis, seen, range(len(seen.losses)), every=every)
    return diagnosis.finding()


def preset(name: str, *, seed: int = 0) -> Scenario:
    return presets.find(name, overrides=[f"run.seed={seed}", "run.threads=1"])[1]


# --- against the oracle -----------------------------------------------------------------------------------------------


def changes_of(advice: Advice) -> set[str]:
    """The oracle's names for a piece of advice."""
    if advice.knob == "lr":
        return {f"lr{advice.value}", f"undo lr{advice.value}"}
    if advice.knob == "norm":
        return {"norm mid" if "mid" in advice.value else "norm pre"}
    if advice.knob == "activation":
        return {"leaky_relu" if advice.value == "leaky_relu" else "unbounded"}
    return {"residual": {"residual"}, "optimizer": {"adam"}, "init": {f"init {advice.value}"}}.get(advice.knob, set())


@dataclasses.dataclass(slots=True)
class Score:
    """`right` by class or by a first advice that cures, `named` by class alone."""

    table: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)
    judged: int = 0
    unknown: int = 0
    right: int = 0
    named: int = 0
    ill: int = 0
    ill_right: int = 0
    ill_named: int = 0
    cured: int = 0
    advised: int = 0
    sure: int = 0
    sure_right: int = 0
    broad: int = 0

    def add(self, seed: int, verdict: Verdict, finding: Finding | None) -> None:
        if not verdict.findings:
            self.unknown += 1
            return
        name = finding.finding if finding else "nothing"
        first = next((a for a in finding.advice if a.knob != "undo"), None) if finding else None
        named = name in verdict.findings
        cures = first is not None and bool(changes_of(first) & verdict.cures)
        self.judged += 1
        self.named += named
        self.right += named or cures
        self.broad += len(verdict.findings)
        if finding is not None and finding.sure >= SURE:
            self.sure += 1
            self.sure_right += named or cures
        self.table[" / ".join(sorted(verdict.findings)), name] += 1
        if verdict.ill:
            self.ill += 1
            self.ill_named += named
            self.ill_right += named or cures
            self.advised += first is not None
            self.cured += cures
        if not (named or cures):
            self.wrong.append(f"{seed}: {name}, oracle {sorted(verdict.findings)} {sorted(verdict.cures)}")

    @property
    def share(self) -> float:
        return self.right / self.judged

    @property
    def sure_share(self) -> float:
        return self.sure_right / self.sure

    def __str__(self) -> str:
        rows = [f"{n:4d}  {oracle:64s} → {name}" for (oracle, name), n in sorted(self.table.items())]
        return "\n".join(
            [
                *rows,
                f"{self.right}/{self.judged} = {self.share:.1%} right, {self.named / self.judged:.1%} by name alone; "
                f"{self.unknown} nets left out: nothing that was tried trains them",
                f"where it is sure ({SURE} or more): {self.sure_right}/{self.sure} = {self.sure_share:.1%} right",
                f"of the ill: {self.ill_right}/{self.ill} right, {self.ill_named} by name alone; "
                f"the first advice cures {self.cured} of {self.advised} that got one",
                f"always 'healthy' would be right on {sum(n for (o, _), n in self.table.items() if 'healthy' in o)}, "
                f"the oracle admits {self.broad / self.judged:.2f} findings a net",
                *self.wrong,
            ]
        )


def kept(seed: int) -> Verdict:
    """The oracle's verdict from the gains it once found (`python tests/diagnosis_nets.py 1000 1030` writes them)."""
    told = json.loads(KEPT.read_text())[str(seed)]
    gains = {name: -math.inf if gain is None else gain for name, gain in told["gains"].items()}
    return judge(gains, scenario=draw(seed), broke=told["broke"], rose=told["rose"])


def score(seeds: Iterable[int], verdict: Callable[[int], Verdict]) -> Score:
    made = Score()
    for seed in seeds:
        scenario = draw(seed)
        made.add(seed, verdict(seed), found(scenario, Observed(scenario).run(WINDOW, every=5)))
    return made


def test_what_it_says_of_thirty_nets_is_what_trying_out_says() -> None:
    made = score(FEW, kept)
    print(made)
    assert made.judged >= 25
    assert made.ill >= 10
    assert made.share >= 0.8
    assert made.sure >= 10
    assert made.sure_share >= 0.9


def test_the_kept_verdicts_are_those_of_the_oracle() -> None:
    for seed in (1004, 1013, 1015):
        assert Oracle(draw(seed)).verdict().findings == kept(seed).findings, seed


@pytest.mark.heavy
def test_what_it_is_sure_of_is_right_on_many_nets() -> None:
    """95 % was the aim for all it says. It is reached where it is sure; over all nets it was 85 % when this was set."""
    made = score(MANY, lambda seed: Oracle(draw(seed)).verdict())
    print(made)
    assert made.judged >= 200
    assert made.ill >= 80
    assert made.sure >= 100
    assert made.sure_share >= 0.95
    assert made.share >= 0.82


def test_the_oracle_finds_a_planted_illness_and_only_that() -> None:
    """What the oracle itself is worth: nets whose illness was put in by hand."""
    base = changed(draw(0), data={"name": "digits"}, model=HEALTHY_MODEL, optimizer={"name": "sgd", "lr": 0.1})
    assert Oracle(base).verdict().findings == {"healthy"}
    cold = Oracle(changed(base, optimizer={"lr": 1e-5})).verdict()
    assert "rate too small" in cold.findings
    assert "lr*1000" in cold.cures
    assert not cold.findings & {"healthy", "vanishing", "exploding", "diverging", "dead units"}
    faded = Oracle(changed(base, model={"depth": 16, "activation": {"name": "sigmoid"}})).verdict()
    assert "vanishing" in faded.findings
    assert not faded.findings & {"healthy", "rate too small", "diverging", "exploding"}


HEALTHY_MODEL = {
    "depth": 3,
    "width": 32,
    "activation": {"name": "relu"},
    "init": {"name": "he"},
    "norm": {"name": "none"},
    "residual": {"name": "off"},
}


def test_judging_does_not_depend_on_readings() -> None:
    scenario = draw(0)
    ill = judge({"as is": 0.0, "lr*10": 0.9, "residual": 0.1}, scenario=scenario, broke=False, rose=False)
    assert ill.findings == {"rate too small", "plateau"}
    assert judge({"as is": 0.8, "lr*10": 0.9}, scenario=scenario, broke=False, rose=False).findings == {"healthy"}
    assert judge({"as is": 0.0, "lr*10": 0.1}, scenario=scenario, broke=False, rose=False).findings == set()
    assert TRIAL >= 150


# --- presets ----------------------------------------------------------------------------------------------------------

NAMED = {
    "vanishing": {"vanishing"},
    "plateau": {"plateau", "rate too small"},
    "too-hot": {"diverging", "diverged"},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_presets_illness_is_named_within_sixty_steps(name: str, seed: int) -> None:
    scenario = preset(name, seed=seed)
    seen = Observed(scenario).run(60, every=1)
    for every in (1, 7, 50):
        finding = found(scenario, seen, may=TODAY, every=every)
        assert finding is not None
        assert finding.finding in NAMED[name], every
        assert {a.knob for a in finding.advice} <= TODAY


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_is_never_called_ill(seed: int) -> None:
    scenario = preset("healthy", seed=seed)
    seen = Observed(scenario).run(600, every=5)
    diagnosis = diagnosis_of(scenario, seen)
    sparse = diagnosis_of(scenario, seen)
    names = Counter[str]()
    for step in range(600):
        feed(diagnosis, seen, [step])
        feed(sparse, seen, [step], every=50)
        for finding in (diagnosis.finding(), sparse.finding()):
            names[finding.finding if finding else "nothing"] += 1
    assert not set(names) & SICK
    assert names["healthy"] > 1000


def test_ten_steps_down_a_parabola_are_never_called_ill() -> None:
    scenario = preset("first-descent")
    seen = Observed(scenario).run(200, every=1)
    diagnosis = diagnosis_of(scenario, seen)
    for step in range(200):
        feed(diagnosis, seen, [step])
        finding = diagnosis.finding()
        assert finding is None or finding.finding == "healthy", step


# --- what it says and when --------------------------------------------------------------------------------------------


def test_nothing_is_said_before_it_dares_and_nothing_without_a_reading() -> None:
    scenario = preset("vanishing")
    seen = Observed(scenario).run(WINDOW, every=1)
    diagnosis = diagnosis_of(scenario, seen)
    for step in range(WINDOW):
        feed(diagnosis, seen, [step])
        assert (diagnosis.finding() is not None) == (step + 1 >= DARES), step
    blind = diagnosis_of(scenario, seen)
    for step in range(WINDOW):
        blind.stepped(step, seen.losses[step])
    assert blind.finding() is None


def test_the_vanishing_preset_is_told_with_its_figures_and_its_key() -> None:
    scenario = preset("vanishing")
    seen = Observed(scenario).run(WINDOW, every=10)
    finding = found(scenario, seen, may=TODAY)
    assert finding is not None
    assert finding.layer == "blocks.0.linear"
    # Both tried out: accuracy .97 and .96 after 310 steps more.
    cures = Advice(knob="residual", value="on", key="r"), Advice(knob="norm", value="layer,way=instant", key="n")
    assert finding.advice == cures
    reading = seen.readings[50]
    rms = dict(zip((layer.name for layer in seen.layers), reading.values["grad_rms"], strict=True))
    ratio = (rms["blocks.0.linear"] or 0.0) / (rms["blocks.19.linear"] or 1.0)
    assert finding.evidence["first_to_last_grad"] == ratio
    assert sentence(finding) == f"blocks.0 gets {ratio:.1e} of blocks.19's gradient. Try r residual."
    assert finding.sure > 0.9


def test_advice_names_only_knobs_that_are_there() -> None:
    scenario = preset("plateau")
    seen = Observed(scenario).run(WINDOW, every=10)
    for may in (ALL, TODAY, {"lr"}, {"optimizer"}, set[str]()):
        finding = found(scenario, seen, may=may)
        assert finding is not None
        assert {a.knob for a in finding.advice} <= set(may)
        assert sentence(finding).endswith(".")


def test_advice_can_be_sent_as_it_stands() -> None:
    for name in NAMED:
        scenario = preset(name)
        finding = found(scenario, Observed(scenario).run(WINDOW, every=10), may=TODAY)
        assert finding is not None
        for advice in finding.advice:
            knobs.parse(f"{advice.knob}={advice.value}")
            assert any(advice.key in (key.shown, *key.keys) and key.knob == advice.knob for key in KEYS)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_told_at_once(bad: float) -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL)
    diagnosis.stepped(0, 2.3)
    assert diagnosis.finding() is None
    diagnosis.stepped(1, bad)
    diagnosis.stepped(2, 1.0)
    finding = diagnosis.finding()
    assert finding is not None
    assert finding.finding == "diverged"
    assert finding.evidence["step"] == 1.0
    assert finding.advice[0].knob == "undo"
    without = Diagnosis(LAYERS, knobs=TODAY)
    without.stepped(0, bad)
    finding = without.finding()
    assert finding is not None
    assert finding.advice == (), "no knob cures weights that hold NaN"


def test_an_intervention_that_cures_is_told_to_have_done_so() -> None:
    scenario = preset("vanishing")
    observed = Observed(scenario)
    observed.run(60, every=5)
    diagnosis = diagnosis_of(scenario, observed.seen)
    feed(diagnosis, observed.seen, range(60))
    assert diagnosis.outcome is None
    observed.turn_residual_on()
    diagnosis.intervened(60, "residual", "on")
    assert diagnosis.finding() is None, "the window starts anew"
    assert diagnosis.situation.residual
    observed.run(60, every=5)
    for step in range(60, 120):
        assert diagnosis.outcome is None
        feed(diagnosis, observed.seen, [step])
    assert diagnosis.outcome == Outcome(predicted="healthy", happened="healthy", held=True)
    finding = diagnosis.finding()
    assert finding is not None
    assert finding.finding == "healthy"


def test_an_intervention_that_does_not_help_was_foretold() -> None:
    """NUMBERS: ten times the rate does nothing for vanishing gradients."""
    scenario = preset("vanishing")
    observed = Observed(scenario)
    observed.run(60, every=5)
    diagnosis = diagnosis_of(scenario, observed.seen)
    feed(diagnosis, observed.seen, range(60))
    for group in observed.setup.optimizer.param_groups:
        group["lr"] *= 10
    diagnosis.intervened(60, "lr", "*10")
    observed.run(60, every=5)
    feed(diagnosis, observed.seen, range(60, 120))
    assert diagnosis.outcome == Outcome(predicted="vanishing", happened="vanishing", held=True)


def test_a_prediction_can_fail() -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, situation=Situation(classes=10, optimizer="sgd"))
    stand(diagnosis, range(60), loss=2.3)
    finding = diagnosis.finding()
    assert finding is not None
    assert finding.finding == "plateau"
    diagnosis.intervened(60, finding.advice[0].knob, finding.advice[0].value)
    stand(diagnosis, range(60, 120), loss=2.3)
    assert diagnosis.outcome == Outcome(predicted="healthy", happened="plateau", held=False)
    diagnosis.intervened(120)
    stand(diagnosis, range(120, 180), loss=2.3)
    assert diagnosis.outcome is None, "nothing was predicted of a turn that was not named"


def test_readings_from_before_an_intervention_do_not_count() -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, situation=Situation(classes=10, optimizer="sgd"))
    diagnosis.intervened(100)
    for step in range(100, 160):
        diagnosis.stepped(step, 2.3)
    diagnosis.read(reading(99))
    assert diagnosis.finding() is None
    diagnosis.read(reading(100))
    assert diagnosis.finding() is not None


def test_a_saddle_is_only_named_when_its_curvature_was_given() -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, situation=Situation(classes=10, optimizer="sgd"))
    stand(diagnosis, range(60), loss=2.3)
    assert name_of(diagnosis) == "plateau"
    diagnosis.curvature(3.0, 0.0)
    assert name_of(diagnosis) == "plateau"
    diagnosis.curvature(3.0, -0.5)
    assert name_of(diagnosis) == "saddle"


def test_a_rate_at_the_edge_is_named_by_its_bouncing_or_by_its_sharpness() -> None:
    bouncing = Diagnosis(LAYERS, knobs=ALL, situation=Situation(classes=10, optimizer="sgd"))
    stand(bouncing, range(60), loss=1.0, cosine=-0.98)
    assert name_of(bouncing) == "rate at the edge"
    sharp = Diagnosis(LAYERS, knobs=ALL, situation=Situation(classes=10, optimizer="sgd"))
    stand(sharp, range(60), loss=1.0)
    assert name_of(sharp) == "healthy"
    sharp.curvature(4.99, 0.0, 5.0)
    assert name_of(sharp) == "rate at the edge"


@pytest.mark.parametrize(
    ("values", "situation", "name", "layer"),
    [
        ({"dead_fraction": [1.0, 0.1]}, Situation(classes=10, activation="relu"), "dead units", "blocks.0.linear"),
        ({"saturated_fraction": [0.2, 0.9]}, Situation(classes=10, activation="tanh"), "saturated", "blocks.1.linear"),
        ({"backprop_factor": [1e-2, 1e-2]}, Situation(classes=10), "vanishing", "blocks.0.linear"),
        ({"backprop_factor": [0.0, None]}, Situation(classes=10), "dead units", None),
        ({"update_norm": [1e-5, 1e-5]}, Situation(classes=10, optimizer="sgd"), "rate too small", None),
    ],
)
def test_each_sign_of_a_loss_that_stands_has_its_name(
    values: dict[str, list[float | None]], situation: Situation, name: str, layer: str | None
) -> None:
    diagnosis = Diagnosis(LAYERS, knobs=ALL, situation=situation)
    stand(diagnosis, range(60), loss=2.3, **values)
    assert name_of(diagnosis) == name
    finding = diagnosis.finding()
    assert finding is not None
    assert finding.layer == layer
    assert "  " not in sentence(finding)


def test_a_turn_of_the_rate_agrees_by_its_direction() -> None:
    up = Advice("lr", "*100", "]")
    assert agrees(up, "lr", "*10")
    assert agrees(up, "lr", "/0.1")
    assert agrees(up, "lr", "0.5", "0.05")
    assert not agrees(up, "lr", "/10")
    assert not agrees(up, "lr", "0.05", "0.5")
    assert not agrees(up, "residual", "on")


def test_it_needs_no_torch() -> None:
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
    return ReadingsTaken(
        segment=0, step=step, values=plain | values, ages=[0, 0], global_grad_norm=0.2, watch_cost=0.0,
        global_cosine=cosine,
    )  # fmt: skip


def stand(
    diagnosis: Diagnosis, steps: range, *, loss: float, cosine: float | None = None, **values: list[float | None]
) -> None:
    for step in steps:
        diagnosis.stepped(step, loss)
        if step % 10 == 0:
            diagnosis.read(reading(step, cosine=cosine, **values))


def name_of(diagnosis: Diagnosis) -> str | None:
    finding = diagnosis.finding()
    return finding.finding if finding else None
