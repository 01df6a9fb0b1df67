"""Locks on the folders of runs: a folder whose lock nobody holds was left behind by a process that was killed.

Every process that works for a run holds its lock; the system releases it when the process ends, however it ends. A
folder without a lock file is kept on purpose. An example is the folder of a failed run, which is kept for its log.

The keeper also holds a second lock, exclusively, so that a run has only one keeper.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tui_descent.protocol.inherited_fds import describe_fd, find_fd, move_to_high_fd
from tui_descent.protocol.private_folder import ChannelError

LOCK_FILE, KEEPER_LOCK_FILE = "lock", "keeper.lock"
# A process that only asks whether a lock is held takes it for a moment. Others then try again.
TRIES, TRY_AGAIN_S = 50, 0.01
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


def is_held(folder: Path) -> bool:
    """Whether any process works for the run."""
    return _is_locked(folder / LOCK_FILE)


def hold_keeper_lock(folder: Path) -> int | None:
    """Become the only keeper of a run. Returns the descriptor of the lock, which is held until that is closed; None if
    the file system has no locks. Raises `ChannelError` if the run has a keeper.
    """
    try:
        file = move_to_high_fd(os.open(folder / KEEPER_LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError:
        return None
    try:
        _lock(file, fcntl.LOCK_EX)
    except BlockingIOError:
        os.close(file)
        raise ChannelError(f"the run {folder.name} has a keeper already") from None
    except OSError:
        os.close(file)
        return None
    return file


def has_keeper(folder: Path) -> bool:
    """Whether a keeper serves the run."""
    return _is_locked(folder / KEEPER_LOCK_FILE)


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
        _lock(file, fcntl.LOCK_SH)
    except OSError:
        os.close(file)
        raise
    release_lock(folder)
    _held[folder] = describe_fd(file)


def _lock(file: int, kind: int) -> None:
    for tries_left in reversed(range(TRIES)):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not tries_left:
                raise
        time.sleep(TRY_AGAIN_S)


def _is_locked(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False
