"""Locks on the folders of runs: a folder whose lock nobody holds was left behind by a process that was killed.

Every process that works for a run holds its lock; the system releases it when the process ends, however it ends. A
folder without a lock file is kept on purpose. An example is the folder of a failed run, which is kept for its log.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from tui_descent.protocol.inherited_fds import describe_fd, find_fd, move_to_high_fd

LOCK_FILE = "lock"
# The descriptor of each lock, as text from `describe_fd`, because a script may close or reuse its number.
_held: dict[Path, str] = {}


def create_lock(folder: Path) -> None:
    """Create the folder's lock file, and hold the lock. Without support for locks there is no file."""
    for ended in [path for path in _held if not path.exists()]:
        release_lock(ended)
    hidden = folder / f".{LOCK_FILE}"
    with contextlib.suppress(OSError):
        _hold(folder, os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        hidden.rename(folder / LOCK_FILE)  # it appears when the lock is held


def hold_lock(folder: Path) -> None:
    """Hold the lock of a folder that another process has created."""
    with contextlib.suppress(OSError):
        _hold(folder, os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC))


def lock_fds(folder: Path) -> list[int]:
    """The descriptor of the lock, if this process holds it. A child process that inherits the descriptor holds the lock
    too.
    """
    file = find_fd(_held.get(folder, ""))
    return [] if file is None else [file]


def release_lock(folder: Path) -> None:
    """Release the lock, if this process holds it."""
    file = find_fd(_held.pop(folder, ""))
    if file is not None:
        os.close(file)


def keep_folder(folder: Path) -> None:
    """Mark the folder as kept on purpose."""
    (folder / LOCK_FILE).unlink(missing_ok=True)
    release_lock(folder)


@contextlib.contextmanager
def left_behind(folder: Path) -> Iterator[bool]:
    """Whether the folder is ours and nobody holds its lock. If so, nobody else can take the lock inside the `with`."""
    try:
        file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = os.fstat(file).st_uid == os.getuid()
    except OSError:
        free = False
    try:
        yield free
    finally:
        os.close(file)


def _hold(folder: Path, file: int) -> None:
    file = move_to_high_fd(file)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise
    release_lock(folder)
    _held[folder] = describe_fd(file)
