from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from attended import Attended, Start
from runs import WITHIN_S, Outcome, left_behind, run, temporary_home

from tui_descent.scenario import presets

CLAIMS = "test_preset_keeps_its_claims"


@pytest.fixture(autouse=True)
def no_process_is_left(home: Path) -> Iterator[None]:
    yield
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


@pytest.fixture(scope="session", autouse=True)
def verified(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Outcome]]]:
    """The claims of all presets, verified one run at a time in the background while other tests run."""
    if not any(getattr(item, "originalname", "") == CLAIMS for item in request.session.items):
        yield {}
        return
    with temporary_home() as home, ThreadPoolExecutor(1) as pool:
        yield {
            name: pool.submit(run, "presets", name, "--verify", home=home, within_s=10 * WITHIN_S)
            for name in presets.names()
        }
        pool.shutdown(cancel_futures=True)
