from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kept import Kept


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def kept(home: Path) -> Iterator[Kept]:
    before = set(os.listdir("/dev/fd"))
    kept = Kept(home)
    yield kept
    kept.close()
    assert set(os.listdir("/dev/fd")) == before
