"""Options of `tui-descent run` that would have no effect, and a preset's file for a scenario of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tui_descent import cli, headless
from tui_descent.protocol.launch import Launch
from tui_descent.scenario import presets


@pytest.fixture
def launched(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """The settings of runs that would have been started."""
    launches: list[Launch] = []
    monkeypatch.setattr(headless, "run", lambda launch, **_: launches.append(launch) or 0)
    return launches


def test_options_for_steps_that_the_run_does_not_make_are_left_out_with_a_message(
    launched: list[Launch], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--at",
        "9999:lr=1",
        "--at",
        "10:lr=0.2",
        "--at",
        "9:lr=0.3",
        "--range-test",
        "5000",
        "--range-test",
        "9",
    ]
    assert cli.main(["first-descent", "--headless", *options]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "tui-descent: --at 9999:lr=1 has no effect: the run's steps are 0 to 9",
        "tui-descent: --at 10:lr=0.2 has no effect: the run's steps are 0 to 9",
        "tui-descent: --range-test 5000 has no effect: the run's steps are 0 to 9",
    ]
    assert (launched[0].plan, launched[0].range_test_at) == (((9, "lr=0.3"),), (9,))


def test_steps_within_a_longer_run_cause_no_message(launched: list[Launch], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["first-descent", "--headless", "--steps", "6000", "--at", "5999:lr=1", "--range-test", "5999"]) == 0
    )
    assert capsys.readouterr().err == ""
    assert (launched[0].plan, launched[0].range_test_at) == (((5999, "lr=1"),), (5999,))


@pytest.mark.parametrize("name", presets.names())
def test_a_presets_toml_is_a_file_that_check_accepts(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["presets", name, "--toml"]) == 0
    mine = tmp_path / "mine.toml"
    mine.write_text(capsys.readouterr().out, encoding="utf-8")
    assert cli.main(["check", str(mine)]) == 0


def test_toml_needs_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets", "--toml"]) == 2
    assert "--toml needs the name of a preset" in capsys.readouterr().err
