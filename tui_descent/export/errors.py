"""What an export raises."""

from __future__ import annotations


class ExportError(ValueError):
    """The run cannot be exported. The message says why, and what is possible instead."""
