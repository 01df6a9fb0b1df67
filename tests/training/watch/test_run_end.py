"""The end of a user loop is reported as it happened."""

from __future__ import annotations

import sys

import pytest
import torch
from fake_keeper import FakeKeeper
from nets import digit_batches, loss_of, mlp

from tui_descent.protocol.events import RunEnded
from tui_descent.training.watch.watch import Watch


def test_loop_that_raises_is_reported_as_failed_and_the_exception_propagates(keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def loop() -> None:
        with Watch(net, optimizer, link=keeper.link) as run:
            loss = loss_of(net, digit_batches(1)[0])
            loss.backward()
            optimizer.step()
            run.step(loss)
            raise RuntimeError("boom\nsecond line")

    with pytest.raises(RuntimeError, match="boom"):
        loop()
    (ended,) = keeper.events(RunEnded)
    assert (ended.status, ended.step, ended.reason) == ("failed", 1, "RuntimeError: boom")


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        (None, "finished", ""),
        (0, "finished", ""),
        (7, "failed", "SystemExit: 7"),
        ("no data", "failed", "SystemExit: no data"),
    ],
)
def test_sys_exit_in_the_loop_ends_the_run_as_its_code_says(
    code: int | str | None, status: str, reason: str, keeper: FakeKeeper
) -> None:
    net = mlp()
    with pytest.raises(SystemExit), Watch(net, torch.optim.SGD(net.parameters(), lr=0.1), link=keeper.link):
        sys.exit(code)
    (ended,) = keeper.events(RunEnded)
    assert (ended.status, ended.reason) == (status, reason)
