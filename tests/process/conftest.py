from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import left_behind


@pytest.fixture(autouse=True)
def no_process_is_left(home: Path) -> Iterator[None]:
    yield
    assert left_behind(home) == []
