"""The keeper with a scripted trainer: a real socket, a real ring, no torch."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from pathlib import Path

import pytest
from keeping import WITHIN_S, Played

from tui_descent.keeper import ending
from tui_descent.keeper.gpu import Gpus
from tui_descent.keeper.trainer import Trainer
from tui_descent.protocol import codec
from tui_descent.protocol.channel import ChannelError, Peer, listen
from tui_descent.protocol.commands import Hello, Order, Pause, Request, Stop
from tui_descent.protocol.events import (
    AnyEvent,
    CommandDone,
    CommandRejected,
    DeviceTaken,
    Evaluated,
    KnobTurned,
    LayersChanged,
    MetricLogged,
    Noted,
    ReadingsTaken,
    StateChanged,
    StepsCompleted,
    StepsMissed,
)
from tui_descent.protocol.launch import LOG_FILE
from tui_descent.protocol.ring import ring_file


def turned(step: int) -> KnobTurned:
    return KnobTurned(
        id=1, client=0, request=0, source="plan", segment=0, step=step, knob="lr", target="all", old="1", new="2"
    )


def in_order(events: list[AnyEvent]) -> bool:
    """Whether every event at step k comes after update k - 1 and before update k, and its readings after update k."""
    made = 0
    for event in events:
        if isinstance(event, StepsCompleted):
            if event.first != made:
                return False
            made += len(event.losses)
        elif isinstance(event, ReadingsTaken):
            if event.step >= made:
                return False
        elif isinstance(event, KnobTurned | Evaluated | MetricLogged | CommandDone) and event.step != made:
            return False
    return True


def test_every_step_is_published_once_in_order_with_its_values() -> None:
    played = Played()
    played.started()
    played.steps(3000)
    played.ended()
    ended = played.run()
    assert (ended.status, ended.step) == ("finished", 3000)
    assert played.published_steps() == list(range(3000))
    losses = [loss for e in played.events if isinstance(e, StepsCompleted) for loss in e.losses]
    assert losses == [n * 0.5 for n in range(3000)]
    assert played.events[-1] == ended


def test_events_are_in_the_order_of_steps_if_the_keeper_reads_late() -> None:
    played = Played()
    played.started()
    for _ in range(20):
        played.steps(37, reading_every=100)
        played.peer.send(StateChanged(state="running"))
        played.peer.send(Evaluated(segment=0, step=played.step, loss=1.0))
        played.peer.send(turned(played.step))
    played.steps(5)
    played.ended()
    played.run()
    assert played.published_steps() == list(range(745))
    assert sum(isinstance(event, KnobTurned) for event in played.events) == 20
    assert sum(isinstance(event, ReadingsTaken) for event in played.events) == 8
    assert in_order(played.events)


def test_script_that_fails_after_its_run_is_reported_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "exit_code", lambda _: 5)
    played = Played(script=True)
    (played.launch.path / LOG_FILE).write_text("one\ntwo\n")
    played.started()
    played.steps(3)
    played.ended()
    ended = played.run()
    assert (ended.status, ended.exit_code, ended.log_tail) == ("finished", 5, ("one", "two"))
    assert ended.reason == "the script then failed with exit code 5"
    assert ended.log_path == str(played.launch.path / LOG_FILE)


def test_script_killed_after_a_stop_request_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    signalled = threading.Event()
    monkeypatch.setattr(ending, "TERMINATE_AFTER_S", 0.0)
    monkeypatch.setattr(Trainer, "signal", lambda *_: signalled.set())
    monkeypatch.setattr(Trainer, "exit_code", lambda _: -signal.SIGTERM)
    played = Played(script=True)

    def play() -> None:
        played.started()
        played.steps(3)
        played.keeper.stop("SIGTERM")
        assert signalled.wait(WITHIN_S)
        played.ended(hang_up=False)

    ended = played.while_it_runs(play)
    assert (ended.status, ended.exit_code) == ("finished", -signal.SIGTERM)
    assert (ended.reason, ended.log_path) == ("", None)


def matched_readings(events: list[AnyEvent]) -> int:
    """The number of readings; each must have the rows of the layers that were published last."""
    structure, count, found = 0, 2, 0
    for event in events:
        if isinstance(event, LayersChanged):
            structure, count = event.structure, len(event.layers)
        elif isinstance(event, ReadingsTaken):
            assert (event.structure, len(event.ages)) == (structure, count), event.step
            found += 1
    return found


def test_readings_match_the_layers_published_last_if_the_keeper_reads_late() -> None:
    played = Played()
    played.started()
    for _ in range(15):
        played.steps(20, reading_every=10)
        played.surgery()
    played.ended()
    played.run()
    assert matched_readings(played.events) == 30
    assert played.keeper.history.layers == played.layers
    assert played.keeper.history.structure == 15


def test_readings_match_the_layers_published_last_while_the_trainer_goes_on() -> None:
    played = Played(ring_steps=1 << 17)

    def play() -> None:
        played.started()
        for _ in range(1000):
            played.steps(20, reading_every=10)
            played.surgery()
            while played.peer.waiting:
                played.peer.flush()
        played.ended()

    played.while_it_runs(play)
    assert matched_readings(played.events) > 30


def test_events_are_in_the_order_of_steps_while_the_trainer_goes_on() -> None:
    played = Played(ring_steps=1 << 17)

    def play() -> None:
        played.started()
        for _ in range(1000):
            played.steps(20, reading_every=100)
            played.peer.send(MetricLogged(segment=0, step=played.step, name="x", value=1.0))
            while played.peer.waiting:
                played.peer.flush()
        played.ended()
        while played.peer.waiting:
            played.peer.flush()

    played.while_it_runs(play)
    assert played.published_steps() == list(range(20_000))
    assert in_order(played.events)


def test_overwritten_steps_are_reported_as_missed() -> None:
    played = Played(ring_steps=64)
    played.started()
    played.steps(200)
    played.ended()
    played.run()
    (missed,) = [event for event in played.events if isinstance(event, StepsMissed)]
    steps = played.published_steps()
    assert missed.count == missed.step == 200 - len(steps)
    assert steps == list(range(missed.step, 200))


def test_trainer_that_exits_without_a_report_is_lost() -> None:
    played = Played()
    played.started()
    played.steps(7)
    played.peer.close()
    ended = played.run()
    assert (ended.status, ended.step) == ("lost", 7)
    assert ended.reason == "trainer lost (cause unknown) at step 7"
    assert played.published_steps() == list(range(7))


def test_trainer_that_exits_before_its_first_event_is_lost_at_step_0() -> None:
    played = Played()
    played.peer.close()
    ended = played.run()
    assert (ended.status, ended.step) == ("lost", 0)


@pytest.mark.parametrize("garbage", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\2\xff\xfe"])
def test_trainer_that_sends_garbage_is_lost_and_its_steps_are_published(garbage: bytes) -> None:
    played = Played()

    def play() -> None:
        played.started()
        played.steps(5)
        while not played.ring.flagged():  # the keeper has read the start event
            select.select([played.peer.socket], [], [], 0.01)
        played.peer.socket.send(garbage)
        select.select([played.peer.socket], [], [], WITHIN_S)  # until the keeper hangs up

    ended = played.while_it_runs(play)
    assert ended.status == "lost"
    assert played.published_steps() == list(range(5))


def test_request_before_the_run_has_started_reaches_the_trainer() -> None:
    played = Played(attended=True)
    got: list[Order] = []

    def play() -> None:
        viewer = attach(played)
        viewer.send(Request(request=4, command=Pause(), source="send"))
        got.append(order_of(played))
        played.peer.send(CommandDone(client=1, request=4, segment=0, step=0, what="paused"))
        until(viewer, CommandDone)
        viewer.close()
        assert isinstance(order_of(played).command, Stop)

    ended = played.while_it_runs(play)
    assert got == [Order(client=1, request=4, source="send", command=Pause())]
    assert (ended.status, ended.reason) == ("stopped", "the last viewer left")


def test_stop_before_the_trainer_is_started_reaches_it() -> None:
    played = Played()
    got: list[Order] = []

    ended = played.while_it_runs(lambda: got.append(order_of(played)), first=lambda: played.keeper.stop("SIGTERM"))
    assert isinstance(got[0].command, Stop)
    assert (ended.status, ended.reason) == ("stopped", "SIGTERM")


def test_request_after_the_end_is_rejected_by_the_keeper() -> None:
    played = Played()
    played.ended()
    played.run()
    played.keeper.order(Order(client=3, request=9, source="key", command=Pause()))
    reply = played.events[-1]
    assert isinstance(reply, CommandRejected)
    assert (reply.client, reply.request, reply.reason) == (3, 9, "the run has ended")


def test_no_trainer_is_started_if_the_socket_cannot_be_opened(home: Path) -> None:
    played = Played(attended=True)
    assert played.launch.socket is not None

    def start() -> Trainer:
        raise AssertionError("the trainer must not be started")

    with listen(Path(played.launch.socket)), pytest.raises(ChannelError, match="cannot listen"):
        played.keeper.run(start)
    played.peer.close()
    played._theirs.close()
    played.ring.close()


def test_socket_and_file_descriptors_are_cleaned_up() -> None:
    played = Played(attended=True)
    before = set(os.listdir("/dev/fd"))

    def play() -> None:
        played.started()
        attach(played).close()
        played.ended()

    played.while_it_runs(play)
    assert played.launch.socket is not None
    assert not Path(played.launch.socket).exists()
    assert len(set(os.listdir("/dev/fd")) - before) == 0


def test_user_loop_is_never_signalled(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pid, number: killed.append(number))
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(number))
    theirs, ours = socket.socketpair()
    trainer = Trainer.adopt(theirs, ring_file(home), parent=os.getppid())
    trainer.signal(signal.SIGKILL)
    trainer.close()
    ours.close()
    assert killed == []


def attach(played: Played) -> Peer:
    assert played.listening.wait(WITHIN_S)
    assert played.launch.socket is not None
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(played.launch.socket)
    viewer = Peer(sock, limit=codec.MAX_TO_VIEWER)
    viewer.send(Hello(version=codec.VERSION))
    return viewer


def order_of(played: Played) -> Order:
    while select.select([played.peer.socket], [], [], WITHIN_S)[0]:
        for body in played.peer.receive():
            return codec.decode(codec.to_trainer, body)
        assert played.peer.closed is None, played.peer.closed
    raise AssertionError("no request came")


def until(viewer: Peer, kind: type) -> None:
    while viewer.closed is None and select.select([viewer.socket], [], [], WITHIN_S)[0]:
        if any(isinstance(codec.decode(codec.to_viewer, body), kind) for body in viewer.receive()):
            return
    raise AssertionError(f"no {kind.__name__} came")


def test_missing_gpu_driver_is_noted_once_and_memory_is_still_published() -> None:
    played = Played()

    def missing() -> None:
        raise ImportError

    played.keeper._gpus = Gpus(missing)

    def play() -> None:
        played.started()
        for _ in range(3):
            played.peer.send(DeviceTaken(segment=0, step=0, device="cuda:0", allocated_bytes=7))
        played.ended()

    played.while_it_runs(play)
    published = [event for event in played.events if isinstance(event, DeviceTaken | Noted)]
    assert [type(event) for event in published] == [Noted, DeviceTaken, DeviceTaken, DeviceTaken]
    assert isinstance(published[0], Noted)
    assert "no readings of the GPU: nvidia-ml-py" in published[0].text
