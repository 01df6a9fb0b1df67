"""Nets whose parameters are not ordinary float32 matrices. Each takes a batch (B, 32) and returns (B, 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Spectral(nn.Module):
    """A filter with complex weights, as in a Fourier neural operator."""

    def __init__(self, dtype: torch.dtype = torch.cfloat, shape: tuple[int, ...] = (17,)) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(shape, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=32)


class ConjugatedMatrix(nn.Module):
    """A complex matrix whose gradient may be a lazy conjugate."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(32, 1, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.cfloat) @ self.weight.conj()).abs()


class SparseEmbedding(nn.Module):
    def __init__(self, cls: type[nn.Module] = nn.Embedding) -> None:
        super().__init__()
        self.table: Any = cls(50, 8, sparse=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        words: Tensor = self.table((x[:, :4] * 10).long().abs().clamp(max=49))
        return self.head(words if words.dim() == 2 else words.mean(dim=1))  # type: ignore[no-any-return]


class Integers(nn.Module):
    """Frozen weights of another dtype, with a trained scale."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randint(0, 2, (16, 32)).to(dtype), requires_grad=False)
        self.scale = nn.Parameter(0.1 * torch.rand(16, 1))
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x @ (self.codes.float() * self.scale).T)  # type: ignore[no-any-return]


class Quantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        codes = torch.quantize_per_tensor(0.2 * torch.randn(16, 32), 0.01, 0, torch.qint8)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x @ self.codes.dequantize().T)  # type: ignore[no-any-return]


class SparseMatrix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(32).to_sparse(), requires_grad=False)
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sparse.mm(self.weight, x.T).T)  # type: ignore[no-any-return]


class WithUnusedChild(nn.Module):
    """Has a child that no pass uses, so its parameters stay as they are."""

    def __init__(self, unused: nn.Module) -> None:
        super().__init__()
        self.unused = unused
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)  # type: ignore[no-any-return]


class LateLazy(nn.Module):
    """A lazy layer gets its shape in the seventh pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.late = nn.LazyLinear(16), nn.Linear(16, 1), nn.LazyLinear(1)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        h = torch.relu(self.body(x))
        return self.head(h) + self.late(h) if self.passes > 6 else self.head(h)  # type: ignore[no-any-return]


class Empty(nn.Module):
    """An optional conditioning input of width 0, before and between the other layers."""

    def __init__(self) -> None:
        super().__init__()
        self.condition, self.body, self.head = nn.Linear(0, 16), nn.Linear(32, 16), nn.Linear(16, 1)
        self.nothing = nn.Parameter(torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        h = self.condition(x[:, :0]) + self.body(x)
        return self.head(torch.relu(h)) + self.nothing.sum()  # type: ignore[no-any-return]


class Scalars(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.offset = nn.Parameter(torch.tensor(0.1))
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) * self.temperature + self.offset  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self, cls: type[nn.RNNBase], **how: Any) -> None:
        super().__init__()
        self.rnn = cls(8, 8, batch_first=True, **how)
        width = (how.get("proj_size") or 8) * (2 if how.get("bidirectional") else 1)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.view(-1, 4, 8))[0][:, -1])  # type: ignore[no-any-return]


class AttentionNet(nn.Module):
    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **how)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        q = x.view(-1, 4, 8)
        k, v = q[..., : self.attention.kdim], q[..., : self.attention.vdim]
        return self.head(self.attention(q, k, v)[0].mean(dim=1))  # type: ignore[no-any-return]


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bilinear, self.head = nn.Bilinear(32, 32, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(0.1 * self.bilinear(x, x))  # type: ignore[no-any-return]


class ParameterContainers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([nn.Parameter(0.1 * torch.randn(32, 32)) for _ in range(3)])
        self.affine = nn.ParameterDict({"gain": nn.Parameter(torch.ones(32)), "offset": nn.Parameter(torch.zeros(32))})
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        for matrix in self.matrices:
            x = torch.tanh(x @ matrix)
        return self.head(x * self.affine["gain"] + self.affine["offset"])  # type: ignore[no-any-return]


class SubclassTensor(torch.Tensor):
    """A subclass with its own `__torch_function__`, as annotated tensors have."""

    calls: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


class SubclassWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter((0.1 * torch.randn(16, 32)).as_subclass(SubclassTensor))
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(x @ self.weight.t()).as_subclass(torch.Tensor))  # type: ignore[no-any-return]


class WrapperWeight(nn.Module):
    """A weight that keeps its numbers in two inner tensors, as DTensor keeps them in a local tensor."""

    def __init__(self) -> None:
        super().__init__()
        from torch.testing._internal.two_tensor import TwoTensor

        a = 0.1 * torch.randn(16, 32)
        self.weight = nn.Parameter(TwoTensor(a, a.clone()))
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(x @ self.weight.t().a))  # type: ignore[no-any-return]


class Strides(nn.Module):
    """Weights that are transposed, every second column of a matrix, and one row repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.repeated = nn.Parameter(torch.full((1, 32), 0.1).expand(16, 32), requires_grad=False)
        self.transposed = nn.Parameter((0.1 * torch.randn(32, 16)).t())
        self.strided = nn.Parameter((0.1 * torch.randn(16, 64))[:, ::2])
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(x @ (self.repeated + self.transposed + self.strided).T)
        return self.head(h)  # type: ignore[no-any-return]


class Tied(nn.Module):
    """One parameter in two layers, and a third layer whose parameter is a view of the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = *(nn.Linear(32, 32) for _ in range(3)), nn.Linear(32, 1)
        self.b.weight = self.a.weight
        self.c.weight = nn.Parameter(self.a.weight.data.t())

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.b(torch.relu(self.a(x))))
        return self.head(torch.relu(self.c(h)))  # type: ignore[no-any-return]


def plain(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)).to(dtype)


def parametrized(wrap: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    return nn.Sequential(wrap(nn.Linear(32, 16)), nn.ReLU(), wrap(nn.Linear(16, 16)), nn.Linear(16, 1))


UNUSUAL: dict[str, Callable[[], nn.Module]] = {
    "complex64": lambda: nn.Sequential(Spectral(), nn.Linear(32, 1)),
    "complex128": lambda: nn.Sequential(Spectral(torch.cdouble, (1, 17)), nn.Linear(32, 1).double()),
    "complex only": ConjugatedMatrix,
    "sparse gradient": SparseEmbedding,
    "sparse gradient of a bag": lambda: SparseEmbedding(nn.EmbeddingBag),
    "int8": lambda: Integers(torch.int8),
    "uint8": lambda: Integers(torch.uint8),
    "bool": lambda: Integers(torch.bool),
    "float8": lambda: Integers(torch.float8_e4m3fn),
    "quantized": Quantized,
    "sparse weight": SparseMatrix,
    "meta": lambda: WithUnusedChild(nn.Linear(3, 4, device="meta")),
    "lazy": lambda: WithUnusedChild(nn.LazyConv2d(3, 4)),
    "lazy until the seventh pass": LateLazy,
    "empty": Empty,
    "0-d": Scalars,
    "lstm": lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True, proj_size=4),
    "gru": lambda: Recurrent(nn.GRU, num_layers=2),
    "rnn": lambda: Recurrent(nn.RNN, bias=False),
    "attention": lambda: AttentionNet(add_bias_kv=True),
    "attention with other keys and values": lambda: AttentionNet(kdim=8, vdim=4),
    "bilinear": TwoInputs,
    "parameter list and dict": ParameterContainers,
    "weight norm": lambda: parametrized(nn.utils.parametrizations.weight_norm),
    "spectral norm": lambda: parametrized(nn.utils.parametrizations.spectral_norm),
    "orthogonal": lambda: parametrized(nn.utils.parametrizations.orthogonal),
    "subclass": SubclassWeight,
    "wrapper subclass": WrapperWeight,
    "strides": Strides,
    "tied": Tied,
    "bfloat16": lambda: plain(torch.bfloat16),
    "float16": lambda: plain(torch.float16),
    "float64": lambda: plain(torch.float64),
}
