"""What this run is about: the scenario's own words, for screens with room to spare."""

from __future__ import annotations

import textwrap
from typing import Any

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.panel import Panel, empty
from tui_descent.dashboard.text.device_info import facts as device_facts
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import several
from tui_descent.dashboard.text.safe_text import plain
from tui_descent.dashboard.view import View


class StoryPanel(Panel):
    """Title, story and the run's plain facts."""

    pace_s = 1.0
    about = "The scenario's title and story, and the run's size, device, versions and the memory it takes."

    def cares(self, view: View) -> object:
        """All but the layers and the device's readings is told once."""
        return (
            view.history.started,
            view.history.structure,
            view.history.device,
            view.connected,
            view.history.state.state,
        )

    def heading(self, view: View) -> tuple[str, str]:
        """A fixed title; the scenario's own stands inside."""
        return "Scenario", ""

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """Facts first: the story may be cut."""
        started = view.history.started
        if started is None:
            return empty(view, width, height, "word of the trainer")
        scenario: dict[str, Any] = started.scenario or {}
        rows = [Line().put(plain(started.title, 200), colours.BRIGHT).strip(width)]
        facts = [
            f"{several(view.history.parameters, 'parameter')} in {several(len(view.layers), 'layer')}",
            f"{plain(started.device, 20)}, {several(started.threads, 'thread')}"
            if started.threads > 1
            else plain(started.device, 20),
            " ".join(f"{plain(k, 20)} {plain(v, 20)}" for k, v in started.versions.items()),
        ]
        facts += device_facts(view.history, width)
        rows += [Line().put(fact, colours.DIM).strip(width) for fact in facts if fact]
        rows.append(Line().strip(width))
        for paragraph in str(scenario.get("story", "")).split("\n\n"):
            lines = textwrap.wrap(plain(" ".join(paragraph.split()), 4000), max(10, width))
            rows += [Line().put(line).strip(width) for line in lines] + [Line().strip(width)]
        return rows[:height]
