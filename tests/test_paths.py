"""Folders of runs and sockets: which ones are used, and that they are private."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tui_descent import paths
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
