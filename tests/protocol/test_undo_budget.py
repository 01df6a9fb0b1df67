"""The memory for snapshots: from the command line, else the environment, else the default."""

from __future__ import annotations

from typing import Any

import pytest

from tui_descent.cli import main
from tui_descent.protocol.launch import ENV_UNDO_BUDGET, Launch, undo_budget


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_UNDO_BUDGET, raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("256MB", 256_000_000), ("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("0", 0), ("12kb", 12_000), ("7B", 7)],
)
def test_sizes(text: str, expected: int) -> None:
    assert undo_budget(text) == expected


@pytest.mark.parametrize("text", ["-1", "lots", "1XB", "1e9", "nan", "MB", "1 2MB", "\x1b[2J"])
def test_what_is_no_size_is_told_with_its_place(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^--undo-budget .*allowed: a size, as in 256MB") as error:
        undo_budget(text)
    assert "\x1b" not in str(error.value)
    monkeypatch.setenv(ENV_UNDO_BUDGET, text)
    with pytest.raises(ValueError, match=r"^TUI_DESCENT_UNDO_BUDGET "):
        undo_budget(None)


def test_the_flag_goes_before_the_environment_before_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert undo_budget(None) is None
    monkeypatch.setenv(ENV_UNDO_BUDGET, "1GB")
    assert undo_budget(None) == 10**9
    assert undo_budget("5MB") == 5_000_000
    assert undo_budget("auto") is None


@pytest.mark.parametrize("args", [["run", "healthy", "--headless"], ["exec", "--headless", "--", "true"]])
def test_it_reaches_the_run(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Launch] = []

    def run(launch: Launch, **_: Any) -> int:
        launched.append(launch)
        return 0

    monkeypatch.setattr("tui_descent.headless.run", run)
    assert main(args) == 0
    monkeypatch.setenv(ENV_UNDO_BUDGET, "3MB")
    assert main(args) == 0
    assert main([*args[:2], "--undo-budget", "12MB", *args[2:]]) == 0
    assert [launch.undo_budget for launch in launched] == [None, 3_000_000, 12_000_000]
