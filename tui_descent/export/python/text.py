"""Helpers to write Python source."""

from __future__ import annotations

import json
import textwrap


def block(text: str, *, indent: int = 0) -> str:
    """A piece of source without the indentation that it has in our own source, indented by so many spaces."""
    return textwrap.indent(textwrap.dedent(text).strip("\n"), " " * indent)


def joined(*pieces: str, blank_lines: int = 0) -> str:
    """The pieces that are not empty, with blank lines between them."""
    return ("\n" * (blank_lines + 1)).join(piece for piece in pieces if piece)


def plain(text: str) -> str:
    """A text that can stand in a docstring or a comment and cannot end it: a name may come from somebody else."""
    text = text.replace("\\", "/").replace('"', "'")
    return "".join(c if c.isprintable() else " " for c in text)


def quoted(text: str) -> str:
    """A string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)  # every escape of JSON is one of Python, too


def times(factor: float) -> str:
    """The end of a product: ` * 0.5`; empty for a factor of 1, which changes nothing."""
    return "" if factor == 1.0 else f" * {factor!r}"
