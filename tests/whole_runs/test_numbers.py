"""Losses of the presets against closed forms, and bitwise reproducibility."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import Outcome, temporary_home
from same_process import run

HEAVY = pytest.mark.heavy
TURN_AT = 150


@pytest.fixture(scope="module")
def descent() -> Iterator[Outcome]:
    with temporary_home() as home:
        yield run("first-descent", "--headless", "--json", "--watch-every", "1", home=home)


def test_first_descent_multiplies_the_loss_by_a_twenty_fifth_per_step(descent: Outcome) -> None:
    assert descent.code == 0
    assert len(descent.losses) == 10
    for k, loss in enumerate(descent.losses):
        assert math.isclose(loss, 0.04**k, rel_tol=1e-8), k


def test_first_descent_ends_where_the_closed_form_does(descent: Outcome) -> None:
    assert descent.ended["status"] == "finished"
    assert descent.ended["step"] == 10
    (w,) = descent.ended["position"]
    assert abs(w - 1.4999999488) < 1e-12
    assert math.isclose(w, 1.5 - 0.5 * 0.2**10, rel_tol=1e-14)
    assert math.isclose(descent.ended["loss"], 0.04**10, rel_tol=1e-6)


def test_the_gradient_of_first_descent_is_the_slope(descent: Outcome) -> None:
    readings = descent.events("reading")
    assert [line["step"] for line in readings] == list(range(10))
    for line in readings:
        w = 1.5 - 0.5 * 0.2 ** line["step"]
        assert math.isclose(line["global_grad_norm"], abs(4 * (2 * w - 3)), rel_tol=1e-6)


def vanishing(seed: int, home: Path) -> tuple[Outcome, Outcome]:
    options = ("vanishing", "--json", "--seed", str(seed))
    plain = run(*options, "--steps", "160", "--watch-every", "20", home=home)
    turned = run(*options, "--at", f"{TURN_AT}:residual=on", "--watch-budget", "0", home=home)
    return plain, turned


@pytest.fixture(scope="module", params=[0, *(pytest.param(n, marks=HEAVY) for n in (1, 2, 3, 4))])
def seeded(request: pytest.FixtureRequest) -> Iterator[tuple[Outcome, Outcome]]:
    with temporary_home() as home:
        yield vanishing(request.param, home)


def mean(losses: list[float], first: int, last: int) -> float:
    return math.fsum(losses[first:last]) / (last - first)


def test_twenty_sigmoid_layers_make_the_gradient_vanish(seeded: tuple[Outcome, Outcome]) -> None:
    plain, _ = seeded
    assert plain.code == 0
    readings = plain.events("reading")
    assert [line["step"] for line in readings] == list(range(0, 160, 20))
    assert all(line["first_to_last_grad"] < 1e-6 for line in readings)
    assert mean(plain.losses, 100, 160) > 2.2, "a random guess among ten classes has 2.30"


def test_the_residual_connection_halves_the_loss_within_sixty_steps(seeded: tuple[Outcome, Outcome]) -> None:
    _, turned = seeded
    assert turned.code == 0
    before = mean(turned.losses, TURN_AT - 20, TURN_AT)
    assert mean(turned.losses, TURN_AT + 50, TURN_AT + 60) < before / 2
    assert turned.ended["accuracy"] > 0.9
    (line,) = turned.events("intervention")
    wanted = {"step": TURN_AT, "knob": "residual", "target": "all", "old": "off", "new": "on", "source": "plan"}
    assert {key: line[key] for key in wanted} == wanted
    assert line["scale"] == 20**-0.5


def test_losses_before_an_intervention_are_bitwise_unchanged(seeded: tuple[Outcome, Outcome]) -> None:
    plain, turned = seeded
    assert turned.losses[:TURN_AT] == plain.losses[:TURN_AT]
    assert turned.losses[TURN_AT] != plain.losses[TURN_AT]


HEALTHY = ("healthy", "--json", "--steps", "120")


@pytest.fixture(scope="module")
def twice() -> Iterator[list[Outcome]]:
    with temporary_home() as home:
        yield [run(*HEALTHY, *how, home=home) for how in (("--watch-every", "1"), ("--watch-budget", "0"))]


@pytest.mark.heavy
def test_the_same_seed_gives_bitwise_the_same_run(twice: list[Outcome]) -> None:
    first, again = twice[0], run(*HEALTHY, "--watch-every", "1")
    assert first.code == again.code == 0
    assert first.losses == again.losses
    assert len(first.losses) == 120
    assert without_times(first) == without_times(again)


def test_losses_do_not_depend_on_how_often_readings_are_taken(twice: list[Outcome]) -> None:
    every, never = twice
    assert [line["step"] for line in every.events("reading")] == list(range(120))
    assert never.events("reading") == []
    assert every.losses == never.losses
    assert (every.ended["loss"], every.ended["accuracy"]) == (never.ended["loss"], never.ended["accuracy"])


def test_json_lines_are_in_the_order_of_the_steps(twice: list[Outcome]) -> None:
    made = 0
    for line in twice[0].lines:
        if line["event"] == "step":
            assert line["step"] == made
            made += 1
        elif line["event"] == "evaluated":
            assert line["step"] == made
        elif line["event"] == "reading":
            assert line["step"] < made
    assert made == 120


def without_times(outcome: Outcome) -> list[dict[str, object]]:
    """Readings by layer, and everything else that does not depend on the clock or the run's name."""
    kinds = ("reading", "evaluated", "run_ended")
    return [
        {key: value for key, value in line.items() if key != "watch_cost"}
        for kind in kinds
        for line in outcome.events(kind)
    ]
