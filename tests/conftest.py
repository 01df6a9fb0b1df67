"""Every test has a home of its own; a short one, since a socket's path may hold 103 bytes.

With `pytest -n 2` what starts processes is on one worker, one test at a time, and all else beside it on the other.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tui_descent.protocol.launch import ENV_FOLDER, ENV_LINK, ENV_RING


class Rooms(LoadScopeScheduling):
    """A worker takes one file of tests after another, and those under `process/` as if they were one."""

    def _split_scope(self, nodeid: str) -> str:
        return "process" if nodeid.startswith("tests/process/") else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Rooms:
    return Rooms(config, log)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="td"))
    monkeypatch.setenv("TUI_DESCENT_HOME", str(folder))
    for name in (ENV_FOLDER, ENV_LINK, ENV_RING, "TUI_DESCENT_RUNS_DIR"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
