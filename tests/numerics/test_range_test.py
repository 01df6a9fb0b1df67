"""The range test and the look ahead: against twins that know nothing of the program, and without a trace in the run."""

from __future__ import annotations

import copy
import itertools
import math
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from kept import Kept
from nets import copy_of, digit_batches, loss_of, mlp, same
from played import SCENARIO
from torch import Tensor, nn

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import AnyCommand, CancelSweep, Mark, Resume, Stop, SweepRates, TurnKnob
from tui_descent.protocol.events import (
    CommandDone,
    CommandRejected,
    KnobTurned,
    Marked,
    NotFinite,
    RatesSwept,
    RunStarted,
    StateChanged,
)
from tui_descent.scenario import presets
from tui_descent.scenario.knobs import parse
from tui_descent.scenario.toml import from_table
from tui_descent.training.build import Setup, build
from tui_descent.training.lookahead import SCALES, look_ahead
from tui_descent.training.moments import Moment
from tui_descent.training.ratesweep import MEMORY, STEPS, Curve, RangeTest, judged, span
from tui_descent.training.steering import Steering
from tui_descent.training.stop import StopRun
from tui_descent.training.watch import Watch

ABOUT = RunStarted(
    run="", title="", name="", scenario={}, device="cpu", threads=1, parameters=0, layers=(), knobs=(), steps=60
)
SHUFFLED = SCENARIO.replace("steps = 500", "steps = 60")
CPU = torch.device("cpu")


def setup_of(text: str, **optimizer: Any) -> Setup:
    table = tomllib.loads(text) | ({"optimizer": optimizer} if optimizer else {})
    return build(from_table(table, source="test"), on=CPU)


def normed_conv() -> Setup:
    """A convolutional net whose batch norms count what they have seen."""
    torch.manual_seed(3)
    made = setup_of(SHUFFLED)
    made.model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(96, 10),
    )  # fmt: skip
    made.optimizer = torch.optim.SGD(made.model.parameters(), lr=0.05, momentum=0.9)
    made.schedule = None
    return made


class Run:
    """A run of the own loop's parts; what is asked is done before the step it is asked for."""

    def __init__(self, kept: Kept, made: Setup, *, plan: dict[int, str] | None = None, **how: Any) -> None:
        self.kept, self.setup = kept, made
        kept.link.launch = msgspec.structs.replace(kept.link.launch, socket="there")
        self.watch = Watch(
            made.model,
            made.optimizer,
            link=kept.link,
            plan=[(at, parse(turn)) for at, turn in (plan or {}).items()],
            about=ABOUT,
            own_loop=True,
            state=(made,),
            sampler=Sampler(every=1),
            steering=Steering(made.model, made.optimizer, setup=made, seed=1, steps=60, **how),
            again=made,
        )
        self.losses: list[float] = []
        self.watch.__enter__()
        self.watch.begin_step()

    @property
    def steering(self) -> Steering:
        return self.watch.control.steering

    def step(self, *asked: AnyCommand) -> None:
        loss = self.setup.loss()
        self.setup.optimizer.zero_grad()
        loss.backward()
        self.setup.optimizer.step()
        self.losses.append(loss.item())
        for command in asked:
            self.kept.order(command)
        self.watch.step(loss)

    def go(self, until: int, asked: dict[int, list[AnyCommand]] | None = None) -> list[float]:
        """Updates up to `until`; what is asked for step k is done before update k."""
        while self.watch.next_step < until:
            self.step(*(asked or {}).get(self.watch.next_step + 1, ()))
        return self.losses

    def digest(self) -> str:
        return Moment.take([self.setup.model, self.steering, self.setup], segment=0, step=0).digest()

    def end(self) -> None:
        self.watch.__exit__(None, None, None)


@pytest.fixture
def begin(kept: Kept, home: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []
    others: list[Kept] = []

    def start(made: Setup, **how: Any) -> Run:
        if runs:  # a run beside the first
            folder = home / f"beside{len(runs)}"
            folder.mkdir()
            others.append(Kept(folder))
        runs.append(Run(others[-1] if others else kept, made, **how))
        return runs[-1]

    yield start
    for run in runs:
        run.end()
    for other in others:
        other.close()


def nobody(where: str) -> None:
    """Nothing is asked meanwhile."""


def alone(made: Setup, **how: Any) -> tuple[Steering, RangeTest]:
    steering = Steering(made.model, made.optimizer, setup=made, seed=1, steps=60, **how)
    return steering, RangeTest(steering, made)


def trained(made: Setup, steps: int) -> None:
    for _ in range(steps):
        made.optimizer.zero_grad()
        made.loss().backward()
        made.optimizer.step()


# Without a trace.


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
def test_the_run_goes_on_as_if_it_had_never_been_tested(made: Any, plan: Any, begin: Any) -> None:
    plain, tested = begin(made(), plan=plan), begin(made(), plan=plan)
    torch.manual_seed(9)
    expected, end = plain.go(60), torch.get_rng_state()
    torch.manual_seed(9)
    tests: dict[int, list[AnyCommand]] = {1: [SweepRates()], 25: [SweepRates()], 26: [SweepRates(), SweepRates()]}
    assert tested.go(60, tests) == expected
    assert torch.equal(torch.get_rng_state(), end)
    assert same(copy_of(tested.setup.model), copy_of(plain.setup.model))
    told = tested.kept.events(RatesSwept)
    assert [e.step for e in told] == [1, 25, 26], "the last two are one"
    assert [e.ahead[0] for e in told] == [expected[e.step] for e in told], "at s = 0 the next update's own loss"
    steps = [(r.step, r.loss, r.lr) for r in tested.kept.steps()]
    assert steps == [(r.step, r.loss, r.lr) for r in plain.kept.steps()], "no step of the sweep is told"
    read = [[(r.step, r.values, r.global_grad_norm) for r in run.kept.readings()] for run in (plain, tested)]
    assert len(read[0]) >= 20
    assert read[0] == read[1]


def test_state_and_hooks_are_as_before(begin: Any) -> None:
    run = begin(setup_of(SHUFFLED))
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
    RangeTest(run.steering, run.setup).run(0, 7, nobody)
    assert run.digest() == before
    assert [id(p) for p in run.setup.model.parameters()] == parameters
    assert {
        name: list(found) for name, found in vars(run.setup.optimizer).items() if name.endswith("step_pre_hooks")
    } == hooks


class Fails(nn.Module):
    """Raises at its n-th pass."""

    def __init__(self) -> None:
        super().__init__()
        self.at, self.passes = 0, itertools.count(1)  # an iterator, which no moment puts back

    def forward(self, x: Tensor) -> Tensor:
        if next(self.passes) == self.at:
            raise RuntimeError("shape mismatch\nand more")
        return x


@pytest.mark.parametrize("at", [1, 5, 60, 150])
def test_a_net_that_raises_is_put_back_and_says_so(at: int) -> None:
    made = setup_of(SHUFFLED)
    trained(made, 3)
    made.model = nn.Sequential(fails := Fails(), made.model)
    steering, test = alone(made)
    before = Moment.take([made.model, steering, made], segment=0, step=3).digest()
    fails.at = at
    with pytest.raises(ValueError, match=r"^nothing was changed: the net raised RuntimeError: shape mismatch$"):
        test.run(0, 3, nobody)
    fails.at = 0
    assert Moment.take([made.model, steering, made], segment=0, step=3).digest() == before


def test_what_is_hooked_onto_the_optimizer_hears_nothing_of_it(begin: Any) -> None:
    """No turned rate upon the sweep's own, and no hold at the gradients that it drives beyond all numbers."""
    made, other = (setup_of(SMALL, name="sgd", lr=0.05) for _ in range(2))
    for one in (made, other):
        one.model = nn.Sequential(one.model, Explodes())
        one.optimizer = torch.optim.SGD(one.model.parameters(), lr=0.05)
    run = begin(made, plan={0: "lr=*3"})
    run.watch._faults.on_fault = "hold"  # which would wait for ever
    run.step(SweepRates())
    found = run.kept.events()
    assert not [e for e in found if isinstance(e, NotFinite)]
    (swept,) = [e for e in found if isinstance(e, RatesSwept)]
    steering, test = alone(other)
    steering.rate.turn("*3")
    other.optimizer.param_groups[0]["lr"] = 0.05 * 3
    trained(other, 1)
    other.optimizer.param_groups[0]["lr"] = 0.05
    twin = test.run(0, 1, nobody)
    assert msgspec.structs.replace(swept, seconds=0.0) == msgspec.structs.replace(twin, seconds=0.0)
    assert swept.ended_at is not None
    run.go(3)
    assert [r.lr for r in run.kept.steps()] == pytest.approx([0.15] * 3), "hooked on again"


def test_no_instrument_listens_to_its_passes(begin: Any) -> None:
    run = begin(setup_of(SHUFFLED))

    def listening(where: str = "") -> None:
        heard.append(sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in run.setup.model.modules()))

    heard: list[int] = []
    run.go(3)
    listening()
    RangeTest(run.steering, run.setup).run(0, 3, listening)
    listening()
    assert heard[0] > 0
    assert heard[-1] == heard[0]
    assert set(heard[1:-1]) == {0}


# Orders in its midst.


def asking(run: Run, when: str, *commands: AnyCommand) -> None:
    """Have these come in when the test is there."""
    sweeping = run.watch.control._sweeping
    assert sweeping is not None
    look, waiting = sweeping._look, [*commands]

    def looked(where: str) -> None:
        while where == when and waiting:
            run.kept.order(waiting.pop(0))
        look(where)

    sweeping._look = looked  # type: ignore[method-assign]


def test_it_tells_how_far_it_is_and_goes_back_to_the_state_before(begin: Any) -> None:
    run = begin(setup_of(SHUFFLED))
    run.go(4, {3: [SweepRates()]})
    states = run.kept.events(StateChanged)
    testing = [n for n, e in enumerate(states) if e.state == "testing"]
    assert states[testing[0]].reason == f"batches 0/{STEPS}"
    assert states[testing[-1] + 1].state == "running"


def test_it_is_given_up_once_nobody_wants_it(begin: Any) -> None:
    run = begin(setup_of(SHUFFLED))
    asking(run, "rates 12/100", CancelSweep())
    run.go(2)
    run.step(SweepRates())
    found = run.kept.events()
    (rejected,) = [e for e in found if isinstance(e, CommandRejected)]
    assert rejected.reason == f"given up at rates 12/{STEPS}; nothing was changed"
    assert [e.what for e in found if isinstance(e, CommandDone)] == ["the range test is given up"]
    assert not [e for e in found if isinstance(e, RatesSwept)]


def test_another_client_that_waits_keeps_it_going_and_is_answered(begin: Any) -> None:
    run = begin(setup_of(SHUFFLED))
    run.go(2)
    asking(run, "rates 5/100", SweepRates(), Mark(text="in its midst"))
    number = run.kept.order(SweepRates())
    run.go(3)
    found = run.kept.events()
    done = [e for e in found if isinstance(e, CommandDone)]
    assert len([e for e in found if isinstance(e, RatesSwept)]) == 1
    assert sorted(e.request for e in done) == [number, number + 1, number + 2]
    kinds = [type(e) for e in found if isinstance(e, Marked | RatesSwept)]
    assert kinds == [Marked, RatesSwept], "a mark waits for nothing"


def test_a_turn_ends_it_and_acts_on_the_state_before_it(begin: Any) -> None:
    run, other = begin(setup_of(SHUFFLED)), begin(setup_of(SHUFFLED))
    turn = parse("lr=*2")
    torch.manual_seed(1)
    expected = other.go(30, {10: [turn]})
    asking(run, "rates 40/100", turn)
    torch.manual_seed(1)
    assert run.go(30, {10: [SweepRates()]}) == expected
    found = run.kept.events()
    (rejected,) = [e for e in found if isinstance(e, CommandRejected)]
    assert rejected.reason == f"it made way for lr at rates 40/{STEPS}; nothing was changed"
    (turned,) = [e for e in found if isinstance(e, KnobTurned)]
    assert (turned.step, turned.old, turned.new) == (10, "0.00186603", "0.00373205")


def test_stop_is_obeyed_in_its_midst(begin: Any) -> None:
    run = begin(setup_of(SHUFFLED))
    run.go(4)
    asking(run, "rates 3/100", Stop())
    with pytest.raises(StopRun):
        run.step(SweepRates())
    (rejected,) = run.kept.events(CommandRejected)
    assert rejected.reason == f"it made way for stop at rates 3/{STEPS}; nothing was changed"
    assert run.watch.next_step == 5


def test_what_came_in_one_batch_with_it_ends_it_too(begin: Any) -> None:
    run = begin(setup_of(SHUFFLED))
    run.go(4)
    with pytest.raises(StopRun):
        run.step(SweepRates(), Stop())
    assert [e.reason for e in run.kept.events(CommandRejected)] == [
        f"it made way for stop at batches 0/{STEPS}; nothing was changed"
    ]


def test_none_under_way_is_no_error(begin: Any) -> None:
    run = begin(setup_of(SHUFFLED))
    run.go(2, {1: [CancelSweep()]})
    assert [e.what for e in run.kept.events(CommandDone)] == ["no range test is under way"]


# Where it cannot be.


def test_held_at_numbers_that_are_none_it_says_why_and_what_helps(begin: Any) -> None:
    run = begin(setup_of(SHUFFLED))
    run.go(3)
    run.watch._faults.on_fault = "hold"
    run.kept.order(SweepRates())
    run.kept.order(Resume())
    assert not run.watch.loss(math.nan)
    (rejected,) = run.kept.events(CommandRejected)
    assert rejected.reason == "a range test needs a loss that is a number; u goes back to the last good state"


def test_weights_that_are_no_numbers_are_told_and_left() -> None:
    made = setup_of(SHUFFLED)
    _, test = alone(made)
    with torch.no_grad():
        next(made.model.parameters())[0, 0] = math.nan
    with pytest.raises(ValueError, match="the next batch's loss is nan; u goes back to the last good state"):
        test.run(0, 0, nobody)


def test_an_own_loop_says_why_it_has_none(kept: Kept) -> None:
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    twin = copy.deepcopy(net)
    other = torch.optim.Adam(twin.parameters(), lr=1e-3)
    with Watch(net, optimizer, link=kept.link, sampler=Sampler(budget=0.0)) as run:
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
                kept.order(SweepRates())
            run.step(losses[0])
    (rejected,) = kept.events(CommandRejected)
    assert rejected.reason == "a range test needs further batches and their loss; an own loop's cannot be asked for"


# The sweep against a twin.


def twin_of(made: Setup, kind: Any, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A copy of the net and a fresh optimizer of torch's that remembers the same."""
    net = copy.deepcopy(made.model)
    optimizer = kind(net.parameters(), lr=1.0, **options)
    state = copy.deepcopy(made.optimizer.state_dict())
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})
    return net, optimizer


def clipped(net: nn.Module, limit: float) -> None:
    """To the norm itself; torch's own divides by a millionth more."""
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in net.parameters() if p.grad is not None))
    for p in net.parameters():
        if p.grad is not None and norm > limit:
            p.grad *= limit / norm


OPTIMIZERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sgd": ({"lr": 0.05, "weight_decay": 0.01}, {"kind": torch.optim.SGD, "weight_decay": 0.01}),
    "momentum": ({"lr": 0.02}, {"kind": torch.optim.SGD, "momentum": 0.9}),
    "nesterov": ({"lr": 0.02}, {"kind": torch.optim.SGD, "momentum": 0.9, "nesterov": True}),
    "adam": ({"lr": 1e-3}, {"kind": torch.optim.Adam}),
    "adamw": ({"lr": 1e-3, "weight_decay": 0.3}, {"kind": torch.optim.AdamW, "weight_decay": 0.3}),
    "rmsprop": ({"lr": 1e-3}, {"kind": torch.optim.RMSprop}),
}
SMALL = (
    SHUFFLED.replace("dropout = 0.2", "")
    .replace('name = "cosine"', 'name = "constant"')
    .replace("seed = 5", 'seed = 5\ndtype = "float64"')
)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.3])
def test_the_sweeps_losses_are_those_of_a_plain_loop_at_these_rates(name: str, clip: float | None) -> None:
    spec, options = OPTIMIZERS[name]
    made = setup_of(SMALL, name=name, **spec)
    trained(made, 5)
    steering, test = alone(made, clip=clip)
    steering.rate.turn("*4")  # the sweep's rates are not multiplied
    net, optimizer = twin_of(made, **options)
    found = test.run(0, 5, nobody)
    assert found.rate == pytest.approx(4 * spec["lr"])
    # The next batches, which the test left where they were.
    batches = [made.batches.next() for _ in range(len(found.rates) + 1)]  # type: ignore[union-attr]
    still = [loss_of(net, batch).item() for batch in batches]
    losses = []
    for n, rate in enumerate(found.rates):
        optimizer.zero_grad()
        loss_of(net, batches[n]).backward()
        if clip is not None:
            clipped(net, clip)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses.append(loss_of(net, batches[n + 1]).item())
    assert found.still == pytest.approx(still[1:], rel=1e-9)
    upto = next((n for n, loss in enumerate(losses) if loss > 20), len(losses))  # beyond, chaos
    assert upto > 50
    assert found.losses[:upto] == pytest.approx(losses[:upto], rel=1e-6)
    mean = 0.0
    for n, (loss, base) in enumerate(zip(found.losses, still[1:], strict=True), 1):
        mean = MEMORY * mean + (1 - MEMORY) * (loss - base)
        assert found.smooth[n - 1] == pytest.approx(found.level + mean / (1 - MEMORY**n), rel=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_looking_ahead_is_a_real_step_and_straight_on(name: str, clip: float | None, dtype: str) -> None:
    spec, options = OPTIMIZERS[name]
    made = setup_of(SMALL.replace("float64", dtype), name=name, **spec)
    trained(made, 5)
    steering, test = alone(made, clip=clip)
    steering.rate.turn("*2")
    net, optimizer = twin_of(made, **options)
    found = test.run(0, 5, nobody)
    batch = made.batches.next()  # type: ignore[union-attr]
    start = [p.detach().clone() for p in net.parameters()]
    loss_of(net, batch).backward()
    if clip is not None:
        clipped(net, clip)
    optimizer.param_groups[0]["lr"] = 2 * spec["lr"]
    optimizer.step()
    ends = [p.detach().clone() for p in net.parameters()]
    assert tuple(found.scales) == SCALES
    assert 1.0 in SCALES
    for scale, loss in zip(found.scales, found.ahead, strict=True):
        with torch.no_grad():
            for p, a, b in zip(net.parameters(), start, ends, strict=True):
                p.copy_(a + scale * (b - a))
        assert abs(loss - loss_of(net, batch).item()) <= 1e-6 * max(1.0, abs(loss)), scale


def test_looking_ahead_the_same_units_are_dropped_each_time() -> None:
    made = setup_of(SHUFFLED)
    trained(made, 5)
    steering, _ = alone(made)
    made.optimizer.param_groups[0]["lr"] = 1e-12  # so small that the net is the same all along
    found = look_ahead(steering, made)
    assert found == pytest.approx([found[0]] * len(SCALES), abs=1e-6)
    assert made.loss().item() != pytest.approx(found[0], abs=1e-3)  # another batch, other units


def test_the_update_ahead_is_the_one_that_then_is_made(begin: Any) -> None:
    """On a surface the loss after the next update is what the look ahead says at s = 1."""
    _, scenario = presets.find("saddle")
    run = begin(build(scenario, on=CPU))
    run.go(6, {5: [SweepRates()]})
    (found,) = run.kept.events(RatesSwept)
    assert (found.step, found.ahead[0]) == (5, run.losses[5])
    run.go(7)
    assert found.ahead[SCALES.index(1.0)] == run.losses[6]


def test_a_rate_of_zero_moves_nothing() -> None:
    made = setup_of(SHUFFLED)
    made.optimizer.param_groups[0]["lr"] = 0.0
    _, test = alone(made)
    found = test.run(0, 0, nobody)
    assert (found.rate, found.ahead, found.scales) == (0.0, [], [])
    assert len(found.rates) > 50, "the sweep has rates of its own"


# What it suggests.


def quadratic(curvature: float, rates: list[float]) -> list[float]:
    """½λw² after each update of gradient descent from w = 1, in closed form."""
    w, losses = 1.0, []
    for rate in rates:
        w *= 1 - rate * curvature
        losses.append(0.5 * curvature * w * w)
    return losses


def test_on_a_quadratic_the_loss_turns_at_two_over_the_curvature() -> None:
    _, scenario = presets.find("first-descent")  # (2w − 3)², w₀ = 1: λ = 8, ½λ(w − 1.5)²
    made = build(scenario, on=CPU)
    _, test = alone(made)
    found = test.run(0, 0, nobody)
    twin = [0.25 * loss for loss in quadratic(8.0, found.rates)]
    assert found.losses == pytest.approx(twin, rel=1e-9)
    assert found.smooth == pytest.approx(found.losses), "there is no noise to smooth away"
    factor = found.rates[1] / found.rates[0]
    assert found.lowest is not None
    assert 2 / 8 / factor < found.lowest <= 2 / 8
    assert found.suggestion == pytest.approx(found.lowest / 10)
    assert found.ended_at is not None
    assert found.losses[-1] > 4 * min(found.losses)


def test_on_the_working_preset_the_suggestion_is_a_good_rate() -> None:
    _, scenario = presets.find("healthy")
    torch.manual_seed(0)
    made = build(scenario, on=CPU)
    _, test = alone(made)
    suggestion = test.run(0, 0, nobody).suggestion
    assert suggestion is not None
    reached = {}
    for lr in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1):
        torch.manual_seed(0)
        _, scenario = presets.find("healthy", overrides=[f"optimizer.lr={lr}"])
        one, losses = build(scenario, on=CPU), []
        for _ in range(120):
            loss = one.loss()
            one.optimizer.zero_grad()
            loss.backward()
            one.optimizer.step()
            losses.append(loss.item())
        reached[lr] = sum(losses[-20:])
    best = min(reached, key=reached.__getitem__)
    assert best / 5 < suggestion < best * 5, reached


def curve(losses: list[float], *, still: float = 1.0, low: float = 1e-7, high: float = 1.0) -> Curve:
    made = Curve(still=[still] * (STEPS + 1), memory=0.0)
    for n, loss in enumerate(losses):
        if not made.add(low * (high / low) ** (n / (STEPS - 1)), loss):
            break
    return made


def test_a_valley_gives_a_tenth_of_its_rate() -> None:
    made = curve([1.0] * 40 + [1 - n / 50 for n in range(1, 31)] + [0.4 + n for n in range(1, 31)])
    assert made.ended_at == made.rates[-1]
    assert made.losses[-1] == 2.4, "over four times the best"
    lowest, suggestion, words = judged(made)
    assert (lowest, suggestion, words) == (made.rates[69], made.rates[69] / 10, "")


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([1.0] * STEPS, "flat"),
        ([1.0] * 50 + [0.995] * 30 + [9.0] * 20, "flat"),
        ([0.5] * 5 + [1.0] * 60 + [9.0] * 35, "flat"),
        ([1.0] * 8 + [30.0] * 92, "too short"),
        ([math.nan] * STEPS, "too short"),
        ([1 - n / 200 for n in range(STEPS)], "the loss still falls at 1, the largest"),
    ],
)
def test_what_tells_nothing_gives_no_suggestion_and_says_so(losses: list[float], words: str) -> None:
    _, suggestion, said = judged(curve(losses))
    assert suggestion is None
    assert said.startswith(words)


def test_noise_alone_is_flat() -> None:
    torch.manual_seed(0)
    for _ in range(50):
        made = Curve(still=[1.0] * (STEPS + 1))
        for n in range(STEPS):
            made.add(1e-7 * 10 ** (n * 7 / 99), 1.0 + 0.05 * float(torch.randn(())))
        assert judged(made)[2].startswith(("flat", "unclear"))


def test_numbers_that_are_none_end_the_sweep_and_are_not_kept() -> None:
    made = setup_of(SMALL, name="sgd", lr=0.05)
    made.model = nn.Sequential(made.model, Explodes())
    _, test = alone(made)
    found = test.run(0, 0, nobody)
    assert found.ended_at is not None
    assert found.ended_at > found.rates[-1]
    assert all(math.isfinite(v) for v in (*found.losses, *found.smooth, *found.still))


class Explodes(nn.Module):
    """No number as soon as an output is large."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.abs().max() < 12)


@pytest.mark.parametrize(("name", "size"), [("sgd", 1500**0.5), ("momentum", 10.0), ("adam", 1.0), ("muon", 1.0)])
def test_the_span_is_of_the_optimizers_size_and_holds_the_present_rate(name: str, size: float) -> None:
    made = setup_of(SHUFFLED, name=name, lr=1e-2)
    assert span(made.optimizer, 1e-2 * size) == pytest.approx((1e-7 * size, size))
    assert span(made.optimizer, 1e-12) == pytest.approx((1e-13, size))
    assert span(made.optimizer, 1e3) == pytest.approx((1e-7 * size, 1e4))
    assert span(made.optimizer, 0.0) == pytest.approx((1e-7 * size, size))


def test_adopting_is_an_ordinary_turn(begin: Any) -> None:
    run = begin(setup_of(SHUFFLED))
    run.go(3, {2: [SweepRates()]})
    (found,) = run.kept.events(RatesSwept)
    run.go(5, {4: [TurnKnob(knob="lr", value=f"{found.suggestion:.3g}")]})
    (turned,) = run.kept.events(KnobTurned)
    assert float(turned.new) == pytest.approx(found.suggestion, rel=1e-2)


def test_groups_keep_their_ratio() -> None:
    made = setup_of(SMALL, name="sgd", lr=0.05)
    first, *rest = made.model.parameters()
    made.optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": rest, "lr": 0.0}])
    _, test = alone(made)
    seen: list[list[float]] = []
    step = made.optimizer.step

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append([group["lr"] for group in made.optimizer.param_groups])
        return step(*args, **kwargs)

    made.optimizer.step = watched  # type: ignore[method-assign]
    test.run(0, 0, nobody)
    assert len(seen) > 50
    assert all(second == 0.0 for _, second in seen)
