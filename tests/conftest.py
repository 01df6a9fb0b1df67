"""Every test has a home of its own; a short one, since a socket's path may hold 103 bytes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tui_descent.protocol.launch import ENV_FOLDER, ENV_LINK, ENV_RING


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="td"))
    monkeypatch.setenv("TUI_DESCENT_HOME", str(folder))
    for name in (ENV_FOLDER, ENV_LINK, ENV_RING, "TUI_DESCENT_RUNS_DIR"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
