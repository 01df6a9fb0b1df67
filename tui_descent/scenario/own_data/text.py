"""A text file as a sequence of characters, each from a set of at most `SYMBOLS`."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache
from pathlib import Path

import msgspec

from tui_descent.scenario.own_data.files import SAMPLES, read_text, shown, version
from tui_descent.scenario.spec import SYMBOLS, OwnTextData

MAX_BYTES = 10_000_000
MOST_LEFT_OUT = 0.05  # fraction of the characters
MIN_CONTEXTS = 12  # the held-out tenth must have room for a window


class Text(msgspec.Struct, frozen=True):
    """The characters of a text, without those that are not in `symbols`. `symbols` begins with the line feed."""

    characters: str
    symbols: str


def read(data: OwnTextData, context: int) -> Text:
    """Read the text file. The line feed and the most frequent other characters make up the symbols.

    Tabs become blanks. Characters that are not printable in one column of a terminal are left out, and so are rare
    ones if there are too many different ones. Raises `ValueError` if that is a considerable part of the text, or if the
    text is too short for windows of `context` characters.
    """
    path = Path(data.path) if data.path else SAMPLES / "sonnets.txt"
    text = _read(path, version(path))
    if len(text.characters) < (least := MIN_CONTEXTS * (context + 1)):
        found = f"{len(text.characters):,} characters"
        raise ValueError(f"{shown(path)} has {found}; a context of {context} needs at least {least:,}")
    return text


@lru_cache(maxsize=1)
def _read(path: Path, version: object) -> Text:
    raw = unicodedata.normalize("NFC", read_text(path, MAX_BYTES)).replace("\t", " ")
    counts = Counter(raw)
    fit = [character for character, _ in counts.most_common() if character != "\n" and _fits(character)]
    symbols = "\n" + "".join(sorted(fit[: SYMBOLS - 1]))
    kept = sum(counts[character] for character in symbols)
    left_out = 1 - kept / len(raw) if raw else 0.0
    if left_out > MOST_LEFT_OUT:
        if len(fit) >= SYMBOLS:
            what = f"has {len(fit):,} different characters, and those beyond the {SYMBOLS} most frequent"
        else:
            what = "has characters that do not fit into one column of a terminal; they"
        raise ValueError(f"{shown(path)} {what} are {left_out:.0%} of the text; allowed: {MOST_LEFT_OUT:.0%}")
    known = set(symbols)
    characters = raw if kept == len(raw) else "".join(character for character in raw if character in known)
    return Text(characters, symbols)


def _fits(character: str) -> bool:
    """Whether a character is printed in exactly one column, from left to right."""
    return (
        character.isprintable()
        and unicodedata.east_asian_width(character) not in ("W", "F")
        and not unicodedata.combining(character)
        and unicodedata.bidirectional(character) not in ("R", "AL", "AN")
    )
