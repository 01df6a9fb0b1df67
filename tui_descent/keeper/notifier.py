"""Runs the user's command when the run ends, is held, diverges, or has a new finding (`--notify`).

The command gets a sentence as its last argument, and the facts in its environment: TUI_DESCENT_NOTIFY_EVENT, _RUN,
_STEP, _LOSS and _TEXT. It is never run by a shell, so nothing in the sentence can be taken for a command.
"""

from __future__ import annotations

import math
import os
import shlex
import subprocess
import time
from collections.abc import Mapping
from typing import Literal

from tui_descent.protocol.events import (
    AnyEvent,
    Diagnosed,
    EndReached,
    NotFinite,
    RunEnded,
    StateChanged,
    name_of_loss,
)
from tui_descent.protocol.launch import (
    ENV_FOLDER,
    ENV_LINK,
    ENV_RING,
    KEEPER_LOG_FILE,
    Launch,
    command_environment,
    open_log,
)
from tui_descent.telemetry.diagnosis.findings import FINE
from tui_descent.telemetry.history import History

Occasion = Literal["end", "hold", "divergence", "finding"]
ENV_NOTIFY = "TUI_DESCENT_NOTIFY"  # the command, if the option is not given
PREFIX = "TUI_DESCENT_NOTIFY_"
UNCLEAR = "not clear"
SAME_AFTER_S = 600.0  # after so long, the same finding or another NaN is news again
LEAST_S = 5.0  # between two notifications of the same kind; the end of the run is always notified
MOST_AT_ONCE = 4  # commands that run at the same time
MOST_TEXT = 500  # characters


def words_of(text: str) -> tuple[str, ...]:
    """The command's words, split as a shell would. Raises `ValueError`, which says what is wrong."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"--notify {text[:60]!a}: {str(error).lower()}") from None
    if not words:
        raise ValueError("--notify: no command; for example --notify 'notify-send tui-descent'")
    if any("\0" in word for word in words):
        raise ValueError("--notify: the command has a null character")
    return words


class Notifier:
    """Starts the command of one run. It never waits for the command and never raises."""

    def __init__(self, command: tuple[str, ...], launch: Launch, history: History) -> None:
        self._command, self._launch, self._history = command, launch, history
        self._running: list[subprocess.Popen[bytes]] = []
        self._notified_s: dict[Occasion, float] = {}
        self._news_s: dict[str, float] = {}
        self._end_step: int | None = None
        self._trouble = ""
        self._told = False

    @classmethod
    def of(cls, launch: Launch, history: History, environment: Mapping[str, str] = os.environ) -> Notifier | None:
        """The notifier of a run; None if there is no command."""
        command, trouble = launch.notify, ""
        if not command and (text := environment.get(ENV_NOTIFY, "").strip()):
            try:
                command = words_of(text)
            except ValueError as error:
                trouble = str(error).replace("--notify", ENV_NOTIFY)
        if not command and not trouble:
            return None
        notifier = cls(command, launch, history)
        notifier._trouble = trouble
        return notifier

    @property
    def _name(self) -> str:
        """The command's name in messages, which have to be short."""
        return os.path.basename(self._command[0])[:30]

    def add(self, event: AnyEvent) -> None:
        """Run the command if this event is an occasion for it."""
        match event:
            case RunEnded(status="diverged"):
                self._notify("divergence", f"diverged at step {event.step:,}: {event.reason}", event.step, event.loss)
            case RunEnded():
                if event.status == "finished" and event.step == self._end_step:
                    return  # notified when it had made all steps
                reason = f": {event.reason}" if event.reason and event.status != "finished" else ""
                what = f"{event.status} at step {event.step:,}{reason}"
                self._notify("end", what, event.step, event.loss, name_of_loss(event))
            case EndReached():
                self._end_step = event.step
                self._notify("end", f"has made all {event.step:,} steps", event.step, event.loss, name_of_loss(event))
            case StateChanged(state="held"):
                self._notify("hold", f"held at step {self._history.steps:,}: {event.reason}", self._history.steps)
            case NotFinite(then="note"):
                self._notify_news("not finite", "divergence", event.text, event.step, event.loss)
            case Diagnosed() if event.kind != "numerics" and event.finding not in FINE and event.finding != UNCLEAR:
                text = f"step {event.step:,}: {event.finding}. {event.sentence}"
                self._notify_news(event.finding, "finding", text, event.step)
            case _:
                pass

    def _notify_news(self, news: str, occasion: Occasion, what: str, step: int, loss: float | None = None) -> None:
        """Start the command, unless it was started for the same news a short time ago."""
        now_s = time.monotonic()
        if now_s - self._news_s.get(news, -math.inf) >= SAME_AFTER_S and self._notify(occasion, what, step, loss):
            self._news_s[news] = now_s

    def trouble(self) -> str:
        """What went wrong with the command, the first time that something does; otherwise "". Call it now and then."""
        self._collect()
        if not self._trouble or self._told:
            return ""
        self._told = True
        return self._trouble

    def close(self) -> None:
        """Let the commands that still run go on alone."""
        for process in self._running:
            process.returncode = 0  # otherwise Python warns that nobody waits for them
        self._running.clear()

    def _collect(self) -> None:
        """Forget the commands that have ended."""
        for process in [one for one in self._running if one.poll() is not None]:
            self._running.remove(process)
            if process.returncode and not self._trouble:
                self._trouble = (
                    f"--notify: {self._name} ended with exit code {process.returncode}; see {KEEPER_LOG_FILE}"
                )

    def _notify(self, occasion: Occasion, what: str, step: int, loss: float | None = None, kind: str = "loss") -> bool:
        """Start the command. Returns whether it was started. `kind` says in the sentence what the loss is."""
        now_s = time.monotonic()
        if occasion != "end" and now_s - self._notified_s.get(occasion, -math.inf) < LEAST_S:
            return False
        self._collect()
        if not self._command or (len(self._running) >= MOST_AT_ONCE and occasion != "end"):
            return False
        self._notified_s[occasion] = now_s
        shown, kind = (self._history.loss, "training loss") if loss is None else (loss, kind)
        text = f"{self._launch.name.lstrip('-')}: {what}"
        if occasion == "end" and math.isfinite(shown):
            text += f", {kind} {shown:.4g}"
        text = "".join(c if c.isprintable() else " " for c in text)[:MOST_TEXT]
        facts = {"EVENT": occasion, "RUN": self._launch.run, "STEP": str(step), "LOSS": f"{shown!r}", "TEXT": text}
        return self._start(text, facts)

    def _start(self, text: str, facts: Mapping[str, str]) -> bool:
        environment = {
            name: value
            for name, value in command_environment().items()
            if name not in (ENV_FOLDER, ENV_LINK, ENV_RING)  # a run that the command starts is not this run
        }
        try:
            with open_log(self._launch.path / KEEPER_LOG_FILE) as log:
                process = subprocess.Popen(
                    [*self._command, text],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment | {f"{PREFIX}{name}": value for name, value in facts.items()},
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            self._trouble = self._trouble or f"--notify: cannot run {self._name}: {why}"
            return False
        self._running.append(process)
        return True
