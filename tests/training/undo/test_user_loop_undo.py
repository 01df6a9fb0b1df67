"""Undo in a user loop restores net, optimizer and what `state` names; the loop's counter and data go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
import torch
from fake_keeper import FakeKeeper
from nets import copy_of, digit_batches, loss_of, mlp, same, same_state, state_of
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import Redo, Undo
from tui_descent.protocol.events import CommandRejected, Rewound
from tui_descent.scenario.knobs import parse
from tui_descent.training.undo.user_state import user_holders
from tui_descent.training.watch.user_loop import watch
from tui_descent.training.watch.watch import Watch

STEPS, TURN_AT, UNDO_AT = 14, 4, 9


class Warmup:
    """A user's own scheduler, not derived from torch's: it sets the rate and has a state_dict."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.count = 0
        self.rates: list[float] = []

    def step(self) -> None:
        self.count += 1
        self.rates.append(0.01 * min(1.0, self.count / 8))
        self.optimizer.param_groups[0]["lr"] = self.rates[-1]

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "rates": self.rates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.rates = state["count"], state["rates"]


class Falling:
    """A factor for LambdaLR that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, k: int) -> float:
        self.calls += 1
        return 0.9**self.calls


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.02, total_steps=2 * STEPS),
    "LambdaLR that counts calls": lambda o: lr_scheduler.LambdaLR(o, Falling()),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.CosineAnnealingLR(o, T_max=20)], milestones=[6]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.7),
    "user-defined": Warmup,
}


def train(
    schedule: Callable[[torch.optim.Optimizer], Any],
    keeper: FakeKeeper | None,
    *,
    named: bool = True,
    skip_to: int | None = None,
) -> tuple[list[float], list[torch.Tensor], int]:
    """Train with an intervention and its undo; without a link, train without both.

    `skip_to` leaves out the updates from `TURN_AT` to it, which the undo takes back. Returns the rates of
    all updates, the weights at the end, and the loop's step count.
    """
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    scheduler = schedule(optimizer)
    batches = digit_batches(STEPS)
    order = list(range(STEPS)) if skip_to is None else [*range(TURN_AT), *range(skip_to, STEPS)]
    state = {"scheduler": scheduler} if named else {}
    rates: list[float] = []
    with Watch(
        net, optimizer, link=keeper.link if keeper else None, state=user_holders(state), sampler=Sampler(every=3)
    ) as run:
        for n in order:
            loss = loss_of(net, batches[n])
            optimizer.zero_grad()
            loss.backward()
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step(1.0) if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else scheduler.step()
            if keeper is not None and n == TURN_AT - 1:
                keeper.send(parse("lr=*2"))
            if keeper is not None and n == UNDO_AT - 1:
                keeper.send(Undo())
            run.step(loss)
        return rates, copy_of(net), run.next_step


@pytest.fixture
def keeper_with_undo(keeper: FakeKeeper) -> FakeKeeper:
    keeper.link.launch = msgspec.structs.replace(keeper.link.launch, socket="there")
    return keeper


@pytest.mark.parametrize("name", SCHEDULES)
def test_undo_restores_a_named_scheduler_but_not_the_loops_counter_and_data(
    name: str, keeper_with_undo: FakeKeeper
) -> None:
    rates, weights, count = train(SCHEDULES[name], keeper_with_undo)
    # The twin is a loop without the updates from the intervention to the undo.
    expected, twin, _ = train(SCHEDULES[name], None, skip_to=UNDO_AT)
    assert rates[UNDO_AT:] == expected[TURN_AT:]
    assert same(weights, twin)
    assert count == STEPS
    (rewound,) = keeper_with_undo.events(Rewound)
    assert (rewound.to_step, rewound.step) == (TURN_AT, UNDO_AT)


def test_undo_and_redo_restore_weights_and_adam_state_bit_for_bit(keeper_with_undo: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    seen: dict[int, Any] = {}
    asked = {4: parse("betas=0.8/0.9"), 8: Undo(), 10: Redo()}
    with Watch(net, optimizer, link=keeper_with_undo.link) as run:
        for n, batch in enumerate(digit_batches(12), start=1):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen[n] = copy_of(net), state_of(optimizer)
            if n in asked:
                keeper_with_undo.send(asked[n])
            run.step(loss)
            if n in (8, 10):
                there = seen[4 if n == 8 else 8]
                assert same(copy_of(net), there[0])
                assert same_state(state_of(optimizer), there[1])
    assert len(keeper_with_undo.events(Rewound)) == 2


def test_scheduler_that_is_not_named_is_not_restored(keeper_with_undo: FakeKeeper) -> None:
    rates, _, _ = train(SCHEDULES["OneCycleLR"], keeper_with_undo, named=False)
    expected, _, _ = train(SCHEDULES["OneCycleLR"], None)
    # Undo restored Adam's rate, but not the scheduler's count; the scheduler's next step sets the rate again.
    assert rates[UNDO_AT + 1 :] == expected[UNDO_AT + 1 :]


def play(
    keeper: FakeKeeper, state: Mapping[str, object], look: Callable[[], Any], act: Callable[[], Any]
) -> dict[str, Any]:
    """Calls `act` once a step. Returns what `look` returned at the intervention and around undo and redo."""
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    seen: dict[str, Any] = {}
    with Watch(net, optimizer, link=keeper.link, state=user_holders(state), sampler=Sampler(budget=0.0)) as run:
        for n, batch in enumerate(digit_batches(8)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            act()
            if n == 2:
                seen["turn"] = look()
                keeper.send(parse("lr=*2"))
            if n in (5, 6):
                seen[f"before {n}"] = look()
                keeper.send(Undo() if n == 5 else Redo())
            run.step(loss)
            if n in (5, 6):
                seen[f"after {n}"] = look()
    return seen


def test_undo_restores_a_grad_scaler(keeper_with_undo: FakeKeeper) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)

    def act() -> None:
        scaler.scale(torch.ones(()))
        scaler._found_inf_per_device = lambda optimizer: {}  # type: ignore[method-assign]
        scaler.update(scaler.get_scale() * 2)

    seen = play(keeper_with_undo, {"scaler": scaler}, scaler.state_dict, act)
    assert seen["after 5"] == seen["turn"] != seen["before 5"]
    assert seen["after 6"] == seen["before 5"]


def test_undo_restores_a_named_net_dict_tensor_and_generator(keeper_with_undo: FakeKeeper) -> None:
    net, counts, tensor, generator = mlp(seed=3), {"seen": 0, "list": [1]}, torch.zeros(3), torch.Generator()
    averaged = AveragedModel(net)

    def act() -> None:
        averaged.update_parameters(mlp(seed=int(torch.randint(9, (), generator=generator))))
        counts["seen"] += 1
        counts["list"].append(counts["seen"])
        tensor.add_(1)

    def look() -> Any:
        return [
            [p.tolist() for p in averaged.parameters()],
            averaged.n_averaged.item(),
            repr(counts),
            tensor.tolist(),
            generator.get_state().tolist(),
        ]

    named = {"averaged": averaged, "counts": counts, "tensor": tensor, "generator": generator}
    seen = play(keeper_with_undo, named, look, act)
    for turn, before, undone, redone in zip(
        seen["turn"], seen["before 5"], seen["after 5"], seen["after 6"], strict=True
    ):
        assert undone == turn != before
        assert redone == before


def test_state_that_cannot_be_restored_is_refused_by_name() -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r'state\["data"\] is a range_iterator, which has no state_dict'):
        watch(net, optimizer, state={"data": iter(range(3))})


class RefusesToLoad(Warmup):
    """Raises when it should load an earlier state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["count"] < self.count:
            raise KeyError("never")
        super().load_state_dict(state)


def test_undo_is_rejected_with_nothing_changed_if_load_state_dict_raises(keeper_with_undo: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    good, bad = Warmup(optimizer), RefusesToLoad(optimizer)
    with Watch(net, optimizer, link=keeper_with_undo.link, state=user_holders({"good": good, "bad": bad})) as run:
        for n, batch in enumerate(digit_batches(6)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            good.step()
            bad.step()
            if n == 2:
                keeper_with_undo.send(parse("lr=*2"))
            if n == 4:
                keeper_with_undo.send(Undo())
            before = copy_of(net), good.count, bad.count
            run.step(loss)
            assert same(copy_of(net), before[0])
            assert (good.count, bad.count) == before[1:]
        undo = run.control.undo_stack
        assert undo is not None
        assert undo.in_force == (1,)
    (rejected,) = keeper_with_undo.events(CommandRejected)
    assert 'state["bad"] raised KeyError' in rejected.reason
    assert not keeper_with_undo.events(Rewound)
