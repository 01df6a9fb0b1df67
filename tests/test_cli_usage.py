"""The command line in the test's own process: invalid usage is a clear error; what `check` and `presets` print."""

from __future__ import annotations

import contextlib
import os
import pty
import sys
from pathlib import Path

import pytest

from tui_descent import cli
from tui_descent.cli import on_a_terminal
from tui_descent.scenario import presets


def test_without_a_terminal_it_prints_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == presets.names()


def test_presets_with_a_name_prints_story_claims_and_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets", "vanishing"]) == 0
    printed = capsys.readouterr().out
    _, scenario = presets.find("vanishing")
    assert scenario.story.strip() in printed
    assert printed.count("claims: ") == len(scenario.claim)
    assert printed.endswith(presets.path_of("vanishing").read_text().strip() + "\n")


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
def test_invalid_usage_is_one_clear_error_and_exit_2(
    args: list[str], said: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err or said == "--set"
    assert "Traceback" not in err
    assert "\x1b" not in err
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


def test_check_prints_every_error_with_its_place(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = home / "bad.toml"
    path.write_text(BAD)
    assert cli.main(["check", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    places = [line.removeprefix(f"{path}: ").split(":")[0] for line in err.splitlines()]
    assert sorted(places) == ["data.name", "model.depth", "run.steps"]
    assert "Traceback" not in err
    assert cli.main([str(path), "--headless"]) == 2
    out, same = capsys.readouterr()
    assert out == ""
    assert sorted(same.replace("tui-descent: ", "").splitlines()) == sorted(err.splitlines())


def test_check_confirms_a_valid_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = home / "good.toml"
    path.write_text(presets.path_of("healthy").read_text().replace("A network", "A\\u001b[2J network"))
    assert cli.main(["check", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "valid scenario" in out
    assert "\x1b" not in out


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
