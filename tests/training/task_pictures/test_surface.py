"""The picture of a test surface: its grid, its box, the path, minima and saddles."""

from __future__ import annotations

import math
from array import array
from itertools import pairwise

import msgspec
import pytest
import torch
from torch import Tensor

from tui_descent.protocol import codec
from tui_descent.protocol.task_pictures import MAX_PATH, MAX_SURFACE_CELLS
from tui_descent.scenario import presets
from tui_descent.scenario.spec import SurfaceModel
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.setup.nets.surface import CRITICAL_POINTS, FUNCTIONS
from tui_descent.training.setup.path import Path
from tui_descent.training.task_pictures.surface import MOST_DOUBLINGS, SurfacePainter

STARTS = {
    "fragment": (1.0,),
    "valley": (10.0, 1.0),
    "saddle": (1.0, 1e-6),
    "monkey_saddle": (0.01, 0.005),
    "rosenbrock": (-1.2, 1.0),
    "bowl": (1.0, -0.5),
    "beale": (1.0, 1.5),
    "himmelblau": (0.0, 0.0),
}


def made(function: str, start: object = None) -> Setup:
    start = start or list(STARTS[function])
    _, scenario = presets.find("saddle", overrides=[f"model.function={function}", f"model.start={start}"])
    return build(scenario, on=torch.device("cpu"))


def made_of(formula: str, *start: float) -> Setup:
    _, scenario = presets.find("saddle")
    model = SurfaceModel(formula=formula, start=start)
    return build(msgspec.structs.replace(scenario, model=model), on=torch.device("cpu"))


def stepped(setup: Setup, steps: int, first: int = 0) -> None:
    assert setup.path is not None
    for step in range(first, first + steps):
        setup.path.add(step)
        loss = setup.loss()
        setup.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        setup.optimizer.step()


@pytest.mark.parametrize("function", STARTS)
def test_critical_points_are_what_they_are_called(function: str) -> None:
    f = FUNCTIONS[function]
    for point in CRITICAL_POINTS[function]:
        w = torch.tensor(point.at, dtype=torch.float64)
        (gradient,) = torch.autograd.functional.jacobian(f, (w,))
        assert gradient.abs().max() < 1e-11
        angles = torch.linspace(0, 2 * math.pi, 49, dtype=torch.float64)
        around = torch.stack([angles.cos(), angles.sin()])[: len(point.at)]
        rise = f(w[:, None] + 1e-2 * around) - f(w)
        if len(point.at) == 1:
            rise = rise[around[0].abs() > 0.1]
        assert {"minimum": rise.min() > 0, "maximum": rise.max() < 0, "saddle": rise.min() < 0 < rise.max()}[point.kind]
    assert set(STARTS) == set(FUNCTIONS)


@pytest.mark.parametrize("function", STARTS)
def test_the_grid_has_the_loss_at_the_centre_of_every_cell(function: str) -> None:
    setup = made(function)
    picture = SurfacePainter(setup).picture(30, 20)
    losses = array("f", picture.losses)
    two = len(picture.point) == 2
    assert (picture.columns, picture.rows, len(losses)) == (30, 20 if two else 1, 600 if two else 30)
    for row in range(picture.rows):
        for column in range(30):
            x = picture.low[0] + (picture.high[0] - picture.low[0]) * (column + 0.5) / 30
            at = [x]
            if two:
                at.append(picture.high[1] - (picture.high[1] - picture.low[1]) * (row + 0.5) / 20)
            true = FUNCTIONS[function](torch.tensor(at, dtype=torch.float64)).item()
            assert losses[row * 30 + column] == pytest.approx(true, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("function", STARTS)
def test_start_and_critical_points_are_inside_the_box(function: str) -> None:
    picture = SurfacePainter(made(function)).picture(30, 20)
    for at in (STARTS[function], *(point.at for point in picture.critical)):
        assert all(low < x < high for low, x, high in zip(picture.low, at, picture.high, strict=True))


def test_point_loss_and_gradient_are_those_of_the_run() -> None:
    setup = made("saddle")
    stepped(setup, 5)
    picture = SurfacePainter(setup).picture(30, 20)
    x, y = picture.point
    assert picture.point == tuple(next(setup.model.parameters()).tolist())
    assert picture.loss == x**2 - y**2 + y**4 / 4
    assert picture.gradient == (2 * x, -2 * y + y**3)
    path = array("d", picture.path)
    assert len(path) == 10
    assert tuple(path[:2]) == STARTS["saddle"]
    assert path[2] == pytest.approx(0.98)


def test_box_grows_with_the_path_and_stays_bounded_when_the_run_diverges() -> None:
    setup = made("fragment")
    painter = SurfacePainter(setup)
    small = painter.picture(30, 1)
    (w,) = setup.model.parameters()
    w.data.fill_(4.0)
    grown = painter.picture(30, 1)
    assert grown.high[0] > 4
    assert painter.picture(30, 1).high == grown.high
    w.data.fill_(1e30)
    far = painter.picture(30, 1)
    assert far.high[0] - far.low[0] == pytest.approx((small.high[0] - small.low[0]) * 2**MOST_DOUBLINGS)
    for value in (math.inf, math.nan):
        w.data.fill_(value)
        assert painter.picture(30, 1).high == far.high


@pytest.mark.parametrize("start", ["[1e300]", "[1e20]", "[1.5]"])
def test_box_of_an_unusual_start_is_finite(start: str) -> None:
    picture = SurfacePainter(made("fragment", start)).picture(30, 1)
    assert picture.low[0] < 1.5 < picture.high[0]
    assert math.isfinite(picture.high[0] - picture.low[0])


def test_box_does_not_move_while_the_path_stays_in_it() -> None:
    setup = made("saddle")
    painter = SurfacePainter(setup)
    first = painter.picture(30, 20)
    stepped(setup, 60)
    assert (painter.picture(30, 20).low, painter.picture(30, 20).losses) == (first.low, first.losses)


def test_a_path_is_bounded_and_keeps_its_start_and_both_sides_of_a_bouncing_point() -> None:
    w = torch.tensor([0.0])
    path = Path(w)
    for step in range(20_000):
        w.fill_(1.0 + (-1) ** step if step else -5.0)
        path.add(step)
    positions = path.positions()
    assert MAX_PATH // 3 < len(positions) <= MAX_PATH
    assert positions[0] == (-5.0,)
    assert {b for a, b in pairwise(positions) if a == (0.0,)} == {(2.0,)}


def test_a_repeated_step_replaces_the_dropped_one() -> None:
    w = torch.tensor([1.0])
    path = Path(w)
    for step in (0, 1, 1, 2):
        path.add(step)
        w.add_(1)
    assert path.positions() == [(1.0,), (3.0,), (4.0,)]


def test_undo_restores_the_path() -> None:
    setup = made("saddle")
    stepped(setup, 3)
    before, known = setup.state(), setup.path.positions() if setup.path else []
    stepped(setup, 4, first=3)
    after = setup.state()
    setup.restore(before)
    assert setup.path is not None
    assert setup.path.positions() == known
    stepped(setup, 1, first=3)
    setup.restore(after)
    assert len(setup.path.positions()) == 7


@pytest.mark.parametrize("function", ["fragment", "saddle"])
def test_picture_of_any_size_is_bounded(function: str) -> None:
    setup = made(function)
    assert setup.path is not None
    for step in range(3 * MAX_PATH):
        setup.path.add(step)
    painter = SurfacePainter(setup)
    for size in ((0, 0), (-5, 3), (1, 1), (1, 10**9), (10**9, 1), (10**6, 10**6), (300, 100)):
        picture = painter.picture(*size)
        assert 2 <= picture.columns * picture.rows <= MAX_SURFACE_CELLS
        assert len(picture.losses) == 4 * picture.columns * picture.rows
        assert len(codec.encode(picture)) < 64 * 1024


def test_the_picture_leaves_parameter_and_gradient_alone() -> None:
    setup = made("saddle")
    (w,) = setup.model.parameters()
    w.grad = torch.ones_like(w)
    grad: Tensor = w.grad
    before = w.detach().clone()
    SurfacePainter(setup).picture(30, 20)
    assert torch.equal(w, before)
    assert w.grad is grad
    assert torch.equal(grad, torch.ones_like(w))


def test_picture_of_a_formula_marks_the_points_that_were_found() -> None:
    picture = SurfacePainter(made_of("x^2 - y^2 + y^4/4", 1.0, 1e-6)).picture(30, 20)
    ours = SurfacePainter(made("saddle")).picture(30, 20)
    assert [p.kind for p in picture.critical] == [p.kind for p in ours.critical]
    for found, known in zip(picture.critical, ours.critical, strict=True):
        assert found.at == pytest.approx(known.at, abs=1e-9)
    assert (picture.low, picture.high) == (pytest.approx(ours.low), pytest.approx(ours.high))


def test_picture_of_a_formula_without_critical_points_is_around_the_start() -> None:
    picture = SurfacePainter(made_of("x + 2*y", 3.0, 1.0)).picture(30, 20)
    assert picture.critical == ()
    assert (picture.low, picture.high) == (pytest.approx((-0.36, -2.36)), pytest.approx((6.36, 4.36)))


@pytest.mark.parametrize(
    ("formula", "start"), [("log(x) + y^2", (1.0, 1.0)), ("1/x", (1.0,)), ("x^0.5*y", (1e200, 1.0))]
)
def test_picture_of_a_formula_that_is_not_defined_everywhere(formula: str, start: tuple[float, ...]) -> None:
    picture = SurfacePainter(made_of(formula, *start)).picture(30, 20)
    losses = array("f", picture.losses)
    assert len(losses) == picture.columns * picture.rows
    assert any(map(math.isfinite, losses))
