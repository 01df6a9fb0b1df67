"""Make text from outside safe to draw: run names, reasons and log lines may contain terminal control codes."""

from __future__ import annotations

import re
import unicodedata

# Matches CSI, OSC and two-character escapes including their parameters, so no `[31m` remains in the text.
_ESCAPES = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|(?:\x1b\[|\x9b)[0-9;:<=>?]*[ -/]*[@-~]?|\x1b[ -~]?")
# Categories of invisible characters: control, format (bidi, zero width), surrogate, private use, unassigned.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})


def safe(text: str, limit: int = 400) -> str:
    """One line of visible characters, at most `limit` of them."""
    text = _ESCAPES.sub("", text[: limit * 8])
    kept = [" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c) not in _INVISIBLE]
    return "".join(kept)[:limit].rstrip()


def cut(text: str, width: int) -> str:
    """The beginning of `text`, in at most `width` characters; an ellipsis shows that the rest is missing."""
    return text if len(text) <= width else text[: max(0, width - 1)].rstrip() + "…"


def shorten(text: str, width: int) -> str:
    """Cut `text` in the middle to at most `width` characters. This keeps the end of a module path, which is the most
    specific part.
    """
    if len(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    head = max(0, (width - 1) // 3)
    return text[:head] + "…" + text[len(text) - (width - 1 - head) :]
