"""Scenario files that are meant to break the parser: one error with its place, short and at once."""

from __future__ import annotations

import time

import pytest
from small_scenario import SMALL

from tui_descent.scenario.toml import ScenarioError, from_text
from tui_descent.scenario.toml_limits import MAX_DEPTH, MAX_PARTS, MAX_WORD, excess
from tui_descent.scenario.validate import MAX_SHOWN

QUICK_S = 10.0  # measured: at most 1.4 s
MAX_CHARACTERS = 5000

HOSTILE = {
    "6,000 hex digits": (SMALL + "[run]\nsteps=0x" + "f" * 6000, "not valid TOML: line 8: a word of 6,002 characters"),
    "5,000 decimal digits": (
        SMALL + "[run]\nsteps=" + "9" * 5000,
        "not valid TOML: line 8: a word of 5,000 characters",
    ),
    "a number of 1,200 bits": (SMALL + "[run]\nsteps=0x" + "f" * 298, "run.steps: found a number of 1,192 bits"),
    "a key of 1,000 parts": ("a" + ".a" * 1000 + "=1\n" + SMALL, "not valid TOML: line 1: a key of more than"),
    "a key of 100,000 parts": (SMALL + "a" + ".a" * 100_000 + "=1", "not valid TOML: line 7: a key of more than"),
    "quoted parts": ('"a"' + '."a"' * 100_000 + "=1\n" + SMALL, "not valid TOML: line 1: a key of more than"),
    "spaced parts": ("a" + " . 'a'" * 50_000 + "=1\n" + SMALL, "not valid TOML: line 1: a key of more than"),
    "a header of 100,000 parts": (SMALL + "[a" + ".a" * 100_000 + "]", "not valid TOML: line 7: a key of more than"),
    "nested arrays": ("x = " + "[" * 100_000 + "]" * 100_000, "not valid TOML: line 1: more than 16 brackets"),
    "nested tables": (SMALL + "x = " + "{a=" * 50_000, "not valid TOML: line 7: more than 16 brackets"),
    "90,000 unknown keys": ("\n".join(f"k{n} = 1" for n in range(90_000)), "k0: unknown key"),
    "unknown keys in a table": (SMALL + "\n".join(f"k{n} = 1" for n in range(90_000)), "model.k0: unknown key"),
    "unknown keys inline": (
        SMALL + 'norm = {name = "rms", ' + ", ".join(f"k{n} = 1" for n in range(50_000)) + "}",
        "model.norm.k0: unknown key",
    ),
    "100,000 empty plans": (SMALL + "[[plan]]\n" * 100_000, "plan: found 100000 values; allowed: 0 to 1000"),
    "20,000 claims": (SMALL + '[[claim]]\nmetric = "loss"\nabove = 1\n' * 20_000, "claim: found 20000 values"),
    "many conditions": (
        SMALL + '[[claim]]\nmetric = "loss"\nabove = 1\ngiven = [' + '"x", ' * 100_000 + "]",
        "claim[0].given: found 100000 values",
    ),
    "1,000 bad plans": (SMALL + "[[plan]]\nat = true\nturn = 3\n" * 1000, "plan[0].at: found true"),
    "a title of 900 kB": (SMALL.replace('"t"', '"' + "a" * 900_000 + '"'), 'title: found "aaaa'),
    "a metric of 500 kB": (SMALL + f'[[claim]]\nmetric = "{"x" * 500_000}"\nabove = 1', "claim[0].metric: found"),
    "an intervention of 500 kB": (SMALL + f'[[plan]]\nat = 1\nturn = "{"x" * 500_000}"', "plan[0].turn: unknown knob"),
    "a device of 500 kB": (SMALL + f'[run]\ndevice = "{"x" * 500_000}"', 'run.device: found "xxx'),
    "a key of 500 kB": (SMALL + "a" * 500_000 + " = 1", "not valid TOML: line 7: a word of 500,000 characters"),
    "a quoted key of 500 kB": (SMALL + '"' + "a " * 250_000 + '" = 1', "model.'a a a"),
    "the same quoted key twice": (SMALL + "x = {" + f'"{"y " * 200_000}" = 1, ' * 2 + "}", "not valid TOML: Duplicate"),
    "a string that does not end": ('title = """' + 'a"\\\\\n' * 150_000, "not valid TOML: Unterminated"),
    "only quotes": ('"' * 900_000, "not valid TOML"),
    "only backslashes": ('x = "' + "\\" * 900_000, "not valid TOML"),
    "only dots": ("." * 900_000, "not valid TOML"),
    "control codes in a key": (SMALL + '"\\u001b[2J" = 1', "model.'\\x1b[2J': unknown key"),
}


@pytest.mark.parametrize(("text", "said"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_one_short_error_with_its_place(text: str, said: str) -> None:
    begun = time.process_time()
    with pytest.raises(ScenarioError) as caught:
        from_text(text, source="f.toml")
    message = str(caught.value)
    assert time.process_time() - begun < QUICK_S
    assert message.startswith(f"f.toml: {said}")
    assert message.isprintable() or message.replace("\n", "").isprintable()
    assert len(message) < MAX_CHARACTERS
    assert len(message.splitlines()) <= MAX_SHOWN + 1


@pytest.mark.parametrize("count", [MAX_SHOWN - 1, MAX_SHOWN, MAX_SHOWN + 1, 12_345])
def test_at_most_twenty_errors_are_shown_and_the_others_counted(count: int) -> None:
    with pytest.raises(ScenarioError) as caught:
        from_text("\n".join(f"k{n} = 1" for n in range(count)) + SMALL, source="f.toml")
    lines = str(caught.value).splitlines()
    assert len(caught.value.problems) == count
    assert len(lines) == min(count, MAX_SHOWN + 1)
    if count > MAX_SHOWN:
        assert lines[-1] == f"f.toml: … and {count - MAX_SHOWN:,} more"
        assert all("unknown key" in line for line in lines[:-1])


@pytest.mark.parametrize(
    "override", ["run.steps=" + "9" * 5000, "a." * 5000 + "b=1", "run.steps=" + "[" * 5000, "run.steps=0x" + "f" * 3000]
)
def test_an_override_has_the_same_limits(override: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        from_text(SMALL, source="f.toml", overrides=[override])
    assert len(str(caught.value)) < 500


def test_the_limits_count_neither_strings_nor_comments() -> None:
    dotted = ".".join("a" * 100)
    for text in (
        f'title = "{dotted}" # {dotted} [[[[[[[[[[[[[[[[[[[[[[[[[',
        f"story = '''\n{dotted} {'[' * 50} {'x' * 2000}\n''' # it's",
        f'story = """\n{dotted} \\""" "" {"{" * 50} """""\nx = 1',
        "lr = [" + "0.1, " * 500 + "]",
        "a = 1\n" * 500 + "[b.c]\nd.e = 1979-05-27T07:32:00.5",
        ".".join("a" * MAX_PARTS) + " = 1",
        "x = " + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "\ny = " + "[" * MAX_DEPTH + "]" * MAX_DEPTH,
        "x = " + "1" * MAX_WORD,
    ):
        assert excess(text) is None


def test_the_line_of_an_excess_is_counted_from_one() -> None:
    assert (excess("a = 1\n\n# x\nb" + ".c" * 20) or "").startswith("line 4: ")
    assert (excess("b" + ".c" * 20) or "").startswith("line 1: ")
