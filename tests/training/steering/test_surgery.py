"""The network changed while it trains: with a stated change of function, and nothing left of the way there."""

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
    """At a rate of almost nothing, so that only the surgery changes the function."""
    return torch.optim.SGD(net.parameters(), lr=1e-12)


def steering(net: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Steering:
    return Steering(net, optimizer or fixed(net))


def plain(net: nn.Module) -> bool:
    return not any(isinstance(module, Blend) for module in net.modules())


def x() -> torch.Tensor:
    return torch.randn(50, 64, dtype=torch.float64)


def test_a_blend_is_exactly_the_old_at_its_start_and_the_new_at_its_end() -> None:
    z = torch.randn(1000) * 10
    blend = Blend(nn.ReLU(), nn.Sigmoid())
    assert torch.equal(blend(z), z.relu())
    blend.t = 0.25
    assert torch.allclose(blend(z), 0.75 * z.relu() + 0.25 * z.sigmoid())
    blend.t = 1.0
    assert torch.allclose(blend(z), z.sigmoid())


def test_a_blend_at_its_start_keeps_even_infinities_and_not_a_number() -> None:
    z = torch.tensor([float("inf"), -float("inf"), 1.0])
    assert torch.equal(Blend(nn.ReLU(), nn.Identity())(z), z.relu())


def test_a_residual_opens_from_the_old_function_to_the_stated_one() -> None:
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
    assert torch.equal(net(points), twin(points)), "and there it stays"


def test_a_residual_that_is_closed_is_gone() -> None:
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
def test_on_and_off_again_is_the_net_it_was(way: str) -> None:
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


def test_a_ramp_turned_back_half_way_goes_on_from_where_it_stands() -> None:
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
def test_an_activation_becomes_the_new_one_and_nothing_else_is_left(way: str, steps: int) -> None:
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


def test_a_blend_changes_the_function_in_small_steps() -> None:
    net = mlp(dtype=torch.float64, depth=3)
    points, knobs = x(), steering(net)
    outputs = [net(points)]
    knobs.turn(parse("activation=sigmoid"))
    for _ in range(BLEND_STEPS):
        knobs.advance()
        outputs.append(net(points))
    jumps = [(b - a).norm().item() for a, b in pairwise(outputs)]
    assert max(jumps) < (outputs[-1] - outputs[0]).norm().item() / 5


def test_a_second_activation_before_the_first_has_arrived_ends_plain() -> None:
    net = mlp(depth=3)
    knobs = steering(net)
    for name in ("sigmoid", "gelu", "tanh", "relu", "silu"):
        knobs.turn(parse(f"activation={name}"))
        for _ in range(5):
            knobs.advance()
    assert sum(isinstance(module, Blend) for module in net.modules()) == 3, "one blend a block, never nested"
    for _ in range(BLEND_STEPS):
        knobs.advance()
    assert plain(net)
    assert [type(block.activation) for block in net.blocks] == [nn.SiLU] * 3


def test_one_block_can_be_turned_alone(kept: FakeKeeper) -> None:
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


def test_states_are_read_back_from_the_net() -> None:
    states = {
        s.name: s.value for s in Steering(mlp(activation="tanh", residual="on"), fixed(mlp()), pace=30.0).states()
    }
    told = {"lr": "1e-12", "activation": "tanh", "residual": "on", "pace": "30", "norm": "none", "dropout": "0"}
    assert states == states | told


def test_a_net_without_blocks_says_so(kept: FakeKeeper) -> None:
    net = nn.Sequential(nn.Linear(64, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    turns = [(1, parse("residual=on")), (1, parse("activation=gelu"))]
    with Watch(net, optimizer, link=kept.link, plan=turns) as run:
        for batch in digit_batches(3):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    events = kept.events()
    (started,) = [event for event in events if isinstance(event, RunStarted)]
    reasons = {state.name: state.unavailable for state in started.knobs}
    assert reasons["lr"] is None
    expected = "residual needs blocks that keep their input's shape; Sequential has none; 0: its output's shape"
    assert reasons["residual"].startswith(expected)
    rejected = [event for event in events if isinstance(event, CommandRejected)]
    assert [event.reason for event in rejected] == [reasons["residual"], reasons["activation"]]


@pytest.mark.parametrize(
    ("target", "said"),
    [("blocks.9", "no block"), ("block.1", 'did you mean "blocks.1"'), ("stem", "blocks are blocks.0")],
)
def test_a_block_that_is_not_there_changes_nothing(target: str, said: str) -> None:
    net = mlp(depth=4)
    knobs = steering(net)
    with pytest.raises(ValueError, match=said):
        knobs.turn(TurnKnob(knob="residual", value="on", target=target))
    knobs.advance()
    assert all(block.skip is None for block in net.blocks)


TURNS = ["residual=on", "residual=on,way=instant", "activation=gelu", "activation=sigmoid,way=instant"]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("made", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop], ids=lambda m: m.__name__)
def test_parameters_and_their_optimizer_state_are_the_same_ones_after_surgery(made: Any, turn: str) -> None:
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
        assert counts == {75}, "no state began anew"
    assert plain(net)


def test_losses_before_a_turn_are_those_of_the_run_without_it_bit_for_bit(kept: FakeKeeper) -> None:
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
    turned = losses([(12, parse("residual=on"))], kept.link)
    assert turned[:12] == without[:12]
    assert turned[12] != without[12], "it acts from update 12 on"
    (event,) = kept.events(KnobTurned)
    assert (event.step, event.old, event.new, event.way) == (12, "off", "on", "ramp")
    assert event.scale == pytest.approx(6**-0.5)


def test_two_turns_on_one_step_act_in_the_order_given(kept: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    plan = [(1, parse("lr=*2")), (1, parse("lr=0.3")), (0, parse("activation=gelu")), (1, parse("lr=*10"))]
    with Watch(net, optimizer, link=kept.link, plan=plan) as run:
        run.control.before_update()
        for batch in digit_batches(2):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    events = kept.events(KnobTurned)
    assert [(e.step, e.new) for e in events] == [(0, "gelu"), (1, "0.2"), (1, "0.3"), (1, "3")]
    assert [e.id for e in events] == [1, 2, 3, 4]
