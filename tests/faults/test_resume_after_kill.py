"""A real trainer that is killed at any moment of a fast run, its keeper alone or with it, and the run resumed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
from pathlib import Path

import pytest
import same_process
from runs import Live, children, kill_and_wait

from tui_descent.telemetry.record import RECORD_FILE

SCENARIO = """
title = "killed"
[data]
name = "digits"
batch_size = 32
subset = 400
[model]
name = "mlp"
depth = 4
width = 16
dropout = 0.05
[optimizer]
name = "adam"
lr = 1e-3
[schedule]
name = "cosine"
[run]
steps = 1200
seed = 1
threads = 1
device = "cpu"
"""
KILLS = 20
PLAN = ("--at", "200:lr=*2", "--at", "500:residual=on", "--at", "900:activation=gelu")


@pytest.mark.heavy
def test_killed_run_is_resumed_bitwise(home: Path) -> None:
    """The usual test of this is in `test_killed_trainer.py`."""
    scenario = home / "killed.toml"
    scenario.write_text(SCENARIO)
    twin = same_process.run("run", str(scenario), "--json", *PLAN).losses
    chosen = random.Random(1)
    for number in range(KILLS):
        with Live("run", str(scenario), "--json", *PLAN, "--snapshot-every", "0.005") as live:
            run = str(live.until(lambda line: line["event"] == "run_started")["run"])
            at = chosen.randrange(5, 1100)
            live.until(lambda line, at=at: line["event"] == "step" and line["step"] >= at)  # type: ignore[misc]
            for pid in children(live.process.pid):
                kill_and_wait(pid)
            if number % 2:  # a headless run's keeper
                with contextlib.suppress(ProcessLookupError):
                    os.kill(live.process.pid, signal.SIGKILL)
                live.process.wait(60)
            else:
                assert live.end()[0] == 4
            made = {line["step"]: line["loss"] for line in live.lines if line["event"] == "step"}
        resumed = same_process.run("resume", run, "--json")
        assert resumed.code == 0, resumed.stderr
        made |= {line["step"]: line["loss"] for line in resumed.events("step")}
        assert [made[step] for step in sorted(made)] == twin
        (rewound,) = resumed.events("rewound")
        assert rewound["from"]["step"] >= rewound["to"]["step"], "no step is lost that the record had"
        with contextlib.closing(sqlite3.connect(home / "runs" / run / RECORD_FILE)) as record:
            assert record.execute("PRAGMA integrity_check").fetchone() == ("ok",)
