"""Both ends of a framed Unix socket. A closed or broken peer is a value (`Peer.closed`), never an exception."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections import deque
from pathlib import Path
from typing import Any

from tui_descent.protocol.codec import FrameError, FrameReader, frame

# macOS allows 104 bytes in a socket's path, Linux 108; one is the closing zero.
MAX_PATH = 103
CHUNK = 1 << 16


class ChannelError(Exception):
    """A socket that cannot be had; the text says what to do."""


class Peer:
    """One non-blocking end: frames in, frames out, with a bound on what waits to be sent."""

    def __init__(self, sock: socket.socket, *, limit: int) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.closed: str | None = None
        self._reader = FrameReader(limit)
        self._out: deque[bytes] = deque()
        self._sent = 0  # of the first waiting frame
        self.waiting = 0

    def fileno(self) -> int:
        """For selectors."""
        return self.socket.fileno()

    def receive(self) -> list[bytes]:
        """The frame bodies at hand. At the peer's end `closed` says why. Raises `FrameError` on a malformed frame."""
        bodies: list[bytes] = []
        while self.closed is None:
            try:
                data = self.socket.recv(CHUNK)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self.closed = error.strerror or "broken"
                break
            if not data:
                self.closed = "the other end closed"
                break
            bodies += self._reader.feed(data)
            if len(data) < CHUNK:
                break
        return bodies

    def send(self, message: Any) -> None:
        """Queue one message and send what the socket takes now; `waiting` counts the bytes it did not take."""
        self.queue(message)
        self.flush()

    def queue(self, message: Any) -> None:
        """Send it with the next `flush`: what is queued together arrives together, as far as the socket takes it."""
        if self.closed is None:
            self._out.append(frame(message))
            self.waiting += len(self._out[-1])

    def drop_waiting(self) -> None:
        """Forget the queued messages, save one whose first bytes are on the way."""
        while len(self._out) > (1 if self._sent else 0):
            self.waiting -= len(self._out.pop())

    def flush(self) -> None:
        """Send what the socket takes without blocking."""
        while self._out and self.closed is None:
            self._join()
            try:
                sent = self.socket.send(memoryview(self._out[0])[self._sent : self._sent + (1 << 18)])
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self.closed = error.strerror or "broken"
                return
            self._sent += sent
            self.waiting -= sent
            if self._sent == len(self._out[0]):
                self._out.popleft()
                self._sent = 0

    def _join(self) -> None:
        """Small frames at the front as one: a call a frame costs more than the frame."""
        if self._sent or len(self._out) < 2:
            return
        parts, size = [self._out.popleft()], 0
        while self._out and (size := size + len(parts[-1])) < CHUNK:
            parts.append(self._out.popleft())
        self._out.appendleft(b"".join(parts))

    def close(self) -> None:
        """Close this end."""
        self.closed = self.closed or "closed here"
        self.socket.close()


def listen(path: Path) -> socket.socket:
    """A listening socket, 0600 in a folder of ours, 0700. Raises `ChannelError`.

    A socket file left by a dead process is taken over; a live one is not.
    """
    check_path(path)
    private_folder(path.parent)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _bind(sock, path)
        sock.listen(64)
    except OSError as error:
        sock.close()
        raise ChannelError(f"cannot listen on {path}: {error.strerror}") from None
    sock.setblocking(False)
    return sock


def check_path(path: Path) -> None:
    """Raises `ChannelError` where a socket's path would be too long for the system."""
    if len(os.fsencode(path)) > MAX_PATH:
        raise ChannelError(
            f"socket path {path} is longer than {MAX_PATH} bytes; set TUI_DESCENT_HOME to a short folder"
        )


def private_folder(folder: Path) -> None:
    """Make the folder, 0700. Raises `ChannelError` if it is another user's or open to others."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise ChannelError(f"cannot make the folder {folder}: {error.strerror}; set TUI_DESCENT_HOME") from None
    if found.st_uid != os.getuid():
        raise ChannelError(f"the folder {folder} belongs to another user; set TUI_DESCENT_HOME to one of yours")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ChannelError(f"the folder {folder} is open to other users; chmod 700 it")


def _bind(sock: socket.socket, path: Path) -> None:
    mask = os.umask(0o177)
    try:
        try:
            sock.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or _alive(path):
                raise
            path.unlink()
            sock.bind(str(path))
    finally:
        os.umask(mask)


def _alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True


__all__ = ["ChannelError", "FrameError", "Peer", "check_path", "listen", "private_folder"]
