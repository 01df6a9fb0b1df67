"""The process between a keeper and a user's script: it starts the script on a terminal (pty) of its own.

`python -m tui_descent.keeper.script_terminal FOLDER CONTROL LINK RING COLUMNS ROWS COMMAND…`; CONTROL, LINK and RING
are inherited file descriptors, and the script inherits LINK and RING. This process writes what the script prints to the
run's log. It outlives the keeper and the dashboard: if these are killed, the script still has its terminal.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

from tui_descent.keeper.output_log import OutputLog
from tui_descent.protocol.channel import Peer
from tui_descent.protocol.codec import FrameError, decode
from tui_descent.protocol.launch import EXIT_CODE_FILE, LOG_FILE, command_environment
from tui_descent.protocol.run_lock import hold_lock, keep_folder
from tui_descent.protocol.script_terminal import MAX_BYTES, ScriptExited, SendSignal, SetSize, to_terminal

CHUNK = 1 << 16
NOT_RUN = 127  # the exit code of a shell for a command that it cannot run
# How long to wait for the last output after the script has exited, if children of the script keep its terminal open.
LAST_OUTPUT_WITHIN_S = 0.5
# How often to check whether a script that has closed its terminal has opened it again.
REOPENED_S = 0.5
# Nobody can type, so a read from the terminal must return the end of the input. Each read uses up one of these bytes.
END_OF_INPUT = b"\x04" * 8


class ScriptTerminal:
    """A script on its own terminal. `folder` is the run's, `control` the connection to the keeper."""

    def __init__(self, folder: Path, control: Peer, log: OutputLog, *, size: tuple[int, int]) -> None:
        self._folder, self._control, self._log = folder, control, log
        self._master, self._slave = os.openpty()
        os.set_blocking(self._master, False)
        fcntl.ioctl(self._slave, termios.TIOCSCTTY, 0)  # this process is the leader of a new session
        self._set_size(*size)
        modes = termios.tcgetattr(self._slave)
        modes[1] &= ~termios.OPOST  # with this, a line in the log ends with \n and not with \r\n
        termios.tcsetattr(self._slave, termios.TCSANOW, modes)
        with contextlib.suppress(OSError):
            os.write(self._master, END_OF_INPUT)
        self._selector = selectors.DefaultSelector()
        self._exits, wakeup = socket.socketpair()
        for end in (self._exits, wakeup):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup.detach(), warn_on_full_buffer=False)
        self._script: subprocess.Popen[bytes] | None = None
        self.left_alone = False  # whether the keeper has exited before the script

    def run(self, command: Sequence[str], inherited: Sequence[int]) -> None:
        """Run the script to its end. Then keep the terminal open as long as children of the script use it."""
        self._start(command, inherited)
        self._selector.register(self._master, selectors.EVENT_READ, self._read_output)
        self._selector.register(self._control.socket, selectors.EVENT_READ, self._read_control)
        self._selector.register(self._exits, selectors.EVENT_READ, lambda: self._exits.recv(CHUNK))
        while self._script is not None and self._script.poll() is None:
            self._wait(None if self._reading else REOPENED_S)
            if not self._reading:
                self._selector.register(self._master, selectors.EVENT_READ, self._read_output)
        end_s = time.monotonic() + LAST_OUTPUT_WITHIN_S
        while self._reading and time.monotonic() < end_s:
            self._wait(LAST_OUTPUT_WITHIN_S)
        self.left_alone = self._control.closed is not None
        code = NOT_RUN if self._script is None else self._script.returncode
        self._control.send(ScriptExited(code=code))
        if self.left_alone:
            with contextlib.suppress(OSError):
                (self._folder / EXIT_CODE_FILE).write_text(str(code))
        while self._reading:
            self._wait(None)
        self._leave_terminal()

    def _start(self, command: Sequence[str], inherited: Sequence[int]) -> None:
        """Start the script as the terminal's foreground process group, as a shell does."""
        # The outer terminal's size must not be taken for this one's.
        env = {name: value for name, value in command_environment().items() if name not in ("COLUMNS", "LINES")}
        slave = self._slave
        try:
            self._script = subprocess.Popen(
                command, stdin=slave, stdout=slave, stderr=slave, env=env, pass_fds=inherited, preexec_fn=_to_foreground
            )
        except (OSError, subprocess.SubprocessError) as error:
            self._log.write(f"tui-descent: cannot run {command[0]}: {error}\n".encode(errors="replace"))
        finally:
            os.close(slave)
            for file in inherited:
                os.close(file)

    @property
    def _reading(self) -> bool:
        return self._master in self._selector.get_map()

    def _wait(self, timeout_s: float | None) -> None:
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def _read_output(self) -> None:
        try:
            data = os.read(self._master, CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # no process has the terminal open
            data = b""
        if data:
            self._log.write(data)
        else:
            self._selector.unregister(self._master)

    def _read_control(self) -> None:
        try:
            for body in self._control.receive():
                match decode(to_terminal, body):
                    case SetSize(columns=columns, rows=rows):
                        self._set_size(columns, rows)
                    case SendSignal(number=number):
                        self._signal(number)
        except FrameError as error:
            self._control.closed = str(error)
        if self._control.closed:  # the keeper has exited; the script goes on
            self._selector.unregister(self._control.socket)

    def _set_size(self, columns: int, rows: int) -> None:
        with contextlib.suppress(OSError, struct.error):  # the kernel sends SIGWINCH to the script
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _signal(self, number: int) -> None:
        if self._script is not None and self._script.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._script.pid, number)

    def _leave_terminal(self) -> None:
        """Make this process's own group the terminal's foreground group again. When this process exits, the kernel
        sends SIGHUP to the foreground group, which must not reach children that the script has left running.
        """
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            os.tcsetpgrp(self._master, os.getpgrp())


def _to_foreground() -> None:
    """Called in the script's process before the script begins: make it the terminal's foreground process group."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)


def main(argv: list[str]) -> int:
    """Run one script. Returns 0 when it has ended, whatever its exit code."""
    folder, (control, link, ring, columns, rows), command = Path(argv[0]), map(int, argv[1:6]), argv[6:]
    hold_lock(folder)  # the folder is in use as long as the script runs, also without a keeper
    # If this process ended at a logout, the script would end too. So it ignores these signals, and the script decides
    # for itself. It uses handlers, because the script would inherit SIG_IGN but not handlers.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    peer = Peer(socket.socket(fileno=control), limit=MAX_BYTES)
    log = OutputLog(folder / LOG_FILE)
    try:
        terminal = ScriptTerminal(folder, peer, log, size=(columns, rows))
    except OSError as error:
        log.write(f"tui-descent: cannot open a terminal (pty) for the script: {error.strerror}\n".encode())
        peer.send(ScriptExited(code=NOT_RUN))
        return 1
    terminal.run(command, (link, ring))
    if terminal.left_alone and (folder / LOG_FILE).stat().st_size:
        keep_folder(folder)  # it has the script's output
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
