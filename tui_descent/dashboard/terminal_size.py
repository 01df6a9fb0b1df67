"""The size of the window that is drawn on."""

from __future__ import annotations

import os
import sys


def forget_exported_size() -> None:
    """Drop COLUMNS and LINES where the terminal tells its own size.

    They hold what a shell or a Python prompt once exported; Textual would take them for the window's size and never
    follow it when it changes.
    """
    try:
        columns, lines = os.get_terminal_size(sys.__stdout__.fileno())  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return
    if columns and lines:
        os.environ.pop("COLUMNS", None)
        os.environ.pop("LINES", None)
