"""The memory that training takes, as the trainer reports it."""

from __future__ import annotations

import mmap
import time
from pathlib import Path

import pytest
import torch
from fake_keeper import FakeKeeper
from nets import digit_batches, loss_of, mlp

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import DeviceTaken
from tui_descent.training import device_memory as memory
from tui_descent.training.watch.watch import Watch


def test_memory_is_reported_at_once_and_then_at_intervals(keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    monkeypatch.setattr(memory, "EVERY_S", 0.2)
    start_s, steps = time.monotonic(), 0
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=0)) as run:
        while time.monotonic() < start_s + 1.5:
            loss_of(net, digit_batches(1)[0]).backward()
            optimizer.step()
            run.step(1.0)
            steps += 1
    taken = keeper.events(DeviceTaken)
    most = 2 + (time.monotonic() - start_s) / 0.2
    assert 2 <= len(taken) <= most
    assert steps > len(taken)
    for event in taken:
        assert event.device == "cpu"
        assert event.allocated_bytes is None or 10e6 < event.allocated_bytes < 100e9
        assert event.allocated_bytes is None or event.peak_bytes >= event.allocated_bytes


def test_resident_memory_grows_with_what_is_held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before, _ = memory.resident_bytes()
    # mmap, since malloc may reuse memory that earlier tests have freed.
    block = mmap.mmap(-1, 60_000_000)
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    after, greatest = memory.resident_bytes()
    if before is not None and after is not None:
        assert 50e6 < after - before < 90e6
    assert greatest is not None
    assert greatest > len(block)
    monkeypatch.setattr(memory, "STATM", tmp_path / "none")
    now, peak = memory.resident_bytes()
    assert now is None
    assert peak is not None
    assert peak > len(block)
