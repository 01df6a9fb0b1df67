"""Where things lie, and that nobody else can reach them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tui_descent import places
from tui_descent.protocol.channel import MAX_PATH, ChannelError, listen
from tui_descent.protocol.launch import Launch


def test_one_variable_puts_everything_in_one_folder(home: Path) -> None:
    assert places.runs_folder() == home / "runs"
    assert places.socket_path("r") == home / "sockets" / "r.sock"


def test_what_was_asked_for_goes_before_the_environment_and_that_before_the_home(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUI_DESCENT_RUNS_DIR", str(home / "elsewhere"))
    assert places.runs_folder() == home / "elsewhere"
    assert places.runs_folder(str(home / "here")) == home / "here"


def test_without_a_home_the_users_own_folders_are_taken(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUI_DESCENT_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("HOME", str(home))
    assert home in places.runs_folder().parents


def test_a_tilde_is_the_users_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    assert places.runs_folder("~/mine") == home / "mine"


def test_a_new_run_has_a_private_folder_and_an_id_of_its_own(home: Path) -> None:
    runs = [places.new_run("vanishing") for _ in range(5)]
    assert len({run for run, _ in runs}) == 5
    for run, folder in runs:
        assert run.startswith("vanishing-")
        assert folder == home / "runs" / run
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "name",
    ["../../x", "/etc/passwd", "a/b", "..", "", "-rf", "a b\nc", "\x1b[2J", "ü" * 300, "x" * 300, "a\0b", "%s{0}$(id)"],
)
def test_no_name_leads_out_of_the_folder_of_runs(home: Path, name: str) -> None:
    run, folder = places.new_run(name)
    assert folder.parent == home / "runs"
    assert folder.resolve().parent == (home / "runs").resolve()
    assert [path for path in home.rglob("*")] == [home / "runs", folder]  # noqa: C416
    assert run.isascii()
    assert run.replace("-", "").replace("_", "").isalnum()
    assert not run.startswith("-")
    assert len(run) < 80


def test_a_path_too_long_falls_back_to_a_short_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUI_DESCENT_HOME", str(home / ("x" * 90)))
    path = places.socket_path("vanishing-20260101-000000-abcd")
    assert path.parent == Path(f"/tmp/tui-descent-{os.getuid()}")
    assert len(os.fsencode(path)) <= MAX_PATH
    listen(path).close()
    path.unlink()


def test_a_folder_that_cannot_be_written_is_a_clear_error_before_any_training(home: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises(ChannelError, match=r"cannot write to .*file.*; choose another with --runs-dir"):
        places.new_run("x", str(home / "file"))


def test_a_runs_orders_are_read_as_they_were_written(home: Path) -> None:
    run, folder = places.new_run("x")
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
