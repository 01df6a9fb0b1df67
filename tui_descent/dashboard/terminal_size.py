"""Make Textual use the terminal's real size."""

from __future__ import annotations

import os
import sys


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
