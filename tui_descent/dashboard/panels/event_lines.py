"""Turns the log into lines of text: several evaluations in a row, and repeated messages, become one line each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.style import Style

from tui_descent.dashboard import colours
from tui_descent.dashboard.text.numbers import byte_size, plural, short, with_commas
from tui_descent.dashboard.text.safe_text import safe
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
    SnapshotSaved,
    StateChanged,
    StepsMissed,
)
from tui_descent.protocol.layer_names import in_words
from tui_descent.scenario.knobs import shown_value
from tui_descent.telemetry.diagnosis import verdict
from tui_descent.telemetry.log import LogEntry

# A message that is among this many last lines, with no intervention since, is counted instead of repeated.
REPEATED_AMONG = 4


@dataclass(frozen=True, slots=True)
class EventLine:
    """One line: its step as text, the sentence, and the sentence's colour. `times` is how often it was reported."""

    step: str
    text: str
    style: Style
    times: int = 1

    @property
    def sentence(self) -> str:
        """The text, and how often it was reported."""
        return f"{self.text}, ×{self.times}" if self.times > 1 else self.text


def event_lines(log: list[LogEntry], *, with_segment: bool, all_events: bool = True) -> list[EventLine]:
    """The log's lines, oldest first. Without `all_events`, evaluations, metrics and plain notes are left out."""
    lines: list[EventLine] = []
    evaluated: list[Evaluated] = []  # the evaluations in the last line
    may_repeat = 0  # the number of last lines that may be repeated
    cause = ""  # the newest message about a non-finite number
    for label, fact in zip(_step_labels(log, with_segment=with_segment), log, strict=True):
        if not (all_events or is_important(fact)):
            continue
        text, style = describe(fact)
        if isinstance(fact, Evaluated):
            evaluated.append(fact)
            text = describe_evaluations(evaluated)
            if len(evaluated) > 1:
                lines.pop()
            else:
                may_repeat += 1
            lines.append(EventLine(label, text, style, len(evaluated)))
            continue
        evaluated = []
        if isinstance(fact, Diagnosed) and fact.finding == "non-finite" and cause:
            continue  # the line above says it
        if isinstance(fact, NotFinite):
            cause = fact.text
        elif isinstance(fact, StateChanged) and cause and fact.reason.startswith(cause):
            text = f"{fact.state}{safe(fact.reason.removeprefix(cause))}"  # the line above says the rest
        may_repeat = 0 if isinstance(fact, KnobTurned | Rewound) else min(may_repeat, REPEATED_AMONG)
        recent = range(len(lines) - may_repeat, len(lines))
        if (same := next((n for n in recent if (lines[n].step, lines[n].text) == (label, text)), None)) is not None:
            lines[same] = replace(lines[same], times=lines[same].times + 1)
            continue
        lines.append(EventLine(label, text, style))
        may_repeat += 1
    return lines


NOTE_STYLES = {
    "info": colours.DIM,
    "warning": colours.ORANGE,
    "error": colours.RED,
    "caption": colours.BRIGHT,
}


def is_important(fact: LogEntry) -> bool:
    """Whether it is more than a measurement: an intervention, a finding, an error, a mark or a state of the run."""
    if isinstance(fact, Noted):
        return fact.level != "info"
    return not isinstance(fact, Evaluated | MetricLogged | SnapshotSaved)


def describe_evaluations(evaluated: list[Evaluated]) -> str:
    """A series of evaluations in one sentence: the first and the last loss, and the last accuracy."""
    first, last = evaluated[0], evaluated[-1]
    before = f"{first.loss:.3g} → " if len(evaluated) > 1 else ""
    accuracy = f", accuracy {last.accuracy:.1%}" if last.accuracy is not None else ""
    return f"held-out loss {before}{last.loss:.3g}{accuracy}"


def describe(fact: LogEntry) -> tuple[str, Style]:
    """An event as a sentence, and the sentence's colour."""
    match fact:
        case KnobTurned():
            return f"{describe_change(fact)}{_measured_effect(fact)}", colours.MARK
        case CommandRejected():
            what = f" {safe(fact.knob, 40)}" if fact.knob else ""  # not every command changes a knob
            return f"rejected{what}: {safe(fact.reason)}", colours.ORANGE
        case Evaluated():
            return describe_evaluations([fact]), colours.DIM
        case Diagnosed():
            return f"{safe(verdict(fact), 40)}: {safe(fact.sentence)}", colours.diagnosis_style(fact.finding)
        case PredictionChecked():
            compared = ", as predicted" if fact.held else f" (predicted: {safe(fact.predicted, 40)})"
            still = "still " if fact.happened == fact.before else ""
            after = safe(fact.change, 40) or "the change"
            return f"after {after}: {still}{safe(fact.happened, 40)}{compared}", colours.DIM
        case NotFinite():
            return safe(fact.text), colours.RED
        case RangeTestCompleted():
            found = f"suggests {short(fact.suggestion)}" if fact.suggestion is not None else safe(fact.words)
            return f"range test: {found}", colours.MARK
        case Rewound():
            what, now, was = fact.words()
            return f"{safe(what)}; {now} ({was})", colours.MARK
        case SnapshotSaved():
            sizes = f"{byte_size(fact.bytes)}, all {byte_size(fact.total_bytes)} of {byte_size(fact.limit_bytes)}"
            return f"saved a snapshot ({safe(fact.reason, 40)}; {sizes})", colours.DIM
        case Marked():
            return f"▲ {safe(fact.text)}", colours.MARK
        case StateChanged():
            return f"{fact.state}{': ' if fact.reason else ''}{safe(fact.reason)}", colours.state_style(fact.state)
        case StepsMissed():
            return f"{plural(fact.count, 'step')} before this one were not recorded", colours.ORANGE
        case MetricLogged():
            return f"{safe(fact.name, 40)} = {short(fact.value)}", colours.DIM
        case Noted():
            return safe(fact.text), NOTE_STYLES[fact.level]


def describe_change(event: KnobTurned) -> str:
    """`residual off → on, ramp`. The target is added unless it is the whole net. The source is added unless it is a
    key.
    """
    target = "" if event.target == "all" else f" of {in_words(safe(event.target, 40))}"
    way = f", {safe(event.way, 30)}" if event.way else ""
    source = {"plan": " (plan)", "rollback": " (rollback)", "send": " (sent)"}.get(event.source, "")
    merged = f", {event.turns} changes at once" if event.turns > 1 else ""
    old, new = (safe(shown_value(event.knob, value), 60) for value in (event.old, event.new))
    return f"{safe(event.knob, 40)}{target} {old} → {new}{way}{merged}{source}"


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
