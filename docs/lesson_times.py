"""Print the table of docs/teaching.md: how long the run of each lesson takes. `python docs/lesson_times.py`."""

from __future__ import annotations

import math
import re
from pathlib import Path

from tui_descent.scenario import presets

LESSONS = Path(__file__).resolve().parent / "lessons.md"


def lessons() -> list[tuple[str, str]]:
    """The title of each lesson and its preset, which the first command of the lesson starts."""
    text = LESSONS.read_text(encoding="utf-8")
    return re.findall(r"^## \d+\. (.+?)$.*?^tui-descent ([\w-]+)$", text, re.MULTILINE | re.DOTALL)


def table() -> str:
    """The table, in Markdown."""
    rows = ["| | lesson | preset | steps | steps per second | one run |", "|---|---|---|---|---|---|"]
    for number, (title, name) in enumerate(lessons(), 1):
        run = presets.find(name)[1].run
        assert not isinstance(run.pace, str), f"{name} has no pace"
        seconds = math.ceil(run.steps / run.pace)
        time = f"{seconds // 60}:{seconds % 60:02}"
        rows.append(f"| {number} | {title} | `{name}` | {run.steps:,} | {run.pace:g} | {time} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
