"""The bottom three lines: what is the matter, what was asked and done last, and the knobs with their keys."""

from __future__ import annotations

import math

from msgspec.structs import replace
from rich.cells import cell_len, set_cell_size
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.diagnosis_line import finding
from tui_descent.dashboard.panels.events import turned
from tui_descent.dashboard.panels.knob_line import keybar
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.text.layer_names import labels, target_of
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import count, scientific, several, short
from tui_descent.dashboard.text.safe_text import plain
from tui_descent.dashboard.view import View
from tui_descent.protocol.commands import (
    AnyCommand,
    CancelSweep,
    Evaluate,
    Mark,
    Pause,
    Redo,
    Resume,
    RunSteps,
    Stop,
    SweepRates,
    TurnKnob,
    Undo,
    WatchCurvature,
)
from tui_descent.protocol.events import CommandDone, CommandRejected, KnobTurned, Rewound
from tui_descent.scenario.knobs import text_of
from tui_descent.telemetry.history import History

# What is to be done begins with one of these.
ADVICE = (" Try ", "; u goes back ", "; space goes on", ". space tries", "; q leaves")
# Of a sentence that is cut for the advice behind it; of less nothing can be read.
SHORTEST = 12


class ConversationPanel(Panel, can_focus=False):
    """Finding, answer, knobs."""

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """Three rows."""
        word, style, text, text_style = finding(view)
        first = Line().put(" ").put(word, style)
        if text:
            first.put("  " if word else "")
            first.put(_with_its_advice(text, width - first.width), text_style)
        return [first.strip(width), _answer(view, width).strip(width), keybar(view, width).strip(width)]


def _with_its_advice(text: str, width: int) -> str:
    """The sentence in so many cells: of one that is too long what is to be done stays, if need be alone."""
    start = next((text.rindex(sign) for sign in ADVICE if sign in text), len(text))
    said, advice = text[:start], text[start:]
    if cell_len(text) <= width or not advice:
        return text
    room = width - cell_len(advice) - 1
    return f"{set_cell_size(said, room).rstrip(' .,:;')}…{advice}" if room >= SHORTEST else advice.lstrip("; ")


def asked(command: AnyCommand) -> str:
    """A request in words."""
    match command:
        case TurnKnob():
            return text_of(replace(command, value=_brief(command.value)))
        case Pause():
            return "pause"
        case Resume():
            return "go on"
        case RunSteps():
            return "one step" if command.steps == 1 else several(command.steps, "step")
        case Evaluate():
            return "evaluation"
        case Mark():
            return "mark"
        case Undo():
            return "undo"
        case Redo():
            return "redo"
        case WatchCurvature():
            return "curvature" if command.on else "no curvature"
        case SweepRates():
            return "range test"
        case CancelSweep():
            return "no range test"
        case Stop():
            return "stop"


def _brief(value: str) -> str:
    """`*86.7362` for a product of many presses, whatever is no such number as it is."""
    try:
        return f"{value[0]}{float(value[1:]):.6g}" if value[:1] in ("*", "/") else value
    except ValueError:
        return value


def _answer(view: View, width: int) -> Line:
    exchange, line = view.exchange, Line().put(" ")
    if exchange.refusal:
        return line.put("not now  ", colours.ORANGE).put(plain(exchange.refusal))
    reply = exchange.reply
    if reply is None and exchange.command is not None:
        return line.put("requested  ", colours.KEY).put(plain(asked(exchange.command))).put(" …", colours.DIM)
    if isinstance(reply, CommandRejected):
        what = plain(asked(exchange.command) if exchange.command else reply.knob)
        return line.put("rejected  ", colours.ORANGE).put(what).put("  ").put(plain(reply.reason), colours.DIM)
    if isinstance(reply, CommandDone) and (gone := _gone(view.history, reply)) is not None:
        (word, _, what), (_, now, was) = gone.words()[0].partition(": "), gone.words()
        line.put(word, colours.GREEN).put("  ").put(plain(what)).put(f"  {now}", colours.BRIGHT)
        return line.put(f" ({was})" if line.width + len(was) + 3 <= width else "", colours.DIM)
    if isinstance(reply, CommandDone):
        place = "from" if isinstance(exchange.command, RunSteps) else "at"
        return (
            line.put("done  ", colours.GREEN)
            .put(plain(reply.what))
            .put(f" {place} step {count(reply.step)}", colours.DIM)
        )
    newest = reply or (view.history.interventions[-1] if view.history.interventions else None)
    if newest is None:
        return line.put(_selection(view), colours.DIM)
    line.put("applied ", colours.GREEN).put("at step ", colours.DIM).put(count(newest.step), colours.BRIGHT).put("  ")
    line.put(turned(newest))
    # What came of it matters more than how gently it was done, where there is no room for both.
    effect, moved = _effect(view.history, newest), newest.function_change
    tail = [f" · function moved {scientific(moved)}"] if moved is not None else []
    tail += [f" · {effect}"] if effect else []
    tail += [f" · {plain(newest.note, 120)}"] if newest.note else []
    while tail and line.width + sum(map(len, tail)) > width:
        tail.pop(0)
    return line.put("".join(tail), colours.DIM)


def _gone(history: History, done: CommandDone) -> Rewound | None:
    """The undo or redo that it was the answer to, if it was one to another state."""
    told = next((fact for fact in reversed(history.log) if isinstance(fact, Rewound)), None)
    return told if told is not None and done.what == told.words()[0] and done.segment == told.segment else None


def _effect(history: History, turn: KnobTurned) -> str:
    """The smoothed loss then and now, once there are steps enough to tell."""
    pyramid = history.losses.get(turn.segment)
    since = history.steps - turn.step
    if turn.knob == "pace" or turn.segment != history.segment or pyramid is None or since < 10:
        return ""
    before = pyramid.window(1, max(0, turn.step - 1), turn.step)
    then = before[0][1][3] if before else math.nan
    if not (math.isfinite(then) and math.isfinite(history.smooth_loss)):
        return ""
    return f"loss {short(then)} → {short(history.smooth_loss)} in {count(since)} steps"


def _selection(view: View) -> str:
    if view.selected is None or not view.selected < len(view.layers):
        return "arrows select a layer · a and r act on all blocks" if view.layers else ""
    name, target = labels(view.layers, 40)[view.selected], target_of(view.layers[view.selected])
    return f"{name} selected: a and r act on {plain(target)}" if target else f"{name} selected: it lies in no block"
