"""Make Textual use the terminal's real size, and give a script the size of the part in which its output is shown."""

from __future__ import annotations

import os
import sys

MIN_WIDTH, MIN_HEIGHT = 60, 20  # the least columns and rows of a dashboard
TALL_ROWS = 30  # from this height on, the views have a row of tabs


def forget_exported_size() -> None:
    """Remove COLUMNS and LINES from the environment when the terminal reports its size.

    A shell may have exported these values long ago. Textual would use them and ignore later resizes.
    """
    try:
        columns, lines = os.get_terminal_size(sys.__stdout__.fileno())  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return
    if columns and lines:
        os.environ.pop("COLUMNS", None)
        os.environ.pop("LINES", None)


def script_size(columns: int, rows: int) -> tuple[int, int]:
    """Columns and rows for a script's own terminal, if the dashboard has `columns` and `rows`.

    It is the size of the output panel: without the status line, the tabs, the footer and the panel's border.
    """
    return max(20, columns - 2), max(5, rows - (7 if rows >= TALL_ROWS else 6))
