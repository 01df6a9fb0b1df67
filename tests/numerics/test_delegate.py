"""Another optimizer under a loop that goes on calling its own: the updates are those of a loop that calls the other."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from kept import Kept
from nets import OPTIMIZERS, copy_of, digit_batches, loss_of, mlp, same, same_state, state_of
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import CommandRejected, KnobTurned
from tui_descent.scenario.knobs import parse
from tui_descent.training.delegate import Delegate
from tui_descent.training.guard import Guard
from tui_descent.training.optimizers import swap
from tui_descent.training.surgery.transition import Changed
from tui_descent.training.watch import Watch

AT, STEPS = 4, 10
Made = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def train(
    net: nn.Module, optimizer: torch.optim.Optimizer, plan: Iterable[tuple[int, str]] = (), link: Any = None, **how: Any
) -> list[float]:
    """Losses of a watched loop that calls its own optimizer throughout."""
    losses = []
    scheduler = how.get("scheduler")
    with Watch(
        net, optimizer, link=link, plan=[(at, parse(text)) for at, text in plan], sampler=Sampler(every=1)
    ) as run:
        for batch in digit_batches(STEPS):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            run.step(loss)
            losses.append(loss.item())
    return losses


def twin(net: nn.Module, optimizer: torch.optim.Optimizer, change: Callable[[Any], Any]) -> list[float]:
    """Losses of a plain loop that calls what `change` makes from update `AT` on."""
    losses = []
    for n, batch in enumerate(digit_batches(STEPS)):
        if n == AT:
            optimizer = change(optimizer)
        loss = loss_of(net, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("new", ["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "muon"])
@pytest.mark.parametrize("old", OPTIMIZERS)
def test_the_updates_are_those_of_a_loop_that_calls_the_new_one(old: str, new: str) -> None:
    if old == new:
        return
    net, other = mlp(), mlp()
    losses = train(net, OPTIMIZERS[old](net.parameters()), [(AT, f"optimizer={new}")])
    expected = twin(other, OPTIMIZERS[old](other.parameters()), lambda o: swap(o, new, model=other).optimizer)
    assert losses == expected
    assert same(copy_of(net), copy_of(other))


def test_against_optimizers_made_by_hand() -> None:
    net, other = mlp(), mlp()
    lr = 0.05 * (1 / 1500**0.5)
    losses = train(net, OPTIMIZERS["sgd"](net.parameters()), [(AT, "optimizer=adam")])
    plain = twin(other, OPTIMIZERS["sgd"](other.parameters()), lambda _: torch.optim.Adam(other.parameters(), lr=lr))
    assert losses == plain
    net, other = mlp(), mlp()
    lr = 1e-3 * 1500**0.5
    losses = train(net, OPTIMIZERS["adam"](net.parameters()), [(AT, "optimizer=sgd")])
    assert losses == twin(
        other, OPTIMIZERS["adam"](other.parameters()), lambda _: torch.optim.SGD(other.parameters(), lr=lr)
    )


def test_the_update_that_was_made_is_measured_and_the_rate_recorded(kept: Kept) -> None:
    net, other = mlp(), mlp()
    train(net, OPTIMIZERS["sgd"](net.parameters()), [(AT, "optimizer=adam"), (7, "lr=*2")], kept.link)
    optimizer: Any = OPTIMIZERS["sgd"](other.parameters())
    readings, rates = {r.step: r for r in kept.readings()}, {r.step: r.lr for r in kept.steps()}
    lr = 0.05 * (1 / 1500**0.5)
    for n, batch in enumerate(digit_batches(STEPS)):
        if n == AT:
            optimizer = torch.optim.Adam(other.parameters(), lr=lr)
        optimizer.param_groups[0]["lr"] = 0.05 if n < AT else lr if n < 7 else lr * 2
        before = other.blocks[0].core.weight.detach().clone()
        loss = loss_of(other, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moved = (other.blocks[0].core.weight - before).double().norm().item()
        found = readings[n].values["update_norm"][1]  # behind the stem
        assert found == pytest.approx(moved, rel=1e-4), n
        assert rates[n] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
    (optimizer_turn, _) = kept.events(KnobTurned)
    assert (optimizer_turn.old, optimizer_turn.new) == ("sgd", "adam")
    assert "SGD stands aside" in optimizer_turn.note


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.8**k),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=STEPS + 1),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_loops_scheduler_stays_right_and_the_new_rate_follows_it(name: str) -> None:
    net = mlp()
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    scheduler = SCHEDULES[name](optimizer)
    plain = OPTIMIZERS["momentum"](mlp().parameters())
    other = SCHEDULES[name](plain)
    used: list[float] = []
    handle = register_optimizer_step_pre_hook(
        lambda o, *_: used.append(o.param_groups[0]["lr"]) if isinstance(o, torch.optim.Adam) else None
    )
    own = []
    with Watch(net, optimizer, link=None, plan=[(AT, parse("optimizer=adam")), (7, parse("lr=*3"))]) as run:
        for n, batch in enumerate(digit_batches(STEPS)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            run.step(loss)
            plain.step()
            own.append(plain.param_groups[0]["lr"])
            other.step()
            assert optimizer.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
            if n >= AT:
                factor = 0.1 * (3 if n + 1 >= 7 else 1)
                assert run.control.steering.rate.value == pytest.approx(plain.param_groups[0]["lr"] * factor)
    handle.remove()
    assert used[: 7 - AT] == pytest.approx([0.1 * lr for lr in own[AT:7]], rel=1e-12)


def test_turned_twice_and_back_the_loops_own_goes_on_with_what_it_kept() -> None:
    net, other = mlp(), mlp()
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    plan = [(3, "optimizer=adam"), (5, "optimizer=rmsprop"), (7, "optimizer=momentum")]
    losses = train(net, optimizer, plan)
    first: Any = OPTIMIZERS["momentum"](other.parameters())
    acting, expected = first, []
    for n, batch in enumerate(digit_batches(STEPS)):
        if n in (3, 5):
            acting = swap(acting, "adam" if n == 3 else "rmsprop", model=other).optimizer
        if n == 7:
            acting = first
        loss = loss_of(other, batch)
        acting.zero_grad()
        loss.backward()
        acting.step()
        expected.append(loss.item())
    assert losses == expected
    assert same(copy_of(net), copy_of(other))
    assert same_state(state_of(optimizer), state_of(first))
    assert "tui_descent" not in optimizer.state_dict()


def test_between_two_steps_the_loop_finds_its_optimizer_as_it_was() -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    held = optimizer.param_groups[0]["params"]
    seen: list[int] = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(len(o.param_groups[0]["params"])))
    optimizer.register_step_post_hook(lambda o, *_: seen.append(len(o.param_groups[0]["params"])))
    train(net, optimizer, [(AT, "optimizer=adam")])
    assert optimizer.param_groups[0]["params"] is held
    assert [id(p) for p in held] == [id(p) for p in net.parameters()]
    assert set(seen) == {len(held)}
    assert optimizer.param_groups[0]["lr"] == 0.05


class Failing(torch.optim.SGD):
    """Raises within its own step when told to; and calls super().step()."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        if self.fails:
            raise RuntimeError("no memory")
        return super().step(closure)


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


def test_gradients_are_looked_at_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bool] = []
    fine = Guard.fine
    monkeypatch.setattr(Guard, "fine", lambda self: looked.append(fine(self)) or looked[-1])
    net = mlp()
    train(net, OPTIMIZERS["sgd"](net.parameters()), [(AT, "optimizer=adam"), (7, "optimizer=sgd")])
    assert looked == [True] * STEPS


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
                ground = run.control.steering.ground
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
