"""Pass open file descriptors to a child process by number: the keeper and the trainer share a socket and a ring."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket

# Shell redirections use low numbers, so descriptors from this number on cannot clash with them.
FIRST_FD = 64


def move_to_high_fd(file: int) -> int:
    """Duplicate the descriptor to a high number, if the limit on open files allows it, and close the old one."""
    for first in (FIRST_FD, 3):
        with contextlib.suppress(OSError):
            moved = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, first)
            os.close(file)
            return moved
    return file


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair with high descriptor numbers. Raises `OSError`."""
    ours, theirs = (socket.socket(fileno=move_to_high_fd(end.detach())) for end in socket.socketpair())
    return ours, theirs


def describe_fd(file: int) -> str:
    """The descriptor with its device and inode, as text for an environment variable."""
    found = os.fstat(file)
    return f"{file}:{found.st_dev}:{found.st_ino}"


def find_fd(text: str) -> int | None:
    """The descriptor from the text of `describe_fd`; None if it has been closed or now refers to another file."""
    with contextlib.suppress(OSError, ValueError):
        file = int(text.partition(":")[0])
        return file if describe_fd(file) == text else None
    return None
