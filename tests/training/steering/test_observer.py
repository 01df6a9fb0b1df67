"""What the first forward pass of a user's net shows: hidden activations, gates, outputs, and blocks with a skip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from foreign_nets import CASES, BasicBlock, BertLayer, GELUActivation, GPTBlock, NewGELU, Snake, Swish
from nets import copy_of, same
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tui_descent.training.steering.steering import Steering
from tui_descent.training.steering.surgery import ForwardObserver, Observation


def observe(net: nn.Module, run: Callable[[], Tensor]) -> Observation:
    """What is seen in one forward and backward pass."""
    observer = ForwardObserver(net)
    observer.attach()
    run().sum().backward()
    found = observer.finish()
    assert observer.error is None
    return found


def seen_in(net: nn.Module, *shape: int) -> Observation:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return observe(net, lambda: net(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CASES)
def test_gates_and_outputs_of_public_nets_are_left_alone(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    net = case.make()
    steering = Steering(net, torch.optim.SGD(net.parameters(), lr=0.1))
    steering.start_observing()
    case.loss(net, case.batch()).backward()  # type: ignore[no-untyped-call]
    steering.finish_observing()
    states = {state.name: state for state in steering.states()}
    assert set(states["activation"].acts_on) == set(case.hidden)
    assert {left for left, _ in states["activation"].left_alone} == set(case.left)
    if case.own or case.off:
        assert set(states["residual"].acts_on) == set(case.off)
        assert {own for own, _ in states["residual"].left_alone} == set(case.own)
        assert states["residual"].value == ("own" if case.own else "off")
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


@pytest.mark.parametrize("name", ["mobilenet", "lstm", "vae", "pinn"])
def test_observing_changes_nothing(name: str) -> None:
    case, results = CASES[name], []
    for observed in (False, True):
        torch.manual_seed(0)
        net = case.make()
        observer = ForwardObserver(net)
        if observed:
            observer.attach()
        loss = case.loss(net, case.batch())
        loss.backward()  # type: ignore[no-untyped-call]
        if observed:
            observer.finish()
        grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        results.append(([loss.detach(), *grads, *copy_of(net)], torch.get_rng_state()))
    assert same(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


class Ends(nn.Module):
    """A net that does something with its last activation."""

    def __init__(self, last: nn.Module, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.last, self.then = last, then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.last(self.body(x)))


@pytest.mark.parametrize(
    "then",
    [
        lambda y: y,
        lambda y: y.view(-1).squeeze(),
        lambda y: 2 * y - 1,
        lambda y: y.clamp(0.01, 0.99)[:, :2],
        lambda y: y.mean(1),
        lambda y: y.log().sum(1, keepdim=True),
        lambda y: torch.cat([y, 1 - y], dim=1),
        lambda y: y / y.sum(1, keepdim=True),
    ],
)
@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Softplus(), GELUActivation()])
def test_an_activation_with_no_layer_after_it_is_the_output(then: Callable[[Tensor], Tensor], last: nn.Module) -> None:
    found = seen_in(Ends(last, then), 20, 6)
    assert found.left == {"last": "the net's output"}


class Mixed(nn.Module):
    """x is combined with an activation, and a layer follows."""

    def __init__(self, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.act, self.combine = nn.Sigmoid(), combine

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.head(self.combine(h, self.act(self.inner(h))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("combine", "gate"),
    [
        (lambda h, a: h * a, True),
        (lambda h, a: a.mul(h).relu(), True),
        (lambda h, a: (1 + a) * h, True),
        (lambda h, a: h * a[:, :1], True),
        (lambda h, a: torch.lerp(h, h.detach().neg() + h * 2, a), True),
        (lambda h, a: a * torch.tanh(h) + (1 - a) * h, True),
        (lambda h, a: h / (a + 1e-3), True),
        (lambda h, a: h + a, False),
        (lambda h, a: a * 3, False),
        (lambda h, a: a * torch.tensor(0.5), False),
        (lambda h, a: a * a, False),
        (lambda h, a: a, False),
        (lambda h, a: a - a.mean(), False),
        (lambda h, a: a / a.norm(), False),
        (lambda h, a: torch.cat([a, h], 1)[:, :8], False),
        (lambda h, a: F.layer_norm(a, (8,)), False),
        (lambda h, a: F.dropout(a, 0.5), False),
        (lambda h, a: a * (torch.rand_like(a) > 0.5), False),
    ],
)
def test_an_activation_that_multiplies_another_tensor_is_a_gate(
    combine: Callable[[Tensor, Tensor], Tensor], *, gate: bool
) -> None:
    found = seen_in(Mixed(combine), 20, 6)
    assert found.left == ({"act": "a gate (it multiplies another tensor)"} if gate else {})


def test_a_parameter_a_mask_and_dropout_do_not_make_an_activation_a_gate() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.head = nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 1)
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.head(F.dropout(self.act(self.first(x)) * self.scale * mask))  # type: ignore[no-any-return]

    net = Scaled()
    assert observe(net, lambda: net(torch.randn(4, 6), torch.ones(4, 1))).left == {}  # type: ignore[no-any-return]


def test_a_sigmoid_that_multiplies_the_data_is_a_gate() -> None:
    class Select(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score, self.act, self.head = nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * self.act(self.score(x)))  # type: ignore[no-any-return]

    assert list(seen_in(Select(), 4, 6).left) == ["act"]


@pytest.mark.parametrize(
    ("module", "name"),
    [(GELUActivation(), "gelu"), (NewGELU(), "gelu"), (Swish(), "silu"), (nn.ReLU(), None), (Snake(), None)],
)
def test_an_activation_class_of_the_users_own_is_recognised_by_what_it_computes(
    module: nn.Module, name: str | None
) -> None:
    found = seen_in(nn.Sequential(nn.Linear(6, 32), module, nn.Linear(32, 1)), 20, 6)
    assert found.custom == ({"1": name} if name else {})
    assert found.left == ({"1": "unknown function"} if isinstance(module, Snake) else {})


class InPlaceRelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu_()


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_no_known_function_is_not_called_an_activation(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(6, 32), InPlaceRelu(), nn.Linear(32, 32), Noise(), Flat(), nn.Linear(32, 1)).to(dtype)
    x = torch.randn(20, 6, dtype=dtype)
    found = observe(net, lambda: net(x))  # type: ignore[no-any-return]
    assert found.custom == {"1": "relu"}
    assert found.left == {"3": "unknown function"}


def test_frozen_parts_leave_alone_what_may_be_a_gate() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh())
    net.append(nn.Linear(8, 1))
    net[:4].requires_grad_(False)  # type: ignore[index]
    assert seen_in(net, 4, 6).left == {"1": "perhaps a gate (no gradient passes through it)"}


def test_a_shared_activation_is_left_alone_if_any_of_its_calls_is_the_output() -> None:
    act = nn.Sigmoid()
    assert list(seen_in(nn.Sequential(nn.Linear(6, 8), act, nn.Linear(8, 1), act), 4, 6).left) == ["1"]


def test_generator_and_discriminator_in_one_dict_are_judged_apart() -> None:
    nets = nn.ModuleDict({"g": CASES["generator"].make(), "d": CASES["discriminator"].make()})

    def run() -> Tensor:
        d, g = nets["d"], nets["g"]
        fake = g(torch.randn(4, 4, 1, 1))
        return d(torch.randn(4, 1, 8, 8)).sum() + d(fake.detach()).sum() + d(fake).sum()  # type: ignore[no-any-return]

    assert set(observe(nets, run).left) == {"g.main.4", "d.main.6"}


def test_a_net_that_is_used_by_its_methods_is_observed_as_a_whole() -> None:
    vae = CASES["vae"].make()

    def run() -> Tensor:
        mu, std = vae.encode(torch.rand(4, 16))  # type: ignore[operator]
        return vae.decoder(mu + std)  # type: ignore[no-any-return, operator]

    found = observe(vae, run)
    assert "decoder.3" in found.left
    assert not {"encoder.1", "decoder.1"} & set(found.left)


def test_a_validation_pass_and_accumulation_do_not_hide_the_blocks() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 1))

    def run() -> Tensor:
        with torch.no_grad():
            net(torch.randn(4, 6))
        return sum((net(torch.randn(4, 6)) for _ in range(3)), torch.zeros(()))

    assert list(observe(net, run).blocks) == ["1"]


class Layers(nn.Module):
    """A net that runs its layers in its own way."""

    def __init__(self, layers: list[nn.Module], run: Callable[[nn.ModuleList, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.layers, self.head = nn.Linear(6, 8), nn.ModuleList(layers), nn.Linear(8, 1)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self.layers, self.stem(x)))  # type: ignore[no-any-return]


def in_turn(step: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.ModuleList, Tensor], Tensor]:
    def run(layers: nn.ModuleList, h: Tensor) -> Tensor:
        for layer in layers:
            h = step(layer, h)
        return h

    return run


@pytest.mark.parametrize(
    ("step", "own"),
    [
        (lambda layer, h: h + layer(h), True),
        (lambda layer, h: F.relu(h + layer(h)), True),
        (lambda layer, h: F.layer_norm(h + F.dropout(torch.tanh(layer(h)), 0.1), (8,)), True),
        (lambda layer, h: h + 0.5 * layer(F.layer_norm(h, (8,))), True),
        (lambda layer, h: checkpoint(lambda z: z + layer(z), h, use_reentrant=False), True),
        (lambda layer, h: layer(h).add_(h), True),
        (lambda layer, h: torch.tanh(layer(h)), False),
        (lambda layer, h: layer(h) + 1, False),
        (lambda layer, h: F.layer_norm(torch.tanh(layer(h)), (8,)), False),
        (lambda layer, h: torch.sigmoid(h) * layer(h), False),
    ],
)
def test_a_skip_around_a_block_is_found_wherever_the_net_adds_it(
    step: Callable[[nn.Module, Tensor], Tensor], *, own: bool
) -> None:
    found = seen_in(Layers([nn.Linear(8, 8) for _ in range(3)], in_turn(step)), 4, 6)
    assert found.own_skips == (set(found.blocks) if own else set())
    assert len(found.blocks) == 3


def test_a_skip_over_three_blocks_belongs_to_none_of_them() -> None:
    def long_skip(layers: nn.ModuleList, h: Tensor) -> Tensor:
        return h + in_turn(lambda layer, z: torch.tanh(layer(z)))(layers, h)

    assert seen_in(Layers([nn.Linear(8, 8) for _ in range(3)], long_skip), 4, 6).own_skips == set()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_are_found_with_their_own_skips(*, reentrant: bool) -> None:
    blocks: list[nn.Module] = [BertLayer(8), BertLayer(8)]
    net = Layers(blocks, in_turn(lambda layer, h: checkpoint(layer, h, use_reentrant=reentrant)))
    x = torch.randn(4, 5, 6)
    found = observe(net, lambda: net(x))  # type: ignore[no-any-return]
    assert list(found.blocks) == ["layers.0", "layers.1"]
    assert found.own_skips == {"layers.0", "layers.1"}


@pytest.mark.parametrize(
    ("block", "shape"), [(BasicBlock, (4, 3, 8, 8)), (BertLayer, (4, 5, 8)), (GPTBlock, (4, 5, 8))]
)
def test_a_first_block_on_the_data_themselves_is_found_to_add_them(
    block: Callable[[int], nn.Module], shape: tuple[int, ...]
) -> None:
    width = shape[1] if len(shape) == 4 else shape[-1]
    assert seen_in(nn.Sequential(block(width), nn.Flatten(), nn.LazyLinear(1)), *shape).own_skips == {"0"}


@dataclass
class Output:
    logits: Tensor
    labels: Tensor | None = None


class Named(dict[str, Any]):
    """As Hugging Face's `ModelOutput`."""


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: Output(y),
        lambda y: Named(logits=y),
        lambda y: [("logits", y)],
        lambda y: torch.distributions.Normal(y, y, validate_args=False),
        lambda y: {"a": {"b": (y, None)}},
    ],
)
def test_the_output_is_found_in_what_the_net_returns(wrap: Callable[[Tensor], Any]) -> None:
    net = Ends(nn.Sigmoid(), wrap)
    observer = ForwardObserver(net)
    observer.attach()
    net(torch.randn(4, 6))
    assert observer.finish().left == {"last": "the net's output"}


class Adapted(nn.Module):
    """As LoRA: a frozen layer and a small trained one."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2), nn.Linear(2, 8)
        self.base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))  # type: ignore[no-any-return]


def test_a_frozen_branch_is_no_skip() -> None:
    net = nn.Sequential(Adapted(), nn.ReLU(), Adapted(), nn.ReLU(), nn.Linear(8, 1))
    found = seen_in(net, 4, 8)
    assert (list(found.blocks), found.own_skips) == (["0", "2"], set())


def test_an_error_while_observing_ends_the_observation_and_not_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 1))

    def fails(*_: object) -> None:
        raise RuntimeError("injected")

    for method in ("_record", "_judge", "_check_block"):
        observer = ForwardObserver(net)
        with monkeypatch.context() as patch:
            patch.setattr(ForwardObserver, method, fails)
            observer.attach()
            net(torch.randn(4, 6)).sum().backward()
            observer.finish()
        assert str(observer.error) == "injected"
    assert not torch.nn.modules.module._global_forward_hooks
