"""Files in the current folder are not run by our processes; a user's script keeps its own folder and PYTHONPATH."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import TUI, WITHIN_S, run

from tui_descent.paths import new_run
from tui_descent.protocol.launch import (
    LOG_FILE,
    Launch,
    command_environment,
    module_command,
    module_environment,
    start_keeper,
)

PATHS = ("", ":", "/nosuch:", ":/nosuch", "/nosuch::/other")


@pytest.mark.parametrize("path", PATHS)
def test_the_keeper_does_not_import_from_the_current_folder(
    hostile: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", path)
    identity, folder = new_run("x")
    launch = Launch(run=identity, name="x", folder=str(folder), socket=None, command=("env",))
    launch.write()
    assert start_keeper(launch).wait(WITHIN_S) == 0
    assert not hostile.exists()
    log = (folder / LOG_FILE).read_text().splitlines()
    assert f"PYTHONPATH={path}" in log, "the user's command gets the PYTHONPATH that was set"
    assert not any(line.startswith(("PYTHONSAFEPATH", "TUI_DESCENT_PYTHONPATH")) for line in log)


def test_the_command_as_a_module_does_not_import_from_the_current_folder(hostile: Path) -> None:
    assert run("--version", command=TUI).code == 0
    assert not hostile.exists()


@pytest.mark.parametrize("safe", [None, "1"])
def test_a_users_script_imports_from_its_own_folder(
    home: Path, safe: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "beside.py").write_text("print('imported')")
    (home / "train.py").write_text("import sys\nprint('safe', sys.flags.safe_path)\nimport beside")
    if safe:
        monkeypatch.setenv("PYTHONSAFEPATH", safe)
    outcome = run("exec", "--headless", "--", sys.executable, str(home / "train.py"))
    printed = outcome.stdout + outcome.stderr
    assert ("safe True" if safe else "imported") in printed, "Python itself decides, by the user's own setting"


@pytest.mark.parametrize("path", PATHS)
def test_only_empty_entries_of_the_python_path_are_left_out(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", path)
    ours = module_environment()
    assert ours["PYTHONPATH"] == ":".join(filter(None, path.split(":")))
    monkeypatch.setattr(os, "environ", ours)
    assert command_environment()["PYTHONPATH"] == path
    assert command_environment().keys() == ours.keys() - {"TUI_DESCENT_PYTHONPATH"}


def test_a_python_path_without_empty_entries_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (None, "/a", "/a:/b", ".", "src:/a"):
        monkeypatch.delenv("PYTHONPATH", raising=False)
        if path is not None:
            monkeypatch.setenv("PYTHONPATH", path)
        assert module_environment() == command_environment() == dict(os.environ)


def test_our_modules_start_without_the_current_folder(hostile: Path) -> None:
    done = subprocess.run(
        module_command("tui_descent.keeper.process", "/nosuch"), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("keeper: ")
    assert not hostile.exists()
