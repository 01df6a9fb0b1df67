"""Layers' names as the screen writes them, and the module path that a selected layer's knobs act on."""

from __future__ import annotations

from functools import lru_cache

from tui_descent.dashboard.plain import middle, plain
from tui_descent.protocol.events import Layer


@lru_cache(maxsize=32)
def labels(layers: tuple[Layer, ...], width: int) -> tuple[str, ...]:
    """Module paths, without a last word that all deeper ones share, then shortened in the middle."""
    names = [plain(layer.name, 200) for layer in layers]
    deep = {name.rpartition(".")[2] for name in names if name.count(".") >= 2}
    if len(deep) == 1:
        cut = [name.rpartition(".")[0] if name.count(".") >= 2 else name for name in names]
        if len(set(cut)) == len(cut):
            names = cut
    return tuple(middle(name, width) for name in names)


def target_of(layer: Layer) -> str | None:
    """The block a layer lies in, as knobs name it: `blocks.3`; None outside any."""
    return ".".join(layer.name.split(".")[:2]) if layer.block is not None else None
