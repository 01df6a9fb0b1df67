"""What a viewer asked for ends when it leaves."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tui_descent.keeper.requests import Requests
from tui_descent.protocol.channel import Peer
from tui_descent.protocol.commands import AnyCommand, ClientRequest, Mark, WatchCurvature, WatchLens, WatchTask
from tui_descent.telemetry.history import History


@pytest.fixture
def link() -> Iterator[Peer]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Peer(ours, limit=1024)


def order(client: int, command: AnyCommand) -> ClientRequest:
    return ClientRequest(client=client, request=1, source="key", command=command)


def test_readings_and_pictures_end_with_the_viewer_that_asked(link: Peer) -> None:
    requests = Requests(History())
    for client, command in (
        (1, WatchCurvature(on=True)),
        (1, WatchTask(on=True, columns=70, rows=16)),
        (1, WatchTask(on=True, columns=110, rows=32)),
        (1, WatchLens(on=True, layer="a")),
        (1, WatchLens(on=True, layer="b")),
        (1, Mark()),
        (2, WatchTask(on=True, columns=70, rows=16)),
        (2, WatchTask(on=False)),
    ):
        assert requests.pass_on(order(client, command), link) is None
    ends = requests.cleanup_after(1)
    assert {end.client for end in ends} == {1}
    assert sorted(str(end.command) for end in ends) == sorted(
        map(str, (WatchCurvature(on=False), WatchTask(on=False), WatchLens(on=False)))
    )
    for end in ends:  # the keeper passes them on like any other request
        requests.pass_on(end, link)
    assert requests.cleanup_after(1) == requests.cleanup_after(2) == []
