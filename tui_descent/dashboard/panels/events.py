"""The events panel: interventions, rejections, evaluations, diagnoses and notes, in the order they happened."""

from __future__ import annotations

import textwrap

from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.event_lines import event_lines
from tui_descent.dashboard.panels.panel import Panel, notice
from tui_descent.dashboard.text.clickable import key_word
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import with_commas
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.view import View

STEP_WIDTH = 8
SEGMENT_WIDTH = 4  # added after the first undo, when there are several segments


class EventsPanel(Panel):
    """Everything that happened in the run apart from its steps."""

    help_text = (
        "Interventions, findings, errors, held-out losses, marks and notes, each with its step; the newest is at the "
        "bottom. Several held-out losses in a row share one line: the first, the last, and their number (×). E leaves "
        "out held-out losses and plain notes. An undo or redo starts a new segment; its number is written before the "
        "step: 1·150."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._scrolled = 0

    def scroll_by(self, rows: int) -> None:
        """Scroll towards older events (positive) or newer ones."""
        self._scrolled = max(0, self._scrolled + rows)
        self.invalidate()

    def heading(self, view: View) -> tuple[str, str]:
        where = "segment·step" if view.history.segment else "step"
        shown = "all" if view.all_events else "changes, findings, errors"
        return f"Events  [dim]{where}  what[/dim]  {key_word(shown, 'E')}", "newest at the bottom"

    def depends_on(self, view: View) -> object:
        """The log, which grows much less often than the run makes steps."""
        history = view.history
        newest = history.log[-1] if history.log else None
        return history, len(history.log), newest, history.ended, history.segment, view.all_events

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        log, ended = view.history.log, view.history.ended
        with_segment = view.history.segment > 0
        lines = event_lines(log, with_segment=with_segment, all_events=view.all_events)
        if not lines and ended is None:
            return notice([("no events yet", colours.DIM)], width, height)
        step_width = STEP_WIDTH + (SEGMENT_WIDTH if with_segment else 0)
        rows: list[Strip] = []
        for line in lines[-height - self._scrolled :]:
            rows += _rows(line.step, line.sentence, line.style, step_width=step_width, width=width)
        if ended is not None:
            text = f"{ended.status}{': ' if ended.reason else ''}{safe(ended.reason)}"
            label = f"{view.history.segment}·{with_commas(ended.step)}" if with_segment else with_commas(ended.step)
            rows += _rows(label, text, colours.end_style(ended), step_width=step_width, width=width)
        self._scrolled = min(self._scrolled, max(0, len(rows) - height))
        return rows[len(rows) - height - self._scrolled :][:height] if len(rows) > height else rows


def _rows(step_label: str, text: str, style: Style, *, step_width: int, width: int) -> list[Strip]:
    lines = textwrap.wrap(text, max(10, width - step_width - 1)) or [""]
    first = Line().add(f"{step_label:>{step_width - 1}} ", colours.DIM).add(lines[0], style).to_strip(width)
    return [first, *(Line().add(" " * step_width).add(more, style).to_strip(width) for more in lines[1:])]
