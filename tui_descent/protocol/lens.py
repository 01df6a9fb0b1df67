"""What the activation lens needs to know of one layer's activation: its function and a histogram of its inputs."""

from __future__ import annotations

import msgspec

BINS = 64


class ActivationPart(msgspec.Struct, frozen=True, kw_only=True):
    """An activation function and its share: an activation is the sum of share · f(z) over its parts.

    There is one part, or two while a change to another activation is blended in. `parameters` are its settings, such as
    the slope of leaky_relu.
    """

    name: str
    parameters: tuple[float, ...] = ()
    share: float = 1.0


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """How often a layer's pre-activations z fall into each of `BINS` equal bins from -`limit` to `limit`.

    `counts` are the bytes of an `array('I')`. Of many values only every n-th is counted; `values` is the number of all
    of them.
    """

    limit: float
    counts: bytes
    below: int
    above: int
    not_finite: int
    values: int
