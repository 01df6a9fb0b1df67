"""Every test has its own home folder, with a short path because a socket's path may have at most 103 bytes.

With `pytest -n 3` one worker runs the tests that start processes, one at a time, and the others all other tests. On two
cores this uses the time in which the first one waits.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tui_descent.protocol.launch import ENV_FOLDER, ENV_LINK, ENV_RING

# The processes that tests start inherit an ignored signal, as from `nohup pytest`.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# Otherwise every process that a test starts would compile this package again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


class ProcessTestsOnOneWorker(LoadScopeScheduling):
    """Each worker takes one test file after another. All files under `process/` and `faults/` count as one."""

    def _split_scope(self, nodeid: str) -> str:
        return "process" if nodeid.startswith(("tests/process/", "tests/faults/")) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ProcessTestsOnOneWorker:
    return ProcessTestsOnOneWorker(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests that take longest, so that both workers are busy to the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/process/", "tests/faults/", "tests/whole_runs/")))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what stays to the end, such as all of torch."""
    gc.collect()
    gc.freeze()


def global_hooks() -> set[tuple[str, str, int]]:
    """All hooks that torch calls for every module or optimizer, as module, table and number."""
    names = [name for name in ("torch.nn.modules.module", "torch.optim.optimizer") if name in sys.modules]
    tables = [
        (name, table, hooks)
        for name in names
        for table, hooks in vars(sys.modules[name]).items()
        if table.startswith("_global_") and isinstance(hooks, dict)
    ]
    return {(name, table, number) for name, table, hooks in tables for number in hooks}


@pytest.fixture(autouse=True)
def no_hooks_left() -> Iterator[None]:
    before = global_hooks()
    yield
    assert global_hooks() <= before, "global torch hooks are left behind"


@pytest.fixture(autouse=True)
def home(no_hooks_left: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="td"))
    monkeypatch.setenv("TUI_DESCENT_HOME", str(folder))
    for name in (ENV_FOLDER, ENV_LINK, ENV_RING, "TUI_DESCENT_RUNS_DIR"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
