"""Sockets: their permissions, their paths, and how a closed peer is reported."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tui_descent.protocol.channel import MAX_PATH, ChannelError, Peer, check_path, listen, private_folder
from tui_descent.protocol.codec import FrameError, decode, frame, from_viewer
from tui_descent.protocol.commands import Hello, Mark, Pause, Request

LIMIT = 1 << 20


@pytest.fixture
def pair() -> Iterator[tuple[Peer, Peer]]:
    a, b = (Peer(sock, limit=LIMIT) for sock in socket.socketpair())
    yield a, b
    a.close()
    b.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def leave_stale(path: Path) -> None:
    """What a killed process leaves: the socket file without a listener."""
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


def test_socket_and_folder_are_private(home: Path) -> None:
    path = home / "sockets" / "a.sock"
    with listen(path):
        assert mode(path) == 0o600
        assert mode(path.parent) == 0o700


def test_socket_and_folder_are_private_for_any_umask(home: Path) -> None:
    mask = os.umask(0)
    try:
        with listen(home / "sockets" / "a.sock"):
            assert os.umask(0) == 0, "listening must leave the umask as it was"
            assert mode(home / "sockets" / "a.sock") == 0o600
            assert mode(home / "sockets") == 0o700
    finally:
        os.umask(mask)


def test_stale_socket_is_replaced(home: Path) -> None:
    path = home / "sockets" / "a.sock"
    leave_stale(path)
    with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
    with listen(path) as ours, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        accepted, _ = ours.accept()
        accepted.close()
        assert mode(path) == 0o600


def test_listening_on_a_live_socket_fails_and_leaves_it_working(home: Path) -> None:
    path = home / "sockets" / "a.sock"
    with listen(path) as first:
        with pytest.raises(ChannelError, match=r"cannot listen on .*a\.sock: Address already in use"):
            listen(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            for _ in range(2):  # the second listener's probe, then the client
                first.accept()[0].close()


def test_path_that_is_not_a_socket_is_not_replaced(home: Path) -> None:
    path = home / "sockets" / "a.sock"
    path.parent.mkdir(mode=0o700)
    path.mkdir()
    with pytest.raises(ChannelError, match="cannot listen"):
        listen(path)
    assert path.is_dir()


@pytest.mark.parametrize("bits", [0o755, 0o777, 0o701, 0o710])
def test_folder_open_to_other_users_is_refused(home: Path, bits: int) -> None:
    folder = home / "open"
    folder.mkdir()
    folder.chmod(bits)
    with pytest.raises(ChannelError, match="open to other users; run chmod 700 on it"):
        listen(folder / "a.sock")
    assert mode(folder) == bits
    assert list(folder.iterdir()) == []


def test_folder_of_another_user_is_refused(home: Path) -> None:
    folder = Path("/usr")
    if os.getuid() == 0:
        folder = home / "theirs"
        folder.mkdir(mode=0o700)
        os.chown(folder, 65534, 65534)
    with pytest.raises(ChannelError, match="belongs to another user"):
        private_folder(folder)


def test_error_says_that_the_folder_cannot_be_made(home: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises(ChannelError, match=r"cannot create the folder .*set TUI_DESCENT_HOME"):
        private_folder(home / "file" / "sockets")


def test_too_long_path_is_refused_before_anything_is_created(home: Path) -> None:
    path = home / ("x" * MAX_PATH) / "a.sock"
    with pytest.raises(ChannelError, match=f"longer than {MAX_PATH} bytes; set TUI_DESCENT_HOME"):
        listen(path)
    assert not path.parent.exists()
    with pytest.raises(ChannelError):
        check_path(Path("/tmp/" + "ü" * 52))  # 57 characters, 109 bytes
    check_path(Path("/" + "x" * (MAX_PATH - 1)))


def test_longest_allowed_path_works(home: Path) -> None:
    folder = home / "s"
    path = folder / ("x" * (MAX_PATH - len(os.fsencode(folder)) - 1))
    assert len(os.fsencode(path)) == MAX_PATH
    listen(path).close()


def test_messages_arrive_in_order_in_both_directions(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    sent = [Hello(version=1), *(Request(request=n, command=Pause()) for n in range(50))]
    for message in sent:
        a.send(message)
    assert [decode(from_viewer, body) for body in b.receive()] == sent
    b.send(sent[0])
    assert [decode(from_viewer, body) for body in a.receive()] == sent[:1]
    assert a.waiting == b.waiting == 0


def test_closing_one_end_closes_the_other_without_raising(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    a.send(Hello(version=1))
    a.close()
    got = b.receive() + b.receive()
    assert len(got) == 1, "what was sent before the end still counts"
    assert b.closed == "the other end closed the connection"
    b.send(Hello(version=1))
    b.flush()
    assert b.receive() == []
    assert a.closed == "closed here"


def test_sending_to_a_closed_peer_does_not_raise(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    b.close()
    for _ in range(3):
        a.send(Hello(version=1))
    assert a.closed == "Broken pipe"


def test_malformed_frame_raises_at_the_receiver(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    a.socket.send(b"\0\0\0\0")
    with pytest.raises(FrameError):
        b.receive()


def test_sender_does_not_block_on_a_peer_that_does_not_read(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    sent = [Request(request=n, command=Mark(text="x" * 10_000)) for n in range(200)]
    for message in sent:
        a.send(message)
    assert a.waiting > 0
    bodies = b.receive()
    while len(bodies) < len(sent):
        before = len(bodies), a.waiting
        a.flush()
        bodies += b.receive()
        assert (len(bodies), a.waiting) != before
    assert [decode(from_viewer, body) for body in bodies] == sent
    assert a.waiting == 0


def test_dropping_the_queue_keeps_frames_intact(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    for n in range(400):
        a.send(Request(request=n, command=Mark(text="x" * 9_999)))
    waiting = a.waiting
    a.drop_waiting()
    assert a.waiting < waiting
    assert a.waiting < 10_100, "at most the one frame that is on the way"
    a.send(Request(request=1000, command=Pause()))
    bodies: list[bytes] = []
    while a.waiting or not bodies or decode(from_viewer, bodies[-1]).request != 1000:  # type: ignore[union-attr]
        a.flush()
        bodies += b.receive()
    numbers = [decode(from_viewer, body).request for body in bodies]  # type: ignore[union-attr]
    assert numbers == [*range(len(numbers) - 1), 1000]
    assert len(numbers) < 400


def test_waiting_counts_the_bytes_not_sent_yet(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    messages = [Request(request=n, command=Mark(text="x" * 20_000)) for n in range(100)]
    for message in messages:
        a.send(message)
    taken = 0
    b.socket.setblocking(False)
    while True:
        try:
            taken += len(b.socket.recv(1 << 20))
        except BlockingIOError:
            break
    assert taken + a.waiting == sum(len(frame(message)) for message in messages)
