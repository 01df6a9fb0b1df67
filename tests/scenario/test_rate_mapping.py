"""The table of optimizers, and the conversion of learning rates between them."""

from __future__ import annotations

import pytest

from tui_descent.scenario.optimizers import NAMES, OPTIMIZERS, map_rate, refusal
from tui_descent.scenario.toml import ScenarioError, from_text


def test_the_table_has_every_optimizer_of_the_scenario() -> None:
    assert tuple(OPTIMIZERS) == NAMES == ("sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "muon")


@pytest.mark.parametrize("old", NAMES)
@pytest.mark.parametrize("new", NAMES)
def test_converting_back_restores_the_rate_and_scaling_commutes(old: str, new: str) -> None:
    there = map_rate(old, new, 0.037)
    assert map_rate(new, old, there.lr).lr == pytest.approx(0.037, rel=1e-15)
    assert map_rate(old, new, 0.037 * 0.25).lr == there.lr * 0.25
    assert there.text.startswith("0.037 ")


def test_the_factors_lie_within_the_measured_ranges() -> None:
    assert 15 < map_rate("adam", "sgd", 1.0).lr < 100
    assert 4 < map_rate("adam", "momentum", 1.0).lr < 25
    assert map_rate("adamw", "muon", 0.003).lr == 0.003


@pytest.mark.parametrize(
    ("old", "new", "lr", "text"),
    [
        ("sgd", "adam", 0.1, "0.1 → 0.0026 (÷39: Adam's steps are larger)"),
        ("adamw", "sgd", 0.001, "0.001 → 0.039 (×39: SGD's steps are smaller)"),
        ("sgd", "nesterov", 0.1, "0.1 → 0.026 (÷3.9: Nesterov's steps are larger)"),
        ("adam", "muon", 0.00123, "0.00123 kept: Adam and Muon use similar rates"),
        ("adam", "adam", 0.00123, "0.00123 kept"),
    ],
)
def test_a_conversion_describes_itself(old: str, new: str, lr: float, text: str) -> None:
    assert map_rate(old, new, lr).text == text


@pytest.mark.parametrize(("old", "lr"), [("sgd", 0.05), ("rmsprop", 0.05), ("momentum", 4.0)])
def test_a_rate_given_by_the_scenario_takes_precedence(old: str, lr: float) -> None:
    known = map_rate(old, "adam", lr, known=0.003)
    assert known.lr == 0.003
    assert known.text == f"{lr:.2g} → 0.003 (the scenario's rate for Adam)"
    assert map_rate("adam", "adam", lr, known=0.003).lr == lr, "the optimizer does not change"
    assert map_rate(old, "adam", 0.003, known=0.003).text == "0.003 kept (the scenario's rate for Adam)"


def test_an_unknown_optimizer_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r'no rate is known for the optimizer "adamm"; known: sgd, .* did you mean "adam"'
    ):
        map_rate("sgd", "adamm", 0.1)


def test_a_refusal_says_what_can_be_set_instead() -> None:
    assert refusal("adam", "momentum") == "adam has betas instead of momentum; try betas=…"
    assert refusal("nesterov", "betas") == "nesterov has momentum instead of betas; try momentum=…"
    assert refusal("rmsprop", "betas") == "rmsprop has no betas to set; try optimizer=adam"
    assert refusal("lbfgs", "momentum") == "lbfgs has no momentum to set; try optimizer=momentum"
    assert [
        refusal(*ask) for ask in (("sgd", "momentum"), ("adam", "betas"), ("muon", "momentum"), ("muon", "betas"))
    ] == ([None] * 4)


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ('[optimizer]\nname = "moun"', "optimizer.name", 'did you mean "muon"?'),
        ("[optimizer]\nclip = 0", "optimizer.clip", "found 0; allowed: a number > 0 and ≤ 1e+06"),
        (
            '[optimizer]\nname = "nesterov"\nmomentum = 0',
            "optimizer.momentum",
            "allowed for nesterov: > 0; or use name",
        ),
        ("[optimizer]\nmomentum = 1", "optimizer.momentum", "found 1; allowed: a number ≥ 0 and < 1"),
    ],
)
def test_an_invalid_optimizer_table_names_place_and_allowed_values(text: str, place: str, said: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        from_text('title = "t"\ndata = "digits"\nmodel = "mlp"\n' + text, source="x")
    (problem,) = caught.value.problems
    assert problem.place == place
    assert said in problem.text


def test_a_surface_has_no_matrices_for_muon() -> None:
    with pytest.raises(ScenarioError, match=r"optimizer\.name: muon needs weight matrices; a test surface has"):
        from_text('title = "t"\nmodel = "surface"\noptimizer = "muon"', source="x")
