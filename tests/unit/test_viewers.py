"""The keeper's side of the socket: what one viewer does is no other viewer's trouble, and never the run's."""

from __future__ import annotations

import random
import selectors
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tui_descent.keeper import viewers as module
from tui_descent.keeper.viewers import MAX_VIEWERS, MAX_WAITING, Viewers
from tui_descent.protocol.channel import Peer, listen
from tui_descent.protocol.codec import HEADER, MAX_TO_VIEWER, VERSION, decode, frame, to_viewer
from tui_descent.protocol.commands import Hello, Mark, Order, Pause, Request, TurnKnob
from tui_descent.protocol.events import HistorySent, Marked, Noted, Refused, Welcome
from tui_descent.telemetry.history import History

HELLO = Hello(version=VERSION)
PAUSE = Request(request=1, command=Pause())


class Door:
    """Real viewers' side, on one selector, turned by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.orders: list[Order] = []
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

    def turn(self) -> None:
        while ready := self.selector.select(0):
            for key, _ in ready:
                key.data()
        self.viewers.tend()

    def come(self, *messages: Any, raw: bytes = b"") -> Peer:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))
        client = Peer(sock, limit=MAX_TO_VIEWER)
        self.clients.append(client)
        for message in messages:
            client.send(message)
        if raw:
            sock.send(raw)
        self.turn()
        return client

    def tell(self, text: str) -> None:
        event = Noted(step=0, text=text)
        self.history.apply(event)
        self.viewers.publish(event)

    def heard(self, client: Peer) -> list[Any]:
        """All that comes until nothing more is on its way; a frame may come in many pieces."""
        found: list[Any] = []
        quiet = 0
        while quiet < 3:
            waiting = self.viewers.waiting
            bodies = client.receive()
            found += [decode(to_viewer, body) for body in bodies]
            self.turn()
            quiet = 0 if bodies or self.viewers.waiting != waiting else quiet + 1
        return found


@pytest.fixture
def door(home: Path) -> Iterator[Door]:
    door = Door(home / "sockets" / "r1.sock")
    yield door
    door.viewers.close()
    door.selector.close()
    for client in door.clients:
        client.close()


def test_a_viewer_is_welcomed_with_its_number_and_the_history(door: Door) -> None:
    door.tell("before")
    first, second = door.come(HELLO), door.come(HELLO)
    for number, client in ((1, first), (2, second)):
        welcome, history = door.heard(client)
        assert welcome == Welcome(version=VERSION, client=number, run="r1")
        assert isinstance(history, HistorySent)
        assert Noted(step=0, text="before") in history.facts
    assert door.viewers.attached == 2


def test_an_event_reaches_every_viewer_once_and_nobody_before_hello(door: Door) -> None:
    a, b, silent = door.come(HELLO), door.come(HELLO), door.come()
    for client in (a, b):
        door.heard(client)
    door.tell("x")
    assert door.heard(a) == door.heard(b) == [Noted(step=0, text="x")]
    assert door.heard(silent) == []
    assert door.viewers.attached == 2


def test_a_request_is_passed_on_with_the_number_of_its_client(door: Door) -> None:
    door.come(HELLO)
    turn = TurnKnob(knob="lr", value="*2")
    door.come(HELLO, Request(request=7, command=turn, source="send"))
    assert door.orders == [Order(client=2, request=7, source="send", command=turn)]


def test_another_version_is_refused_by_both_numbers(door: Door) -> None:
    client = door.come(Hello(version=VERSION + 41))
    assert door.heard(client) == [Refused(reason=f"this run speaks protocol {VERSION}, the viewer {VERSION + 41}")]
    assert client.closed
    assert door.viewers.attached == 0


def test_a_request_before_hello_is_refused_and_not_done(door: Door) -> None:
    client = door.come(PAUSE, HELLO)
    assert door.heard(client) == [Refused(reason="a request before hello")]
    assert client.closed
    assert door.orders == []


def test_a_second_hello_changes_nothing(door: Door) -> None:
    client = door.come(HELLO, HELLO)
    assert [type(message) for message in door.heard(client)] == [Welcome, HistorySent]
    assert door.viewers.attached == 1


RUBBISH = {
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


@pytest.mark.parametrize("raw", RUBBISH.values(), ids=RUBBISH.keys())
@pytest.mark.parametrize("welcomed", [False, True], ids=["at once", "after hello"])
def test_rubbish_is_refused_with_a_reason_and_the_others_go_on(door: Door, raw: bytes, welcomed: bool) -> None:
    good = door.come(HELLO)
    door.heard(good)
    bad = door.come(*([HELLO] if welcomed else []), raw=raw)
    *_, last = door.heard(bad)
    assert isinstance(last, Refused)
    assert last.reason
    assert bad.closed
    door.tell("still here")
    good.send(PAUSE)
    door.turn()
    assert door.heard(good) == [Noted(step=0, text="still here")]
    assert [order.client for order in door.orders] == [1]
    assert door.viewers.attached == 1


def test_requests_before_the_rubbish_in_one_write_are_done_or_refused_but_never_half(door: Door) -> None:
    raw = frame(HELLO) + frame(PAUSE) + HEADER.pack(0)
    door.come(raw=raw)
    assert door.orders in ([], [Order(client=1, request=1, source="key", command=Pause())])


def test_a_viewer_that_leaves_in_the_middle_of_a_frame_is_forgotten(door: Door) -> None:
    good = door.come(HELLO)
    door.heard(good)
    bad = door.come(HELLO, raw=frame(PAUSE)[:-1])
    bad.close()
    door.turn()
    assert door.viewers.attached == 1
    assert door.orders == []
    door.tell("x")
    assert door.heard(good) == [Noted(step=0, text="x")]


def test_who_leaves_is_told_once_by_its_number(door: Door) -> None:
    first, second = door.come(HELLO), door.come(HELLO)
    second.close()
    door.turn()
    door.turn()
    assert door.gone == [2]
    first.close()
    door.turn()
    assert door.gone == [2, 1]


def test_hello_byte_by_byte_is_a_hello(door: Door) -> None:
    client = door.come()
    for byte in frame(HELLO):
        client.socket.send(bytes([byte]))
        door.turn()
    assert isinstance(door.heard(client)[0], Welcome)


def test_who_never_says_hello_is_closed(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    good, silent = door.come(HELLO), door.come()
    assert silent.receive() == []
    assert silent.closed is None
    monkeypatch.setattr(module, "HELLO_WITHIN_S", 0.0)
    door.turn()
    assert silent.receive() == []
    assert silent.closed
    assert door.viewers.attached == 1
    assert good.closed is None


def test_a_viewer_that_never_reads_costs_bounded_memory_and_nobody_else_an_event(door: Door) -> None:
    stuck, good = door.come(HELLO), door.come(HELLO)
    door.heard(good)
    largest = 0
    for n in range(500):
        event = Marked(segment=0, step=n, text="x" * 50_000)  # 25 MB in all
        door.viewers.publish(event)
        assert door.heard(good) == [event]
        largest = max(largest, door.viewers.waiting)
    assert MAX_WAITING / 2 < largest <= MAX_WAITING + 60_000
    assert stuck.closed is None


def test_a_viewer_that_fell_behind_is_sent_a_fresh_history_and_then_the_stream(door: Door) -> None:
    slow = door.come(HELLO)
    door.heard(slow)
    for n in range(500):
        door.tell(f"{n:04} " + "x" * 20_000)
    assert door.viewers.waiting < 21_000, "what waited was dropped, but for the frame that is on its way"
    found = door.heard(slow)
    notes = [int(message.text[:4]) for message in found if isinstance(message, Noted)]
    assert notes == list(range(len(notes))), "no gap before the history"
    assert len(notes) < 500
    histories = [message for message in found if isinstance(message, HistorySent)]
    assert len(histories) == 1
    assert found[-1] is histories[0]
    told = [fact.text[:4] for fact in histories[0].facts if isinstance(fact, Noted)]
    assert told[-1] == "0499", "the history holds what was dropped"
    door.tell("live again")
    assert door.heard(slow) == [Noted(step=0, text="live again")]


def test_more_viewers_than_allowed_are_closed_and_the_others_stay(door: Door) -> None:
    clients = [door.come(HELLO) for _ in range(MAX_VIEWERS)]
    extra = door.come(HELLO)
    assert extra.receive() == []
    assert extra.closed
    assert door.viewers.attached == MAX_VIEWERS
    clients[0].close()
    door.turn()
    late = door.come(HELLO)
    assert isinstance(door.heard(late)[0], Welcome)


def test_only_a_viewer_that_said_hello_has_been_seen(door: Door) -> None:
    door.come()
    door.come(raw=b"\0\0\0\0")
    assert door.viewers.seen == 0, "a stray connection is no viewer whose leaving could end the run"
    door.come(HELLO)
    assert door.viewers.seen == 1
