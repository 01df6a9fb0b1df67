"""A run without the dashboard: the keeper runs in the foreground, and its events are printed as JSON or as progress."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from tui_descent import output
from tui_descent.end_report import print_end, print_summary
from tui_descent.keeper.keeper import Keeper
from tui_descent.keeper.process import clear, is_kept
from tui_descent.keeper.trainer import Trainer
from tui_descent.protocol.channel import ChannelError
from tui_descent.protocol.events import (
    AnyEvent,
    CommandRejected,
    KnobTurned,
    Noted,
    RangeTestCompleted,
    Rewound,
    RunEnded,
    StateChanged,
    Status,
    StepsCompleted,
)
from tui_descent.protocol.exit_status import exit_code
from tui_descent.protocol.launch import LOG_FILE, Launch
from tui_descent.protocol.run_lock import keep_folder
from tui_descent.scenario.knobs import shown_value
from tui_descent.scenario.validate import escape_controls
from tui_descent.telemetry.history import History
from tui_descent.telemetry.jsonl import JsonLines

EXIT_CODES: dict[Status, int] = {"finished": 0, "stopped": 0, "failed": 1, "diverged": 3, "lost": 4}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REDRAW_S = 0.1
REPORT_S = 10.0
CHART_ROWS = 14
# A second signal ends a script at once. Some programs send each signal twice, to the process and to its group.
SECOND_SIGNAL_AFTER_S = 0.5


Listen = Callable[[AnyEvent], None]
Start = Callable[[Launch], Trainer]


def run(launch: Launch, *, json: bool = False, listen: Listen | None = None, start: Start | None = None) -> int:
    """Run to the end; returns the exit code. With `listen`, it gets the events, and nothing is printed or recorded.

    `start` starts the trainer, by default in a process of its own.
    """
    printer = listen or (JsonPrinter() if json else Progress())
    code, caught, caught_s = 1, 0, 0.0
    unprinted: OSError | None = None

    def guarded(event: AnyEvent) -> None:
        nonlocal unprinted
        try:
            printer(event)
        except OSError as error:
            if listen:
                raise
            output.discard(sys.stdout)
            unprinted = error
            keeper.stop(_lost_output(error))

    keeper = Keeper(launch, on_event=guarded, record=listen is None)

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal caught, caught_s
        if not caught:
            caught, caught_s = number, time.monotonic()
            keeper.stop(signal.Signals(number).name)
        elif launch.command is not None and time.monotonic() > caught_s + SECOND_SIGNAL_AFTER_S:
            keeper.kill(signal.Signals(number).name)  # the script saves for too long

    # Under nohup, SIGHUP stays ignored.
    handled = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    old = {number: signal.signal(number, stop) for number in handled}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, the trainer's exit code cannot be read
    try:
        ended = keeper.run(lambda: (start or Trainer.start)(launch))
        code = 128 + caught if caught and ended.status == "stopped" else exit_code(ended, EXIT_CODES)
        unprinted = unprinted or (None if listen else output.flush())
        if unprinted is not None:
            output.say(f"tui-descent: {_lost_output(unprinted)}; the run {ended.status} at step {ended.step:,}")
            code = code or (0 if isinstance(unprinted, BrokenPipeError) else 1)
        if (ended.log_path is not None or launch.command is not None) and not listen:
            # The log of a scenario's trainer has our own traceback, which helps only if the reason is not known.
            script_log = launch.path / LOG_FILE if launch.command is not None else None
            print_end(ended, script_log, with_log=launch.scenario is None or ended.status == "lost")
        if not listen and is_kept(launch, ended):
            keep_folder(launch.path)
        else:
            clear(launch.path)
    except (ChannelError, OSError) as error:
        output.say(f"tui-descent: {error}")
        if launch.resume is None:
            clear(launch.path)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    return code


def _lost_output(error: OSError) -> str:
    if isinstance(error, BrokenPipeError):  # the process that read our output has exited
        return "the output pipe was closed"
    return f"cannot write to stdout: {error.strerror or error}"


class JsonPrinter:
    """Prints events as JSON on stdout, one object per line."""

    def __init__(self) -> None:
        self._lines = JsonLines(only_ascii=not output.is_utf8(sys.stdout))

    def __call__(self, event: AnyEvent) -> None:
        """Print the event's lines and flush, because a reader may be waiting for them."""
        text = "".join(line + "\n" for line in self._lines.lines(event))
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()


class Progress:
    """Prints a progress line on stderr; at the end, prints a chart of the loss and a summary on stdout."""

    def __init__(self) -> None:
        self._history = History()
        self._live = sys.stderr.isatty()
        self._drawn_s = 0.0
        self._width = 0
        self._silent = False
        self._first_step_s: float | None = None
        self._last_step_s = 0.0

    def __call__(self, event: AnyEvent) -> None:
        """Print an event, or update the progress line."""
        self._history.apply(event)
        self._silent = self._silent and bool(self._history.state.silent_s)
        match event:
            case StepsCompleted():
                self._first_step_s = event.times_s[0] if self._first_step_s is None else self._first_step_s
                self._last_step_s = event.times_s[-1]
                self._line(self._text())
            case RunEnded():
                self._clear()
                self._summary(event)
            case StateChanged(state="importing torch" | "building"):
                self._line(f"{event.state}…", always=True)
            case StateChanged() if event.silent_s and not self._silent and self._history.started is not None:
                self._silent = True
                self._say(f"step {self._history.steps}: the trainer has been silent for {event.silent_s} s")
            case KnobTurned():
                way = f", {event.way}" if event.way else ""
                old, new = (shown_value(event.knob, value) for value in (event.old, event.new))
                self._say(f"step {event.step}: {event.knob} {old} → {new}{way}")
            case CommandRejected():
                self._say(f"step {event.step}: {event.knob or 'command'} rejected: {event.reason}")
            case Rewound():
                what, now, was = event.words()
                self._say(f"{what}; {now} ({was})")
            case RangeTestCompleted():
                found = f"{event.suggestion:.3g} suggested" if event.suggestion is not None else event.words
                self._say(f"step {event.step}: range test: {found}")
            case Noted():
                self._say(f"step {event.step}: {event.text}")
            case _:
                self._line(self._text())

    def _text(self) -> str:
        h = self._history
        total = h.started.steps if h.started else None
        rate = f"{h.steps_per_s:,.0f} steps/s" if h.steps_per_s else ""
        left = f"silent for {h.state.silent_s} s" if h.state.silent_s else ""
        loss = f"loss {h.shown_loss:.4g}" if h.losses else ""
        if total and h.steps_per_s:
            left = f"ETA {max(0, total - h.steps) / h.steps_per_s:,.0f} s"
        return "  ".join(
            part for part in (f"step {h.steps:,}{f'/{total:,}' if total else ''}", loss, rate, left) if part
        )

    def _line(self, text: str, *, always: bool = False) -> None:
        now_s = time.monotonic()
        if not always and now_s - self._drawn_s < (REDRAW_S if self._live else REPORT_S):
            return
        self._drawn_s = now_s
        if self._live:
            output.draw("\r" + text.ljust(self._width))
            self._width = len(text) + 2  # without UTF-8, `…` becomes three characters
        elif not always:
            output.say(text)

    def _say(self, text: str) -> None:
        self._clear()
        output.say(text)

    def _clear(self) -> None:
        if self._live and self._width:
            output.draw("\r" + " " * self._width + "\r")
            self._width = 0

    def _summary(self, ended: RunEnded) -> None:
        h = self._history
        width = _width()
        if points := _curve(h, columns=width):
            from tui_descent.dashboard.charts.braille import ascii_chart

            plain = not output.is_utf8(sys.stdout)
            print(ascii_chart(points, width, CHART_ROWS, title="training loss", ascii_only=plain))
        print_summary(h, seconds=self._seconds())
        if ended.reason:
            print(f"  {escape_controls(ended.reason)}")

    def _seconds(self) -> str:
        """The time from the first step to the last, as in ` in 2.1 s`. The start of torch is not part of it."""
        seconds = self._last_step_s - (self._first_step_s or 0.0)
        return f" in {seconds:.{1 if seconds >= 1 else 3}f} s" if seconds > 0 else ""


def _width() -> int:
    columns = 80
    with contextlib.suppress(OSError):
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
    return min(max(columns, 40), 120)


def _curve(history: History, *, columns: int) -> list[tuple[float, float]]:
    """The mean loss over the run, about two points per column."""
    pyramid = history.losses.get(history.segment)
    if pyramid is None:
        return []
    width = 1
    while history.steps / width > 2 * columns:
        width *= 2
    return [(bin_ * width, values[2]) for bin_, values in pyramid.window(width, 0, history.steps)]
