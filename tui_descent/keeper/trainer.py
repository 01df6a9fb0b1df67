"""The keeper's side of the trainer: its socket, its ring, its log file, and whether its process has died."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tui_descent.protocol.channel import ChannelError, Peer
from tui_descent.protocol.codec import MAX_TO_VIEWER
from tui_descent.protocol.inherited_fds import describe_fd
from tui_descent.protocol.launch import (
    ENV_FOLDER,
    ENV_LINK,
    ENV_RING,
    LOG_FILE,
    Launch,
    command_environment,
    module_command,
    module_environment,
    open_connection,
)
from tui_descent.protocol.ring import Ring
from tui_descent.protocol.run_lock import lock_fds

LOG_LINES = 12
LOG_TAIL_BYTES = 8192


class Trainer:
    """The process that trains. It is a `process` started by this keeper, or this keeper's `parent`.

    `file` is the descriptor of the ring's shared memory.
    """

    def __init__(
        self, link: socket.socket, file: int, *, process: subprocess.Popen[bytes] | None, parent: int | None
    ) -> None:
        self.link = Peer(link, limit=MAX_TO_VIEWER)
        self._file = file
        self.process = process
        self._parent = parent
        self.pid = process.pid if process else parent or 0
        self._pidfd = _pidfd(self.pid)

    @classmethod
    def start(cls, launch: Launch) -> Trainer:
        """Start the scenario's trainer or the user's command; its output goes to the run's log. Raises `OSError`."""
        command: Sequence[str] = launch.command or module_command("tui_descent.training.process", launch.folder)
        environment = command_environment() if launch.command else module_environment()
        with open_connection(launch) as (ours, theirs, file), (launch.path / LOG_FILE).open("ab") as log:
            handed = {ENV_FOLDER: launch.folder, ENV_LINK: describe_fd(theirs.fileno()), ENV_RING: describe_fd(file)}
            # In its own session it does not receive the terminal's ctrl+c. The keeper handles that and sends a Stop.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment | handed | {"PYTHONUNBUFFERED": "1"},
                pass_fds=[theirs.fileno(), file, *lock_fds(launch.path)],
                start_new_session=True,
            )
        return cls(ours, file, process=process, parent=None)

    @classmethod
    def adopt(cls, link: socket.socket, file: int, *, parent: int) -> Trainer:
        """The trainer for a user loop that has started this keeper."""
        return cls(link, file, process=None, parent=parent)

    def ring(self) -> Ring:
        """Open the ring, after the trainer has created it. Raises `ChannelError` if it cannot be read."""
        try:
            return Ring.open(self._file)
        except (OSError, ValueError) as error:
            raise ChannelError(f"cannot read the trainer's shared memory: {error}") from error

    @property
    def exit_fd(self) -> int | None:
        """A file descriptor that becomes readable when the process exits; None if the system does not support this."""
        return self._pidfd

    def exited(self) -> bool:
        """Whether the process has exited. The keeper checks this at every tick."""
        if self.process is not None:
            return self.process.poll() is not None
        return self.link.closed is not None or os.getppid() != self._parent

    def exit_code(self) -> int | None:
        """The exit code, negative for a signal. None for a user loop, because only its parent process gets the code."""
        return self.process.returncode if self.process is not None else None

    def signal(self, number: signal.Signals) -> None:
        """Signal a trainer that this keeper started, and its children. A user loop is never signalled."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def close(self) -> None:
        self.link.close()
        os.close(self._file)
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def log_tail(folder: Path) -> tuple[str, ...]:
    """The last lines that the trainer printed."""
    try:
        with (folder / LOG_FILE).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ()
    return tuple(line[:500] for line in text.splitlines()[-LOG_LINES:])


def _pidfd(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
