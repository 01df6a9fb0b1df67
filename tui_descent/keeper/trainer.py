"""The keeper's side of the trainer: its socket, its ring, and whether its process has died.

A scenario's trainer is a child of this process. A user's script is started by a process that holds its terminal
(`script_terminal.py`), so the script survives this process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from tui_descent.protocol.channel import ChannelError, Peer
from tui_descent.protocol.codec import MAX_TO_VIEWER, FrameError, decode
from tui_descent.protocol.inherited_fds import describe_fd, socket_pair
from tui_descent.protocol.joining import send_connection
from tui_descent.protocol.launch import (
    ENV_FOLDER,
    ENV_LINK,
    ENV_RING,
    EXIT_CODE_FILE,
    KEEPER_LOG_FILE,
    LOG_FILE,
    Launch,
    module_command,
    module_environment,
    open_connection,
    open_log,
)
from tui_descent.protocol.ring import Ring
from tui_descent.protocol.run_lock import lock_fds
from tui_descent.protocol.script_terminal import MAX_BYTES, SendSignal, SetSize, to_keeper
from tui_descent.telemetry.script_output import last_lines

LOG_LINES = 12
EXIT_CODE_WITHIN_S = 1.0


class Script:
    """The keeper's side of a user's script: `process` holds its terminal and reports its exit over `control`."""

    def __init__(self, control: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.control = Peer(control, limit=MAX_BYTES)
        self.process = process
        self.exit_code: int | None = None

    @classmethod
    def start(cls, launch: Launch, env: dict[str, str], inherited: list[int]) -> Script:
        """Start the command of a run on a terminal of its own. Raises `OSError`."""
        assert launch.command is not None
        ours, theirs = socket_pair()
        with theirs, open_log(launch.path / KEEPER_LOG_FILE) as log:
            numbers = map(str, (theirs.fileno(), *inherited, *launch.terminal_size))
            try:
                process = subprocess.Popen(
                    module_command(_TERMINAL_MODULE, launch.folder, *numbers, *launch.command),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=env,
                    pass_fds=[theirs.fileno(), *inherited, *lock_fds(launch.path)],
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        return cls(ours, process)

    def exited(self) -> bool:
        """Whether the script has exited, or the process that holds its terminal has been killed."""
        try:
            for body in self.control.receive():
                self.exit_code = decode(to_keeper, body).code
        except FrameError as error:
            self.control.closed = str(error)
        return self.exit_code is not None or self.control.closed is not None

    def set_size(self, columns: int, rows: int) -> None:
        """Give the terminal another size."""
        self.control.send(SetSize(columns=columns, rows=rows))

    def signal(self, number: signal.Signals) -> None:
        self.control.send(SendSignal(number=number))

    def close(self) -> None:
        self.control.close()
        # It ends at once, unless the script has left children that use the terminal.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0.5)


_TERMINAL_MODULE = "tui_descent.keeper.script_terminal"


# torch warns when it finds no NumPy. Nothing here needs it, and the warning would begin the log of a lost trainer.
NO_NUMPY_WARNING = "-Wignore:Failed to initialize NumPy:UserWarning"


class Trainer:
    """The process that trains. It is a `process` or a `script` started by this keeper, or this keeper's `parent`.

    `file` is the descriptor of the ring's shared memory.
    """

    def __init__(
        self,
        link: socket.socket,
        file: int,
        *,
        process: subprocess.Popen[bytes] | None = None,
        script: Script | None = None,
        parent: int | None = None,
    ) -> None:
        self.link = Peer(link, limit=MAX_TO_VIEWER)
        self._file = file
        self.process, self.script = process, script
        self._parent = parent
        self._exit_file: Path | None = None  # of an adopted script: where its terminal writes the exit code
        self._owned = False  # whether this keeper may signal its parent
        self._pidfd = None if script is not None else _pidfd(process.pid if process else parent or 0)

    @classmethod
    def start(cls, launch: Launch) -> Trainer:
        """Start the scenario's trainer or the user's command; its output goes to the run's log. Raises `OSError`."""
        with open_connection(launch) as (ours, theirs, file), open_log(launch.path / LOG_FILE) as log:
            handed = {ENV_FOLDER: launch.folder, ENV_LINK: describe_fd(theirs.fileno()), ENV_RING: describe_fd(file)}
            if launch.command is not None:
                script = Script.start(launch, module_environment() | handed, [theirs.fileno(), file])
                return cls(ours, file, script=script)
            # In its own session it does not receive the terminal's ctrl+c. The keeper handles that and sends a Stop.
            process = subprocess.Popen(
                module_command("tui_descent.training.process", launch.folder, python_options=(NO_NUMPY_WARNING,)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=module_environment() | handed | {"PYTHONUNBUFFERED": "1"},
                pass_fds=[theirs.fileno(), file, *lock_fds(launch.path)],
                start_new_session=True,
            )
        return cls(ours, file, process=process)

    @classmethod
    def adopt(cls, link: socket.socket, file: int, *, parent: int, launch: Launch | None = None) -> Trainer:
        """The trainer that has started this keeper: a user loop, or a run whose first keeper has died."""
        trainer = cls(link, file, parent=parent)
        if launch is not None and launch.command is not None:
            trainer._exit_file = launch.path / EXIT_CODE_FILE
        trainer._owned = launch is not None and (launch.scenario is not None or launch.command is not None)
        return trainer

    def connect_again(self, sock: socket.socket) -> None:
        """Send the trainer's end of a new connection, and the ring, to the process at `sock`, which becomes the
        trainer. Raises `OSError`.
        """
        ours, theirs = socket_pair()
        with theirs:
            try:
                send_connection(sock, theirs, self._file)
            except OSError:
                ours.close()
                raise
        self.link.close()
        self.link = Peer(ours, limit=MAX_TO_VIEWER)

    def ring(self) -> Ring:
        """Open the ring, after the trainer has created it. Raises `ChannelError` if it cannot be read."""
        try:
            return Ring.open(self._file)
        except (OSError, ValueError) as error:
            raise ChannelError(f"cannot read the trainer's shared memory: {error}") from error

    @property
    def exit_fd(self) -> int | None:
        """A file descriptor that becomes readable when the process exits; None if the system does not support this."""
        return self.script.control.fileno() if self.script is not None else self._pidfd

    def exited(self) -> bool:
        """Whether the process has exited. The keeper checks this at every tick."""
        if self.script is not None:
            return self.script.exited()
        if self.process is not None:
            return self.process.poll() is not None
        if self._owned:  # a script may run long after its loop has closed the connection
            return os.getppid() != self._parent
        return self.link.closed is not None or os.getppid() != self._parent

    def exit_code(self) -> int | None:
        """The exit code, negative for a signal. None for a user loop, because only its parent process gets the code."""
        if self.script is not None:
            return self.script.exit_code
        if self._exit_file is not None:
            return _read_exit_code(self._exit_file)
        return self.process.returncode if self.process is not None else None

    def signal(self, number: signal.Signals) -> None:
        """Signal a trainer that this run started, and its children. A user's own process is never signalled."""
        if self.script is not None:
            self.script.signal(number)
        elif self._owned and self._parent is not None and os.getppid() == self._parent:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(os.getpgid(self._parent), number)
        elif self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def close(self) -> None:
        if self.script is not None:
            self.script.close()
        self.link.close()
        os.close(self._file)
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def _read_exit_code(file: Path) -> int | None:
    """The exit code of a script whose first keeper has died. Its terminal writes it when the script has ended."""
    end_s = time.monotonic() + EXIT_CODE_WITHIN_S
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError, ValueError):
            return int(file.read_text())
        time.sleep(0.02)
    return None


def log_tail(folder: Path) -> tuple[str, ...]:
    """The last lines that the trainer printed."""
    return tuple(line[:500] for line in last_lines(folder / LOG_FILE, LOG_LINES))


def _pidfd(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
