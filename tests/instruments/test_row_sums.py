"""Norms, dot products and cosines of long rows, of half precision and of very small or large numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from float64_twins import Array, array, close, l2
from torch import Tensor, nn

from tui_descent.instruments.net_structure import structure
from tui_descent.instruments.norms import Norms, NormsReading
from tui_descent.instruments.row_sums import difference_norms, host_norms, l2_norm, row_products

HALF = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, torch.float64, *HALF]
SHAPES = [(1, 1), (3, 1000), (16, 4096), (2, 4097), (3, 5000), (1, 65536), (2, 300_001), (1, 1_000_003)]
WITHIN = 1e-5


def twin(tensor: Tensor) -> Array:
    return array(tensor.float() if tensor.dtype in HALF else tensor)


def numbers(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    match kind:
        case "normal":
            made = torch.randn(shape)
        case "constant":  # every addition to a float32 sum is rounded to the same side
            made = torch.full(shape, 0.1)
        case _:
            made = torch.randn(shape).exp()  # log-normal: few numbers make up most of the sum
    return made.to(dtype)


@pytest.mark.parametrize("kind", ["normal", "constant", "log-normal"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norms_products_and_differences_equal_float64(shape: tuple[int, int], dtype: torch.dtype, kind: str) -> None:
    x, y = (numbers(kind, shape, dtype) for _ in range(2))
    a, b = twin(x), twin(y)
    found = host_norms([x])
    assert all(close(norm, float(np.linalg.norm(row)), WITHIN) for norm, row in zip(found, a, strict=True))
    for dot, p, q in zip(row_products(x, y).tolist(), a, b, strict=True):
        assert abs(dot - float(p @ q)) <= WITHIN * float(np.abs(p * q).sum())
    for norm, p, q in zip(difference_norms(x, y), a, b, strict=True):
        assert close(norm, float(np.linalg.norm(p - q)), WITHIN)


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_of_thirty_million_numbers_equal_float64(dtype: torch.dtype) -> None:
    for kind in ("normal", "constant", "log-normal"):
        x = numbers(kind, (1, 30_000_000), dtype)
        assert close(host_norms([x])[0], float(np.linalg.norm(twin(x))), WITHIN)
        exact = float(twin(x)[0] @ twin(x)[0])
        assert close(row_products(x, x).item(), exact, WITHIN)


def test_norm_of_eight_million_equal_numbers_is_exact() -> None:
    """A sum in float32 is wrong by more than 1 % here."""
    x = torch.full((1, 1 << 23), 0.1)
    assert close(host_norms([x])[0], float(np.float32(0.1)) * math.sqrt(1 << 23), 1e-6)
    assert close(row_products(x, x).item(), float(np.float32(0.1)) ** 2 * (1 << 23), 1e-6)


TINY_AND_HUGE = {
    torch.float64: (-320, -310, -200, -160, -150, -146, 0, 149, 152, 160, 300),
    torch.float32: (-44, -38, -25, -17, 0, 13, 18, 20, 37),
    torch.bfloat16: (-38, -25, 0, 20, 37),
    torch.float16: (-7, -4, 0, 4),
}
SIZES = [(dtype, exponent) for dtype, exponents in TINY_AND_HUGE.items() for exponent in exponents]


@pytest.mark.parametrize(("dtype", "exponent"), SIZES, ids=str)
@pytest.mark.parametrize("length", [7, 5000, 70_000])
def test_norms_are_right_at_every_size(length: int, dtype: torch.dtype, exponent: int) -> None:
    x = (torch.randn(3, length, dtype=torch.float64) * 10.0**exponent).to(dtype)
    x[1] = 0
    for norm, row in zip(host_norms([x]), x, strict=True):
        assert close(norm, l2(twin(row)), 1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [7, 5000, 300_000])
def test_norm_of_a_row_with_a_non_finite_number_is_not_finite(length: int, dtype: torch.dtype, bad: float) -> None:
    x = torch.ones(2, length).to(dtype)
    x[1, length // 2] = bad
    good, wrong = host_norms([x])
    assert close(good, math.sqrt(length), 1e-5)
    assert math.isnan(wrong) if math.isnan(bad) else wrong == math.inf


LAYOUTS = {
    "transposed": lambda x: x.t(),
    "every second column": lambda x: x[:, ::2],
    "channels last": lambda x: x[:600, :600].reshape(2, 300, 20, 30).to(memory_format=torch.channels_last),
    "expanded": lambda x: x[:1].expand(50, -1),
    "flipped slice": lambda x: x[3:700, 5:900].t()[::3],
    "complex": lambda x: torch.complex(x, 2 * x),
    "conjugate": lambda x: torch.complex(x, 2 * x).t().conj(),
    "0-d": lambda x: x[0, 0],
    "empty": lambda x: x[:0],
    "sparse": lambda x: torch.where(x > 2, x, 0).to_sparse(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norm_of_any_layout_equals_float64(layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(1000, 1200))
    exact = np.abs((x.to_dense() if x.is_sparse else x).resolve_conj().numpy().astype(np.complex128))
    assert close(l2_norm(x), float(np.linalg.norm(exact.ravel())), WITHIN)  # type: ignore[arg-type]


def two_steps(net: nn.Module, first: list[Tensor], second: list[Tensor]) -> NormsReading:
    """The reading of the second of two steps with these gradients; the weights move by −g."""
    parameters = list(net.parameters())
    norms = Norms(structure(net).layers, parameters)
    for step, grads in enumerate((first, second)):
        for p, g in zip(parameters, grads, strict=True):
            p.grad = g.clone()
        norms.before_update(step=step, cosines=True)
        norms.remember(step)
        with torch.no_grad():
            for p, g in zip(parameters, grads, strict=True):
                p.sub_(g)
        reading = norms.after_update().result()
    return reading


def check_cosines(reading: NormsReading, first: list[Tensor], second: list[Tensor], within: float) -> None:
    scaled = []
    for n, (g, h) in enumerate(zip(first, second, strict=True)):
        a, b = twin(g).ravel(), twin(h).ravel()
        scaled.append((a, b))
        assert abs(reading.cosines[n] - float((a / l2(a)) @ (b / l2(b)))) < within
    size_a, size_b = l2(np.array([l2(a) for a, _ in scaled])), l2(np.array([l2(b) for _, b in scaled]))
    exact = math.fsum(float((a / size_a) @ (b / size_b)) for a, b in scaled)
    assert reading.global_cosine is not None
    assert abs(reading.global_cosine - exact) < within


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [30, 300])
def test_cosines_equal_float64(width: int, dtype: torch.dtype) -> None:
    net = nn.Sequential(*[nn.Linear(width, width) for _ in range(3)]).to(dtype)
    first = [torch.randn(p.shape).to(dtype) for p in net.parameters()]
    second = [(0.3 * g.float() + torch.randn(g.shape)).to(dtype) for g in first]
    check_cosines(two_steps(net, first, second), first, second, WITHIN)


@pytest.mark.parametrize(
    "exponents", [(-320, -300), (-200, 0), (-160, 160), (151, 151), (300, -300), (250, 300)], ids=str
)
def test_cosines_of_float64_gradients_beyond_1e150(exponents: tuple[int, int]) -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(300, 300)).double()
    first = [torch.randn(p.shape, dtype=torch.float64) for p in net.parameters()]
    second = [g + torch.randn(g.shape, dtype=torch.float64) for g in first]
    first = [g * 10.0 ** exponents[0] for g in first]
    second = [g * 10.0 ** exponents[1] for g in second]
    check_cosines(two_steps(net, first, second), first, second, 1e-9)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("width", [20, 600])
def test_updates_of_half_precision_weights_equal_float64(width: int, dtype: torch.dtype) -> None:
    """A difference of bfloat16 numbers has more digits than bfloat16."""
    net = nn.Sequential(*[nn.Linear(width, width) for _ in range(3)]).to(dtype)
    before = [p.detach().clone() for p in net.parameters()]
    grads = [(3 * torch.randn(p.shape)).to(dtype) for p in before]
    for p, g in zip(net.parameters(), grads, strict=True):
        p.grad = g
    norms = Norms(structure(net).layers, list(net.parameters()))
    norms.before_update()
    with torch.no_grad():
        for p, g in zip(net.parameters(), grads, strict=True):
            p.sub_(g)
    found = norms.after_update().result().layers
    for row in range(3):
        delta = twin(net[row].weight) - twin(before[2 * row])  # type: ignore[arg-type]
        assert close(found.update_norm[row], l2(delta), WITHIN)
