"""The file of a snapshot: what was written is read, and nothing else ever is."""

from __future__ import annotations

import os
import pickle
import random
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tui_descent.training.undo import snapshot_file
from tui_descent.training.undo.plain_values import plain
from tui_descent.training.undo.snapshot_file import SnapshotError, checksum, files, read, write

CONTENT = {
    "run": "some-run",
    "step": 40,
    "weights": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)},
    "list": [1, 2.5, None, True, "ü", (1, 2)],
    "empty": torch.zeros(0),
    "number": torch.tensor(3, dtype=torch.int64),
    "large": 2**80,
    "nan": float("nan"),
}


def test_content_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    file = write(tmp_path / "snapshots", 1, 40, CONTENT)
    content = read(file.path)
    assert checksum(content) == checksum({"format": snapshot_file.FORMAT, "version": snapshot_file.VERSION, **CONTENT})
    assert torch.equal(content["weights"]["a"], CONTENT["weights"]["a"])
    assert content["list"] == CONTENT["list"]
    assert files(tmp_path / "snapshots") == [file]
    assert oct(file.path.stat().st_mode & 0o777) == "0o600"


def test_file_loads_without_this_package(tmp_path: Path) -> None:
    file = write(tmp_path, 0, 1, CONTENT)
    assert torch.load(file.path, weights_only=True)["step"] == 40


@pytest.mark.parametrize("flips", [60, pytest.param(3000, marks=pytest.mark.heavy)])
def test_no_changed_byte_is_read(flips: int, tmp_path: Path) -> None:
    good = write(tmp_path, 0, 1, CONTENT).path.read_bytes()
    expected = checksum(read(tmp_path / "0-1.pt"))
    path, chosen = tmp_path / "0-2.pt", random.Random(0)
    refused = 0
    for _ in range(flips):
        changed = bytearray(good)
        changed[chosen.randrange(len(good))] ^= 1 << chosen.randrange(8)
        path.write_bytes(changed)
        try:
            found = checksum(read(path))
        except SnapshotError:
            refused += 1
        else:
            assert found == expected, "some bytes, such as the time of a zip entry, have no meaning"
    assert refused > flips // 4


def test_changed_weight_is_refused_although_torch_loads_it(tmp_path: Path) -> None:
    path = write(tmp_path, 0, 1, CONTENT).path
    data = bytearray(path.read_bytes())
    place = data.index(torch.arange(6.0).numpy().tobytes())
    data[place + 9] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)
    with pytest.raises(SnapshotError, match="its checksum does not match"):
        read(path)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_truncated_file_is_refused(part: float, tmp_path: Path) -> None:
    path = write(tmp_path, 0, 1, CONTENT).path
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(SnapshotError, match="damaged"):
        read(path)


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("how", ["torch.save", "in a tensor file", "legacy", "pickle"])
def test_pickled_code_is_never_run(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "0-1.pt"
    match how:
        case "torch.save":
            torch.save(Bomb(), path)
        case "in a tensor file":
            torch.save({"format": snapshot_file.FORMAT, "version": 1, "weights": [torch.ones(2), Bomb()]}, path)
        case "legacy":
            torch.save(Bomb(), path, _use_new_zipfile_serialization=False)
        case _:
            path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(SnapshotError, match="damaged"):
        read(path)
    assert not (tmp_path / "exploded").exists()


def test_other_versions_and_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "0-1.pt"
    torch.save({"format": snapshot_file.FORMAT, "version": 7}, path)
    with pytest.raises(SnapshotError, match="version 7 of the format; this tui-descent reads version 1"):
        read(path)
    for other in ({"epoch": 3}, torch.ones(2)):
        torch.save(other, path)
        with pytest.raises(SnapshotError, match="not a snapshot of tui-descent"):
            read(path)


def test_pipe_link_and_folder_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0-1.pt")
    (tmp_path / "0-2.pt").mkdir()
    (tmp_path / "0-3.pt").symlink_to("/etc/passwd")
    for name in ("0-1.pt", "0-2.pt", "0-3.pt", "0-4.pt"):
        with pytest.raises(SnapshotError):
            read(tmp_path / name)
    assert files(tmp_path) == []


def test_files_are_listed_in_the_order_of_the_run(tmp_path: Path) -> None:
    for segment, step in ((1, 5), (0, 10), (0, 9), (10, 2)):
        write(tmp_path, segment, step, {})
    (tmp_path / "notes.txt").touch()
    (tmp_path / "0-x.pt").touch()
    assert [(file.segment, file.step) for file in files(tmp_path)] == [(0, 9), (0, 10), (1, 5), (10, 2)]


@pytest.fixture
def no_room() -> Iterator[None]:
    """No file may become larger than 4 KB."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_leaves_the_old_snapshot_and_no_temporary(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    old = write(tmp_path, 0, 1, CONTENT)
    request.getfixturevalue("no_room")
    with pytest.raises(OSError, match="too large"):
        write(tmp_path, 0, 2, {"weights": torch.ones(100_000)})
    assert os.listdir(tmp_path) == [old.path.name]
    assert read(old.path)["step"] == 40


def test_content_that_is_not_plain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="cannot hold a Bomb"):
        write(tmp_path, 0, 1, {"bomb": Bomb()})
    with pytest.raises(SnapshotError, match="the net holds an object of class Bomb"):
        plain([Bomb()], what="the net")
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(SnapshotError, match="nested too deeply"):
        plain(endless)
    assert os.listdir(tmp_path) == []


def write_for_ever(folder: Path, progress: int) -> None:
    for step in range(1, 100_000):
        content = {"step": step, "weights": torch.full((200_000,), float(step))}
        write(folder, 0, step, content)
        for old in files(folder)[:-3]:
            old.path.unlink()
        os.write(progress, b".")


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.heavy)])
def test_killed_writer_leaves_a_good_snapshot(kills: int, tmp_path: Path) -> None:
    chosen = random.Random(1)
    for kill in range(kills):
        folder = tmp_path / str(kill)
        folder.mkdir()
        reader, progress = os.pipe()
        if (child := os.fork()) == 0:
            try:
                write_for_ever(folder, progress)
            finally:
                os._exit(1)
        os.close(progress)
        done = sum(len(os.read(reader, 1)) for _ in range(chosen.randint(1, 20)))
        time.sleep(chosen.random() * 0.02)  # any moment of the next ones
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(reader, 1000):
            done += len(more)
        os.close(reader)
        written = [file.step for file in files(folder)]
        assert max(written) in (done, done + 1)
        for file in files(folder):
            assert read(file.path)["weights"][0] == file.step
        snapshot_file.remove_temporaries(folder)
        assert sorted(os.listdir(folder)) == sorted(f"0-{step}.pt" for step in written)
