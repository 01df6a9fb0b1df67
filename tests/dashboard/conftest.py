"""What all dashboard tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from textual import _wait


@pytest.fixture(autouse=True, scope="session")
def short_waits() -> Iterator[None]:
    """After each key Textual waits twice until the process has been idle for 20 ms; here for 10 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_wait, "SLEEP_GRANULARITY", 1 / 100)
        patch.setattr(_wait, "SLEEP_IDLE", 1 / 1000)
        yield
