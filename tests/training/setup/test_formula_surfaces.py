"""Surfaces that are written as a formula: values, derivatives, and the critical points that are found."""

from __future__ import annotations

import math
import random

import pytest
import torch

from tui_descent.scenario.formula import FUNCTIONS
from tui_descent.scenario.spec import SurfaceModel
from tui_descent.training.setup.nets.critical_points import MOST_FOUND
from tui_descent.training.setup.nets.formula import function_of
from tui_descent.training.setup.nets.surface import CRITICAL_POINTS, Surface, known_points

# The formula, and the same in Python.
SAME = {
    "x^2 - y^2 + y^4/4": lambda x, y: x**2 - y**2 + y**4 / 4,
    "x - y - 1": lambda x, y: (x - y) - 1,
    "x / y / 2": lambda x, y: x / y / 2,
    "-x^2": lambda x, y: -(x**2),
    "2^-x": lambda x, y: 2**-x,
    "2^x^2": lambda x, y: 2 ** (x**2),
    "2*-x + +y": lambda x, y: -2 * x + y,
    "- - x*y": lambda x, y: x * y,
    "1.5e-1*x + .5*y + 2.": lambda x, y: 0.15 * x + 0.5 * y + 2,
    "exp(-(x^2 + y^2)/2)": lambda x, y: math.exp(-(x**2 + y**2) / 2),
    "sin(pi*x)*cosh(y) + tanh(x)": lambda x, y: math.sin(math.pi * x) * math.cosh(y) + math.tanh(x),
    "log(e^x + 1) + sqrt(abs(y))": lambda x, y: math.log(math.exp(x) + 1) + math.sqrt(abs(y)),
    "cos(x) + tan(x/4) + atan(y) + sinh(y)": lambda x, y: math.cos(x) + math.tan(x / 4) + math.atan(y) + math.sinh(y),
    "x**3": lambda x, y: x**3,
    " ( ( x ) ) ": lambda x, y: x,
}


@pytest.mark.parametrize("formula", SAME)
def test_formula_has_the_value_and_the_slope_of_the_same_in_python(formula: str) -> None:
    f, generator = SAME[formula], random.Random(0)
    for _ in range(10):
        x, y = (generator.uniform(0.3, 1.5) for _ in range(2))
        surface = Surface(SurfaceModel(formula=formula, start=(x, y)))
        loss = surface()
        loss.backward()
        assert loss.item() == pytest.approx(f(x, y), rel=1e-13, abs=1e-13)
        h = 1e-6
        slopes = (f(x + h, y) - f(x - h, y)) / (2 * h), (f(x, y + h) - f(x, y - h)) / (2 * h)
        assert surface.w.grad is not None
        assert surface.w.grad.tolist() == pytest.approx(slopes, rel=1e-6, abs=1e-8)


def test_every_function_is_tried() -> None:
    assert [name for name in FUNCTIONS if not any(f"{name}(" in formula for formula in SAME)] == []


def test_formula_is_evaluated_in_the_numbers_of_the_run() -> None:
    surface = Surface(SurfaceModel(formula="x/3 + pi", start=(1.0,))).to(torch.float32)
    assert surface().dtype == torch.float32


@pytest.mark.parametrize(
    ("formula", "value"),
    [("log(x)", -math.inf), ("1/x", math.inf), ("sqrt(x - 1)", math.nan), ("10^1000*x", math.nan), ("x^0", 1.0)],
)
def test_where_a_formula_is_not_defined_its_value_is_not_finite(formula: str, value: float) -> None:
    assert function_of(formula)(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(value, nan_ok=True)


KINDS = {
    "x^3 - 3*x*y^2 + (x^2 + y^2)^2/4": ((0.01, 0.005), "monkey_saddle"),
    "(1 - x)^2 + 100*(y - x^2)^2": ((-1.2, 1.0), "rosenbrock"),
    "(x^2 + y - 11)^2 + (x + y^2 - 7)^2": ((0.0, 0.0), "himmelblau"),
    "(1.5-x+x*y)^2 + (2.25-x+x*y^2)^2 + (2.625-x+x*y^3)^2": ((1.0, 1.5), "beale"),
    "(x^2 + 100*y^2)/2": ((10.0, 1.0), "valley"),
    "(2*x - 3)^2": ((1.0,), "fragment"),
}


@pytest.mark.parametrize("formula", KINDS)
def test_points_of_a_formula_are_those_that_are_known(formula: str) -> None:
    start, name = KINDS[formula]
    found = known_points(SurfaceModel(formula=formula, start=start))
    known = CRITICAL_POINTS[name]
    assert len(found) == len(known)
    for point in known:
        nearest = min(found, key=lambda other: math.dist(other.at, point.at))
        assert nearest.kind == point.kind
        assert nearest.at == pytest.approx(point.at, abs=1e-6)


@pytest.mark.parametrize(
    ("formula", "start", "kinds"),
    [
        ("x^4 - x^2", (1.0,), ["minimum", "maximum", "minimum"]),
        ("exp(-x^2 - y^2)", (0.5, 0.5), ["maximum"]),
        ("x*y", (1.0, 0.5), ["saddle"]),
        ("(x - 100)^2 + (y - 50)^2", (90.0, 90.0), ["minimum"]),
        ("log(x)^2 + y^2", (2.0, 1.0), ["minimum"]),
        ("x^3", (1.0,), []),  # an inflection point
        ("(x - y)^2", (1.0, 2.0), []),  # a line of minima
        ("x^2", (1.0, 1.0), []),
        ("x + y", (1.0, 1.0), []),
        ("abs(x) + abs(y)", (1.0, 1.0), []),
        ("sqrt(x - 1e9)", (1.0,), []),  # not finite anywhere near
        ("x^2", (1e300,), []),
    ],
)
def test_kinds_of_the_points_that_are_found(formula: str, start: tuple[float, ...], kinds: list[str]) -> None:
    assert [point.kind for point in known_points(SurfaceModel(formula=formula, start=start))] == kinds


def test_of_many_points_the_closest_to_the_start_are_marked() -> None:
    found = known_points(SurfaceModel(formula="sin(5*x)*sin(5*y)", start=(1.0, 0.3)))
    assert len(found) == MOST_FOUND
    assert {point.kind for point in found} == {"minimum", "maximum", "saddle"}
    assert max(math.dist(point.at, (1.0, 0.3)) for point in found) < 2.0
