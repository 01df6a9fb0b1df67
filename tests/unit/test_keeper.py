"""The keeper with a trainer played by hand: a real socket, a real ring, and no torch."""

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
    """Whether everything told of step k stands behind all updates before k and before update k; a reading behind it."""
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


def test_every_step_is_told_once_in_order_with_its_values() -> None:
    played = Played()
    played.started()
    played.steps(3000)
    played.ended()
    ended = played.run()
    assert (ended.status, ended.step) == ("finished", 3000)
    assert played.steps_told() == list(range(3000))
    losses = [loss for e in played.events if isinstance(e, StepsCompleted) for loss in e.losses]
    assert losses == [n * 0.5 for n in range(3000)]
    assert played.events[-1] == ended


def test_events_keep_to_the_steps_order_however_late_the_keeper_looks() -> None:
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
    assert played.steps_told() == list(range(745))
    assert sum(isinstance(event, KnobTurned) for event in played.events) == 20
    assert sum(isinstance(event, ReadingsTaken) for event in played.events) == 8
    assert in_order(played.events)


def test_a_script_that_fails_behind_its_run_is_told_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_a_stop_ends_by_a_signal_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
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


def told_apart(events: list[AnyEvent]) -> int:
    """Readings that come while their layers are those that were told last, and have a row for each; others fail."""
    structure, count, found = 0, 2, 0
    for event in events:
        if isinstance(event, LayersChanged):
            structure, count = event.structure, len(event.layers)
        elif isinstance(event, ReadingsTaken):
            assert (event.structure, len(event.ages)) == (structure, count), event.step
            found += 1
    return found


def test_a_reading_comes_while_its_layers_are_those_told_last_however_late_the_keeper_looks() -> None:
    played = Played()
    played.started()
    for _ in range(15):
        played.steps(20, reading_every=10)
        played.surgery()
    played.ended()
    played.run()
    assert told_apart(played.events) == 30
    assert played.keeper.history.layers == played.layers
    assert played.keeper.history.structure == 15


def test_and_while_the_trainer_runs_on_and_changes_its_layers() -> None:
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
    assert told_apart(played.events) > 30


def test_events_keep_to_the_steps_order_while_the_trainer_runs_on() -> None:
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
    assert played.steps_told() == list(range(20_000))
    assert in_order(played.events)


def test_what_was_overwritten_is_told_as_missed() -> None:
    played = Played(ring_steps=64)
    played.started()
    played.steps(200)
    played.ended()
    played.run()
    (missed,) = [event for event in played.events if isinstance(event, StepsMissed)]
    told = played.steps_told()
    assert missed.count == missed.step == 200 - len(told)
    assert told == list(range(missed.step, 200))


def test_a_trainer_that_says_nothing_at_its_end_is_lost() -> None:
    played = Played()
    played.started()
    played.steps(7)
    played.peer.close()
    ended = played.run()
    assert (ended.status, ended.step) == ("lost", 7)
    assert ended.reason == "trainer lost (cause unknown) at step 7"
    assert played.steps_told() == list(range(7))


def test_a_trainer_that_was_never_heard_is_lost_at_step_0() -> None:
    played = Played()
    played.peer.close()
    ended = played.run()
    assert (ended.status, ended.step) == ("lost", 0)


@pytest.mark.parametrize("rubbish", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\2\xff\xfe"])
def test_a_trainer_that_talks_rubbish_is_lost_and_its_steps_are_told(rubbish: bytes) -> None:
    played = Played()

    def play() -> None:
        played.started()
        played.steps(5)
        while not played.ring.flagged():  # the keeper has heard of the start
            select.select([played.peer.socket], [], [], 0.01)
        played.peer.socket.send(rubbish)
        select.select([played.peer.socket], [], [], WITHIN_S)  # until the keeper hangs up

    ended = played.while_it_runs(play)
    assert ended.status == "lost"
    assert played.steps_told() == list(range(5))


def test_a_request_before_the_network_exists_waits_for_it() -> None:
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


def test_a_stop_before_the_trainer_is_there_is_not_forgotten() -> None:
    played = Played()
    got: list[Order] = []

    ended = played.while_it_runs(lambda: got.append(order_of(played)), first=lambda: played.keeper.stop("SIGTERM"))
    assert isinstance(got[0].command, Stop)
    assert (ended.status, ended.reason) == ("stopped", "SIGTERM")


def test_a_request_after_the_end_is_answered_by_the_keeper() -> None:
    played = Played()
    played.ended()
    played.run()
    played.keeper.order(Order(client=3, request=9, source="key", command=Pause()))
    reply = played.events[-1]
    assert isinstance(reply, CommandRejected)
    assert (reply.client, reply.request, reply.reason) == (3, 9, "the run has ended")


def test_a_socket_that_cannot_be_had_is_an_error_before_any_trainer(home: Path) -> None:
    played = Played(attended=True)
    assert played.launch.socket is not None

    def start() -> Trainer:
        raise AssertionError("the trainer must not be started")

    with listen(Path(played.launch.socket)), pytest.raises(ChannelError, match="cannot listen"):
        played.keeper.run(start)
    played.peer.close()
    played._theirs.close()
    played.ring.close()


def test_nothing_is_left_behind() -> None:
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


def test_a_loop_that_is_the_keepers_parent_is_never_signalled(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    raise AssertionError("no order came")


def until(viewer: Peer, kind: type) -> None:
    while viewer.closed is None and select.select([viewer.socket], [], [], WITHIN_S)[0]:
        if any(isinstance(codec.decode(codec.to_viewer, body), kind) for body in viewer.receive()):
            return
    raise AssertionError(f"no {kind.__name__} came")


def test_a_gpu_without_a_driver_is_told_of_once_and_the_memory_still_comes() -> None:
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
    told = [event for event in played.events if isinstance(event, DeviceTaken | Noted)]
    assert [type(event) for event in told] == [Noted, DeviceTaken, DeviceTaken, DeviceTaken]
    assert isinstance(told[0], Noted)
    assert "no readings of the GPU: nvidia-ml-py" in told[0].text
