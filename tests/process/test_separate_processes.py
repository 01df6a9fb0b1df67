"""A run whose keeper and trainer are processes of their own, against the same one in threads of the test.

Most tests of whole runs are made in threads (`tests/whole_runs`), where torch is already imported.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import runs
import same_process

OPTIONS = (
    "vanishing", "--json", "--steps", "60", "--watch-every", "7",
    "--at", "20:residual=on", "--at", "40:lr=*2", "--at", "50:norm=layer",
)  # fmt: skip
# Fields and events that depend on the clock, on the run's name or on Python's own random numbers, which nobody has
# seeded: a snapshot has their state, whose size varies.
CLOCK = ("time_s", "watch_cost", "seconds", "run", "bytes", "total_bytes")
TIMED = ("device", "state")


def test_a_run_has_the_same_events_in_processes_of_its_own_and_in_threads(
    home: Path, hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the keeper nor a scenario's trainer imports from the current folder."""
    monkeypatch.setenv("PYTHONPATH", ":/nosuch")
    apart = runs.run(*OPTIONS, command=[str(runs.ENTRY_POINT)])
    assert not hostile.exists()
    monkeypatch.chdir(home)
    monkeypatch.delenv("PYTHONPATH")
    here = same_process.run(*OPTIONS)
    assert (apart.code, apart.stderr) == (here.code, here.stderr) == (0, "")
    assert len(apart.losses) == 60
    assert events(apart) == events(here)
    assert runs.recorded(home) == [("finished", 60)] * 2


def events(outcome: runs.Outcome) -> dict[str, list[runs.Line]]:
    """The events of each kind, in order."""
    found: dict[str, list[runs.Line]] = {}
    for line in outcome.lines:
        kept = {name: value for name, value in line.items() if name not in CLOCK}
        found.setdefault(line["event"], []).append(kept)
    return {kind: lines for kind, lines in found.items() if kind not in TIMED}
