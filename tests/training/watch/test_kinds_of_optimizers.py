"""Optimizers as they are: without a rate, with tensors as rates, with closures, wrapped, or of the user's own class."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from torch import Tensor, nn

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import CommandDone, CommandRejected, KnobTurned, Noted, RunStarted
from tui_descent.scenario.knobs import parse
from tui_descent.training.watch.watch import Watch

STEPS = 8


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 4, generator=generator) for _ in range(STEPS)]


def loss_of(net: nn.Module, x: Tensor) -> Tensor:
    return (net(x) - 1).pow(2).mean()


class OwnRate(torch.optim.Optimizer):
    """A step of fixed size. Its groups have no `lr`, or one that is None."""

    def __init__(self, params: Any, **defaults: Any) -> None:
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=-0.01)


class Twice(torch.optim.Optimizer):
    """Calls its closure `calls` times and uses the mean of the gradients."""

    def __init__(self, params: Any, lr: float = 0.05, calls: int = 2, *, moves_first: bool = False) -> None:
        super().__init__(params, {"lr": lr})
        self.calls, self.moves_first = calls, moves_first

    def step(self, closure: Any) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        if self.moves_first:  # as SAM does
            with torch.no_grad():
                for p in parameters:
                    p.add_(0.01)
        total = [torch.zeros_like(p) for p in parameters]
        for _ in range(self.calls):
            with torch.enable_grad():
                loss = closure()
            torch._foreach_add_(total, [p.grad for p in parameters])
        with torch.no_grad():
            for p, grad in zip(parameters, total, strict=True):
                p.sub_(grad, alpha=self.param_groups[0]["lr"] / self.calls)
        return loss


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation as usually written: two half-steps around a second pass, on a base optimizer."""

    def __init__(self, params: Any, base: type[torch.optim.Optimizer], rho: float = 0.05, **options: Any) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["moved"] = p.grad * group["rho"]
                p.add_(self.state[p]["moved"])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.state[p]["moved"])
        self.base_optimizer.step()
        self.zero_grad()

    def step(self, closure: Any = None) -> None:
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


class Accelerated(torch.optim.Optimizer):
    """As Accelerate's `AcceleratedOptimizer`: an Optimizer whose `__init__` was never run."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    defaults = property(lambda self: self.optimizer.defaults)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


class Fabric:
    """As Fabric's `_FabricOptimizer`: it takes over the attributes and the class of the optimizer inside."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.__dict__ = {k: v for k, v in vars(optimizer).items() if k not in ("state_dict", "step")}
        self.__class__ = type("Fabric" + type(optimizer).__name__, (Fabric, type(optimizer)), {})
        self._optimizer = optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure)


class Plain:
    """A wrapper that is no Optimizer at all."""

    def __init__(self, inner: Any) -> None:
        self.optim = inner

    def zero_grad(self) -> None:
        self.optim.zero_grad()

    def step(self) -> None:
        self.optim.step()


class Subclass(torch.optim.AdamW):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=0.01)


OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "no lr": lambda net: OwnRate(net.parameters()),
    "lr=None": lambda net: OwnRate(net.parameters(), lr=None),
    "lr=None in one group": lambda net: OwnRate(
        [{"params": net[0].parameters(), "lr": None}, {"params": net[2].parameters(), "lr": 0.1}]
    ),
    "int": lambda net: torch.optim.Adadelta(net.parameters(), lr=1),
    "tensor": lambda net: torch.optim.Adam(net.parameters(), lr=torch.tensor(0.01), foreach=False, capturable=False),
    "shared tensor": lambda net: torch.optim.AdamW(
        [{"params": net[0].parameters()}, {"params": net[2].parameters()}], lr=torch.tensor(0.01), foreach=False
    ),
    "subclass": lambda net: Subclass(net.parameters(), lr=0.01),
    "accelerate": lambda net: Accelerated(adamw(net)),
    "fabric": lambda net: Fabric(adamw(net)),
    "plain wrapper": lambda net: Plain(adamw(net)),
    "wrapper of a wrapper": lambda net: Accelerated(Fabric(adamw(net))),
    "plain wrapper of a wrapper": lambda net: Plain(Accelerated(adamw(net))),
    "scheduler": lambda net: torch.optim.lr_scheduler.ConstantLR(adamw(net)),
    "Adagrad": lambda net: torch.optim.Adagrad(net.parameters()),
    "Rprop": lambda net: torch.optim.Rprop(net.parameters()),
    "NAdam": lambda net: torch.optim.NAdam(net.parameters()),
}
NO_RATE = ("no lr", "lr=None")
CLOSURES: dict[str, Callable[[nn.Module], Any]] = {
    "SGD": lambda net: torch.optim.SGD(net.parameters(), lr=0.05),
    "twice": lambda net: Twice(net.parameters()),
    "five times": lambda net: Twice(net.parameters(), calls=5),
    "moves first": lambda net: Twice(net.parameters(), calls=1, moves_first=True),
    "SAM": lambda net: Sam(net.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9),
    "wrapped": lambda net: Accelerated(Twice(net.parameters())),
}


def stepped(optimizer: Any) -> Any:
    """What the loop steps: a scheduler's own optimizer."""
    return optimizer.optimizer if isinstance(optimizer, torch.optim.lr_scheduler.LRScheduler) else optimizer


def train(net: nn.Module, optimizer: Any, run: Watch | None, each: Callable[[int], object] = lambda n: None) -> None:
    optimizer = stepped(optimizer)
    for n, x in enumerate(inputs()):
        loss = loss_of(net, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        each(n)
        if run is not None:
            assert run.step(loss)


def train_by_closure(net: nn.Module, optimizer: Any, run: Watch | None, gradients: list[Tensor]) -> None:
    """`gradients` gets the global norm of the last gradient of each step."""
    for x in inputs():
        if isinstance(optimizer, Sam):
            loss_of(net, x).backward()

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(net, x)
            loss.backward()
            norm = torch.stack([p.grad.double().norm() for p in net.parameters()]).norm()
            closure.last = loss.item(), norm  # type: ignore[attr-defined]
            return loss

        optimizer.step(closure)
        loss, norm = closure.last  # type: ignore[attr-defined]
        gradients.append(norm)
        if run is not None:
            assert run.step(loss)


def weights(net: nn.Module) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in net.parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_update_is_seen_and_training_is_unchanged(name: str, keeper: FakeKeeper) -> None:
    net, alone = make_net(), make_net()
    train(alone, OPTIMIZERS[name](alone), None)
    optimizer = OPTIMIZERS[name](net)
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=2)) as run:
        train(net, optimizer, run)
    assert weights(net) == weights(alone)
    records = keeper.steps()
    assert [r.step for r in records] == list(range(STEPS))
    assert all(r.lr != r.lr for r in records) == (name in NO_RATE)
    assert len(keeper.readings()) == STEPS // 2
    assert not keeper.events(Noted)


@pytest.mark.parametrize("name", CLOSURES)
def test_closures_are_counted_as_one_step_and_the_last_gradient_is_measured(name: str, keeper: FakeKeeper) -> None:
    net, alone = make_net(), make_net()
    train_by_closure(alone, CLOSURES[name](alone), None, [])
    optimizer, norms = CLOSURES[name](net), list[Tensor]()
    moved: list[Tensor] = []

    class Recorded(Watch):
        def step(self, loss: Any) -> bool:
            moved.append(torch.cat([p.detach().double().flatten() for p in net.parameters()]))
            return super().step(loss)

    with Recorded(net, optimizer, link=keeper.link, sampler=Sampler(every=1)) as run:
        train_by_closure(net, optimizer, run, norms)
    assert weights(net) == weights(alone)
    readings = keeper.readings()
    # The layers are known only after the first closure has run, too late for a reading of that step.
    assert [r.step for r in readings] == list(range(1, STEPS))
    assert [r.global_grad_norm for r in readings] == pytest.approx([n.item() for n in norms[1:]], rel=1e-5)
    first = net[0].weight.numel()
    changes = [(b[:first] - a[:first]).norm().item() for a, b in pairwise(moved)]
    assert [r.values["update_norm"][0] for r in readings] == pytest.approx(changes, rel=1e-4)


@pytest.mark.parametrize("factor", ["*0.5", "*3", "0.002"])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in NO_RATE])
def test_rate_knob_acts_on_the_optimizer_inside_and_leaves_its_rate(name: str, factor: str, keeper: FakeKeeper) -> None:
    net = make_net()
    optimizer = OPTIMIZERS[name](net)
    groups = stepped(optimizer).optim.optimizer.param_groups if name == "plain wrapper of a wrapper" else (
        stepped(optimizer).optim.param_groups if name == "plain wrapper" else stepped(optimizer).param_groups
    )  # fmt: skip
    own = [None if g["lr"] is None else float(g["lr"]) for g in groups]
    with Watch(net, optimizer, link=keeper.link) as run:
        train(net, optimizer, run, lambda n: keeper.send(parse(f"lr={factor}")) if n == 3 else None)
    assert [None if g["lr"] is None else float(g["lr"]) for g in groups] == own
    rates = [r.lr for r in keeper.steps()]
    first = next(rate for rate in own if rate is not None)
    expected = float(factor) if factor[0] != "*" else first * float(factor[1:])
    assert rates == pytest.approx([first] * 4 + [expected] * 4)


@pytest.mark.parametrize("name", NO_RATE)
def test_rate_knob_says_why_it_cannot_act(name: str, keeper: FakeKeeper) -> None:
    net = make_net()
    optimizer = OPTIMIZERS[name](net)
    with Watch(net, optimizer, link=keeper.link) as run:
        train(net, optimizer, run, lambda n: keeper.send(parse("lr=*2")) if n == 3 else None)
    events = keeper.events()
    (rejected,) = (event for event in events if isinstance(event, CommandRejected))
    assert rejected.reason == "OwnRate has no lr in its groups: it sets its own rate"
    started = next(event for event in events if isinstance(event, RunStarted))
    assert {state.name: state.unavailable for state in started.knobs}["lr"] == rejected.reason


@pytest.mark.parametrize(
    ("make", "has", "has_not"),
    [
        (lambda net: torch.optim.Adadelta(net.parameters()), {"weight_decay": "0"}, ("momentum", "betas")),
        (lambda net: torch.optim.NAdam(net.parameters()), {"betas": "0.9/0.999"}, ("momentum",)),
        (lambda net: torch.optim.Rprop(net.parameters()), {"clip": "off"}, ("momentum", "betas", "weight_decay")),
        (
            lambda net: OwnRate(net.parameters(), lr=1.0, momentum=0.3, betas=(0.1, 0.2, 0.3)),
            {"momentum": "0.3"},
            ("betas",),
        ),
        (lambda net: torch.optim.SGD(net.parameters(), lr=0.1), {"momentum": "0"}, ("betas",)),
    ],
)  # fmt: skip
def test_unknown_optimizer_offers_what_it_has(
    make: Callable[[nn.Module], torch.optim.Optimizer], has: dict[str, str], has_not: tuple[str, ...]
) -> None:
    net = make_net()
    run = Watch(net, make(net), link=None)
    states = {state.name: state for state in run.steering.states()}
    assert {name: states[name].value for name in has} == has
    for name in has_not:
        assert states[name].unavailable
        assert "optimizer=" not in states[name].unavailable  # the loop owns its optimizer's class
        assert len(states[name].unavailable) <= 80


@pytest.mark.parametrize("values", ["0.5/0.9", "0.8/0.99", "0/0.5"])
def test_betas_of_an_unknown_optimizer_are_set_and_its_state_is_kept(values: str) -> None:
    net = make_net()
    optimizer = torch.optim.NAdam(net.parameters())
    train(net, optimizer, None)
    before = {p: state["exp_avg"].clone() for p, state in optimizer.state.items()}
    Watch(net, optimizer, link=None).steering.turn(parse(f"betas={values}"))
    assert optimizer.param_groups[0]["betas"] == tuple(map(float, values.split("/")))
    assert all(torch.equal(optimizer.state[p]["exp_avg"], kept) for p, kept in before.items())


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda net: Plain(Plain(3)), "found Plain"),
        (lambda net: Accelerated(torch.optim.LBFGS(net.parameters())), "LBFGS cannot be watched"),
        (lambda net: torch.optim.Adam, "found the class Adam; create the optimizer first"),
        (lambda net: net, "found Sequential"),
    ],
)
def test_what_cannot_be_watched_is_refused(wrong: Callable[[nn.Module], object], reason: str) -> None:
    net = make_net()
    with pytest.raises(ValueError, match=reason):
        Watch(net, wrong(net), link=None)


@pytest.mark.parametrize("kind", [list, dict, tuple])
def test_wrapper_of_several_optimizers_says_what_to_pass(kind: type) -> None:
    net = make_net()
    several = [adamw(net), torch.optim.SGD(net.parameters(), lr=0.1)]
    wrapper = Plain(dict(enumerate(several)) if kind is dict else kind(several))
    with pytest.raises(ValueError, match=r"Plain holds 2 optimizers \(AdamW, SGD\): pass them to watch\(\) as a list"):
        Watch(net, wrapper, link=None)


@pytest.mark.parametrize("written", [0.5, 0.02, 0.0])
def test_rate_that_the_script_writes_wins_and_the_multiplier_stays_on_it(written: float, keeper: FakeKeeper) -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    during: list[float] = []
    with Watch(net, optimizer, link=keeper.link) as run:
        optimizer.register_step_pre_hook(lambda o, *_: during.append(o.param_groups[0]["lr"]))

        def each(n: int) -> None:
            if n == 2:
                keeper.send(parse("lr=*0.5"))
            if n == 4:
                optimizer.param_groups[0]["lr"] = written

        train(net, optimizer, run, each)
    assert during == pytest.approx([0.1] * 3 + [0.05] * 2 + [0.5 * written] * 3)
    assert [r.lr for r in keeper.steps()] == pytest.approx(during)
    assert optimizer.param_groups[0]["lr"] == written


@pytest.mark.parametrize("written", [0.5, 0.02, 1e-4])
def test_rate_written_inside_the_step_is_kept(written: float, keeper: FakeKeeper) -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=keeper.link) as run:
        run.steering.rate.turn("*2")
        optimizer.register_step_pre_hook(lambda o, *_: o.param_groups[0].update(lr=written))
        train(net, optimizer, run, lambda n: None)
    assert optimizer.param_groups[0]["lr"] == written


@pytest.mark.parametrize("calls", [2, 3, 10])
def test_several_updates_of_one_optimizer_are_one_step(calls: int, keeper: FakeKeeper) -> None:
    net = make_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    changes, norms = list[float](), list[float]()
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)) as run:
        for x in inputs():
            before = net[0].weight.detach().double()
            for _ in range(calls):
                loss = loss_of(net, x)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            norms.append(net[0].weight.grad.double().norm().item())
            changes.append((net[0].weight.detach().double() - before).norm().item())
            assert run.step(loss)
    assert [r.step for r in keeper.steps()] == list(range(STEPS))
    readings = keeper.readings()
    assert [r.step for r in readings] == list(range(1, STEPS))  # the first one would have covered one update only
    assert [r.values["grad_norm"][0] for r in readings] == pytest.approx(norms[1:], rel=1e-5)
    assert [r.values["update_norm"][0] for r in readings] == pytest.approx(changes[1:], rel=1e-4)


GROUPS: dict[str, tuple[list[float], str, list[float], str]] = {
    "two": ([3e-3, 1e-3], "lr=0.01", [1e-2, 1e-2 / 3], "now 2 groups 0.01 / 0.00333"),
    "first is 0": ([0.0, 2e-3, 1e-3], "lr=*2", [0.0, 4e-3, 2e-3], "now 3 groups 0 / 0.004 / 0.002"),
    "many": (
        [1e-3, 2e-3, 4e-3, 8e-3],
        "lr=/2",
        [5e-4, 1e-3, 2e-3, 4e-3],
        "now 4 groups 0.0005 (0.0005 to 0.004)",
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_all_groups_get_the_same_factor_and_the_receipt_says_so(name: str, keeper: FakeKeeper) -> None:
    rates, command, expected, note = GROUPS[name]
    net = make_net()
    parameters = list(net.parameters())
    groups = [{"params": [p], "lr": rate} for p, rate in zip(parameters, rates, strict=False)]
    optimizer = torch.optim.AdamW(groups)
    during: list[float] = []
    with Watch(net, optimizer, link=keeper.link) as run:
        optimizer.register_step_pre_hook(
            lambda o, *_: during.__setitem__(slice(None), [g["lr"] for g in o.param_groups])
        )
        train(net, optimizer, run, lambda n: keeper.send(parse(command)) if n == 3 else None)
    assert during == pytest.approx(expected)
    (turned,) = keeper.events(KnobTurned)
    assert turned.note == note
    assert [g["lr"] for g in optimizer.param_groups] == rates


@pytest.mark.parametrize(
    "command", ["lr=0.01", "lr=*1", "betas=0.9/0.999", "weight_decay=0.01", "weight_decay=/1", "clip=off", "pace=max",
                "activation=tanh", "residual=off", "freeze=off"]
)  # fmt: skip
def test_present_value_is_no_intervention(command: str, keeper: FakeKeeper) -> None:
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    with Watch(net, optimizer, link=keeper.link) as run:
        train(net, optimizer, run, lambda n: keeper.send(parse(command)) if n == 3 else None)
    events = keeper.events()
    assert not [event for event in events if isinstance(event, KnobTurned)]
    answers = [event.what for event in events if isinstance(event, CommandDone)]
    rejected = [event.reason for event in events if isinstance(event, CommandRejected)]
    if command == "residual=off" and rejected:
        return  # this net has no blocks
    knob, _, value = command.partition("=")
    shown = {"*1": "0.01", "/1": "0.01"}.get(value, value)
    assert answers == [f"{knob} is {shown} already"]


@pytest.mark.parametrize("updates", [99, 100, 150])
def test_many_updates_without_a_reported_loss_are_said_once(updates: int, keeper: FakeKeeper) -> None:
    net = make_net()
    optimizer = adamw(net)
    with Watch(net, optimizer, link=keeper.link) as run:
        for _ in range(2):
            for _ in range(updates + 1):
                loss_of(net, torch.ones(2, 4)).backward()
                optimizer.step()
            run.step(1.0)
    said = [event.text for event in keeper.events(Noted)]
    assert said == ["100 updates without a run.step(loss): together they count as one step"] * (updates >= 100)


@pytest.mark.parametrize("inside", ["undo", "redo", "again"])
def test_update_dropped_in_a_hold_is_not_counted_after_an_undo(
    inside: str, keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make_net()
    optimizer = adamw(net)
    with Watch(net, optimizer, link=keeper.link, on_fault="hold") as run:

        def hold(*args: object, **kwargs: object) -> None:
            for _ in range(("undo", "redo", "again").index(inside) + 1):
                run.steering.after_restore()  # as after an undo while the run is held

        monkeypatch.setattr(run.control, "hold", hold)
        for n, x in enumerate(inputs()):
            loss = loss_of(net, x)
            optimizer.zero_grad()
            loss.backward()
            if n == 3:
                net[0].weight.grad[0, 0] = float("nan")
            before = [p.clone() for p in net.parameters()]
            optimizer.step()
            assert run.step(loss) == (n != 3)
            assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True)) == (n == 3)
    assert [r.skipped for r in keeper.steps()] == [n == 3 for n in range(STEPS)]


class Mixed(torch.optim.Optimizer):
    """Updates matrices with an optimizer inside, and vectors itself: it is no wrapper."""

    def __init__(self, params: Any, inside: Callable[[Any], torch.optim.Optimizer]) -> None:
        super().__init__(params, {"lr": 0.05})
        held = [p for group in self.param_groups for p in group["params"]]
        self.inside = inside([p for p in held if p.dim() > 1])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.inside.step()
        for p in (p for group in self.param_groups for p in group["params"] if p.dim() < 2):
            p.sub_(p.grad, alpha=self.param_groups[0]["lr"])


@pytest.mark.parametrize("inside", [torch.optim.Muon, torch.optim.Adam, torch.optim.Adagrad])
def test_optimizer_that_uses_another_one_for_a_part_is_watched_itself(inside: Any, keeper: FakeKeeper) -> None:
    net, alone = make_net(), make_net()
    train(alone, Mixed(alone.parameters(), inside), None)
    optimizer = Mixed(net.parameters(), inside)
    with Watch(net, optimizer, link=keeper.link) as run:
        assert run.optimizer is optimizer
        train(net, optimizer, run)
    assert weights(net) == weights(alone)
    assert [r.lr for r in keeper.steps()] == [0.05] * STEPS
