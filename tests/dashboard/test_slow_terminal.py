"""Frames are drawn only as fast as the terminal takes them."""

from __future__ import annotations

import contextlib
import os
import pty
import select
from queue import Queue
from types import SimpleNamespace

import pytest
from driver import open_dashboard
from factories import steps, vanishing
from textual.drivers._writer_thread import WriterThread

from tui_descent.dashboard.terminal_backlog import is_behind


def test_textual_has_the_queue_that_is_looked_at() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        writer = WriterThread(terminal)
        driver = SimpleNamespace(_writer_thread=writer)
        assert not is_behind(driver)  # type: ignore[arg-type]
        writer.write("a frame")
        assert is_behind(driver)  # type: ignore[arg-type]
    os.close(master)


def test_a_terminal_that_is_full_is_behind() -> None:
    master, slave = pty.openpty()
    os.set_blocking(slave, False)
    with os.fdopen(slave, "w") as terminal:
        driver = SimpleNamespace(_writer_thread=WriterThread(terminal))
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(slave, b"x" * 1000)
        assert is_behind(driver)  # type: ignore[arg-type]
        while select.select([master], [], [], 0.1)[0]:
            os.read(master, 65536)
        assert not is_behind(driver)  # type: ignore[arg-type]
    os.close(master)


async def test_a_slow_terminal_gets_fewer_frames_and_then_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: Queue[str] = Queue()
    async with open_dashboard((100, 30), vanishing(40)) as dashboard:
        await dashboard.drawn()
        null = os.open(os.devnull, os.O_WRONLY)
        writer = SimpleNamespace(_queue=queue, fileno=lambda: null, write=lambda _: None)
        dashboard.app._driver._writer_thread = writer  # type: ignore[union-attr]
        queue.put("the last frame")
        for n in range(40, 60):
            dashboard.keeper.publish(steps(n, [1.0]))
            await dashboard.pilot.pause(0.02)
        await dashboard.wait_until(lambda: dashboard.app.bridge.history.steps == 60)
        assert "step    40" in dashboard.text()
        queue.get()
        await dashboard.shows("step    60")
        os.close(null)
