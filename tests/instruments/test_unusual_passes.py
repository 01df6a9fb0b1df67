"""Passes and tensors of other people's nets: each is measured rightly or not at all, and training goes on bitwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from fake_keeper import FakeKeeper
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import Noted, ReadingsTaken
from tui_descent.training.watch.watch import Watch

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, in torch.func

Call = Callable[[nn.Module, Tensor], Tensor]
STEPS = 3


class Net(nn.Module):
    """Three blocks between a stem and a head. `call` runs one block."""

    def __init__(self, act: Callable[[], nn.Module] = nn.Tanh, call: Call = lambda block, h: block(h)) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), act()) for _ in range(3))
        self.head = nn.Linear(8, 3)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = self.call(block, h)
        return self.head(h)


def cross_entropy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y)


@dataclass
class Loop:
    """A user loop: its net, how the loss is computed, and how the backward pass is run."""

    net: Callable[[], nn.Module] = Net
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] = cross_entropy
    backward: Callable[[Tensor], Any] = Tensor.backward


@dataclass
class Result:
    losses: list[float] = field(default_factory=list)
    weights: list[bytes] = field(default_factory=list)
    random: list[float] = field(default_factory=list)
    readings: list[ReadingsTaken] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def factors(self) -> list[float | None]:
        """The chain-rule factors of the last reading, of the layers that have one."""
        column = self.readings[-1].values.get("backprop_factor", [])
        return [factor for factor in column if factor is not None]

    def column(self, name: str) -> list[float]:
        return [value for value in self.readings[-1].values.get(name, []) if value is not None]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 4, generator=generator), torch.randint(0, 3, (16,), generator=generator)


def train(loop: Loop, keeper: FakeKeeper | None = None) -> Result:
    torch.manual_seed(0)
    net, result, (x, y) = loop.net(), Result(), batch()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    run = None if keeper is None else Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)).__enter__()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loop.loss(net, x, y)
        loop.backward(loss)
        optimizer.step()
        result.losses.append(loss.item())
        if run is not None:
            run.step(loss)
    if run is not None and keeper is not None:
        result.readings = keeper.readings()
        run.__exit__(None, None, None)
        result.notes = [event.text for event in keeper.events(Noted)]
    result.weights = [p.detach().view(torch.uint8).numpy().tobytes() for p in net.parameters()]
    result.random = torch.rand(3).tolist()
    return result


def watched(loop: Loop, keeper: FakeKeeper) -> Result:
    """The result of the watched loop, after a check that it trains as the unwatched one."""
    plain, found = train(loop), train(loop, keeper)
    assert (found.losses, found.weights, found.random) == (plain.losses, plain.weights, plain.random)
    return found


def factors_by_hand(loop: Loop) -> list[float]:
    """The chain-rule factors at the last step, by `autograd.grad` at the blocks' inputs and the last output."""
    torch.manual_seed(0)
    net, (x, y) = Net(), batch()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for step in range(STEPS):
        at: list[Tensor] = []
        net.call = lambda block, h, at=at: at.append(h) or block(h)  # type: ignore[func-returns-value, misc]
        head = net.head.register_forward_pre_hook(lambda _, args, at=at: at.append(args[0]))  # type: ignore[misc]
        loss = loop.loss(net, x, y)
        head.remove()
        if step == STEPS - 1:
            gradients = torch.autograd.grad(loss, at)
            norms = [float(np.linalg.norm(g.double().numpy())) for g in gradients]
            return [below / above for below, above in pairwise(norms)]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError


def reentrant(block: nn.Module, h: Tensor) -> Tensor:
    return checkpoint(block, h, use_reentrant=True)


def not_reentrant(block: nn.Module, h: Tensor) -> Tensor:
    return checkpoint(block, h, use_reentrant=False)


def selective(block: nn.Module, h: Tensor) -> Tensor:
    def policy(ctx: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        save = op == torch.ops.aten.addmm.default
        return CheckpointPolicy.MUST_SAVE if save else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    return checkpoint(block, h, use_reentrant=False, context_fn=contexts)


def after_a_validation_pass(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        net(x)
    with torch.inference_mode():
        net(2 * x)
    return cross_entropy(net, x, y)


def with_a_gradient_penalty(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    u = net(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return F.cross_entropy(u, y) + 0 * slope.square().mean()


def after_a_hessian(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    torch.func.hessian(lambda z: net(z).sum())(x[0])
    return cross_entropy(net, x, y)


def with_a_jacobian(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    u = net(x)
    torch.autograd.grad(u[:3, 0], x, torch.eye(3), is_grads_batched=True, retain_graph=True)
    return F.cross_entropy(u, y)


class Image(Tensor):
    """A subclass that only carries a name, as those of fastai and torchvision."""


MEASURED = {
    "usual": Loop(),
    "reentrant checkpoints": Loop(partial(Net, call=reentrant)),
    "checkpoints": Loop(partial(Net, call=not_reentrant)),
    "selective checkpoints": Loop(partial(Net, call=selective)),
    "validation pass": Loop(loss=after_a_validation_pass),
    "gradient penalty": Loop(loss=with_a_gradient_penalty),
    "create_graph": Loop(backward=partial(Tensor.backward, create_graph=True)),
    "hessian": Loop(loss=after_a_hessian),
    "jacobian": Loop(loss=with_a_jacobian),
    "tensor subclass": Loop(loss=lambda net, x, y: cross_entropy(net, x.as_subclass(Image), y)),
    "keyword arguments": Loop(partial(Net, call=lambda block, h: block(input=h))),
}


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")
@pytest.mark.parametrize("name", MEASURED)
def test_chain_rule_factors_are_those_of_the_training_pass(name: str, keeper: FakeKeeper) -> None:
    found = watched(MEASURED[name], keeper)
    wanted = factors_by_hand(Loop(loss=MEASURED["usual"].loss))
    assert found.factors == pytest.approx(wanted, rel=1e-5)


def two_passes(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(net, x, y) + cross_entropy(net, -x, y)


def through_vmap(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(torch.func.vmap(net)(x), y)


def through_jvp(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    u, slope = torch.func.jvp(net, (x,), (torch.ones_like(x),))
    return F.cross_entropy(u, y) + slope.square().mean()


def two_backward_passes(loss: Tensor) -> None:
    loss.backward(retain_graph=True)
    loss.backward()


def shared() -> nn.Module:
    net = Net()
    net.blocks[2] = net.blocks[0]
    return net


NOT_MEASURED = {
    "block used twice": (Loop(partial(Net, call=lambda block, h: block(block(h)))), "blocks.0 ran 2 times in one step"),
    "shared block": (Loop(shared), "blocks.0 ran 2 times in one step"),
    "net called twice": (Loop(loss=two_passes), "blocks.0 ran 2 times in one step"),
    "two backward passes": (Loop(backward=two_backward_passes), "several backward passes went through blocks.0"),
    "vmap": (Loop(loss=through_vmap), "the blocks run inside a transform of torch.func"),
    "jvp": (Loop(loss=through_jvp), "the blocks run inside a transform of torch.func"),
}


@pytest.mark.parametrize("name", NOT_MEASURED)
def test_factors_that_cannot_be_known_are_left_out_with_a_reason(name: str, keeper: FakeKeeper) -> None:
    loop, reason = NOT_MEASURED[name]
    found = watched(loop, keeper)
    assert found.factors == []
    assert [note for note in found.notes if "factors" in note and reason in note]
    assert found.column("grad_norm"), "the other instruments go on"


class HiddenInPlace(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu_()


class ChangedLater(nn.Module):
    """Adds to the activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(8, 8), nn.LeakyReLU()

    def forward(self, h: Tensor) -> Tensor:
        a: Tensor = self.activation(self.linear(h))
        a += 1
        return a


def activation_means(net: nn.Module, kinds: tuple[type[nn.Module], ...], dtype: torch.dtype) -> list[float]:
    """The means of the activations at the last step, copied when they are made."""
    torch.manual_seed(0)
    means: list[float] = []
    (x, y), optimizer = batch(), torch.optim.SGD(net.parameters(), lr=0.05)
    for module in net.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda _, __, out: means.append(out.detach().double().mean().item()))
    for _ in range(STEPS):
        means.clear()
        loss = cross_entropy(net, x.to(dtype), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return means


def in_place() -> nn.Module:
    return Net(partial(nn.ReLU, inplace=True))


def changed_later() -> nn.Module:
    net = Net()
    net.blocks = nn.ModuleList(ChangedLater() for _ in range(3))
    return net


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("made", [in_place, partial(Net, HiddenInPlace), changed_later, partial(Net, nn.PReLU), Net])
def test_activations_are_measured_as_they_were_in_the_pass(
    made: Callable[[], nn.Module], dtype: torch.dtype, keeper: FakeKeeper
) -> None:
    loop = Loop(lambda: made().to(dtype), lambda net, x, y: cross_entropy(net, x.to(dtype), y))
    found = watched(loop, keeper)
    torch.manual_seed(0)
    kinds = (nn.ReLU, nn.Tanh, nn.LeakyReLU, nn.PReLU)
    wanted = activation_means(made().to(dtype), kinds, dtype)
    assert found.column("activation_mean") == pytest.approx(wanted, rel=1e-6)
    assert not found.notes


class ComplexActivation(nn.Tanh):
    def forward(self, h: Tensor) -> Tensor:
        return super().forward(torch.complex(h, h))


class Counting(nn.ReLU):
    """Draws random numbers and counts its calls: a further call would change the training."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.relu(x) + 0 * torch.rand(())


def test_an_activation_class_of_the_user_is_not_called_again(keeper: FakeKeeper) -> None:
    found = watched(Loop(partial(Net, Counting)), keeper)
    assert len(found.column("activation_mean")) == 3
    assert found.column("dead_fraction") == []


UNREADABLE = {
    "complex": (
        Loop(partial(Net, ComplexActivation, lambda block, h: block(h).abs())),
        "the activations after blocks.0.0, because its numbers are complex",
    ),
    "selective checkpoints": (MEASURED["selective checkpoints"], "it runs under a TorchDispatchMode"),
    "not a tensor": (
        Loop(partial(Net, type("Pair", (nn.ReLU,), {"forward": lambda s, h: (h, h)}), lambda block, h: block(h)[0])),
        "its input or output is a tuple, not a tensor",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_activations_without_ordinary_numbers_are_left_out_with_a_reason(name: str, keeper: FakeKeeper) -> None:
    loop, reason = UNREADABLE[name]
    found = watched(loop, keeper)
    assert found.column("activation_mean") == []
    assert [note for note in found.notes if reason in note]
    assert len([note for note in found.notes if "activations" in note]) == 1, "said once, not for every layer"
    assert len(found.factors) == 3


def test_no_hook_stays_on_a_tensor_that_the_loop_keeps(keeper: FakeKeeper) -> None:
    x = batch()[0].requires_grad_()
    kept: list[Tensor] = []

    def loss(net: nn.Module, _: Tensor, y: Tensor) -> Tensor:
        kept.append(net.stem(x))  # type: ignore[operator]
        net.call = lambda block, h: kept.append(h) or block(h)  # type: ignore[func-returns-value]
        return cross_entropy(net, x, y)

    net = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 3))
    watched(Loop(loss=loss), keeper)
    assert not any(tensor._backward_hooks for tensor in [x, *kept])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=None, sampler=Sampler(every=1)) as run:
        for _ in range(3):
            value = net(x).square().mean()  # x is the input of the first unit
            value.backward()
            optimizer.step()
            run.step(value)
            assert not x._backward_hooks


@pytest.mark.parametrize("compiled", [torch.jit.script, lambda block: torch.jit.trace(block, torch.randn(2, 8))])
def test_scripted_and_traced_blocks_are_measured(compiled: Any, keeper: FakeKeeper) -> None:
    def made() -> nn.Module:
        net = Net()
        net.blocks[1] = compiled(net.blocks[1])
        return net

    found = watched(Loop(made), keeper)
    assert found.factors == pytest.approx(factors_by_hand(Loop()), rel=1e-5)


class Structured(nn.Module):
    """Takes and gives tuples or dicts."""

    def __init__(self, linear: nn.Linear, form: type) -> None:
        super().__init__()
        self.linear, self.form = linear, form

    def forward(self, h: Any) -> Any:
        if isinstance(h, tuple | list | dict):
            h = next(iter(h.values())) if isinstance(h, dict) else h[0]
        out = torch.tanh(self.linear(h))
        return {"h": out, "mask": None} if self.form is dict else self.form((out, None))


@pytest.mark.parametrize("form", [tuple, list, dict])
def test_blocks_that_pass_on_tuples_lists_and_dicts_are_measured(form: type, keeper: FakeKeeper) -> None:
    def made() -> nn.Module:
        net = Net()
        net.blocks = nn.ModuleList(Structured(block[0], form) for block in net.blocks)  # type: ignore[index]
        net.head.register_forward_pre_hook(
            lambda _, args: (next(iter(args[0].values())) if form is dict else args[0][0],)
        )
        return net

    found = watched(Loop(made), keeper)
    assert found.factors == pytest.approx(factors_by_hand(Loop()), rel=1e-5)


class Sink(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.out = nn.Linear(8, 8), None

    def forward(self, h: Tensor) -> None:
        self.out = self.linear(h)


def test_a_block_without_an_output_ends_the_factors(keeper: FakeKeeper) -> None:
    def call(block: nn.Module, h: Tensor) -> Tensor:
        out = block(h)
        return block.out if out is None else out  # type: ignore[return-value]

    def made() -> nn.Module:
        net = Net(call=call)
        net.blocks[2] = Sink()
        return net

    assert len(watched(Loop(made), keeper).factors) == 2


def test_an_empty_batch_and_a_frozen_stem_leave_gaps(keeper: FakeKeeper) -> None:
    def frozen() -> nn.Module:
        net = Net()
        net.stem.requires_grad_(False)
        return net

    found = watched(Loop(frozen), keeper)
    assert found.readings[-1].values["backprop_factor"][1] is None, "no gradient reaches the input of the first block"
    assert len(found.factors) == 2
