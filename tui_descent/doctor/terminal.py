"""Checks the terminal: its kind, size, colours and characters, and what it answers when it is asked."""

from __future__ import annotations

import contextlib
import locale
import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping

from tui_descent import output
from tui_descent.dashboard.terminal_size import MIN_HEIGHT, MIN_WIDTH
from tui_descent.doctor.checks import Check

WITHIN_S = 0.5  # how long a terminal may take to answer; over a slow connection it takes a few tenths of a second
# Whether bracketed paste is known, and then the terminal's kind. Every terminal answers the last question.
QUESTIONS = "\x1b[?2004$p\x1b[c"
LOCALE = "export LC_ALL=C.UTF-8"
LAST_ANSWER = re.compile(rb"\x1b\[\?[0-9;]*c")
MODE_ANSWER = re.compile(rb"\x1b\[\?2004;([0-4])\$y")


def checks(environment: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """All checks of the terminal."""
    on_terminal = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
    kind = environment.get("TERM", "")
    if not on_terminal:
        yield Check("terminal", "note", "stdin or stdout is not a terminal", "runs are headless here")
    elif kind in ("", "dumb"):
        advice = "no dashboard here: set TERM to the name of your terminal, as in xterm-256color"
        yield Check("terminal", "note", f'TERM is "{kind}"', advice)
    else:
        yield Check("terminal", "ok", kind)
        yield size(*os.get_terminal_size(sys.stdout.fileno()))
        yield colours(environment)
    yield characters(output.is_utf8(sys.stdout), environment)
    if on_terminal and kind not in ("", "dumb"):
        yield pastes(answers(sys.stdin.fileno(), sys.stdout.fileno()))


def size(columns: int, rows: int) -> Check:
    """Whether the dashboard fits."""
    if columns < MIN_WIDTH or rows < MIN_HEIGHT:
        advice = f"the dashboard needs {MIN_WIDTH}×{MIN_HEIGHT}; make the window larger or the font smaller"
        return Check("size", "note", f"{columns}×{rows}", advice)
    if columns < 80 or rows < 24:
        return Check("size", "note", f"{columns}×{rows}", "80×24 shows more, 120×40 shows everything")
    return Check("size", "ok", f"{columns}×{rows}")


def colours(environment: Mapping[str, str]) -> Check:
    """How many colours programs may use, as far as the environment says."""
    if environment.get("NO_COLOR"):
        return Check("colours", "note", "none, because NO_COLOR is set", "for colours:", "unset NO_COLOR")
    if environment.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return Check("colours", "ok", "16 million")
    kind = environment.get("TERM", "")
    count = "256" if "256color" in kind or "kitty" in kind or "direct" in kind else "16"
    not_passed = "ssh does not pass on that it has" if environment.get("SSH_CONNECTION") else ""
    advice = f"your terminal may have more{f'; {not_passed}' if not_passed else ''}:"
    return Check("colours", "note", count, advice, "export COLORTERM=truecolor")


def characters(utf8: bool, environment: Mapping[str, str]) -> Check:
    """Whether characters other than ASCII can be shown, and whether the locale exists."""
    name = next((value for key in ("LC_ALL", "LC_CTYPE", "LANG") if (value := environment.get(key))), "C")
    missing = False
    with contextlib.suppress(locale.Error):
        before = locale.setlocale(locale.LC_CTYPE)
        try:
            locale.setlocale(locale.LC_CTYPE, "")
        except locale.Error:
            missing = True
        locale.setlocale(locale.LC_CTYPE, before)
    if missing:
        return Check("characters", "note", f"the locale {name} is not installed", "use another:", LOCALE)
    if not utf8:
        advice = "curves are drawn with ASCII only; for lines of dots:"
        return Check("characters", "note", f"no UTF-8 (locale {name})", advice, LOCALE)
    return Check("characters", "ok", f"UTF-8 (locale {name})")


def pastes(answer: bytes) -> Check:
    """Whether the terminal marks pasted text, which then steers nothing."""
    name = "pasted text"
    if not LAST_ANSWER.search(answer):
        return Check(name, "note", "the terminal does not answer", "pasted text may be taken for keys")
    mode = MODE_ANSWER.search(answer)
    if mode is not None and mode[1] != b"0":
        return Check(name, "ok", "is marked by the terminal, so it steers nothing")
    if mode is None:
        return Check(name, "ok", "the terminal does not say whether it marks pasted text; most do")
    return Check(name, "note", "is not marked by the terminal", "pasted text is taken for keys, so do not paste")


def answers(reads: int, writes: int, *, within_s: float = WITHIN_S) -> bytes:
    """What the terminal answers to `QUESTIONS`; what it is asked is never shown. Returns b"" in the background."""
    if not _in_foreground(reads):
        return b""
    before = termios.tcgetattr(reads)
    answer, end_s = b"", time.monotonic() + within_s
    try:
        tty.setcbreak(reads, termios.TCSAFLUSH)
        os.write(writes, QUESTIONS.encode())
        while not LAST_ANSWER.search(answer):
            left_s = end_s - time.monotonic()
            if left_s <= 0 or not select.select([reads], [], [], left_s)[0]:
                break
            got = os.read(reads, 1024)
            if not got:
                break
            answer += got
    except (OSError, termios.error):
        pass
    finally:
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(reads, termios.TCSAFLUSH, before)
    return answer


def _in_foreground(file: int) -> bool:
    """Whether this process may read from its terminal."""
    with contextlib.suppress(OSError, termios.error):
        return os.tcgetpgrp(file) == os.getpgrp()
    return False
