"""The events panel: interventions, rejections, evaluations, diagnoses and notes, in the order they happened."""

from __future__ import annotations

import textwrap

from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.panel import Panel, notice
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import short, with_commas
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import (
    CommandRejected,
    Diagnosed,
    Evaluated,
    KnobTurned,
    Marked,
    MetricLogged,
    Noted,
    NotFinite,
    PredictionChecked,
    RangeTestCompleted,
    Rewound,
    StateChanged,
    StepsMissed,
)
from tui_descent.telemetry.log import LogEntry

STEP_WIDTH = 8
SEGMENT_WIDTH = 4  # added after the first undo, when there are several segments


class EventsPanel(Panel):
    """Everything that happened in the run apart from its steps."""

    help_text = (
        "Interventions, rejections, held-out loss, diagnoses, marks and notes, each with its step; the newest "
        "is at the bottom. An undo or redo starts a new segment; its number is written before the step: 1·150."
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
        return f"Events  [dim]{where}  what[/dim]", "newest at the bottom"

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        facts, ended = view.history.log, view.history.ended
        if not facts and ended is None:
            return notice([("no events yet", colours.DIM)], width, height)
        with_segment = view.history.segment > 0
        step_width = STEP_WIDTH + (SEGMENT_WIDTH if with_segment else 0)
        rows: list[Strip] = []
        labelled = list(zip(_step_labels(facts, with_segment=with_segment), facts, strict=True))
        for label, fact in labelled[-height - self._scrolled :]:
            rows += _rows(label, *describe(fact), step_width=step_width, width=width)
        if ended is not None:
            text = f"{ended.status}{': ' if ended.reason else ''}{safe(ended.reason)}"
            label = f"{view.history.segment}·{with_commas(ended.step)}" if with_segment else with_commas(ended.step)
            rows += _rows(label, text, colours.end_style(ended), step_width=step_width, width=width)
        self._scrolled = min(self._scrolled, max(0, len(rows) - height))
        return rows[len(rows) - height - self._scrolled :][:height] if len(rows) > height else rows


def describe(fact: LogEntry) -> tuple[str, Style]:
    """An event as a sentence, and the sentence's colour."""
    match fact:
        case KnobTurned():
            return f"{describe_change(fact)}{_measured_effect(fact)}", colours.MARK
        case CommandRejected():
            what = f" {safe(fact.knob, 40)}" if fact.knob else ""  # not every command changes a knob
            return f"rejected{what}: {safe(fact.reason)}", colours.ORANGE
        case Evaluated():
            accuracy = f", accuracy {fact.accuracy:.1%}" if fact.accuracy is not None else ""
            return f"held-out loss {short(fact.loss)}{accuracy}", colours.DIM
        case Diagnosed():
            return f"{safe(fact.finding, 40)}: {safe(fact.sentence)}", colours.diagnosis_style(fact.finding)
        case PredictionChecked():
            compared = "as predicted" if fact.held else f"predicted {safe(fact.predicted, 40)}"
            return f"result of the change: {safe(fact.happened, 40)}, {compared}", colours.DIM
        case NotFinite():
            return safe(fact.text), colours.RED
        case RangeTestCompleted():
            found = f"suggests {short(fact.suggestion)}" if fact.suggestion is not None else safe(fact.words)
            return f"range test: {found}", colours.MARK
        case Rewound():
            what, now, was = fact.words()
            return f"{safe(what)}; {now} ({was})", colours.MARK
        case Marked():
            return f"▲ {safe(fact.text)}", colours.MARK
        case StateChanged():
            return f"{fact.state}{': ' if fact.reason else ''}{safe(fact.reason)}", colours.state_style(fact.state)
        case StepsMissed():
            return f"{with_commas(fact.count)} steps before this one were missed", colours.ORANGE
        case MetricLogged():
            return f"{safe(fact.name, 40)} = {short(fact.value)}", colours.DIM
        case Noted():
            return safe(fact.text), {"info": colours.DIM, "warning": colours.ORANGE, "error": colours.RED}[fact.level]


def describe_change(event: KnobTurned) -> str:
    """`residual off → on, ramp`. The target is added unless it is the whole net, the source unless it is a key."""
    target = "" if event.target == "all" else f" of {safe(event.target, 40)}"
    way = f", {safe(event.way, 30)}" if event.way else ""
    source = {"plan": " (plan)", "send": " (sent)"}.get(event.source, "")
    merged = f", {event.turns} changes at once" if event.turns > 1 else ""
    return f"{safe(event.knob, 40)}{target} {safe(event.old, 60)} → {safe(event.new, 60)}{way}{merged}{source}"


def _measured_effect(event: KnobTurned) -> str:
    """The event's note, as in `; lr 0.1 → 0.0026 (÷39)`, then the immediate effect on the probe batch."""
    note = f"; {safe(event.note, 300)}" if event.note else ""
    if event.function_change is None:
        return note
    if event.function_change == 0:
        return f"{note}; outputs unchanged"
    effect = f"{note}; outputs changed by at most {short(event.function_change)}"
    if event.loss_before is None or event.loss_after is None:
        return effect
    return f"{effect}, loss {short(event.loss_before)} → {short(event.loss_after)}"


def _step_labels(facts: list[LogEntry], *, with_segment: bool) -> list[str]:
    """`150`, or `1·150` with a segment number.

    An event without a segment number belongs to the segment of the event before it.
    """
    labels, segment = [], 0
    for fact in facts:
        segment, step = getattr(fact, "segment", segment), getattr(fact, "step", None)
        before = f"{segment}·" if with_segment else ""
        labels.append("" if step is None else f"{before}{with_commas(step)}")
    return labels


def _rows(step_label: str, text: str, style: Style, *, step_width: int, width: int) -> list[Strip]:
    lines = textwrap.wrap(text, max(10, width - step_width - 1)) or [""]
    first = Line().add(f"{step_label:>{step_width - 1}} ", colours.DIM).add(lines[0], style).to_strip(width)
    return [first, *(Line().add(" " * step_width).add(more, style).to_strip(width) for more in lines[1:])]
