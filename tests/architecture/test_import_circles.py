"""Modules of the package import each other without circles.

Every import counts, those inside functions and under `if TYPE_CHECKING:` too: they hide a circle from Python, but not
from a reader.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(text: str, modules: set[str]) -> set[str]:
    """Those of `modules` that a module's text imports, or imports names from."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else str(node.module) for name in inner}
    return found & modules


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of modules that all reach each other."""
    reached = {name: reachable(graph, name) for name in graph}
    in_circle = [name for name in graph if name in reached[name]]
    return {frozenset(other for other in in_circle if other in reached[name] and name in reached[other])
            for name in in_circle}  # fmt: skip


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph[name]
    return found


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"e"}, "e": set(), "f": {"f"}}
    assert circles(graph) == {frozenset("bc"), frozenset("f")}


def test_every_import_counts() -> None:
    text = (
        "import p.a, q\nfrom p import b\nfrom p.c import d\nfrom q import r\n"
        "if TYPE_CHECKING:\n    import p.e\ndef f():\n    import p.g\n"
    )
    assert imported(text, {f"p.{name}" for name in "abcdefgh"} - {"p.d"}) == {f"p.{name}" for name in "abceg"}


def test_no_import_circles() -> None:
    paths = {module_name(path): path for path in (ROOT / "tui_descent").rglob("*.py")}
    assert len(paths) > 100
    graph = {name: imported(path.read_text(encoding="utf-8"), set(paths)) for name, path in paths.items()}
    found = circles(graph)
    assert not found, [sorted(circle) for circle in found]
