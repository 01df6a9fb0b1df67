"""The doctor says what works, what does not, and what to do; its exit code says whether the program can be used."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tui_descent import cli
from tui_descent.doctor import folders, report, session, terminal, torch_install
from tui_descent.doctor.checks import Check, asked


def found(checks: Iterator[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


WORKING = {
    "version": "2.13.0", "took_s": 3.0, "threads": 2, "cores": 4, "devices": {"cpu": [True, "AVX2"]}, "cuda_build": None
}  # fmt: skip


@pytest.fixture
def quick_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the import of torch in a process of its own."""
    monkeypatch.setattr(torch_install, "PROBE", f"print({json.dumps(json.dumps(WORKING))})")


def test_all_is_well(home: Path, quick_torch: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "terminal"
    assert "  ok    torch             2.13.0, imported in 3.0 s\n" in printed
    assert f"  ok    runs              {home}/runs\n" in printed
    assert printed.splitlines()[-1].startswith("tui-descent can be used here")
    assert os.listdir(home / "runs") == []
    assert os.listdir(home / "sockets") == []


def test_json_has_an_object_per_check(home: Path, quick_torch: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["v"] == 1
    assert {row["area"] for row in rows} == {"terminal", "session", "folders", "torch"}
    assert all(set(row) - {"v"} == {"area", "name", "status", "found", "advice", "command"} for row in rows)
    assert {row["status"] for row in rows} <= {"ok", "note", "bad"}


def test_unusable_installation_is_exit_code_1(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch_install, "PROBE", "import torch_that_is_missing")
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "  BAD   torch             cannot be imported: ModuleNotFoundError: No module" in printed
    assert " -c 'import torch'\n" in printed
    assert printed.splitlines()[-1] == "tui-descent cannot be used here: 1 problem marked BAD"


def test_torch_that_hangs_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_install, "WITHIN_S", 0.2)
    monkeypatch.setattr(torch_install, "PROBE", "import time; time.sleep(60)")
    checks = found(torch_install.checks())
    assert (checks["torch"].status, checks["torch"].found) == ("bad", "import torch has not ended within 0 s")


@pytest.mark.heavy
def test_real_torch_is_found() -> None:
    checks = found(torch_install.checks())
    assert checks["torch"].found.startswith("2.")
    assert checks["cpu"].status == "ok"


def test_devices_are_listed_with_what_is_wrong() -> None:
    devices = {
        "cpu": [True, "AVX2"],
        "cuda:0": [False, "RuntimeError: no kernel image"],
        "cuda:1": [True, "A100, 80 GB"],
    }
    text = json.dumps(WORKING | {"devices": devices, "cuda_build": "12.8", "took_s": 20.0})
    checks = found(torch_install.of_torch(0, f"a warning\n{text}\n", ""))
    assert checks["cuda:0"] == Check(
        "cuda:0", "note", "RuntimeError: no kernel image", "use --device cpu, or repair its driver"
    )
    assert checks["cuda:1"].status == "ok"
    assert "cuda" not in checks
    assert checks["torch"].status == "note"
    broken = found(torch_install.of_torch(0, json.dumps(WORKING | {"devices": {"cpu": [False, "x"]}}), ""))
    assert broken["cpu"].status == "bad"
    without = found(torch_install.of_torch(0, json.dumps(WORKING | {"cuda_build": "12.8"}), ""))
    assert without["cuda"].found == "torch is built for CUDA 12.8, and finds no such device"


def test_torch_that_crashes_is_bad() -> None:
    assert found(torch_install.of_torch(-11, "", "")) == {
        "torch": Check("torch", "bad", "cannot be imported: exit code -11", "try:", torch_install.IMPORT)
    }


@pytest.mark.parametrize(
    ("columns", "rows", "status"),
    [(59, 24, "note"), (80, 19, "note"), (79, 24, "note"), (80, 24, "ok"), (200, 60, "ok")],
)
def test_size(columns: int, rows: int, status: str) -> None:
    check = terminal.size(columns, rows)
    assert (check.status, check.found) == (status, f"{columns}×{rows}")
    assert bool(check.advice) == (status == "note")


@pytest.mark.parametrize(
    ("environment", "status", "expected"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "ok", "16 million"),
        ({"TERM": "xterm-256color"}, "note", "256"),
        ({"TERM": "xterm"}, "note", "16"),
        ({"TERM": "xterm", "COLORTERM": "truecolor", "NO_COLOR": "1"}, "note", "none, because NO_COLOR is set"),
    ],
)
def test_colours(environment: dict[str, str], status: str, expected: str) -> None:
    check = terminal.colours(environment)
    assert (check.status, check.found) == (status, expected)


def test_colours_over_ssh() -> None:
    check = terminal.colours({"TERM": "xterm-256color", "SSH_CONNECTION": "…"})
    assert "ssh does not pass on" in check.advice
    assert check.command == "export COLORTERM=truecolor"


def test_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert terminal.characters(True, {"LANG": "C.UTF-8"}).status == "ok"
    check = terminal.characters(False, {"LANG": "de_DE", "LC_ALL": "C"})
    assert (check.status, check.found, check.command) == ("note", "no UTF-8 (locale C)", "export LC_ALL=C.UTF-8")
    monkeypatch.setenv("LC_ALL", "xx_YY.UTF-8")
    check = terminal.characters(True, os.environ)
    assert check.found == "the locale xx_YY.UTF-8 is not installed"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"\x1b[?2004;2$y\x1b[?62;4c", "ok"),
        (b"\x1b[?62;4c", "ok"),
        (b"\x1b[?2004;0$y\x1b[?1;2c", "note"),
        (b"", "note"),
        (b"typed text", "note"),
    ],
)
def test_marked_pastes(answer: bytes, status: str) -> None:
    assert terminal.pastes(answer).status == status


@pytest.fixture
def terminal_ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Our end of a terminal, and the end that a program has."""
    monkeypatch.setattr(terminal, "_in_foreground", lambda _: True)
    ends = os.openpty()
    yield ends
    for end in ends:
        os.close(end)


def test_the_terminal_is_asked_and_left_as_it_was(terminal_ends: tuple[int, int]) -> None:
    ours, theirs = terminal_ends
    before, asked_for = termios.tcgetattr(theirs), b""

    def answer() -> None:
        nonlocal asked_for
        while b"\x1b[c" not in asked_for:
            asked_for += os.read(ours, 1024)
        os.write(ours, b"\x1b[?2004;2$y\x1b[?62;22c")

    thread = threading.Thread(target=answer)
    thread.start()
    got = terminal.answers(theirs, theirs, within_s=60)
    thread.join()
    assert got == b"\x1b[?2004;2$y\x1b[?62;22c"
    assert asked_for == terminal.QUESTIONS.encode()  # and no echo of the answer
    assert termios.tcgetattr(theirs) == before


def test_a_silent_terminal_is_not_waited_for(terminal_ends: tuple[int, int]) -> None:
    assert terminal.answers(terminal_ends[1], terminal_ends[1], within_s=0.05) == b""


def test_a_program_in_the_background_does_not_ask(
    terminal_ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert terminal.answers(terminal_ends[1], terminal_ends[1], within_s=60) == b""


def test_folder_that_others_can_change_is_bad(tmp_path: Path, home: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    checks = found(folders.checks(str(tmp_path / "open" / "runs")))
    assert checks["runs"].status == "bad"
    assert "run chmod go-w on it" in checks["runs"].found
    assert "record" not in checks
    assert checks["sockets"].status == "ok"


@pytest.mark.parametrize(("free", "status"), [(1e7, "bad"), (5e8, "note"), (5e9, "ok")])
def test_space(free: float, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: usage)
    assert folders.space(tmp_path).status == status


def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Path) -> str:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr(folders, "_written", fails)
    check = folders.record(tmp_path)
    assert (check.status, check.advice) == ("bad", "choose another folder with --runs-dir")
    assert "attempt to write a readonly database" in check.found
    monkeypatch.setattr(folders, "_written", lambda _: "delete")
    assert folders.record(tmp_path).found == "no write-ahead log on this file system (delete)"
    monkeypatch.setattr(folders, "is_on_network", lambda _: True)
    assert folders.record(tmp_path).found == "the folder is on a network file system"
    assert list(tmp_path.iterdir()) == []


def answering(answers: dict[str, str]) -> session.Ask:
    return lambda command: answers.get(" ".join(command))


def test_logout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.getpass, "getuser", lambda: "ann")
    manager = "KillOnlyUsers=\nKillExcludeUsers=root\nKillUserProcesses={}"
    for kills, linger, status, command in (
        ("no", "no", "ok", ""),
        ("yes", "no", "note", "loginctl enable-linger && systemd-run --user --scope tui-descent …"),
        ("yes", "yes", "note", "systemd-run --user --scope tui-descent …"),
    ):
        ask = answering({"loginctl show": manager.format(kills), "loginctl show-user ann": f"Linger={linger}"})
        check = session.logout(ask)
        assert (check.status, check.command) == (status, command)
    monkeypatch.setattr(session.getpass, "getuser", lambda: "root")
    assert session.logout(answering({"loginctl show": manager.format("yes")})).status == "ok"
    assert session.logout(answering({})).found.startswith("no systemd-logind here")


def test_tmux() -> None:
    base = {"tmux -V": "tmux 3.4", "tmux display -p #{client_termname}": "xterm-kitty"}
    usual = base | {
        "tmux show -gv default-terminal": "screen", "tmux show -sv escape-time": "500",
        "tmux show -sv set-clipboard": "external", "tmux display -p #{client_termfeatures}": "256,title",
    }  # fmt: skip
    checks = found(session.checks({"TMUX": "…"}, answering(usual)))
    assert {name: check.command for name, check in checks.items() if check.status == "note"} == {
        "tmux terminal": "set -g default-terminal tmux-256color",
        "tmux colours": "set -as terminal-features ',xterm-kitty:RGB'",
        "tmux escape": "set -sg escape-time 10",
        "tmux clipboard": "set -s set-clipboard on",
    }
    good = base | {
        "tmux show -gv default-terminal": "tmux-256color", "tmux show -sv escape-time": "10",
        "tmux show -sv set-clipboard": "on", "tmux display -p #{client_termfeatures}": "256,RGB,title",
    }  # fmt: skip
    assert {check.status for check in session.checks({"TMUX": "…"}, answering(good))} == {"ok"}
    assert found(session.checks({"STY": "…"}, answering({})))["screen"].status == "note"
    assert list(found(session.checks({}, answering({})))) == ["logout"]


def test_programs_that_are_missing_or_fail_have_no_answer() -> None:
    assert asked(["true"]) == ""
    assert asked(["false"]) is None
    assert asked(["no-such-program-at-all"]) is None
    assert asked(["sleep", "60"], within_s=0.1) is None


def test_lines_are_wrapped_but_commands_are_not() -> None:
    long = "word " * 30
    printed = report.lines(Check("name", "note", long, long, "x" * 100))
    assert max(len(line) for line in printed[:-1]) <= 80
    assert printed[-1].strip() == "x" * 100
    assert report.lines(Check("a", "bad", "\x1b[31mred"))[0].startswith("  BAD   a  ")
    assert "\x1b" not in "".join(report.lines(Check("a", "bad", "\x1b[31mred")))


def test_sockets_folder_is_private(home: Path) -> None:
    assert folders.sockets().status == "ok"
    assert stat.S_IMODE((home / "sockets").stat().st_mode) == 0o700
