"""The footer's second line: the last request and its reply, or the last intervention and its effect."""

from __future__ import annotations

import math

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.event_lines import describe_change
from tui_descent.dashboard.text.layer_names import block_of, layer_labels
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import plural, scientific, short, with_commas
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.view import View
from tui_descent.protocol.commands import (
    AnyCommand,
    CancelRangeTest,
    CheckKnob,
    Evaluate,
    Mark,
    MeasureBackwardPass,
    Pause,
    Redo,
    ResizeTerminal,
    Resume,
    RunRangeTest,
    RunSteps,
    Stop,
    TurnKnob,
    Undo,
    WatchCurvature,
    WatchLens,
    WatchTask,
)
from tui_descent.protocol.events import CommandDone, CommandRejected, KnobTurned, Rewound
from tui_descent.protocol.layer_names import in_words
from tui_descent.scenario.knobs import NEUTRAL_KNOBS, text_of
from tui_descent.telemetry.history import History

# The change of the loss is shown only after this many steps; earlier it is mostly noise.
MIN_STEPS_OF_EFFECT = 10


def answer_line(view: View, width: int) -> Line:
    """Build the line. If it is too long, the least important parts are left out."""
    exchange, line = view.exchange, Line().add(" ")
    command, reply = exchange.command, exchange.reply
    if exchange.refusal:
        return line.add("not now  ", colours.ORANGE).add(safe(exchange.refusal))
    if reply is None and command is not None:
        return line.add("requested  ", colours.KEY).add(safe(describe(command))).add(" …", colours.DIM)
    if isinstance(reply, CommandRejected):
        what = safe(describe(command) if command else reply.knob)
        return line.add("rejected  ", colours.ORANGE).add(what).add("  ").add(safe(reply.reason), colours.DIM)
    if isinstance(reply, CommandDone):
        return _done(line, view.history, command, reply, width)
    newest = reply or (view.history.interventions[-1] if view.history.interventions else None)
    if newest is None:
        return line.add(_selection(view), colours.DIM)
    line.add("applied ", colours.GREEN).add("at step ", colours.DIM).add(with_commas(newest.step), colours.BRIGHT)
    line.add("  ").add(describe_change(newest))
    # The least important part comes first: it is the first to be dropped when there is no room.
    tail = [_output_change(newest), _loss_change(view.history, newest), safe(newest.note or "", 120)]
    tail = [f" · {text}" for text in tail if text]
    while tail and line.width + sum(map(len, tail)) > width:
        tail.pop(0)
    return line.add("".join(tail), colours.DIM)


def is_answer(view: View) -> bool:
    """Whether the line answers the last key. If so, nothing else should replace it.

    An answer is old if the run has ended, or if it was resumed and is held again.
    """
    exchange = view.exchange
    if view.history.ended is not None:
        return bool(exchange.refusal)
    resumed = isinstance(exchange.command, Resume | RunSteps) and isinstance(exchange.reply, CommandDone)
    if resumed and view.history.state.state == "held" and not exchange.refusal:
        return False
    return bool(exchange.refusal) or exchange.command is not None or exchange.reply is not None


def describe(command: AnyCommand) -> str:
    """A request in words."""
    match command:
        case TurnKnob():
            return text_of(command)
        case CheckKnob():
            return text_of(command.turn)
        case RunSteps():
            return plural(command.steps, "step")
        case Pause():
            return "pause"
        case Resume():
            return "resume"
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
        case WatchTask():
            return "pictures of the task" if command.on else "no pictures of the task"
        case WatchLens():
            return "activation lens" if command.on else "no activation lens"
        case MeasureBackwardPass():
            return "backward pass"
        case RunRangeTest():
            return "range test"
        case CancelRangeTest():
            return "cancel the range test"
        case Stop():
            return "kill" if command.kill else "stop"
        case ResizeTerminal():
            return "terminal size"


def _done(line: Line, history: History, command: AnyCommand | None, reply: CommandDone, width: int) -> Line:
    step = with_commas(reply.step)
    match command:
        case Pause():
            return line.add("paused  ", colours.GREEN).add(f"before step {step}", colours.DIM)
        case Resume():
            return line.add("resumed  ", colours.GREEN).add(f"at step {step}", colours.DIM)
        case RunSteps():
            steps = plural(command.steps, "step")
            return line.add("running  ", colours.GREEN).add(steps).add(f" from step {step}, then pause", colours.DIM)
    if (rewound := _rewound(history, reply)) is not None:
        (word, _, what), (_, now, was) = rewound.words()[0].partition(": "), rewound.words()
        line.add(word, colours.GREEN).add("  ").add(safe(what)).add(f"  {now}", colours.BRIGHT)
        return line.add(f" ({was})" if line.width + len(was) + 3 <= width else "", colours.DIM)
    if isinstance(command, TurnKnob):
        return line.add("nothing to change  ", colours.GREEN).add(safe(reply.what))
    line.add("done ", colours.GREEN).add("at step ", colours.DIM).add(step, colours.BRIGHT)
    return line.add(f"  {safe(reply.what)}")


def _rewound(history: History, reply: CommandDone) -> Rewound | None:
    """The undo or redo that this is the reply to; None if it is the reply to another command."""
    newest = next((event for event in reversed(history.log) if isinstance(event, Rewound)), None)
    if newest is None or reply.what != newest.words()[0] or reply.segment != newest.segment:
        return None
    return newest


def _output_change(turn: KnobTurned) -> str:
    if turn.function_change is None:
        return ""
    if turn.function_change == 0:
        return "outputs unchanged"
    return f"outputs changed by {scientific(turn.function_change)}"


def _loss_change(history: History, turn: KnobTurned) -> str:
    """The smoothed loss before the intervention and the smoothed loss now; empty if too few steps have been made."""
    pyramid = history.losses.get(turn.segment)
    since = history.steps - turn.step
    if turn.knob in NEUTRAL_KNOBS or turn.segment != history.segment or pyramid is None or since < MIN_STEPS_OF_EFFECT:
        return ""
    before = pyramid.window(1, max(0, turn.step - 1), turn.step)
    then = before[0][1][3] if before else math.nan
    if not (math.isfinite(then) and math.isfinite(history.smooth_loss)):
        return ""
    return f"loss {short(then)} → {short(history.smooth_loss)} in {with_commas(since)} steps"


def _block_keys(history: History) -> str:
    """The keys that change blocks in this run, as in `a and r act`; empty if there are none, or if the run is over."""
    if history.ended is not None:
        return ""
    knobs = {"a": "activation", "r": "residual", "n": "norm"}
    keys = [k for k, knob in knobs.items() if knob not in history.unavailable and history.knobs.get(knob) != "own"]
    if len(keys) < 2:
        return f"{keys[0]} acts" if keys else ""
    return f"{', '.join(keys[:-1])} and {keys[-1]} act"


def _has_story(view: View) -> bool:
    started = view.history.started
    return started is not None and bool((started.scenario or {}).get("story"))


def _selection(view: View) -> str:
    if not view.layers:
        return ""
    if view.selected is None or not view.selected < len(view.layers):
        keys = "" if view.replay else _block_keys(view.history)
        story = "h: story and what to press · " if _has_story(view) else ""
        return f"{story}↑ ↓ select a layer · {keys} on all blocks" if keys else f"{story}↑ ↓ select a layer"
    name, block = in_words(layer_labels(view.layers, 40)[view.selected]), block_of(view.layers[view.selected])
    if block is None:
        return f"{name} selected · it does not belong to a block"
    keys = "" if view.replay else _block_keys(view.history)
    return f"{name} selected · {keys} on {in_words(safe(block))}" if keys else f"{name} selected"
