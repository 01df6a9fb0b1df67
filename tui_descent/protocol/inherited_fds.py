"""Open files handed on to another process by their numbers, as a keeper and its trainer share a socket and a ring."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket

# No shell's redirection and no closed stdin takes numbers from here on.
FIRST_FD = 64


def move_to_high_fd(file: int) -> int:
    """The same open file at a high number, where the limit on open files allows; the old number is closed."""
    for first in (FIRST_FD, 3):
        with contextlib.suppress(OSError):
            moved = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, first)
            os.close(file)
            return moved
    return file


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends, at high numbers. Raises `OSError`."""
    ours, theirs = (socket.socket(fileno=move_to_high_fd(end.detach())) for end in socket.socketpair())
    return ours, theirs


def describe_fd(file: int) -> str:
    """An open file's number, and which file it is."""
    found = os.fstat(file)
    return f"{file}:{found.st_dev}:{found.st_ino}"


def find_fd(text: str) -> int | None:
    """The descriptor that `describe_fd` described; None if it has been closed or reused for another file."""
    with contextlib.suppress(OSError, ValueError):
        file = int(text.partition(":")[0])
        return file if describe_fd(file) == text else None
    return None
