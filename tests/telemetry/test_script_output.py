"""What a script has printed is shown as a terminal would show it, without its control codes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tui_descent.telemetry.script_output import (
    LEFT_OUT,
    MAX_COLUMNS,
    TAIL_BYTES,
    ScriptOutput,
    last_lines,
    shown_lines,
    without_overwritten,
)

BAR = "".join(f"\repoch 1: {'█' * n}{' ' * (4 - n)}| {25 * n}%" for n in range(5))


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("one\ntwo", ["one", "two"]),
        ("one\r\ntwo\r\n", ["one", "two", ""]),
        (BAR, ["epoch 1: ████| 100%"]),
        (f"{BAR}\ndone", ["epoch 1: ████| 100%", "done"]),
        ("loading 100\rshort\n", ["shortng 100", ""]),
        ("10%\r\x1b[K20%\r\x1b[2K30%", ["30%"]),
        ("progress: 9%\b\b10%", ["progress: 10%"]),
        # Two progress bars, one below the other, as tqdm draws them: down, draw, up again.
        ("a 0%\n\rb 0%\x1b[A\ra 1%\n\rb 7%\x1b[A", ["a 1%", "b 7%"]),
        # rich: erase both lines, going up, then draw them again.
        ("x\ny\r\x1b[2K\x1b[1A\x1b[2Kp\nq", ["p", "q"]),
        ("a\tb", ["a       b"]),
        ("\x1b[1;31mred\x1b[0m and \x1b[38;5;200mpink\x1b[m", ["red and pink"]),
        ("\x1b]0;title\x07text\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", ["textlink"]),
        ("\x1bPq#0;2;0\x1b\\after\x1b(B\x1b=", ["after"]),
        ("\x1b[?25l\x1b[?1049h\x1b[6n\x9b2Jtext\x1b[", ["text"]),
        ("col\x1b[10Gten\x1b[3D_", ["col      _en"]),
        ("top\nmiddle\nend\x1b[2A\x1b[J", ["top"]),
        ("", [""]),
    ],
)
def test_a_text_is_shown_as_on_a_terminal(printed: str, shown: list[str]) -> None:
    assert shown_lines(printed) == shown


@pytest.mark.parametrize(
    "hostile",
    [
        "\x1b[99999A",
        "\x1b[99999B\x1b[9999C" * 5,
        "\x1b[;;;m\x1b[-5A",
        "\b" * 50 + "\x1b[9999999999999D",
        "\x1b[M\x1b[5M",
        "\x1b",
    ],
)
def test_absurd_control_sequences_do_no_harm(hostile: str) -> None:
    lines = shown_lines(f"one\ntwo{hostile}three\n")
    assert len(lines) <= 4
    assert all(len(line) <= MAX_COLUMNS for line in lines)
    assert not any(ord(c) < 32 for line in lines for c in line)


def test_a_line_without_end_is_cut() -> None:
    assert shown_lines("x" * 100_000) == ["x" * MAX_COLUMNS]


@pytest.mark.parametrize(
    ("printed", "kept"),
    [
        (b"1%\r2%\r3%\n", b"3%\n"),
        (b"1%\r2%\r\n", b"2%\r\n"),
        (b"line\r\nother\r\n", b"line\r\nother\r\n"),
        (b"a\n10%\r20%", b"a\n20%"),
        (b"10%\r", b"10%\r"),
    ],
)
def test_overwritten_states_of_a_progress_bar_are_dropped(printed: bytes, kept: bytes) -> None:
    assert without_overwritten(printed) == kept


def test_the_last_lines_of_a_long_file_are_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {n}\n" for n in range(20_000)) + "\n\n")
    assert path.stat().st_size > 2 * TAIL_BYTES
    assert last_lines(path, 3) == ("line 19997", "line 19998", "line 19999")
    assert ScriptOutput(path).lines()[0].startswith("line 1")
    assert last_lines(tmp_path / "none", 3) == ()
    path.write_bytes(b"x" * 2 * TAIL_BYTES)
    assert last_lines(path, 3) == ("x" * MAX_COLUMNS,)
    path.write_bytes(b"caf\xe9 \xff\n")
    assert last_lines(path, 3) == ("caf\ufffd \ufffd",)


BARS = {
    "tqdm": "\repoch 1: {n}%",
    "tqdm, two bars": "\router {n}%\n\rinner {n}%\x1b[A",
    "rich": "\r\x1b[2Kepoch 1: {n}%",
    "keras": "\b" * 40 + "epoch 1: {n}%",
}


@pytest.mark.parametrize("bar", BARS)
def test_a_progress_bar_does_not_push_the_first_lines_out(bar: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    states = "".join(BARS[bar].format(n=n) for n in range(20_000))
    path.write_text(f"reading data\n\n50,000 images\n{states}", encoding="utf-8")
    assert path.stat().st_size > 2 * TAIL_BYTES
    lines = ScriptOutput(path).lines()
    assert lines[:3] == ("reading data", "", "50,000 images")
    assert LEFT_OUT in lines
    assert any(line.endswith(" 19999%") for line in lines[-2:])
    assert len(lines) < 10
    path.write_text(f"reading data\n{states}\n" + "".join(f"line {n}\n" for n in range(20_000)), encoding="utf-8")
    assert ScriptOutput(path).lines()[0].startswith("line 1"), "there are lines enough"


def test_a_progress_bar_from_the_beginning_on_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(BARS["tqdm"].format(n=n) for n in range(20_000)))
    assert ScriptOutput(path).lines() == ("epoch 1: 19999%",)


def test_a_file_is_read_again_only_after_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    output = ScriptOutput(path)
    assert output.lines() == ()
    path.write_text("one\n")
    first = output.lines()
    assert first == ("one",)
    assert output.lines() is first
    with path.open("a") as file:
        file.write("two\n")
    assert output.lines() == ("one", "two")
    os.unlink(path)
    assert output.lines() == ("one", "two"), "the run has ended and its folder was removed"
