from __future__ import annotations

from collections.abc import Iterator

import pytest
from attended import Start
from same_process import AttendedHere
from training_fixtures import one_thread  # noqa: F401


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[AttendedHere] = []

    def begin(*args: str, **orders: object) -> AttendedHere:
        started.append(AttendedHere(*args, **orders))  # type: ignore[arg-type]
        return started[-1]

    yield begin
    for attended in started:
        attended.close()
