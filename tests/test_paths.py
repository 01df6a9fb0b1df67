"""Folders of runs and sockets: which ones are used, and that they are private."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tui_descent import cli, paths
from tui_descent.cli import main
from tui_descent.protocol.channel import MAX_PATH, ChannelError, listen
from tui_descent.protocol.launch import Launch
from tui_descent.protocol.run_lock import LOCK_FILE


def test_tui_descent_home_contains_everything(home: Path) -> None:
    assert paths.runs_folder() == home / "runs"
    assert paths.socket_path("r") == home / "sockets" / "r.sock"


def test_the_flag_overrides_the_environment_which_overrides_the_home(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUI_DESCENT_RUNS_DIR", str(home / "elsewhere"))
    assert paths.runs_folder() == home / "elsewhere"
    assert paths.runs_folder(str(home / "here")) == home / "here"


def test_without_tui_descent_home_the_users_folders_are_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUI_DESCENT_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("HOME", str(home))
    assert home in paths.runs_folder().parents


def test_a_tilde_is_expanded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    assert paths.runs_folder("~/mine") == home / "mine"


def test_a_new_run_has_a_private_folder_and_a_unique_id(home: Path) -> None:
    runs = [paths.new_run("vanishing") for _ in range(5)]
    assert len({run for run, _ in runs}) == 5
    for run, folder in runs:
        assert run.startswith("vanishing-")
        assert folder == home / "runs" / run
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "name",
    ["../../x", "/etc/passwd", "a/b", "..", "", "-rf", "a b\nc", "\x1b[2J", "ü" * 300, "x" * 300, "a\0b", "%s{0}$(id)"],
)
def test_a_run_name_cannot_escape_the_folder_of_runs(home: Path, name: str) -> None:
    run, folder = paths.new_run(name)
    assert folder.parent == home / "runs"
    assert folder.resolve().parent == (home / "runs").resolve()
    assert [path for path in home.rglob("*")] == [home / "runs", folder, folder / LOCK_FILE]  # noqa: C416
    assert run.isascii()
    assert run.replace("-", "").replace("_", "").isalnum()
    assert not run.startswith("-")
    assert len(run) < 80


def test_a_socket_path_that_is_too_long_falls_back_to_tmp(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUI_DESCENT_HOME", str(home / ("x" * 90)))
    path = paths.socket_path("vanishing-20260101-000000-abcd")
    assert path.parent == Path(f"/tmp/tui-descent-{os.getuid()}")
    assert len(os.fsencode(path)) <= MAX_PATH
    listen(path).close()
    path.unlink()


def test_a_folder_that_is_not_writable_is_a_clear_error(home: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises(
        ChannelError, match=r"cannot create the folder .*file is not a folder; choose another with --runs-dir"
    ):
        paths.new_run("x", str(home / "file"))


def test_launch_settings_are_read_as_they_were_written(home: Path) -> None:
    run, folder = paths.new_run("x")
    launch = Launch(
        run=run,
        name="x",
        folder=str(folder),
        socket=None,
        scenario={"title": "t", "run": {"steps": 3}},
        attended=True,
        pace=0.1 + 0.2,
        plan=((150, "residual=on,scale=0.22360679774997896"),),
        watch_at=(140, 3),
    )
    launch.write()
    assert Launch.read(folder) == launch


UNUSABLE = {
    "another user's": "~nosuch/x",
    "not UTF-8": "/tmp/\udcff",
    "a file": "/dev/null",
    "below a file": "/dev/null/x",
    "not writable": "/proc/x",
    "too long": "/tmp/" + "x" * 300,
    "much too long": "/tmp/" + "x/" * 3000,
    "a link to nothing": "{home}/dangling",
    "below a link to nothing": "{home}/dangling/x/y",
    "a link to itself": "{home}/loop",
    "with codes for the terminal": "/dev/null/\x1b[2J",
}


@pytest.mark.parametrize("variable", ["TUI_DESCENT_HOME", "TUI_DESCENT_RUNS_DIR"])
@pytest.mark.parametrize("value", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_an_unusable_folder_is_one_line_and_exit_2(
    value: str, variable: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "dangling").symlink_to("/nosuch/x")
    (home / "loop").symlink_to("loop")
    monkeypatch.setenv(variable, value.format(home=home))
    assert main(["first-descent", "--headless"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("tui-descent: ")
    assert line.isprintable()
    assert "give another path" in line or "choose another with --runs-dir" in line


@pytest.mark.parametrize("kind", ["a file", "open to others", "a link to nothing"])
def test_an_unusable_socket_folder_is_found_before_anything_is_started(
    kind: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sockets = home / "sockets"
    if kind == "a file":
        sockets.write_text("")
    elif kind == "open to others":
        sockets.mkdir()
        sockets.chmod(0o755)
    else:
        sockets.symlink_to("/nosuch/x")
    monkeypatch.setattr(cli, "on_a_terminal", lambda: True)
    assert main(["first-descent"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(sockets) in line
    assert "set TUI_DESCENT_HOME" in line or "run chmod 700 on it" in line
    assert list((home / "runs").iterdir()) == []


def test_a_relative_home_is_below_the_current_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("TUI_DESCENT_HOME", "mine")
    _, folder = paths.new_run("x")
    assert folder.parent == home / "mine" / "runs"


def test_a_relative_home_below_a_folder_that_is_gone_is_one_clear_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = home / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv("TUI_DESCENT_HOME", "mine")
    with pytest.raises(ChannelError, match="the current folder does not exist; give another path"):
        paths.new_run("x")


@pytest.mark.parametrize("code", [errno.EFBIG, errno.ENOSPC, errno.EDQUOT])
def test_settings_that_cannot_be_written_are_one_line_and_exit_2(
    code: int, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(launch: Launch) -> None:
        raise OSError(code, os.strerror(code), str(launch.path / "launch.json"))

    monkeypatch.setattr(Launch, "write", refuse)
    assert main(["first-descent", "--headless"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tui-descent: cannot write ")
    assert line.endswith(f"launch.json: {os.strerror(code)}")
    assert list((home / "runs").iterdir()) == []
