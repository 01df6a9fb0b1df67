"""Layer names for the screen; finds a layer's block, and the selected layer after layers have changed."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from tui_descent.dashboard.text.safe_text import safe, shorten
from tui_descent.protocol.events import Layer

# Matches the places in a module path just before a number.
BEFORE_NUMBER = re.compile(r"(?<=\.)(?=\d)")


@lru_cache(maxsize=32)
def layer_labels(layers: tuple[Layer, ...], width: int) -> tuple[str, ...]:
    """The layers' module paths in at most `width` cells each.

    Parts that all names share are removed first: `blocks.12.linear` becomes `blocks.12` if every block has one
    `linear`, and `blocks.12.norm` becomes `12.norm` if names are too long. Of names that are still too long the middle
    parts are left out: `12.attention.qkv` becomes `12…qkv`, unless another layer would have the same label. The rest
    are cut in the middle.
    """
    names = [safe(layer.name, 200) for layer in layers]
    nested = [n for n, name in enumerate(names) if name.count(".") >= 2]
    linears = [n for n in nested if not is_norm(layers[n])]
    if len({names[n].rpartition(".")[2] for n in linears}) == 1:
        names = _renamed(names, {n: names[n].rpartition(".")[0] for n in linears})
    nested = [n for n, name in enumerate(names) if name.count(".") >= 2]
    prefixes = {BEFORE_NUMBER.split(names[n], maxsplit=1)[0] for n in nested}
    if len(prefixes) == 1 and any(len(names[n]) > width for n in nested):
        (prefix,) = prefixes
        names = _renamed(names, {n: names[n].removeprefix(prefix) for n in nested if prefix.endswith(".")})
    ends = {n: f"{name.partition('.')[0]}…{name.rpartition('.')[2]}" for n, name in enumerate(names)}
    often = Counter(ends.values())
    for n, end in ends.items():
        if names[n].count(".") >= 2 and len(names[n]) > width >= len(end) and often[end] == 1:
            names[n] = end
    return tuple(shorten(name, width) for name in names)


def _renamed(names: list[str], shorter: dict[int, str]) -> list[str]:
    """Replace names by the shorter ones; if two names would become equal, return the names unchanged."""
    renamed = [shorter.get(n, name) for n, name in enumerate(names)]
    return renamed if len(set(renamed)) == len(set(names)) else names


def is_norm(layer: Layer) -> bool:
    """Whether the layer is a normalisation layer, such as LayerNorm or BatchNorm2d."""
    return "Norm" in layer.kind


def find_again(selected: int | None, old: tuple[Layer, ...], new: tuple[Layer, ...]) -> int | None:
    """The selected layer's index after the layers have changed.

    If the layer no longer exists, the index of another layer of its block, or None.
    """
    if selected is None or selected >= len(old):
        return None
    was = old[selected]
    same_block = (n for n, layer in enumerate(new) if was.block is not None and layer.block == was.block)
    return next((n for n, layer in enumerate(new) if layer.name == was.name), next(same_block, None))


def block_of(layer: Layer) -> str | None:
    """The name of the layer's block, as in a knob's target: `blocks.3`. None if the layer is in no block."""
    return ".".join(layer.name.split(".")[:2]) if layer.block is not None else None
