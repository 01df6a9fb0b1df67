"""Open file descriptors that the keeper and the trainer share.

They are passed to a child process by number. A user's script may close descriptors that it does not know, and their
numbers may then be reused for other files. So we use or close a number only while it still refers to our file.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
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


def close_fd(text: str) -> None:
    """Close the descriptor from the text of `describe_fd`, unless it has been closed or refers to another file."""
    if (file := find_fd(text)) is not None:
        os.close(file)


def map_file(file: int, size: int) -> tuple[mmap.mmap, str | None]:
    """Map the file. Also returns a description of the mapping's own descriptor, which `close_mapping` needs."""
    # Python duplicates the descriptor for the mapping, to the lowest free number.
    lowest = os.dup(file)
    os.close(lowest)
    memory = mmap.mmap(file, size)
    own = describe_fd(file).partition(":")[2]
    mapping = f"{lowest}:{own}"
    return memory, mapping if find_fd(mapping) is not None else None


def close_mapping(memory: mmap.mmap, mapping: str | None) -> None:
    """Close a mapping from `map_file`.

    This closes the mapping's own descriptor. If its number refers to another file now, that file stays open.
    """
    saved = None
    number = int(mapping.partition(":")[0]) if mapping is not None else -1
    if mapping is not None and find_fd(mapping) is None:
        with contextlib.suppress(OSError):  # the number is free
            saved = os.dup(number), os.get_inheritable(number)
    with contextlib.suppress(BufferError):
        memory.close()
    if saved is not None:
        copy, inheritable = saved
        os.dup2(copy, number, inheritable)
        os.close(copy)
