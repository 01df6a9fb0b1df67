"""The commands for runs that are going on: `attach` opens a dashboard, `send` steers, `stop` ends a run."""

from __future__ import annotations

import contextlib
import sys
import time

from tui_descent import output
from tui_descent.client import Client, ClientError, connected
from tui_descent.end_report import print_summary
from tui_descent.paths import runs_folder
from tui_descent.protocol.commands import (
    AnyCommand,
    CheckKnob,
    Evaluate,
    Mark,
    Pause,
    Redo,
    Resume,
    RunSteps,
    Stop,
    TurnKnob,
    Undo,
)
from tui_descent.protocol.events import CommandRejected, RunEnded, ToViewer
from tui_descent.protocol.launch import Launch
from tui_descent.protocol.run_lock import has_keeper
from tui_descent.run_list import RunNotFoundError, find_run, list_runs
from tui_descent.scenario import knobs
from tui_descent.telemetry.jsonl import JsonLines

WORDS: dict[str, AnyCommand] = {
    "pause": Pause(),
    "resume": Resume(),
    "evaluate": Evaluate(),
    "mark": Mark(),
    "undo": Undo(),
    "redo": Redo(),
}
REDRAW_S = 0.2
REJECTED_ENDS_WITHIN_S = 2.0
HINT_AFTER_S = 10.0  # how long `stop` waits before it names `--kill`
ENDS_WITHIN_S = 20.0  # from the last event to the end of the keeper


def find_live(text: str | None, runs_dir: str | None) -> Launch:
    """The settings of a live run. Raises `RunNotFoundError`, `ChannelError` or `OSError`."""
    ended = ""
    try:
        return Launch.read(find_run(text, runs_dir, live=True).folder)
    except RunNotFoundError:
        if text is None or any(run.is_called(text) and run.live for run in list_runs(runs_dir)):
            raise
        with contextlib.suppress(RunNotFoundError):
            ended = find_run(text, runs_dir, live=False).run
        if ended:
            raise RunNotFoundError(f"{ended} has ended; look at it again with: tui-descent replay {ended}") from None
        raise


def come_back(launch: Launch) -> str:
    """The command that opens a dashboard on this run."""
    folder = launch.path.parent
    command = f"tui-descent attach {launch.run}"
    return command if folder == runs_folder() else f"{command} --runs-dir {folder}"


def command_of(text: str) -> AnyCommand:
    """The command that a person types after `send RUN`. Raises `ValueError`.

    A knob with a value that is not allowed is a command too: the run rejects it, and its record says so.
    """
    word, sign, value = text.partition("=")
    if not sign:
        if word not in WORDS:
            raise ValueError(f"{text[:40]!a}: allowed: KNOB=VALUE, steps=N, mark=TEXT, {', '.join(WORDS)}")
        return WORDS[word]
    if word == "mark":
        return Mark(text=value)
    if word == "steps":
        if not value.isascii() or not value.isdecimal() or len(value) > 15:
            raise ValueError(f"steps = {value[:40]!a}; allowed: a whole number of steps")
        return RunSteps(steps=int(value))
    try:
        return knobs.parse(text)
    except ValueError:
        knob, _, target = word.partition("@")
        return TurnKnob(knob=knob, value=value, target=target or "all")


def send(launch: Launch, text: str, *, dry_run: bool) -> int:
    """Send one command and print the reply as JSON. Returns 1 if it was rejected.

    Raises `ValueError` and `ClientError`.
    """
    command = command_of(text)
    if dry_run:
        if not isinstance(command, TurnKnob):
            raise ValueError(f"--dry-run checks KNOB=VALUE only, not {text[:40]!a}")
        command = CheckKnob(turn=command)
    with connected(launch, "send") as client:
        reply = client.request(command)
    for line in JsonLines(only_ascii=not output.is_utf8(sys.stdout), replies=True).lines(reply):
        print(line)
    return 1 if isinstance(reply, CommandRejected) else 0


def stop(launch: Launch, *, kill: bool) -> int:
    """Stop a run and wait until it has ended. Returns the exit code. Raises `ClientError`."""
    with connected(launch, "stop") as client:
        progress = _Progress(client, launch.run)
        if client.history.ended is None:
            number = client.send(Stop(kill=kill))

            def is_end(message: ToViewer) -> bool:
                if isinstance(reply := client.reply_in(message, number), CommandRejected):
                    progress.reject(reply.reason)
                return isinstance(message, RunEnded)

            client.wait(is_end, progress.tick)
        progress.clear()
    await_end(launch)
    print_summary(client.history)
    return 0


def await_end(launch: Launch) -> None:
    """Wait until the keeper of a run that has ended has written the record's end and exited."""
    end_s = time.monotonic() + ENDS_WITHIN_S
    while has_keeper(launch.path) and time.monotonic() < end_s:
        time.sleep(0.02)


class _Progress:
    """The line on stderr that shows what a run that is to end still does.

    If the request is rejected, the run may have ended at that moment. Otherwise `tick` raises `ClientError`.
    """

    def __init__(self, client: Client, run: str) -> None:
        self._rejected, self._rejected_s = "", 0.0
        self._hint = f"tui-descent: still waiting; to end it at once: tui-descent stop {run} --kill"
        self._client, self._is_live = client, sys.stderr.isatty()
        self._begun_s = time.monotonic()
        self._due_s, self._width = 0.0, 0

    def reject(self, reason: str) -> None:
        """Note that the run has rejected the request to stop."""
        self._rejected, self._rejected_s = reason, time.monotonic()

    def tick(self) -> None:
        now_s = time.monotonic()
        if self._rejected and now_s > self._rejected_s + REJECTED_ENDS_WITHIN_S:
            raise ClientError(self._rejected)
        if self._hint and now_s > self._begun_s + HINT_AFTER_S:
            self.clear()
            output.say(self._hint)
            self._hint = ""
        if not self._is_live or now_s < self._due_s:
            return
        self._due_s = now_s + REDRAW_S
        history = self._client.history
        why = f": {history.state.reason}" if history.state.reason else ""
        text = f"stopping at step {history.steps:,} ({now_s - self._begun_s:.0f} s){why}"[:79]
        output.draw("\r" + text.ljust(self._width))
        self._width = len(text)

    def clear(self) -> None:
        if self._width:
            output.draw("\r" + " " * self._width + "\r")
