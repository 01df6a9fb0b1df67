"""A snapshot restores what `state_dict()` leaves out, into the same objects."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nets import copy_of, digit_batches, loss_of, mlp, same
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import LambdaLR, SequentialLR, StepLR
from unusual_nets import UNUSUAL

from tui_descent.training.setup.nets.block import Block, Skip
from tui_descent.training.undo.random_state import RandomState
from tui_descent.training.undo.snapshot import Snapshot
from tui_descent.training.undo.torch_state import TorchState


class Net(nn.Module):
    """A net with every kind of state: a block, a batch norm, buffers, unregistered tensors, plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(nn.Linear(8, 8), nn.ReLU(), dropout=0.1)
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("mask", torch.ones(8), persistent=False)
        self.unregistered = torch.zeros(3)
        self.counts = {"seen": [0]}

    def forward(self, x: Tensor) -> Tensor:
        self.counts["seen"][0] += 1
        y: Tensor = self.norm(self.block(x) * self.mask)
        return y


def change(net: Net) -> None:
    with torch.no_grad():
        net.mask[0] = 0.0
        net.block.core.weight.add_(1.0)
    net(torch.rand(4, 8))  # changes the running statistics and the count
    net.unregistered += 1
    net.block.put_norm(nn.LayerNorm(8), "post")
    net.block.activation = nn.GELU()
    net.block.skip = Skip(0.5)
    net.block.put_dropout(0.5)
    net.norm.eps = 0.1
    net.norm.weight.requires_grad_(False)
    net.added = nn.Linear(2, 2)
    net.counts["added"] = [1]
    net.eval()


def state_of_net(net: Net) -> dict[str, Any]:
    return {
        "mask": net.mask.tolist(),
        "structure": repr(net),
        "where": net.block.where,
        "skip": repr(net.block.skip),
        "eps": net.norm.eps,
        "frozen": [name for name, p in net.named_parameters() if not p.requires_grad],
        "modes": [m.training for m in net.modules()],
        "unregistered": net.unregistered.tolist(),
        "counts": copy.deepcopy(net.counts),
        "weights": {name: tensor.tolist() for name, tensor in net.state_dict().items()},
    }


def test_snapshot_restores_what_state_dict_leaves_out() -> None:
    net = Net()
    before, saved, snapshot = state_of_net(net), copy.deepcopy(net.state_dict()), snapshot_of(net)
    change(net)
    net.load_state_dict(saved, strict=False)
    left = {name for name, value in state_of_net(net).items() if value != before[name]}
    assert left == set(before), "the weights, too, have the names of the changed structure"
    for name in before["weights"]:
        if name in net.state_dict():
            assert net.state_dict()[name].tolist() == before["weights"][name]
    snapshot.restore()
    assert state_of_net(net) == before


def test_snapshot_can_be_restored_more_than_once_and_is_independent_of_the_net() -> None:
    net = Net()
    before, snapshot = state_of_net(net), snapshot_of(net)
    for _ in range(2):
        change(net)
        assert state_of_net(net) != before
        snapshot.restore()
        assert state_of_net(net) == before


def test_restore_keeps_the_identity_of_every_object() -> None:
    net = Net()
    held = [*net.modules(), *net.parameters(), *net.buffers(), net.unregistered, net.counts, net.counts["seen"]]
    snapshot = snapshot_of(net)
    change(net)
    snapshot.restore()
    there = [*net.modules(), *net.parameters(), *net.buffers(), net.unregistered, net.counts, net.counts["seen"]]
    assert [id(found) for found in there] == [id(found) for found in held]


def test_skip_gate_is_restored_within_the_same_object() -> None:
    net = Net()
    net.block.skip = skip = Skip(1.0, gate=0.25)
    snapshot = snapshot_of(net)
    skip.gate, net.block.skip = 1.0, None
    snapshot.restore()
    assert net.block.skip is skip
    assert skip.gate == 0.25


def test_restore_leaves_hooks_and_an_instance_forward_alone() -> None:
    net = Net()
    snapshot = snapshot_of(net)
    calls: list[str] = []
    net.register_forward_hook(lambda *_: calls.append("hook"))
    forward = net.forward
    net.forward = lambda x: (calls.append("forward"), forward(x))[1]  # type: ignore[method-assign]
    snapshot.restore()
    net(torch.rand(4, 8))
    assert calls == ["forward", "hook"]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD], ids=lambda kind: kind.__name__)
def test_restored_optimizer_repeats_the_same_updates(kind: Any) -> None:
    net, outside = mlp(), nn.Parameter(torch.ones(2))
    optimizer = kind([{"params": net.parameters()}, {"params": [outside], "lr": 0.5}], lr=0.01)

    def train(steps: int) -> tuple[list[Tensor], Tensor]:
        for batch in digit_batches(steps):
            loss = loss_of(net, batch) + outside.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return copy_of(net), outside.detach().clone()

    train(3)
    groups, params = optimizer.param_groups, optimizer.param_groups[0]["params"]
    snapshot = snapshot_of(net, optimizer)
    weights, other = train(3)
    optimizer.param_groups[0].update(lr=7.0)
    optimizer.param_groups[0]["params"].pop()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    optimizer.state.clear()
    snapshot.restore()
    assert optimizer.param_groups is groups
    assert optimizer.param_groups[0]["params"] is params
    again, once_more = train(3)
    assert same(again, weights)
    assert torch.equal(once_more, other)


def test_torch_schedulers_within_containers_are_restored() -> None:
    class Falling:
        calls = 0

        def __call__(self, epoch: int) -> float:
            self.calls += 1
            return float(0.9**self.calls)

    optimizer = torch.optim.SGD(mlp().parameters(), lr=1.0)
    falling = Falling()
    both = SequentialLR(optimizer, [LambdaLR(optimizer, falling), StepLR(optimizer, 2)], milestones=[4])

    def rates(steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            optimizer.step()
            both.step()
            found.append(optimizer.param_groups[0]["lr"])
        return found

    rates(2)
    snapshot = snapshot_of({"schedulers": [both]})
    first = rates(6)
    snapshot.restore()
    assert rates(6) == first


def test_random_numbers_repeat_after_restore() -> None:
    snapshot = Snapshot([RandomState()], segment=0, step=0)
    first = torch.rand(3)
    snapshot.restore()
    assert torch.equal(torch.rand(3), first)


def test_snapshot_knows_its_size_and_whether_its_weights_are_finite() -> None:
    net = nn.Linear(3, 2)
    snapshot = snapshot_of(net)
    assert snapshot.nbytes == (3 * 2 + 2) * 4
    with torch.no_grad():
        net.weight[0, 0] = torch.nan
    assert snapshot.has_finite_weights()
    assert not snapshot_of(net).has_finite_weights()


def snapshot_of(*roots: object) -> Snapshot:
    return Snapshot([TorchState(*roots)], segment=0, step=0)


UNUSUAL_STATES = [
    "sparse weight",
    "lazy",
    "nested",
    "lazy until the seventh pass",
    "strides",
    "int8",
    "quantized",
    "meta",
    "empty",
]


@pytest.mark.filterwarnings(
    "ignore:torch.quantize_per_tensor", "ignore:Initializing zero-element", "ignore:The PyTorch API of nested"
)
@pytest.mark.parametrize("name", [*UNUSUAL_STATES, "complex64", "0-d", "subclass"])
def test_parameters_of_every_kind_are_saved_and_restored(name: str) -> None:
    net = UNUSUAL[name]()
    net(torch.randn(4, 32))
    before = {n: None if is_lazy(p) or p.is_meta else p.detach().clone() for n, p in net.named_parameters()}
    snapshot = snapshot_of(net)
    assert snapshot.nbytes > 0
    assert snapshot.has_finite_weights()
    with torch.no_grad():
        for p in net.parameters():
            if not is_lazy(p) and p.requires_grad:
                p.add_(1)
    snapshot.restore()
    for n, p in net.named_parameters():
        old = before[n]
        if old is not None and old.is_nested:
            assert all(torch.equal(x, y) for x, y in zip(p.unbind(), old.unbind(), strict=True))
        elif old is not None:
            assert torch.equal(p.to_dense() if p.is_sparse else p, old.to_dense() if old.is_sparse else old)


def test_parameter_whose_data_has_another_shape_gets_its_old_data_back() -> None:
    net = nn.Linear(6, 4)
    before = net.weight.detach().clone()
    snapshot = snapshot_of(net)
    net.weight.data = net.weight.data[:2] + 1
    snapshot.restore()
    assert torch.equal(net.weight, before)
