"""A kick along the most negative curvature: its direction, its effect at a saddle, and where it is rejected."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from fake_keeper import FakeKeeper
from knob_turns import steering_of
from net_families import setup as make_setup
from nets import copy_of, digit_batches, loss_of, mlp, same
from torch import Tensor
from torch.func import functional_call

from tui_descent.protocol.events import CommandRejected, KnobTurned
from tui_descent.scenario.knobs import parse
from tui_descent.scenario.toml import from_table, read
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.watch.watch import Watch

SADDLE = Path(__file__).parents[3] / "presets" / "saddle.toml"
LEFT = -0.5  # the loss at which the saddle is left; the two minima have -1


def saddle(start: tuple[float, float], function: str = "saddle") -> Setup:
    table = {
        "title": "t",
        "model": {"name": "surface", "function": function, "start": list(start)},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "run": {"dtype": "float64", "device": "cpu"},
    }
    return build(from_table(table, source="test"), on=torch.device("cpu"))


def steps_to_leave(
    start: tuple[float, float], plan: list[tuple[int, str]], keeper: FakeKeeper | None = None, *, most: int = 2000
) -> int | None:
    made = saddle(start)
    turns = [(at, parse(text)) for at, text in plan]
    link = keeper.link if keeper else None
    with Watch(made.model, made.optimizer, link=link, steering=steering_of(made), plan=turns, is_scenario=True) as run:
        run.begin_step()
        while run.next_step < most:
            loss = made.loss()
            if loss.item() < LEFT:
                return run.next_step
            made.optimizer.zero_grad()
            loss.backward()
            made.optimizer.step()
            run.step(loss)
    return None


def test_a_kick_leaves_the_saddle_in_a_third_of_the_steps(keeper: FakeKeeper) -> None:
    without = steps_to_leave((1.0, 1e-6), [])
    assert without == pytest.approx(693, abs=10), "as measured for the preset"
    with_it = steps_to_leave((1.0, 1e-6), [(0, "kick=0.01")], keeper)
    assert with_it is not None
    assert with_it == pytest.approx(693 - math.log(1e4) / math.log(1.02), abs=15)
    further = steps_to_leave((1.0, 1e-6), [(0, "kick=0.1,way=curvature")])
    assert further is not None
    assert further < with_it - 80
    (turned,) = keeper.events(KnobTurned)
    assert turned.way == "curvature", "the only way to kick a point"
    assert turned.note.startswith("λmin = -2 ± ")
    assert turned.loss_after - turned.loss_before == pytest.approx(-((0.01 + 1e-6) ** 2) + 0.01**4 / 4, rel=1e-3)


def test_a_kick_leaves_the_ridge_that_plain_descent_never_leaves() -> None:
    assert steps_to_leave((1.0, 0.0), [], most=3000) is None
    left = steps_to_leave((1.0, 0.0), [(100, "kick=0.01")])
    assert left is not None
    assert left < 400


def test_the_claims_of_the_saddle_preset_use_the_kick() -> None:
    assert any("kick" in given for claim in read(SADDLE).claim for given in claim.given)


@pytest.mark.parametrize("start", [(0.0, math.sqrt(2)), (0.3, -1.4)])
def test_a_kick_is_rejected_if_no_curvature_is_negative(start: tuple[float, float], keeper: FakeKeeper) -> None:
    made = saddle(start)
    before = copy_of(made.model)
    with Watch(
        made.model, made.optimizer, link=keeper.link, steering=steering_of(made), plan=[(0, parse("kick=0.1"))]
    ) as r:
        r.begin_step()
    (rejected,) = keeper.events(CommandRejected)
    assert rejected.reason.startswith(
        "no curvature is negative here, so there is no direction to kick along: λmin = 2 ± "
    )
    assert same(copy_of(made.model), before)


def test_a_surface_rejects_a_random_kick() -> None:
    with pytest.raises(ValueError, match=r"no layers to kick at random; use kick=0.1,way=curvature"):
        steering_of(saddle((1.0, 0.0))).turn(parse("kick=0.1,way=random"))


def full_hessian(made: Setup) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The Hessian, the gradient of the probe loss, and the parameters, by plain autograd in float64."""
    named = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    shapes = [(n, p.shape, p.numel()) for n, p in named.items()]
    x, y = made.batches.first(max(made.batches.size, 256))

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([size for *_, size in shapes])
        weights = {n: part.reshape(shape) for (n, shape, _), part in zip(shapes, parts, strict=True)}
        return made.loss_function(functional_call(made.model, weights, (x,)), y)

    flat = torch.cat([p.flatten() for p in named.values()])
    return torch.autograd.functional.hessian(loss, flat), torch.autograd.functional.jacobian(loss, flat), named


@pytest.mark.parametrize("seed", range(3))
def test_the_kick_follows_the_lowest_eigenvector_of_the_full_hessian(seed: int, keeper: FakeKeeper) -> None:
    made = make_setup("mlp", seed=seed, dtype="float64", depth=2, width=4, activation="tanh")
    hessian, gradient, before = full_hessian(made)
    theta, vectors = torch.linalg.eigh(hessian)
    plan = [(0, parse("kick=0.01,way=curvature"))]
    with Watch(made.model, made.optimizer, link=keeper.link, steering=steering_of(made), plan=plan) as run:
        run.begin_step()
    moved = torch.cat([(p.detach() - before[n]).flatten() for n, p in made.model.named_parameters()])
    whole = torch.cat([p.flatten() for p in before.values()]).norm()
    assert moved.norm().item() == pytest.approx(0.01 * whole.item(), rel=1e-9)
    rayleigh = (moved @ hessian @ moved / moved.dot(moved)).item()
    assert rayleigh == pytest.approx(theta[0].item(), rel=2e-2), "along an eigenvector of the lowest eigenvalue"
    assert moved.dot(gradient) < 0
    (turned,) = keeper.events(KnobTurned)
    reported = float(turned.note.split()[2])
    assert reported == pytest.approx(theta[0].item(), rel=1e-2)
    assert turned.loss_after < turned.loss_before
    if theta[1] - theta[0] > 0.2 * abs(theta[0]):
        assert abs(torch.dot(moved / moved.norm(), vectors[:, 0]).item()) > 0.95


def test_a_kick_leaves_frozen_weights_and_repeats_bit_for_bit() -> None:
    ends = []
    for _ in range(2):
        made = make_setup("mlp", depth=2, width=8)
        steering = steering_of(made)
        steering.turn(parse("freeze@head=on"))
        before = made.model.head.weight.detach().clone()
        torch.rand(len(ends) + 1)  # random numbers drawn in between make no difference
        state = torch.get_rng_state()
        steering.turn(parse("kick=0.02,way=curvature"), step=5)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(made.model.head.weight, before)
        ends.append(copy_of(made.model))
    assert same(*ends)
    assert not same(ends[0], copy_of(make_setup("mlp", depth=2, width=8).model))


def test_a_user_loop_rejects_a_curvature_kick_with_the_reason(keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(
        net, optimizer, link=keeper.link, plan=[(1, parse("kick=0.1,way=curvature")), (1, parse("kick=0.1"))]
    ) as run:
        for batch in digit_batches(2):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    rejected, turned = (e for e in keeper.events() if isinstance(e, CommandRejected | KnobTurned))
    assert rejected.reason.startswith("not available for your own loop: its batches cannot be replayed")
    assert turned.way == "random"
