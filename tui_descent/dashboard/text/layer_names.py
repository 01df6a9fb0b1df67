"""Layers' names as the screen writes them, and the module path that a selected layer's knobs act on."""

from __future__ import annotations

import re
from functools import lru_cache

from tui_descent.dashboard.text.safe_text import middle, plain
from tui_descent.protocol.events import Layer

# Where a path's first number begins.
NUMBERED = re.compile(r"(?<=\.)(?=\d)")


@lru_cache(maxsize=32)
def labels(layers: tuple[Layer, ...], width: int) -> tuple[str, ...]:
    """Module paths, without a last word that all deeper ones but norms share, then shortened.

    `blocks.12.linear` is `blocks.12`, and `blocks.12.norm` beside it `12.norm` where there is no room for more: which
    block it is tells more than that it is one.
    """
    names = [plain(layer.name, 200) for layer in layers]
    matrices = [n for n, layer in enumerate(layers) if names[n].count(".") >= 2 and not is_norm(layer)]
    if len({names[n].rpartition(".")[2] for n in matrices}) == 1:
        _cut(names, {n: names[n].rpartition(".")[0] for n in matrices})
    deep = [n for n, name in enumerate(names) if name.count(".") >= 2]
    if len(heads := {NUMBERED.split(names[n], maxsplit=1)[0] for n in deep}) == 1 and any(
        len(names[n]) > width for n in deep
    ):
        head = heads.pop()
        _cut(names, {n: names[n].removeprefix(head) for n in deep if head.endswith(".")})
    return tuple(_shortened(name, width) for name in names)


def _shortened(name: str, width: int) -> str:
    """The longest words of the path lose their ends, down to three letters; then the middle goes."""
    words = name.split(".")
    while len(".".join(words)) > width:
        n = max(range(len(words)), key=lambda n: (not words[n].isdigit(), len(words[n])))
        if len(words) == 1 or words[n].isdigit() or len(words[n]) <= 3:
            return middle(".".join(words), width)
        words[n] = words[n][:-1]
    return ".".join(words)


def _cut(names: list[str], shorter: dict[int, str]) -> None:
    """Put the shorter names in, where all can still be told apart."""
    cut = [shorter.get(n, name) for n, name in enumerate(names)]
    if len(set(cut)) == len(set(names)):
        names[:] = cut


def is_norm(layer: Layer) -> bool:
    """Whether it normalises, as LayerNorm and BatchNorm2d do, and has no matrix."""
    return "Norm" in layer.kind


def moved(selected: int | None, old: tuple[Layer, ...], new: tuple[Layer, ...]) -> int | None:
    """Where a selected layer stands now that the net has others; for one that is gone another of its block, if any."""
    if selected is None or selected >= len(old):
        return None
    was = old[selected]
    alike = (n for n, layer in enumerate(new) if layer.block == was.block is not None)
    return next((n for n, layer in enumerate(new) if layer.name == was.name), next(alike, None))


def target_of(layer: Layer) -> str | None:
    """The block a layer lies in, as knobs name it: `blocks.3`; None outside any."""
    return ".".join(layer.name.split(".")[:2]) if layer.block is not None else None
