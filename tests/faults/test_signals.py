"""SIGTERM or SIGHUP to keeper or trainer: the step is finished, a snapshot is saved, and the run can be resumed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from attended import Start
from runs import recorded, run

from tui_descent.protocol.events import RunEnded


@pytest.mark.heavy  # usual: test_attended.py and test_stop_on_signal.py, without the snapshot
@pytest.mark.parametrize(
    ("who", "number"), [("keeper", signal.SIGTERM), ("trainer", signal.SIGTERM), ("trainer", signal.SIGHUP)]
)
def test_signal_stops_the_run_with_a_snapshot_from_which_it_is_resumed(
    who: str, number: signal.Signals, start: Start, home: Path
) -> None:
    attended = start("vanishing", "run.steps=1000000", "run.threads=1", pace=60.0, snapshot_every_s=300.0)
    viewer = attended.viewer()
    viewer.until_step(10)
    sent_s = time.monotonic()
    os.kill(attended.keeper.pid if who == "keeper" else attended.trainer, number)
    ended = viewer.until_event(RunEnded, within_s=30)
    assert (ended.status, ended.exit_code) == ("stopped", 0)
    assert attended.wait() == 0
    assert time.monotonic() - sent_s < 20.0  # ten seconds on an idle machine
    assert recorded(home) == [("stopped", ended.step)]
    saved = [path.name for path in (attended.launch.path / "snapshots").iterdir()]
    assert f"0-{ended.step}.pt" in saved
    resumed = run("resume", attended.launch.run, "--json", "--steps", str(ended.step + 5))
    assert resumed.code == 0
    assert [line["step"] for line in resumed.events("step")] == list(range(ended.step, ended.step + 5))
