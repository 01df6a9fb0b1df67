"""A run that was killed or stopped and is resumed goes on bitwise as if it had never stopped."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from killed_run import STEPS, Run, launch_of, losses_of

from tui_descent.protocol.events import KnobTurned, Noted, Rewound, RunEnded, SnapshotSaved
from tui_descent.protocol.launch import Launch
from tui_descent.protocol.resume import Replayed, Resume
from tui_descent.training.undo import disk_snapshots, snapshot_file
from tui_descent.training.undo.disk_snapshots import DiskSnapshots


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
    assert rewound.what == f"resumed from the snapshot of step {rewound.to_step:,}"
    assert second.all(Noted) == []


def test_stopped_run_is_saved_where_it_stopped(twin: dict[int, float], tmp_path: Path) -> None:
    first = Run(tmp_path, launch_of(tmp_path, snapshot_every_s=3600.0), stop_at=50)  # the skips are half open
    (ended,) = first.all(RunEnded)
    assert (ended.status, ended.step) == ("stopped", 50)
    assert (first.all(SnapshotSaved)[-1].step, first.all(SnapshotSaved)[-1].reason) == (50, "stopped")
    second = resumed(tmp_path, first)
    assert min(second.losses) == (1, 50)
    assert losses_of(first, second) == twin


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
    assert [event.what for event in second.all(Rewound)] == ["started again from step 0"]


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


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run that was killed at step 100, and its folder."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk_snapshots, "SHARE", 1e12)
        return Run(folder, launch_of(folder), kill_at=100), folder


DAMAGE = ["truncated", "a changed byte", "wrong shapes", *(
    pytest.param(how, marks=pytest.mark.heavy) for how in ("empty", "incomplete", "another run")
)]  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_snapshot_falls_back_to_the_one_before(
    how: str, twin: dict[int, float], killed: tuple[Run, Path], tmp_path: Path
) -> None:
    first, folder = killed
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    *_, before, newest = snapshot_file.files(tmp_path / "snapshots")
    damage(newest.path, how)
    second = resumed(tmp_path, first)
    assert losses_of(first, second) == twin
    (rewound,) = second.all(Rewound)
    assert (rewound.to_step, rewound.what) == (before.step, f"resumed from the snapshot of step {before.step:,}")
    (note,) = second.all(Noted)
    assert note.text.startswith(f"the snapshot of step {newest.step:,} cannot be used: it")


def test_run_whose_snapshots_are_all_damaged_begins_again(
    twin: dict[int, float], killed: tuple[Run, Path], tmp_path: Path
) -> None:
    first, folder = killed
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    files = snapshot_file.files(tmp_path / "snapshots")
    for file in files:
        damage(file.path, "truncated")
    second = resumed(tmp_path, first)
    assert losses_of(second) == twin
    (note,) = second.all(Noted)
    assert note.text.count("it is damaged") == len(files) >= 3
    assert second.all(Rewound)[0].what == "started again from step 0"


def test_three_newest_snapshots_and_those_for_an_undo_are_kept_and_reported(tmp_path: Path) -> None:
    run = Run(tmp_path, launch_of(tmp_path))
    saved = run.all(SnapshotSaved)
    *older, third, second, newest = snapshot_file.files(tmp_path / "snapshots")
    wanted = sorted({(event.segment, event.step) for event in saved})[-3:]
    assert [(file.segment, file.step) for file in (third, second, newest)] == wanted
    files = [*older, third, second, newest]
    assert {file.step for file in older} <= {event.step for event in run.all(KnobTurned)}
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
    assert re.fullmatch(
        r"no snapshot was saved on disk: one takes 0\.0\d* MB, the limit is 0\.001 MB \(--snapshot-size\)", note.text
    )


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
