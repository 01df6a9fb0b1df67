"""The search names the operation, and the module or the loss function, in which the first NaN or infinity arose."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.training.probes.nonfinite_search import Origin, search

X, Y = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.ones(16, 2)
SEQUENCES = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1))
MASKED, HALF_MASKED = torch.zeros(4, 3, dtype=torch.bool), torch.zeros(4, 3, dtype=torch.bool)
MASKED[1], HALF_MASKED[1, :2] = True, True


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))


class Attention(nn.Module):
    """Attention with a mask; `own` computes it by hand."""

    def __init__(self, *, own: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(8, 8) if own else nn.MultiheadAttention(8, 2, batch_first=True)
        self.own, self.mask, self.out = own, MASKED, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 8) → (B, T, 2)."""
        if not self.own:
            return self.out(self.a(x, x, x, key_padding_mask=self.mask)[0])  # type: ignore[no-any-return]
        q = self.a(x)
        scores = (q @ q.transpose(1, 2)).masked_fill(self.mask[:, None], -math.inf)
        return self.out(scores.softmax(-1) @ q)  # type: ignore[no-any-return]


class Inside(nn.Module):
    """Applies a function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.function, self.last = nn.Linear(8, 8), function, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8) → (B, 2)."""
        return self.last(self.function(self.first(x)))  # type: ignore[no-any-return]


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = nn.Embedding(10, 8), nn.Linear(8, 2)

    def forward(self, numbers: Tensor) -> Tensor:
        """(B) → (B, 2)."""
        return self.out(self.table(numbers))  # type: ignore[no-any-return]


def found(net: nn.Module, loss: Callable[[], Tensor], batch: object = None) -> tuple[str, str | None, str] | None:
    """Cause, layer and words of what is found."""
    origin = search(net, loss, batch=batch, gives_loss=True, backward=True).origin
    return None if origin is None else (origin.cause, origin.layer, origin.words)


def with_value(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x[3, 1] = value
    return x


# A finite loss with a gradient that is not finite, or a loss that is not finite. Each function gets the net's output.
IN_THE_LOSS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sqrt of a zero distance": (lambda p: (p - p.detach()).pow(2).sum(1).sqrt().mean(), "sqrt at 0"),
    "root by a power": (lambda p: (p * 0).pow(0.5).mean(), "a power at 0"),
    "hypot": (lambda p: torch.hypot(p * 0, p * 0).mean(), "hypot at (0, 0)"),
    "acos at the edge": (lambda p: (p * 1e3).clamp(-1, 1).acos().mean(), "acos at ±1"),
    "asin at the edge": (lambda p: (p * 1e3).clamp(-1, 1).asin().mean(), "asin at ±1"),
    "xlogy": (lambda p: torch.xlogy(p * 0, p * 0).mean(), "xlogy at 0"),
    "sqrt in the branch not taken": (lambda p: torch.where(p > 0, p.sqrt(), p).mean(), "sqrt of a negative number"),
    "log in the branch not taken": (
        lambda p: torch.where(p.relu() > 0, p.relu().log(), torch.zeros(())).mean(),
        "log at 0",
    ),
    "exp in the branch not taken": (
        lambda p: torch.where(p < 0, (p * 1e4).exp(), torch.zeros(())).mean(),
        "exp overflows",
    ),
    "log of 0": (lambda p: (p * 0).log().mean(), "log of 0"),
    "log of a softmax that underflows": (lambda p: -(p * 1e4).softmax(1).log().mean(), "log of 0"),
    "log of a negative number": (lambda p: (-p.abs() - 1).log().mean(), "log of a negative number"),
    "exp": (lambda p: (p * 1e4).exp().mean(), "exp overflows"),
    "inf / inf": (lambda p: ((p * 1e4).exp() / (p * 1e4).exp().sum()).mean(), "exp overflows"),
    "0 / 0": (lambda p: ((p * 0) / (p * 0).norm()).mean(), "0/0"),
    "division by 0": (lambda p: (1 / (p * 0)).mean(), "division by 0"),
    "mean of nothing": (lambda p: p[:0].mean(), "mean of an empty tensor"),
    "no target": (lambda p: F.cross_entropy(p, torch.full((16,), -100)), "nll_loss without any target"),
    "acos outside": (lambda p: (p * 1e3).acos().mean(), "acos outside -1…1"),
    "square": (lambda p: (p * 1e30).pow(2).mean(), "pow overflows"),
}


@pytest.mark.parametrize("name", IN_THE_LOSS)
def test_operation_of_the_loss_function_is_named(name: str) -> None:
    net, (loss, words) = mlp(), IN_THE_LOSS[name]
    assert found(net, lambda: loss(net(X))) == ("loss function", None, words)


@pytest.mark.filterwarnings("ignore:std")
def test_std_of_a_batch_of_one_is_named() -> None:
    net = mlp()
    words = "std of a single number"
    assert found(net, lambda: (net(X[:1]) / net(X[:1]).std(0)).sum()) == ("loss function", None, words)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_batch_is_named_with_its_sample(value: float) -> None:
    net, bad = mlp(), with_value(X, value)
    words = f"the batch has {value} in sample 3"
    assert found(net, lambda: F.mse_loss(net(bad), Y), (bad, Y)) == ("batch", None, words)
    targets = with_value(Y, value)
    assert found(net, lambda: F.mse_loss(net(X), targets), (X, targets)) == ("batch", None, words)


def test_nan_targets_that_mark_missing_values_are_named() -> None:
    """`where` and `nansum` keep NaN out of the loss, but not out of its gradient."""
    net, targets = mlp(), Y.clone()
    targets[:5] = math.nan
    words = "the batch has nan in 5 of 16 samples"
    for loss in (
        lambda: torch.where(targets.isnan(), torch.zeros(()), (net(X) - targets) ** 2).mean(),
        lambda: ((net(X) - targets) ** 2).nansum(),
    ):
        assert found(net, loss, (X, targets)) == ("batch", None, words)


@pytest.mark.parametrize("own", [True, False], ids=["own", "torch's"])
def test_row_that_is_masked_completely_is_named_and_a_usual_mask_is_not(own: bool) -> None:
    net = Attention(own=own)
    cause, layer, words = found(net, lambda: net(SEQUENCES).sum()) or ("", "", "")
    assert (cause, layer) == ("forward", None if own else "a")
    assert words in ("softmax of a row of only -inf", "attention of a row of only -inf")
    net.mask = HALF_MASKED
    assert found(net, lambda: net(SEQUENCES).sum()) is None
    assert found(net, lambda: (net(SEQUENCES) * 0).log().mean()) == ("loss function", None, "log of 0")


INSIDE: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "sqrt at 0": (lambda h: (h * 0).sqrt(), "backward", "sqrt at 0"),
    "norm": (lambda h: h / (h * 0).sum(1, keepdim=True), "forward", "division by 0"),
    "exp": (lambda h: (h.abs() * 1e4).exp(), "forward", "exp overflows"),
}


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("gives_loss", [True, False], ids=["loss", "output"])
def test_module_is_named(name: str, gives_loss: bool) -> None:
    function, cause, words = INSIDE[name]
    net = nn.Sequential(Inside(function), nn.Linear(2, 1))
    result = search(net, lambda: net(X).mean() if gives_loss else net(X), batch=X, gives_loss=gives_loss, backward=True)
    assert result.origin is not None
    assert (result.origin.cause, result.origin.layer, result.origin.words) == (cause, "0", words)


def test_weights_and_running_statistics_are_named() -> None:
    embedded, normed = Embedded(), nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with torch.no_grad():
        embedded.table.weight[3] = math.nan
    numbers = torch.tensor([1, 3])
    words = "the weight of table is nan"
    assert found(embedded, lambda: embedded(numbers).sum(), numbers) == ("weights", "table", words)
    normed[1].running_var[0] = math.nan  # type: ignore[index]
    assert found(normed, lambda: normed(X).sum(), X) is None, "they are not used in training"
    normed.eval()
    assert found(normed, lambda: normed(X).sum(), X) == ("weights", "1", "the running_var of layer 1 is nan")


def test_overflow_in_half_precision_is_named() -> None:
    net = mlp().half()
    with torch.no_grad():
        net[0].bias.fill_(9)
        net[2].weight.fill_(60_000)
    assert found(net, lambda: net(X.half()).float().mean()) == ("forward", "2", "matmul overflows in float16")


def test_double_backward_and_an_own_function_are_named() -> None:
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return gradient / 0

    net = mlp()
    assert found(net, lambda: Own.apply(net(X)).mean()) == ("loss function", None, "the gradient of Own is inf")

    def penalty() -> Tensor:
        x = X.clone().requires_grad_()
        (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return (((slope * 0) ** 2).sum(1).sqrt() - 1).pow(2).mean()

    assert found(net, penalty) == ("loss function", None, "sqrt at 0")


@pytest.mark.parametrize("bad", [False, True], ids=["fine", "bad"])
def test_search_leaves_no_trace(bad: bool) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    net(X).sum().backward()
    tensors = [*net.parameters(), *(p.grad for p in net.parameters()), *net.buffers()]
    before = [t.clone() for t in tensors if t is not None]
    states = torch.get_rng_state(), random.getstate()

    def loss() -> Tensor:
        random.random()
        return (net(X) * (0 if bad else 1)).abs().sqrt().mean()

    result = search(net, loss, batch=X, gives_loss=True, backward=True)
    assert result.origin == (Origin("loss function", None, "sqrt", "sqrt at 0") if bad else None)
    assert not result.exact, "it drew random numbers"
    assert all(map(torch.equal, before, [t for t in tensors if t is not None]))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_error_of_the_net_is_raised_and_leaves_no_trace() -> None:
    net = mlp()
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="shapes"):
        search(net, lambda: net(torch.rand(3, 3)), batch=X, gives_loss=False, backward=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
