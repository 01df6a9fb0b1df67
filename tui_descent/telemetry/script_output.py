"""What a script has printed, as the lines that a terminal would show: progress bars in their last state, without
control codes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# How much of the end of a file is shown, about a thousand lines. If there are fewer than FEW_LINES, because the end is
# full of states of progress bars, the beginning of the file is shown too.
TAIL_BYTES = 1 << 16
FEW_LINES, HEAD_BYTES = 200, 1 << 14
LEFT_OUT = "[…]"
MAX_COLUMNS = 2000
TAB = 8

# What a text consists of: control sequences, other escapes, control characters, and plain text.
_PARTS = re.compile(
    r"(?:\x1b\[|\x9b)(?P<parameters>[0-9;:<=>?]*)[ -/]*(?P<sequence>[@-~])"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?|\x9b"
    r"|(?P<control>[\x00-\x1f\x7f-\x9f])"
    r"|(?P<text>[^\x00-\x1f\x7f-\x9f]+)"
)


def shown_lines(text: str) -> list[str]:
    """The lines that a terminal shows after this text was printed: the last states of progress bars.

    It follows carriage returns, backspaces, tabs, and the control sequences that move the cursor or erase. All other
    control codes have no effect.
    """
    lines, row, column = [""], 0, 0
    for part in _PARTS.finditer(text):
        if (plain := part["text"]) is not None:
            plain = plain[: max(0, MAX_COLUMNS - column)]
            line = lines[row]
            lines[row] = line[:column].ljust(column) + plain + line[column + len(plain) :]
            column += len(plain)
        elif (control := part["control"]) is not None:
            if control in "\n\v\f":
                row, column = row + 1, 0
                if row == len(lines):
                    lines.append("")
            elif control == "\r":
                column = 0
            elif control == "\b":
                column = max(0, column - 1)
            elif control == "\t":
                column = min(MAX_COLUMNS, column + TAB - column % TAB)
        elif (sequence := part["sequence"]) is not None:
            row, column = _control_sequence(lines, row, column, sequence, part["parameters"])
    return [line.rstrip() for line in lines]


def _control_sequence(lines: list[str], row: int, column: int, sequence: str, parameters: str) -> tuple[int, int]:
    """Apply one control sequence. Returns the cursor's new position."""
    first = parameters.split(";")[0]
    count = int(first) if first.isascii() and first.isdecimal() and len(first) < 5 else 0
    step = max(1, count)
    match sequence:
        case "A" | "F":
            row = max(0, row - step)
        case "B" | "E":
            row = min(len(lines) - 1, row + step)
        case "C":
            column = min(MAX_COLUMNS, column + step)
        case "D":
            column = max(0, column - step)
        case "G":
            column = min(MAX_COLUMNS, step - 1)
        case "K":
            lines[row] = "" if count == 2 else " " * column + lines[row][column:] if count == 1 else lines[row][:column]
        case "J" if count == 0:
            lines[row] = lines[row][:column]
            del lines[row + 1 :]
        case "M":  # remove this line and the following ones
            del lines[row + 1 : row + step]
            lines[row] = ""
    return row, 0 if sequence in "EFM" else column


def without_overwritten(data: bytes) -> bytes:
    """Printed bytes without the states of progress bars that were overwritten later."""
    return b"\n".join(_last_state(line) if b"\r" in line else line for line in data.split(b"\n"))


def _last_state(line: bytes) -> bytes:
    text = line.rstrip(b"\r")
    return line[text.rfind(b"\r") + 1 :]


def last_lines(path: Path, count: int) -> tuple[str, ...]:
    """The last lines that were printed to a file, without blank lines at the end. Empty if it cannot be read."""
    return tuple(_shown_end(_read_end(path))[-count:])


class ScriptOutput:
    """The part of a script's output that is shown: the end of the file. If a progress bar fills the end, its beginning
    is shown too.

    The file is read again only after it has changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._lines: tuple[str, ...] = ()

    def lines(self) -> tuple[str, ...]:
        """The newest lines. The same object as before if nothing was printed since."""
        try:
            found = os.stat(self.path)
        except OSError:
            return self._lines
        seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        if seen != self._seen:
            lines = _shown_end(_read_end(self.path))
            if found.st_size > TAIL_BYTES and len(lines) < FEW_LINES and (head := _shown_head(self.path)):
                lines = [*head, LEFT_OUT, *lines]
            self._seen, self._lines = seen, tuple(lines)
        return self._lines


def _read_end(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            data = file.read(TAIL_BYTES)
    except OSError:
        return b""
    if size <= TAIL_BYTES:
        return data
    # The tail begins inside a line, which is left out. A line that fills the whole tail is shown without its beginning.
    # A progress bar that prints \n only at its end is one line with many states.
    _, *rest = re.split(rb"[\r\n]", data, maxsplit=1)
    return rest[0] if rest and rest[0] else data


def _shown_head(path: Path) -> list[str]:
    """The complete lines at the beginning of a file."""
    try:
        with path.open("rb") as file:
            complete, _, _ = file.read(HEAD_BYTES).rpartition(b"\n")
    except OSError:
        return []
    return _shown_end(complete)


def _shown_end(data: bytes) -> list[str]:
    lines = shown_lines(data.decode("utf-8", errors="replace"))
    while lines and not lines[-1]:
        lines.pop()
    return lines
