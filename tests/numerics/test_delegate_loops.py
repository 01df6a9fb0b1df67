"""Loops that raise, take closures, scale, save, and optimizers that cannot stand aside, under another optimizer."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from aside import AT, STEPS, train, twin
from kept import Kept
from nets import OPTIMIZERS, Failing, copy_of, digit_batches, loss_of, mlp, same
from torch import Tensor, nn
from torch.optim import lr_scheduler

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import CommandRejected
from tui_descent.scenario.knobs import parse
from tui_descent.training.delegate import Delegate
from tui_descent.training.optimizers import swap
from tui_descent.training.surgery.transition import Changed
from tui_descent.training.watch import Watch


@pytest.mark.parametrize("told", [False, True], ids=["at the next update", "at run.step"])
def test_a_step_that_raised_leaves_nothing_emptied(told: bool) -> None:
    net = mlp()
    optimizer = Failing(net.parameters(), lr=0.05)
    count = len(list(net.parameters()))
    with Watch(net, optimizer, link=None, plan=[(1, parse("optimizer=adam"))]) as run:
        for n, batch in enumerate(digit_batches(6)):
            loss = loss_of(net, batch)
            optimizer.fails = n in (2, 3)
            optimizer.zero_grad()
            loss.backward()
            before = copy_of(net)
            try:
                optimizer.step()
            except RuntimeError:
                if not told:
                    continue
            run.step(loss)
            assert not same(copy_of(net), before)
            assert len(optimizer.param_groups[0]["params"]) == count
    assert run.next_step == (6 if told else 4)


@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, Failing], ids=["torch's", "a subclass that calls super().step()"])
def test_one_update_a_step_with_a_closure_too(kind: Any, closure: bool) -> None:
    net, other = mlp(), mlp()
    optimizer = kind(net.parameters(), lr=0.05)
    plain: Any = torch.optim.SGD(other.parameters(), lr=0.05)
    calls = 0
    with Watch(net, optimizer, link=None, plan=[(2, parse("optimizer=adam"))], sampler=Sampler(every=1)) as run:
        for n, batch in enumerate(digit_batches(6)):

            def evaluate(batch: Any = batch) -> Tensor:
                nonlocal calls
                calls += 1
                optimizer.zero_grad()
                loss = loss_of(net, batch)
                loss.backward()
                return loss

            if closure:
                loss = optimizer.step(evaluate)
                assert isinstance(loss, Tensor)
            else:
                loss = evaluate()
                optimizer.step()
            run.step(loss)
            if n == 2:
                plain = swap(plain, "adam").optimizer
            expected = loss_of(other, batch)
            plain.zero_grad()
            expected.backward()
            plain.step()
            assert loss.item() == expected.item()
    assert calls == 6
    assert run.next_step == 6


class Hoarding(torch.optim.SGD):
    """Does not look into its groups."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        self._all = list(self.param_groups[0]["params"])

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for p in self._all:
            p.sub_(p.grad, alpha=self.param_groups[0]["lr"])


class First(torch.optim.SGD):
    """Wants one parameter at least."""

    def step(self, closure: Any = None) -> Any:
        assert self.param_groups[0]["params"][0] is not None
        return super().step(closure)


@pytest.mark.parametrize(
    ("kind", "reason"), [(Hoarding, "moves weights that are not in its groups"), (First, "raises IndexError")]
)
def test_one_that_cannot_stand_aside_is_left_at_work(kind: Any, reason: str, kept: Kept) -> None:
    net, other = mlp(), mlp()
    optimizer, plain = kind(net.parameters(), lr=0.05), torch.optim.SGD(other.parameters(), lr=0.05)
    losses = train(net, optimizer, [(AT, "optimizer=adam")], kept.link)
    assert losses == twin(other, plain, lambda o: o)
    (rejected,) = kept.events(CommandRejected)
    assert reason in rejected.reason


def test_a_checkpoint_carries_what_the_new_one_remembers() -> None:
    batches = digit_batches(STEPS)

    def go(net: nn.Module, optimizer: Any, run: Watch, of: list[Any]) -> list[float]:
        losses = []
        for batch in of:
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
            losses.append(loss.item())
        return losses

    net, file = mlp(), io.BytesIO()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    with Watch(net, optimizer, link=None, plan=[(2, parse("optimizer=adam"))]) as run:
        go(net, optimizer, run, batches[:6])
        torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
        expected = go(net, optimizer, run, batches[6:])
        file.seek(0)
        back = torch.load(file, weights_only=True)
        net.load_state_dict(back["net"])
        optimizer.load_state_dict(back["optimizer"])
        assert go(net, optimizer, run, batches[6:]) == expected, "into the same run"
    file.seek(0)
    back = torch.load(file, weights_only=True)  # torch's own load_state_dict keeps the very tensors
    fresh = mlp(seed=7)
    other = OPTIMIZERS["sgd"](fresh.parameters())
    with Watch(fresh, other, link=None) as run:
        fresh.load_state_dict(back["net"])
        other.load_state_dict(back["optimizer"])
        assert go(fresh, other, run, batches[6:]) == expected, "into a run that never turned it"
        assert isinstance(run.optimizer, torch.optim.Adam)
    fresh = mlp(seed=7)
    unwatched = OPTIMIZERS["sgd"](fresh.parameters())
    unwatched.load_state_dict(back["optimizer"])  # torch alone passes over the key


@pytest.mark.parametrize("new", ["adam", "rmsprop", "muon"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_a_scalers_gradients_reach_the_new_one_unscaled_and_an_overflow_is_skipped(new: str, fused: bool) -> None:
    def made(net: nn.Module) -> Any:
        return torch.optim.SGD(net.parameters(), lr=0.05, fused=fused)

    def go(net: nn.Module, optimizer: Any, after: Callable[[Any, Tensor], Any]) -> list[Tensor]:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for n, batch in enumerate(digit_batches(8)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            scaler.scale(loss * (float("inf") if n == 6 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer = after(optimizer, loss) or optimizer
        return copy_of(net)

    net, other = mlp(), mlp()
    with Watch(net, made(net), link=None, plan=[(2, parse(f"optimizer={new}"))]) as run:
        found = go(net, run.optimizer, lambda _, loss: run.step(loss) and None)
    count = 0

    def change(optimizer: Any, _: Tensor) -> Any:
        nonlocal count
        count += 1
        return swap(optimizer, new, model=other).optimizer if count == 2 else None

    assert same(found, go(other, made(other), change))


def test_a_loop_watched_once_more_goes_on_with_the_new_one(kept: Kept) -> None:
    net, other = mlp(), mlp()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    losses = train(net, optimizer, [(AT, "optimizer=adam")]) + train(net, optimizer, link=kept.link)
    plain = OPTIMIZERS["sgd"](other.parameters())
    new = swap(plain, "adam").optimizer  # SGD has no memory to hand over
    assert losses == twin(other, plain, lambda _: new) + twin(other, new, lambda o: o)
    assert len(kept.readings()) == STEPS
    assert all(min(reading.values["update_norm"]) > 0 for reading in kept.readings())


def test_when_the_watch_is_over_the_new_one_goes_on_at_the_schedulers_rate() -> None:
    net = mlp()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(net, optimizer, [(AT, "optimizer=adam"), (5, "lr=*7")])
    acting = Delegate.of(optimizer).acting
    assert isinstance(acting, torch.optim.Adam)
    rates = []
    for batch in digit_batches(3):
        loss = loss_of(net, batch)
        optimizer.zero_grad()
        loss.backward()
        before = copy_of(net)
        optimizer.step()
        assert not same(copy_of(net), before)
        rates.append(acting.param_groups[0]["lr"])
        scheduler.step()
    assert rates == pytest.approx([0.05 / 1500**0.5 / 2**n for n in range(3)])


def test_parameters_that_come_and_go_do_so_in_both() -> None:
    net = mlp()
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    with Watch(net, optimizer, link=None, plan=[(1, parse("optimizer=adam"))]) as run:
        for n, batch in enumerate(digit_batches(6)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
            if n == 2:
                linear = net.head
                gone = linear.bias
                linear.bias = nn.Parameter(torch.zeros(10))
                ground = run.steering.ground
                ground.parameters_changed(Changed(added={"head.bias": linear.bias}, removed={"head.bias": gone}))
            if n == 3:
                net.extra = nn.Linear(2, 2)
                optimizer.add_param_group({"params": net.extra.parameters(), "lr": 0.1})
            for each in (optimizer, run.optimizer):
                held = [id(p) for g in each.param_groups for p in g["params"]]
                if n != 3:  # a group that the loop adds is met with the next step
                    assert held == [id(p) for p in net.parameters()]
    assert float(linear.bias.detach().abs().max()) > 0
    assert run.optimizer.param_groups[1]["lr"] == pytest.approx(0.01)
