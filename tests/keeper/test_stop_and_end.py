"""How a keeper ends a run: stop and kill requests, a viewer that comes late, signals to the keeper itself."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripted_trainer import WITHIN_S, ScriptedTrainer
from scripted_viewer import Viewer

from tui_descent.keeper import ending, keeper
from tui_descent.keeper.trainer import Trainer
from tui_descent.protocol import codec
from tui_descent.protocol.channel import ChannelError, listen
from tui_descent.protocol.commands import ResizeTerminal, Stop
from tui_descent.protocol.events import CommandDone, HistorySent, Noted, RunEnded, StateChanged
from tui_descent.protocol.launch import CONNECTED_FILE
from tui_descent.telemetry.history import History

Connect = Callable[[ScriptedTrainer], Viewer]


@pytest.fixture
def connect() -> Iterator[Connect]:
    viewers: list[Viewer] = []

    def new(trainer: ScriptedTrainer) -> Viewer:
        viewers.append(Viewer(trainer))
        return viewers[-1]

    yield new
    for viewer in viewers:
        viewer.peer.close()


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The signals that the keeper sends to the trainer; they end nothing."""
    sent: list[int] = []
    monkeypatch.setattr(Trainer, "signal", lambda _, number: sent.append(number))
    return sent


def asked_to_stop(trainer: ScriptedTrainer) -> None:
    while select.select([trainer.peer.socket], [], [], WITHIN_S)[0]:
        for body in trainer.peer.receive():
            if isinstance(codec.decode(codec.to_trainer, body).command, Stop):
                return
        assert trainer.peer.closed is None
    raise AssertionError("no Stop came")


def ticks(trainer: ScriptedTrainer, count: int = 5) -> None:
    """Let the keeper do its work several times: each new state is one event of its own."""
    for n in range(count):
        trainer.peer.send(StateChanged(state="running", reason=f"tick {n}"))
        while not any(isinstance(e, StateChanged) and e.reason == f"tick {n}" for e in trainer.events):
            select.select([], [], [], 0.01)


@pytest.mark.parametrize("reported", [True, False], ids=["left the with", "in a framework"])
def test_a_script_that_has_obeyed_may_save_for_as_long_as_it_needs(
    reported: bool, signals: list[int], monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    monkeypatch.setattr(ending, "TERMINATE_AFTER_S", 0.0)
    monkeypatch.setattr(Trainer, "exit_code", lambda _: 0)
    trainer = ScriptedTrainer(attended=True, script=True)

    def play() -> None:
        viewer = connect(trainer)
        trainer.start()
        trainer.steps(3)
        viewer.ask(Stop())
        asked_to_stop(trainer)
        trainer.peer.send(StateChanged(state="stopping", reason="stop requested"))
        viewer.until(lambda m: isinstance(m, StateChanged) and m.reason == keeper.GOES_ON)
        if reported:
            trainer.peer.send(RunEnded(status="stopped", step=3, reason="stop requested"))
        ticks(trainer)
        viewer.peer.close()  # the terminal is closed
        ticks(trainer)

    ended = trainer.run_while(play)
    assert signals == []
    assert (ended.status, ended.step) == ("stopped", 3)
    assert ended.reason == ("stop requested" if reported else "stopped by a viewer")


def test_as_long_as_somebody_watches_a_script_is_not_killed_for_a_slow_step(
    signals: list[int], monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    monkeypatch.setattr(ending, "TERMINATE_AFTER_S", 0.0)
    trainer = ScriptedTrainer(attended=True, script=True)

    def play() -> None:
        viewer = connect(trainer)
        trainer.start()
        viewer.ask(Stop())
        asked_to_stop(trainer)
        ticks(trainer)
        assert signals == []
        viewer.peer.close()
        while not signals:
            ticks(trainer, 1)

    trainer.run_while(play)
    assert signals[0] == signal.SIGTERM


@pytest.mark.parametrize("obeyed", [True, False], ids=["while it saves", "before it has obeyed"])
def test_a_second_request_kills_a_script(
    obeyed: bool, signals: list[int], monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    monkeypatch.setattr(ending, "KILL_AFTER_S", 0.1)
    monkeypatch.setattr(Trainer, "exit_code", lambda _: -signal.SIGKILL)
    trainer = ScriptedTrainer(attended=True, script=True)

    def play() -> None:
        viewer = connect(trainer)
        trainer.start()
        viewer.ask(Stop())
        asked_to_stop(trainer)
        if obeyed:
            trainer.peer.send(StateChanged(state="stopping", reason="stop requested"))
        ticks(trainer)
        assert signals == []
        viewer.ask(Stop(kill=True))
        viewer.until(lambda m: isinstance(m, CommandDone) and m.what == "kill")
        while signal.SIGKILL not in signals:
            ticks(trainer, 1)
        viewer.peer.close()

    ended = trainer.run_while(play)
    assert signals[0] == signal.SIGTERM
    assert (ended.status, ended.exit_code) == ("stopped", -signal.SIGKILL)
    assert ended.reason == "stopped by a viewer; the script was then ended by signal 9"


def test_a_stop_after_the_loop_is_answered_and_waits_for_the_script(
    signals: list[int], monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    monkeypatch.setattr(Trainer, "exited", lambda self: self.link.closed is not None and bool(done))
    monkeypatch.setattr(Trainer, "exit_code", lambda _: 0)
    done: list[bool] = []
    trainer = ScriptedTrainer(attended=True, script=True)

    def play() -> None:
        viewer = connect(trainer)
        trainer.start()
        trainer.ended()
        viewer.until(lambda m: isinstance(m, StateChanged) and m.reason == keeper.GOES_ON)
        viewer.ask(Stop())
        viewer.until(lambda m: isinstance(m, CommandDone) and m.what == "stop")
        done.append(True)
        viewer.until(lambda m: isinstance(m, RunEnded))

    assert trainer.run_while(play).status == "finished"
    assert signals == []


def test_a_resize_is_answered_by_the_keeper(connect: Connect) -> None:
    trainer = ScriptedTrainer(attended=True)

    def play() -> None:
        viewer = connect(trainer)
        trainer.start()
        viewer.ask(ResizeTerminal(columns=100, rows=30))
        viewer.until(lambda m: isinstance(m, CommandDone))
        trainer.ended()

    trainer.run_while(play)


@pytest.mark.parametrize("reason", ["", "no such device"], ids=["died without a word", "reported why"])
def test_an_attended_run_that_is_over_waits_for_its_first_viewer(reason: str, connect: Connect) -> None:
    trainer = ScriptedTrainer(attended=True)
    seen: list[RunEnded | None] = []

    def play() -> None:
        if reason:
            trainer.peer.send(RunEnded(status="failed", step=0, reason=reason))
        trainer.peer.close()
        while trainer.keeper.ended is None:
            select.select([], [], [], 0.01)
        viewer = connect(trainer)
        history = viewer.until(lambda m: isinstance(m, HistorySent))
        assert isinstance(history, HistorySent)
        seen.append(History.receive(history).ended)

    ended = trainer.run_while(play)
    assert seen == [ended]
    assert ended.reason == (reason or "trainer lost (cause unknown) at step 0")


@pytest.mark.parametrize("error", [OSError(11, "too many processes"), ChannelError("no shared memory")])
def test_a_trainer_that_cannot_be_started_is_reported_to_the_first_viewer(error: Exception, connect: Connect) -> None:
    trainer = ScriptedTrainer(attended=True)
    seen: list[RunEnded | None] = []

    def fail() -> None:
        raise error

    def play() -> None:
        history = connect(trainer).until(lambda m: isinstance(m, HistorySent))
        assert isinstance(history, HistorySent)
        seen.append(History.receive(history).ended)

    ended = trainer.run_while(play, first=fail)
    trainer._theirs.close()
    os.close(trainer._file)
    assert seen == [ended]
    assert ended.status == "failed"
    assert ended.reason == f"the trainer cannot be started: {error.args[-1]}"


def test_the_keeper_uses_the_socket_that_its_starter_has_opened(connect: Connect) -> None:
    trainer = ScriptedTrainer(attended=True)
    assert trainer.launch.socket is not None
    path = Path(trainer.launch.socket)
    trainer.keeper = keeper.Keeper(trainer.launch, on_event=trainer._receive, listener=listen(path))

    def play() -> None:
        viewer = connect(trainer)
        trainer.start()
        viewer.until(lambda m: isinstance(m, HistorySent))
        trainer.ended()
        viewer.until(lambda m: isinstance(m, RunEnded))

    trainer.run_while(play)
    assert not path.exists()


def test_a_keeper_that_leaves_ends_neither_loop_nor_viewers_silently(connect: Connect) -> None:
    trainer = ScriptedTrainer(attended=True)

    def play() -> None:
        viewer = connect(trainer)
        trainer.start()
        trainer.steps(5)
        while trainer.keeper.history.steps < 5:
            select.select([], [], [], 0.01)
        trainer.keeper.leave("SIGTERM")
        viewer.until(lambda m: isinstance(m, RunEnded))

    ended = trainer.run_while(play)
    assert not trainer.keeper._ending.stop_requested
    assert (ended.status, ended.step) == ("lost", 5)
    assert ended.reason == "the keeper was ended by SIGTERM; training goes on unwatched"


@pytest.mark.parametrize("number", ending.STOP_SIGNALS)
def test_a_scenario_ended_by_a_signal_before_it_could_handle_it_is_stopped(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "exit_code", lambda _: -number)
    trainer = ScriptedTrainer()
    trainer.peer.close()
    ended = trainer.run()
    assert (ended.status, ended.reason) == ("stopped", number.name)


@pytest.mark.parametrize("begun", [False, True])
def test_a_scenario_that_has_not_begun_is_ended_at_once(
    begun: bool, signals: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "exit_code", lambda _: -signal.SIGTERM)
    trainer = ScriptedTrainer()

    def play() -> None:
        if begun:
            trainer.start()
            trainer.steps(3)
        trainer.keeper.stop("SIGINT")
        asked_to_stop(trainer)
        ticks(trainer)

    ended = trainer.run_while(play)
    assert signals == ([] if begun else [signal.SIGTERM])
    assert (ended.status, ended.reason) == ("stopped", "SIGINT")


@pytest.mark.parametrize("ends", [True, False], ids=["dies at once", "goes on"])
def test_a_script_that_closes_its_connection_and_goes_on_is_reported(
    ends: bool, monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    monkeypatch.setattr(keeper, "CLOSED_AFTER_S", 0.05)
    over: list[bool] = [True] if ends else []
    monkeypatch.setattr(Trainer, "exited", lambda self: self.link.closed is not None and bool(over))
    monkeypatch.setattr(Trainer, "exit_code", lambda _: -9)
    trainer = ScriptedTrainer(attended=True, script=True)
    (trainer.launch.path / CONNECTED_FILE).touch()

    def play() -> None:
        viewer = connect(trainer)
        trainer.start()
        while trainer.keeper.history.started is None:
            select.select([], [], [], 0.01)
        trainer.peer.close()
        if not ends:
            viewer.until(lambda m: isinstance(m, Noted) and "keys have no effect" in m.text)
            over.append(True)
        viewer.until(lambda m: isinstance(m, RunEnded))

    assert trainer.run_while(play).status == "lost"
    assert len([event for event in trainer.events if isinstance(event, Noted)]) == (0 if ends else 1)
