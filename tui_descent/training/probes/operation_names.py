"""Plain names of torch's operations, and the inputs at which the operations or their derivatives are not finite."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_PLAIN = {
    "addmm": "matmul",
    "mm": "matmul",
    "bmm": "matmul",
    "baddbmm": "matmul",
    "mv": "matmul",
    "linear": "matmul",
    "scaled_dot_product_flash_attention_for_cpu": "attention",
    "scaled_dot_product_flash_attention": "attention",
    "scaled_dot_product_efficient_attention": "attention",
    "scaled_dot_product_cudnn_attention": "attention",
    "scaled_dot_product_fused_attention_overrideable": "attention",
    "safe_softmax": "softmax",
    "softmax_data": "softmax",
    "log_softmax_data": "log_softmax",
    "linalg_vector_norm": "norm",
    "cdist": "distance",
}
# Operations that divide by a sum over a row: a row of only -inf gives 0/0.
SOFTMAX = frozenset({"softmax", "log_softmax", "attention", "logsumexp"})
# For operations whose result can be NaN or infinite although all inputs are finite: when this happens.
_FORWARD = {
    ("sqrt", "nan"): "sqrt of a negative number",
    ("rsqrt", "nan"): "rsqrt of a negative number",
    ("rsqrt", "inf"): "rsqrt of 0",
    ("reciprocal", "inf"): "division by 0",
    ("log1p", "nan"): "log1p below -1",
    ("log1p", "inf"): "log1p of -1",
    ("pow", "nan"): "a negative number to a fractional power",
    ("acos", "nan"): "acos outside -1…1",
    ("asin", "nan"): "asin outside -1…1",
    ("acosh", "nan"): "acosh below 1",
    ("atanh", "nan"): "atanh outside -1…1",
    ("atanh", "inf"): "atanh at ±1",
    ("std", "nan"): "std of a single number",
    ("var", "nan"): "variance of a single number",
    ("var_mean", "nan"): "variance of a single number",
    ("std_mean", "nan"): "std of a single number",
}
# Inputs at which the value of an operation is finite, but its derivative is infinite or 0/0. Tried on torch 2.13:
# norms, `std`, `atan2`, distances and `prod` have finite derivatives everywhere.
_SINGULAR = {
    "sqrt": "sqrt at 0",
    "pow": "a power at 0",
    "acos": "acos at ±1",
    "asin": "asin at ±1",
    "acosh": "acosh at 1",
    "hypot": "hypot at (0, 0)",
    "xlogy": "xlogy at 0",
    "special_xlog1_py": "xlog1py at -1",
    "special_entr": "entr at 0",
    "linalg_eigh": "equal eigenvalues",
    "linalg_eig": "equal eigenvalues",
    "linalg_svd": "equal singular values",
}
# Operations whose value and derivative are non-finite at the same inputs. The loss stays finite only if the value is
# discarded, as in `torch.where(x > 0, x.log(), 0)`.
_INFINITE = {
    "log": "log at 0",
    "log2": "log at 0",
    "log10": "log at 0",
    "log1p": "log1p at -1",
    "rsqrt": "rsqrt at 0",
    "reciprocal": "division by 0",
    "div": "division by 0",
    "exp": "exp of a large number",
    "atanh": "atanh at ±1",
    "tan": "tan at a pole",
    "logit": "logit at 0 or 1",
    "erfinv": "erfinv at ±1",
    "logsumexp": "logsumexp of only -inf",
    "softmax": "softmax of only -inf",
    "log_softmax": "softmax of only -inf",
    "attention": "attention with every key masked",
}
# Operations that can discard such a value.
_DISCARDS = frozenset(
    {"where", "masked_fill", "nan_to_num", "clamp", "clamp_min", "clamp_max", "maximum", "minimum", "index", "masked"}
    | {"max", "min", "amax", "amin", "topk", "sort", "masked_select", "masked_scatter", "nansum", "index_put"}
)
# Operations whose value is finite if their inputs are finite and not huge, for any inputs.
_FINITE = frozenset(
    {"matmul", "t", "add", "sub", "mul", "neg", "mean", "sum", "abs", "batch_norm", "layer_norm", "group_norm"}
    | {"elu", "gelu", "leaky_relu", "relu", "silu", "hardswish", "hardtanh", "mish", "prelu_kernel", "softplus"}
    | {"tanh", "sigmoid", "convolution", "max_pool2_dwith_indices", "avg_pool2_d", "max_pool", "embedding"}
    | {"mkldnn_rnn_layer", "mkldnn_convolution", "mse_loss", "smooth_l1_loss", "huber_loss", "nll_loss", "log_softmax"}
    | {"binary_cross_entropy", "binary_cross_entropy_with_logits", "clone", "expand", "permute", "reshape_alias"}
    | {"select", "squeeze", "transpose", "unsafe_view", "unsqueeze", "view", "stack", "cat", "unbind", "unsafe_split"}
    | {"slice", "split", "alias", "clamp"}
)


def operation_of(func: Any) -> str:
    """The plain name of an ATen operation: `aten._softmax.default` is "softmax"."""
    name = str(getattr(func, "__name__", func)).partition(".")[0]
    return _plain(name)


def node_operation(node: Any) -> str:
    """The plain name of an autograd node's operation: `SqrtBackward0` is "sqrt". A user's function keeps its name."""
    name = re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])
    if _is_own(node):
        return name
    return _plain(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())


def _plain(name: str) -> str:
    name = name.strip("_").removeprefix("native_").removeprefix("foreach_").removesuffix("_forward")
    return _PLAIN.get(name, name)


def forward_words(operation: str, kind: str, args: tuple[Any, ...], result: Tensor) -> str:
    """What happened in an operation that made a non-finite result from finite inputs; `kind` is the result's worst
    value.
    """
    first = args[0] if args else None
    if isinstance(first, Tensor) and not first.numel():
        return f"{operation} of an empty tensor"
    if operation in SOFTMAX and kind == "nan":
        return f"{operation} of a row of only -inf"
    if operation in ("log", "log2", "log10"):
        return f"{operation} of a negative number" if kind == "nan" else f"{operation} of 0"
    if operation == "div" and len(args) > 1 and _has_zero(args[1]):
        return "0/0" if kind == "nan" else "division by 0"
    if operation == "pow" and kind != "nan" and isinstance(first, Tensor) and _has_zero(first):
        return "a negative power of 0"
    if operation.startswith("nll_loss") and kind == "nan":
        return f"{operation} without any target"
    words = _FORWARD.get((operation, kind.lstrip("-")))
    if words is not None:
        return words
    if kind == "nan":
        return f"{operation} gives nan"
    dtype = str(result.dtype).removeprefix("torch.")
    return f"{operation} overflows{f' in {dtype}' if result.dtype in (torch.float16, torch.bfloat16) else ''}"


def backward_words(operation: str, kind: str) -> str:
    """What happened in the backward pass of an operation that made a finite gradient non-finite."""
    return _SINGULAR.get(operation) or _INFINITE.get(operation) or f"the gradient of {operation} is {kind}"


def possible_causes(nodes: Iterable[Any], *, loss_is_finite: bool) -> dict[str, str]:
    """The operations of a graph that can have made a non-finite value, with the inputs at which they do so: `{"sqrt":
    "sqrt at 0"}`. If the loss is finite, these are the operations whose value is finite while their derivative is not.
    If an operation such as `where` can have discarded a value, operations whose value is not finite are included too.
    """
    nodes = [node for node in nodes if not _is_harmless_power(node)]
    names = {node_operation(node) for node in nodes}
    own = {node_operation(node): f"the backward pass of {node_operation(node)}" for node in nodes if _is_own(node)}
    if not loss_is_finite:
        found = {name: words.replace(" at ", " of ") for name, words in _INFINITE.items() if name not in SOFTMAX}
        found |= {name: f"{name} of a negative number" for name in ("sqrt", "pow")}
        return {name: words for name, words in found.items() if name in names}
    known = _SINGULAR | _INFINITE if names & _DISCARDS else _SINGULAR
    return own | {name: words for name, words in known.items() if name in names}


def all_are_finite(nodes: Iterable[Any]) -> bool:
    """Whether none of the operations of a graph can give NaN if its inputs are finite and not huge."""
    return all(node_operation(node) in _FINITE or _is_harmless_power(node) for node in nodes)


def divides_by_data(node: Any) -> bool:
    """Whether a node divides by something that has no gradient: a number, such as the size of the batch, or data, such
    as the sum of a mask.
    """
    return node_operation(node) == "div" and len(node.next_functions) > 1 and node.next_functions[1][0] is None


def _is_own(node: Any) -> bool:
    """Whether a node belongs to a `torch.autograd.Function` of the user."""
    return isinstance(node, torch.autograd.function.BackwardCFunction)


def _is_harmless_power(node: Any) -> bool:
    """Whether a node is a power whose derivative is finite at 0, such as a square."""
    exponent = getattr(node, "_saved_exponent", None) if node.name().startswith("PowBackward0") else None
    return isinstance(exponent, int | float) and exponent >= 1


def _has_zero(value: object) -> bool:
    if isinstance(value, Tensor):
        return bool((value.detach() == 0).any())
    return value == 0
