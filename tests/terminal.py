"""A real terminal for tests and pictures: a command in a pty, its screen kept by pyte, keys typed into it."""

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


# Mode 2026, synchronized output: what stands between the two is one frame.
_ASKED, _ANSWER = b"\x1b[?2026$p", "\x1b[?2026;2$y"
_BEGINS, _ENDS = b"\x1b[?2026h", b"\x1b[?2026l"


class Terminal:
    """`wait(what)` reads until the screen satisfies it, within a generous bound; never a frame half drawn."""

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
        # A terminal's size is its own: not the one that whoever runs the tests has exported.
        ours = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        environment = ours | {"TERM": "xterm-256color", "COLORTERM": "truecolor"} | (env or {})
        self.child: Any = pexpect.spawn(
            command[0], list(command[1:]), dimensions=(rows, columns), env=environment, timeout=60, cwd=cwd
        )
        self._answered = False

    def read(self, seconds: float = 0.05) -> None:
        """Take in what the program writes for about that long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                data = self.child.read_nonblocking(1 << 16, timeout=left)
            except pexpect.TIMEOUT:
                return
            except pexpect.EOF:
                time.sleep(min(left, 0.02))
                return
            self.raw += data
            self._stream.feed(data)
            if not self._answered and _ASKED in self.raw:
                self._answered = True
                self.child.send(_ANSWER)

    def press(self, *keys: str) -> None:
        """Type keys by name, or as they are."""
        for key in keys:
            self.child.send(KEYS.get(key, key))

    def text(self) -> str:
        """The screen's characters."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    def wait(self, what: str | Callable[[str], bool], *, within: float = 60.0) -> str:
        """Read until the screen holds the text, or satisfies the function; the screen then. Fails with the screen."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            self.read(0.05)
            text = self.text()
            if self._whole() and (what in text if isinstance(what, str) else what(text)):
                return text
            if not self.child.isalive() and not self.child.flag_eof:
                self.read(0.2)
        raise AssertionError(f"not on the screen within {within} s: {what}\n{self.text()}")

    def _whole(self) -> bool:
        """Whether no frame is under way; of a program that is gone none is."""
        return self.raw.rfind(_BEGINS) <= self.raw.rfind(_ENDS) or not self.child.isalive()

    def ended(self, *, within: float = 30.0) -> int:
        """Wait for the program's end; its exit code, or 128 + signal."""
        end = time.monotonic() + within
        while self.child.isalive() and time.monotonic() < end:
            self.read(0.05)
        assert not self.child.isalive(), f"still running after {within} s\n{self.text()}"
        self.read(0.1)
        self.child.close()
        return self.child.exitstatus if self.child.exitstatus is not None else 128 + self.child.signalstatus

    def close(self) -> None:
        """End it if it is still there."""
        with contextlib.suppress(Exception):
            self.child.close(force=True)
