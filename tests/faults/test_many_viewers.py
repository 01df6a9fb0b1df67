"""Viewers that misbehave, and many of them: the run is not disturbed, and nothing of the keeper grows without limit."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import select
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import same_process
from attended import losses
from same_process import AttendedHere
from scripted_trainer import WITHIN_S, ScriptedTrainer

from tui_descent.keeper import viewers
from tui_descent.protocol import codec
from tui_descent.protocol.channel import Peer
from tui_descent.protocol.commands import Hello, Pause, Request, Stop
from tui_descent.protocol.events import HistorySent, Refused, RunEnded, StepsCompleted
from tui_descent.telemetry.history import History

OPTIONS = ("run.steps=400", "run.threads=1", "run.evaluate_every=0")


def test_twenty_viewers_of_which_five_never_read_do_not_disturb_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = same_process.run("run", "healthy", "--json", *(w for o in OPTIONS for w in ("--set", o))).losses
    monkeypatch.setattr(viewers, "MAX_WAITING", 64 * 1024)
    live = AttendedHere("healthy", *OPTIONS)
    try:
        reading = live.viewer()
        silent = [live.viewer(hello=False) for _ in range(5)]
        for viewer in silent:  # they say Hello, and never read what comes
            viewer.peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            viewer.peer.send(Hello(version=codec.VERSION, name="silent"))
        others = [live.viewer() for _ in range(14)]
        reading.until_step(399)
        waiting = live.served_by._viewers.waiting  # type: ignore[union-attr]
        assert waiting < 5 * 2 * 64 * 1024 + 1_000_000, "the queues are bounded"
        for viewer in others:
            viewer.until_step(399)
            first = viewer.events(HistorySent)[0].steps
            assert sorted(losses(viewer)) == list(range(first, 400)), "without gap or overlap after the history"
        seen = losses(reading)
        assert len(seen) > 100
        assert [seen[step] for step in sorted(seen)] == [twin[step] for step in sorted(seen)]
    finally:
        live.close()


def connect(trainer: ScriptedTrainer) -> Peer:
    assert trainer.launch.socket is not None
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(trainer.launch.socket)
    return Peer(sock, limit=codec.MAX_TO_VIEWER)


def until(peer: Peer, wanted: Callable[[object], bool]) -> list[object]:
    """Everything that comes until there is a message that is `wanted`."""
    heard: list[object] = []
    while not any(map(wanted, heard)):
        assert peer.closed is None
        assert select.select([peer.socket], [], [], WITHIN_S)[0]
        heard += [codec.decode(codec.to_viewer, body) for body in peer.receive()]
    return heard


@pytest.mark.parametrize("steps", [100_000, pytest.param(1_000_000, marks=pytest.mark.heavy)])
def test_a_viewer_of_a_long_run_gets_one_small_history_and_then_the_live_steps(steps: int) -> None:
    trainer = ScriptedTrainer(attended=True)
    history = trainer.keeper.history
    trainer.step = steps

    def play() -> None:
        assert trainer.listening.wait(WITHIN_S)
        trainer.start()
        trainer.until(lambda event: type(event).__name__ == "RunStarted")
        for first in range(0, steps, 5000):
            numbers = range(first, first + 5000)
            history.apply(
                StepsCompleted(
                    segment=0,
                    first=first,
                    losses=[1 / (n + 1) for n in numbers],
                    lrs=[0.1] * 5000,
                    times_s=[n * 1e-4 for n in numbers],
                )
            )
        before_s = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        viewer = connect(trainer)
        viewer.send(Hello(version=codec.VERSION))
        heard = until(viewer, lambda m: isinstance(m, HistorySent))
        (sent,) = (m for m in heard if isinstance(m, HistorySent))
        assert History.receive(sent).steps == steps
        assert sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - before_s < 1.0
        assert len(codec.encode(sent)) < 2_000_000
        trainer.steps(50)
        live = until(viewer, lambda m: isinstance(m, StepsCompleted))
        assert [m.first for m in live if isinstance(m, StepsCompleted)][:1] == [steps]
        trainer.ended()
        viewer.close()

    trainer.run_while(play)


def garbage(rng: random.Random) -> bytes:
    """A malformed or unusual piece of a stream: one of many kinds."""
    body = codec.encode(Request(request=1, command=Pause()))
    match rng.randrange(10):
        case 0:
            return rng.randbytes(rng.randrange(1, 200))
        case 1:
            return struct.pack(">I", rng.choice([0, 2**31, 2**32 - 1, codec.MAX_FROM_VIEWER + 1]))
        case 2:
            return codec.frame(Hello(version=codec.VERSION))[: rng.randrange(1, 12)]
        case 3:
            changed = bytearray(codec.frame(Hello(version=codec.VERSION)))
            changed[rng.randrange(4, len(changed))] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case 4:
            return struct.pack(">I", 30_000) + b"\x91" * 30_000  # deep nesting
        case 5:
            return struct.pack(">I", len(body)) + body  # a request before Hello
        case 6:
            return codec.frame(Hello(version=rng.choice([0, 1, 3, 2**62])))
        case 7:
            noise = rng.randbytes(rng.randrange(1, 100))
            return codec.frame(Hello(version=codec.VERSION)) + struct.pack(">I", len(noise)) + noise
        case 8:
            table = {"say": "request", "request": rng.choice([-1, "x", None]), "command": {"do": "turn"}}
            return codec.frame(Hello(version=codec.VERSION)) + codec.frame(table)
        case _:
            return codec.frame(
                {"say": "hello", "version": codec.VERSION, "name": "\ud800" if rng.random() < 0.5 else 7}
            )


@pytest.mark.parametrize("count", [1_500, pytest.param(100_000, marks=pytest.mark.heavy)])
def test_malformed_frames_close_only_their_own_connection(count: int, capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(count)
    trainer = ScriptedTrainer(attended=True)
    memory = [0, 0]

    def play() -> None:
        assert trainer.listening.wait(WITHIN_S)
        good = connect(trainer)
        good.send(Hello(version=codec.VERSION))
        until(good, lambda m: isinstance(m, HistorySent))
        trainer.start()
        for n in range(count):
            if n == count // 10:
                memory[0] = resident()
            bad = connect(trainer)
            bad.socket.setblocking(True)
            bad.socket.settimeout(WITHIN_S)
            bad.socket.sendall(garbage(rng))
            bad.socket.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while bad.socket.recv(65536):
                    pass  # answered, perhaps with Refused, and closed
            bad.socket.close()
            if n % 50 == 0:
                trainer.steps(1)
        memory[1] = resident()
        trainer.steps(5)
        heard = until(good, lambda m: isinstance(m, StepsCompleted) and m.first + len(m.losses) == trainer.step)
        assert not any(isinstance(m, Refused) for m in heard)
        trainer.ended()
        until(good, lambda m: isinstance(m, RunEnded))
        good.close()

    assert trainer.run_while(play).status == "finished"
    assert trainer.published_steps() == list(range(trainer.step))
    assert memory[1] - memory[0] < 10 * 2**20
    assert "Traceback" not in capfd.readouterr().err


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_two_viewers_that_leave_in_the_middle_of_a_frame_change_nothing() -> None:
    trainer = ScriptedTrainer(attended=True)

    def play() -> None:
        assert trainer.listening.wait(WITHIN_S)
        trainer.start()
        for cut in (6, -1):
            peer = connect(trainer)
            peer.send(Hello(version=codec.VERSION))
            until(peer, lambda m: isinstance(m, HistorySent))
            peer.socket.send(codec.frame(Request(request=1, command=Stop(kill=True)))[:cut])
            peer.close()
        trainer.steps(5)
        trainer.ended()

    assert trainer.run_while(play).status == "finished"
