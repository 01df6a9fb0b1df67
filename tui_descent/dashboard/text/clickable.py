"""Words that can be clicked. In borders they are Textual markup, in panels a style: a click acts as a key.

Textual marks a word in a border when the mouse is on it; panels underline theirs.
"""

from __future__ import annotations

from collections.abc import Collection

from rich.style import Style

PRESS = "press"  # the meta data of a style: Textual's name of the key that a click presses


def presses(key: str) -> Style:
    """The style of text on which a click acts as this key."""
    return Style.from_meta({PRESS: key})


def key_word(words: str, shown: str, key: str = "") -> str:
    """Words in a border, followed by their key. `key` is Textual's name of the key, if it is not `shown`."""
    return f"[@click=app.press('{key or shown}')][dim]{words}[/dim] [bold $primary]{shown}[/][/]"


def legend_entry(hidden: Collection[str], line: str, sample: str, words: str = "") -> str:
    """An entry of a chart's legend, in a border: a sample of the line, and words. A click hides the line or shows it
    again.
    """
    words = words or line
    text = f"[strike dim]{words}[/]" if line in hidden else words
    return f"[@click=app.toggle_line('{line}')]{'· ' if line in hidden else sample}{text}[/]"
