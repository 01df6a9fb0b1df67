"""Whole runs in the test's own process, where torch is already imported: keeper and trainer are threads.

Their code is that of other runs: command line, socket, shared memory, viewers. What only a process of its own has, such
as signals, exit codes and a log, is tested in `tests/process`.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from pathlib import Path
from threading import Thread

import pytest
import torch
from attended import Attended
from runs import WITHIN_S, Outcome

from tui_descent import cli
from tui_descent.keeper.keeper import Keeper
from tui_descent.keeper.trainer import Trainer
from tui_descent.trainer_thread import TrainerThread


def run(*args: str, home: Path | None = None) -> Outcome:
    """Run the command to its end, without a terminal. Scenarios are trained in threads."""
    begun_s, out, err = time.monotonic(), io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(Trainer, "start", TrainerThread.start)
        if home is not None:
            patch.setenv("TUI_DESCENT_HOME", str(home))
        code = cli.main(args)
    torch.set_num_threads(1)
    return Outcome(args, code, out.getvalue(), err.getvalue(), time.monotonic() - begun_s)


class AttendedHere(Attended):
    """A run of a preset in this process; everything else is as for `Attended`."""

    def _start(self) -> None:
        self.served_by = Keeper(self.launch)
        self._thread = Thread(target=self.served_by.run, args=(lambda: TrainerThread.start(self.launch),))
        self._thread.start()

    def _ends_within(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def wait(self, within_s: float = WITHIN_S) -> int:
        assert self._ends_within(within_s)
        return 0

    def _forget(self) -> None:
        pass

    def close(self) -> None:
        """Stop the run."""
        for viewer in self._viewers:
            viewer.close()
        self.served_by.stop("the test ends")
        assert self._ends_within(WITHIN_S)
        shutil.rmtree(self.launch.path, ignore_errors=True)
        torch.set_num_threads(1)
