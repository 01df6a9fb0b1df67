"""A keeper outlives its viewers, and there is only one per run. Its socket is there for as long as it lives."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripted_trainer import WITHIN_S, ScriptedTrainer
from scripted_viewer import Viewer

from tui_descent.keeper import keeper
from tui_descent.keeper.keeper import Keeper
from tui_descent.keeper.trainer import Trainer
from tui_descent.paths import new_run, socket_path
from tui_descent.protocol import codec
from tui_descent.protocol.channel import ChannelError, listen
from tui_descent.protocol.commands import (
    ClientRequest,
    Pause,
    ResizeTerminal,
    Stop,
    TurnKnob,
    WatchTask,
)
from tui_descent.protocol.events import CommandRejected, HistorySent, RunEnded, StateChanged
from tui_descent.protocol.launch import Launch
from tui_descent.protocol.run_lock import has_keeper, hold_keeper_lock
from tui_descent.telemetry.history import History

Connect = Callable[..., Viewer]


@pytest.fixture
def connect() -> Iterator[Connect]:
    viewers: list[Viewer] = []

    def new(trainer: ScriptedTrainer, *, read_only: bool = False) -> Viewer:
        viewers.append(Viewer(trainer, read_only=read_only))
        viewers[-1].until(lambda m: isinstance(m, HistorySent))
        return viewers[-1]

    yield new
    for viewer in viewers:
        viewer.peer.close()


def requests(trainer: ScriptedTrainer, *, wait: bool) -> list[ClientRequest]:
    """The requests that have reached the trainer; with `wait`, wait for one."""
    if wait:
        assert select.select([trainer.peer.socket], [], [], WITHIN_S)[0]
    return [codec.decode(codec.to_trainer, body) for body in trainer.peer.receive()]


def ticks(trainer: ScriptedTrainer) -> None:
    """Wait for a few rounds of the keeper's loop: an event sent now is published in one of them."""
    for _ in range(2):
        trainer.steps(1)
        step = trainer.step
        while trainer.keeper.history.steps < step:
            select.select([], [], [], 0.01)


def test_a_run_goes_on_when_its_last_viewer_leaves_and_ends_at_its_end(connect: Connect) -> None:
    trainer = ScriptedTrainer(attended=True)
    asked: list[ClientRequest] = []

    def play() -> None:
        first, second = connect(trainer), connect(trainer)
        trainer.start()
        trainer.steps(5)
        for viewer in (first, second):
            viewer.peer.close()
        ticks(trainer)
        assert requests(trainer, wait=False) == []
        trainer.peer.send(StateChanged(state="held", reason="loss is nan"))
        ticks(trainer)
        trainer.peer.send(StateChanged(state="paused"))
        ticks(trainer)
        assert requests(trainer, wait=False) == []
        trainer.peer.send(StateChanged(state="waiting"))
        asked.extend(requests(trainer, wait=True))
        trainer.ended()

    ended = trainer.run_while(play)
    assert [request.command for request in asked] == [Stop()]
    assert (ended.status, ended.step) == ("finished", trainer.step)


def test_a_run_at_its_end_waits_for_as_long_as_a_viewer_is_attached(connect: Connect) -> None:
    trainer = ScriptedTrainer(attended=True)

    def play() -> None:
        viewer = connect(trainer)
        trainer.start()
        trainer.steps(5)
        trainer.peer.send(StateChanged(state="waiting"))
        ticks(trainer)
        assert requests(trainer, wait=False) == []
        viewer.peer.close()
        assert isinstance(requests(trainer, wait=True)[0].command, Stop)
        trainer.ended()

    trainer.run_while(play)


def test_a_run_at_its_end_waits_for_its_first_viewer_only_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "FIRST_VIEWER_WITHIN_S", 0.3)
    trainer = ScriptedTrainer(attended=True)

    def play() -> None:
        trainer.start()
        trainer.peer.send(StateChanged(state="waiting"))
        assert isinstance(requests(trainer, wait=True)[0].command, Stop)
        trainer.ended()

    trainer.run_while(play)


@pytest.mark.parametrize("how", ["deleted", "folder deleted", "another file"])
def test_a_socket_that_has_vanished_is_created_again(
    how: str, connect: Connect, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr(keeper, "SOCKET_CHECKED_EVERY_S", 0.05)
    trainer = ScriptedTrainer(attended=True)
    assert trainer.launch.socket is not None
    path = Path(trainer.launch.socket)

    def play() -> None:
        early = connect(trainer)
        trainer.start()
        trainer.steps(5)
        path.unlink()
        if how == "folder deleted":
            path.parent.rmdir()
        elif how == "another file":
            path.write_text("not a socket")
        while not path.is_socket():
            select.select([], [], [], 0.01)
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        late = Viewer(trainer)
        sent = late.until(lambda m: isinstance(m, HistorySent))
        assert isinstance(sent, HistorySent)
        assert History.receive(sent).steps == 5
        trainer.ended()
        for viewer in (early, late):
            viewer.until(lambda m: isinstance(m, RunEnded))
        late.peer.close()

    trainer.run_while(play)
    assert not path.exists()


def test_a_socket_that_somebody_else_listens_on_is_not_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "SOCKET_CHECKED_EVERY_S", 0.2)
    monkeypatch.setattr(keeper, "FIRST_VIEWER_WITHIN_S", 0.0)
    trainer = ScriptedTrainer(attended=True)
    assert trainer.launch.socket is not None
    path = Path(trainer.launch.socket)

    def play() -> None:
        assert trainer.listening.wait(WITHIN_S)
        trainer.start()
        trainer.steps(1)
        path.unlink()
        checked_s = trainer.keeper._socket_checked_s
        with listen(path):
            while trainer.keeper._socket_checked_s < checked_s + 0.2:
                ticks(trainer)
            assert path.is_socket()
            trainer.ended()
            while trainer.keeper.ended is None:
                select.select([], [], [], 0.01)
        assert path.is_socket()

    trainer.run_while(play)


def test_a_stale_socket_is_taken_over(connect: Connect) -> None:
    trainer = ScriptedTrainer(attended=True)
    assert trainer.launch.socket is not None
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(socket_path(trainer.launch.run)))
    stale.close()

    def play() -> None:
        connect(trainer)
        trainer.start()
        trainer.ended()

    assert trainer.run_while(play).status == "finished"


def test_a_run_cannot_have_two_keepers(connect: Connect, home: Path) -> None:
    trainer = ScriptedTrainer(attended=True)

    def start() -> Trainer:
        raise AssertionError("a second trainer must not be started")

    def play() -> None:
        connect(trainer)
        trainer.start()
        assert has_keeper(trainer.launch.path)
        elsewhere = os.path.join(home, "other.sock")
        for launch in (trainer.launch, codec.msgspec.structs.replace(trainer.launch, socket=elsewhere)):
            with pytest.raises(ChannelError, match="has a keeper already"):
                Keeper(launch).run(start)
        trainer.ended()

    assert trainer.run_while(play).status == "finished"
    assert not has_keeper(trainer.launch.path)


def test_asking_for_the_lock_does_not_keep_a_keeper_from_starting(home: Path) -> None:
    for _ in range(300):
        assert not has_keeper(home)
        lock = hold_keeper_lock(home)
        assert lock is not None
        assert has_keeper(home)
        os.close(lock)


STARTS_AND_DIES = """
import os, sys
from pathlib import Path
from tui_descent.protocol.launch import Launch, open_connection, start_keeper
launch = Launch.read(Path(sys.argv[1]))
with open_connection(launch) as (ours, theirs, ring):
    print(start_keeper(launch, trainer=(theirs, ring, {sent})).pid, flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize("sent", [None, 0], ids=["a loop's own keeper", "a keeper that takes over"])
def test_a_keeper_whose_trainer_died_before_it_looked_ends(sent: int | None, home: Path) -> None:
    run, folder = new_run("x")
    Launch(run=run, name="x", folder=str(folder), socket=str(socket_path(run)), command=("x",)).write()
    code = STARTS_AND_DIES.format(sent=sent)
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    with contextlib.suppress(ProcessLookupError):
        ended = os.pidfd_open(int(done.stdout))
        assert select.select([ended], [], [], WITHIN_S)[0]
        os.close(ended)


def test_a_process_that_we_have_not_started_is_not_killed(connect: Connect) -> None:
    trainer = ScriptedTrainer(attended=True)

    def play() -> None:
        viewer = connect(trainer)
        trainer.start()
        viewer.ask(Stop(kill=True))
        rejected = viewer.until(lambda m: isinstance(m, CommandRejected))
        assert isinstance(rejected, CommandRejected)
        assert rejected.reason == keeper.NOT_KILLED
        trainer.ended()

    assert trainer.run_while(play).status == "finished"


def test_a_read_only_viewer_sees_everything_and_changes_nothing(connect: Connect) -> None:
    trainer = ScriptedTrainer(attended=True)
    got: list[ClientRequest] = []

    def play() -> None:
        viewer = connect(trainer, read_only=True)
        trainer.start()
        commands = [Pause(), TurnKnob(knob="lr", value="1"), Stop(), Stop(kill=True), ResizeTerminal(columns=9, rows=9)]
        for command in commands:
            viewer.ask(command)
            rejected = viewer.until(lambda m: isinstance(m, CommandRejected))
            assert isinstance(rejected, CommandRejected)
            assert rejected.reason == "this viewer is read-only"
        viewer.ask(WatchTask(on=True, columns=10, rows=10))
        got.extend(requests(trainer, wait=True))
        trainer.steps(3)
        trainer.ended()
        viewer.until(lambda m: isinstance(m, RunEnded))

    assert trainer.run_while(play).status == "finished"
    assert [request.command for request in got] == [WatchTask(on=True, columns=10, rows=10)]
