"""What all dashboard tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from textual import _wait
from textual._compositor import Compositor
from textual.css.model import RuleSet
from textual.css.stylesheet import Stylesheet


@pytest.fixture(autouse=True, scope="session")
def short_waits() -> Iterator[None]:
    """After each key Textual waits twice until the process has been idle for 20 ms; here for 4 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_wait, "SLEEP_GRANULARITY", 1 / 250)
        patch.setattr(_wait, "SLEEP_IDLE", 1 / 2500)
        yield


@pytest.fixture(autouse=True, scope="session")
def styles_parsed_once() -> Iterator[None]:
    """All apps of these tests have the same style sheets. Textual would parse them twice for each app."""
    parse, parsed = Stylesheet._parse_rules, dict[Any, list[RuleSet]]()

    def parsed_once(sheet: Stylesheet, *args: Any, **named: Any) -> list[RuleSet]:
        key = args, tuple(named.items()), tuple(sheet._variables.items())
        if key not in parsed:
            parsed[key] = parse(sheet, *args, **named)
        return parsed[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stylesheet, "_parse_rules", parsed_once)
        yield


@pytest.fixture(autouse=True)
def nothing_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Textual writes nothing to the terminal, which would take a third of the time. The tests look at the screen that
    it would write. What it writes is tested in test_screen_writer.py.
    """

    def nothing(compositor: Compositor, **_: Any) -> None:
        compositor._dirty_regions.clear()

    monkeypatch.setattr(Compositor, "render_update", nothing)
