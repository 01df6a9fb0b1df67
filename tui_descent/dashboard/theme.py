"""The theme for Textual's own widgets: dialogs, lists, input fields, the command palette."""

from __future__ import annotations

from textual.theme import Theme

from tui_descent.dashboard import colours

THEME = Theme(
    name="descent",
    primary="#e1cc55",
    secondary="#7d8590",
    accent="#e1cc55",
    foreground="#c9ced6",
    background=colours.BACKGROUND,
    surface="#161a21",
    panel="#1c212a",
    success="#57ab5f",
    warning="#d07f30",
    error="#f0625d",
    dark=True,
)
