"""`--set key=value`: what it can change, and its error messages."""

from __future__ import annotations

from typing import Any

import pytest
from small_scenario import SMALL, make

from tui_descent.scenario import presets
from tui_descent.scenario.spec import (
    ActivationSpec,
)
from tui_descent.scenario.toml import ScenarioError, to_table


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=0.5", ("optimizer", "lr", 0.5)),
        ("run.steps=7", ("run", "steps", 7)),
        ('run.device="cpu"', ("run", "device", "cpu")),
        ("run.device=cpu", ("run", "device", "cpu")),
        ("model.activation=gelu", ("model", "activation", ActivationSpec(name="gelu"))),
        ("model.depth=3", ("model", "depth", 3)),
        ("data.subset=300", ("data", "subset", 300)),
        ("data.full=true", ("data", "full", True)),
        ("run.pace=max", ("run", "pace", "max")),
    ],
)
def test_an_override_sets_one_value(override: str, expected: tuple[str, str, Any]) -> None:
    table, key, value = expected
    plain, changed = make(SMALL), make(SMALL, override)
    assert getattr(getattr(changed, table), key) == value
    assert to_table(changed) | {table: None} == to_table(plain) | {table: None}


def test_an_override_extends_a_table_given_by_its_name() -> None:
    text = SMALL + 'activation = "leaky_relu"'
    assert make(text, "model.activation.slope=0.2").model.activation == ActivationSpec(name="leaky_relu", slope=0.2)  # type: ignore[union-attr]


def test_overrides_are_applied_in_order() -> None:
    assert make(SMALL, "run.seed=1", "run.seed=2").run.seed == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr=nan", "optimizer.lr: found nan"),
        ("optimizer.lr=quick", 'optimizer.lr: found "quick"; allowed: a number'),
        ("optimizer.lrr=1", 'did you mean "lr"?'),
        ("nope=1", "nope: unknown key"),
        ("nope", "expected place=value, as in data.batch_size=128"),
        ("=1", "expected place=value"),
        ("title.x.y=1", "title"),
        ("run.steps.x=1", "run.steps: found a table; allowed: a whole number"),
        ("run..steps=1", "run.'': unknown key"),
        ("run.steps=", 'run.steps: found ""'),
        ("run.steps=" + "9" * 5000, "run.steps"),
        ("run.steps=" + "[" * 5000, "run.steps"),
        ("claim.x=1", "claim"),
    ],
    ids=lambda text: text[:20],
)
def test_an_invalid_override_names_its_place(override: str, said: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        make(SMALL, override)
    assert said in str(caught.value)


def test_an_override_below_a_number_is_an_error() -> None:
    with pytest.raises(ScenarioError, match=r"run\.steps\.x: steps is not a table"):
        make(SMALL, "run.steps=3", "run.steps.x=1")


def test_an_override_may_shorten_the_run_below_its_claims() -> None:
    _, scenario = presets.find("vanishing", overrides=["run.steps=10"])
    assert scenario.run.steps == 10
