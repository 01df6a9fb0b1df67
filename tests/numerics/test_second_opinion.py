"""The second opinion: when it is heard, what it may say, and that the trees are what they are said to be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from diagnosis_fit import CURES, NAMES
from diagnosis_nets import TUNED_FROM
from diagnosis_score import ALL
from test_diagnosis import LAYERS, stand

from tui_descent.protocol.events import Advice
from tui_descent.telemetry.diagnosis import Diagnosis, Situation
from tui_descent.telemetry.diagnosis.advising import advised
from tui_descent.telemetry.diagnosis.forest import MISSING, Forest, forest, numbers
from tui_descent.telemetry.diagnosis.signs import LONG, WINDOW

DESCENT = Situation(classes=10, optimizer="sgd")


def voting(names: Mapping[str, int], cures: Mapping[str, int] | None = None, *, tree: Any = None) -> Forest:
    """A forest of one leaf with these percentages, or of one tree."""
    outputs = [*NAMES, *CURES]
    leaf = {str(outputs.index(name)): share for name, share in {**names, **(cures or {})}.items()}
    features = tuple(numbers(signs_of(DESCENT), DESCENT))
    return Forest(nets=(0, 1), features=features, names=NAMES, cures=CURES, trees=(leaf if tree is None else tree,))


def standing(
    second: Forest | None, *, situation: Situation = DESCENT, loss: float = 2.29, steps: int = LONG
) -> Diagnosis:
    """Of a run that stands: by the rules a plateau, not surely."""
    diagnosis = Diagnosis(LAYERS, knobs=ALL, situation=situation, second=None if second is None else lambda: second)
    stand(diagnosis, range(steps), loss=loss)
    return diagnosis


def signs_of(situation: Situation) -> Any:
    return standing(None, situation=situation).signs()


def test_where_the_rules_are_not_sure_the_trees_are_heard_and_how_sure_they_are_is_told() -> None:
    assert standing(None).finding().finding == "plateau"  # type: ignore[union-attr]
    found = standing(voting({"rate too small": 71, "plateau": 40})).finding()
    assert found is not None
    assert (found.finding, found.sure) == ("rate too small", 0.71)


def test_another_name_must_be_clearly_ahead_of_the_rules() -> None:
    found = standing(voting({"vanishing": 55, "plateau": 50})).finding()
    assert found is not None
    assert (found.finding, found.sure) == ("plateau", 0.5)


@pytest.mark.parametrize(
    ("situation", "steps"),
    [
        (Situation(classes=None, guess=2.3, optimizer="sgd"), LONG),
        (Situation(classes=10, surface=True), LONG),
        (DESCENT, WINDOW),
    ],
    ids=["no classes", "a surface", "too early"],
)
def test_they_are_not_heard_of_runs_unlike_those_they_were_fitted_to(situation: Situation, steps: int) -> None:
    alone = standing(None, situation=situation, steps=steps).finding()
    found = standing(voting({"exploding": 100}), situation=situation, steps=steps).finding()
    assert found == alone


def test_where_the_rules_are_sure_they_are_not_asked() -> None:
    def refuses() -> Forest:
        raise AssertionError("asked")

    diagnosis = Diagnosis(LAYERS, knobs=ALL, situation=DESCENT, second=refuses)
    stand(diagnosis, range(LONG), loss=0.01)
    found = diagnosis.finding()
    assert found is not None
    assert found.finding == "healthy"


def test_what_most_nets_were_cured_by_is_advised_first_and_what_is_there_already_is_not() -> None:
    cures = {
        "residual": 90,
        "norm mid": 80,
        "init he": 70,
        "leaky_relu": 65,
        "adam mapped": 60,
        "lr*100": 55,
        "lr*10": 20,
    }
    shown = standing(voting({"plateau": 90}, cures)).finding()
    assert shown is not None
    assert [(a.knob, a.value) for a in shown.advice][:5] == [
        ("residual", "on"),
        ("norm", "layer,where=mid,way=instant"),
        ("init", "he"),
        ("optimizer", "adam"),
        ("lr", "*100"),
    ]
    assert len({a.knob for a in shown.advice}) == len(shown.advice), "no two ways of one knob"
    there = Situation(classes=10, optimizer="adam", residual=True, norm=True, activation="relu")
    found = standing(voting({"plateau": 90}, cures), situation=there).finding()
    assert found is not None
    assert found.advice[:3] == (
        Advice("init", "he", "i"),
        Advice("activation", "leaky_relu", "a"),
        Advice("lr", "*100", "]"),
    )
    assert not {"residual", "norm", "optimizer"} & {a.knob for a in found.advice}


def test_a_smaller_rate_is_advised_after_an_undo_and_the_healthy_get_no_advice() -> None:
    found = standing(voting({"diverging": 90}, {"lr/10": 90})).finding()
    assert found is not None
    assert [a.value for a in found.advice if a.knob in ("undo", "lr")] == ["1", "/10"]
    well = standing(voting({"healthy": 90}, {"lr/10": 90})).finding()
    assert well is not None
    assert (well.finding, well.advice) == ("healthy", ())


def test_a_tree_goes_low_up_to_its_threshold_and_votes_are_means() -> None:
    at = list(numbers(signs_of(DESCENT), DESCENT)).index("now")
    tree = [at, 0.5, {"0": 100}, [at, 0.75, {"1": 100}, {"2": 60}]]
    made = Forest(nets=(0, 1), features=(), names=NAMES, cures=CURES, trees=(tree, {"0": 50}))
    for now, shares in ((0.5, [0.75, 0.0, 0.0]), (0.6, [0.25, 0.5, 0.0]), (0.8, [0.25, 0.0, 0.3])):
        values = [MISSING] * at + [now]
        assert made.shares(values)[:3] == pytest.approx(shares)


def test_the_trees_that_are_shipped_were_fitted_to_the_tuning_pool_and_look_at_what_is_told() -> None:
    shipped = forest()
    assert min(shipped.nets) >= TUNED_FROM
    assert shipped.nets[1] - shipped.nets[0] >= 1000
    assert shipped.features == tuple(numbers(signs_of(DESCENT), DESCENT))
    assert (shipped.names, shipped.cures) == (NAMES, CURES)
    opinion = shipped.opinion(signs_of(DESCENT), DESCENT)
    assert all(0 <= share <= 1 for share in (*opinion.names.values(), *opinion.cures.values()))
    assert max(opinion.names.values()) > 0.3


@pytest.mark.parametrize("optimizer", ["sgd", "adam", None])
@pytest.mark.parametrize("size", [None, 0.0, 1e-300, 1e300, math.inf, math.nan])
def test_whatever_was_measured_the_trees_can_be_heard(size: float | None, optimizer: str | None) -> None:
    situation = Situation(classes=10, optimizer=optimizer)
    signs = msgspec.structs.replace(
        signs_of(situation), stride=size, moved=size, product=size, first_product=size, growth=size, noise=size or 0.0
    )
    assert all(math.isfinite(value) for value in numbers(signs, situation).values())
    cures = forest().opinion(signs, situation).cures
    for name in NAMES:
        for a in advised(name, cures, signs, situation):  # type: ignore[arg-type]
            assert a.value


def test_numbers_are_finite_whatever_was_measured() -> None:
    for loss in (2.29, 1e300, -1e300, 0.0):
        found = standing(None, loss=loss).signs()
        assert found is not None
        assert all(math.isfinite(value) for value in numbers(found, DESCENT).values())
