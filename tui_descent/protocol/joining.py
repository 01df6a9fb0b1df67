"""How a process that a launcher has started gets the trainer's end of the connection to the keeper of its run.

Under `exec` the script inherits that end, but launchers such as torchrun close it in the processes that they start.
Such a process knows only the run's folder. It asks the keeper at the viewers' socket, which sends two file descriptors.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct

from tui_descent.protocol.channel import ChannelError
from tui_descent.protocol.codec import MAX_FROM_VIEWER, VERSION, FrameError, FrameReader, decode, frame, to_viewer
from tui_descent.protocol.commands import Join
from tui_descent.protocol.events import Joined, Refused
from tui_descent.protocol.inherited_fds import move_to_high_fd

WITHIN_S = 10.0


def join(path: str) -> tuple[socket.socket, int]:
    """The trainer's socket and the descriptor of the ring, from the keeper that listens at `path`.

    Raises `ChannelError` with the keeper's reason if it refuses, and `OSError` if it does not answer.
    """
    files: list[int] = []
    with contextlib.ExitStack() as failed, socket.socket(socket.AF_UNIX) as sock:
        failed.callback(lambda: _close(files))
        sock.settimeout(WITHIN_S)
        sock.connect(path)
        if not is_ours(sock):
            raise ChannelError("the run's keeper belongs to another user")
        sock.sendall(frame(Join(version=VERSION)))
        reader = FrameReader(MAX_FROM_VIEWER)
        while True:
            data, received, _, _ = socket.recv_fds(sock, 1 << 16, 2)
            files += map(move_to_high_fd, received)
            if not data:
                raise ConnectionResetError(0, "the keeper closed the connection")
            try:
                answers = [decode(to_viewer, body) for body in reader.feed(data)]
            except FrameError as error:
                raise ChannelError(str(error)) from None
            for answer in answers:
                if isinstance(answer, Refused):
                    raise ChannelError(answer.reason)
                if isinstance(answer, Joined) and len(files) == 2:
                    failed.pop_all()
                    return socket.socket(fileno=files[0]), files[1]


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def send_connection(sock: socket.socket, link: socket.socket, ring: int) -> None:
    """The keeper's answer to a `Join`. Raises `OSError`."""
    socket.send_fds(sock, [frame(Joined())], [link.fileno(), ring])


def is_ours(sock: socket.socket) -> bool:
    """Whether the process at the other end belongs to this user. Where the system cannot say, the folder is enough."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    _, user, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(user == os.getuid())
