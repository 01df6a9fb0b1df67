"""The help dialog explains every panel that has a help text."""

from __future__ import annotations

import importlib
import pkgutil

from tui_descent.dashboard import panels
from tui_descent.dashboard.dialogs.help import PANELS
from tui_descent.dashboard.panels.panel import Panel


def test_every_panel_with_a_help_text_is_in_the_help() -> None:
    found: set[type[Panel]] = set()
    for module in pkgutil.iter_modules(panels.__path__, f"{panels.__name__}."):
        classes = vars(importlib.import_module(module.name)).values()
        found |= {c for c in classes if isinstance(c, type) and issubclass(c, Panel) and c.help_text}
    assert found == set(PANELS.values())
