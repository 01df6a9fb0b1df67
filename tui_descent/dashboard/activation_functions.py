"""Activation functions and their derivatives in plain float64 arithmetic, without torch.

At a kink the derivative is the one that torch's autograd gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tui_descent.protocol.lens import ActivationPart

# f(z) and f′(z), for the parameters of an activation.
Function = Callable[..., tuple[float, float]]

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def _sigmoid_of(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else (e := math.exp(z)) / (1 + e)


def _log1p_exp(z: float) -> float:
    """ln(1 + eᶻ), without an overflow."""
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def _sigmoid(z: float) -> tuple[float, float]:
    return _sigmoid_of(z), _sigmoid_of(z) * _sigmoid_of(-z)


def _tanh(z: float) -> tuple[float, float]:
    return math.tanh(z), 1 - math.tanh(z) ** 2


def _relu(z: float, slope: float = 0.0) -> tuple[float, float]:
    return (z, 1.0) if z > 0 else (slope * z, slope)


def _gelu(z: float) -> tuple[float, float]:
    """z·Φ(z) with the exact Φ (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""
    cdf = math.erfc(-z / math.sqrt(2)) / 2
    return z * cdf, cdf + z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh(z: float) -> tuple[float, float]:
    """z·(1 + tanh u)/2 with u = √(2/π)·(z + 0.044715·z³), ibid."""
    slope = math.sqrt(2 / math.pi)
    tanh = math.tanh(slope * (z + 0.044715 * z**3))
    return z * (1 + tanh) / 2, (1 + tanh + z * (1 - tanh**2) * slope * (1 + 3 * 0.044715 * z * z)) / 2


def _silu(z: float) -> tuple[float, float]:
    s = _sigmoid_of(z)
    return z * s, s * (1 + z * (1 - s))


def _elu(z: float, alpha: float = 1.0) -> tuple[float, float]:
    return (z, 1.0) if z > 0 else (alpha * math.expm1(z), alpha * math.exp(z))


def _celu(z: float, alpha: float = 1.0) -> tuple[float, float]:
    return (z, 1.0) if z > 0 else (alpha * math.expm1(z / alpha), math.exp(z / alpha))


def _selu(z: float) -> tuple[float, float]:
    f, slope = _elu(z, _SELU_ALPHA)
    return _SELU_SCALE * f, _SELU_SCALE * slope


def _softplus(z: float, beta: float = 1.0, threshold: float = 20.0) -> tuple[float, float]:
    """ln(1 + e^(βz))/β; above the threshold torch returns z."""
    return (z, 1.0) if beta * z > threshold else (_log1p_exp(beta * z) / beta, _sigmoid_of(beta * z))


def _mish(z: float) -> tuple[float, float]:
    """z·tanh(ln(1 + eᶻ)) (Misra 2019, arXiv 1908.08681)."""
    tanh = math.tanh(_log1p_exp(z))
    return z * tanh, tanh + z * (1 - tanh**2) * _sigmoid_of(z)


def _relu6(z: float) -> tuple[float, float]:
    return min(max(z, 0.0), 6.0), float(0 < z < 6)


def _hardsigmoid(z: float) -> tuple[float, float]:
    return min(max(z / 6 + 0.5, 0.0), 1.0), 1 / 6 if -3 < z < 3 else 0.0


def _hardswish(z: float) -> tuple[float, float]:
    slope = 0.0 if z <= -3 else z / 3 + 0.5 if z < 3 else 1.0
    return z * min(max(z / 6 + 0.5, 0.0), 1.0), slope


def _softsign(z: float) -> tuple[float, float]:
    return z / (1 + abs(z)), 1 / (1 + abs(z)) ** 2


def _logsigmoid(z: float) -> tuple[float, float]:
    return -_log1p_exp(-z), _sigmoid_of(-z)


FUNCTIONS: dict[str, Function] = {
    "relu": _relu,
    "leaky_relu": _relu,
    "prelu": _relu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "elu": _elu,
    "softplus": _softplus,
    "identity": lambda z: (z, 1.0),
    "relu6": _relu6,
    "hardswish": _hardswish,
    "hardsigmoid": _hardsigmoid,
    "mish": _mish,
    "selu": _selu,
    "celu": _celu,
    "softsign": _softsign,
    "logsigmoid": _logsigmoid,
}


class ActivationFunction:
    """The sum of share · f(z) over the parts of an activation. `known` is False if there is no formula for a part."""

    def __init__(self, parts: Sequence[ActivationPart]) -> None:
        self.known = bool(parts) and all(part.name in FUNCTIONS for part in parts)
        self._parts = [(FUNCTIONS[part.name], part.parameters, part.share) for part in parts] if self.known else []

    def value(self, z: float) -> float:
        """f(z)."""
        return sum(share * function(z, *parameters)[0] for function, parameters, share in self._parts)

    def slope(self, z: float) -> float:
        """f′(z)."""
        return sum(share * function(z, *parameters)[1] for function, parameters, share in self._parts)

    def quotient(self, x: float, h: float) -> float:
        """(f(x + h) − f(x)) / h."""
        return (self.value(x + h) - self.value(x)) / h


def name_of(parts: Sequence[ActivationPart]) -> str:
    """The activation in words: `leaky_relu 0.01`, or `sigmoid → gelu 40 %` while gelu is blended in."""
    names = [" ".join([part.name, *(f"{p:g}" for p in part.parameters if part.name != "softplus")]) for part in parts]
    if len(names) < 2:
        return "".join(names)
    return f"{' + '.join(names[:-1])} → {names[-1]} {100 * parts[-1].share:.0f} %"
