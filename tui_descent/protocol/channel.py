"""Unix sockets that carry framed messages. A lost connection sets `Peer.closed`; it never raises an exception."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from collections import deque
from pathlib import Path
from typing import Any

from tui_descent.protocol.codec import HEADER, FrameError, FrameReader, frame
from tui_descent.protocol.private_folder import ChannelError, private_folder

# A socket path may have 104 bytes on macOS and 108 on Linux, including the terminating zero.
MAX_PATH = 103
CHUNK = 1 << 16


class Peer:
    """One non-blocking end of a connection. `waiting` is the number of bytes queued to be sent."""

    def __init__(self, sock: socket.socket, *, limit: int) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.closed: str | None = None
        self._reader = FrameReader(limit)
        self._out: deque[bytes] = deque()
        self._sent = 0  # bytes of the first queued frame that have been sent
        self.waiting = 0

    def fileno(self) -> int:
        return self.socket.fileno()  # makes a Peer selectable

    def receive(self) -> list[bytes]:
        """The frame bodies that have arrived. Sets `closed` if the peer is gone. Raises `FrameError` on a bad frame."""
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
                self.closed = "the other end closed the connection"
                break
            bodies += self._reader.feed(data)
            if len(data) < CHUNK:
                break
        return bodies

    def check(self) -> None:
        """Set `closed` if the other end has closed the connection, also if something it sent was not read yet."""
        if self.closed is None:
            poll = select.poll()
            poll.register(self.socket, select.POLLHUP)
            if poll.poll(0):
                self.closed = "the other end closed the connection"

    def send(self, message: Any) -> None:
        """Queue a message and send as much as the socket accepts without blocking."""
        self.queue(message)
        self.flush()

    def queue(self, message: Any) -> None:
        """Queue a message for the next `flush`, so that several messages are sent together."""
        if self.closed is None:
            self._out.append(frame(message))
            self.waiting += len(self._out[-1])

    def waiting_bodies(self) -> list[bytes]:
        """The bodies of the queued frames, including a frame that has been sent in part."""
        bodies: list[bytes] = []
        for number, frames in enumerate(self._out):
            at = 0
            while at < len(frames):
                body = at + HEADER.size
                at = body + HEADER.unpack_from(frames, at)[0]
                if number or at > self._sent:
                    bodies.append(frames[body:at])
        return bodies

    def drop_waiting(self) -> None:
        """Drop the queued messages, except one that has been sent in part."""
        while len(self._out) > (1 if self._sent else 0):
            self.waiting -= len(self._out.pop())

    def flush(self) -> None:
        """Send as much as the socket accepts without blocking."""
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
        """Join small frames at the front of the queue, because a system call per frame costs more than the copy."""
        if self._sent or len(self._out) < 2:
            return
        parts, size = [self._out.popleft()], 0
        while self._out and (size := size + len(parts[-1])) < CHUNK:
            parts.append(self._out.popleft())
        self._out.appendleft(b"".join(parts))

    def close(self) -> None:
        self.closed = self.closed or "closed here"
        self.socket.close()

    def abandon(self, reason: str) -> None:
        """Stop using the socket, but leave its descriptor open: the descriptor's number may refer to another file by
        now.
        """
        self.closed = self.closed or reason
        self.socket.detach()


def listen(path: Path) -> socket.socket:
    """A listening socket with mode 0600 in a folder with mode 0700. Raises `ChannelError`.

    The socket file of a process that has exited is replaced. If the process is alive, that is an error.
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
    """Raise `ChannelError` if the path is too long for a socket."""
    if len(os.fsencode(path)) > MAX_PATH:
        raise ChannelError(
            f"socket path {path} is longer than {MAX_PATH} bytes; set TUI_DESCENT_HOME to a short folder"
        )


def remove_dead_socket(path: Path) -> None:
    """Remove the socket file of a process that has exited. Raises `OSError` if there is no such file."""
    if stat.S_ISSOCK(path.lstat().st_mode) and not _alive(path):
        path.unlink()


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


__all__ = ["ChannelError", "FrameError", "Peer", "check_path", "listen", "private_folder", "remove_dead_socket"]
