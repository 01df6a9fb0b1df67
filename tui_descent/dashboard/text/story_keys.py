"""Finds the keys that a story names, as in `Press r.` or `press + or ]`, so that they can be shown as keys."""

from __future__ import annotations

import re
from collections.abc import Iterator

_JOINED = "\N{NO-BREAK SPACE}"
_PRESS = re.compile(r"\b([Pp]ress) (\S+?)((?: or \S)?)(?=[.,:;)]*(?:\s|$))")
_KEYS = re.compile(f"(?<=ress{_JOINED})([^{_JOINED}\\s]+?)(?:{_JOINED}or{_JOINED}(\\S))?(?=[.,:;)]*(?:\\s|$))")


def keep_together(text: str) -> str:
    """The text with `press` and its key joined, so that no line break comes between them."""
    return _PRESS.sub(lambda found: found.group().replace(" ", _JOINED), text)


def parts(text: str) -> Iterator[tuple[str, bool]]:
    """Pieces of a text from `keep_together`, with normal blanks again, and whether each is a key."""
    at = 0
    for found in _KEYS.finditer(text):
        for n in (1, 2):
            if found.group(n):
                yield text[at : found.start(n)].replace(_JOINED, " "), False
                yield found.group(n), True
                at = found.end(n)
    yield text[at:].replace(_JOINED, " "), False
