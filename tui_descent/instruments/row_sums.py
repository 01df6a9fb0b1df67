"""L2 norms and dot products of the rows of a matrix, right to 1e-5 for rows of any length and dtype.

A float32 sum of 3·10⁷ squares is wrong by 1.6 %. Long rows are therefore summed in parts of `PART` numbers, and these
sums are added in float64. That takes 6 % longer than one sum in float32; a sum in float64 takes 25 times as long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from tui_descent.instruments.deferred import is_asynchronous
from tui_descent.instruments.float32_range import (
    PIECE,
    as_float64,
    correct_norms,
    pieces_of_rows,
    sum_dtype,
)

# A float32 sum of up to SHORT squares has a relative error below 3e-6.
SHORT, PART = 4096, 1024
# The products of this many numbers are computed at a time: they stay in the cache.
PRODUCTS = 1 << 16
# On a GPU, at most this many numbers are converted to float64 at a time.
FLOAT64_AT_A_TIME = 1 << 24
# Sums are computed in these dtypes. Other numbers, such as bfloat16, are converted to float32 first.
SUMMED = (torch.float32, torch.float64)


def real_view(tensor: Tensor) -> Tensor:
    """The tensor as real, dense numbers: complex numbers of shape (…) become (…, 2). Norms stay the same."""
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def one_row(tensor: Tensor) -> Tensor:
    """The tensor's numbers as a (1, n) matrix, in their order in memory. Thus a transposed tensor is not copied."""
    if tensor.dim() > 1 and not tensor.is_contiguous():
        tensor = tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
    return tensor.reshape(1, -1)


def host_norms(matrices: Iterable[Tensor]) -> list[float]:
    """The L2 norm of every row, matrix by matrix, correct for numbers of any size. Waits for the device."""
    norms: list[float] = []
    for matrix in matrices:
        if matrix.dtype in SUMMED:
            norms += correct_norms(_summed_norms(matrix).tolist(), matrix)
        elif matrix.numel() <= PIECE:
            norms += host_norms([matrix.float()])
        else:
            norms += _norms_by_pieces(matrix)
    return norms


def l2_norm(tensor: Tensor) -> Tensor | float:
    """The L2 norm of a whole tensor. On CUDA a float64 scalar on the device, otherwise a float."""
    if is_asynchronous(tensor.device):
        norm: Tensor = torch.linalg.vector_norm(
            tensor, dtype=torch.complex128 if tensor.is_complex() else torch.float64
        )
        return norm
    return host_norms([one_row(real_view(tensor))])[0]


def difference_norms(x: Tensor, y: Tensor) -> list[float]:
    """The L2 norm of x − y for every row of two (k, n) matrices, computed in float32. Waits for the device."""
    return _norms_by_pieces(x, y)


def device_difference_norms(x: Tensor, y: Tensor) -> Tensor:
    """The same for an asynchronous device, (k,) in float64. Does not wait."""
    parts = zip(*(torch.split(m, FLOAT64_AT_A_TIME, dim=1) for m in (x, y)), strict=True)
    return torch.stack([(a.double() - b.double()).square().sum(dim=1) for a, b in parts]).sum(dim=0).sqrt()


def row_products(x: Tensor, y: Tensor, memory: Tensor | None = None) -> Tensor:
    """Σ x·y of each pair of rows of two (k, n) matrices of one dtype, (k,) in float64 (in float32 on MPS).

    On a CPU, the products are written to `memory`, which has the shape of `products_shape` and the dtype of
    `product_dtype`.
    """
    if is_asynchronous(x.device):
        pairs = zip(*(torch.split(m, FLOAT64_AT_A_TIME, dim=1) for m in (x, y)), strict=True)
        return torch.stack([(a.double() * b.double()).sum(dim=1) for a, b in pairs]).sum(dim=0)
    dtype, wide = product_dtype(x), torch.float32 if x.device.type == "mps" else torch.float64
    if memory is None:
        memory = x.new_empty(products_shape(x), dtype=dtype)
    if dtype == x.dtype and memory.shape == x.shape:
        # torch adds pairwise. Over this many products the error is below 1e-6 of Σ|x·y|.
        return torch.mul(x, y, out=memory).sum(dim=1)
    sums = x.new_zeros(len(x), dtype=wide)
    for rows, columns in pieces_of_rows(range(len(x)), x.shape[1], PRODUCTS):
        a, b = (m[rows, columns].to(dtype) for m in (x, y))
        sums[rows] += torch.mul(a, b, out=memory[0, : a.numel()].view(a.shape)).sum(dim=1)
    return sums


def products_shape(x: Tensor) -> tuple[int, int]:
    """The shape of the memory that `row_products` needs for x (k, n): the shape of x itself if its rows are short."""
    rows, length = x.shape
    short = length <= PRODUCTS and x.dtype in SUMMED
    return (rows, length) if short else (1, PRODUCTS)


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which products of the tensor's numbers are computed."""
    return tensor.dtype if tensor.dtype in SUMMED else torch.float32


def exact_cosines(x: Tensor, y: Tensor, rows: list[int], x_norms: list[float], y_norms: list[float]) -> list[float]:
    """Σ (x/‖x‖)·(y/‖y‖) for some rows, in float64: right for numbers of any size. Waits for the device."""
    cosines = [0.0] * len(rows)
    for part, columns in pieces_of_rows(rows, x.shape[1]):
        a, b = as_float64(x, rows[part], columns), as_float64(y, rows[part], columns)
        a /= a.new_tensor(x_norms[part])[:, None]
        b /= b.new_tensor(y_norms[part])[:, None]
        for n, cosine in zip(range(part.start, part.stop), (a * b).sum(dim=1).tolist(), strict=True):
            cosines[n] += cosine
    return cosines


def _summed_norms(matrix: Tensor) -> Tensor:
    """The L2 norm of every row, (k,), if all squares are in the range of the sum."""
    rows, length = matrix.shape
    if length <= SHORT or matrix.dtype == torch.float64 or is_asynchronous(matrix.device):
        norms: Tensor = torch.linalg.vector_norm(matrix, dim=1, dtype=sum_dtype(matrix))
        return norms
    whole = length - length % PART
    parts = torch.linalg.vector_norm(matrix[:, :whole].reshape(rows, -1, PART), dim=2)
    if whole < length:
        parts = torch.cat([parts, torch.linalg.vector_norm(matrix[:, whole:], dim=1, keepdim=True)], dim=1)
    if parts.device.type == "mps":  # it has no float64
        parts = parts.cpu()
    sums: Tensor = torch.linalg.vector_norm(parts, dim=1, dtype=torch.float64)
    return sums


def _norms_by_pieces(x: Tensor, y: Tensor | None = None) -> list[float]:
    """The norms of the rows of x, or of x − y, converted to float32 piece by piece."""
    rows = range(len(x))
    norms = [0.0] * len(x)
    for part, columns in pieces_of_rows(rows, x.shape[1]):
        piece = x[part, columns].float()
        if y is not None:
            piece = piece - y[part, columns].float()
        for n, norm in zip(rows[part], host_norms([piece]), strict=True):
            norms[n] = math.hypot(norms[n], norm)
    return norms
