"""The lessons name only presets, keys and values there are, and their commands are accepted."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from tui_descent import cli
from tui_descent.scenario import presets
from tui_descent.scenario.keys import KEYS
from tui_descent.scenario.knobs import KNOBS

DOCS = Path(__file__).resolve().parents[2] / "docs"
LESSONS, TEACHING = DOCS / "lessons.md", DOCS / "teaching.md"
KEY_NAMES = {key.shown: key for key in KEYS} | {str(view): None for view in range(1, 10)}

TEXT = LESSONS.read_text(encoding="utf-8")
TEACHING_TEXT = TEACHING.read_text(encoding="utf-8")
FENCE = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fenced_commands() -> list[str]:
    blocks = FENCE.findall(TEXT) + FENCE.findall(TEACHING_TEXT)
    return [line for block in blocks for line in block.splitlines()]


def words_in_backticks(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def commands() -> list[str]:
    words = words_in_backticks(TEXT) + words_in_backticks(TEACHING_TEXT)
    return fenced_commands() + [word for word in words if word.startswith("tui-descent ")]


def accepted(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[bool, str]:
    """Whether the command line starts a run, and what it complains about. The run itself is not made."""
    program, *arguments = shlex.split(command)
    assert program == "tui-descent", command
    started: list[object] = []

    def launch(*_: object, **launch: object) -> int:
        started.append(launch)
        return 0

    monkeypatch.setattr(cli, "_launch", launch)
    try:
        code = cli.main(arguments)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    printed = capsys.readouterr()
    return code == 0 and len(started) == 1, printed.err


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_starts_a_run(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starts, complaint = accepted(command, monkeypatch, capsys)
    assert starts, complaint
    assert "no effect" not in complaint


@pytest.mark.parametrize(
    "command",
    [
        "tui-descent vanishin",
        "tui-descent run vanishing --headless --at 150:residual=maybe",
        "tui-descent run vanishing --headless --at residual=on",
        "tui-descent run vanishing --headless --set model.deepness=3",
        "tui-descent run vanishing --no-screen",
    ],
)
def test_a_wrong_command_is_noticed(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not accepted(command, monkeypatch, capsys)[0]


@pytest.mark.parametrize("text", [TEXT, TEACHING_TEXT], ids=["lessons", "teaching"])
def test_what_is_in_backticks_is_a_key_or_a_preset_or_a_command(text: str) -> None:
    words = words_in_backticks(text)
    assert len(words) > 10
    scripts = {f"python docs/{path.name}" for path in DOCS.glob("*.py")}
    known = {*KEY_NAMES, *presets.names(), *scripts}
    assert [word for word in words if word not in known and not word.startswith("tui-descent ")] == []


def test_what_a_key_chooses_is_a_value_of_its_knob() -> None:
    chosen = re.findall(r"`(\w)`,?\s+(?:and\s+)?choose\s+(\w+)", TEXT)
    assert len(chosen) >= 8
    for key, value in chosen:
        binding = KEY_NAMES[key]
        assert binding is not None
        assert binding.knob is not None
        assert value in KNOBS[binding.knob].choices, (key, value)


def test_the_lessons_are_in_the_order_of_the_gallery() -> None:
    names = [name for _, name in runpy.run_path(str(DOCS / "lesson_times.py"))["lessons"]()]
    assert 12 <= len(names) <= 16
    assert names == [name for name in presets.names() if name in names]


def test_every_lesson_has_an_exercise_and_an_answer() -> None:
    body, _, answers = TEXT.partition("\n## Answers\n")
    numbers = [int(n) for n in re.findall(r"^## (\d+)\. ", body, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [int(n) for n in re.findall(r"^\*\*Exercise (\d+)\.\*\*", body, re.MULTILINE)] == numbers
    assert [int(n) for n in re.findall(r"^(\d+)\. ", answers, re.MULTILINE)] == numbers


def test_every_picture_exists_and_is_used() -> None:
    linked = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)
    assert [link for link in linked if not (DOCS / link).is_file()] == []
    assert {f"lessons/{path.name}" for path in (DOCS / "lessons").iterdir()} <= set(linked)


def test_the_times_are_those_of_the_presets() -> None:
    """`python docs/lesson_times.py` prints the table."""
    table = TEACHING_TEXT.partition("<!-- times -->")[2].partition("<!-- /times -->")[0].strip()
    assert table == runpy.run_path(str(DOCS / "lesson_times.py"))["table"]()
