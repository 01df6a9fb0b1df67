"""Minimal scenarios as TOML, and helpers that read one: `make` gives the scenario, `problems` the errors by place."""

from __future__ import annotations

import pytest

from tui_descent.scenario.spec import Scenario
from tui_descent.scenario.toml import ScenarioError, from_text

SMALL = """
title = "t"
[data]
name = "digits"
[model]
name = "mlp"
"""
CONV = SMALL.replace("mlp", "conv")
TEXT = SMALL.replace("digits", "text").replace("mlp", "transformer")
SURFACE = 'title = "t"\n[model]\nname = "surface"\n'


def make(text: str, *overrides: str) -> Scenario:
    return from_text(text, source="my.toml", overrides=overrides)


def problems(text: str, *overrides: str) -> dict[str, str]:
    with pytest.raises(ScenarioError) as caught:
        make(text, *overrides)
    error = caught.value
    assert str(error).splitlines() == [f"{error.source}: {p}" for p in error.problems]
    assert len({p.place for p in error.problems}) == len(error.problems)
    return {p.place: p.text for p in error.problems}
