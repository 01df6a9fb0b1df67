"""One table, many uses: the keys, the knobs and what the README says of them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tui_descent import cli
from tui_descent.keeper.notifier import ENV_NOTIFY
from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.launch import ENV_RESUME, ENV_SNAPSHOT_EVERY, ENV_SNAPSHOT_SIZE, ENV_UNDO_BUDGET
from tui_descent.scenario.keys import KEYS, keys_table
from tui_descent.scenario.knobs import KNOBS, check, parse
from tui_descent.scenario.spec import Activation

README = Path(__file__).resolve().parents[2] / "README.md"


def test_every_key_turns_a_knob_there_is() -> None:
    for key in KEYS:
        assert key.knob is None or key.knob in KNOBS, key.shown


def test_what_a_key_sends_is_a_valid_turn_of_its_knob() -> None:
    turns = [(key, key.command) for key in KEYS if isinstance(key.command, TurnKnob)]
    assert len(turns) >= 4
    for key, command in turns:
        assert command.knob == key.knob
        assert check(command) is command


def test_no_key_and_no_synonym_stands_twice() -> None:
    names = Counter(name for key in KEYS for name in key.keys)
    assert [name for name, count in names.items() if count > 1] == []
    shown = Counter(key.shown for key in KEYS)
    assert [name for name, count in shown.items() if count > 1] == []


def test_the_keypads_and_the_shifted_keys_are_synonyms() -> None:
    keys = {key.shown: set(key.keys) for key in KEYS}
    assert keys["+"] == {"plus", "equals_sign", "add"}
    assert keys["-"] == {"minus", "subtract"}


def test_every_key_has_its_words() -> None:
    for key in KEYS:
        for text in (key.shown, key.label, key.description, key.action):
            assert text, key
            assert "|" not in text
            assert "\n" not in text


def test_every_knob_has_a_key() -> None:
    assert {key.knob for key in KEYS} - {None} | {knob for key in KEYS for knob in key.more_knobs} == set(KNOBS)


def test_the_activations_knob_takes_those_of_the_scenario() -> None:
    from typing import get_args

    assert KNOBS["activation"].choices == get_args(Activation)


def test_the_keys_table_has_a_row_a_key() -> None:
    head, rule, *rows = keys_table().splitlines()
    assert head.startswith("| key |")
    assert set(rule) <= set("|-")
    assert len(rows) == len(KEYS)
    for row, key in zip(rows, KEYS, strict=True):
        assert f"`{key.shown}`" in row
        assert key.description in row
        assert row.count("|") == head.count("|") == rule.count("|")


def test_the_readmes_keys_are_those_of_the_table() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count("<!-- keys -->") == text.count("<!-- /keys -->") == 1
    table = text.partition("<!-- keys -->")[2].partition("<!-- /keys -->")[0].strip()
    assert table == keys_table()


def test_the_readme_lists_the_environment_variables_that_a_user_sets() -> None:
    ours = {"HOME", "RUNS_DIR"}  # read in paths.py
    ours |= {name.removeprefix("TUI_DESCENT_") for name in (ENV_NOTIFY, ENV_RESUME, ENV_SNAPSHOT_EVERY)}
    ours |= {name.removeprefix("TUI_DESCENT_") for name in (ENV_SNAPSHOT_SIZE, ENV_UNDO_BUDGET)}
    listed = re.findall(r"^\| `TUI_DESCENT_([A-Z_]+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(ours)
    paths = (README.parent / "tui_descent" / "paths.py").read_text(encoding="utf-8")
    assert set(re.findall(r'"TUI_DESCENT_([A-Z_]+)"', paths)) == {"HOME", "RUNS_DIR"}


def test_help_of_send_has_an_example_of_each_knob(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["send", "--help"]) == 0
    shown = capsys.readouterr().out.partition("Knobs, as for --at")[2].partition("positional arguments")[0]
    turned = [check(parse(text)) for text in shown.split() if "=" in text]
    assert {turn.knob for turn in turned} == set(KNOBS)
