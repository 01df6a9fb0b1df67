"""Make the small pictures of the gallery: the loss of every preset's demonstration, as text.

python docs/stills.py            (rewrites presets/stills/*.txt; takes about a minute)
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

from tui_descent import headless, paths
from tui_descent.dashboard.charts.braille import ascii_chart
from tui_descent.protocol.events import AnyEvent, StepsCompleted
from tui_descent.protocol.launch import Launch
from tui_descent.scenario import presets
from tui_descent.scenario.key_words import how_to_press
from tui_descent.scenario.toml import to_table

WIDTH, HEIGHT = 36, 9  # fits beside the list at 80 columns
GUTTER = 9  # of `ascii_chart`, with the axis
LABEL, TAIL = 6, 8  # columns for the first loss, and for the last one
STILLS = Path(__file__).resolve().parent.parent / "presets" / "stills"


def still(name: str) -> str:
    """The loss curve of a demonstration, with the first and the last loss. Below it ▲ and the keys of each change."""
    _, scenario = presets.find(name)
    losses: list[tuple[int, float]] = []

    def listen(event: AnyEvent) -> None:
        if isinstance(event, StepsCompleted):
            losses.extend(enumerate(event.losses, event.first))

    run, folder = paths.new_run(name)
    launch = Launch(
        run=run,
        name=name,
        folder=str(folder),
        socket=None,
        scenario=to_table(scenario),
        demo=True,
        watch_budget=0.0,
    )
    launch.write()
    headless.run(launch, listen=listen)
    last = losses[-1][0]
    columns = WIDTH - LABEL - 1 - TAIL
    title, *rows, _ = ascii_chart(losses, columns + GUTTER, HEIGHT).splitlines()
    curve = [row[GUTTER:].ljust(columns) for row in rows]
    ends = losses[-max(1, len(losses) // columns) :]
    labelled = _with_ends(curve, losses[0][1], math.fsum(loss for _, loss in ends) / len(ends))
    marks = ""
    for turn in (entry for entry in scenario.plan if entry.turn and entry.at <= last):
        at = round(turn.at / max(1, last) * (columns - 1))
        marks = f"{marks.ljust(at)}▲{_key(turn.turn)}"
    right = f"{last + 1:,} steps"
    foot = f"0{right:>{columns - 1}}"
    below = [" " * (LABEL + 1) + row for row in ([marks] if marks else []) + [foot]]
    return (
        "\n".join([title.replace("logarithmic", "log scale").replace("linear", "linear scale"), *labelled, *below])
        + "\n"
    )


def _with_ends(curve: list[str], first: float, last: float) -> list[str]:
    """Write the first loss to the left of the curve, and the last one to its right."""
    begins = next(n for n, row in enumerate(curve) if row[0] != " ")
    at = max(len(row.rstrip()) for row in curve) - 1
    rows = [n for n, row in enumerate(curve) if row[at] != " "]
    ends = rows[len(rows) // 2]
    return [
        f"{_short(first, 3) if n == begins else '':>{LABEL}}│{row}{f' {_short(last, 2)}' if n == ends else ''}".rstrip()
        for n, row in enumerate(curve)
    ]


def _short(value: float, digits: int) -> str:
    return f"{value:.{digits}g}".replace("e+0", "e").replace("e+", "e")


def _key(turn: str) -> str:
    """The key of an intervention: `residual=on` is `r`."""
    found = re.search(r"press (\S+?),?(?= |$)", how_to_press(turn))
    return found.group(1) if found else ""


if __name__ == "__main__":
    STILLS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or presets.names():
        (STILLS / f"{name}.txt").write_text(still(name), encoding="utf-8")
