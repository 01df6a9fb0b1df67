"""The trainer's connection: any thread may log, the end always arrives, and foreign files are left alone."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import sys
import tempfile
import threading
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_keeper import FakeKeeper
from nets import digit_batches, loss_of, mlp
from torch import nn

from tui_descent.instruments.deferred import HostCopy
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.codec import decode, from_ring
from tui_descent.protocol.commands import Mark
from tui_descent.protocol.events import AnyEvent, CommandDone, MetricLogged, Noted, RunEnded, RunStarted
from tui_descent.protocol.launch import CLOSED_FILE
from tui_descent.training import keeper_link
from tui_descent.training.watch import metric_log
from tui_descent.training.watch.watch import Watch


def start(keeper: FakeKeeper, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer, Watch]:
    net = mlp(depth=2, width=8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return net, optimizer, Watch(net, optimizer, link=keeper.link, **options)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, run: Watch | None, steps: int) -> list[float]:
    losses = []
    for batch in digit_batches(steps):
        loss = loss_of(net, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if run is not None:
            run.step(loss)
        losses.append(loss.item())
    return losses


def left_in_the_ring(keeper: FakeKeeper) -> list[AnyEvent]:
    return decode(from_ring, keeper.ring.last_events())


def count_dropped(events: list[Any]) -> int:
    """The number in the newest note of dropped metrics."""
    counts = [re.match(r"([\d,]+) metrics? dropped: ", event.text) for event in events if isinstance(event, Noted)]
    return max((int(found[1].replace(",", "")) for found in counts if found), default=0)


@pytest.mark.parametrize("threads", [1, 3, 6])
def test_every_metric_of_several_threads_arrives_or_is_counted_as_dropped(
    keeper: FakeKeeper, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    each, main, events = 3000, 0, []
    net, optimizer, run = start(keeper)
    with run:
        train(net, optimizer, run, 2)

        def log(name: str) -> None:
            for n in range(each):
                run.log(name, n)

        loggers = [threading.Thread(target=log, args=(f"thread {n}",)) for n in range(threads)]
        for logger in loggers:
            logger.start()
        while any(logger.is_alive() for logger in loggers):
            train(net, optimizer, run, 1)
            run.log("main", 0.0)
            main += 1
            events += keeper.events()
        monkeypatch.setattr(keeper_link, "CLOSE_WITHIN_S", 0.05)
    events += [*keeper.events(), *left_in_the_ring(keeper)]
    names = [event.name for event in events if isinstance(event, MetricLogged) and event.name != "main"]
    # Those of the main thread may be among the dropped ones.
    assert threads * each <= len(names) + count_dropped(events) <= threads * each + main
    for n in range(threads):
        values = [event.value for event in events if isinstance(event, MetricLogged) and event.name == f"thread {n}"]
        assert values == sorted(values), "the metrics of one thread arrive in their order"
    assert isinstance(events[-1], RunEnded)


@pytest.mark.parametrize("count", [10, 3_000, 60_000])
def test_keeper_that_does_not_read_learns_of_the_end_and_of_what_was_dropped(
    keeper: FakeKeeper, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, optimizer, run = start(keeper)
    with run:
        train(net, optimizer, run, 3)
        for n in range(count):
            run.log(f"a name of some length, number {n % 50}", n)
        link = keeper.link
        waiting = link._peer.waiting
        assert waiting < keeper_link.MAX_METRIC_BYTES + 10_000
        assert len(link._metrics) <= keeper_link.MAX_METRICS
        monkeypatch.setattr(keeper_link, "CLOSE_WITHIN_S", 0.05)
    left = left_in_the_ring(keeper)
    assert left[-1] == RunEnded(status="finished", step=3)
    arrived = keeper.events()
    metrics = [event for event in arrived if isinstance(event, MetricLogged)]
    assert len(metrics) + count_dropped([*arrived, *left]) == count
    assert count < 60_000 or count_dropped(left) > 0


def test_loop_that_keeps_logging_too_much_is_told_while_it_runs(keeper: FakeKeeper) -> None:
    net, optimizer, run = start(keeper)
    events: list[Any] = []
    with run:
        train(net, optimizer, run, 2)
        for _ in range(4):
            for n in range(40_000):
                run.log("x", n)
            events += keeper.events()
        told = [event.text for event in events if isinstance(event, Noted)]
        assert 1 <= len(told) <= 3
        newest = [event.value for event in events if isinstance(event, MetricLogged)][-1]
        assert newest > 15_000, "the oldest ones are dropped"
        while keeper.events():
            keeper.link.send()


def test_metrics_on_a_gpu_are_bounded_and_not_waited_for(
    keeper: FakeKeeper, deferred_numbers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []

    class NeverReady(HostCopy):
        ready = False  # type: ignore[assignment]

        def values(self) -> list[float]:
            waits.append(1)
            return super().values()

    monkeypatch.setattr(metric_log, "HostCopy", NeverReady)
    net, optimizer, run = start(keeper)
    with run:
        train(net, optimizer, run, 2)
        for n in range(2000):
            run.log("x", torch.tensor(float(n)))
        assert not waits
    events = keeper.events()
    values = [event.value for event in events if isinstance(event, MetricLogged)]
    assert values == [float(n) for n in range(metric_log.MAX_ARRIVING)]
    assert len(values) + count_dropped(events) == 2000


def test_replies_come_before_the_metrics_that_wait(keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    net, optimizer, run = start(keeper)
    with run:
        train(net, optimizer, run, 2)
        for n in range(30_000):
            run.log("x", n)
        monkeypatch.setattr(keeper_link, "CLOSE_WITHIN_S", 0.05)
        keeper.send(Mark(text="now"))
        train(net, optimizer, run, 1)
        arrived: list[Any] = []
        while not any(isinstance(event, CommandDone) for event in arrived):
            keeper.link.send()
            new = keeper.events()
            assert new
            arrived += new
        assert sum(isinstance(event, MetricLogged) for event in arrived) < 15_000


def test_metric_logged_while_another_one_is_sent_is_sent_afterwards(
    keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A signal handler can interrupt a send, and may log.
    net, optimizer, run = start(keeper)
    with run:
        train(net, optimizer, run, 2)
        peer, inside = keeper.link._peer, []
        flush = peer.flush

        def interrupted() -> None:
            if not inside:
                inside.append(1)
                run.log("from the handler", 1.0)
                run.progress.emit(Noted(step=2, text="from the handler"))
            flush()

        monkeypatch.setattr(peer, "flush", interrupted)
        run.progress.emit(Noted(step=2, text="interrupted"))
        assert [event.text for event in keeper.events(Noted)] == ["interrupted", "from the handler"]


def test_metrics_logged_before_the_first_step_follow_the_start(keeper: FakeKeeper) -> None:
    net, optimizer, run = start(keeper)
    run.log("before the with", 1)
    with run:
        run.log("before the first step", 2)
        train(net, optimizer, run, 1)
    run.log("after the end", 3)
    kinds = [event for event in keeper.events() if isinstance(event, RunStarted | MetricLogged)]
    assert isinstance(kinds[0], RunStarted)
    assert [event.name for event in kinds[1:]] == ["before the with", "before the first step"]


class Odd:
    """A value that cannot even be described."""

    def __float__(self) -> float:
        raise OddError

    def __repr__(self) -> str:
        raise OddError


class OddError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


GOOD: list[tuple[Any, float]] = [
    (10**400, float("inf")),
    (-(10**400), float("-inf")),
    (Fraction(10**400, 3), float("inf")),
    (float("-inf"), float("-inf")),
    (True, 1.0),
    (Decimal("0.25"), 0.25),
    (np.float32(0.5), 0.5),
    (np.int64(7), 7.0),
    (np.array(2.5), 2.5),
    (np.array([3.5]), 3.5),
    (np.bool_(True), 1.0),
    (torch.tensor(0.125), 0.125),
    (torch.tensor([4]), 4.0),
    (torch.tensor(True), 1.0),
    (torch.tensor(1.5, dtype=torch.bfloat16, requires_grad=True), 1.5),
    (nn.Parameter(torch.tensor(2.0)), 2.0),
]


def test_every_kind_of_number_is_recorded(keeper: FakeKeeper) -> None:
    net, optimizer, run = start(keeper)
    with run:
        train(net, optimizer, run, 1)
        run.log("nan", float("nan"))
        for n, (value, _) in enumerate(GOOD):
            run.log(f"value {n}", value)
    events = keeper.events()
    nan, *rest = [event for event in events if isinstance(event, MetricLogged)]
    assert nan.value != nan.value
    assert [event.value for event in rest] == [number for _, number in GOOD]
    assert not [event for event in events if isinstance(event, Noted)]


@pytest.mark.parametrize(
    "value",
    [
        None,
        "3.0",
        b"3",
        torch.tensor([1.0, 2.0]),
        torch.empty(0),
        torch.tensor(1j),
        torch.tensor(1.0, device="meta"),
        np.array([1.0, 2.0]),
        np.array("text"),
        1j,
        [1.0],
        {"a": 1.0},
        Decimal("sNaN"),
        Odd(),
        object,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_a_number_is_refused_with_one_note(keeper: FakeKeeper, value: Any) -> None:
    net, optimizer, run = start(keeper)
    with run:
        train(net, optimizer, run, 1)
        for _ in range(3):
            run.log("mine", value)
        run.log("other", 1.0)
    events = keeper.events()
    assert [event.name for event in events if isinstance(event, MetricLogged)] == ["other"]
    notes = [event for event in events if isinstance(event, Noted)]
    assert len(notes) == 1
    assert notes[0].text.startswith("metric mine not recorded")
    assert notes[0].level == "warning"


@pytest.mark.parametrize(
    ("name", "recorded"),
    [
        ("a\udc80b", "a?b"),
        (np.str_("numpy"), "numpy"),
        (3, "3"),
        ("n" * 500, "n" * 200),
        ("", None),
        (Odd(), None),
    ],
    ids=["surrogate", "numpy", "number", "long", "empty", "odd"],
)
def test_any_name_is_recorded_or_refused(keeper: FakeKeeper, name: Any, recorded: str | None) -> None:
    net, optimizer, run = start(keeper)
    with run:
        train(net, optimizer, run, 1)
        run.log(name, 1.0)
    events = keeper.events()
    assert [event.name for event in events if isinstance(event, MetricLogged)] == ([recorded] if recorded else [])
    assert isinstance(events[-1], RunEnded)


def our_files(keeper: FakeKeeper) -> list[int]:
    """The numbers of the link's descriptors: socket, ring, and the one that the ring's mapping keeps."""
    link = keeper.link
    texts = [link._socket, link._ring_fd]
    if link.ring is not None and link.ring._mapping is not None:
        texts.append(link.ring._mapping)
    return [int(text.partition(":")[0]) for text in texts]


@pytest.mark.parametrize("reused_by", ["nothing", "a file", "a socket", "a pipe"])
@pytest.mark.parametrize("closed_at", [0, 1, 20])
def test_loop_whose_script_closes_our_descriptors_goes_on(
    keeper: FakeKeeper, home: Path, closed_at: int, reused_by: str
) -> None:
    plain = mlp(depth=2, width=8)
    expected = train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), None, 40)
    torch.manual_seed(0)
    net, optimizer, run = start(keeper, sampler=Sampler(every=5))
    batches = digit_batches(40)
    found, ours, ends = [], [], []
    with run:
        for n, batch in enumerate(batches):
            if n == closed_at:
                ours = our_files(keeper)
                for number in ours:
                    os.close(number)
                for number in ours:
                    ends.append(reuse(number, reused_by, home))
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
            run.log("x", n)
            found.append(loss.item())
    assert found == expected
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))
    for number, end in zip(ours, ends, strict=True):
        if reused_by != "nothing":
            os.fstat(number)  # is still open
            assert untouched(number, end)
            os.close(number)
            if end >= 0:
                os.close(end)
    assert (keeper.link.launch.path / CLOSED_FILE).exists(), "the keeper learns of it"
    if closed_at:
        assert left_in_the_ring(keeper)[-1] == RunEnded(status="finished", step=40)
        assert len(keeper.steps()) == 40, "the losses are still shown"


def reuse(number: int, by: str, home: Path) -> int:
    """Open a file of the user's at this number. Returns the other end of a socket or pipe."""
    if by == "nothing":
        return -1
    if by == "a file":
        file, end = tempfile.mkstemp(dir=home)[0], -1
        os.write(file, b"precious")
        os.lseek(file, 0, os.SEEK_SET)
    elif by == "a socket":
        one, two = socket.socketpair()
        file, end = one.detach(), two.detach()
    else:
        end, file = os.pipe()
    high = [fcntl.fcntl(each, fcntl.F_DUPFD, 200) if each >= 0 else -1 for each in (file, end)]
    for low in (file, end):
        if low >= 0:
            os.close(low)
    os.dup2(high[0], number)
    os.close(high[0])
    return high[1]


def untouched(number: int, end: int) -> bool:
    if end < 0:
        return os.read(number, 100) == b"precious"
    os.set_blocking(end, False)
    try:
        return os.read(end, 1) == b"nothing may be there"
    except BlockingIOError:
        return True


@pytest.mark.parametrize("leaves_by", ["SystemExit", "its loop's end", "os._exit"])
def test_forked_process_trains_on_and_the_run_stays_with_its_parent(keeper: FakeKeeper, leaves_by: str) -> None:
    net, optimizer, run = start(keeper)
    child = -1
    try:
        with run:
            train(net, optimizer, run, 5)
            if child := os.fork():
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
                train(net, optimizer, run, 3)
            else:
                train(net, optimizer, run, 50)
                run.log("child", 1.0)
                if leaves_by == "SystemExit":
                    sys.exit(7)
                if leaves_by == "os._exit":
                    os._exit(7)
    except BaseException:
        if child == 0:
            os._exit(7)
        raise
    if child == 0:
        os._exit(7)
    events = keeper.events()
    assert [step.step for step in keeper.steps()] == list(range(8))
    assert [event.step for event in events if isinstance(event, RunEnded)] == [8]
    assert not [event for event in events if isinstance(event, MetricLogged)]
