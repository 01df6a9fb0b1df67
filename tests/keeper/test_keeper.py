"""The keeper with a scripted trainer: a real socket, a real ring, no torch."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from factories import turned
from scripted_trainer import WITHIN_S, ScriptedTrainer

from tui_descent.keeper import ending
from tui_descent.keeper import keeper as keeper_module
from tui_descent.keeper.gpu import Gpus
from tui_descent.keeper.trainer import Trainer
from tui_descent.protocol import codec
from tui_descent.protocol.channel import ChannelError, Peer, listen
from tui_descent.protocol.codec import encode
from tui_descent.protocol.commands import ClientRequest, Hello, Pause, Request, Stop
from tui_descent.protocol.events import (
    AnyEvent,
    CommandDone,
    CommandRejected,
    DeviceTaken,
    Diagnosed,
    Evaluated,
    HistorySent,
    KnobTurned,
    LayersChanged,
    MetricLogged,
    Noted,
    ReadingsTaken,
    RunEnded,
    RunStarted,
    StateChanged,
    StepsCompleted,
    StepsMissed,
    WiringFound,
)
from tui_descent.protocol.launch import LOG_FILE
from tui_descent.protocol.ring import ring_file


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
    trainer = ScriptedTrainer()
    trainer.start()
    trainer.steps(3000)
    trainer.ended()
    ended = trainer.run()
    assert (ended.status, ended.step) == ("finished", 3000)
    assert trainer.published_steps() == list(range(3000))
    losses = [loss for e in trainer.events if isinstance(e, StepsCompleted) for loss in e.losses]
    assert losses == [n * 0.5 for n in range(3000)]
    assert trainer.events[-1] == ended


def test_finding_has_its_newest_numbers_before_the_run_ends() -> None:
    trainer = ScriptedTrainer()
    trainer.start()
    for losses in (20.0, 40.0):
        evidence: dict[str, float | str] = {"losses": losses, "optimizer": "Adam"}
        trainer.peer.send(WiringFound(segment=0, step=0, fault="no optimizer step", evidence=evidence))
    trainer.ended()
    ended = trainer.run()
    said = [event for event in trainer.events if isinstance(event, Diagnosed)]
    assert [one.evidence["losses"] for one in said] == [20.0, 40.0], "two seconds have not passed"
    assert trainer.events[-2:] == [said[-1], ended]


def test_events_are_in_the_order_of_steps_if_the_keeper_reads_late() -> None:
    trainer = ScriptedTrainer()
    trainer.start()
    for _ in range(20):
        trainer.steps(37, reading_every=100)
        trainer.peer.send(StateChanged(state="running"))
        trainer.peer.send(Evaluated(segment=0, step=trainer.step, loss=1.0))
        trainer.peer.send(turned(trainer.step, "1", "2", knob="lr", source="plan"))
    trainer.steps(5)
    trainer.ended()
    trainer.run()
    assert trainer.published_steps() == list(range(745))
    assert sum(isinstance(event, KnobTurned) for event in trainer.events) == 20
    assert sum(isinstance(event, ReadingsTaken) for event in trainer.events) == 8
    assert in_order(trainer.events)


def test_script_that_fails_after_its_run_is_reported_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "exit_code", lambda _: 5)
    trainer = ScriptedTrainer(script=True)
    (trainer.launch.path / LOG_FILE).write_text("one\ntwo\n")
    trainer.start()
    trainer.steps(3)
    trainer.ended()
    ended = trainer.run()
    assert (ended.status, ended.exit_code, ended.log_tail) == ("finished", 5, ("one", "two"))
    assert ended.reason == "the script then failed with exit code 5"
    assert ended.log_path == str(trainer.launch.path / LOG_FILE)


def test_script_killed_after_a_stop_request_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    signalled = threading.Event()
    monkeypatch.setattr(ending, "TERMINATE_AFTER_S", 0.0)
    monkeypatch.setattr(Trainer, "signal", lambda *_: signalled.set())
    monkeypatch.setattr(Trainer, "exit_code", lambda _: -signal.SIGTERM)
    trainer = ScriptedTrainer(script=True)

    def play() -> None:
        trainer.start()
        trainer.steps(3)
        trainer.keeper.stop("SIGTERM")
        assert signalled.wait(WITHIN_S)
        trainer.ended(hang_up=False)

    ended = trainer.run_while(play)
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
    trainer = ScriptedTrainer()
    trainer.start()
    for _ in range(15):
        trainer.steps(20, reading_every=10)
        trainer.change_layers()
    trainer.ended()
    trainer.run()
    assert matched_readings(trainer.events) == 30
    assert trainer.keeper.history.layers == trainer.layers
    assert trainer.keeper.history.structure == 15


def test_readings_match_the_layers_published_last_while_the_trainer_goes_on() -> None:
    trainer = ScriptedTrainer(ring_steps=1 << 17)

    def play() -> None:
        trainer.start()
        for _ in range(1000):
            trainer.steps(20, reading_every=10)
            trainer.change_layers()
            while trainer.peer.waiting:
                trainer.peer.flush()
        trainer.ended()

    trainer.run_while(play)
    assert matched_readings(trainer.events) > 30


def test_events_are_in_the_order_of_steps_while_the_trainer_goes_on() -> None:
    trainer = ScriptedTrainer(ring_steps=1 << 17)

    def play() -> None:
        trainer.start()
        for _ in range(1000):
            trainer.steps(20, reading_every=100)
            trainer.peer.send(MetricLogged(segment=0, step=trainer.step, name="x", value=1.0))
            while trainer.peer.waiting:
                trainer.peer.flush()
        trainer.ended()
        while trainer.peer.waiting:
            trainer.peer.flush()

    trainer.run_while(play)
    assert trainer.published_steps() == list(range(20_000))
    assert in_order(trainer.events)


def test_overwritten_steps_are_reported_as_missed() -> None:
    trainer = ScriptedTrainer(ring_steps=64)
    trainer.start()
    trainer.steps(200)
    trainer.ended()
    trainer.run()
    (missed,) = [event for event in trainer.events if isinstance(event, StepsMissed)]
    steps = trainer.published_steps()
    assert missed.count == missed.step == 200 - len(steps)
    assert steps == list(range(missed.step, 200))


def test_trainer_that_exits_without_a_report_is_lost() -> None:
    trainer = ScriptedTrainer()
    trainer.start()
    trainer.steps(7)
    trainer.peer.close()
    ended = trainer.run()
    assert (ended.status, ended.step) == ("lost", 7)
    assert ended.reason == "trainer lost (cause unknown) at step 7"
    assert trainer.published_steps() == list(range(7))


def test_trainer_that_exits_before_its_first_event_is_lost_at_step_0() -> None:
    trainer = ScriptedTrainer()
    trainer.peer.close()
    ended = trainer.run()
    assert (ended.status, ended.step) == ("lost", 0)


@pytest.mark.parametrize("garbage", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\2\xff\xfe"])
def test_trainer_that_sends_garbage_is_lost_and_its_steps_are_published(garbage: bytes) -> None:
    trainer = ScriptedTrainer()

    def play() -> None:
        trainer.start()
        trainer.steps(5)
        while not trainer.ring.flagged():  # the keeper has read the start event
            select.select([trainer.peer.socket], [], [], 0.01)
        trainer.peer.socket.send(garbage)
        select.select([trainer.peer.socket], [], [], WITHIN_S)  # until the keeper hangs up

    ended = trainer.run_while(play)
    assert ended.status == "lost"
    assert trainer.published_steps() == list(range(5))


def test_request_before_the_run_has_started_reaches_the_trainer() -> None:
    trainer = ScriptedTrainer(attended=True)
    got: list[ClientRequest] = []

    def play() -> None:
        viewer = attach(trainer)
        viewer.send(Request(request=4, command=Pause(), source="send"))
        got.append(order_of(trainer))
        trainer.peer.send(CommandDone(client=1, request=4, segment=0, step=0, what="paused"))
        until(viewer, CommandDone)
        viewer.close()

    trainer.run_while(play)
    assert got == [ClientRequest(client=1, request=4, source="send", command=Pause())]


def test_stop_before_the_trainer_is_started_reaches_it() -> None:
    trainer = ScriptedTrainer()
    got: list[ClientRequest] = []

    ended = trainer.run_while(lambda: got.append(order_of(trainer)), first=lambda: trainer.keeper.stop("SIGTERM"))
    assert isinstance(got[0].command, Stop)
    assert (ended.status, ended.reason) == ("stopped", "SIGTERM")


def test_request_after_the_end_is_rejected_by_the_keeper() -> None:
    trainer = ScriptedTrainer()
    trainer.ended()
    trainer.run()
    trainer.keeper.order(ClientRequest(client=3, request=9, source="key", command=Pause()))
    reply = trainer.events[-1]
    assert isinstance(reply, CommandRejected)
    assert (reply.client, reply.request, reply.reason) == (3, 9, "the run has ended")


def test_no_trainer_is_started_if_the_socket_cannot_be_opened(home: Path) -> None:
    trainer = ScriptedTrainer(attended=True)
    assert trainer.launch.socket is not None

    def start() -> Trainer:
        raise AssertionError("the trainer must not be started")

    with listen(Path(trainer.launch.socket)), pytest.raises(ChannelError, match="cannot listen"):
        trainer.keeper.run(start)
    trainer.peer.close()
    trainer._theirs.close()
    trainer.ring.close()


def test_socket_and_file_descriptors_are_cleaned_up() -> None:
    trainer = ScriptedTrainer(attended=True)
    before = set(os.listdir("/dev/fd"))

    def play() -> None:
        trainer.start()
        attach(trainer).close()
        trainer.ended()

    trainer.run_while(play)
    assert trainer.launch.socket is not None
    assert not Path(trainer.launch.socket).exists()
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


def attach(trainer: ScriptedTrainer) -> Peer:
    assert trainer.listening.wait(WITHIN_S)
    assert trainer.launch.socket is not None
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(trainer.launch.socket)
    viewer = Peer(sock, limit=codec.MAX_TO_VIEWER)
    viewer.send(Hello(version=codec.VERSION))
    return viewer


def order_of(trainer: ScriptedTrainer) -> ClientRequest:
    while select.select([trainer.peer.socket], [], [], WITHIN_S)[0]:
        for body in trainer.peer.receive():
            return codec.decode(codec.to_trainer, body)
        assert trainer.peer.closed is None, trainer.peer.closed
    raise AssertionError("no request came")


def until(viewer: Peer, kind: type) -> None:
    while viewer.closed is None and select.select([viewer.socket], [], [], WITHIN_S)[0]:
        if any(isinstance(codec.decode(codec.to_viewer, body), kind) for body in viewer.receive()):
            return
    raise AssertionError(f"no {kind.__name__} came")


def test_missing_gpu_driver_is_noted_once_and_memory_is_still_published() -> None:
    trainer = ScriptedTrainer()

    def missing() -> None:
        raise ImportError

    trainer.keeper._gpus = Gpus(missing)

    def play() -> None:
        trainer.start()
        for _ in range(3):
            trainer.peer.send(DeviceTaken(segment=0, step=0, device="cuda:0", allocated_bytes=7))
        trainer.ended()

    trainer.run_while(play)
    published = [event for event in trainer.events if isinstance(event, DeviceTaken | Noted)]
    assert [type(event) for event in published] == [Noted, DeviceTaken, DeviceTaken, DeviceTaken]
    assert isinstance(published[0], Noted)
    assert "no GPU readings: nvidia-ml-py" in published[0].text


class Clock:
    """The keeper's clock. It does not advance until the test advances it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = time.monotonic()
        self._asked = threading.Semaphore(0)
        monkeypatch.setattr(keeper_module, "time", self)

    def monotonic(self) -> float:
        self._asked.release()
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Advance the clock and wait until the keeper has looked at it in two ticks."""
        self.now_s += seconds
        while self._asked.acquire(blocking=False):
            pass
        for _ in range(2):
            assert self._asked.acquire(timeout=WITHIN_S)


def silences(trainer: ScriptedTrainer) -> list[tuple[str, int]]:
    """The states that were published while the trainer was silent, and for how long it was."""
    changes = (event for event in trainer.events if isinstance(event, StateChanged))
    return [(change.state, change.silent_s) for change in changes if change.silent_s]


STATES = [
    StateChanged(state="running"),
    StateChanged(state="paused"),
    StateChanged(state="held", reason="loss is nan"),
    StateChanged(state="testing", reason="rates 3/100"),
]


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.state)
def test_silent_trainer_is_reported_and_its_state_returns(state: StateChanged, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = ScriptedTrainer()
    clock = Clock(monkeypatch)

    def play() -> None:
        trainer.start()
        trainer.steps(40)
        trainer.peer.send(state)
        trainer.until(lambda event: event == state)
        trainer.until(lambda event: isinstance(event, StepsCompleted))
        for _ in range(3):
            clock.advance(3)
        trainer.ring.beat(clock.now_s)
        trainer.until(lambda event: isinstance(event, Noted))
        trainer.ended()

    trainer.run_while(play)
    assert silences(trainer) == [(state.state, 6), (state.state, 9)]
    *_, restored, note, _ = trainer.events
    assert restored == state
    assert note == Noted(step=40, text="the trainer responds again")
    logged = [entry for entry in trainer.keeper.history.log if isinstance(entry, StateChanged)]
    assert logged == ([state] if state.state == "held" else []), "silence adds nothing to the log"


def test_run_of_slow_steps_is_not_silent_before_the_time_of_three_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = ScriptedTrainer()
    clock = Clock(monkeypatch)

    def play() -> None:
        trainer.start()
        for step in range(5):
            trainer.ring.write_step(step, 1.0, 0.1, step * 20.0, 0, False)
        trainer.until(lambda event: isinstance(event, StepsCompleted) and event.first + len(event.losses) == 5)
        clock.advance(59)
        assert silences(trainer) == []
        clock.advance(2)
        trainer.ended()

    trainer.run_while(play)
    assert silences(trainer) == [("running", 61)]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param(False, [("importing torch", 5)], id="scenario"),
        pytest.param(True, [], id="a script may take its time before watch()"),
    ],
)
def test_silence_before_the_first_step(
    script: bool, expected: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ScriptedTrainer(attended=True, script=script)
    clock = Clock(monkeypatch)

    def play() -> None:
        viewer = attach(trainer)
        until(viewer, HistorySent)
        clock.advance(4)
        clock.advance(1)
        trainer.start()
        until(viewer, RunStarted)
        viewer.close()

    trainer.run_while(play)
    assert silences(trainer) == expected
    assert not any(isinstance(event, Noted) for event in trainer.events), "starting takes its time"


@pytest.mark.parametrize("lost", ["end", "end and metrics", "everything after the start"])
def test_end_that_was_only_left_in_the_shared_memory_is_reported(lost: str) -> None:
    trainer = ScriptedTrainer()
    trainer.start()
    trainer.steps(50)
    end = RunEnded(status="finished", step=50, loss=0.25)
    left = [end]
    if lost == "end and metrics":
        left.insert(0, Noted(step=50, text="7 metrics dropped: …", level="warning"))
    if lost != "everything after the start":
        trainer.peer.send(MetricLogged(segment=0, step=50, name="x", value=1.0))
    trainer.ring.write_last_events(encode(left))
    trainer.peer.close()
    assert trainer.run() == end
    assert [event for event in trainer.events if isinstance(event, RunEnded)] == [end]
    assert sum(isinstance(event, Noted) for event in trainer.events) == len(left) - 1
    assert trainer.published_steps() == list(range(50))


@pytest.mark.parametrize("garbage", [b"", b"\x91", b"\xff" * 40, b"\x91\x81\xa5event\xa4none"])
def test_garbage_in_the_place_of_the_last_events_is_a_lost_trainer(garbage: bytes) -> None:
    trainer = ScriptedTrainer()
    trainer.start()
    trainer.steps(5)
    trainer.ring.write_last_events(garbage)
    trainer.peer.close()
    assert trainer.run().status == "lost"
    assert trainer.published_steps() == list(range(5))


def test_bursts_of_metrics_stand_between_their_steps() -> None:
    trainer = ScriptedTrainer()
    trainer.start()
    for _ in range(10):
        trainer.steps(20)
        for n in range(300):
            trainer.peer.queue(MetricLogged(segment=0, step=trainer.step, name=f"m{n % 9}", value=n))
        trainer.peer.flush()
    trainer.ended()
    trainer.run()
    assert sum(isinstance(event, MetricLogged) for event in trainer.events) == 3000
    assert in_order(trainer.events)
