"""The pre-activations for the activation lens: counted without changing the run, in scenario runs and in user loops."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from factories import started
from fake_keeper import FakeKeeper
from nets import copy_of, digit_batches, loss_of, same
from probed_runs import assert_same_run, made, outcome, train
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.instruments.net_structure import ACTIVATIONS
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import TurnKnob, WatchLens
from tui_descent.protocol.events import CommandRejected, LensTaken
from tui_descent.protocol.lens import BINS, ActivationPart
from tui_descent.training.probes.lens_probe import (
    NO_ACTIVATION,
    NO_MODULES,
    NOT_CALLED,
    NOT_CALLED_OR_COMPILED,
    counted,
    limit_for,
    parts_of,
    some_values,
)
from tui_descent.training.setup.build import Setup
from tui_descent.training.steering.steering import Steering
from tui_descent.training.steering.surgery.activation import Blend
from tui_descent.training.watch.watch import Watch

NETS = {
    "mlp": ("healthy", "model.dropout=0.3"),
    "conv": ("healthy", "model.name=conv", "model.depth=1", "model.width=4"),
    "transformer": ("transformer", "model.depth=1", "model.context=8", "model.dropout=0.3"),
}


def eager() -> Sampler:
    """Every step is due."""
    sampler = Sampler(every=1)
    sampler.lens.every_s, sampler.lens.share = 0.0, 1e9
    return sampler


def watched(setup: Setup, keeper: FakeKeeper | None, *layers: str) -> Watch:
    run = Watch(
        setup.model,
        setup.optimizer,
        link=keeper.link if keeper else None,
        sampler=eager(),
        steering=Steering(setup.model, setup.optimizer, setup=setup),
        plan=[(3, TurnKnob(knob="activation", value="tanh"))],
        replay=setup,
        is_scenario=True,
    )
    for client, layer in enumerate(layers):
        run._lens.set_watching(client, on=True, layer=layer)
    return run


@pytest.mark.parametrize("kind", NETS)
def test_counting_does_not_change_the_run(kind: str, keeper: FakeKeeper) -> None:
    plain, counting = made(*NETS[kind]), made(*NETS[kind])
    assert_same_run(outcome(watched(plain, None), plain, 6), outcome(watched(counting, keeper, ""), counting, 6))
    events = keeper.events(LensTaken)
    assert [event.step for event in events] == list(range(7)), "before every update"
    assert all(event.histogram is not None and not event.in_training for event in events)
    assert [len(event.parts) for event in events] == [1, 1, 1, 2, 2, 2, 2], "tanh is blended in from step 3 on"
    assert [part.name for part in events[-1].parts][1] == "tanh"


@pytest.mark.parametrize("kind", NETS)
def test_the_counts_are_those_of_the_first_training_samples(kind: str, keeper: FakeKeeper) -> None:
    setup, twin = made(*NETS[kind]), made(*NETS[kind])
    seen: list[Tensor] = []
    activation = next(m for m in twin.model.modules() if isinstance(m, ACTIVATIONS))
    activation.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().double()))
    assert twin.batches is not None
    x, _ = twin.batches.first(256 if kind != "transformer" else 32)  # 32 texts of 8 symbols
    twin.model.eval()(x)
    train(watched(setup, keeper, ""), setup, 1)
    histogram = keeper.events(LensTaken)[0].histogram
    assert histogram is not None
    z, limit = seen[0], histogram.limit
    counts = some_values(z)
    edges = torch.linspace(-limit, limit, BINS + 1, dtype=torch.float64)
    inside = [int(((low <= counts) & (counts < high)).sum()) for low, high in pairwise(edges)]
    assert list(array("I", histogram.counts)) == inside
    assert (histogram.below, histogram.above) == (int((counts < -limit).sum()), int((counts >= limit).sum()))
    assert histogram.values == z.numel()
    assert len(counts) == sum(inside) + histogram.below + histogram.above


def test_each_client_gets_its_own_layer_until_it_leaves(keeper: FakeKeeper) -> None:
    setup = made("healthy")
    layers = [name for name, module in setup.model.named_modules() if isinstance(module, nn.Linear)]
    train(watched(setup, keeper, layers[1], layers[2], layers[-1], "gone"), setup, 1)
    first = {event.asked: event for event in keeper.events(LensTaken) if event.step == 0}
    assert first[layers[1]].layer == layers[1]
    assert first[layers[2]].layer == layers[2]
    assert first[layers[-1]].reason == NO_ACTIVATION
    assert "no longer" in first["gone"].reason


def test_a_norm_layer_stands_for_its_block(keeper: FakeKeeper) -> None:
    setup = made("healthy", "model.norm=layer")
    norm = next(name for name, module in setup.model.named_modules() if isinstance(module, nn.LayerNorm))
    train(watched(setup, keeper, norm), setup, 1)
    event = keeper.events(LensTaken)[0]
    assert event.histogram is not None
    assert event.layer.rpartition(".")[0] == norm.rpartition(".")[0]


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(F.relu(self.a(x)))
        return out


def sequential(*activations: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 8), *activations, nn.Linear(8, 10))


def user_loop(net: nn.Module, keeper: FakeKeeper | None, *, watching: bool, steps: int = 12) -> list[float]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    with Watch(net, optimizer, link=keeper.link if keeper else None, sampler=eager()) as run:
        for n, batch in enumerate(digit_batches(steps)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if watching and n == 2 and keeper is not None:
                keeper.send(WatchLens(on=True))
            if watching and n == 8 and keeper is not None:
                keeper.send(WatchLens(on=False))
            losses.append(loss.item())
            run.step(loss)
            if n > 9:
                assert not nn.modules.module._global_forward_pre_hooks or run._hooks.measures
    assert not nn.modules.module._global_forward_pre_hooks
    return losses


@pytest.mark.parametrize(
    ("build_net", "kind"),
    [
        (lambda: sequential(nn.ReLU()), "relu"),
        (lambda: sequential(nn.ReLU(inplace=True)), "relu"),
        (lambda: sequential(nn.Dropout(0.5), nn.GELU(approximate="tanh")), "gelu_tanh"),
        (lambda: sequential(nn.PReLU(8)), ""),
    ],
)
def test_a_user_loop_counts_its_training_passes(
    build_net: Callable[[], nn.Module], kind: str, keeper: FakeKeeper
) -> None:
    torch.manual_seed(3)
    plain = build_net()
    losses = user_loop(plain, None, watching=False)
    torch.manual_seed(3)
    counted_net = build_net()
    assert user_loop(counted_net, keeper, watching=True) == losses
    assert same(copy_of(counted_net), copy_of(plain))
    events = keeper.events(LensTaken)
    assert len(events) >= 3
    assert all(event.in_training and event.histogram is not None for event in events)
    assert [part.name for part in events[0].parts] == ([kind] if kind else [])
    histogram = events[0].histogram
    assert histogram is not None
    assert sum(array("I", histogram.counts)) + histogram.below + histogram.above == histogram.values


def test_a_user_loop_without_activation_modules_says_why(keeper: FakeKeeper) -> None:
    user_loop(Functional(), keeper, watching=True)
    assert {event.reason for event in keeper.events(LensTaken)} == {NO_MODULES}


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.act = nn.Linear(64, 10), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(input=self.a(x))
        return out


def test_an_input_that_cannot_be_seen_has_a_reason(keeper: FakeKeeper) -> None:
    user_loop(ByKeyword(), keeper, watching=True)
    assert {event.reason for event in keeper.events(LensTaken)} == {"the activation is called with keyword arguments"}


def test_an_activation_in_a_compiled_part_has_a_reason(keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui_descent.training.probes.lens_probe.has_compiled", lambda: True)
    user_loop(UsesOnlyTheFirst(), keeper, watching=True)
    reasons = {event.reason for event in keeper.events(LensTaken)}
    assert reasons == {NOT_CALLED_OR_COMPILED}


class UsesOnlyTheFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(x) + 0 * self.b(torch.zeros(10))
        return out


def test_an_activation_that_is_not_called_has_a_reason(keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    # An earlier test in this process may have compiled something.
    monkeypatch.setattr("tui_descent.training.probes.lens_probe.has_compiled", lambda: False)
    user_loop(UsesOnlyTheFirst(), keeper, watching=True)
    assert {event.reason for event in keeper.events(LensTaken)} == {NOT_CALLED}


def test_a_failure_does_not_reach_the_loop(keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise TypeError("broken")

    torch.manual_seed(3)
    losses = user_loop(sequential(nn.ReLU()), None, watching=False)
    monkeypatch.setattr("tui_descent.training.probes.lens_probe.counted", failing)
    torch.manual_seed(3)
    assert user_loop(sequential(nn.ReLU()), keeper, watching=True) == losses
    assert keeper.events(LensTaken) == []


def test_a_surface_has_no_activations(keeper: FakeKeeper) -> None:
    setup = made("saddle")
    steering = Steering(setup.model, setup.optimizer, setup=setup)
    about = started()
    with Watch(setup.model, setup.optimizer, link=keeper.link, steering=steering, about=about, is_scenario=True) as run:
        keeper.send(WatchLens(on=True))
        run.begin_step()
        run.control.obey()
    (rejected,) = keeper.events(CommandRejected)
    assert "a test surface has no activations" in rejected.reason


def test_the_limit_holds_four_deviations_and_changes_rarely() -> None:
    z = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert limit_for(z, None) == 8.0
    assert limit_for(z * 0.1, None) == 4.0
    assert limit_for(z * 0.6, 8.0) == 8.0, "it could be 4, but would soon change again"
    assert limit_for(z * 0.1, 32.0) == 4.0
    assert limit_for(z * 3, 8.0) == 16.0
    assert limit_for(torch.zeros(0), None) == 4.0
    assert limit_for(torch.tensor([float("nan"), float("inf"), 1.0]), None) == 4.0
    assert limit_for(torch.tensor([3e38, -3e38]), None) == 2.0**20


def test_values_outside_and_not_finite_are_counted() -> None:
    z = torch.tensor([-4.0, -4.001, 3.999, 4.0, 0.0, -1e-9, float("nan"), float("inf"), -float("inf"), 1e30])
    histogram = counted(z, 4.0, 10)
    bins = list(array("I", histogram.counts))
    assert (histogram.below, histogram.above, histogram.not_finite) == (1, 2, 3)
    assert (bins[0], bins[31], bins[32], bins[63], sum(bins)) == (1, 1, 1, 1, 4)


def test_of_many_values_some_of_every_unit_are_counted() -> None:
    z = torch.arange(64).repeat(8192, 1).float()  # (samples, units)
    few = some_values(z)
    assert len(few) <= 1 << 16
    assert len(few.unique()) == 64
    assert torch.equal(some_values(z[:10]), z[:10].flatten())


def test_a_blend_has_the_parts_of_both_functions() -> None:
    inner = Blend(nn.Sigmoid(), nn.LeakyReLU(0.2))
    inner.t = 0.5
    outer = Blend(inner, nn.Tanh())
    outer.t = 0.5
    assert list(parts_of(outer)) == [
        ActivationPart(name="sigmoid", share=0.25),
        ActivationPart(name="leaky_relu", parameters=(0.2,), share=0.25),
        ActivationPart(name="tanh", share=0.5),
    ]
    half_known = Blend(nn.Sigmoid(), nn.PReLU(3))
    half_known.t = 0.5
    assert list(parts_of(half_known)) == []
