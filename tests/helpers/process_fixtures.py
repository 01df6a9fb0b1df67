"""Fixtures of the tests that start real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from attended import Attended, Start
from runs import left_behind, stop_keepers


@pytest.fixture(autouse=True)
def no_process_is_left(home: Path) -> Iterator[None]:
    """Ends the runs that the test has left running. Then no process may be left, such as a trainer without a keeper."""
    yield
    stop_keepers(home)
    assert left_behind(home) == []


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Attended] = []

    def begin(*args: str, **orders: object) -> Attended:
        started.append(Attended(*args, **orders))  # type: ignore[arg-type]
        return started[-1]

    yield begin
    for attended in started:
        attended.close()
