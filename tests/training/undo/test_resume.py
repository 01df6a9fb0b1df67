"""A run that was killed or stopped and is resumed goes on bitwise as if it had never stopped."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from fake_keeper import FakeKeeper
from torch import Tensor

from tui_descent.protocol.commands import Undo
from tui_descent.protocol.events import KnobTurned, Noted, Rewound, RunEnded, SnapshotSaved
from tui_descent.protocol.launch import Launch
from tui_descent.protocol.resume import Replayed, Resume
from tui_descent.scenario.toml import from_text, to_table
from tui_descent.training import scenario_run
from tui_descent.training.setup import build
from tui_descent.training.undo import disk_snapshots, snapshot_file
from tui_descent.training.undo.disk_snapshots import DiskSnapshots

SCENARIO = """
title = "resume"
[data]
name = "digits"
batch_size = 48
subset = 400
[model]
name = "mlp"
depth = 3
width = 16
activation = "tanh"
norm = "layer"
dropout = 0.2
[optimizer]
name = "adam"
lr = 2e-3
[schedule]
name = "cosine"
[run]
steps = 120
seed = 5
device = "cpu"
"""
STEPS = 120
PLAN = ((20, "lr=*2"), (45, "residual=on"), (90, "activation=gelu"), (100, "optimizer=momentum"))


class Killed(BaseException):
    """Takes the place of a SIGKILL: nothing of the trainer runs after it, except for what closes the connection."""


class Run:
    """One part of a run, from its start or its resumption to its end or its death."""

    def __init__(self, folder: Path, launch: Launch, *, kill_at: int | None = None, undo_at: int | None = None) -> None:
        self.keeper = FakeKeeper(folder)
        self.keeper.link.launch = launch
        killed = Killer(self.keeper, kill_at, undo_at)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build.Setup, "loss", lambda setup: killed.loss(setup))
            with contextlib.suppress(Killed):
                self.code = scenario_run.train_scenario(self.keeper.link)
        torch.set_num_threads(1)
        self.losses = {(record.segment, record.step): record.loss for record in self.keeper.steps()}
        self.events = self.keeper.events()
        self.keeper.close()

    def all(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


class Killer:
    """Computes the loss, but dies instead of making update `kill_at`; an undo arrives before update `undo_at`."""

    def __init__(self, keeper: FakeKeeper, kill_at: int | None, undo_at: int | None) -> None:
        self.keeper, self.kill_at, self.undo_at, self.calls = keeper, kill_at, undo_at, 0
        self.original: Callable[[build.Setup], Tensor] = build.Setup.loss

    def loss(self, setup: build.Setup) -> Tensor:
        loss = self.original(setup)
        self.calls += 1
        if self.calls == self.undo_at:
            self.keeper.send(Undo())
        if self.calls - 1 == self.kill_at:
            raise Killed
        return loss


def launch_of(folder: Path, **settings: Any) -> Launch:
    table = to_table(from_text(SCENARIO, source="test"))
    settings = {"snapshot_every_s": 0.02, "plan": PLAN, **settings}
    return Launch(run="r", name="r", folder=str(folder), socket="there", scenario=table, **settings)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save as often as possible, whatever it costs."""
    monkeypatch.setattr(disk_snapshots, "SHARE", 1e12)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of the run that is never stopped."""
    folder = tmp_path_factory.mktemp("twin")
    run = Run(folder, launch_of(folder, snapshot_every_s=None))
    return losses_of(run)


def losses_of(*parts: Run) -> dict[int, float]:
    """The loss of each step; a later part replaces what an earlier one has made."""
    return {step: loss for part in parts for (_, step), loss in part.losses.items()}


def resume_of(*parts: Run, past: tuple[tuple[int, int], ...] | None = None, steps: int | None = None) -> Resume:
    """What the record knows of the run so far."""
    turned = [event for part in parts for event in part.all(KnobTurned)]
    segment, step = max(parts[-1].losses, default=(0, -1))
    return Resume(
        segment=max(segment for part in parts for segment, _ in part.losses) + 1,
        from_segment=segment,
        from_step=step + 1,
        past=past,
        replay=tuple(Replayed(id=e.id, step=e.step, source=e.source, command=e.again) for e in turned),
        interventions=max((event.id for event in turned), default=0),
        planned=step + 1,
        played=tuple(e.again for e in turned if e.source == "plan" and e.step == step + 1),
        steps=steps,
    )


def resumed(folder: Path, *parts: Run, **how: Any) -> Run:
    launch = msgspec.structs.replace(launch_of(folder), resume=resume_of(*parts, **how))
    return Run(folder, launch)


@pytest.mark.parametrize(
    "number", ["at an intervention", 1, *(pytest.param(n, marks=pytest.mark.heavy) for n in range(2, 21))]
)
def test_killed_run_goes_on_bitwise(number: int | str, twin: dict[int, float], tmp_path: Path) -> None:
    kill_at = random.Random(number).randrange(3, STEPS) if isinstance(number, int) else 45
    first = Run(tmp_path, launch_of(tmp_path), kill_at=kill_at)
    second = resumed(tmp_path, first)
    assert losses_of(first, second) == twin
    assert second.code == 0
    (rewound,) = second.all(Rewound)
    assert rewound.to_step <= kill_at
    assert rewound.segment == 1
    assert min(second.losses) == (1, rewound.to_step)
    assert [note.text for note in second.all(Noted)] == [f"resumed from the snapshot of step {rewound.to_step:,}"]


def test_run_is_resumed_again_and_again(twin: dict[int, float], tmp_path: Path) -> None:
    parts = [Run(tmp_path, launch_of(tmp_path), kill_at=30)]
    for _ in range(3):
        launch = msgspec.structs.replace(launch_of(tmp_path), resume=resume_of(*parts))
        parts.append(Run(tmp_path, launch, kill_at=40))
    parts.append(resumed(tmp_path, *parts))
    assert losses_of(*parts) == twin
    assert parts[-1].all(Rewound)[0].segment == 4


def test_killed_run_without_a_snapshot_begins_again(twin: dict[int, float], tmp_path: Path) -> None:
    first = Run(tmp_path, launch_of(tmp_path, snapshot_every_s=3600.0), kill_at=15)
    assert snapshot_file.files(tmp_path / "snapshots") == []
    second = resumed(tmp_path, first)
    assert min(second.losses) == (1, 0)
    assert losses_of(second) == twin
    assert [note.text for note in second.all(Noted)] == ["started again from step 0"]


def test_finished_run_is_resumed_for_more_steps(tmp_path: Path) -> None:
    def constant(folder: Path, steps: int, **settings: Any) -> Launch:
        folder.mkdir(exist_ok=True)
        launch = launch_of(folder, **settings)
        assert launch.scenario is not None
        table = {**launch.scenario, "schedule": {"name": "constant"}}
        table["run"] = {**table["run"], "steps": steps}
        # A transition that is in progress at the end.
        return msgspec.structs.replace(launch, scenario=table, plan=((20, "activation=gelu"), (45, "residual=on")))

    whole = Run(tmp_path / "whole", constant(tmp_path / "whole", 70))
    first = Run(tmp_path / "parts", constant(tmp_path / "parts", 50))
    second = Run(tmp_path / "parts", constant(tmp_path / "parts", 50, resume=resume_of(first, steps=70)))
    assert (min(second.losses), max(second.losses)) == ((1, 50), (1, 69))
    (ended,) = second.all(RunEnded)
    assert (ended.status, ended.step) == ("finished", 70)
    assert losses_of(first, second) == losses_of(whole)


def test_undone_intervention_is_not_replayed(tmp_path: Path) -> None:
    """The intervention before step 45 is undone before step 80; the run dies 30 steps later."""
    plan = ((20, "lr=*2"), (45, "residual=on"))

    def launch(folder: Path, **settings: Any) -> Launch:
        folder.mkdir(exist_ok=True)
        return msgspec.structs.replace(launch_of(folder, **settings), plan=plan)

    plain = Run(tmp_path / "plain", msgspec.structs.replace(launch(tmp_path / "plain"), plan=plan[:1]))
    first = Run(tmp_path / "run", launch(tmp_path / "run", attended=True), undo_at=80, kill_at=110)
    (rewound,) = first.all(Rewound)
    assert rewound.to_step == 45
    files = snapshot_file.files(tmp_path / "run" / "snapshots")
    assert all(file.segment == 1 or file.step < 45 for file in files)
    resume = resume_of(first, past=((0, 45), (1, 1000)))
    resume = msgspec.structs.replace(resume, replay=resume.replay[:1], planned=81)
    second = Run(tmp_path / "run", launch(tmp_path / "run", resume=resume))
    assert {**losses_of(first), **losses_of(second)} == losses_of(plain)


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    match how:
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(data[: len(data) // 2])
        case "a changed byte":
            content = torch.load(path, weights_only=True)
            content["state"]["net"]["tensors"]["head.weight"][0, 0] += 1
            torch.save(content, path)
        case "wrong shapes":
            content = snapshot_file.read(path)
            content["state"]["net"]["tensors"]["head.weight"] = torch.ones(3, 3)
            snapshot_file.write(path.parent, content["segment"], content["step"], content)
        case "incomplete":
            content = snapshot_file.read(path)
            del content["state"]["knobs"]["losses"]
            snapshot_file.write(path.parent, content["segment"], content["step"], content)
        case "another run":
            content = snapshot_file.read(path)
            snapshot_file.write(path.parent, content["segment"], content["step"], {**content, "run": "other"})


@pytest.mark.parametrize("how", ["empty", "truncated", "a changed byte", "wrong shapes", "incomplete", "another run"])
def test_damaged_snapshot_falls_back_to_the_one_before(how: str, twin: dict[int, float], tmp_path: Path) -> None:
    first = Run(tmp_path, launch_of(tmp_path), kill_at=100)
    *_, before, newest = snapshot_file.files(tmp_path / "snapshots")
    damage(newest.path, how)
    second = resumed(tmp_path, first)
    assert losses_of(first, second) == twin
    assert second.all(Rewound)[0].to_step == before.step
    refused, went_on = [note.text for note in second.all(Noted)]
    assert refused.startswith(f"the snapshot of step {newest.step:,} cannot be used: it")
    assert went_on == f"resumed from the snapshot of step {before.step:,}"


def test_run_whose_snapshots_are_all_damaged_begins_again(twin: dict[int, float], tmp_path: Path) -> None:
    first = Run(tmp_path, launch_of(tmp_path), kill_at=100)
    files = snapshot_file.files(tmp_path / "snapshots")
    for file in files:
        damage(file.path, "truncated")
    second = resumed(tmp_path, first)
    assert losses_of(second) == twin
    *_, refused, went_on = [note.text for note in second.all(Noted)]
    assert refused.count("it is damaged") == len(files) == 3
    assert went_on == "started again from step 0"


def test_three_newest_snapshots_are_kept_and_reported(tmp_path: Path) -> None:
    run = Run(tmp_path, launch_of(tmp_path))
    saved = run.all(SnapshotSaved)
    files = snapshot_file.files(tmp_path / "snapshots")
    assert len(files) == 3
    assert sorted({(event.segment, event.step) for event in saved})[-3:] == [(f.segment, f.step) for f in files]
    assert saved[-1].reason == "all steps made"
    assert saved[-1].total_bytes == sum(file.nbytes for file in files)
    assert 0 < saved[-1].bytes < saved[-1].total_bytes < saved[-1].limit_bytes


def test_limit_of_all_snapshots_together(tmp_path: Path) -> None:
    Run(tmp_path, launch_of(tmp_path), kill_at=20)
    size = snapshot_file.files(tmp_path / "snapshots")[-1].nbytes
    folder = tmp_path / "two"
    folder.mkdir()
    Run(folder, launch_of(folder, snapshot_bytes=int(2.5 * size)), kill_at=40)
    assert len(snapshot_file.files(folder / "snapshots")) == 2
    folder = tmp_path / "none"
    folder.mkdir()
    run = Run(folder, launch_of(folder, snapshot_bytes=1000), kill_at=20)
    assert snapshot_file.files(folder / "snapshots") == []
    (note,) = run.all(Noted)
    assert note.text.startswith("no snapshot was saved on disk: one takes 0 MB")


def test_snapshots_take_a_hundredth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_snapshots, "SHARE", 0.01)
    run = Run(tmp_path, launch_of(tmp_path))
    assert len(run.all(SnapshotSaved)) <= 6


def test_saving_does_not_change_the_run(twin: dict[int, float], tmp_path: Path) -> None:
    run = Run(tmp_path, launch_of(tmp_path))
    assert losses_of(run) == twin
    assert len(run.all(SnapshotSaved)) > 3


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The disk is full while the list is not empty."""
    full: list[bool] = []
    write = snapshot_file._Writer.write

    def refuse(writer: Any, data: Any) -> int:
        if full:
            writer._error = OSError(28, "No space left on device")
        return write(writer, data)

    monkeypatch.setattr(snapshot_file._Writer, "write", refuse)
    return full


def test_full_disk_leaves_training_and_the_old_snapshot_alone(
    twin: dict[int, float], tmp_path: Path, full_disk: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = DiskSnapshots.save

    def save_or_not(disk: DiskSnapshots, reason: str) -> None:
        disk.wait()
        full_disk[:] = [True] if disk._progress.step > 40 else []
        save(disk, reason)

    monkeypatch.setattr(DiskSnapshots, "save", save_or_not)
    run = Run(tmp_path, launch_of(tmp_path))
    assert losses_of(run) == twin
    *_, newest = snapshot_file.files(tmp_path / "snapshots")
    assert newest.step <= 40
    snapshot_file.read(newest.path)
    (note,) = run.all(Noted)
    assert note.text == (
        f"no snapshot was saved on disk: No space left on device; the one of step {newest.step} is kept"
    )
    assert [path.name for path in (tmp_path / "snapshots").iterdir() if path.suffix == ".tmp"] == []


def test_removed_folder_leaves_training_alone(twin: dict[int, float], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    launch = msgspec.structs.replace(launch_of(folder), folder=str(tmp_path / "gone"))
    run = Run(folder, launch)
    assert losses_of(run) == twin
    assert run.all(Noted)[0].text == "no snapshot was saved on disk: No such file or directory"


def test_temporaries_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    folder.mkdir()
    (folder / ".0-7.pt.123.tmp").write_bytes(b"half")
    Run(tmp_path, launch_of(tmp_path), kill_at=2)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".0-7")] == []
