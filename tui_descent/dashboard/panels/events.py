"""The event log: what was turned, refused, measured on held-out data, noted; in the order it happened."""

from __future__ import annotations

import textwrap

from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.panel import Panel, notice
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import count, short
from tui_descent.dashboard.text.safe_text import plain
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import (
    CommandRejected,
    Diagnosed,
    Evaluated,
    Foretold,
    KnobTurned,
    Marked,
    MetricLogged,
    Noted,
    NotFinite,
    RatesSwept,
    Rewound,
    StateChanged,
    StepsMissed,
)
from tui_descent.telemetry.facts import Fact

NUMBER = 8
SEGMENT = 4  # once an undo has begun another segment


class EventsPanel(Panel):
    """Everything that happened to the run besides its steps."""

    about = (
        "What happened besides steps, in the order it happened, newest at the bottom, each with its step: knobs "
        "turned, refusals, held-out loss, marks, notes. An undo or redo begins another segment, whose number then "
        "stands before the step: 1·150."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._back = 0

    def scroll_by(self, rows: int) -> None:
        """Back into the past, and forth again."""
        self._back = max(0, self._back + rows)
        self.forget()

    def heading(self, view: View) -> tuple[str, str]:
        """How many there are."""
        where = "segment·step" if view.history.segment else "step"
        return f"Events  [dim]{where}  what[/dim]", "newest at the bottom"

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """As many of the newest as fit, wrapped."""
        facts, ended = view.history.log, view.history.ended
        if not facts and ended is None:
            return notice([("nothing has happened yet", colours.DIM)], width, height)
        several = view.history.segment > 0
        number = NUMBER + (SEGMENT if several else 0)
        rows: list[Strip] = []
        for fact, place in list(zip(facts, _places(facts, several=several), strict=True))[-height - self._back :]:
            rows += _rows(place, *words(fact), number=number, width=width)
        if ended is not None:
            text = f"{ended.status}{': ' if ended.reason else ''}{plain(ended.reason)}"
            place = f"{view.history.segment}·{count(ended.step)}" if several else count(ended.step)
            rows += _rows(place, text, colours.end(ended), number=number, width=width)
        self._back = min(self._back, max(0, len(rows) - height))
        return rows[len(rows) - height - self._back :][:height] if len(rows) > height else rows


def words(fact: Fact) -> tuple[str, Style]:
    """A fact as a sentence and its colour."""
    match fact:
        case KnobTurned():
            return f"{turned(fact)}{_receipt(fact)}", colours.MARK
        case CommandRejected():
            what = f" {plain(fact.knob, 40)}" if fact.knob else ""  # not every command turns a knob
            return f"rejected{what}: {plain(fact.reason)}", colours.ORANGE
        case Evaluated():
            accuracy = f", accuracy {fact.accuracy:.1%}" if fact.accuracy is not None else ""
            return f"held-out loss {short(fact.loss)}{accuracy}", colours.DIM
        case Diagnosed():
            return f"{plain(fact.finding, 40)}: {plain(fact.sentence)}", colours.verdict(fact.finding)
        case Foretold():
            became = "as foretold" if fact.held else f"foretold was {plain(fact.predicted, 40)}"
            return f"after the turn: {plain(fact.happened, 40)}, {became}", colours.DIM
        case NotFinite():
            return plain(fact.text), colours.RED
        case RatesSwept():
            found = f"{short(fact.suggestion)} suggested" if fact.suggestion is not None else plain(fact.words)
            return f"range test: {found}", colours.MARK
        case Rewound():
            what, now, was = fact.words()
            return f"{plain(what)}; {now} ({was})", colours.MARK
        case Marked():
            return f"▲ {plain(fact.text)}", colours.MARK
        case StateChanged():
            return f"{fact.state}{': ' if fact.reason else ''}{plain(fact.reason)}", colours.state(fact.state)
        case StepsMissed():
            return f"{count(fact.count)} steps before this one were not seen", colours.ORANGE
        case MetricLogged():
            return f"{plain(fact.name, 40)} = {short(fact.value)}", colours.DIM
        case Noted():
            return plain(fact.text), {"info": colours.DIM, "warning": colours.ORANGE, "error": colours.RED}[fact.level]


def turned(event: KnobTurned) -> str:
    """`residual off → on, ramp`, with its target and its author where they are not the plain ones."""
    target = "" if event.target == "all" else f" of {plain(event.target, 40)}"
    way = f", {plain(event.way, 30)}" if event.way else ""
    by = {"plan": " (plan)", "send": " (sent)"}.get(event.source, "")
    many = f", {event.turns} turns at once" if event.turns > 1 else ""
    return f"{plain(event.knob, 40)}{target} {plain(event.old, 60)} → {plain(event.new, 60)}{way}{many}{by}"


def _receipt(event: KnobTurned) -> str:
    """`; lr 0.1 → 0.0026 (÷39)`, and how far outputs and loss moved at once on the probe batch, where that is known."""
    note = f"; {plain(event.note, 120)}" if event.note else ""
    if event.function_change is None:
        return note
    if event.function_change == 0:
        return f"{note}; function unchanged so far"
    moved = f"{note}; outputs moved by {short(event.function_change)} at most"
    if event.loss_before is None or event.loss_after is None:
        return moved
    return f"{moved}, loss {short(event.loss_before)} → {short(event.loss_after)}"


def _places(facts: list[Fact], *, several: bool) -> list[str]:
    """`150`, or `1·150` where there are several segments: what tells none happened in the one before it."""
    places, segment = [], 0
    for fact in facts:
        segment, step = getattr(fact, "segment", segment), getattr(fact, "step", None)
        before = f"{segment}·" if several else ""
        places.append("" if step is None else f"{before}{count(step)}")
    return places


def _rows(place: str, text: str, style: Style, *, number: int, width: int) -> list[Strip]:
    lines = textwrap.wrap(text, max(10, width - number - 1)) or [""]
    first = Line().put(f"{place:>{number - 1}} ", colours.DIM).put(lines[0], style).strip(width)
    return [first, *(Line().put(" " * number).put(more, style).strip(width) for more in lines[1:])]
