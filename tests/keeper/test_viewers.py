"""The keeper's viewers: what one viewer does affects neither the others nor the run."""

from __future__ import annotations

import os
import random
import resource
import selectors
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tui_descent.keeper import viewers as module
from tui_descent.keeper.viewers import HEARTBEAT_S, MAX_VIEWERS, MAX_WAITING, MAX_WITHOUT_HELLO, Viewers
from tui_descent.protocol.channel import Peer, listen
from tui_descent.protocol.codec import HEADER, MAX_TO_VIEWER, VERSION, decode, frame, to_viewer
from tui_descent.protocol.commands import ClientRequest, Hello, Mark, Pause, Request, TurnKnob
from tui_descent.protocol.events import Heartbeat, HistorySent, Marked, Noted, Refused, Welcome
from tui_descent.telemetry.history import History

HELLO = Hello(version=VERSION)
PAUSE = Request(request=1, command=Pause())


class Harness:
    """The viewers under test and their clients on real sockets; the selector is run by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.orders: list[ClientRequest] = []
        self.history = History()
        self.selector = selectors.DefaultSelector()
        self.gone: list[int] = []
        self.viewers = Viewers(
            listen(path),
            self.selector,
            run="r1",
            history=self.history.send,
            on_request=self.orders.append,
            on_leave=self.gone.append,
        )
        self.clients: list[Peer] = []

    def run(self) -> None:
        while ready := self.selector.select(0):
            for key, _ in ready:
                key.data()
        self.viewers.maintain()

    def connect(self, *messages: Any, raw: bytes = b"") -> Peer:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))
        client = Peer(sock, limit=MAX_TO_VIEWER)
        self.clients.append(client)
        for message in messages:
            client.send(message)
        if raw:
            sock.send(raw)
        self.run()
        return client

    def publish(self, text: str) -> None:
        event = Noted(step=0, text=text)
        self.history.apply(event)
        self.viewers.publish(event)

    def received(self, client: Peer) -> list[Any]:
        """All messages until nothing more is on its way. A frame may arrive in many pieces."""
        found: list[Any] = []
        quiet = 0
        while quiet < 3:
            waiting = self.viewers.waiting
            bodies = client.receive()
            found += [decode(to_viewer, body) for body in bodies]
            self.run()
            quiet = 0 if bodies or self.viewers.waiting != waiting else quiet + 1
        return found


@pytest.fixture
def harness(home: Path) -> Iterator[Harness]:
    harness = Harness(home / "sockets" / "r1.sock")
    yield harness
    harness.viewers.close()
    harness.selector.close()
    for client in harness.clients:
        client.close()


def test_viewer_is_sent_its_number_and_the_history(harness: Harness) -> None:
    harness.publish("before")
    first, second = harness.connect(HELLO), harness.connect(HELLO)
    for number, client in ((1, first), (2, second)):
        welcome, history = harness.received(client)
        assert welcome == Welcome(version=VERSION, client=number, run="r1", heartbeat=True)
        assert isinstance(history, HistorySent)
        assert Noted(step=0, text="before") in history.facts
    assert harness.viewers.attached == 2


def test_event_reaches_every_viewer_once_and_no_client_before_hello(harness: Harness) -> None:
    a, b, silent = harness.connect(HELLO), harness.connect(HELLO), harness.connect()
    for client in (a, b):
        harness.received(client)
    harness.publish("x")
    assert harness.received(a) == harness.received(b) == [Noted(step=0, text="x")]
    assert harness.received(silent) == []
    assert harness.viewers.attached == 2


def test_a_heartbeat_is_sent_every_second_to_viewers_that_are_up_to_date(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = time.monotonic()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now_s))
    viewer, silent = harness.connect(HELLO), harness.connect()
    harness.received(viewer)
    for _ in range(3):
        now_s += HEARTBEAT_S + 0.1
        assert harness.received(viewer) == [Heartbeat()]
        assert harness.received(viewer) == []
    assert harness.received(silent) == []


def test_request_is_passed_on_with_the_number_of_its_client(harness: Harness) -> None:
    harness.connect(HELLO)
    turn = TurnKnob(knob="lr", value="*2")
    harness.connect(HELLO, Request(request=7, command=turn, source="send"))
    assert harness.orders == [ClientRequest(client=2, request=7, source="send", command=turn)]


def test_other_protocol_version_is_refused_and_both_are_named(harness: Harness) -> None:
    client = harness.connect(Hello(version=VERSION + 41))
    assert harness.received(client) == [
        Refused(reason=f"this run uses protocol {VERSION}, the viewer uses protocol {VERSION + 41}")
    ]
    assert client.closed
    assert harness.viewers.attached == 0


def test_request_before_hello_is_refused(harness: Harness) -> None:
    client = harness.connect(PAUSE, HELLO)
    assert harness.received(client) == [Refused(reason="a request was sent before Hello")]
    assert client.closed
    assert harness.orders == []


def test_second_hello_changes_nothing(harness: Harness) -> None:
    client = harness.connect(HELLO, HELLO)
    assert [type(message) for message in harness.received(client)] == [Welcome, HistorySent]
    assert harness.viewers.attached == 1


GARBAGE = {
    "random": random.Random(1).randbytes(5000),
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "length 0": HEADER.pack(0),
    "length 2^32-1": HEADER.pack(2**32 - 1),
    "deep": HEADER.pack(60_000) + b"\x91" * 60_000,
    "not utf-8": frame(Request(request=1, command=Mark(text="abc"))).replace(b"abc", b"\xff\xfe\xfd"),
    "an event": frame(Noted(step=0, text="I am the trainer")),
    "lr as a number": frame(
        {"say": "request", "request": 1, "command": {"do": "turn", "knob": "lr", "value": 1}},
    ),
}


@pytest.mark.parametrize("raw", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("welcomed", [False, True], ids=["at once", "after hello"])
def test_garbage_is_refused_with_a_reason_and_other_viewers_go_on(harness: Harness, raw: bytes, welcomed: bool) -> None:
    good = harness.connect(HELLO)
    harness.received(good)
    bad = harness.connect(*([HELLO] if welcomed else []), raw=raw)
    *_, last = harness.received(bad)
    assert isinstance(last, Refused)
    assert last.reason
    assert bad.closed
    harness.publish("still here")
    good.send(PAUSE)
    harness.run()
    assert harness.received(good) == [Noted(step=0, text="still here")]
    assert [order.client for order in harness.orders] == [1]
    assert harness.viewers.attached == 1


def test_request_before_garbage_in_one_write_is_passed_on_or_refused(harness: Harness) -> None:
    raw = frame(HELLO) + frame(PAUSE) + HEADER.pack(0)
    harness.connect(raw=raw)
    assert harness.orders in ([], [ClientRequest(client=1, request=1, source="key", command=Pause())])


def test_viewer_that_leaves_in_the_middle_of_a_frame_is_dropped(harness: Harness) -> None:
    good = harness.connect(HELLO)
    harness.received(good)
    bad = harness.connect(HELLO, raw=frame(PAUSE)[:-1])
    bad.close()
    harness.run()
    assert harness.viewers.attached == 1
    assert harness.orders == []
    harness.publish("x")
    assert harness.received(good) == [Noted(step=0, text="x")]


def test_leaving_is_reported_once_with_the_number_of_the_client(harness: Harness) -> None:
    first, second = harness.connect(HELLO), harness.connect(HELLO)
    second.close()
    harness.run()
    harness.run()
    assert harness.gone == [2]
    first.close()
    harness.run()
    assert harness.gone == [2, 1]


def test_hello_may_arrive_byte_by_byte(harness: Harness) -> None:
    client = harness.connect()
    for byte in frame(HELLO):
        client.socket.send(bytes([byte]))
        harness.run()
    assert isinstance(harness.received(client)[0], Welcome)


def test_client_without_hello_is_closed(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    good, silent = harness.connect(HELLO), harness.connect()
    assert silent.receive() == []
    assert silent.closed is None
    monkeypatch.setattr(module, "HELLO_WITHIN_S", 0.0)
    harness.run()
    assert silent.receive() == []
    assert silent.closed
    assert harness.viewers.attached == 1
    assert good.closed is None


def test_viewer_that_never_reads_takes_bounded_memory_and_delays_no_other(harness: Harness) -> None:
    stuck, good = harness.connect(HELLO), harness.connect(HELLO)
    harness.received(good)
    largest = 0
    for n in range(500):
        event = Marked(segment=0, step=n, text="x" * 50_000)  # 25 MB in all
        harness.viewers.publish(event)
        assert harness.received(good) == [event]
        largest = max(largest, harness.viewers.waiting)
    assert MAX_WAITING / 2 < largest <= MAX_WAITING + 60_000
    assert stuck.closed is None


def test_slow_viewer_is_sent_a_fresh_history_and_then_the_events(harness: Harness) -> None:
    slow = harness.connect(HELLO)
    harness.received(slow)
    for n in range(500):
        harness.publish(f"{n:04} " + "x" * 20_000)
    assert harness.viewers.waiting < 21_000, "the queue was dropped, except the frame that is on its way"
    found = harness.received(slow)
    notes = [int(message.text[:4]) for message in found if isinstance(message, Noted)]
    assert notes == list(range(len(notes))), "no gap before the history"
    assert len(notes) < 500
    histories = [message for message in found if isinstance(message, HistorySent)]
    assert len(histories) == 1
    assert found[-1] is histories[0]
    notes_sent = [fact.text[:4] for fact in histories[0].facts if isinstance(fact, Noted)]
    assert notes_sent[-1] == "0499", "the history has what was dropped"
    harness.publish("live again")
    assert harness.received(slow) == [Noted(step=0, text="live again")]


def test_viewers_beyond_the_limit_are_told_so_and_the_others_stay(harness: Harness) -> None:
    clients = [harness.connect(HELLO) for _ in range(MAX_VIEWERS)]
    for _ in range(3):
        extra = harness.connect(HELLO)
        assert harness.received(extra) == [
            Refused(reason="full: 64 viewers are attached already; close one of them first")
        ]
        assert extra.closed
    assert harness.viewers.attached == MAX_VIEWERS
    clients[0].close()
    harness.run()
    late = harness.connect(HELLO)
    assert isinstance(harness.received(late)[0], Welcome)


def test_connections_without_hello_are_bounded_and_keep_no_viewer_out(harness: Harness) -> None:
    silent = [harness.connect() for _ in range(MAX_WITHOUT_HELLO + 3)]
    assert [client.receive() for client in silent] == [[]] * len(silent)
    assert sum(client.closed is not None for client in silent) == 3
    silent[0].send(HELLO)
    harness.run()
    assert isinstance(harness.received(silent[0])[0], Welcome)
    assert isinstance(harness.received(harness.connect(HELLO))[0], Welcome)


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_no_descriptor_left_stops_accepting_for_a_while(
    harness: Harness, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper has room for `spare` connections. The others wait in the listener's queue."""
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(spare + 2)]
    clients = [Peer(sock, limit=MAX_TO_VIEWER) for sock in waiting]
    harness.clients += clients
    for client in clients:
        client.socket.connect(str(harness.path))
        client.send(HELLO)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = [os.open(os.devnull, os.O_RDONLY) for _ in range(spare + 1)]
    for fd in lowest_free:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free[-1], hard))
    try:
        rounds = 0
        while (ready := harness.selector.select(0)) and rounds < 50:
            rounds += 1
            for key, _ in ready:
                key.data()
        harness.viewers.maintain()
        assert rounds < 10, "it spins"
        assert harness.viewers.attached == spare
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert harness.selector.select(0) == []
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + module.ACCEPT_AGAIN_S))
    harness.viewers.maintain()
    harness.run()
    assert harness.viewers.attached == spare + 2
    harness.publish("x")
    for client in clients:
        assert harness.received(client)[-1] == Noted(step=0, text="x")


def test_closing_while_no_connection_is_accepted(home: Path) -> None:
    harness = Harness(home / "sockets" / "r2.sock")
    harness.viewers._listener.close()
    harness.viewers.accept()
    harness.viewers.close()
    assert not harness.selector.get_map()
    harness.selector.close()


def test_only_a_client_that_said_hello_counts_as_seen(harness: Harness) -> None:
    harness.connect()
    harness.connect(raw=b"\0\0\0\0")
    assert harness.viewers.seen == 0, "a stray connection must not end the run when it closes"
    harness.connect(HELLO)
    assert harness.viewers.seen == 1
