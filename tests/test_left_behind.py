"""What killed runs leave behind is removed at the next start, unless something of the run is still alive."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tui_descent import paths
from tui_descent.protocol import run_lock
from tui_descent.protocol.inherited_fds import find_fd
from tui_descent.protocol.launch import LOG_FILE, Launch
from tui_descent.protocol.run_lock import LOCK_FILE, create_lock, hold_lock, keep_folder, left_behind, release_lock

# Creates a run with a socket, prints both paths, and waits to be killed.
RUN = """
import socket, sys
from tui_descent import paths
from tui_descent.protocol.launch import Launch
run, folder = paths.new_run("x")
path = paths.socket_path(run)
Launch(run=run, name="x", folder=str(folder), socket=str(path)).write()
listening = socket.socket(socket.AF_UNIX)
listening.bind(str(path))
listening.listen()
print(folder, path, flush=True)
sys.stdin.read()
"""
HOLD = """
import sys
from pathlib import Path
from tui_descent.protocol.run_lock import hold_lock
hold_lock(Path(sys.argv[1]))
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def process(code: str, *args: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A process that runs the code, and the words that it has printed."""
    command = [sys.executable, "-c", code, *args]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        try:
            yield started, started.stdout.readline().split()
        finally:
            started.kill()


@pytest.fixture
def killed(home: Path) -> tuple[Path, Path]:
    """The folder and the socket of a run whose process was killed."""
    with process(RUN) as (run, (folder, path)):
        run.send_signal(signal.SIGKILL)
    return Path(folder), Path(path)


def test_folder_and_socket_of_a_killed_run_are_removed(killed: tuple[Path, Path]) -> None:
    folder, path = killed
    assert folder.exists()
    assert path.exists()
    run, new = paths.new_run("y")
    assert not folder.exists()
    assert not path.exists()
    assert new.exists()
    assert paths.new_run("z")[0] != run
    assert new.exists(), "its process is alive: this one"


def test_a_run_that_is_alive_is_left_alone(home: Path) -> None:
    with process(RUN) as (_, (folder, path)):
        paths.new_run("y")
        assert Path(folder, LOCK_FILE).exists()
        assert Path(path).exists()


def test_a_run_of_which_any_process_is_alive_is_left_alone(home: Path) -> None:
    with process(RUN) as (run, (folder, path)):
        with process(HOLD, folder):
            run.kill()
            run.wait()
            paths.new_run("y")
            assert Path(folder, LOCK_FILE).exists()
            assert Path(path).exists()
        paths.new_run("z")
        assert not Path(folder).exists()


def test_output_of_a_killed_run_is_kept_but_not_its_socket(killed: tuple[Path, Path]) -> None:
    folder, path = killed
    (folder / LOG_FILE).write_text("epoch 3: loss 0.1\n")
    for _ in range(2):
        paths.new_run("y")
        assert (folder / LOG_FILE).read_text() == "epoch 3: loss 0.1\n"
        assert not (folder / LOCK_FILE).exists()
        assert not path.exists()


def test_a_socket_that_somebody_listens_on_is_left_alone(killed: tuple[Path, Path]) -> None:
    folder, path = killed
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        paths.new_run("y")
        assert path.exists()
    assert not folder.exists()


@pytest.mark.parametrize("place", ["launch.json", "lock", "run"])
def test_what_is_not_surely_ours_is_left_alone(place: str, killed: tuple[Path, Path]) -> None:
    folder, _ = killed
    if place == "run":
        elsewhere = folder.rename(folder.parent.parent / "elsewhere")
        folder.symlink_to(elsewhere)
    elif place == "lock":
        (folder / LOCK_FILE).rename(folder.parent.parent / "elsewhere")
        (folder / LOCK_FILE).symlink_to(folder.parent.parent / "elsewhere")
    else:
        (folder / place).write_text("{not JSON")
    paths.new_run("y")
    assert folder.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_runs_of_another_user_are_left_alone(killed: tuple[Path, Path]) -> None:
    folder, _ = killed
    os.chown(folder / LOCK_FILE, 65534, 65534)
    paths.new_run("y")
    assert folder.exists()


def test_a_folder_that_is_kept_has_no_lock(home: Path) -> None:
    _, folder = paths.new_run("x")
    keep_folder(folder)
    keep_folder(folder)
    paths.new_run("y")
    assert folder.exists()


def test_a_folder_is_free_only_when_all_locks_are_released(home: Path) -> None:
    create_lock(home)
    with left_behind(home) as free:
        assert not free
    with process(HOLD, str(home)):
        release_lock(home)
        release_lock(home)
        with left_behind(home) as free:
            assert not free
    with left_behind(home) as free:
        assert free
        with left_behind(home) as free_too:
            assert not free_too
    hold_lock(home)
    with left_behind(home) as free:
        assert not free


def test_a_descriptor_that_the_script_has_closed_and_reused_is_not_closed(home: Path) -> None:
    create_lock(home)
    held = find_fd(run_lock._held[home])
    assert held is not None
    os.close(held)
    file = os.open(home / "mine", os.O_CREAT | os.O_RDWR)
    reused = os.dup2(file, held)
    release_lock(home)
    os.write(reused, b"still open")
    for descriptor in {file, reused}:
        os.close(descriptor)


def test_many_runs_of_one_process_do_not_use_up_its_descriptors(home: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    for _ in range(20):
        _, folder = paths.new_run("x")
        Launch(run="x", name="x", folder=str(folder), socket=None).write()
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    assert len(os.listdir("/dev/fd")) <= before + 1
