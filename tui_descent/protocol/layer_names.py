"""Names of layers in sentences, and which layers can be compared in one."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tui_descent.protocol.events import Layer


def in_words(name: str) -> str:
    """The name of a layer in a sentence. `fc1` stays the same, but `4` becomes `layer 4`, because a number alone would
    look like a quantity.
    """
    return f"layer {name}" if name.replace(".", "").isdigit() else name


def pair_in_words(first: str, last: str) -> tuple[str, str]:
    """Two layers in one sentence, as short as possible without becoming equal: `blocks.0` and `blocks.9`."""
    short = shortened(first), shortened(last)
    one, other = short if short[0] != short[1] else (first, last)
    return in_words(one), in_words(other)


def of_one_net(layers: Sequence[Layer], nets: Sequence[str]) -> tuple[Layer, ...]:
    """The layers for a comparison of blocks. If there are several nets, only layers of the first net with several
    blocks keep their block.

    Gradients of different nets come from different losses, so they are not compared.
    """

    def blocks_of(net: str) -> set[int | None]:
        return {layer.block for layer in layers if layer.name.startswith(f"{net}.")} - {None}

    if len(nets) < 2:
        return tuple(layers)
    chosen = next((net for net in nets if len(blocks_of(net)) > 1), "")
    is_chosen = [layer.name.startswith(f"{chosen}.") for layer in layers]
    return tuple(
        layer if ours else msgspec.structs.replace(layer, block=None)
        for layer, ours in zip(layers, is_chosen, strict=True)
    )


def shortened(name: str) -> str:
    """A module path up to the first number that follows a word, which is usually the number of a block.

    `enc.layers.3.linear1` becomes `enc.layers.3`. Without such a number the whole path is kept.
    """
    parts = name.split(".")
    ends = (n for n in range(1, len(parts)) if parts[n].isdigit() and not parts[n - 1].isdigit())
    end = next(ends, None)
    return name if end is None else ".".join(parts[: end + 1])
