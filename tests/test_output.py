"""Characters that a stream's encoding lacks, and streams that cannot be written to."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.cells import cell_len

from tui_descent import output
from tui_descent.cli import main
from tui_descent.dashboard.charts.braille import ascii_chart

PACKAGE = Path(output.__file__).parent
OURS = sorted(
    {
        character
        for path in (*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "presets").glob("*.toml"))
        for character in path.read_text(encoding="utf-8")
        if ord(character) > 126
    }
)
ENCODINGS = ("ascii", "latin-1", "cp437", "cp1252", "iso8859-15", "koi8-r")


@pytest.mark.parametrize("errors", [output.TEXT, output.CELLS])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_character_that_we_print_can_be_written_in_any_encoding(encoding: str, errors: str) -> None:
    for character in OURS:
        shown = character.encode(encoding, errors).decode(encoding)
        assert "\\" not in shown, character
        assert "?" not in shown, character
        assert shown.isprintable()
        if errors == output.CELLS:
            assert cell_len(shown) == cell_len(character), character


def test_characters_of_any_kind_keep_their_width_on_the_dashboard() -> None:
    for code in (*range(0xA0, 0x2600, 7), *range(0x3041, 0xD7A3, 401), 0x1F600, 0x20000):
        character = chr(code)
        if character.isprintable() and cell_len(character):
            shown = character.encode("ascii", output.CELLS).decode("ascii")
            assert shown.isprintable()
            assert len(shown) == cell_len(character), hex(code)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("lr 0.1 → 0.2", b"lr 0.1 -> 0.2"),
        ("allowed: a number ≥ 0 and ≤ 1", b"allowed: a number >= 0 and <= 1"),
        ("finished · 10 steps…", b"finished - 10 steps..."),
        ("f\udcffg 日本 é", b"f?g ???? e"),
        ("⠀⠁⡀⣿ │─┌█", b" '.: |-+#"),
    ],
)
def test_messages_are_spelled_out_in_ascii(text: str, shown: bytes) -> None:
    assert text.encode("ascii", output.TEXT) == shown


def test_characters_of_the_encoding_stay() -> None:
    assert "±1 · λ½".encode("latin-1", output.CELLS) == "±1 · l½".encode("latin-1")
    assert "λ → 日".encode("utf-8", output.TEXT) == "λ → 日".encode()


@pytest.mark.parametrize(
    ("encoding", "whole"), [("utf-8", True), ("UTF8", True), ("ascii", False), ("latin-1", False), ("utf-16", True)]
)
def test_an_encoding_with_every_character_is_recognised(encoding: str, whole: bool) -> None:
    assert output.is_utf8(io.TextIOWrapper(io.BytesIO(), encoding=encoding)) is whole


def test_the_chart_can_be_drawn_in_ascii() -> None:
    chart = ascii_chart([(n, 1 / (n + 1)) for n in range(100)], 60, 12, ascii_only=True)
    assert chart.isascii()
    assert chart.count("*") > 20


def test_control_characters_in_a_message_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    output.say("a\x1b[2J", "b\r\u202ec\x9b", "d\ne")
    assert capsys.readouterr().err == "a\\x1b[2J\nb\\r\\u202ec\\x9b\nd\\ne\n"


@contextmanager
def full_device(*, unbuffered: bool) -> Iterator[io.TextIOWrapper]:
    device = open("/dev/full", "wb", 0 if unbuffered else -1)  # noqa: SIM115
    with io.TextIOWrapper(device, encoding="utf-8", write_through=unbuffered) as stream:  # type: ignore[arg-type]
        yield stream
        output.discard(stream)


@pytest.mark.parametrize("unbuffered", [False, True])
def test_messages_for_a_full_device_are_lost_without_an_error(
    monkeypatch: pytest.MonkeyPatch, unbuffered: bool
) -> None:
    with full_device(unbuffered=unbuffered) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        output.say("one")
        output.draw("two")
        assert main(["nonsense"]) == 2


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize(
    "args", [["--help"], ["run", "--help"], ["--version"], ["presets"], ["presets", "vanishing"], []], ids=" ".join
)
def test_results_for_a_full_device_are_an_error_of_one_line(
    args: list[str], unbuffered: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_device(unbuffered=unbuffered) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(args) == 1
    assert capsys.readouterr().err == "tui-descent: cannot write to stdout: No space left on device\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize(
    "args",
    [["--help"], ["run", "--help"], ["presets", "--help"], ["presets", "vanishing"], ["check", "/dev/null"]],
    ids=" ".join,
)
def test_help_and_errors_are_readable_in_any_encoding(
    args: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, raw in printed.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    assert main(args) == (2 if args[0] == "check" else 0)
    text = "".join(raw.getvalue().decode(encoding) for raw in printed.values())
    assert len(text) > 50
    assert "\\u" not in text
    assert "\\x" not in text


CODES = "1\x1b[2J\r\x9b2J\u202e"


@pytest.mark.parametrize(
    "args",
    [
        ["healthy", "--headless", "--at", f"3:{CODES}=1"],
        ["healthy", "--headless", "--at", f"{CODES}:lr=1"],
        ["healthy", "--headless", "--at", f"3:lr={CODES}"],
        ["healthy", "--headless", "--at", f"3:lr@{CODES}=1"],
        ["healthy", "--headless", "--set", f"run.{CODES}=1"],
        ["healthy", "--headless", "--set", f"{CODES}"],
        ["healthy", "--headless", "--steps", CODES],
        ["healthy", "--headless", "--device", CODES],
        ["healthy", "--headless", "--pace", CODES],
        ["healthy", "--headless", "--range-test", CODES],
        ["healthy", "--watch-every", CODES],
        ["healthy", "--watch-budget", CODES],
        ["healthy", "--undo-budget", CODES],
        ["healthy", f"--{CODES}"],
        ["healthy", "--headless", "--runs-dir", f"/dev/null/{CODES}"],
        [CODES],
        [f"/nosuch{CODES}.toml"],
        ["check", f"/nosuch{CODES}.toml"],
        ["check", "healthy", CODES],
        ["exec", "--", CODES],
        ["presets", CODES],
        ["presets", "healthy", "--verify", "--seeds", CODES],
    ],
    ids=ascii,
)
def test_control_codes_in_an_argument_do_not_reach_the_terminal(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.replace("\n", "").isprintable()
    assert 1 <= len(printed.err.splitlines()) <= 12
