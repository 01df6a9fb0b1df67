"""The default memory budget for snapshots depends on the free memory of their device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tui_descent.training.undo import memory_budget
from tui_descent.training.undo.memory_budget import FALLBACK_FREE_BYTES, MAX_BUDGET_BYTES, default_budget

CPU = torch.device("cpu")


def set_meminfo(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "meminfo").write_text(text)
    monkeypatch.setattr(memory_budget, "MEMINFO", folder / "meminfo")


def test_cpu_budget_is_a_tenth_of_the_available_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_meminfo("MemTotal: 9999999 kB\nMemFree: 1 kB\nMemAvailable:   1000000 kB\n", tmp_path, monkeypatch)
    assert default_budget(CPU) == 102_400_000


def test_budget_is_at_most_two_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_meminfo("MemAvailable:   1000000000 kB\n", tmp_path, monkeypatch)
    assert default_budget(CPU) == MAX_BUDGET_BYTES == 2_000_000_000


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemAvailable:\n", "MemAvailable: many kB\n"])
def test_budget_is_fixed_if_the_available_memory_is_unknown(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_meminfo(text, tmp_path, monkeypatch)
    assert default_budget(CPU) == FALLBACK_FREE_BYTES // 10 == 256_000_000
    monkeypatch.setattr(memory_budget, "MEMINFO", tmp_path / "none")
    assert default_budget(CPU) == 256_000_000


def test_gpu_budget_is_a_tenth_of_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((device.index + 1) * 10**9, 8 * 10**10))
    assert default_budget(torch.device("cuda", 0)) == 100_000_000
    assert default_budget(torch.device("cuda", 1)) == 200_000_000


def test_metal_budget_is_a_tenth_of_the_recommended_memory_not_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 5 * 10**9)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2 * 10**9)
    assert default_budget(torch.device("mps")) == 300_000_000
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 6 * 10**9)
    assert default_budget(torch.device("mps")) == 0
