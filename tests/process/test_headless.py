"""Headless runs that are ended from outside: by signals, by the death of a process, by a reader that leaves."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import tiny_trainer
from runs import TUI, WITHIN_S, Live, children, environment, recorded

ENDLESS = ("first-descent", "--json", "--steps", "10000000", "--pace", "100")
WITHOUT_TORCH = ("exec", "--json", "--", TUI[0], tiny_trainer.__file__)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.heavy),  # usual: before the network is built
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.heavy),  # usual: test_pty.py
    ],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
def test_a_signal_ends_the_run_properly(number: signal.Signals, code: int, home: Path) -> None:
    with Live(*ENDLESS) as live:
        live.until(lambda line: line["event"] == "step" and line["step"] == 5)
        live.process.send_signal(number)
        found, last = live.end(within_s=20)
    assert found == code
    assert (last["event"], last["status"]) == ("run_ended", "stopped")
    steps = [line["step"] for line in live.lines if line["event"] == "step"]
    assert steps == list(range(last["step"])), "every update that was made is printed"
    assert recorded(home) == [("stopped", last["step"])]


def test_a_signal_before_the_network_is_built_ends_the_run() -> None:
    with Live(*ENDLESS) as live:
        live.until(lambda line: line["event"] == "state")
        live.process.send_signal(signal.SIGTERM)
        code, last = live.end()
    assert code == 143
    assert (last["status"], last["step"]) == ("stopped", 0)


def test_a_killed_trainer_exits_4_and_every_step_it_made_is_printed(home: Path) -> None:
    with Live(*WITHOUT_TORCH) as live:
        live.until(lambda line: line["event"] == "step" and line["step"] == 20)
        (holder,) = children(live.process.pid)  # it has the script's terminal
        (trainer,) = children(holder)
        os.kill(trainer, signal.SIGKILL)
        code, last = live.end(within_s=20)
    assert code == 4
    assert last["status"] == "lost"
    assert last["reason"] == f"trainer lost (signal 9) at step {last['step']}"
    assert last["exit_code"] == -9
    steps = [line["step"] for line in live.lines if line["event"] == "step"]
    assert steps == list(range(last["step"]))
    assert f"trainer lost (signal 9) at step {last['step']}" in live.stderr
    assert list((home / "runs").iterdir()), "the log is kept"


def test_a_closed_output_pipe_ends_the_run_cleanly() -> None:
    command = " ".join((*TUI, *WITHOUT_TORCH)) + " | head -3"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}; echo codes ${{PIPESTATUS[*]}}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=WITHIN_S,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith('{"v":1')
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr
    assert lines[3].startswith("codes ")


def test_an_output_pipe_closed_from_the_start_ends_the_run_cleanly() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = subprocess.Popen(
        [*TUI, *WITHOUT_TORCH], stdin=subprocess.DEVNULL, stdout=write_end, stderr=subprocess.PIPE
    )
    os.close(write_end)
    _, errors = process.communicate(timeout=WITHIN_S)
    assert b"Traceback" not in errors


def test_an_interrupt_ends_the_whole_verification() -> None:
    process = subprocess.Popen(
        [*TUI, "presets", "healthy", "--verify", "--seeds", "50"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()  # the first verdict: the next runs go on
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
