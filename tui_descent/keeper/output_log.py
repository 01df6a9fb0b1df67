"""The file that keeps what a script prints. Its size is bounded: its head and its tail are kept."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tui_descent.telemetry.script_output import without_overwritten

HEAD_BYTES = 1 << 18
TAIL_BYTES = 1 << 20


class OutputLog:
    """Appends to a file of at most `head + 2·tail` bytes and one line that says how much was left out.

    When the file is full, it is shortened to its first `head` and its last `tail` bytes, so it can be read at any time.
    Overwritten states of progress bars are dropped first.
    """

    def __init__(self, path: Path, *, head: int = HEAD_BYTES, tail: int = TAIL_BYTES) -> None:
        self._head_bytes, self._tail = head, tail
        self._head = b""  # the first lines, once something was left out
        self._begin = 0  # where the tail begins in the file, once something was left out
        self._left_out = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._size = 0

    def write(self, data: bytes) -> None:
        """Append to the log. If the disk is full, what does not fit is lost."""
        for start in range(0, len(data), self._tail):
            with contextlib.suppress(OSError):
                self._size += os.pwrite(self._file, data[start : start + self._tail], self._size)
                if self._size > self._head_bytes + 2 * self._tail:
                    self._shorten()

    def _shorten(self) -> None:
        content = without_overwritten(os.pread(self._file, self._size - self._begin, self._begin))
        if not self._left_out:
            if len(content) <= self._head_bytes + self._tail:
                self._rewrite(content)
                return
            end = content.rfind(b"\n", 0, self._head_bytes) + 1 or self._head_bytes
            self._head, content = content[:end], content[end:]
        tail = content[-self._tail :]
        self._left_out += len(content) - len(tail)
        head = self._head + f"\n[… about {self._left_out:,} bytes left out …]\n".encode()
        self._begin = len(head)
        self._rewrite(head + tail)

    def _rewrite(self, content: bytes) -> None:
        # In place, since a full disk may have no room for a second file.
        os.pwrite(self._file, content, 0)
        os.ftruncate(self._file, len(content))
        self._size = len(content)

    def close(self) -> None:
        os.close(self._file)
