"""Headless runs: JSON lines for scripts, a summary for people, and exit codes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import Outcome, temporary_home
from same_process import run

from tui_descent.scenario import presets
from tui_descent.scenario.toml import to_table


@pytest.fixture(scope="module")
def ended() -> Iterator[dict[str, Outcome]]:
    with temporary_home() as home:
        commands = {
            "diverged": ["too-hot", "--headless", "--json"],
            "no device": ["first-descent", "--headless", "--json", "--device", "cuda:99"],
            "for people": ["first-descent", "--set", "optimizer.lr=0.125"],
            "steered": ["first-descent", "--json", "--at", "3:lr=0.2", "--at", "3:lr=*0.5", "--at", "5:residual=on"],
        }
        yield {name: run(*words, home=home) for name, words in commands.items()}
        kept = sorted(path.name.split("-2")[0] for path in (home / "runs").iterdir())
        assert kept == ["first-descent"] * 3 + ["too-hot"]


def test_a_run_that_diverges_exits_3_with_the_reason_and_good_numbers(ended: dict[str, Outcome]) -> None:
    outcome = ended["diverged"]
    assert outcome.code == 3
    assert outcome.ended["status"] == "diverged"
    assert outcome.ended["step"] == len(outcome.losses) < 200
    assert "at step" in outcome.ended["reason"]
    assert re.search(r" overflows in blocks\.\d+\.linear, before the update$", outcome.ended["reason"])
    assert all(isinstance(loss, float) for loss in outcome.losses), "no update was made with a non-finite loss"


def test_a_run_that_cannot_be_built_exits_1_with_the_reason(ended: dict[str, Outcome]) -> None:
    outcome = ended["no device"]
    assert outcome.code == 1
    assert outcome.ended["status"] == "failed"
    assert "cuda:99 is not available" in outcome.ended["reason"]
    assert any(line.startswith("tui-descent: ") and "try --device cpu" in line for line in outcome.stderr.splitlines())


def test_the_first_json_line_has_the_version_and_every_event_its_fields(ended: dict[str, Outcome]) -> None:
    lines = ended["steered"].lines
    assert [line.get("v") for line in lines] == [1] + [None] * (len(lines) - 1)
    kinds = [line["event"] for line in lines]
    assert kinds[0] == "state"
    assert kinds[-1] == "run_ended"
    states = [line["state"] for line in lines if line["event"] == "state"]
    assert states[:3] == ["importing torch", "building", "running"]
    (started,) = ended["steered"].events("run_started")
    assert started["device"] == "cpu"
    assert started["threads"] == 1
    assert started["parameters"] == 1
    (layer,) = started["layers"]
    assert {key: layer[key] for key in ("name", "kind", "params")} == {
        "name": "surface",
        "kind": "Surface",
        "params": 1,
    }
    _, scenario = presets.find("first-descent")
    assert started["scenario"] == to_table(scenario)
    for line in ended["steered"].events("step"):
        assert set(line) == {"event", "segment", "step", "loss", "lr", "time_s"}


def test_interventions_take_effect_at_their_step_in_the_order_given(ended: dict[str, Outcome]) -> None:
    outcome = ended["steered"]
    turned = outcome.events("intervention")
    assert [(line["step"], line["old"], line["new"]) for line in turned] == [(3, "0.1", "0.2"), (3, "0.2", "0.1")]
    assert [line["lr"] for line in outcome.events("step")] == [0.1] * 10
    (rejected,) = outcome.events("rejected")
    assert (rejected["step"], rejected["knob"]) == (5, "residual")
    assert "a test surface has no layers, only one point that moves" in rejected["reason"]
    kinds = [(line["event"], line.get("step")) for line in outcome.lines]
    assert kinds.index(("step", 2)) < kinds.index(("intervention", 3)) < kinds.index(("step", 3))


def test_without_a_terminal_it_prints_one_note_a_chart_and_a_summary(ended: dict[str, Outcome]) -> None:
    outcome = ended["for people"]
    assert outcome.code == 0
    assert outcome.stderr.splitlines()[0] == "tui-descent: no terminal; running headless"
    assert len(outcome.stderr.splitlines()) == 1
    assert "\x1b" not in outcome.stdout + outcome.stderr
    summary = outcome.stdout.splitlines()[-1]
    assert summary.startswith("first-descent: finished · 10 steps in ")
    assert "w = 1.5" in summary
    assert len(outcome.stdout.splitlines()) > 10


def test_a_users_scenario_file_runs(home: Path) -> None:
    path = home / "mine.toml"
    path.write_text(
        'title = "t"\n[data]\nname = "moons"\n[model]\nname = "mlp"\nresidual = "on"\nnorm = "rms"\ndepth = 3\n'
        '[optimizer]\nname = "rmsprop"\nlr = 0.01\n[run]\nsteps = 60\nthreads = 1\nevaluate_every = 20\n'
        '[[plan]]\nat = 10\nturn = "activation=gelu,way=instant"\nsay = "x"\n'
    )
    outcome = run(str(path), "--json", "--watch-every", "30")
    assert outcome.code == 0
    assert len(outcome.losses) == 60
    assert [line["step"] for line in outcome.events("evaluated")] == [20, 40, 60]
    assert [line["step"] for line in outcome.events("reading")] == [0, 30]
    (turned,) = outcome.events("intervention")
    assert (turned["step"], turned["source"], turned["way"]) == (10, "plan", "instant")
    assert outcome.ended["accuracy"] > 0.7
    assert outcome.losses[-1] < outcome.losses[0]
