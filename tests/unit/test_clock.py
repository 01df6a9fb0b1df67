"""Busy and waiting are told apart, and neither is waiting for a processor."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from tui_descent.training.step_timer import Clock


@pytest.mark.skipif(sys.platform != "linux", reason="told apart on Linux alone")
def test_a_wait_is_told_and_work_is_none() -> None:
    clock = Clock()
    clock.open()
    time.sleep(0.2)
    busy_s, waited_s = clock.since()
    assert busy_s < 0.1
    assert 0.19 < waited_s < 5
    start_s = time.thread_time()
    while time.thread_time() < start_s + 0.1:
        pass
    busy_s, waited_s = clock.since()
    assert busy_s >= 0.1
    assert waited_s < 0.05
    clock.close()


def test_a_clock_that_is_not_open_tells_no_waits() -> None:
    clock = Clock()
    time.sleep(0.02)
    assert clock.since()[1] == 0.0


def test_it_is_of_the_thread_that_opened_it() -> None:
    clock, found = Clock(), list[float]()

    def work() -> None:
        clock.open()
        start_s = time.thread_time()
        while time.thread_time() < start_s + 0.05:
            pass
        found.extend(clock.since())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0] >= 0.05
    clock.close()
