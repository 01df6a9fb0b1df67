"""A keeper, its trainer and its viewers: commands, failures of each process, and clean-up."""

from __future__ import annotations

import os
import random
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest
from attended import Reply, Start, Viewer
from runs import left_behind

from tui_descent.protocol.codec import frame
from tui_descent.protocol.commands import (
    AnyCommand,
    Evaluate,
    Mark,
    Pause,
    Request,
    Resume,
    RunSteps,
    Stop,
    TurnKnob,
)
from tui_descent.protocol.events import (
    AnyEvent,
    CommandDone,
    CommandRejected,
    Evaluated,
    HistorySent,
    KnobTurned,
    Marked,
    Noted,
    ReadingsTaken,
    Refused,
    RunEnded,
    RunStarted,
    StateChanged,
    StepsCompleted,
    Welcome,
)
from tui_descent.telemetry.history import History


def losses(viewer: Viewer) -> dict[int, float]:
    return {e.first + n: loss for e in viewer.events(StepsCompleted) for n, loss in enumerate(e.losses)}


def last_told(viewer: Viewer) -> int:
    return max(losses(viewer))


def test_two_viewers_steer_one_run(start: Start) -> None:
    run = start("vanishing", "run.steps=1000000", pace=200.0, watch_every=10)
    a, b = run.viewer(), run.viewer()
    assert (a.client, b.client) == (1, 2)
    assert isinstance(a.until_event(HistorySent), HistorySent)
    started = a.until_event(RunStarted)
    told = {knob.name: knob.value for knob in started.knobs}
    assert told == told | {"lr": "0.1", "activation": "sigmoid", "residual": "off", "pace": "200", "optimizer": "sgd"}
    a.until_step(20)

    turned = a.do(TurnKnob(knob="lr", value="*1.25"))
    assert isinstance(turned, KnobTurned)
    assert (turned.old, turned.new, turned.source, turned.client) == ("0.1", "0.125", "send", 1)
    seen = b.until_event(KnobTurned)
    assert seen == turned, "the other viewer gets the same event, including who asked"

    turned = b.do(TurnKnob(knob="residual", value="on"))
    assert isinstance(turned, KnobTurned)
    assert (turned.old, turned.new, turned.way, turned.client, turned.id) == ("off", "on", "ramp", 2, 2)
    assert turned.scale == pytest.approx(20**-0.5)
    a.until_step(turned.step + 100)
    found = losses(a)
    assert found[turned.step + 90] < 0.6 * found[turned.step - 1], "and the gradient comes back"

    for command, reason in {
        TurnKnob(knob="lr", value="-1"): "lr = -1; allowed: a number > 0",
        TurnKnob(knob="lr", value="nan"): "lr = nan; allowed: a finite number",
        TurnKnob(knob="lr", value="1e400"): "lr = 1e400; allowed: a finite number",
        TurnKnob(knob="lr", value=""): 'lr = ""; allowed: a number',
        TurnKnob(knob="warp", value="9"): 'unknown knob "warp"; allowed: lr, activation, residual, norm,',
        TurnKnob(knob="residual", value="maybe"): 'residual = "maybe"; allowed: off, on',
        TurnKnob(knob="residual", value="on", scale=-1.0): "scale = -1; allowed: a number > 0 and ≤ 10",
        TurnKnob(knob="residual", value="on", way="leap"): 'way = "leap"; allowed: auto, ramp, gentle',
        TurnKnob(knob="activation", value="gelu", target="blocks.99"): 'no block "blocks.99"; blocks are blocks.0 …',
        TurnKnob(knob="pace", value="0"): "pace = 0; allowed: a number of steps per second > 0",
        RunSteps(steps=0): "steps = 0; allowed: 1 to 10,000,000",
    }.items():
        rejected = a.do(command)
        assert isinstance(rejected, CommandRejected), command
        assert reason in rejected.reason

    paused = a.do(Pause())
    assert (paused.what, type(paused)) == ("paused", CommandDone)  # type: ignore[union-attr]
    a.until_event(StateChanged, state="paused")
    b.until_event(StateChanged, state="paused")
    at = a.do(Mark(text="here")).step
    assert a.events(Marked)[-1] == Marked(segment=0, step=at, text="here")
    assert last_told(a) == at - 1, "every update before the pause was reported"
    stepped = a.do(RunSteps(steps=3))
    assert isinstance(stepped, CommandDone)
    a.until_step(at + 2)
    a.until_event(StateChanged, state="paused")
    assert a.do(Mark()).step == at + 3
    assert last_told(a) == at + 2, "three updates and no more"

    assert isinstance(a.do(Evaluate()), CommandDone)
    assert a.events(Evaluated)[-1].step == at + 3
    assert a.do(TurnKnob(knob="pace", value="max")).new == "max"  # type: ignore[union-attr]
    assert isinstance(b.do(Resume()), CommandDone)
    a.until_step(at + 50)
    readings = a.events(ReadingsTaken)
    first = readings[0].step
    assert [reading.step for reading in readings] == list(range(first, first + 10 * len(readings), 10))
    assert first % 10 == 0
    assert len(readings) > 10
    assert len(readings[-1].values["grad_norm"]) == len(started.layers) == 22

    for viewer in (a, b):
        answered = [e.request for e in viewer.heard if isinstance(e, KnobTurned | CommandDone | CommandRejected)
                    and e.client == viewer.client]  # fmt: skip
        assert sorted(answered) == list(range(1, viewer._requests + 1)), "each request exactly one reply"
    until = a.do(Stop()).step
    a.until_event(RunEnded, status="stopped")
    b.until_event(RunEnded, status="stopped")
    told = [[m for m in v.heard if isinstance(m, AnyEvent) and not isinstance(m, Welcome)] for v in (a, b)]
    shorter = min(len(events) for events in told) - 5
    assert told[0][-shorter:] == told[1][-shorter:], "both got the same events in the same order"
    assert sorted(losses(a)) == list(range(min(losses(a)), until))
    assert run.wait() == 0


def test_a_late_viewer_gets_the_whole_run_without_gap_or_overlap(start: Start) -> None:
    run = start("healthy", "run.steps=1000000", pace=500.0)
    first = run.viewer()
    first.until_step(300)
    first.do(TurnKnob(knob="lr", value="*2"))
    late = run.viewer()
    sent = late.until_event(HistorySent, within_s=10)
    history = History.receive(sent)
    assert history.steps >= 300
    assert history.started is not None
    assert history.knobs["lr"] == "0.002"
    late.until_step(history.steps + 200)
    assert sorted(losses(late)) == list(range(history.steps, last_told(late) + 1))
    first.until_step(last_told(late))
    for event in late.events(StepsCompleted):
        history.apply(event)
    shown = dict(history.losses[0].window(1, 0, history.steps))
    both = {step: loss for step, loss in losses(first).items() if step in shown}
    assert len(both) >= 400
    assert all(shown[step][0] == loss for step, loss in both.items())


def test_invalid_bytes_are_refused_and_affect_nobody_else(start: Start) -> None:
    run = start("first-descent", "run.steps=1000000", pace=300.0)
    good = run.viewer()
    good.until_step(10)
    random_ = random.Random(0)
    for n in range(20):
        bad = run.viewer(hello=n % 2 == 0)
        bad.peer.socket.setblocking(True)
        bad.peer.socket.sendall(random_.choice([random_.randbytes(3000), b"\0\0\0\0", b"\xff\xff\xff\xff"]))
        bad.peer.socket.setblocking(False)
        if n % 3 == 0:
            bad.close()
            continue
        bad.until_closed(10)
        assert isinstance(bad.heard[-1], Refused)
        assert bad.heard[-1].reason
        bad.close()
    wrong = run.viewer(hello=False)
    wrong.peer.send({"say": "hello", "version": 99})
    wrong.until_closed(10)
    assert wrong.heard == [Refused(reason="this run uses protocol 2, the viewer uses protocol 99")]
    good.until_step(last_told(good) + 100)
    assert sorted(losses(good)) == list(range(last_told(good) + 1)), "no update was missed"
    assert isinstance(good.do(Mark()), CommandDone)


def test_a_viewer_that_never_reads_blocks_nobody(start: Start) -> None:
    run = start("first-descent", "run.steps=10000000", pace=None)
    good, stuck = run.viewer(), run.viewer()
    good.until_step(50)
    begun, at = time.monotonic(), last_told(good)
    good.until_step(at + 20_000)
    took = time.monotonic() - begun
    assert isinstance(good.do(Mark(), within_s=10), CommandDone)
    assert stuck.peer.closed is None
    assert took < 90, "the training must not be slowed down"
    stuck.until_step(last_told(good))


def test_the_run_ends_when_the_last_viewer_leaves_and_nothing_is_left(start: Start, home: Path) -> None:
    run = start("vanishing", "run.steps=1000000", pace=30.0)
    a, b = run.viewer(), run.viewer()
    a.until_step(5)
    trainer = run.trainer
    if os.path.exists("/proc/self/maps"):
        assert "libtorch" in Path(f"/proc/{trainer}/maps").read_text()
        assert "libtorch" not in Path(f"/proc/{run.keeper.pid}/maps").read_text(), "the keeper must not load torch"
    a.close()
    b.until_step(last_told_or_0(b) + 10)
    b.close()
    assert run.wait(20) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(trainer, 0)
    assert left_behind(home) == []
    assert list((home / "runs").iterdir()) == []
    assert list((home / "sockets").iterdir()) == []


def last_told_or_0(viewer: Viewer) -> int:
    return max(losses(viewer), default=0)


def test_a_killed_trainer_is_reported_within_a_second_with_its_last_step(start: Start, home: Path) -> None:
    run = start("vanishing", "run.steps=1000000", pace=200.0)
    viewer = run.viewer()
    viewer.until_step(30)
    os.kill(run.trainer, signal.SIGKILL)
    killed_s = time.monotonic()
    ended = viewer.until_event(RunEnded, within_s=20)
    took_s = time.monotonic() - killed_s
    assert ended.status == "lost"
    assert ended.reason == f"trainer lost (signal 9) at step {ended.step}"
    assert ended.exit_code == -9
    assert sorted(losses(viewer)) == list(range(ended.step)), "every update it made is reported"
    assert took_s < 1.0
    assert run.wait(20) == 0
    assert ended.log_path is not None
    assert Path(ended.log_path).exists()
    assert list((home / "sockets").iterdir()) == []


@pytest.mark.heavy
def test_a_suspended_trainer_is_reported_as_silent_and_loses_nothing(start: Start) -> None:
    run = start("vanishing", "run.steps=1000000", pace=100.0)
    viewer = run.viewer()
    viewer.until_step(20)
    trainer = run.trainer
    os.kill(trainer, signal.SIGSTOP)
    try:
        silent = viewer.until(
            lambda m: isinstance(m, StateChanged) and m.reason.startswith("the trainer has not responded for "), 15
        )
        assert isinstance(silent, StateChanged)
        assert silent.state == "running"
        marked = viewer.ask(Mark(text="asked in the silence"))
        viewer.until(lambda m: isinstance(m, StateChanged) and m.reason == "the trainer has not responded for 6 s", 15)
        assert not viewer.events(RunEnded)
        assert viewer.replies(marked) == []
    finally:
        os.kill(trainer, signal.SIGCONT)
    viewer.until(lambda m: isinstance(m, Noted) and m.text == "the trainer responds again", 20)
    viewer.until(lambda m: bool(viewer.replies(marked)), 20)
    viewer.until_step(last_told(viewer) + 50)
    assert sorted(losses(viewer)) == list(range(last_told(viewer) + 1))
    assert viewer.events(StateChanged)[-1].reason == ""


def test_a_finished_run_waits_and_can_be_continued(start: Start) -> None:
    run = start("first-descent")
    viewer = run.viewer()
    waiting = viewer.until_event(StateChanged, state="waiting")
    assert "10" in waiting.reason
    assert last_told(viewer) == 9
    assert isinstance(viewer.do(Resume()), CommandDone)
    viewer.until_event(StateChanged, state="waiting")
    assert last_told(viewer) == 19, "as many again"
    assert isinstance(viewer.do(RunSteps(steps=2)), CommandDone)
    viewer.until_step(21)
    viewer.until(lambda m: isinstance(m, StateChanged) and m.state in ("waiting", "paused"))
    assert last_told(viewer) == 21
    assert viewer.do(TurnKnob(knob="lr", value="0.2")).step == 22
    assert isinstance(viewer.do(Stop()), CommandDone)
    ended = viewer.until_event(RunEnded)
    assert (ended.status, ended.step) == ("stopped", 22)
    assert run.wait(20) == 0


def test_a_run_with_a_non_finite_loss_is_held_and_answers_commands(start: Start) -> None:
    run = start("too-hot")
    viewer = run.viewer()
    held = viewer.until_event(StateChanged, state="held")
    assert "at step" in held.reason
    assert isinstance(viewer.do(TurnKnob(knob="lr", value="0.01")), KnobTurned)
    reply = viewer.do(Evaluate())
    assert isinstance(reply, CommandDone)
    commands: list[AnyCommand] = [RunSteps(steps=1), Mark(), Stop()]
    assert isinstance(viewer.do(commands[1]), CommandDone)
    assert isinstance(viewer.do(commands[2]), CommandDone)
    assert viewer.until_event(RunEnded).status == "stopped"


def test_two_hundred_commands_at_once_get_one_reply_each(start: Start) -> None:
    run = start("healthy", "run.steps=1000000", pace=100.0)
    viewer = run.viewer()
    viewer.until_step(5)
    numbers = [viewer.ask(TurnKnob(knob="lr", value="*1.02" if n % 2 else "/1.01")) for n in range(200)]
    viewer.until(lambda m: bool(viewer.replies(numbers[-1])), 20)
    replies = [m for m in viewer.heard if isinstance(m, Reply)]
    assert [reply.request for reply in replies] == numbers
    turns = viewer.events(KnobTurned)
    assert sum(turn.turns for turn in turns) == 200
    assert [turn.id for turn in turns] == list(range(1, len(turns) + 1))
    assert all(a.new == b.old for a, b in pairwise(turns))
    assert float(turns[-1].new) == pytest.approx(float(turns[0].old) * (1.02 / 1.01) ** 100, rel=1e-5)


@pytest.mark.parametrize("pace", [None, pytest.param(60.0, marks=pytest.mark.heavy)])
def test_a_thousand_commands_in_one_write_are_answered_within_two_seconds(start: Start, pace: float | None) -> None:
    run = start("healthy", "run.steps=10000000", pace=pace)
    viewer = run.viewer()
    viewer.until_step(50)
    old = float(viewer.do(TurnKnob(knob="lr", value="*1.1")).new)  # type: ignore[union-attr]
    commands = [TurnKnob(knob="lr", value="*1.25" if n % 2 else "/1.24") for n in range(1000)]
    requests = [Request(request=100 + n, command=command, source="key") for n, command in enumerate(commands)]
    begun_s = time.monotonic()
    viewer.peer.socket.setblocking(True)
    viewer.peer.socket.sendall(b"".join(frame(request) for request in requests))
    viewer.peer.socket.setblocking(False)
    viewer.until(lambda m: isinstance(m, Reply) and m.request == 1099, 10)
    assert time.monotonic() - begun_s < 2.0
    replies = [m for m in viewer.heard if isinstance(m, Reply) and m.request >= 100]
    assert [reply.request for reply in replies] == list(range(100, 1100))
    turns = [m for m in replies if isinstance(m, KnobTurned)]
    assert sum(turn.turns for turn in turns) == 1000
    assert len(turns) < 100 or pace is not None  # a paced run has time to carry out each one separately
    assert float(turns[-1].new) == pytest.approx(old * (1.25 / 1.24) ** 500, rel=1e-5)


@pytest.mark.heavy
def test_commands_not_carried_out_before_the_end_are_rejected(start: Start) -> None:
    run = start("healthy", "run.steps=10000000", pace=1.0)
    viewer = run.viewer()
    viewer.until_step(1)
    os.kill(run.trainer, signal.SIGSTOP)
    number = viewer.ask(Mark())
    trainer = run.trainer
    viewer.until(lambda m: isinstance(m, StateChanged) and "not responded" in m.reason, 30)
    os.kill(trainer, signal.SIGKILL)
    viewer.until_event(RunEnded)
    (reply,) = viewer.replies(number)
    assert isinstance(reply, CommandRejected)
    assert "ended before" in reply.reason


def test_a_keeper_that_gets_sigterm_ends_the_run_properly(start: Start, home: Path) -> None:
    run = start("vanishing", "run.steps=1000000", pace=30.0)
    viewer = run.viewer()
    viewer.until_step(5)
    run.keeper.terminate()
    ended = viewer.until_event(RunEnded, within_s=15)
    assert (ended.status, ended.exit_code) == ("stopped", 0)
    assert run.wait(10) == 0
    assert list((home / "runs").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_trainer_that_gets_a_signal_finishes_its_step(number: signal.Signals, start: Start) -> None:
    run = start("vanishing", "run.steps=1000000", pace=30.0)
    viewer = run.viewer()
    viewer.until_step(5)
    os.kill(run.trainer, number)
    ended = viewer.until_event(RunEnded, within_s=10)
    assert (ended.status, ended.reason, ended.exit_code) == ("stopped", number.name, 0)
    assert ended.loss is not None
    assert sorted(losses(viewer)) == list(range(ended.step))


@pytest.mark.heavy
def test_a_trainer_that_does_not_react_to_stop_is_killed(start: Start, home: Path) -> None:
    run = start("vanishing", "run.steps=1000000", pace=30.0)
    viewer = run.viewer()
    viewer.until_step(5)
    trainer = run.trainer
    os.kill(trainer, signal.SIGSTOP)
    viewer.ask(Stop())
    ended = viewer.until_event(RunEnded, within_s=30)
    assert (ended.status, ended.reason) == ("stopped", "stopped by a viewer; the trainer had to be killed")
    assert run.wait(20) == 0
    assert left_behind(home) == []
