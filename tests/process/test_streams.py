"""Runs whose standard streams are closed, full, or not UTF-8: the right exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny_trainer
from runs import TUI, WITHIN_S, environment, recorded, temporary_home

COMMAND = " ".join(TUI)
TINY = f"-- {TUI[0]} {tiny_trainer.__file__}"
SHORT = f"exec --headless {TINY} 6"
NO_UTF8 = {"PYTHONUTF8": "0"}
RUNS: dict[str, tuple[str, dict[str, str]]] = {
    "ascii": (SHORT, {"PYTHONIOENCODING": "ascii"}),
    "ascii json": (f"exec --json {TINY} 6", {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}),
    "ascii failed": (f"{SHORT} failed", {"PYTHONIOENCODING": "ascii"}),
    "latin-1": (SHORT, {"PYTHONIOENCODING": "latin-1"}),
    "no stdin and stderr": (f"{SHORT} <&- 2>&-", {}),
    "no stream": (f"{SHORT} <&- >&- 2>&-", {}),
    "no stdout": (f"{SHORT} >&-", {}),
    "no stdout for json": (f"exec --json {TINY} 6 >&-", {}),
    "full": (f"{SHORT} >/dev/full", {}),
    "full json": (f"exec --json {TINY} >/dev/full", {}),
    "full stderr": (f"{SHORT} 2>/dev/full", {}),
    "full failed": (f"{SHORT} diverged >/dev/full 2>&1", {}),
    "closed pipe": (f"exec --json {TINY} | head -1; exit ${{PIPESTATUS[0]}}", {}),
    "closed pipe for all": (f"exec --json {TINY} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}", {}),
}


class Ended:
    """A finished command; its stdout as bytes."""

    def __init__(self, arguments: str, home: Path | None, more: dict[str, str]) -> None:
        done = subprocess.run(
            ["bash", "-c", f"{COMMAND} {arguments}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**environment(home), **NO_UTF8, **more},
            timeout=WITHIN_S,
            check=False,
        )
        self.code, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr.decode()
        assert "Traceback" not in self.stderr
        assert "Exception ignored" not in self.stderr


@pytest.fixture(scope="module")
def ended() -> Iterator[dict[str, Ended]]:
    with temporary_home() as home:
        with ThreadPoolExecutor(2) as pool:
            results = pool.map(lambda case: Ended(case[0], home, case[1]), RUNS.values())
            ended = dict(zip(RUNS, results, strict=True))
        yield ended
        statuses = [status for status, _ in recorded(home)]
        assert len(statuses) == len(RUNS) - 1, "all but the run that must not start"
        assert set(statuses) == {"finished", "failed", "diverged", "stopped"}


def test_an_ascii_terminal_gets_chart_and_summary_in_ascii(ended: dict[str, Ended]) -> None:
    run = ended["ascii"]
    assert run.code == 0
    assert run.stdout.isascii()
    assert b"*" in run.stdout
    assert b"\\" not in run.stdout
    assert run.stdout.splitlines()[-1].startswith(b"funf -> l: finished - 6 steps in ")
    assert "step 0: lr 0.1 -> 0.2" in run.stderr.splitlines()


def test_a_failure_is_told_in_ascii(ended: dict[str, Ended]) -> None:
    run = ended["ascii failed"]
    assert run.code == 1
    assert run.stdout.isascii()
    assert "tui-descent: it -> failed" in run.stderr.splitlines()


def test_json_in_an_ascii_locale_has_the_same_values(ended: dict[str, Ended]) -> None:
    run = ended["ascii json"]
    assert run.code == 0
    assert run.stdout.isascii()
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [line["name"] for line in lines if line["event"] == "run_started"] == ["fünf → λ"]
    assert lines[-1]["status"] == "finished"


def test_a_latin_1_terminal_gets_its_own_characters(ended: dict[str, Ended]) -> None:
    run = ended["latin-1"]
    assert run.code == 0
    assert run.stdout.decode("latin-1").splitlines()[-1].startswith("fünf -> l: finished · 6 steps in ")


def test_a_run_without_stdin_and_stderr_ends_as_usual(ended: dict[str, Ended]) -> None:
    run = ended["no stdin and stderr"]
    assert run.code == 0
    assert b": finished " in run.stdout
    assert ended["no stream"].code == 0


def test_a_run_without_stdout_says_so_and_ends_as_usual(ended: dict[str, Ended]) -> None:
    run = ended["no stdout"]
    assert run.code == 0
    assert run.stderr.splitlines()[0] == "tui-descent: stdout is closed: results are not printed"


def test_json_without_stdout_is_refused(ended: dict[str, Ended]) -> None:
    run = ended["no stdout for json"]
    assert (run.code, run.stderr) == (2, "tui-descent: stdout is closed; --json prints to it\n")


def test_a_summary_that_cannot_be_written_is_an_error_of_one_line(ended: dict[str, Ended]) -> None:
    run = ended["full"]
    assert run.code == 1
    said = "tui-descent: cannot write to stdout: No space left on device; the run finished at step 6"
    assert run.stderr.splitlines()[-1] == said


def test_a_run_whose_json_cannot_be_written_is_stopped(ended: dict[str, Ended]) -> None:
    run = ended["full json"]
    assert run.code == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("tui-descent: cannot write to stdout: No space left on device; the run stopped at step ")


def test_the_exit_code_of_a_run_that_did_not_finish_is_kept(ended: dict[str, Ended]) -> None:
    assert ended["full failed"].code == 3


def test_messages_that_cannot_be_written_are_lost(ended: dict[str, Ended]) -> None:
    run = ended["full stderr"]
    assert run.code == 0
    assert b": finished " in run.stdout


def test_a_reader_that_leaves_stops_the_run_which_says_so(ended: dict[str, Ended]) -> None:
    run = ended["closed pipe"]
    assert run.code == 0
    assert len(run.stdout.splitlines()) == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("tui-descent: the output pipe was closed; the run stopped at step ")
    assert ended["closed pipe for all"].code == 0


def test_without_any_stream_the_exit_code_is_right(home: Path) -> None:
    for arguments, code in (
        ("presets", 0),
        ("--help", 0),
        ("check /dev/null", 2),
        ("nonsense", 2),
        ("vanishing --json", 2),
    ):
        assert Ended(f"{arguments} <&- >&- 2>&-", None, {}).code == code
    assert not (home / "runs").exists()


def test_a_scenario_file_may_have_a_name_that_is_not_utf8(home: Path) -> None:
    path = os.fsdecode(os.fsencode(home) + b"/r\xe9seau.toml")
    Path(path).write_text("title = 1")
    run = Ended(f"{shlex.quote(path)} --headless", None, {})
    assert run.code == 2
    assert "r\\udce9seau.toml: title: found 1" in run.stderr
    script = os.fsdecode(os.fsencode(home) + b"/\xe9t\xe9.py")
    run = Ended(f"exec --headless -- {TUI[0]} {shlex.quote(script)}", None, {})
    assert run.code == 2
    assert "not valid UTF-8; rename it" in run.stderr
    assert list((home / "runs").iterdir()) == []
