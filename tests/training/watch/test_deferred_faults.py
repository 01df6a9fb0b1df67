"""On a GPU a non-finite number is found later: fused updates are stopped on the device, others are reported."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import torch
from deferred_loops import BAD_AT, FUSED, SlowArrival, fused, resume_when_held, train_into_fault
from fake_keeper import FakeKeeper
from nets import copy_of, digit_batches, loss_of, mlp, same, same_state, state_of
from played_run import SCENARIO
from torch import Tensor, nn

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import Undo
from tui_descent.protocol.events import NotFinite, Rewound, RunEnded, StateChanged
from tui_descent.scenario.toml import from_table
from tui_descent.training import loop
from tui_descent.training.optim import optimizers
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.watch import Watch


@pytest.mark.parametrize("spoil", [math.nan, math.inf, "loss"], ids=str)
@pytest.mark.parametrize("name", FUSED)
def test_fused_optimizer_skips_every_update_from_the_non_finite_one_until_the_hold(
    name: str, spoil: Any, deferred_numbers: None, slow_arrivals: type[SlowArrival]
) -> None:
    net, optimizer, run, after = train_into_fault(
        None, lambda net: fused(name, net), spoil=spoil, check=spoil == "loss"
    )
    weights, state = after[BAD_AT - 1]
    unchanged = [same(w, weights) and same_state(s, state) for w, s in after]
    resumed = unchanged.index(False, BAD_AT)
    assert resumed > BAD_AT, "at least the non-finite update was skipped"
    assert all(unchanged[BAD_AT:resumed])
    assert not any(unchanged[resumed:]), "after the hold updates are made again"
    assert all(p.isfinite().all() for p in net.parameters())
    assert not hasattr(optimizer, "found_inf")
    assert run.outcome == ("finished", "")


def test_deferred_hold_names_the_step_and_follows_all_steps_made(
    deferred_numbers: None, slow_arrivals: type[SlowArrival], keeper: FakeKeeper
) -> None:
    written = resume_when_held(keeper)
    train_into_fault(keeper, lambda net: fused("adam", net))
    records = keeper.steps()
    assert [r.step for r in records] == list(range(60))
    (held_at,) = written
    assert [r.step for r in records if r.skipped] == list(range(BAD_AT, held_at))
    (fault,) = keeper.events(NotFinite)
    since = held_at - BAD_AT - 1
    when = f"found {since} update{'s' * (since != 1)} later" if since else "found just after the update"
    assert fault.step == BAD_AT
    assert fault.text == (
        f"the gradient that reaches the input is not finite at step {BAD_AT}, {when}; "
        "this update and all later ones were skipped: the weights are unchanged"
    )


@pytest.mark.parametrize("spoil", [math.nan, "loss"], ids=str)
def test_unstoppable_update_offers_the_last_good_snapshot_and_undo_goes_there(
    spoil: Any, deferred_numbers: None, slow_arrivals: type[SlowArrival], keeper: FakeKeeper
) -> None:
    net = mlp()
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-3)
    keeper.link.launch = msgspec.structs.replace(keeper.link.launch, socket="there")  # so that snapshots are kept
    batches = digit_batches(20)
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=0), on_fault="hold") as run:
        resume_when_held(keeper, Undo())
        start = copy_of(net)
        for n in range(40):
            loss = loss_of(net, batches[n % 20]) * (math.nan if spoil == "loss" and n == BAD_AT else 1)
            optimizer.zero_grad()
            loss.backward()
            if n == BAD_AT:
                assert net.stem.weight.grad is not None
                net.stem.weight.grad.fill_(math.nan)
            optimizer.step()
            run.step(loss)
    events = keeper.events()
    (fault,) = [e for e in events if isinstance(e, NotFinite)]
    assert (fault.step, fault.layer) == (BAD_AT, "stem")
    assert f"at step {BAD_AT}, found" in fault.text
    assert "the update was made and the weights of stem are now non-finite" in fault.text
    (held,) = [e for e in events if isinstance(e, StateChanged) and e.state == "held"]
    (rewound,) = [e for e in events if isinstance(e, Rewound)]
    assert rewound.to_step == 1
    assert held.reason == f"{fault.text}; u goes back {rewound.from_step - 1} steps, to step 1"
    assert all(p.isfinite().all() for p in net.parameters())
    assert not same(copy_of(net), start)
    records = keeper.steps()
    assert [r.step for r in records] == list(range(40))
    assert {r.segment for r in records if r.step < rewound.from_step} == {0}
    assert {r.segment for r in records if r.step >= rewound.from_step} == {1}


def test_first_update_with_momentum_is_checked_before_it_is_made(
    deferred_numbers: None, slow_arrivals: type[SlowArrival]
) -> None:
    net = mlp()
    optimizer = fused("momentum", net)
    with Watch(net, optimizer, link=None, on_fault="hold", is_scenario=True) as run:
        for n, batch in enumerate(digit_batches(4)):
            optimizer.zero_grad()
            loss = loss_of(net, batch)
            loss.backward()
            weights = copy_of(net)
            if n == 0:
                net.stem.weight.grad.fill_(math.nan)
            optimizer.step()
            assert run.step(loss) == (n > 0)
            assert same(copy_of(net), weights) == (n == 0)
            assert bool(optimizer.state) == (n > 0), "no momentum buffer is left uninitialised"
    assert run.next_step == 3


@pytest.mark.parametrize("deferred", [False, True], ids=["immediate", "deferred"])
@pytest.mark.parametrize("on_fault", ["hold", "end"])
def test_overflow_under_a_scaler_is_a_skipped_step_and_no_fault(
    on_fault: Any,
    deferred: bool,
    losses_at_once: Callable[[bool], None],
    slow_arrivals: type[SlowArrival],
    keeper: FakeKeeper,
) -> None:
    losses_at_once(not deferred)
    net = mlp()
    optimizer = fused("adamw", net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1), on_fault=on_fault) as run:
        for n, batch in enumerate(digit_batches(20)):
            optimizer.zero_grad()
            loss = loss_of(net, batch)
            scaler.scale(loss).backward()
            weights = copy_of(net)
            if n in (BAD_AT, BAD_AT + 3):
                # The second one in a layer that the guard does not check.
                layer = net.stem if n == BAD_AT else net.blocks[-1].linear
                layer.weight.grad[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update()
            run.step(loss)
            assert same(copy_of(net), weights) == (n in (BAD_AT, BAD_AT + 3))
    assert run.outcome == ("finished", "")
    assert not keeper.events(NotFinite)
    assert [r.step for r in keeper.steps() if r.skipped] == [BAD_AT, BAD_AT + 3]
    assert [r.step for r in keeper.readings()] == [n for n in range(20) if n not in (BAD_AT, BAD_AT + 3)]
    assert scaler.get_scale() == 2.0**8


@pytest.mark.parametrize("bad_at", [BAD_AT, 59], ids=["midway", "the last step"])
def test_unattended_run_ends_diverged_with_finite_weights(
    bad_at: int, deferred_numbers: None, slow_arrivals: type[SlowArrival], keeper: FakeKeeper
) -> None:
    nets = []

    def made(net: nn.Module) -> torch.optim.Optimizer:
        nets.append(net)
        return fused("adam", net)

    with suppress(UnboundLocalError):
        train_into_fault(keeper, made, on_fault="end", bad_at=bad_at)
    (ended,) = keeper.events(RunEnded)
    assert ended.status == "diverged"
    assert ended.reason.startswith(f"the gradient that reaches the input is not finite at step {bad_at}, found")
    assert all(p.isfinite().all() for p in nets[0].parameters())
    assert [r.step for r in keeper.steps()] == list(range(ended.step))


def test_loop_that_is_only_notified_makes_its_own_update(
    deferred_numbers: None, slow_arrivals: type[SlowArrival], keeper: FakeKeeper
) -> None:
    *_, after = train_into_fault(keeper, lambda net: fused("sgd", net), on_fault="note")
    assert not after[BAD_AT][0][0].isfinite().all()
    noted = keeper.events(NotFinite)
    assert noted[0].step == BAD_AT
    assert not any(r.skipped for r in keeper.steps())


def test_found_inf_is_restored_after_a_step_that_raises(deferred_numbers: None) -> None:
    net = mlp()
    optimizer = fused("adam", net)
    with Watch(net, optimizer, link=None, on_fault="hold") as run:
        for n, batch in enumerate(digit_batches(3)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            if n == 1:
                optimizer.param_groups[0]["betas"] = None
                with pytest.raises(TypeError):
                    optimizer.step()
                assert hasattr(optimizer, "found_inf")
                optimizer.param_groups[0]["betas"] = (0.9, 0.999)
            else:
                optimizer.step()
            run.step(loss)
            assert not hasattr(optimizer, "found_inf")


class NanAtOnePass(nn.Module):
    """Outputs NaN at one forward pass in training."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.passes = at, 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.passes += 1
        return x * math.nan if self.passes == self.at + 1 else x


def scenario_with_nan(optimizer: dict[str, Any]) -> tuple[Setup, NanAtOnePass]:
    """A scenario with a schedule and dropout, whose sixth forward pass gives NaN."""
    torch.manual_seed(0)
    table = tomllib.loads(SCENARIO) | {"optimizer": optimizer}
    setup = build(from_table(table, source="test"), on=torch.device("cpu"))
    nan_layer = NanAtOnePass(BAD_AT)
    setup.model = nn.Sequential(setup.model, nan_layer)
    return setup, nan_layer


ADAM, MOMENTUM = {"name": "adam", "lr": 2e-3}, {"name": "momentum", "lr": 0.05}


# The usual four cases have every pair of values.
@pytest.mark.parametrize(
    ("optimizer", "on_fault", "evaluate_every"),
    [
        (MOMENTUM, "hold", 0),
        (MOMENTUM, "end", 8),
        (ADAM, "hold", 8),
        (ADAM, "end", 0),
        pytest.param(MOMENTUM, "hold", 8, marks=pytest.mark.heavy),
        pytest.param(MOMENTUM, "end", 0, marks=pytest.mark.heavy),
        pytest.param(ADAM, "hold", 0, marks=pytest.mark.heavy),
        pytest.param(ADAM, "end", 8, marks=pytest.mark.heavy),
    ],
    ids=str,
)
def test_stopped_updates_move_neither_step_nor_schedule_of_a_scenario_run(
    optimizer: Any,
    on_fault: Any,
    evaluate_every: int,
    deferred_numbers: None,
    slow_arrivals: type[SlowArrival],
    keeper: FakeKeeper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(optimizers, "FUSED_ON", {"cpu"})
    setup, nan_layer = scenario_with_nan(optimizer)
    assert setup.schedule is not None
    resume_when_held(keeper)
    evaluated = []
    with Watch(
        setup.model,
        setup.optimizer,
        link=keeper.link,
        steering=Steering(setup.model, setup.optimizer, setup=setup, steps=500),
        sampler=Sampler(every=1),
        on_fault=on_fault,
        is_scenario=True,
        evaluate=lambda: evaluated.append(run.next_step) or (1.0, None),
    ) as run:
        loop.train(run, setup, steps=30, evaluate_every=evaluate_every, attended=False)
    made = 30 if on_fault == "hold" else BAD_AT
    passes = range(BAD_AT, BAD_AT + nan_layer.passes - made)  # those that gave no update
    assert run.next_step == made
    assert setup.schedule.factor == setup.schedule.factor_at(made)
    (fault,) = keeper.events(NotFinite)
    assert fault.step == BAD_AT
    records = keeper.steps()
    assert [r.step for r in records] == list(range(made))
    assert not any(r.skipped for r in records)
    # The twin: a plain loop that makes no update at the same passes.
    twin, _ = scenario_with_nan(optimizer)
    assert twin.schedule is not None
    before: list[Tensor] = []
    readings = iter(keeper.readings())
    for n in range(nan_layer.passes):
        loss = twin.loss()
        twin.optimizer.zero_grad()
        loss.backward()
        if n in passes:
            continue
        record, reading = records.pop(0), next(readings)
        assert (record.loss, record.lr, reading.step) == (
            loss.item(),
            twin.optimizer.param_groups[0]["lr"],
            record.step,
        )
        grads = [p.grad.clone() for p in twin.model.parameters() if p.grad is not None]
        assert reading.global_grad_norm == pytest.approx(math.hypot(*(g.norm().item() for g in grads)), rel=1e-5)
        if reading.step in (0, BAD_AT):
            assert reading.global_cosine is None, "there is no gradient to compare with"
        else:
            dot = sum(float((a * b).sum()) for a, b in zip(before, grads, strict=True))
            sizes = (math.hypot(*(g.norm().item() for g in gs)) for gs in (before, grads))
            assert reading.global_cosine == pytest.approx(dot / math.prod(sizes), rel=1e-4, abs=1e-5)
        before = grads
        twin.optimizer.step()
        twin.schedule.step(loss)
    assert same(copy_of(setup.model), copy_of(twin.model))
    assert same_state(state_of(setup.optimizer), state_of(twin.optimizer))
