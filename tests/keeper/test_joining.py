"""A script's child processes reach the keeper through the run's folder: those of torchrun, subprocess and spawn."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
import tiny_trainer
from scripted_trainer import WITHIN_S, ScriptedTrainer

from tui_descent.keeper import keeper
from tui_descent.keeper.keeper import Keeper
from tui_descent.keeper.trainer import Trainer
from tui_descent.paths import new_run, socket_path
from tui_descent.protocol import codec, joining
from tui_descent.protocol.channel import ChannelError
from tui_descent.protocol.commands import Join
from tui_descent.protocol.events import AnyEvent, Refused, RunEnded, RunStarted, StepsCompleted
from tui_descent.protocol.joining import join
from tui_descent.protocol.launch import CONNECTED_FILE, ENV_FOLDER, LOG_FILE, Launch
from tui_descent.training.keeper_link import KeeperLink, ShownElsewhereError

TINY = f"[sys.executable, {tiny_trainer.__file__!r}, '8']"
AGAIN = f"import subprocess, sys; subprocess.run({TINY}, check=True)"
START = f"import os, subprocess, sys\nos.environ['PYTHONPATH'] = {os.pathsep.join(filter(None, sys.path))!r}\n"


def run(script: str) -> tuple[RunEnded, list[AnyEvent], Launch]:
    """Run a script under a keeper to its end."""
    name, folder = new_run("script")
    command = (sys.executable, "-c", START + script)
    launch = Launch(run=name, name="script", folder=str(folder), socket=str(socket_path(name)), command=command)
    launch.write()
    events: list[AnyEvent] = []
    ended = Keeper(launch, on_event=events.append).run(lambda: Trainer.start(launch))
    return ended, events, launch


def steps_of(events: list[AnyEvent]) -> int:
    return sum(len(event.losses) for event in events if isinstance(event, StepsCompleted))


@pytest.mark.parametrize(
    "script",
    [
        f"subprocess.run({TINY}, check=True)",
        f"subprocess.run({TINY}, check=True, start_new_session=True)",
        f"os.closerange(3, 256)\nos.execv(sys.executable, {TINY})",
        f"subprocess.run([sys.executable, '-c', {AGAIN!r}], check=True)",
    ],
    ids=["a child", "a child in its own session", "the script without its descriptors", "a child of a child"],
)
def test_a_process_without_the_connection_gets_one(script: str) -> None:
    ended, events, launch = run(script)
    assert (ended.status, ended.step, ended.loss) == ("finished", 8, 0.5), (launch.path / LOG_FILE).read_text()
    assert steps_of(events) == 8
    assert ended.exit_code == 0


def test_of_several_processes_only_one_is_shown() -> None:
    ended, events, launch = run(
        f"started = [subprocess.Popen({TINY}, stderr=subprocess.PIPE) for _ in range(3)]\n"
        "failed = [one.communicate()[1].strip().endswith(b'ShownElsewhereError') for one in started]\n"
        "print(sorted(failed))"
    )
    assert (launch.path / LOG_FILE).read_text() == "[False, True, True]\n"
    assert (ended.status, ended.step) == ("finished", 8)
    assert sum(isinstance(event, RunStarted) for event in events) == 1


def test_without_a_keeper_there_is_nothing_to_join(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_FOLDER, raising=False)
    assert KeeperLink.joined() is None
    _, folder = new_run("ended")
    for path in (folder, home / "no such folder"):
        monkeypatch.setenv(ENV_FOLDER, str(path))
        assert KeeperLink.joined() is None


def refusal(path: str) -> str:
    with pytest.raises(ChannelError) as raised:
        join(path)
    return str(raised.value)


@pytest.mark.parametrize(
    ("script", "started", "ours", "why"),
    [
        (False, False, True, "this run has no script"),
        (True, True, True, keeper.ANOTHER_IS_SHOWN),
        (True, False, False, "this run has no script"),
    ],
    ids=["a scenario", "shown already", "another user"],
)
def test_a_keeper_refuses_a_process_that_is_not_its_trainer(
    script: bool, started: bool, ours: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ScriptedTrainer(attended=True, script=script)
    monkeypatch.setattr(keeper, "FIRST_VIEWER_WITHIN_S", 0.0)
    monkeypatch.setattr(keeper, "is_ours", lambda _: ours)
    path = trainer.launch.socket
    assert path is not None
    monkeypatch.setenv(ENV_FOLDER, trainer.launch.folder)

    def play() -> None:
        assert trainer.listening.wait(WITHIN_S)
        if started:
            trainer.start()
            trainer.until(lambda event: isinstance(event, RunStarted))
        assert refusal(path) == why
        with pytest.raises(ChannelError):
            KeeperLink.joined()
        claim = trainer.launch.path / CONNECTED_FILE
        assert not claim.exists(), "another process may try"
        claim.touch()
        with pytest.raises(ShownElsewhereError):
            KeeperLink.joined()
        trainer.ended()

    trainer.run_while(play)


def test_another_version_and_another_users_keeper_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = ScriptedTrainer(attended=True, script=True)
    monkeypatch.setattr(keeper, "FIRST_VIEWER_WITHIN_S", 0.0)
    path = trainer.launch.socket
    assert path is not None

    def play() -> None:
        assert trainer.listening.wait(WITHIN_S)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.sendall(codec.frame(Join(version=99)))
            (body,) = codec.FrameReader(1000).feed(sock.recv(1000))
            assert isinstance(codec.decode(codec.to_viewer, body), Refused)
        with monkeypatch.context() as patch:
            patch.setattr(joining, "is_ours", lambda _: False)
            assert refusal(path) == "the run's keeper belongs to another user"
        trainer.ended()

    trainer.run_while(play)


def test_a_process_that_gives_up_leaves_the_run_as_it_was() -> None:
    before = len(os.listdir("/dev/fd"))
    trainer = ScriptedTrainer(attended=True)
    assert trainer.launch.socket is not None
    for _ in range(5):
        with pytest.raises(OSError, match="No such file"):
            join(trainer.launch.socket)
    trainer.ended()
    trainer.keeper.stop("the test ends")
    trainer.run()
    assert len(os.listdir("/dev/fd")) <= before + 1
