"""A range test leaves no trace in the run; where it is not possible, the reply gives the reason."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import msgspec
import pytest
import torch
from digests import digest
from fake_keeper import FakeKeeper
from nets import copy_of, digit_batches, loss_of, mlp, same
from range_test_runs import SHUFFLED, SMALL, NanAtLargeOutputs, new_range_test, nothing_asked, setup_of, train_setup
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import AnyCommand, Resume, RunRangeTest
from tui_descent.protocol.events import CommandRejected, NotFinite, RangeTestCompleted
from tui_descent.training.probes.range_test import RangeTest
from tui_descent.training.setup.build import Setup
from tui_descent.training.undo.random_state import RandomState
from tui_descent.training.watch.watch import Watch


def normed_conv() -> Setup:
    """A setup with a convolutional net whose batch norms have running statistics."""
    torch.manual_seed(3)
    made = setup_of(SHUFFLED)
    made.model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(96, 10),
    )  # fmt: skip
    made.optimizer = torch.optim.SGD(made.model.parameters(), lr=0.05, momentum=0.9)
    made.schedule = None
    return made


# No trace.


@pytest.mark.parametrize(
    ("made", "plan"),
    [
        (lambda: setup_of(SHUFFLED), {}),
        (lambda: setup_of(SHUFFLED), {18: "residual=on", 24: "activation=gelu", 3: "lr=*3", 4: "clip=0.5"}),
        (lambda: setup_of(SHUFFLED, name="muon", lr=2e-3), {}),
        (normed_conv, {}),
    ],
    ids=["adam cosine dropout shuffled", "changes under way", "muon", "batch norm"],
)
def test_range_test_leaves_no_trace_in_the_run(made: Any, plan: Any, start_run: Any) -> None:
    plain, tested = start_run(made(), plan=plan), start_run(made(), plan=plan)
    torch.manual_seed(9)
    expected, end = plain.go(60), torch.get_rng_state()
    torch.manual_seed(9)
    tests: dict[int, list[AnyCommand]] = {
        1: [RunRangeTest()],
        25: [RunRangeTest()],
        26: [RunRangeTest(), RunRangeTest()],
    }
    assert tested.go(60, tests) == expected
    assert torch.equal(torch.get_rng_state(), end)
    assert same(copy_of(tested.setup.model), copy_of(plain.setup.model))
    results = tested.keeper.events(RangeTestCompleted)
    assert [e.step for e in results] == [1, 25, 26], "two requests at one step share a test"
    assert [e.ahead[0] for e in results] == [expected[e.step] for e in results], (
        "at s = 0 the loss of the next update's batch"
    )
    steps = [(r.step, r.loss, r.lr) for r in tested.keeper.steps()]
    assert steps == [(r.step, r.loss, r.lr) for r in plain.keeper.steps()], "the test's own steps are not reported"
    read = [[(r.step, r.values, r.global_grad_norm) for r in run.keeper.readings()] for run in (plain, tested)]
    assert len(read[0]) >= 20
    assert read[0] == read[1]


def test_range_test_restores_state_and_hooks_even_if_it_is_ended(start_run: Any) -> None:
    run = start_run(setup_of(SHUFFLED))
    run.go(7)
    hooks = {name: list(found) for name, found in vars(run.setup.optimizer).items() if name.endswith("step_pre_hooks")}
    before, parameters = run.digest(), [id(p) for p in run.setup.model.parameters()]
    for end in ("batches 0/100", "batches 50/100", "rates 0/100", "rates 60/100"):

        def stop(where: str, end: str = end) -> None:
            if where == end:
                raise ValueError("enough")

        with pytest.raises(ValueError, match="enough"):
            RangeTest(run.steering, run.setup).run(0, 7, stop)
        assert run.digest() == before
    RangeTest(run.steering, run.setup).run(0, 7, nothing_asked)
    assert run.digest() == before
    assert [id(p) for p in run.setup.model.parameters()] == parameters
    assert {
        name: list(found) for name, found in vars(run.setup.optimizer).items() if name.endswith("step_pre_hooks")
    } == hooks


class Fails(nn.Module):
    """Raises at its n-th pass."""

    def __init__(self) -> None:
        super().__init__()
        self.at, self.passes = 0, itertools.count(1)  # snapshots do not restore iterators

    def forward(self, x: Tensor) -> Tensor:
        if next(self.passes) == self.at:
            raise RuntimeError("shape mismatch\nand more")
        return x


@pytest.mark.parametrize("at", [1, 5, 60, 150])
def test_net_that_raises_is_restored_and_reported(at: int) -> None:
    made = setup_of(SHUFFLED)
    train_setup(made, 3)
    made.model = nn.Sequential(fails := Fails(), made.model)
    steering, test = new_range_test(made)
    before = digest([*steering.holders(), RandomState()])
    fails.at = at
    with pytest.raises(ValueError, match=r"^nothing was changed: the net raised RuntimeError: shape mismatch$"):
        test.run(0, 3, nothing_asked)
    fails.at = 0
    assert digest([*steering.holders(), RandomState()]) == before


def test_optimizer_hooks_do_not_run_during_a_range_test(start_run: Any) -> None:
    """The tested rates are not multiplied, and gradients that become infinite do not hold the run."""
    made, other = (setup_of(SMALL, name="sgd", lr=0.05) for _ in range(2))
    for one in (made, other):
        one.model = nn.Sequential(one.model, NanAtLargeOutputs())
        one.optimizer = torch.optim.SGD(one.model.parameters(), lr=0.05)
    run = start_run(made, plan={0: "lr=*3"})
    run.watch.control.on_fault = "hold"  # a held run would wait forever
    run.step(RunRangeTest())
    found = run.keeper.events()
    assert not [e for e in found if isinstance(e, NotFinite)]
    (result,) = [e for e in found if isinstance(e, RangeTestCompleted)]
    steering, test = new_range_test(other)
    steering.rate.turn("*3")
    other.optimizer.param_groups[0]["lr"] = 0.05 * 3
    train_setup(other, 1)
    other.optimizer.param_groups[0]["lr"] = 0.05
    twin = test.run(0, 1, nothing_asked)
    assert msgspec.structs.replace(result, seconds=0.0) == msgspec.structs.replace(twin, seconds=0.0)
    assert result.ended_at is not None
    run.go(3)
    assert [r.lr for r in run.keeper.steps()] == pytest.approx([0.15] * 3), "the hooks are attached again"


def test_instruments_are_detached_during_a_range_test(start_run: Any) -> None:
    run = start_run(setup_of(SHUFFLED))

    def count_hooks(where: str = "") -> None:
        hook_counts.append(len(torch_module._global_forward_hooks) + len(torch_module._global_forward_pre_hooks))

    hook_counts: list[int] = []
    run.go(3)
    count_hooks()
    RangeTest(run.steering, run.setup).run(0, 3, count_hooks)
    count_hooks()
    assert hook_counts[0] > 0
    assert hook_counts[-1] == hook_counts[0]
    assert set(hook_counts[1:-1]) == {0}


# Not possible.


def test_range_test_of_a_run_held_at_nan_is_rejected_with_advice(start_run: Any) -> None:
    run = start_run(setup_of(SHUFFLED))
    run.go(3)
    run.watch.control.on_fault = "hold"
    run.keeper.send(RunRangeTest())
    run.keeper.send(Resume())
    assert not run.watch.loss(math.nan)
    (rejected,) = run.keeper.events(CommandRejected)
    assert rejected.reason == "a range test needs a finite loss; u goes back to the last good state"


def test_range_test_with_non_finite_weights_is_refused() -> None:
    made = setup_of(SHUFFLED)
    _, test = new_range_test(made)
    with torch.no_grad():
        next(made.model.parameters())[0, 0] = math.nan
    with pytest.raises(ValueError, match="the next batch's loss is nan; u goes back to the last good state"):
        test.run(0, 0, nothing_asked)


def test_range_test_is_rejected_for_a_user_loop_with_the_reason(keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    twin = copy.deepcopy(net)
    other = torch.optim.Adam(twin.parameters(), lr=1e-3)
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(budget=0.0)) as run:
        for n, batch in enumerate(digit_batches(6)):
            losses = []
            for model, updates in ((net, optimizer), (twin, other)):
                loss = loss_of(model, batch)
                updates.zero_grad()
                loss.backward()
                updates.step()
                losses.append(loss.item())
            assert losses[0] == losses[1]
            if n == 2:
                keeper.send(RunRangeTest())
            run.step(losses[0])
    (rejected,) = keeper.events(CommandRejected)
    assert rejected.reason == "a range test is not available for your own loop: its batches cannot be replayed"
