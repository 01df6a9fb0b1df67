"""A function fits a page, and a module says what it is."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "tui_descent"
MAX_FUNCTION = 60
# Over the limit for a reason that can be said.
LONG_FUNCTIONS: dict[str, str] = {}


def sources() -> dict[str, str]:
    return {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def test_no_function_is_longer_than_a_page() -> None:
    long = {}
    for name, text in sources().items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION:
                    long[f"{name}:{node.name}"] = length
    assert set(long) - set(LONG_FUNCTIONS) == set(), long
    assert set(LONG_FUNCTIONS) <= set(long), "remove exceptions that are no longer needed"


def test_every_file_has_a_docstring() -> None:
    for name, text in sources().items():
        if text.strip():
            assert ast.get_docstring(ast.parse(text)), name
