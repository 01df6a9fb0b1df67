"""Muon with AdamW compared with torch's own two optimizers, and with Newton–Schulz in NumPy."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from nets import copy_of, digit_batches, loss_of, mlp, same, same_state, state_of
from torch import Tensor, nn

from tui_descent.training.optim.muon import Muon, hidden_matrices


class Characters(nn.Module):
    """A small transformer: embedding, learnt positions, one layer, a head that may be tied."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 16)
        self.positions = nn.Parameter(torch.randn(8, 16) * 0.02)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm((8, 16))
        self.head = nn.Linear(16, 11, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.layer(self.tokens(x) + self.positions)))
        return logits


def names(net: nn.Module) -> set[str]:
    hidden = {id(p) for p in hidden_matrices(net)}
    return {name for name, p in net.named_parameters() if id(p) in hidden}


def test_hidden_matrices_exclude_embeddings_and_the_first_and_last_layer() -> None:
    assert names(mlp(depth=2)) == {"blocks.0.linear.weight", "blocks.1.linear.weight"}
    layer = {"layer.self_attn.in_proj_weight", "layer.self_attn.out_proj.weight"}
    layer |= {"layer.linear1.weight", "layer.linear2.weight"}
    assert names(Characters()) == names(Characters(tied=True)) == layer
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 10))
    assert names(conv) == {"3.weight"}


@pytest.mark.parametrize("net", [nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Conv2d(1, 1, 1)])
def test_muon_refuses_a_net_without_a_hidden_matrix(net: nn.Module) -> None:
    with pytest.raises(
        ValueError, match=r"muon needs a weight matrix between the first layer and the last; .* try adamw"
    ):
        hidden_matrices(net)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("ratio", [1.0, 0.3])
def test_muon_and_adamw_parts_equal_torch_bit_for_bit(decay: float, ratio: float) -> None:
    ours, theirs = mlp(seed=1), mlp(seed=1)
    muon = Muon(ours.parameters(), hidden=hidden_matrices(ours), lr=0.01, weight_decay=decay, adamw_lr_ratio=ratio)
    hidden = hidden_matrices(theirs)
    rest = [p for p in theirs.parameters() if all(p is not h for h in hidden)]
    twins = [
        torch.optim.Muon(hidden, lr=0.01, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.01 * ratio, weight_decay=decay),
    ]
    for batch in digit_batches(12):
        muon.zero_grad()
        loss_of(ours, batch).backward()
        muon.step()
        for twin in twins:
            twin.zero_grad()
        loss_of(theirs, batch).backward()
        for twin in twins:
            twin.step()
        assert same(copy_of(ours), copy_of(theirs))
    assert not same(copy_of(ours), copy_of(mlp(seed=1)))


def orthogonal(matrix: np.ndarray) -> np.ndarray:
    """Five steps of X ← aX + (b·XXᵀ + c·(XXᵀ)²)X in float64; K. Jordan's coefficients."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / np.linalg.norm(matrix)
    if x.shape[0] > x.shape[1]:
        return orthogonal(matrix.T).T
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(12, 12), (20, 6), (6, 20)])
def test_muon_update_is_newton_schulz_of_the_momentum_at_adamw_scale(shape: tuple[int, int]) -> None:
    weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = Muon([weight], hidden=[weight], lr=0.1, momentum=0.95)
    generator = torch.Generator().manual_seed(5)
    buffer = np.zeros(shape)
    for _ in range(3):
        before = weight.detach().numpy().copy()
        weight.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        g = weight.grad.numpy()
        optimizer.step()
        buffer = 0.95 * buffer + 0.05 * g
        expected = -0.1 * 0.2 * max(shape) ** 0.5 * orthogonal(0.05 * g + 0.95 * buffer)
        found = weight.detach().numpy() - before
        # torch iterates in bfloat16, which has 8 significant bits.
        assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)
        assert 0.1 * 0.1 < np.sqrt(np.mean(found**2)) < 0.1 * 0.3  # AdamW's usual 0.2 of the rate


def run(net: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[Tensor, Tensor]]) -> None:
    for batch in batches:
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        optimizer.step()


def test_state_dict_restores_muon_bit_for_bit() -> None:
    batches = digit_batches(10)
    net = mlp(seed=1)
    optimizer = Muon(net.parameters(), hidden=hidden_matrices(net), lr=0.01)
    run(net, optimizer, batches[:5])
    kept = pickle.loads(pickle.dumps((net.state_dict(), optimizer.state_dict())))
    assert [len(g["params"]) for g in optimizer.state_dict()["param_groups"]] == [len(list(net.parameters()))]
    run(net, optimizer, batches[5:])
    other = mlp(seed=2)
    again = Muon(other.parameters(), hidden=hidden_matrices(other), lr=0.5)
    other.load_state_dict(kept[0])
    again.load_state_dict(kept[1])
    run(other, again, batches[5:])
    assert same(copy_of(other), copy_of(net))
    assert same_state(state_of(again), state_of(optimizer))


def test_deep_copy_of_muon_trains_independently_with_equal_results() -> None:
    batches = digit_batches(6)
    net = mlp(seed=1)
    optimizer = Muon(net.parameters(), hidden=hidden_matrices(net), lr=0.01)
    run(net, optimizer, batches[:3])
    twin, twins = copy.deepcopy((net, optimizer))
    run(twin, twins, batches[3:])
    assert not same(copy_of(twin), copy_of(net))
    run(net, optimizer, batches[3:])
    assert same(copy_of(twin), copy_of(net))


def test_hooks_closures_rates_and_missing_gradients_work_as_in_torch() -> None:
    net, (batch,) = mlp(), digit_batches(1)
    optimizer = Muon(net.parameters(), hidden=hidden_matrices(net), lr=0.01)
    fired: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: fired.append("before"))
    optimizer.register_step_post_hook(lambda *_: fired.append("after"))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net, batch)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(loss_of(mlp(), batch).item())
    assert fired == ["before", "after"]
    before, state = copy_of(net), state_of(optimizer)
    optimizer.zero_grad()
    optimizer.step()  # without gradients nothing changes
    assert same(copy_of(net), before)
    assert same_state(state_of(optimizer), state)
    closure()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert same(copy_of(net), before)


def test_parameter_added_later_uses_adamw() -> None:
    net = mlp()
    optimizer = Muon(net.parameters(), hidden=hidden_matrices(net), lr=0.01)
    added = nn.Parameter(torch.ones(4, 4))
    optimizer.add_param_group({"params": [added], "lr": 0.1})
    added.grad = torch.ones(4, 4)
    optimizer.step()
    assert set(optimizer.state[added]) == {"step", "exp_avg", "exp_avg_sq"}
    assert added.detach().numpy() == pytest.approx(np.full((4, 4), 0.9))
