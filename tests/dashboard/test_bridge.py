"""The bridge without a screen."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from factories import steps, turned, vanishing
from fake_run import CLIENT, FakeKeeper

from tui_descent.dashboard import bridge as module
from tui_descent.dashboard.bridge import Bridge
from tui_descent.protocol import codec
from tui_descent.protocol.commands import Mark, ResizeTerminal, Stop, TurnKnob, WatchCurvature
from tui_descent.protocol.events import Refused, RunEnded


async def wait_until(condition: object) -> None:
    async with asyncio.timeout(5):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


@asynccontextmanager
async def reading_from(keeper_before: list[object]) -> AsyncIterator[tuple[Bridge, FakeKeeper]]:
    with tempfile.TemporaryDirectory(prefix="d") as folder:
        socket = Path(folder) / "s"
        async with FakeKeeper(socket, before=keeper_before) as keeper:  # type: ignore[arg-type]
            bridge = Bridge(socket)
            task = asyncio.create_task(bridge.run())
            await wait_until(lambda: bridge.client == CLIENT)
            yield bridge, keeper
            await keeper.close()
            await task
            assert not bridge.connected


async def test_bridge_receives_the_history_then_live_events() -> None:
    async with reading_from(vanishing(40)) as (bridge, keeper):
        await wait_until(lambda: bridge.history.steps == 40)
        before = bridge.revision
        keeper.publish(steps(40, [1.0, 0.9]))
        await wait_until(lambda: bridge.history.steps == 42)
        assert bridge.revision != before


async def test_a_second_history_replaces_the_first() -> None:
    async with reading_from(vanishing(10)) as (bridge, keeper):
        await wait_until(lambda: bridge.history.steps == 10)
        old = bridge.history
        keeper.history.apply(steps(10, [1.0] * 90))
        keeper._writers[0].write(codec.frame(keeper.history.send()))
        await wait_until(lambda: bridge.history.steps == 100)
        assert bridge.history is not old


async def test_replies_to_other_viewers_do_not_answer_our_requests() -> None:
    async with reading_from(vanishing(10)) as (bridge, keeper):
        keeper.replies = False
        first, second = bridge.send(Mark()), bridge.send(TurnKnob(knob="residual", value="on"))
        assert first is not None
        assert second == first + 1
        await wait_until(lambda: len(keeper.received) == 2)
        assert bridge.requested_value("residual", "all") == "on"
        keeper.publish(turned(10, "off", "on", request=second, client=CLIENT + 1))
        await wait_until(lambda: bridge.exchange.reply is not None)
        assert bridge.exchange.command is None
        assert bridge.requested_value("residual", "all") == "on"
        keeper.publish(turned(10, "off", "on", request=second, client=CLIENT))
        await wait_until(lambda: bridge.exchange.command is not None)
        assert bridge.requested_value("residual", "all") is None


async def test_a_thousand_requests_at_once_all_arrive_and_are_answered() -> None:
    async with reading_from(vanishing(10)) as (bridge, keeper):
        sent = [bridge.send(TurnKnob(knob="lr", value="*1.25")) for _ in range(1000)]
        await wait_until(lambda: not any(bridge.awaits_reply(number) for number in sent if number is not None))
        assert len(keeper.received) == 1000
        assert len(set(sent)) == 1000
        assert None not in sent


async def test_a_refused_connection_is_reported() -> None:
    async with reading_from([]) as (bridge, keeper):
        keeper._writers[0].write(codec.frame(Refused(reason="protocol 2 here")))
        await wait_until(lambda: bridge.trouble == "protocol 2 here")


@pytest.mark.parametrize("junk", [b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x00\x00\x00\x03abc"])
async def test_malformed_frames_disconnect_without_an_exception(junk: bytes) -> None:
    async with reading_from([]) as (bridge, keeper):
        keeper._writers[0].write(junk)
        await wait_until(lambda: not bridge.connected)
        assert bridge.trouble


async def test_a_missing_keeper_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.2)
    bridge = Bridge(tmp_path / "nobody")
    await bridge.run()
    assert not bridge.connected
    assert "no run at" in bridge.trouble
    assert bridge.send(Mark()) is None
    assert bridge.exchange.refusal


@pytest.mark.parametrize("answered", [True, False])
async def test_a_bridge_connects_again_to_the_keeper_that_replaces_a_dead_one(answered: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="d") as folder:
        socket = Path(folder) / "s"
        async with FakeKeeper(socket, before=vanishing(10), replies=answered) as keeper:  # type: ignore[arg-type]
            bridge = Bridge(socket, run_lives=lambda: True)
            task = asyncio.create_task(bridge.run())
            await wait_until(lambda: bridge.history.steps == 10)
            request = bridge.send(Mark())
            assert request is not None
            await wait_until(lambda: bridge.awaits_reply(request) != answered)
        socket.unlink(missing_ok=True)
        await wait_until(lambda: bridge.reconnecting)
        assert (bridge.connected, bridge.trouble, bridge.unavailable) == (False, "", module.RECONNECTING)
        assert bridge.send(Mark()) is None
        assert not bridge.awaits_reply(request)
        async with FakeKeeper(socket, before=vanishing(30)) as keeper:  # type: ignore[arg-type]
            await wait_until(lambda: bridge.history.steps == 30)
            assert (bridge.connected, bridge.reconnecting, bridge.lost_connections) == (True, False, 1)
            assert bridge.send(Mark()) is not None
            keeper.publish(RunEnded(status="finished", step=30))
            await wait_until(lambda: not bridge.history.live)
        await task
        assert not bridge.reconnecting


@pytest.mark.parametrize("lives", [True, False])
async def test_a_bridge_gives_up_if_no_keeper_comes(lives: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECONNECT_WITHIN_S", 0.2)
    with tempfile.TemporaryDirectory(prefix="d") as folder:
        socket = Path(folder) / "s"
        async with FakeKeeper(socket, before=vanishing(10)) as keeper:  # type: ignore[arg-type]
            bridge = Bridge(socket, run_lives=lambda: lives)
            task = asyncio.create_task(bridge.run())
            await wait_until(lambda: keeper.has_viewer)
        await task
        assert (bridge.connected, bridge.reconnecting) == (False, False)
        assert bridge.trouble == "the keeper closed the connection"


async def test_a_read_only_bridge_asks_for_readings_but_changes_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="d") as folder:
        socket = Path(folder) / "s"
        async with FakeKeeper(socket, before=vanishing(10)) as keeper:  # type: ignore[arg-type]
            bridge = Bridge(socket, read_only=True)
            task = asyncio.create_task(bridge.run())
            await wait_until(lambda: bridge.history.steps == 10)
            for command in (TurnKnob(knob="lr", value="1"), Stop(), ResizeTerminal(columns=9, rows=9)):
                assert bridge.send(command) is None
            assert bridge.exchange.refusal == module.READ_ONLY
            assert bridge.send(WatchCurvature(on=True)) is not None
            await wait_until(lambda: keeper.received == [WatchCurvature(on=True)])
            assert keeper.read_only == [True]
        await task
