"""The network changed during training: with the documented effect on its outputs, and no trace of the transition."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from nets import copy_of, digit_batches, loss_of, mlp, same, same_state, state_of
from torch import nn

from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import CommandRejected, KnobTurned, RunStarted
from tui_descent.scenario.knobs import parse
from tui_descent.training.steering.steering import Steering
from tui_descent.training.steering.surgery import BLEND_STEPS, RESIDUAL_STEPS, Blend
from tui_descent.training.watch.watch import Watch


def fixed(net: nn.Module) -> torch.optim.Optimizer:
    """An optimizer with a tiny rate, so that only the surgery changes the outputs."""
    return torch.optim.SGD(net.parameters(), lr=1e-12)


def steering(net: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Steering:
    return Steering(net, optimizer or fixed(net))


def plain(net: nn.Module) -> bool:
    return not any(isinstance(module, Blend) for module in net.modules())


def x() -> torch.Tensor:
    return torch.randn(50, 64, dtype=torch.float64)


def test_a_blend_is_the_old_activation_at_its_start_and_the_new_one_at_its_end() -> None:
    z = torch.randn(1000) * 10
    blend = Blend(nn.ReLU(), nn.Sigmoid())
    assert torch.equal(blend(z), z.relu())
    blend.t = 0.25
    assert torch.allclose(blend(z), 0.75 * z.relu() + 0.25 * z.sigmoid())
    blend.t = 1.0
    assert torch.allclose(blend(z), z.sigmoid())


def test_a_blend_at_its_start_keeps_infinities() -> None:
    z = torch.tensor([float("inf"), -float("inf"), 1.0])
    assert torch.equal(Blend(nn.ReLU(), nn.Identity())(z), z.relu())


def test_a_residual_opens_from_the_old_outputs_to_the_documented_ones() -> None:
    net = mlp(dtype=torch.float64, depth=4, activation="tanh")
    points, knobs = x(), steering(net)
    before = net(points)
    knobs.turn(parse("residual=on,scale=0.5"))
    assert torch.equal(net(points), before), "nothing has changed before the first update"
    for n in range(1, RESIDUAL_STEPS + 1):
        knobs.advance()
        assert net.blocks[0].skip.gate == pytest.approx(n / RESIDUAL_STEPS)
    twin = mlp(dtype=torch.float64, depth=4, activation="tanh", residual={"name": "on", "scale": 0.5})
    assert torch.equal(net(points), twin(points))
    knobs.advance()
    assert torch.equal(net(points), twin(points)), "and it stays there"


def test_a_closed_residual_leaves_no_skip() -> None:
    net = mlp(dtype=torch.float64, depth=4, residual="on")
    twin = mlp(dtype=torch.float64, depth=4)
    points, knobs = x(), steering(net)
    knobs.turn(parse("residual=off"))
    for _ in range(RESIDUAL_STEPS - 1):
        knobs.advance()
        assert all(block.skip is not None for block in net.blocks)
    knobs.advance()
    assert all(block.skip is None for block in net.blocks)
    assert torch.equal(net(points), twin(points))


@pytest.mark.parametrize("way", ["ramp", "instant"])
def test_residual_on_and_off_restores_the_net(way: str) -> None:
    net = mlp(dtype=torch.float64, depth=4)
    points, knobs = x(), steering(net)
    before = net(points)
    for value in ("on", "off", "on", "off"):
        knobs.turn(parse(f"residual={value},way={way}"))
        for _ in range(7):
            knobs.advance()
    for _ in range(RESIDUAL_STEPS):
        knobs.advance()
    assert all(block.skip is None for block in net.blocks)
    assert torch.equal(net(points), before)


def test_a_ramp_reversed_half_way_continues_from_its_current_state() -> None:
    net = mlp(dtype=torch.float64, depth=4)
    points, knobs = x(), steering(net)
    knobs.turn(parse("residual=on"))
    outputs = [net(points)]
    for n in range(40):
        if n == 9:
            knobs.turn(parse("residual=off"))
        knobs.advance()
        outputs.append(net(points))
    jumps = [(b - a).abs().max().item() for a, b in pairwise(outputs)]
    whole = (outputs[9] - outputs[0]).abs().max().item()
    assert max(jumps) < whole / 3
    assert torch.equal(outputs[-1], outputs[0])


@pytest.mark.parametrize(("way", "steps"), [("blend", BLEND_STEPS), ("instant", 1)])
def test_an_activation_is_replaced_and_no_blend_is_left(way: str, steps: int) -> None:
    net = mlp(dtype=torch.float64, depth=3)
    twin = mlp(dtype=torch.float64, depth=3, activation="gelu")
    points, knobs = x(), steering(net)
    before = net(points)
    knobs.turn(parse(f"activation=gelu,way={way}"))
    assert torch.equal(net(points), before)
    for _ in range(steps - 1):
        knobs.advance()
        assert not plain(net)
    knobs.advance()
    assert plain(net)
    assert [type(block.activation) for block in net.blocks] == [nn.GELU] * 3
    assert torch.equal(net(points), twin(points))
    assert list(net.state_dict()) == list(twin.state_dict())


def test_a_blend_changes_the_outputs_in_small_steps() -> None:
    net = mlp(dtype=torch.float64, depth=3)
    points, knobs = x(), steering(net)
    outputs = [net(points)]
    knobs.turn(parse("activation=sigmoid"))
    for _ in range(BLEND_STEPS):
        knobs.advance()
        outputs.append(net(points))
    jumps = [(b - a).norm().item() for a, b in pairwise(outputs)]
    assert max(jumps) < (outputs[-1] - outputs[0]).norm().item() / 5


def test_a_new_activation_during_a_blend_leaves_no_blend_at_the_end() -> None:
    net = mlp(depth=3)
    knobs = steering(net)
    for name in ("sigmoid", "gelu", "tanh", "relu", "silu"):
        knobs.turn(parse(f"activation={name}"))
        for _ in range(5):
            knobs.advance()
    assert sum(isinstance(module, Blend) for module in net.modules()) == 3, "one blend per block, never nested"
    for _ in range(BLEND_STEPS):
        knobs.advance()
    assert plain(net)
    assert [type(block.activation) for block in net.blocks] == [nn.SiLU] * 3


def test_a_single_block_can_be_changed(keeper: FakeKeeper) -> None:
    net = mlp(depth=4)
    knobs = steering(net)
    turned = knobs.turn(parse("activation@blocks.2=gelu,way=instant"))
    assert (turned.old, turned.new) == ("relu", "gelu")
    knobs.turn(parse("residual@blocks.1=on,way=instant"))
    knobs.advance()
    assert [type(block.activation).__name__ for block in net.blocks] == ["ReLU", "ReLU", "GELU", "ReLU"]
    assert [block.skip is not None for block in net.blocks] == [False, True, False, False]
    states = {state.name: state.value for state in knobs.states()}
    assert states["activation"] == states["residual"] == "mixed"


def test_knob_states_are_read_from_the_net() -> None:
    states = {
        s.name: s.value for s in Steering(mlp(activation="tanh", residual="on"), fixed(mlp()), pace=30.0).states()
    }
    expected = {"lr": "1e-12", "activation": "tanh", "residual": "on", "pace": "30", "norm": "none", "dropout": "0"}
    assert states == states | expected


def test_a_net_without_blocks_reports_why_knobs_are_unavailable(keeper: FakeKeeper) -> None:
    net = nn.Sequential(nn.Linear(64, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    turns = [(1, parse("residual=on")), (1, parse("activation=gelu"))]
    with Watch(net, optimizer, link=keeper.link, plan=turns) as run:
        for batch in digit_batches(3):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    events = keeper.events()
    (started,) = [event for event in events if isinstance(event, RunStarted)]
    reasons = {state.name: state.unavailable for state in started.knobs}
    assert reasons["lr"] is None
    assert reasons["residual"] == "no block keeps its input's shape"
    rejected = [event for event in events if isinstance(event, CommandRejected)]
    assert [event.reason for event in rejected] == [reasons["residual"], reasons["activation"]]


@pytest.mark.parametrize(
    ("target", "message"),
    [("blocks.9", "no block"), ("block.1", 'did you mean "blocks.1"'), ("stem", "blocks are blocks.0")],
)
def test_an_unknown_block_changes_nothing(target: str, message: str) -> None:
    net = mlp(depth=4)
    knobs = steering(net)
    with pytest.raises(ValueError, match=message):
        knobs.turn(TurnKnob(knob="residual", value="on", target=target))
    knobs.advance()
    assert all(block.skip is None for block in net.blocks)


TURNS = ["residual=on", "residual=on,way=instant", "activation=gelu", "activation=sigmoid,way=instant"]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("made", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop], ids=lambda m: m.__name__)
def test_surgery_keeps_parameter_objects_and_their_optimizer_state(made: Any, turn: str) -> None:
    net = mlp(depth=4)
    optimizer = made(net.parameters(), lr=1e-3)
    batches = digit_batches(80)

    def step(run: Watch, n: int) -> None:
        loss = loss_of(net, batches[n])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step(loss)

    with Watch(net, optimizer, link=None) as run:
        for n in range(5):
            step(run, n)
        parameters = [id(p) for p in net.parameters()]
        grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
        tensors = [id(v) for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        weights, state = copy_of(net), state_of(optimizer)
        run.steering.turn(parse(turn))
        run.steering.advance()
        assert same(copy_of(net), weights)
        assert same_state(state_of(optimizer), state)
        for n in range(5, 75):
            step(run, n)
        assert [id(p) for p in net.parameters()] == parameters == grouped
        assert [id(p) for group in optimizer.param_groups for p in group["params"]] == grouped
        after = [id(v) for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        assert after == tensors
        counts = {int(s["step"]) for s in optimizer.state.values()}
        assert counts == {75}, "no state was reset"
    assert plain(net)


def test_losses_before_an_intervention_equal_those_without_it(keeper: FakeKeeper) -> None:
    def losses(plan: list[tuple[int, TurnKnob]], link: Any = None) -> list[float]:
        net = mlp(depth=6, activation="sigmoid")
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        found = []
        with Watch(net, optimizer, link=link, plan=plan) as run:
            for batch in digit_batches(30):
                loss = loss_of(net, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.step(loss)
                found.append(loss.item())
        return found

    without = losses([])
    turned = losses([(12, parse("residual=on"))], keeper.link)
    assert turned[:12] == without[:12]
    assert turned[12] != without[12], "it applies from update 12 on"
    (event,) = keeper.events(KnobTurned)
    assert (event.step, event.old, event.new, event.way) == (12, "off", "on", "ramp")
    assert event.scale == pytest.approx(6**-0.5)


def test_interventions_at_one_step_are_made_in_the_given_order(keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    plan = [(1, parse("lr=*2")), (1, parse("lr=0.3")), (0, parse("activation=gelu")), (1, parse("lr=*10"))]
    with Watch(net, optimizer, link=keeper.link, plan=plan) as run:
        run.control.before_update()
        for batch in digit_batches(2):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    events = keeper.events(KnobTurned)
    assert [(e.step, e.new) for e in events] == [(0, "gelu"), (1, "0.2"), (1, "0.3"), (1, "3")]
    assert [e.id for e in events] == [1, 2, 3, 4]
