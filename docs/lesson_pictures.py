"""Make the pictures of docs/lessons.md: run each preset in a real terminal, and draw the screen at a given step.

python docs/lesson_pictures.py [NAME …]            (a minute or two for all; needs what docs/pictures.py needs)
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from pictures import ROOT, running, save, wait_for_step

COLUMNS, ROWS = 100, 30


class Shot(NamedTuple):
    """What to start, which keys to type at step `press_at`, and the step at which the picture is taken."""

    arguments: tuple[str, ...]
    save_at: int
    keys: tuple[str, ...] = ()
    press_at: int = 1


SHOTS = {
    "first-descent": Shot(("first-descent", "--pace", "1"), 4),
    "healthy": Shot(("healthy", "--at", "250:activation=sigmoid", "--pace", "60"), 400),
    "rate-too-small": Shot(("rate-too-small", "--at", "100:lr=*1000", "--pace", "60"), 250),
    "rate-at-the-limit": Shot(("rate-at-the-limit", "--at", "12:lr=0.24", "--pace", "8"), 40),
    "narrow-valley": Shot(("narrow-valley", "--at", "200:optimizer=momentum"), 280),
    "cross-entropy": Shot(("cross-entropy",), 100, ("8",)),
    "chain-rule": Shot(("chain-rule",), 40, ("4",)),
    "careful-init": Shot(("careful-init", "--at", "100:init=he"), 250),
    "layer-norm": Shot(("layer-norm", "--at", "100:norm=layer,where=mid,way=instant"), 250),
    "hundred-layers": Shot(
        ("hundred-layers", "--at", "40:residual=on", "--at", "80:norm=layer,where=pre,way=instant"), 150
    ),
    "activations": Shot(("activations",), 100, ("9",)),
    "dead-relu": Shot(("dead-relu", "--at", "100:activation=leaky_relu"), 180),
    "saddle": Shot(("saddle", "--at", "300:lr=*10", "--pace", "80"), 360),
    "saddles-not-minima": Shot(("saddles-not-minima",), 560, ("8",)),
    "transformer": Shot(("transformer", "--at", "150:residual=on"), 480),
}


def take(name: str, shot: Shot) -> None:
    """Take one picture and save it as docs/lessons/NAME.png."""
    with running(shot.arguments, COLUMNS, ROWS) as terminal:
        wait_for_step(terminal, shot.press_at)
        for key in shot.keys:
            terminal.press(key)
            terminal.read(0.5)
        wait_for_step(terminal, shot.save_at)
        save(terminal, f"lessons/{name}")


def main(names: list[str]) -> int:
    """Make the pictures `names`, or all."""
    (ROOT / "docs" / "lessons").mkdir(exist_ok=True)
    for name in names or SHOTS:
        take(name, SHOTS[name])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
