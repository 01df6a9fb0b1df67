"""Checks what surrounds the terminal: whether a logout ends runs, and the settings of tmux or screen."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from tui_descent.doctor.checks import Check, asked

Ask = Callable[[Sequence[str]], str | None]
SLOW_ESCAPE_MS = 50
IN_FILE = "in ~/.tmux.conf:"


def checks(environment: Mapping[str, str] = os.environ, ask: Ask = asked) -> Iterator[Check]:
    """All checks of the session."""
    yield logout(ask)
    if environment.get("TMUX"):
        yield from tmux(ask)
    elif environment.get("STY"):
        advice = "it shows 256 colours at most and has no access to the clipboard; tmux has both"
        yield Check("screen", "note", "this is GNU screen", advice)


def logout(ask: Ask) -> Check:
    """Whether the system ends a user's processes at logout. Runs are meant to go on then."""
    name = "logout"
    manager = _properties(ask(["loginctl", "show-manager"]) or ask(["loginctl", "show"]))
    if not manager:
        return Check(name, "ok", "no systemd-logind here: nothing ends your processes at logout")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    excluded = manager.get("KillExcludeUsers", "").split()
    only = manager.get("KillOnlyUsers", "").split()
    kills = manager.get("KillUserProcesses") == "yes" and user not in excluded and (not only or user in only)
    lingers = _properties(ask(["loginctl", "show-user", user])).get("Linger") == "yes"
    if kills:
        first = "" if lingers else "loginctl enable-linger && "
        command = f"{first}systemd-run --user --scope tui-descent …"
        advice = "a run started in this way goes on:"
        return Check(name, "note", "ends your processes (KillUserProcesses=yes), also in tmux", advice, command)
    return Check(name, "ok", "runs go on after a logout")


def tmux(ask: Ask) -> Iterator[Check]:
    """The settings of tmux that matter to a dashboard."""
    yield Check("tmux", "ok", ask(["tmux", "-V"]) or "does not answer")
    terminal = ask(["tmux", "show", "-gv", "default-terminal"]) or ""
    if terminal and not ("256color" in terminal or "direct" in terminal):
        yield Check("tmux terminal", "note", terminal, IN_FILE, "set -g default-terminal tmux-256color")
    elif terminal:
        yield Check("tmux terminal", "ok", terminal)
    features = (ask(["tmux", "display", "-p", "#{client_termfeatures}"]) or "").split(",")
    outer = ask(["tmux", "display", "-p", "#{client_termname}"]) or "xterm-256color"
    if "RGB" in features:
        yield Check("tmux colours", "ok", "16 million")
    else:
        found, advice = "not 16 million, as far as tmux knows", f"if your terminal has them, {IN_FILE}"
        yield Check("tmux colours", "note", found, advice, f"set -as terminal-features ',{outer}:RGB'")
    escape = ask(["tmux", "show", "-sv", "escape-time"]) or ""
    if escape.isdecimal():
        if int(escape) > SLOW_ESCAPE_MS:
            yield Check("tmux escape", "note", f"{escape} ms", f"Esc acts late; {IN_FILE}", "set -sg escape-time 10")
        else:
            yield Check("tmux escape", "ok", f"{escape} ms")
    clipboard = ask(["tmux", "show", "-sv", "set-clipboard"]) or ""
    if clipboard == "on":
        yield Check("tmux clipboard", "ok", clipboard)
    elif clipboard:
        advice = f"what a program copies is dropped; {IN_FILE}"
        yield Check("tmux clipboard", "note", clipboard, advice, "set -s set-clipboard on")


def _properties(text: str | None) -> dict[str, str]:
    """Lines `name=value` as a table."""
    lines = (line.partition("=") for line in (text or "").splitlines())
    return {name: value for name, sign, value in lines if sign}
