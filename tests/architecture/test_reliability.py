"""The tests that `docs/reliability.md` names exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_row_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| what happens")]
    named = [re.findall(r"`([\w/]*test_\w+\.py)`", row) for row in rows]
    assert len(rows) > 30
    assert [row for row, names in zip(rows, named, strict=True) if not names] == []
    assert {name for names in named for name in names if not (ROOT / "tests" / name).exists()} == set()
