"""The command line: informational commands are quick and import nothing heavy, and invalid usage is a clear error."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ENTRY_POINT, TUI, run, signalled

from tui_descent import __version__
from tui_descent.cli import on_a_terminal
from tui_descent.scenario import presets

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


def test_without_a_terminal_it_prints_the_presets() -> None:
    outcome = run()
    assert [line.split()[0] for line in outcome.stdout.splitlines()] == presets.names()


def test_presets_with_a_name_prints_story_claims_and_file() -> None:
    outcome = run("presets", "vanishing")
    _, scenario = presets.find("vanishing")
    assert scenario.story.strip() in outcome.stdout
    assert outcome.stdout.count("claims: ") == len(scenario.claim)
    assert outcome.stdout.endswith(presets.path_of("vanishing").read_text().strip() + "\n")


USAGE = {
    "unknown preset": (["vanish"], 'did you mean "vanishing"?'),
    "unknown preset's story": (["presets", "vanish"], 'did you mean "vanishing"?'),
    "unknown preset's claims": (["presets", "vanish", "--verify"], 'did you mean "vanishing"?'),
    "no seeds": (["presets", "healthy", "--verify", "--seeds", "0"], "--seeds 0: allowed: a whole number ≥ 1"),
    "seeds in words": (["presets", "healthy", "--verify", "--seeds", "x"], "--seeds x: allowed: a whole number ≥ 1"),
    "no such file": (["missing.toml"], "missing.toml: no such file"),
    "steps 0": (["healthy", "--steps", "0"], "run.steps: found 0; allowed: a whole number ≥ 1"),
    "steps in words": (["healthy", "--steps", "x"], 'run.steps: found "x"; allowed: a whole number ≥ 1'),
    "steps huge": (["healthy", "--steps", "9" * 30], "run.steps: found 9999"),
    "seed": (["healthy", "--seed", "-1"], "run.seed: found -1; allowed: a whole number ≥ 0"),
    "device": (["healthy", "--device", "gpu"], 'run.device: found "gpu"; allowed: auto, cpu, mps, cuda or cuda:N'),
    "pace": (["healthy", "--pace", "0"], "run.pace: found 0; allowed: a number > 0"),
    "pace in words": (["healthy", "--pace", "quick"], 'run.pace: found "quick"; allowed: a number > 0'),
    "threads": (["healthy", "--threads", "-2"], "run.threads: found -2; allowed: a whole number ≥ 0"),
    "set": (["healthy", "--set", "data.batchsize=3"], "data.batchsize: unknown key; allowed here: batch_size"),
    "at without step": (["healthy", "--at", "residual=on"], "expected STEP:knob=value, as in 150:residual=on"),
    "at an unknown knob": (["healthy", "--at", "3:resid=on"], 'unknown knob "resid"'),
    "at a bad value": (["healthy", "--at", "3:lr=-1"], "lr = -1; allowed: a number > 0"),
    "watch budget": (["healthy", "--watch-budget", "200%"], "--watch-budget 200%: allowed: 0 to 100%"),
    "watch every": (["healthy", "--watch-every", "0"], "--watch-every 0: allowed: a whole number ≥ 1"),
    "exec's watch every": (["exec", "--watch-every", "x", "--", "true"], "--watch-every x: allowed: a whole number"),
    "undo budget": (["healthy", "--undo-budget", "lots"], "--undo-budget 'lots': allowed: a size, as in 256MB or 2GB"),
    "exec's undo budget": (["exec", "--undo-budget", "1XB", "--", "true"], "--undo-budget '1XB': allowed: a size"),
    "unknown option": (["healthy", "--hedless"], "unrecognized arguments: --hedless"),
    "exec of nothing": (["exec", "--headless"], "the following arguments are required"),
    "run of nothing": (["run"], "the following arguments are required"),
    "codes for the terminal": (["\x1b[2Jx"], "no such preset or file"),
    "codes in a value": (["healthy", "--set", "optimizer.lr='\x1b[2J'"], "--set"),
    "nothing can be written": (
        ["healthy", "--headless", "--runs-dir", "/dev/null/x"],
        "choose another with --runs-dir",
    ),
}


@pytest.mark.parametrize(("args", "said"), USAGE.values(), ids=USAGE.keys())
def test_invalid_usage_is_one_clear_error_and_exit_2(args: list[str], said: str, home: Path) -> None:
    outcome = run(*args)
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert said in outcome.stderr or said == "--set"
    assert "Traceback" not in outcome.stderr
    assert "\x1b" not in outcome.stderr
    assert outcome.took_s < QUICK_S
    assert not (home / "runs").exists(), "no run was started"


BAD = """
title = "t"
[data]
name = "digit"
[model]
name = "mlp"
depth = 0
[run]
steps = true
"""


def test_check_prints_every_error_with_its_place(home: Path) -> None:
    path = home / "bad.toml"
    path.write_text(BAD)
    outcome = run("check", str(path))
    assert outcome.code == 2
    assert outcome.stdout == ""
    places = [line.removeprefix(f"{path}: ").split(":")[0] for line in outcome.stderr.splitlines()]
    assert sorted(places) == ["data.name", "model.depth", "run.steps"]
    assert "Traceback" not in outcome.stderr
    same = run(str(path), "--headless")
    assert (same.code, same.stdout) == (2, "")
    assert sorted(same.stderr.replace("tui-descent: ", "").splitlines()) == sorted(outcome.stderr.splitlines())


def test_check_confirms_a_valid_file(home: Path) -> None:
    path = home / "good.toml"
    path.write_text(presets.path_of("healthy").read_text().replace("A network", "A\\u001b[2J network"))
    outcome = run("check", str(path))
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "valid scenario" in outcome.stdout
    assert "\x1b" not in outcome.stdout


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


@pytest.mark.parametrize("piped", [0, 1])
def test_dashboard_needs_a_terminal_as_stdin_and_stdout(piped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with contextlib.ExitStack() as opened:
        opened.callback(os.close, master)
        terminal = opened.enter_context(os.fdopen(slave, "r"))
        pipe = opened.enter_context(open(os.devnull))
        for name in ("stdin", "stdout"):
            monkeypatch.setattr(sys, name, terminal)
        assert on_a_terminal()
        monkeypatch.setattr(sys, ("stdin", "stdout")[piped], pipe)
        assert not on_a_terminal()
        monkeypatch.setattr(sys, ("stdin", "stdout")[piped], None)
        assert not on_a_terminal(), "closed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("where", ["tui_descent.output", "msgspec", "tui_descent.scenario.presets"])
def test_a_signal_during_an_import_ends_it_quietly(number: signal.Signals, where: str) -> None:
    done = run("presets", command=signalled(number, where))
    assert (done.code, done.stdout, done.stderr) == (128 + number, "", "")


def test_under_nohup_a_hangup_does_not_end_the_command() -> None:
    done = run("presets", command=("nohup", *signalled(signal.SIGHUP, "msgspec")))
    assert done.code == 0
    assert done.stdout
