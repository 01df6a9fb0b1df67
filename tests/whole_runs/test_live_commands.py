"""`send` and `stop` on a run that is going on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from attended import Viewer
from same_process import AttendedHere

from tui_descent import cli
from tui_descent.protocol.commands import Pause
from tui_descent.protocol.events import CommandDone, CommandRejected, KnobTurned, RunEnded
from tui_descent.protocol.run_lock import has_keeper, keep_folder
from tui_descent.telemetry.record import Record


@pytest.fixture
def live() -> Iterator[AttendedHere]:
    run = AttendedHere("healthy", "run.steps=1000000", "run.threads=1", pace=200.0)
    yield run
    run.close()


@pytest.fixture
def viewer(live: AttendedHere) -> Iterator[Viewer]:
    viewer = live.viewer()
    viewer.until_step(1)
    yield viewer
    viewer.close()


def sent(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any]]:
    code = cli.main(["send", *args])
    (line,) = capsys.readouterr().out.splitlines()
    return code, json.loads(line)


def test_a_knob_is_turned_and_every_viewer_learns_who_did_it(
    live: AttendedHere, viewer: Viewer, capsys: pytest.CaptureFixture[str]
) -> None:
    code, reply = sent(capsys, "healthy", "lr=*0.5")
    turned = viewer.until_event(KnobTurned, knob="lr")
    assert code == 0
    assert (reply["v"], reply["event"], reply["knob"], reply["source"]) == (1, "intervention", "lr", "send")
    assert (reply["id"], reply["step"], reply["old"], reply["new"]) == (turned.id, turned.step, turned.old, turned.new)
    assert turned.client not in (0, viewer.client)
    recorded = [e for e in Record.open(live.launch.path).events() if isinstance(e, KnobTurned)]
    assert turned in recorded


NOT_ALLOWED = {
    "lr=-1": "allowed: ",
    "lr=nan": "allowed: ",
    "lr=1e400": "allowed: ",
    "lr=fast": "allowed: ",
    "lr=0.1,speed=3": "0.1,speed=3",
    "residual=yes": "allowed: off, on",
    "momentun=0.9": 'unknown knob "momentun"',
    "=": "unknown knob",
    "x" * 300 + "=1": "unknown knob",
}


def test_what_is_not_allowed_is_rejected_with_the_reason(viewer: Viewer, capsys: pytest.CaptureFixture[str]) -> None:
    for change, reason in NOT_ALLOWED.items():
        code, reply = sent(capsys, "healthy", change)
        assert (code, reply["event"]) == (1, "rejected")
        assert reason in reply["reason"]
        assert viewer.until_event(CommandRejected).reason == reply["reason"], "it is in the record too"


def test_a_dry_run_changes_nothing(live: AttendedHere, viewer: Viewer, capsys: pytest.CaptureFixture[str]) -> None:
    code, reply = sent(capsys, "healthy", "lr=0.3", "--dry-run")
    assert (code, reply["event"], reply["what"]) == (0, "done", "lr=0.3 can be applied")
    code, reply = sent(capsys, "healthy", "lr=-3", "--dry-run")
    assert (code, reply["event"]) == (1, "rejected")
    assert cli.main(["send", "healthy", "pause", "--dry-run"]) == 2
    assert not viewer.events(KnobTurned)


WORDS = {
    "pause": "paused",
    "steps=3": "3 steps, then a pause",
    "resume": "resumed",
    "mark=here": "marked",
    "mark": "marked",
    "evaluate": "evaluated",
}


def test_words_are_commands(viewer: Viewer, capsys: pytest.CaptureFixture[str]) -> None:
    for word, what in WORDS.items():
        code, reply = sent(capsys, "healthy", word)
        assert (code, reply["event"], reply["what"]) == (0, "done", what)


def test_what_is_no_command_or_no_run_is_an_error_of_one_line(
    live: AttendedHere, capsys: pytest.CaptureFixture[str]
) -> None:
    for word in ("", "jump", "lr", "steps=many", "steps=²"):
        assert cli.main(["send", "healthy", word]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    for args in (("send", "nobody", "lr=1"), ("stop", "nobody")):
        assert cli.main(args) == 2
        assert live.launch.run in capsys.readouterr().err


def test_stop_waits_for_the_end_and_says_how_it_ended(
    live: AttendedHere, viewer: Viewer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(viewer.do(Pause()), CommandDone)
    assert cli.main(["stop", "healthy"]) == 0
    assert not has_keeper(live.launch.path)
    (line, *_) = capsys.readouterr().out.splitlines()
    assert line.startswith("healthy: stopped · ")
    assert viewer.until_event(RunEnded).status == "stopped"
    keep_folder(live.launch.path)  # as at the end of the keeper's process
    assert cli.main(["send", "heal", "pause"]) == 2
    assert f"{live.launch.run} has ended; look at it again with: " in capsys.readouterr().err
