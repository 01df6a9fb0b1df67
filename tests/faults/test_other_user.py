"""Another user of the machine can neither see a run nor steer it, and cannot lead our commands to a run of theirs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_trainer
from runs import Live, Outcome, run

from tui_descent.paths import socket_path
from tui_descent.protocol.channel import ChannelError
from tui_descent.run_list import RunFolder, find_run, list_runs

OTHER = 65534
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")


_AS_OTHER = """
import os, socket, sys
from tui_descent import cli
words = sys.argv[1:]
if words[0] == "tui-descent":
    cli.main([words[1], "nosuch", *words[3:]])  # import what it needs: the other user may be unable to read this Python
    print("--", flush=True)
    print("--", file=sys.stderr, flush=True)
os.setgroups([])
os.setgid({other})
os.setuid({other})
def attempt(act):
    try:
        return str(act())
    except OSError as error:
        return type(error).__name__
if words[0] == "tui-descent":
    sys.exit(cli.main(words[1:]))
for what, path in zip(words[::2], words[1::2]):
    print(attempt({{
        "connect": lambda: socket.socket(socket.AF_UNIX).connect(path),
        "list": lambda: len(os.listdir(path)),
        "read": lambda: os.open(path, os.O_RDONLY),
        "write": lambda: os.open(path, os.O_WRONLY),
    }}[what]))
"""


def as_other(*words: str | Path) -> Outcome:
    """A process of another user: the command `tui-descent`, or pairs of an action and a path, with a line for each."""
    return run(*map(str, words), command=[sys.executable, "-c", _AS_OTHER.format(other=OTHER)])


@pytest.fixture
def live(home: Path) -> Iterator[RunFolder]:
    """A run that makes steps. Others can get as far as our folders."""
    home.chmod(0o755)
    with Live("exec", "--json", "--headless", "--", sys.executable, tiny_trainer.__file__) as started:
        started.until(lambda line: line["event"] == "step")
        yield find_run(None, live=True)
        assert run("stop", find_run(None, live=True).run).code == 0
        assert started.end()[1]["status"] == "stopped"


def test_other_user_cannot_connect(live: RunFolder) -> None:
    path = socket_path(live.run)
    assert as_other("list", path.parent, "connect", path).stdout.split() == ["PermissionError"] * 2
    path.parent.chmod(0o755)  # the socket itself is private too
    assert as_other("list", path.parent, "connect", path).stdout.split() == ["1", "PermissionError"]
    path.parent.chmod(0o700)


def test_other_user_cannot_read_or_write_any_file_of_a_run(live: RunFolder) -> None:
    runs = live.folder.parent
    assert as_other("list", runs, "list", live.folder).stdout.split() == ["PermissionError"] * 2
    for folder in (runs, live.folder):
        folder.chmod(0o755)  # each file is private too
    files = sorted(path for path in live.folder.rglob("*") if path.is_file())
    assert {"launch.json", "record.sqlite", "run.log", "keeper.log", "lock"} <= {path.name for path in files}
    for how in ("read", "write"):
        found = as_other(*(word for path in files for word in (how, path))).stdout.split()
        assert len(found) == len(files)
        assert [path.name for path, result in zip(files, found, strict=True) if result != "PermissionError"] == []
    for folder in (runs, live.folder):
        folder.chmod(0o700)


def test_commands_of_another_user_do_not_find_the_run(live: RunFolder) -> None:
    for words in (f"send {live.run} lr=*2", f"stop {live.run}", f"export {live.run} --to csv"):
        done = as_other("tui-descent", *words.split())
        (line,) = done.stderr.partition("--\n")[2].splitlines()
        assert (
            line
            == f"tui-descent: no permission to read the folder {live.folder.parent}; choose another with --runs-dir"
        )
        assert (done.code, done.stdout) == (2, "--\n")


def test_runs_that_another_user_has_planted_are_left_out(live: RunFolder, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)  # as /tmp
    planted = shared / live.folder.name
    shutil.copytree(live.folder, planted)
    for path in (planted, *planted.rglob("*")):
        os.chown(path, OTHER, OTHER)
    assert list_runs(str(shared)) == []
    os.chown(planted, 0, 0)
    assert list_runs(str(shared)) == [], "a file in it may still name a command of theirs"
    os.chown(planted / "launch.json", 0, 0)
    assert [found.run for found in list_runs(str(shared))] == [live.run]
    os.chown(planted / "launch.json", OTHER, OTHER)
    commands = {
        ("resume", live.run): "run",
        ("send", live.run, "lr=1"): "live run",
        ("stop", live.run): "live run",
    }
    for words, what in commands.items():
        done = run(*words, "--runs-dir", str(shared))
        assert (done.code, done.stderr.splitlines()[-1]) == (2, f"tui-descent: there is no {what}"), words


@pytest.mark.parametrize("how", ["open to others", "of another user"])
def test_socket_folder_that_another_user_can_change_is_refused(how: str, home: Path) -> None:
    (home / "sockets").mkdir(mode=0o700)
    if how == "of another user":
        os.chown(home / "sockets", OTHER, OTHER)
    else:
        (home / "sockets").chmod(0o777)
    with pytest.raises(ChannelError, match="sockets"):
        socket_path("r")
    outcome = run("run", "first-descent", "--json")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert len(outcome.stderr.splitlines()) == 1
    assert str(home / "sockets") in outcome.stderr
    assert not list((home / "runs").glob("*"))
