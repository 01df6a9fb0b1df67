"""Find the shipped scenarios. In a checkout they are beside the package, in a wheel inside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tui_descent.scenario.spec import Scenario
from tui_descent.scenario.toml import ScenarioError, read
from tui_descent.scenario.validate import Problem, nearest

PACKAGE = Path(__file__).resolve().parent.parent
# A teaching order: first what a gradient step is, then a run that works, then what can go wrong.
ORDER = (
    "first-descent", "healthy", "vanishing", "exploding", "dead-relu", "plateau", "narrow-valley", "saddle",
    "monkey-saddle", "saddles-not-minima", "saddle-to-saddle", "too-hot", "edge-of-stability", "transformer",
)  # fmt: skip

START = "vanishing"  # the best first minute


def folder() -> Path:
    inside = PACKAGE / "presets"
    return inside if inside.is_dir() else PACKAGE.parent / "presets"


def names() -> list[str]:
    """All presets in the order of `ORDER`; presets that are not in it come last."""
    found = {path.stem for path in folder().glob("*.toml")}
    return [n for n in ORDER if n in found] + sorted(found - set(ORDER))


def path_of(name: str) -> Path:
    """The preset's file. If there is none, raises `ScenarioError`, which suggests the closest name."""
    if name in (known := names()):
        return folder() / f"{name}.toml"
    text = f"no such preset or file; presets: {', '.join(known)}{nearest(name, known)}"
    raise ScenarioError(ascii(name[:80]), [Problem("", text)])


def find(name_or_file: str, *, overrides: Iterable[str] = ()) -> tuple[str, Scenario]:
    """Read a preset or a `.toml` file; returns its short name and the scenario. Raises `ScenarioError`."""
    if name_or_file.endswith(".toml") or "/" in name_or_file:
        path = Path(name_or_file)
        return path.stem, read(path, overrides=overrides)
    return name_or_file, read(path_of(name_or_file), overrides=overrides)


def still(name: str) -> str:
    """A small picture of the preset's demonstration, as text; empty if there is none. `docs/stills.py` makes them."""
    path = folder() / "stills" / f"{name}.txt"
    return path.read_text(encoding="utf-8") if path.is_file() else ""
