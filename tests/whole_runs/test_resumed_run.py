"""`tui-descent resume`: keeper, record and trainer of a run that is started again in the same folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import Outcome
from same_process import AttendedHere, run
from torch import Tensor

from tui_descent import resume
from tui_descent.protocol.commands import Mark, Pause, RunSteps, Stop, Undo
from tui_descent.protocol.events import (
    CommandDone,
    HistorySent,
    KnobTurned,
    Rewound,
    RunEnded,
    StateChanged,
    StepsCompleted,
)
from tui_descent.protocol.run_lock import create_lock, keep_folder
from tui_descent.scenario.knobs import parse
from tui_descent.telemetry.history import History
from tui_descent.telemetry.record import Record
from tui_descent.training.setup import build
from tui_descent.training.undo import disk_snapshots

SCENARIO = """
title = "resume"
[data]
name = "digits"
batch_size = 32
subset = 200
[model]
name = "mlp"
depth = 2
width = 12
dropout = 0.1
[optimizer]
name = "adam"
lr = 2e-3
[run]
steps = 60
seed = 5
device = "cpu"
"""
PLAN = ("--at", "10:lr=*2", "--at", "30:residual=on", "--at", "45:dropout=0.2")


@pytest.fixture
def start(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs the scenario headless; with `fails_at` its forward pass raises at this step."""
    file = home / "resume.toml"
    file.write_text(SCENARIO)
    compute = build.Setup.loss

    def begin(*options: str, fails_at: int | None = None) -> Outcome:
        calls = 0

        def loss(setup: build.Setup) -> Tensor:
            nonlocal calls
            calls += 1
            if fails_at is not None and calls > fails_at:
                raise RuntimeError("a cosmic ray")
            return compute(setup)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build.Setup, "loss", loss)
            return run("run", str(file), "--json", *options)

    return begin


def losses(*parts: Outcome) -> dict[int, float]:
    return {line["step"]: line["loss"] for part in parts for line in part.events("step")}


def folder_of(part: Outcome, home: Path) -> Path:
    return home / "runs" / str(part.events("run_started")[0]["run"])


def test_failed_run_goes_on_bitwise_and_in_the_same_record(
    start: Callable[..., Outcome], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_snapshots, "SHARE", 1e12)
    twin = start(*PLAN)
    first = start(*PLAN, "--snapshot-every", "0.0001", fails_at=40)
    assert first.code == 1
    second = run("resume", str(first.events("run_started")[0]["run"]), "--json")
    assert second.code == 0, second.stderr
    assert losses(first, second) == losses(twin)
    (rewound,) = second.events("rewound")
    assert rewound["from"] == {"segment": 0, "step": 40}
    assert rewound["segment"] == 1
    assert rewound["resumed"] == f"resumed from the snapshot of step {rewound['to']['step']}"
    with Record.open(folder_of(first, home)) as record:
        assert record.about.status == "finished"
        assert record.position() == (1, 60)
        recorded = {}
        for event in record.events():
            if isinstance(event, StepsCompleted):
                recorded |= dict(enumerate(event.losses, event.first))
        assert recorded == losses(twin)
        made = [(one.step, one.knob, one.source) for one in record.interventions()]
        assert made == [(10, "lr", "plan"), (30, "residual", "plan"), (45, "dropout", "plan")]
        history = record.history()
        assert (history.segment, history.steps) == (1, 60)


def test_finished_run_goes_on_twice(start: Callable[..., Outcome], home: Path) -> None:
    twin = start(*PLAN, "--steps", "100")
    first = start(*PLAN)
    name = str(first.events("run_started")[0]["run"])
    refused = run("resume", name, "--json")
    assert refused.code == 2
    said = f"{name} has made 60 of 60 steps; to make more, give their number in all, as in --steps 120"
    assert said in refused.stderr
    assert "made 60 of 60 steps" in run("resume", name, "--json", "--steps", "60").stderr
    second = run("resume", name, "--json", "--steps", "80")
    third = run("resume", name, "--json", "--steps", "100")
    assert losses(first, second, third) == losses(twin)
    with Record.open(folder_of(first, home)) as record:
        assert [one.segment for one in record.changes() if isinstance(one, Rewound)] == [1, 2]
        assert [one.step for one in record.interventions()] == [10, 30, 45]


def test_refusals(start: Callable[..., Outcome], home: Path) -> None:
    first = start("--steps", "3")
    name, folder = str(first.events("run_started")[0]["run"]), folder_of(first, home)
    assert "no such run" in run("resume", "nobody", "--json").stderr
    for wrong in ("many", "0", "-3", "1.5"):
        assert "allowed: a whole number ≥ 1" in run("resume", name, "--json", f"--steps={wrong}").stderr
    create_lock(folder)
    live = run("resume", name, "--json", "--steps", "9")
    keep_folder(folder)
    assert live.code == 2
    assert f"open it with: tui-descent attach {name}" in live.stderr
    settings = json.loads((folder / "launch.json").read_text())
    (folder / "launch.json").write_text(json.dumps({**settings, "race": ["sgd", "adam"]}))
    race = run("resume", name, "--json", "--steps", "9").stderr
    assert "is a race, and races are not saved; start it again with: tui-descent race" in race
    of_a_script = {**settings, "scenario": None, "command": None}
    (folder / "launch.json").write_text(json.dumps(of_a_script))
    again = run("resume", name, "--json")
    assert f"{name} goes on when its script is started again: TUI_DESCENT_RESUME={name} python" in again.stderr
    for file in (folder / "snapshots").iterdir():
        file.unlink()
    nothing = run("resume", name, "--json")
    assert nothing.code == 2
    assert f"{name} cannot be resumed: nothing was saved. Its script has to call run.resume()" in nothing.stderr
    assert (folder / "record.sqlite").exists()


def test_options_are_checked(start: Callable[..., Outcome]) -> None:
    for option, value, said in (
        ("--snapshot-every", "often", "allowed: minutes, as in 5 or 0.5, or off"),
        ("--snapshot-every", "0", "allowed: minutes"),
        ("--snapshot-size", "big", "allowed: a size, as in 256MB or 2GB, or auto; 0 saves no snapshots"),
        ("--rollback", "-1", "allowed: a whole number from 0 to 100"),
    ):
        refused = start(f"{option}={value}")
        assert (refused.code, refused.stdout) == (2, "")
        assert said in refused.stderr


def test_no_snapshots_with_off(start: Callable[..., Outcome], home: Path) -> None:
    first = start("--snapshot-every", "off", "--steps", "5")
    assert not (folder_of(first, home) / "snapshots").exists()
    assert first.events("snapshot_saved") == []


def test_run_with_an_undo_goes_on_without_what_was_undone(home: Path) -> None:
    options = ("run.steps=120", "run.threads=1", "data.batch_size=32")
    live = AttendedHere("healthy", *options, snapshot_every_s=0.02, plan=((110, "weight_decay=0.01"),))
    try:
        viewer = live.viewer()
        viewer.ask(Pause())
        viewer.until_event(StateChanged, state="paused")
        at = viewer.do(Mark()).step
        for turn, steps in (("residual=on", 15), ("lr=*0.5", 12)):
            viewer.do(parse(turn))
            viewer.do(RunSteps(steps=steps))
            viewer.until_event(StateChanged, state="paused")
            if turn == "residual=on":
                assert viewer.do(Undo()).step == at
        viewer.do(Stop())
        viewer.until_event(RunEnded, status="stopped", step=at + 12)
        live.wait()
        keep_folder(live.launch.path)
        resumed = run("resume", live.launch.run, "--json")
        assert resumed.code == 0, resumed.stderr
        with Record.open(live.launch.path) as record:
            assert [(one.step, one.knob) for one in record.interventions()] == [(at, "lr"), (110, "weight_decay")]
    finally:
        live.close()
    sets = [word for option in options for word in ("--set", option)]
    twin = run("run", "healthy", "--json", *sets, "--at", f"{at}:lr=*0.5", "--at", "110:weight_decay=0.01")
    assert losses(resumed) == {step: loss for step, loss in losses(twin).items() if step >= at + 12}


def test_intervention_is_undone_after_a_resumption(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_snapshots, "SHARE", 1e12)
    options = ("run.steps=60", "run.threads=1", "data.batch_size=32")
    live = AttendedHere("healthy", *options, snapshot_every_s=3600.0)
    try:
        viewer = live.viewer()
        viewer.ask(Pause())
        viewer.until_event(StateChanged, state="paused")
        at = viewer.do(Mark()).step
        assert at < 40
        assert isinstance(viewer.do(parse("norm=layer")), KnobTurned)
        viewer.do(RunSteps(steps=8))
        viewer.until_event(StateChanged, state="paused")
        viewer.do(Stop())
        live.resume()
        viewer = live.viewer()
        viewer.until_event(StateChanged, state="running")
        viewer.ask(Pause())
        viewer.until_event(StateChanged, state="paused")
        undone = viewer.do(Undo())
        assert isinstance(undone, CommandDone)
        assert undone.what == "undone: norm none → layer (from disk)"
        (rewound,) = [event for event in viewer.events(Rewound) if not event.resumed]
        assert (rewound.to_segment, rewound.to_step, rewound.in_force) == (0, at, ())
        late = live.viewer()
        history = History.receive(late.until_event(HistorySent))
        assert (history.segment, history.steps) == (2, at)
        viewer.do(Stop())
        viewer.until_event(RunEnded, status="stopped", step=at)
        live.wait()
        keep_folder(live.launch.path)
        resumed = run("resume", live.launch.run, "--json")
        assert resumed.code == 0, resumed.stderr
        with Record.open(live.launch.path) as record:
            assert record.interventions() == []
    finally:
        live.close()
    sets = [word for option in options for word in ("--set", option)]
    twin = run("run", "healthy", "--json", *sets)
    assert losses(resumed) == {step: loss for step, loss in losses(twin).items() if step >= at}


def test_past_of_a_run_with_an_undo_and_a_resumption() -> None:
    def rewound(to: tuple[int, int], segment: int, *, resumed: bool = False) -> Rewound:
        place = {"from_segment": segment - 1, "from_step": 80, "to_segment": to[0], "to_step": to[1]}
        return Rewound(**place, segment=segment, step=to[1], what="", resumed=resumed)

    changes = [rewound((0, 45), 1), rewound((1, 60), 2, resumed=True), rewound((0, 30), 3)]
    # The snapshot of a resumption is in the past; that of an undo may contain what was undone.
    assert resume._past(changes[:2], 2) == ((2, resume.NO_LIMIT), (1, 61), (0, 45))
    assert resume._past(changes, 3) == ((3, resume.NO_LIMIT), (0, 30))
    assert resume._past([], 0) == ((0, resume.NO_LIMIT),)
