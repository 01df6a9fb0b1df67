"""Races: their curves are those of the single runs, and they say how many steps each optimizer needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import Outcome
from same_process import AttendedHere, run

from tui_descent.protocol.commands import Pause, Resume, RunSteps, Stop, TurnKnob, Undo, WatchTask
from tui_descent.protocol.events import (
    CommandDone,
    CommandRejected,
    HistorySent,
    KnobTurned,
    LaneEnded,
    LaneSteps,
    RunStarted,
    StateChanged,
    TaskTaken,
)
from tui_descent.protocol.task_pictures import RacePicture
from tui_descent.telemetry.history import History

# Every kind of random number and of rate: dropout, shuffled batches, clipping, schedules, a planned change.
NETS = {
    "mlp": """
[data]
name = "digits"
batch_size = 32
[model]
name = "mlp"
depth = 3
width = 16
dropout = 0.2
[optimizer]
name = "sgd"
lr = 0.1
clip = 0.5
weight_decay = 0.01
rates = { adam = 0.003 }
[schedule]
name = "one_cycle"
[[plan]]
at = 6
turn = "residual=on"
""",
    "points": """
[data]
name = "moons"
points = 60
full = true
[model]
name = "mlp"
norm = "layer"
[optimizer]
name = "adam"
lr = 0.001
""",
    "too hot": """
[data]
name = "moons"
points = 60
full = true
[model]
name = "mlp"
[loss]
name = "mse"
[optimizer]
name = "adam"
lr = 0.01
rates = { sgd = 100.0, nesterov = 0.01 }
""",
    "text": """
[data]
name = "text"
[model]
name = "transformer"
depth = 1
width = 16
context = 8
dropout = 0.1
""",
    "surface": """
[model]
name = "surface"
function = "rosenbrock"
start = [-1.2, 1.0]
[optimizer]
name = "momentum"
lr = 0.0001
momentum = 0.8
""",
}


BOTH = {"finished", "diverged"}


def written(folder: Path, net: str, steps: int = 12) -> Path:
    path = folder / "race.toml"
    path.write_text(f'title = "t"\n{NETS[net]}\n[run]\nsteps = {steps}\nthreads = 1\ndevice = "cpu"\n')
    return path


def curve(race: Outcome, lane: str) -> list[float]:
    steps = [line for line in race.events("lane_step") if line["lane"] == lane]
    assert [line["step"] for line in steps] == list(range(len(steps)))
    return [line["loss"] for line in steps]


@pytest.mark.parametrize("net", NETS)
def test_curves_are_bitwise_those_of_the_single_runs(net: str, tmp_path: Path) -> None:
    path = written(tmp_path, net)
    race = run("race", str(path), "--optimizers", "sgd,nesterov,adam", "--json")
    assert race.code == 0, race.stderr
    (started,) = race.events("run_started")
    assert len(started["lanes"]) == 3
    for lane, end in zip(started["lanes"], race.events("lane_ended"), strict=True):
        options = f"optimizer.name={lane['optimizer']}", f"optimizer.lr={lane['lr']!r}"
        alone = run("run", str(path), "--json", *(part for text in options for part in ("--set", text)))
        assert curve(race, lane["name"]) == alone.losses, lane
        assert (end["lane"], end["step"]) == (lane["name"], len(alone.losses))
        assert (end["status"], end["reason"]) == (alone.ended["status"], alone.ended["reason"])
        if end["status"] == "finished":
            assert (end["loss"], end.get("accuracy")) == (alone.ended["loss"], alone.ended.get("accuracy"))
    assert {end["status"] for end in race.events("lane_ended")} == ({"finished"} if net != "too hot" else BOTH)


def test_the_saddle_race_has_the_known_counts() -> None:
    race = run("race", "saddle", "--headless", "--steps", "760", "--optimizers", "sgd,momentum,rmsprop,adam,adamw")
    assert race.code == 0, race.stderr
    head, columns, *rows = race.stdout.splitlines()
    assert head.startswith("saddle: race finished · 760 steps")
    assert columns.split() == ["optimizer", "rate", "steps", "to", "loss", "-0.5", "final", "loss"]
    assert [row.split()[:3] for row in rows] == [
        ["sgd", "0.01", "693"],
        ["momentum", "0.01", "138"],
        ["rmsprop", "0.01", "17"],
        ["adam", "0.01", "72"],
        ["adamw", "0.01", "72"],
    ]
    assert [row.endswith("first") for row in rows] == [False, False, True, False, False]


def test_a_lane_that_diverges_or_does_not_arrive_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "too hot")
    race = run("race", str(path), "--headless", "--optimizers", "sgd,adam:0.000001")
    assert race.code == 0, race.stderr
    _, _, sgd, adam = race.stdout.splitlines()
    assert sgd.split()[:4] == ["sgd", "100", "-", "-"]
    assert "diverged at step " in sgd
    assert adam.split()[:4] == ["adam", "1e-06", "1e-06", "-"]
    assert "sgd diverged: " in race.stderr
    all_diverged = run("race", str(path), "--headless", "--optimizers", "sgd,sgd:200")
    assert all_diverged.code == 3
    assert "race diverged" in all_diverged.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("saddle", "--optimizers", "sgd,adm"), '--optimizers: found "adm"; allowed: sgd, momentum, '),
        (("saddle", "--optimizers", ""), '--optimizers: found ""; allowed: sgd'),
        (("saddle", "--optimizers", "sgd,sgd"), '--optimizers: found "sgd" twice; allowed: each once, or with'),
        (("saddle", "--optimizers", "sgd:-1"), '--optimizers: found "sgd:-1"; allowed: NAME:RATE with a rate > 0'),
        (("saddle", "--optimizers", "sgd,muon"), "optimizer.name: muon needs weight matrices"),
        (("saddle", "--optimizers", ",".join(f"sgd:{n}" for n in range(1, 10))), "found 9 optimizers; allowed: 1 to 8"),
        (("no-such-preset",), "no-such-preset"),
    ],
)
def test_usage_errors_of_a_race(args: tuple[str, ...], said: str) -> None:
    race = run("race", *args, "--headless")
    assert (race.code, race.stdout) == (2, "")
    assert said in race.stderr


def test_commands_of_a_race() -> None:
    live = AttendedHere("saddle", "run.steps=400", pace=100.0, race=("sgd", "adam"))
    try:
        viewer = live.viewer()
        started = viewer.until_event(RunStarted)
        assert [lane.name for lane in started.lanes] == ["sgd", "adam"]
        assert started.target == -0.5
        assert {state.name for state in started.knobs if state.unavailable is None} == {"pace"}
        viewer.until_event(LaneSteps, lane=1)
        for command in (TurnKnob(knob="lr", value="*10"), TurnKnob(knob="optimizer", value="adam"), Undo()):
            rejected = viewer.do(command)
            assert isinstance(rejected, CommandRejected)
            assert rejected.reason.startswith("not in a race")
        assert isinstance(viewer.do(WatchTask(on=True, columns=40, rows=12)), CommandDone)
        picture = viewer.until_event(TaskTaken).picture
        assert isinstance(picture, RacePicture)
        assert len(picture.lanes) == 2
        viewer.do(Pause())
        viewer.until_event(StateChanged, state="paused")
        assert isinstance(viewer.do(RunSteps(steps=3)), CommandDone)
        counts = [sum(len(e.losses) for e in viewer.events(LaneSteps) if e.lane == lane) for lane in (0, 1)]
        assert counts[0] == counts[1], "lanes make their steps in turn"
        changed = viewer.do(TurnKnob(knob="pace", value="max"))
        assert isinstance(changed, KnobTurned)
        assert (changed.old, changed.new) == ("100", "max")
        viewer.do(Resume())
        viewer.until_event(StateChanged, state="waiting")
        assert [(end.name, end.step, end.status) for end in viewer.events(LaneEnded)] == [
            ("sgd", 400, "finished"),
            ("adam", 400, "finished"),
        ]
        assert isinstance(viewer.do(Resume()), CommandRejected)
        lanes = History.receive(live.viewer().until_event(HistorySent)).lanes
        assert [(lane.steps, lane.reached) for lane in lanes] == [(400, None), (400, 72)]
        viewer.do(Stop())
        viewer.until_closed()
    finally:
        live.close()
