"""The story panel: what the preset shows, what to press next, and whether a prediction was right."""

from __future__ import annotations

import textwrap
from typing import Any

from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.dialogs.end_card import MARKS
from tui_descent.dashboard.panels.panel import SLOW_S, Panel, waiting_notice
from tui_descent.dashboard.prediction import reveal
from tui_descent.dashboard.text.device_info import detail_lines
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import plural
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.text.story_keys import keep_together, parts
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import RunStarted
from tui_descent.scenario.spec import Scenario
from tui_descent.scenario.toml import ScenarioError, from_table
from tui_descent.telemetry.story import EndCard, end_card, next_hint

# One row of the panel: its text and style.
Row = tuple[str, Style]


class StoryPanel(Panel):
    """Shown in the story view, in the events view and on wide screens."""

    min_interval_s = SLOW_S
    help_text = (
        "The story of the preset. 'Next' follows what you have done. In this view (h) a change asks for your "
        "prediction first and shows after 50 steps whether it was right; h again switches that off. ↑ ↓ scroll."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._top = 0
        self._below = 0

    def scroll_by(self, rows: int) -> None:
        """Scroll towards the beginning (positive) or the end."""
        self._top = max(0, self._top - rows)
        self.invalidate()

    def depends_on(self, view: View) -> object:
        """The text, the hint and the prediction. Steps matter only if the hint depends on them."""
        history = view.history
        scenario = scenario_of(history.started)
        hint = next_hint(scenario, history) if scenario is not None else ""
        revealed = reveal(view.prediction, history) if view.prediction is not None else None
        device = (history.device, history.structure, view.connected, history.state.state)
        return history.started, view.scenario, hint, revealed, view.predict, device, self._top

    def heading(self, view: View) -> tuple[str, str]:
        """The border has a fixed title.

        The scenario's own title is a row, because borders must not contain user text.
        """
        if not _story_of(view):
            return "Run", ""
        return "Story [bold $primary]h[/]", f"{self._below} more rows ↓" if self._below else ""

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """The title and what to do next stay in place; the rest scrolls."""
        started = view.history.started
        scenario = scenario_of(started) if started is not None else view.scenario
        if started is None and scenario is None:
            return waiting_notice(view, width, height, "message from the trainer")
        inner = width - 2  # a blank at both sides
        title = started.title if started is not None else scenario.title if scenario is not None else ""
        fixed = _wrap(safe(title, 200), inner, colours.BRIGHT)
        if started is None:
            fixed += [*_wrap("The run has not started yet.", inner, colours.DIM), ("", colours.TEXT)]
        elif scenario is not None:
            fixed += self._next(view, scenario, inner)
        text = _story(_story_of(view), inner)
        if scenario is not None and view.history.state.state == "waiting":
            text = [*_at_end(end_card(scenario, view.history, view.name), inner), *text]
        if started is not None and not view.story_open:
            text += _facts(view, inner)
        room = max(0, height - len(fixed))
        self._top = min(self._top, max(0, len(text) - room))
        self._below = max(0, len(text) - room - self._top)
        rows = [*fixed, *text[self._top : self._top + room]]
        return [_line(row, style).to_strip(width) for row, style in rows[:height]]

    def _next(self, view: View, scenario: Scenario, width: int) -> list[Row]:
        rows: list[Row] = []
        if view.replay:  # nothing can be pressed
            return [("", colours.TEXT)]
        if hint := next_hint(scenario, view.history):
            rows += _wrap(f"Next: {hint}.", width, colours.KEY)
        text, right = ("", None) if view.prediction is None else reveal(view.prediction, view.history)
        if text:
            style = colours.TEXT if right is None else colours.GREEN if right else colours.ORANGE
            rows += _wrap(text, width, style)
        elif view.story_open and scenario.story:
            asks = "A change asks for your prediction first" if view.predict else "Predictions are off"
            rows += _wrap(f"{asks} (h: {'off' if view.predict else 'on'}).", width, colours.DIM)
        return [*rows, ("", colours.TEXT)]


def scenario_of(started: RunStarted | None) -> Scenario | None:
    """The scenario of a run; None for a user's script."""
    if started is None or started.scenario is None:
        return None
    if _newest.started is not started:
        _newest.started, _newest.scenario = started, read_scenario(started.scenario)
    return _newest.scenario


def read_scenario(table: dict[str, Any] | None) -> Scenario | None:
    """The scenario in a table; None if there is none, or one of another version."""
    if table is None:
        return None
    try:
        return from_table(table, source="run", shortened=True)
    except ScenarioError:
        return None


class _Newest:
    """The scenario that was read last: it is asked for at every frame."""

    started: RunStarted | None = None
    scenario: Scenario | None = None


_newest = _Newest()


def _story_of(view: View) -> str:
    started = view.history.started
    if started is not None:
        return str((started.scenario or {}).get("story", ""))
    return view.scenario.story if view.scenario is not None else ""


def _story(story: str, width: int) -> list[Row]:
    rows: list[Row] = []
    for paragraph in story.split("\n\n"):
        if paragraph.strip():
            text = keep_together(safe(" ".join(paragraph.split()), 4000))
            rows += [*_wrap(text, width, colours.TEXT), ("", colours.TEXT)]
    return rows


def _line(row: str, style: Style) -> Line:
    line = Line().add(" ")
    for part, is_key in parts(row):
        line.add(part, colours.KEY if is_key else style)
    return line


def _at_end(card: EndCard, width: int) -> list[Row]:
    """What the end card says: it is shown once, and is easily closed by a key that was meant for the run."""
    rows: list[Row] = [("What happened", colours.BRIGHT)]
    for sentence in card.happened:
        rows += _wrap(safe(sentence), width, colours.TEXT)
    if card.claims:
        rows += [("", colours.TEXT), ("What this preset claims", colours.BRIGHT)]
    for result in card.claims:
        sign, style = MARKS[result.outcome]
        rows += _wrap(f"{sign} {safe(result.claim)}: {safe(result.found)}", width, style, indent="  ")
    rows += [("", colours.TEXT), ("What to try next", colours.BRIGHT)]
    for sentence in card.next:
        rows += _wrap(safe(sentence), width, colours.TEXT)
    return [*rows, ("", colours.TEXT)]


def _facts(view: View, width: int) -> list[Row]:
    started = view.history.started
    assert started is not None
    facts = [
        f"{plural(view.history.parameters, 'parameter')} in {plural(len(view.layers), 'layer')}",
        f"{safe(started.device, 20)}, {plural(started.threads, 'thread')}"
        if started.threads > 1
        else safe(started.device, 20),
        " ".join(f"{safe(k, 20)} {safe(v, 20)}" for k, v in started.versions.items()),
    ]
    return [(fact, colours.DIM) for fact in [*facts, *detail_lines(view.history, width)] if fact]


def _wrap(text: str, width: int, style: Style, *, indent: str = "") -> list[Row]:
    return [(line, style) for line in textwrap.wrap(text, max(10, width), subsequent_indent=indent)]
