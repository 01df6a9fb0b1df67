"""Make the small pictures of the gallery: the loss of every preset's demonstration, as text.

python docs/stills.py            (rewrites presets/stills/*.txt; takes about a minute)
"""

from __future__ import annotations

import sys
from pathlib import Path

from tui_descent import headless, paths
from tui_descent.dashboard.charts.braille import ascii_chart
from tui_descent.protocol.events import AnyEvent, KnobTurned, StepsCompleted
from tui_descent.protocol.launch import Launch
from tui_descent.scenario import presets
from tui_descent.scenario.toml import to_table

WIDTH, HEIGHT = 33, 8  # fits beside the list at 80 columns
GUTTER, CUT = 9, 2  # of the axis labels, which are short, two columns are left out
STILLS = Path(__file__).resolve().parent.parent / "presets" / "stills"


def still(name: str) -> str:
    """The loss curve of a demonstration, with ▲ under the steps at which something was changed."""
    _, scenario = presets.find(name)
    losses: list[tuple[int, float]] = []
    changed: list[int] = []

    def listen(event: AnyEvent) -> None:
        if isinstance(event, StepsCompleted):
            losses.extend(enumerate(event.losses, event.first))
        elif isinstance(event, KnobTurned):
            changed.append(event.step)

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
    chart = ascii_chart(losses, WIDTH + CUT, HEIGHT).splitlines()
    marks = [" "] * (WIDTH + CUT - GUTTER)
    for step in changed:
        marks[round(step / max(1, losses[-1][0]) * (len(marks) - 1))] = "▲"
    if changed:
        chart.insert(-1, (" " * GUTTER + "".join(marks)).rstrip())
    title, *rows = chart
    return "\n".join([title, *(row[CUT:] for row in rows)]) + "\n"


if __name__ == "__main__":
    STILLS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or presets.names():
        (STILLS / f"{name}.txt").write_text(still(name), encoding="utf-8")
