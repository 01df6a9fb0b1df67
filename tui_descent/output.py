"""The standard streams, which may be closed, full, or unable to show every character.

A character that the stream's encoding lacks is replaced by ASCII: `→` by `->` in messages, and by one character of the
same width on the dashboard, where columns must stay aligned.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
import unicodedata
from typing import TextIO

from tui_descent.scenario.validate import escape_controls

TEXT, CELLS = "tui-descent-text", "tui-descent-cells"  # names of the two ways to replace characters
_STREAMS = ("stdin", "stdout", "stderr")
# One character each; `_LONGER` has what messages use instead.
_CELL = dict(
    zip(
        "°±²µ·¹¼½×÷ΔΣΦαβγδεηθκλμπστφᵀᵗᶻ–—‖•…′⁻₁₂⅛←↵↑→↓↖↗↘↙∂∇−√∞≈≠≤≥⊙▀▐▲▸▾◀○●◆■✚✕✓✗⁄▴▼★",
        "o~2u-144x/DSFabgdenqklmpstfTtz--|*.'-128<<^>v`/.,dv-V8~!<>o\"|^>v<o*#*+xvx/^v*",
        strict=True,
    )
)
_LONGER = {
    "±": "+-", "²": "^2", "¹": "^1", "¼": "1/4", "½": "1/2", "⅛": "1/8", "‖": "||", "…": "...", "←": "<-", "→": "->",
    "√": "sqrt", "∞": "inf", "≠": "!=", "≤": "<=", "≥": ">=", "·": "-",
}  # fmt: skip


def prepare() -> list[str]:
    """Open `/dev/null` for each standard stream that is closed, and return the names of these streams.

    Otherwise the next file or socket to be opened would get the stream's number.
    """
    closed = [name for name in _STREAMS if getattr(sys, name) is None]
    for name in closed:
        number = _STREAMS.index(name)
        _point_at_null(number)
        stream = open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    for printed in (sys.stdout, sys.stderr):
        if isinstance(printed, io.TextIOWrapper):
            printed.reconfigure(errors=TEXT)
            with contextlib.suppress(OSError):  # another program may have made it non-blocking: writes could then fail
                os.set_blocking(printed.fileno(), True)
    return closed


def say(*lines: str) -> None:
    """Print messages on stderr, with control characters escaped. If stderr cannot be written to, they are lost."""
    draw("".join(escape_controls(line) + "\n" for line in lines))


def draw(text: str) -> None:
    """Write text to stderr as it is. If stderr cannot be written to, it is lost."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def flush() -> OSError | None:
    """Write what is buffered for stdout. On an error it is lost, and the error is returned."""
    try:
        sys.stdout.flush()
    except OSError as error:
        discard(sys.stdout)
        return error
    return None


def discard(stream: TextIO) -> None:
    """Send everything that is still written to this stream to `/dev/null`."""
    with contextlib.suppress(OSError, ValueError):  # in tests, a stream may have no descriptor
        _point_at_null(stream.fileno())
        stream.flush()


def is_utf8(stream: TextIO) -> bool:
    """Whether the stream's encoding has every character."""
    with contextlib.suppress(LookupError):
        return codecs.lookup(stream.encoding or "ascii").name.startswith("utf")
    return False


def draw_on_stdout() -> None:
    """Let Textual draw on stdout, which is the terminal. It draws on stderr by default, which may be redirected."""
    if sys.__stderr__ is not None and sys.__stderr__.errors == CELLS:
        return
    encoding = sys.stdout.encoding
    sys.__stderr__ = open(os.dup(sys.stdout.fileno()), "w", encoding=encoding, errors=CELLS)  # type: ignore[misc]  # noqa: SIM115


def _point_at_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
    if null == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(null, number)
        os.close(null)


def _replace_in_text(error: UnicodeError) -> tuple[str, int]:
    return "".join(_LONGER.get(c) or _cell(c) for c in _missing(error)), error.end  # type: ignore[attr-defined]


def _replace_in_cells(error: UnicodeError) -> tuple[str, int]:
    return "".join(map(_cell, _missing(error))), error.end  # type: ignore[attr-defined]


def _missing(error: UnicodeError) -> str:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return error.object[error.start : error.end]


def _cell(character: str) -> str:
    """ASCII of the same width as the character on a terminal."""
    if (found := _CELL.get(character)) is not None:
        return found
    code = ord(character)
    if 0x2800 <= code < 0x2900:  # braille: are there dots in the upper half, in the lower half?
        return " '.:"[bool(code & 0x1B) + 2 * bool(code & 0xE4)]
    if 0x2500 <= code < 0x2580:  # lines of boxes
        return "-" if character in "─━┄┅┈┉╌╍═╴╶╸╺" else "|" if character in "│┃┆┇┊┋╎╏║╵╷╹╻" else "+"
    if 0x2580 <= code < 0x25A0:  # blocks
        return "." if character in "▁▂░" else "|" if character in "▍▎▏▕" else "#"
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    if unicodedata.combining(character):
        return ""
    width = 2 if unicodedata.east_asian_width(character) in "WF" else 1
    return plain[:width] if len(plain) >= width else "?" * width


codecs.register_error(TEXT, _replace_in_text)
codecs.register_error(CELLS, _replace_in_cells)


def on_a_terminal() -> bool:
    """Whether stdin and stdout are a terminal that can show the dashboard."""
    streams = (sys.stdin, sys.stdout)
    return all(stream is not None and stream.isatty() for stream in streams) and (
        os.environ.get("TERM", "") not in ("", "dumb")
    )
