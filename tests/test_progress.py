"""The progress line of a headless run, and text of the user in its output."""

from __future__ import annotations

import json
import math

import pytest
from factories import started

from tui_descent import headless
from tui_descent.protocol.events import (
    Advice,
    AnyEvent,
    Diagnosed,
    MetricLogged,
    Noted,
    RunEnded,
    StateChanged,
    StepsCompleted,
)
from tui_descent.telemetry.jsonl import JsonLines


def steps(*losses: float) -> StepsCompleted:
    count = len(losses)
    return StepsCompleted(segment=0, first=0, losses=list(losses), lrs=[0.1] * count, times_s=[0.0] * count, skipped=[])


@pytest.fixture(autouse=True)
def print_every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headless, "REPORT_S", 0.0)


@pytest.mark.parametrize(
    "event", [started(scenario=None, steps=60), StateChanged(state="running"), StateChanged(state="paused")]
)
def test_no_loss_is_shown_before_the_first_step(event: AnyEvent, capsys: pytest.CaptureFixture[str]) -> None:
    progress = headless.Progress()
    progress(event)
    printed = capsys.readouterr().err
    assert printed.startswith("step 0")
    assert "loss" not in printed


@pytest.mark.parametrize(("loss", "shown"), [(0.5, "loss 0.5"), (math.nan, "loss nan"), (math.inf, "loss inf")])
def test_the_loss_of_the_first_step_is_shown_whatever_it_is(
    loss: float, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = headless.Progress()
    progress(started(scenario=None, steps=60))
    progress(steps(loss))
    assert capsys.readouterr().err.splitlines()[-1] == f"step 1/60  {shown}"


def test_the_summary_counts_from_the_first_step_to_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    progress = headless.Progress()
    for event in (StateChanged(state="importing torch"), started(steps=3), steps(2.0)):
        progress(event)
    progress(StepsCompleted(segment=0, first=1, losses=[1.0, 0.5], lrs=[0.1] * 2, times_s=[0.5, 2.25], skipped=[]))
    progress(RunEnded(status="finished", step=3))
    assert capsys.readouterr().out.splitlines()[-1] == "vanishing: finished · 3 steps in 2.2 s · training loss 0.5"


def test_the_summary_has_the_last_diagnosis_and_what_to_do_next_time(capsys: pytest.CaptureFixture[str]) -> None:
    progress = headless.Progress()
    advice = (Advice("residual", "on", "r"),)
    sentence = "blocks.0 gets 3e-09 of blocks.19's gradient. Press r: residual on."
    found = Diagnosed(segment=0, step=1, finding="vanishing", sure=1.0, sentence=sentence, advice=advice)
    for event in (started(steps=1), steps(2.0), found, RunEnded(status="finished", step=1)):
        progress(event)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "  diagnosis: vanishing. blocks.0 gets 3e-09 of blocks.19's gradient. Next time: residual on."


def test_the_summary_of_a_run_without_steps_has_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    headless.Progress()(RunEnded(status="failed", step=0, reason="cuda is not available"))
    assert capsys.readouterr().out.splitlines() == ["run: failed · 0 steps", "  cuda is not available"]


TEXTS = ("a\x1b[2Jb", "\x9b2J", "\x7f\x00\r\n", "\u202eabc", "\udcff", "\U000e0001", "plain")


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_control_characters_of_the_user_are_escaped(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    headless.Progress()(Noted(step=1, text=text))
    assert capsys.readouterr().err.replace("\n", "").isprintable()


@pytest.mark.parametrize("only_ascii", [False, True])
@pytest.mark.parametrize("text", [*TEXTS, "λ → 日 \U0001f600"], ids=ascii)
def test_json_lines_keep_the_text_but_print_no_control_character(text: str, only_ascii: bool) -> None:
    (line,) = JsonLines(only_ascii=only_ascii).lines(MetricLogged(segment=0, step=1, name=text, value=1.0))
    assert json.loads(line)["name"] == text
    assert line.isprintable()
    line.encode("ascii" if only_ascii else "utf-8")
