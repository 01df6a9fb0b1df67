"""Foreign text made harmless: run names, reasons and log lines may hold anything, also codes that steer a terminal."""

from __future__ import annotations

import re
import unicodedata

# CSI, OSC and two-character escapes, with their payload, so that no `[31m` is left standing in the text.
_ESCAPES = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|(?:\x1b\[|\x9b)[0-9;:<=>?]*[ -/]*[@-~]?|\x1b[ -~]?")
# Control, format (bidi marks, zero width), surrogate, private use, unassigned: nothing that a reader could see.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})


def plain(text: str, limit: int = 400) -> str:
    """One line of visible characters, at most `limit` of them."""
    text = _ESCAPES.sub("", text[: limit * 8])
    kept = [" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c) not in _UNSEEN]
    return "".join(kept)[:limit].rstrip()


def middle(text: str, width: int) -> str:
    """`text` in at most `width` characters, shortened in the middle; of a module path the tail tells more."""
    if len(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    head = max(0, (width - 1) // 3)
    return text[:head] + "…" + text[len(text) - (width - 1 - head) :]
