"""Losses are bitwise the same watched or not, at any reading rate, with or without curvature."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from net_families import setup as family
from nets import ConvNet, PixelTransformer, copy_of, digit_batches, loss_of, mlp, same, same_state, state_of
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import CurvatureTaken
from tui_descent.scenario import presets
from tui_descent.training.probes.curvature_probe import CurvatureProbe
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.user_loop import watch
from tui_descent.training.watch.watch import Watch

STEPS = 15
RATES: dict[str, Callable[[], Sampler]] = {
    "every 1": lambda: Sampler(every=1),
    "every 7": lambda: Sampler(every=7),
    "budget 1 %": Sampler,
    "budget 50 %": lambda: Sampler(budget=0.5),
}
# All presets, and a net family that no preset uses yet.
CONV = "conv with dropout"


def made(name: str) -> Setup:
    if name == CONV:
        return family("conv", residual="on", norm="layer", dropout=0.2, optimizer={"name": "adamw", "lr": 1e-3})
    # The curvature of the full transformer takes minutes.
    _, scenario = presets.find(name, overrides=["model.depth=1", "model.width=8"] if name == "transformer" else [])
    return build(scenario, on=torch.device("cpu"))


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


def train_step(setup: Setup) -> Tensor:
    loss = setup.loss()
    setup.optimizer.zero_grad()
    loss.backward()
    setup.optimizer.step()
    return loss


@functools.cache
def unwatched(name: str) -> tuple[list[float], Setup, Tensor]:
    setup = made(name)
    torch.manual_seed(5)
    return [train_step(setup).item() for _ in range(STEPS)], setup, torch.get_rng_state()


def watched(name: str, sampler: Sampler, keeper: FakeKeeper, *, curved: bool) -> tuple[list[float], Setup, Tensor]:
    setup = made(name)
    torch.manual_seed(5)
    losses = []
    rate = setup.optimizer.param_groups[0]["lr"]
    curvature_probe = CurvatureProbe(
        setup.probe,
        setup.model,
        setup.optimizer,
        sampler=sampler,
        rate=lambda: float(rate),
        at_steps=(7,) if curved else (),
    )
    steering = Steering(setup.model, setup.optimizer)
    with Watch(
        setup.model,
        setup.optimizer,
        link=keeper.link,
        sampler=sampler,
        steering=steering,
        replay=setup,
        curvature=curvature_probe,
    ) as run:
        run.begin_step()
        for _ in range(STEPS):
            losses.append((loss := train_step(setup)).item())
            run.step(loss)
    return losses, setup, torch.get_rng_state()


CURVED = "every 7 and the curvature"
LONG = ("rezero-1000", "transformer-deep")
EXPENSIVE_CURVATURE = (
    *("transformer", "post-ln", "own-text", "grokking", "careful-init"),
    *(CONV, "own-images", "digits", "hundred-layers", "layer-norm"),
)


def is_heavy(name: str, rate: str) -> bool:
    """Usually every preset is watched at two rates and with the curvature, which `every 7` is part of."""
    if name in LONG:
        return True
    if name in EXPENSIVE_CURVATURE and rate == CURVED:
        return True
    return rate in ("every 7", "budget 50 %") and name != "healthy"


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        pytest.param(name, rate, marks=pytest.mark.heavy if is_heavy(name, rate) else ())
        for name in (*presets.names(), CONV)
        for rate in (*RATES, CURVED)
    ],
)
def test_losses_of_every_preset_are_the_same_at_any_rate(name: str, rate: str, keeper: FakeKeeper) -> None:
    curved = rate not in RATES
    plain_losses, plain, numbers = unwatched(name)
    losses, setup, numbers_after = watched(name, RATES.get(rate, RATES["every 7"])(), keeper, curved=curved)
    found, wanted = (torch.tensor(values, dtype=torch.float64) for values in (losses, plain_losses))
    assert bits(found) == bits(wanted), "NaN included: one preset diverges"
    for found, wanted in zip(setup.model.parameters(), plain.model.parameters(), strict=True):
        assert bits(found) == bits(wanted)
    for (*_, found), (*_, wanted) in zip(state_of(setup.optimizer), state_of(plain.optimizer), strict=True):
        assert bits(torch.as_tensor(found)) == bits(torch.as_tensor(wanted))
    assert torch.equal(numbers, numbers_after)
    read = [reading.step for reading in keeper.readings()]
    if "every" in rate:
        assert read == list(range(0, STEPS, 7 if "7" in rate else 1))
    assert read
    assert bool(keeper.events(CurvatureTaken)) == curved


NETS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "conv": ConvNet, "transformer": PixelTransformer}
Loop = Callable[[Callable[[Tensor], Any] | None, nn.Module, torch.optim.Optimizer], list[float]]


def mixed_precision(*, scaled: bool) -> Loop:
    """A loop in bfloat16 autocast, with a GradScaler or without."""

    def loop(run_step: Callable[[Tensor], Any] | None, net: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**10, growth_interval=4)
        losses = []
        for batch in digit_batches(STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(net, batch)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
            if run_step is not None:
                run_step(loss)
        return losses

    return loop


def with_accumulation(
    run_step: Callable[[Tensor], Any] | None, net: nn.Module, optimizer: torch.optim.Optimizer
) -> list[float]:
    """Three batches per update."""
    losses = []
    for n, batch in enumerate(digit_batches(3 * STEPS)):
        loss = loss_of(net, batch)
        (loss / 3).backward()
        losses.append(loss.item())
        if n % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
        if run_step is not None:
            run_step(loss)
    return losses


def with_closure(
    run_step: Callable[[Tensor], Any] | None, net: nn.Module, optimizer: torch.optim.Optimizer
) -> list[float]:
    """The optimizer runs forward and backward itself, through a closure."""
    losses = []
    for batch in digit_batches(STEPS):

        def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(net, batch)
            loss.backward()
            return loss

        loss = optimizer.step(closure)  # type: ignore[arg-type]
        losses.append(loss.item())
        if run_step is not None:
            run_step(loss)
    return losses


LOOPS: dict[str, Loop] = {
    "bfloat16": mixed_precision(scaled=False),
    "bfloat16 and a scaler": mixed_precision(scaled=True),
    "three batches an update": with_accumulation,
    "a closure": with_closure,
}


@contextlib.contextmanager
def watching(net: nn.Module, optimizer: torch.optim.Optimizer, keeper: FakeKeeper, sampler: Sampler) -> Iterator[Watch]:
    with Watch(net, optimizer, link=keeper.link, sampler=sampler) as run:
        yield run


def made_with_adamw(kind: str, *, fused: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(2)
    net = NETS[kind]()
    return net, torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1, fused=fused)


@functools.cache
def unwatched_loop(kind: str, loop: str, *, fused: bool) -> tuple[list[float], nn.Module, torch.optim.Optimizer]:
    net, optimizer = made_with_adamw(kind, fused=fused)
    return LOOPS[loop](None, net, optimizer), net, optimizer


def loop_cases() -> list[Any]:
    """Every net, loop and optimizer at two rates; the other two rates usually with the cheapest net only."""
    return [
        pytest.param(
            kind,
            loop,
            rate,
            fused,
            id=f"{kind}-{loop}-{'fused' if fused else 'default'}-{rate}",
            marks=() if rate in ("every 1", "budget 1 %") or (kind == "mlp" and not fused) else pytest.mark.heavy,
        )
        for kind in NETS
        for loop in LOOPS
        for fused in (False, True)
        for rate in RATES
    ]


@pytest.mark.parametrize(("kind", "loop", "rate", "fused"), loop_cases())
def test_user_loops_train_bitwise_as_unwatched(
    kind: str, loop: str, rate: str, *, fused: bool, keeper: FakeKeeper
) -> None:
    plain_losses, plain, plain_optimizer = unwatched_loop(kind, loop, fused=fused)
    net, optimizer = made_with_adamw(kind, fused=fused)
    with watching(net, optimizer, keeper, RATES[rate]()) as run:
        losses = LOOPS[loop](run.step, net, optimizer)
        assert run.next_step == STEPS
    assert losses == plain_losses
    assert same(copy_of(net), copy_of(plain))
    assert same_state(state_of(optimizer), state_of(plain_optimizer))
    read = [reading.step for reading in keeper.readings()]
    if "every" in rate:
        # With a closure the layers are known only after its first call, too late for a reading of step 0.
        assert read == list(range(0, STEPS, 7 if "7" in rate else 1))[loop == "a closure" :]
    else:
        assert read


def train_gan(**watched: Any) -> tuple[list[float], list[Tensor]]:
    """A generator and a critic, trained in turns with one optimizer each, of which one may be watched."""
    torch.manual_seed(4)
    maker = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 64))
    critic = nn.Sequential(nn.Linear(64, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    makers = torch.optim.Adam(maker.parameters(), lr=1e-3, betas=(0.5, 0.999))
    critics = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.999))
    losses = []
    nets = {"generator": (maker, makers), "critic": (critic, critics)}
    who = watched.pop("who", None)
    with Watch(*nets[who], **watched) if who else contextlib.nullcontext() as run:
        for x, _ in digit_batches(STEPS):
            noise = torch.randn(len(x), 4)
            critics.zero_grad()
            real, made_up = critic(x), critic(maker(noise).detach())
            critic_loss = F.softplus(-real).mean() + F.softplus(made_up).mean()
            critic_loss.backward()
            critics.step()
            makers.zero_grad()
            loss = F.softplus(-critic(maker(noise))).mean()
            loss.backward()
            makers.step()
            losses += [critic_loss.item(), loss.item()]
            if run is not None:
                run.step(loss if who == "generator" else critic_loss)
    return losses, [*copy_of(maker), *copy_of(critic)]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("who", ["generator", "critic"])
def test_either_of_two_alternating_optimizers_can_be_watched(who: str, rate: str, keeper: FakeKeeper) -> None:
    plain_losses, plain = train_gan()
    losses, weights = train_gan(who=who, link=keeper.link, sampler=RATES[rate]())
    assert losses == plain_losses
    assert same(weights, plain)
    steps = keeper.steps()
    assert [record.step for record in steps] == list(range(STEPS))
    assert [record.loss for record in steps] == losses[who == "generator" :: 2]


@pytest.mark.parametrize("wrong", [nn.Linear(2, 1), "adam", {"lr": 0.1}])
def test_list_with_something_else_than_optimizers_is_refused_and_named(wrong: object) -> None:
    net = mlp()
    pair = [torch.optim.Adam(net.stem.parameters()), wrong]
    found = type(wrong).__name__
    with pytest.raises(ValueError, match=rf"takes torch\.optim\.Optimizer objects; found {found}"):
        watch(net, pair)  # type: ignore[arg-type]
