"""Limits on TOML text, checked before it is parsed. Beyond them, Python's parser takes quadratic time or recurses too
deeply.
"""

from __future__ import annotations

import re

MAX_PARTS = 16  # of a dotted key
MAX_DEPTH = 16  # of brackets
MAX_WORD = 300  # characters of a number or a bare key

# Possessive quantifiers (`*+`) keep the search linear.
_TOKEN = re.compile(
    r'''(?P<string>"""(?:[^"\\]++|\\.|"{1,2}(?!"))*+"{3,5}|\'\'\'(?:[^\']++|\'{1,2}(?!\'))*+\'{3,5}'''
    r"""|"(?:[^"\\\n]++|\\.)*+"|'[^'\n]*+')"""
    r"|(?P<comment>\#[^\n]*+)|(?P<word>[\w+-]++)|(?P<dot>\.)|(?P<open>[\[{])|(?P<close>[\]}])|(?P<space>[ \t]++)"
    r"|(?P<unclosed>[\x22'])|.",
    re.DOTALL,
)


def excess(text: str) -> str | None:
    """The first thing that exceeds a limit, with its line; None if there is none."""
    parts = depth = 0
    after_dot = False
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "unclosed":  # the parser reports it; searching on would be quadratic
            return None
        if kind in ("string", "word"):
            parts = parts + 1 if after_dot else 1
            if kind == "word" and len(token[0]) > MAX_WORD:
                return _at(text, token, f"a word of {len(token[0]):,} characters; allowed: at most {MAX_WORD}")
            if parts == MAX_PARTS + 1:
                return _at(text, token, f"a key of more than {MAX_PARTS} parts")
        elif kind == "open":
            depth += 1
            if depth > MAX_DEPTH:
                return _at(text, token, f"more than {MAX_DEPTH} brackets inside each other")
        elif kind == "close":
            depth = max(0, depth - 1)
        if kind != "space":
            after_dot = kind == "dot"
    return None


def _at(text: str, token: re.Match[str], what: str) -> str:
    return f"line {text.count(chr(10), 0, token.start()) + 1}: {what}"
