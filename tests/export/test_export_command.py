"""`export --to scenario` and `--to python`, as commands on a recorded run."""

from __future__ import annotations

import contextlib
import io
import runpy
import shlex
from pathlib import Path

import pytest
from exported_runs import losses_in
from factories import started
from same_process import AttendedHere, run
from test_run_commands import record

from tui_descent import cli
from tui_descent.protocol.commands import RunSteps
from tui_descent.protocol.events import StateChanged
from tui_descent.protocol.race import Lane
from tui_descent.scenario.knobs import parse

SCENARIO = """
title = "t"
[data]
name = "moons"
points = 40
batch_size = 8
[model]
name = "mlp"
depth = 2
width = 6
[run]
steps = 8
threads = 1
device = "cpu"
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "my run.toml"
    path.write_text(SCENARIO, encoding="utf-8")
    return path


def test_both_give_the_losses_of_the_run(scenario: Path, tmp_path: Path) -> None:
    first = run("run", str(scenario), "--json", "--at", "3:lr=*2", "--at", "5:optimizer=adam", "--seed", "4")
    exported = run("export", "my", "--to", "scenario", "--out", str(tmp_path / "again.toml"))
    assert (exported.code, exported.stderr) == (0, f"tui-descent: written: {tmp_path / 'again.toml'}\n")
    assert run("run", str(tmp_path / "again.toml"), "--json").losses == first.losses
    script = run("export", "my", "--to", "python")
    assert (script.code, script.stderr) == (0, "")
    assert script.stdout.startswith('"""t\n\nA plain PyTorch script of the tui-descent run my-run-')
    (tmp_path / "script.py").write_text(script.stdout, encoding="utf-8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(tmp_path / "script.py"), run_name="__main__")
    assert losses_in(printed.getvalue()) == first.losses


def test_export_in_the_readme_works_after_the_run_before_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    lines = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").splitlines()
    number = next(n for n, line in enumerate(lines) if "--to python" in line)
    made, exported = (shlex.split(line, comments=True) for line in lines[number - 1 : number + 1])
    assert run(*made[1:]).code == 0
    written = run(*exported[1:])
    assert (written.code, written.stdout) == (0, ""), written.stderr
    compile((home / exported[-1]).read_text(encoding="utf-8"), exported[-1], "exec")


def test_changed_net_is_refused_by_name_and_step(scenario: Path) -> None:
    run("run", str(scenario), "--json", "--at", "3:residual=on")
    refused = run("export", "my", "--to", "python")
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr == (
        "tui-descent: a PyTorch script cannot repeat changes of the net (step 3: residual off → on); "
        "a scenario can: use --to scenario\n"
    )
    assert run("export", "my", "--to", "scenario").code == 0


def test_characters_are_never_replaced(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("run", str(scenario), "--json", "--set", "title=é 漢", "--steps", "2")
    printed = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", printed)
    assert cli.main(["export", "my", "--to", "scenario"]) == 2
    assert printed.buffer.getvalue() == b""  # type: ignore[attr-defined]
    refused = "tui-descent: stdout cannot show all characters of this file; write it with --out PATH\n"
    assert capsys.readouterr().err == refused
    assert run("export", "my", "--to", "scenario", "--out", str(tmp_path / "out.toml")).code == 0
    assert 'title = "é 漢"' in (tmp_path / "out.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("to", ["scenario", "python"])
def test_other_runs_are_refused_by_name(home: Path, to: str, capsys: pytest.CaptureFixture[str]) -> None:
    lanes = (Lane(name="sgd", optimizer="sgd", lr=0.1), Lane(name="adam", optimizer="adam", lr=0.01))
    for name, events, why in (
        ("train", [started(2, scenario=None)], "is a run of your own script; only runs of scenarios have this format"),
        ("raced", [started(2, lanes=lanes)], "is a race; export a run of one optimizer"),
        ("early", [], "has made no step"),
    ):
        made = record(name, events, scenario=None if name == "train" else {"title": "t"})  # type: ignore[arg-type]
        assert cli.main(["export", name, "--to", to]) == 2
        assert capsys.readouterr().err == f"tui-descent: {made} {why}\n"


def test_scenario_of_another_version_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record("old", [started(2)], scenario={"title": "t", "model": {"name": "lstm"}})
    assert cli.main(["export", "old", "--to", "scenario"]) == 2
    assert "the scenario is not valid in this version: " in capsys.readouterr().err


def test_live_run_can_be_exported() -> None:
    attended = AttendedHere("healthy", "run.threads=1", "run.steps=5")
    try:
        viewer = attended.viewer()
        viewer.until_event(StateChanged, state="waiting")
        viewer.do(parse("lr=*2"))  # it is in the record before the reply is sent
        exported = run("export", "healthy", "--to", "scenario")
        assert (exported.code, exported.stderr) == (0, "")
        assert "[[plan]]" not in exported.stdout  # no update follows yet
        viewer.do(RunSteps(steps=3))
        viewer.until_event(StateChanged, state="waiting")
        viewer.do(parse("lr=*3"))
        exported = run("export", "healthy", "--to", "scenario")
        assert exported.stdout.endswith('[[plan]]\nat = 5\nturn = "lr=*2"\n')
        assert "\nsteps = 8\n" in exported.stdout
    finally:
        attended.close()
