"""A whole run with several viewers: their commands, replies and histories."""

from __future__ import annotations

import fcntl
import random
import struct
import termios
import time
from itertools import pairwise

import pytest
from attended import Reply, Start, Viewer, last_reported, losses

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
    EndReached,
    Evaluated,
    HistorySent,
    KnobTurned,
    Marked,
    ReadingsTaken,
    Refused,
    RunEnded,
    RunStarted,
    StateChanged,
    StepsCompleted,
    Welcome,
)
from tui_descent.scenario import presets
from tui_descent.telemetry.history import History
from tui_descent.telemetry.story import end_card


def test_two_viewers_steer_one_run(start: Start) -> None:
    run = start("vanishing", "run.steps=1000000", pace=200.0, watch_every=10)
    a, b = run.viewer(), run.viewer()
    assert (a.client, b.client) == (1, 2)
    assert isinstance(a.until_event(HistorySent), HistorySent)
    started = a.until_event(RunStarted)
    reported = {knob.name: knob.value for knob in started.knobs}
    assert reported == reported | {
        "lr": "0.1",
        "activation": "sigmoid",
        "residual": "off",
        "pace": "200",
        "optimizer": "sgd",
    }
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
    assert last_reported(a) == at - 1, "every update before the pause was reported"
    stepped = a.do(RunSteps(steps=3))
    assert isinstance(stepped, CommandDone)
    a.until_step(at + 2)
    a.until_event(StateChanged, state="paused")
    assert a.do(Mark()).step == at + 3
    assert last_reported(a) == at + 2, "three updates and no more"

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
    received = [[m for m in v.heard if isinstance(m, AnyEvent) and not isinstance(m, Welcome)] for v in (a, b)]
    shorter = min(len(events) for events in received) - 5
    assert received[0][-shorter:] == received[1][-shorter:], "both got the same events in the same order"
    assert sorted(losses(a)) == list(range(min(losses(a)), until))
    assert run.wait() == 0


def test_a_late_viewer_gets_the_whole_run_without_gap_or_overlap(start: Start) -> None:
    run = start("healthy", "run.steps=1000000", pace=500.0)
    first = run.viewer()
    first.until_step(300)
    first.do(TurnKnob(knob="lr", value="*2"))
    late = run.viewer()
    sent = late.until_event(HistorySent)
    history = History.receive(sent)
    assert history.steps >= 300
    assert history.started is not None
    assert history.knobs["lr"] == "0.002"
    late.until_step(history.steps + 200)
    assert sorted(losses(late)) == list(range(history.steps, last_reported(late) + 1))
    first.until_step(last_reported(late))
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
        bad.until_closed()
        assert isinstance(bad.heard[-1], Refused)
        assert bad.heard[-1].reason
        bad.close()
    wrong = run.viewer(hello=False)
    wrong.peer.send({"say": "hello", "version": 99})
    wrong.until_closed()
    assert wrong.heard == [Refused(reason="this run uses protocol 2, the viewer uses protocol 99")]
    good.until_step(last_reported(good) + 100)
    assert sorted(losses(good)) == list(range(last_reported(good) + 1)), "no update was missed"
    assert isinstance(good.do(Mark()), CommandDone)


def test_a_viewer_that_never_reads_blocks_nobody(start: Start) -> None:
    run = start("first-descent", "run.steps=10000000", pace=None)
    good, stuck = run.viewer(), run.viewer()
    good.until_step(50)
    unread = -1
    while unread < (unread := unread_bytes(stuck)):  # until the system's buffer is full
        good.until_step(last_reported(good) + 1000)
    good.until_step(last_reported(good) + 3000)
    assert unread_bytes(stuck) == unread > 10_000
    assert isinstance(good.do(Mark()), CommandDone)
    assert stuck.peer.closed is None
    stuck.until_step(last_reported(good))


def unread_bytes(viewer: Viewer) -> int:
    return struct.unpack("i", fcntl.ioctl(viewer.peer.fileno(), termios.FIONREAD, bytes(4)))[0]


def test_a_finished_run_waits_and_can_be_continued(start: Start) -> None:
    run = start("first-descent")
    viewer = run.viewer()
    waiting = viewer.until_event(StateChanged, state="waiting")
    assert "10" in waiting.reason
    assert last_reported(viewer) == 9
    assert isinstance(viewer.do(Resume()), CommandDone)
    viewer.until_event(StateChanged, state="waiting")
    assert last_reported(viewer) == 19, "as many again"
    assert isinstance(viewer.do(RunSteps(steps=2)), CommandDone)
    viewer.until_step(21)
    viewer.until(lambda m: isinstance(m, StateChanged) and m.state in ("waiting", "paused"))
    assert last_reported(viewer) == 21
    assert viewer.do(TurnKnob(knob="lr", value="0.2")).step == 22
    assert isinstance(viewer.do(Stop()), CommandDone)
    ended = viewer.until_event(RunEnded)
    assert (ended.status, ended.step) == ("finished", 22)
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
    viewer.until(lambda m: bool(viewer.replies(numbers[-1])))
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
    begun_s = time.process_time()  # of keeper, trainer and viewer; the machine may be busy with something else
    viewer.peer.socket.setblocking(True)
    viewer.peer.socket.sendall(b"".join(frame(request) for request in requests))
    viewer.peer.socket.setblocking(False)
    viewer.until(lambda m: isinstance(m, Reply) and m.request == 1099)
    assert time.process_time() - begun_s < 2.0
    replies = [m for m in viewer.heard if isinstance(m, Reply) and m.request >= 100]
    assert [reply.request for reply in replies] == list(range(100, 1100))
    turns = [m for m in replies if isinstance(m, KnobTurned)]
    assert sum(turn.turns for turn in turns) == 1000
    assert len(turns) < 100 or pace is not None  # a paced run has time to carry out each one separately
    assert float(turns[-1].new) == pytest.approx(old * (1.25 / 1.24) ** 500, rel=1e-5)


def test_at_the_end_the_claims_are_judged_with_the_last_weights(start: Start) -> None:
    viewer = start("first-descent", pace=1000.0).viewer()
    history = History.receive(viewer.until_event(HistorySent))
    viewer.until_event(StateChanged, state="waiting")
    for event in viewer.heard:
        if isinstance(event, AnyEvent):
            history.apply(event)
    assert isinstance(history.end, EndReached)
    claims = end_card(presets.find("first-descent")[1], history, "first-descent").claims
    assert [result.outcome for result in claims] == ["held"] * 3, claims
