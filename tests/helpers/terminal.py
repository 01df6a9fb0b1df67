"""A real terminal for tests and pictures: a command in a pty, its screen emulated by pyte, and keys typed into it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import pexpect
import pyte

KEYS = {
    "space": " ", "enter": "\r", "tab": "\t", "escape": "\x1b",
    "up": "\x1b[A", "down": "\x1b[B", "right": "\x1b[C", "left": "\x1b[D",
}  # fmt: skip


# Mode 2026, synchronized output: the text between _BEGINS and _ENDS is one frame.
_ASKED, _ANSWER = b"\x1b[?2026$p", "\x1b[?2026;2$y"
_BEGINS, _ENDS = b"\x1b[?2026h", b"\x1b[?2026l"


class Terminal:
    """A command in a terminal. `wait(what)` reads until the screen satisfies `what`.

    The screen never has a part of a frame: what follows the beginning of a frame is shown at its end.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int,
        rows: int,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
    ) -> None:
        self.screen = pyte.Screen(columns, rows)
        self.raw = bytearray()
        self._stream = pyte.ByteStream(self.screen)
        # The size must not come from variables that the caller of the tests has exported.
        ours = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        environment = ours | {"TERM": "xterm-256color", "COLORTERM": "truecolor"} | (env or {})
        self.child: Any = pexpect.spawn(
            command[0], list(command[1:]), dimensions=(rows, columns), env=environment, timeout=60, cwd=cwd
        )
        self._answered = False
        self._shown = 0  # bytes of `raw` that are on the screen

    def read(self, seconds: float = 0.05) -> None:
        """Read what the program writes, for about that long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                data = self.child.read_nonblocking(1 << 16, timeout=left)
            except pexpect.TIMEOUT:
                return
            except pexpect.EOF:
                self._show(len(self.raw))
                time.sleep(min(left, 0.02))
                return
            self.raw += data
            # The two codes are equally long; one may have come in two pieces.
            recent = max(0, self._shown - len(_BEGINS))
            begun, ended = self.raw.rfind(_BEGINS, recent), self.raw.rfind(_ENDS, recent)
            self._show(len(self.raw) if begun <= ended else max(begun, self._shown))
            if not self._answered and _ASKED in self.raw:
                self._answered = True
                self.child.send(_ANSWER)

    def _show(self, end: int) -> None:
        self._stream.feed(bytes(self.raw[self._shown : end]))
        self._shown = end

    def press(self, *keys: str) -> None:
        """Type keys, given by name or as text."""
        for key in keys:
            self.child.send(KEYS.get(key, key))

    def text(self) -> str:
        """The text on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    def wait(self, what: str | Callable[[str], bool], *, within: float = 60.0) -> str:
        """Read until the screen contains the text or satisfies the function; returns the screen's text."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            self.read(0.05)
            text = self.text()
            if what in text if isinstance(what, str) else what(text):
                return text
            if not self.child.isalive() and not self.child.flag_eof:
                self.read(0.2)
        raise AssertionError(f"not on the screen within {within} s: {what}\n{self.text()}")

    def ended(self, *, within: float = 30.0) -> int:
        """Wait for the program to end; returns its exit code, or 128 + signal."""
        end = time.monotonic() + within
        while self.child.isalive() and time.monotonic() < end:
            self.read(0.05)
        assert not self.child.isalive(), f"still running after {within} s\n{self.text()}"
        self.read(0.1)
        self.child.close()
        return self.child.exitstatus if self.child.exitstatus is not None else 128 + self.child.signalstatus

    def close(self) -> None:
        """Kill the program if it still runs."""
        with contextlib.suppress(Exception):
            self.child.close(force=True)
