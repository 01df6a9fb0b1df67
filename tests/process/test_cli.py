"""The command as a process: informational commands and errors of usage are quick and import nothing heavy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from runs import ENTRY_POINT, TUI, run, signalled

from tui_descent import __version__

QUICK_S = 5.0  # measured: 0.15 s
HEAVY_MODULES = ("torch", "textual", "rich", "plotext", "numpy")
# Runs the command and prints at its end which of the heavy modules were imported.
SPYING = (
    "import sys, atexit; atexit.register(lambda: print('loaded:', sorted(set(sys.modules) & set("
    f"{HEAVY_MODULES!r})), file=sys.stderr)); sys.argv = ['tui-descent', *sys.argv[1:]]; "
    "from tui_descent.cli import main; sys.exit(main())"
)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "vanishing"),
        (["presets"], "vanishing"),
        (["presets", "vanishing"], "[[claim]]"),
        (["--help"], "tui-descent vanishing"),
        (["run", "--help"], "--at 150:residual=on"),
        (["race", "--help"], "tui-descent race saddle"),
        (["exec", "--help"], "tui-descent exec -- python train.py"),
        (["presets", "--help"], "first_to_last_grad"),
        (["check", "--help"], "tui-descent check my-run.toml"),
        (["--version"], f"tui-descent {__version__}"),
    ],
    ids=" ".join,
)
def test_informational_commands_are_quick_and_import_nothing_heavy(args: list[str], said: str) -> None:
    outcome = run(*args, command=(sys.executable, "-c", SPYING))
    assert outcome.code == 0
    assert said in outcome.stdout
    assert outcome.stderr == "loaded: []\n"
    assert outcome.took_s < QUICK_S


def test_the_entry_point_is_the_same_command() -> None:
    by_name, by_module = run("--version", command=[str(ENTRY_POINT)]), run("--version")
    assert by_name.stdout == by_module.stdout
    versions = dict(line.rsplit(" ", 1) for line in by_name.stdout.splitlines())
    assert set(versions) == {"tui-descent", "torch", "textual", "plotext", "Python"}
    assert "not installed" not in by_name.stdout


@pytest.mark.parametrize("args", [["vanish"], ["healthy", "--steps", "x"], ["exec"]], ids=" ".join)
def test_invalid_usage_exits_2_at_once(args: list[str]) -> None:  # more: test_cli_usage.py
    outcome = run(*args, command=(sys.executable, "-c", SPYING))
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith(("tui-descent: ", "usage: "))
    assert outcome.stderr.endswith("\nloaded: []\n")
    assert outcome.took_s < QUICK_S


def test_the_python_module_is_the_command() -> None:
    assert TUI[1:] == ("-m", "tui_descent")
    assert run("--help").stdout.startswith("usage: tui-descent ")


@pytest.mark.parametrize("args", [[], ["presets"], pytest.param(["presets", "vanishing"], marks=pytest.mark.heavy)])
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_closed_output_pipe_gives_no_traceback(args: list[str], buffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    env = {**os.environ, "PYTHONUNBUFFERED": buffered}
    try:
        done = subprocess.run(
            [*TUI, *args], stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, env=env, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("where", ["tui_descent.output", "msgspec", "tui_descent.scenario.presets"])
def test_a_signal_during_an_import_ends_it_quietly(number: signal.Signals, where: str) -> None:
    done = run("presets", command=signalled(number, where))
    assert (done.code, done.stdout, done.stderr) == (128 + number, "", "")


def test_under_nohup_a_hangup_does_not_end_the_command() -> None:
    done = run("presets", command=("nohup", *signalled(signal.SIGHUP, "msgspec")))
    assert done.code == 0
    assert done.stdout
