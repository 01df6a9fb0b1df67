"""Layers' names as the screen writes them, and the module path that a selected layer's knobs act on."""

from __future__ import annotations

import re
from functools import lru_cache

from tui_descent.dashboard.plain import middle, plain
from tui_descent.protocol.events import Layer

# Where a path's first number begins.
NUMBERED = re.compile(r"(?<=\.)(?=\d)")


@lru_cache(maxsize=32)
def labels(layers: tuple[Layer, ...], width: int) -> tuple[str, ...]:
    """Module paths, without a last word that all deeper ones share; too long, without what the blocks' begin with."""
    names = [plain(layer.name, 200) for layer in layers]
    deep = {name.rpartition(".")[2] for name in names if name.count(".") >= 2}
    if len(deep) == 1:
        cut = [name.rpartition(".")[0] if name.count(".") >= 2 else name for name in names]
        if len(set(cut)) == len(cut):
            names = cut
    if max(map(len, names), default=0) > width:
        names = _without_container(names, layers)
    return tuple(_shortened(name, width) for name in names)


def _without_container(names: list[str], layers: tuple[Layer, ...]) -> list[str]:
    """`blocks.3.attention.out` → `3.attention.out`: which block it is tells more than that it is one."""
    words = {
        NUMBERED.split(n, maxsplit=1)[0] for n, layer in zip(names, layers, strict=True) if layer.block is not None
    }
    common = words.pop() if len(words) == 1 else ""
    cut = [name.removeprefix(common) if common.endswith(".") else name for name in names]
    return cut if len(set(cut)) == len(cut) else names


def _shortened(name: str, width: int) -> str:
    """The longest words of the path lose their ends, down to three letters; then the middle goes."""
    words = name.split(".")
    while len(".".join(words)) > width:
        n = max(range(len(words)), key=lambda n: (not words[n].isdigit(), len(words[n])))
        if len(words) == 1 or words[n].isdigit() or len(words[n]) <= 3:
            return middle(".".join(words), width)
        words[n] = words[n][:-1]
    return ".".join(words)


def target_of(layer: Layer) -> str | None:
    """The block a layer lies in, as knobs name it: `blocks.3`; None outside any."""
    return ".".join(layer.name.split(".")[:2]) if layer.block is not None else None
