"""Keys in the text of a story."""

from __future__ import annotations

import pytest

from tui_descent.dashboard.text.story_keys import keep_together, parts


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("Press r. Then wait.", ["r"]),
        ("Then press ], and the loss jumps.", ["]"]),
        ("a larger rate does not help: press + or ] and see", ["+", "]"]),
        ("Or press a and choose sigmoid (or press n).", ["a", "n"]),
        ("press . for one step; press , to slow down", [".", ","]),
        ("press space", ["space"]),
        ("press r or wait", ["r"]),
        ("The pressure r is high, and r stays. Express r.", []),
    ],
)
def test_the_keys_of_a_sentence(text: str, keys: list[str]) -> None:
    found = list(parts(keep_together(text)))
    assert "".join(part for part, _ in found) == text
    assert [part for part, is_key in found if is_key] == keys


def test_a_key_stays_on_the_line_of_its_verb() -> None:
    assert " " not in keep_together("press + or ]").replace("press", "")
