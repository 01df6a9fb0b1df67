from __future__ import annotations

from pathlib import Path

import pytest
from process_fixtures import no_process_is_left, start

__all__ = ["hostile", "no_process_is_left", "start"]


_SHADOWS = ("random", "torch", "socket", "json", "secrets", "shutil", "tempfile", "msgspec", "platformdirs", "numpy")


@pytest.fixture
def hostile(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: it has files with the names of modules, which leave a mark when they are imported."""
    folder = home / "hostile"
    folder.mkdir()
    for name in _SHADOWS:
        (folder / f"{name}.py").write_text(
            f"open({str(home / 'imported')!r}, 'a').write('{name} ')\nraise SystemExit(9)"
        )
    monkeypatch.chdir(folder)
    return home / "imported"
