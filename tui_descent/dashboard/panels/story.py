"""The scenario panel: the run's title, size, device and story."""

from __future__ import annotations

import textwrap
from typing import Any

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.panel import Panel, waiting_notice
from tui_descent.dashboard.text.device_info import detail_lines
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import plural
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.view import View


class StoryPanel(Panel):
    """Shown in the events view and on wide screens."""

    min_interval_s = 1.0

    def depends_on(self, view: View) -> object:
        """Only layers and device readings change during a run."""
        return (
            view.history.started,
            view.history.structure,
            view.history.device,
            view.connected,
            view.history.state.state,
        )

    def heading(self, view: View) -> tuple[str, str]:
        """The border has a fixed title.

        The scenario's own title is a row, because borders must not contain user text.
        """
        return "Scenario", ""

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """The story comes last, so it is the part that is cut if there is too little room."""
        started = view.history.started
        if started is None:
            return waiting_notice(view, width, height, "message from the trainer")
        scenario: dict[str, Any] = started.scenario or {}
        rows = [Line().add(safe(started.title, 200), colours.BRIGHT).to_strip(width)]
        facts = [
            f"{plural(view.history.parameters, 'parameter')} in {plural(len(view.layers), 'layer')}",
            f"{safe(started.device, 20)}, {plural(started.threads, 'thread')}"
            if started.threads > 1
            else safe(started.device, 20),
            " ".join(f"{safe(k, 20)} {safe(v, 20)}" for k, v in started.versions.items()),
        ]
        facts += detail_lines(view.history, width)
        rows += [Line().add(fact, colours.DIM).to_strip(width) for fact in facts if fact]
        rows.append(Line().to_strip(width))
        for paragraph in str(scenario.get("story", "")).split("\n\n"):
            lines = textwrap.wrap(safe(" ".join(paragraph.split()), 4000), max(10, width))
            rows += [Line().add(line).to_strip(width) for line in lines] + [Line().to_strip(width)]
        return rows[:height]
