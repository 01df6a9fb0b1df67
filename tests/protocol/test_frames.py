"""Bytes from a peer become messages or a `FrameError`, whatever they are."""

from __future__ import annotations

import contextlib
import math
import random

import msgspec
import pytest

from tui_descent.protocol.codec import (
    HEADER,
    MAX_FROM_VIEWER,
    FrameError,
    FrameReader,
    decode,
    frame,
    from_trainer,
    from_viewer,
    to_trainer,
    to_viewer,
)
from tui_descent.protocol.commands import (
    ClientRequest,
    Evaluate,
    Hello,
    Mark,
    Pause,
    Request,
    Resume,
    RunSteps,
    Stop,
    TurnKnob,
)
from tui_descent.protocol.events import (
    Evaluated,
    HistorySent,
    KnobState,
    KnobTurned,
    Layer,
    LayersChanged,
    LevelSent,
    ReadingsTaken,
    Refused,
    RunEnded,
    RunStarted,
    StateChanged,
    StepsCompleted,
    Welcome,
)

COMMANDS = [
    TurnKnob(knob="lr", value="*1.25"),
    TurnKnob(knob="residual", value="on", target="blocks.3", way="ramp", scale=0.25),
    Pause(),
    Resume(),
    RunSteps(steps=3),
    Evaluate(),
    Mark(text="hier ß → ∞"),
    Stop(),
]
STARTED = RunStarted(
    run="r",
    title="t",
    name="n",
    scenario={"run": {"steps": 3}, "claim": [1, 2.5, None]},
    device="cpu",
    threads=1,
    parameters=7,
    layers=(Layer(name="stem", kind="Linear", params=7), Layer(name="blocks.0", kind="Linear", params=7, block=0)),
    knobs=(KnobState(name="lr", value="0.1"), KnobState(name="residual", unavailable="no blocks")),
)
EVENTS = [
    STARTED,
    StateChanged(state="held", reason="loss is nan"),
    StepsCompleted(segment=0, first=4, losses=[1.0, -math.inf], lrs=[0.1, 0.1], times_s=[0.5, 1.0], skipped=(5,)),
    ReadingsTaken(
        segment=0, step=4, values={"grad_norm": [None, 1e-300]}, ages=[0, 2], global_grad_norm=math.inf, watch_cost=0.1
    ),
    LayersChanged(segment=1, step=4, structure=2, parameters=7, layers=STARTED.layers[:1]),
    Evaluated(segment=1, step=9, loss=0.5),
    KnobTurned(id=1, client=2, request=3, source="key", segment=0, step=7, knob="lr", target="all", old="1", new="2"),
    RunEnded(status="lost", step=3, log_tail=("a", "b"), exit_code=-9),
]


def cut(reader: FrameReader, data: bytes, sizes: random.Random) -> list[bytes]:
    bodies, at = [], 0
    while at < len(data):
        size = sizes.choice((1, 2, 3, 7, 100, 4096))
        bodies += reader.feed(data[at : at + size])
        at += size
    return bodies


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: type(c).__name__)
def test_commands_are_decoded_as_they_were_sent(command: msgspec.Struct) -> None:
    sent = Request(request=5, command=command, source="send")
    (body,) = FrameReader(MAX_FROM_VIEWER).feed(frame(sent))
    assert decode(from_viewer, body) == sent
    order = ClientRequest(client=1, request=5, source="send", command=command)
    (body,) = FrameReader(MAX_FROM_VIEWER).feed(frame(order))
    assert decode(to_trainer, body) == order


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_events_are_decoded_as_they_were_sent(event: msgspec.Struct) -> None:
    (body,) = FrameReader(1 << 20).feed(frame(event))
    assert decode(from_trainer, body) == event
    assert decode(to_viewer, body) == event


def test_messages_of_the_keeper_are_not_accepted_from_a_trainer() -> None:
    level = LevelSent(width=1, bins=b"\0" * 8, counts=b"", values=b"")
    history = HistorySent(
        facts=list(EVENTS),
        losses={0: [level]},
        grads={3: [level]},
        rows={3: ("stem", "blocks.0.norm")},
        knobs={"lr": "0.1"},
        segment=0,
        steps=3,
        loss=0.5,
        lr=0.1,
        smoothed=(0.5, 0.0, 0.1, 0.4),
        steps_per_s=0.0,
    )
    for message in (Welcome(version=1, client=2, run="r"), Refused(reason="no"), history):
        body = frame(message)[HEADER.size :]
        assert decode(to_viewer, body) == message
        with pytest.raises(FrameError):
            decode(from_trainer, body)


def test_nan_and_infinity_are_transferred() -> None:
    sent = StepsCompleted(segment=0, first=0, losses=[math.nan, math.inf, -math.inf], lrs=[1.0] * 3, times_s=[0.0] * 3)
    got = decode(from_trainer, frame(sent)[HEADER.size :])
    assert isinstance(got, StepsCompleted)
    assert math.isnan(got.losses[0])
    assert got.losses[1:] == [math.inf, -math.inf]


def test_frames_that_arrive_together_are_split() -> None:
    data = b"".join(frame(Request(request=n, command=Pause())) for n in range(100))
    bodies = FrameReader(MAX_FROM_VIEWER).feed(data)
    assert [decode(from_viewer, body).request for body in bodies] == list(range(100))  # type: ignore[union-attr]


def test_frames_may_arrive_byte_by_byte() -> None:
    data = frame(Hello(version=1)) + frame(Request(request=1, command=Mark(text="x" * 300)))
    reader = FrameReader(MAX_FROM_VIEWER)
    counts = [len(reader.feed(data[n : n + 1])) for n in range(len(data))]
    assert sum(counts) == 2
    assert counts[-1] == 1
    assert counts.index(1) == len(frame(Hello(version=1))) - 1


@pytest.mark.parametrize("seed", range(20))
def test_frames_may_arrive_in_pieces_of_any_size(seed: int) -> None:
    random_ = random.Random(seed)
    messages = [Request(request=n, command=Mark(text="é" * random_.randrange(2000))) for n in range(30)]
    data = b"".join(map(frame, messages))
    bodies = cut(FrameReader(MAX_FROM_VIEWER), data, random_)
    assert [decode(from_viewer, body) for body in bodies] == messages


def test_a_partial_frame_waits_for_the_rest() -> None:
    data = frame(Request(request=1, command=Mark(text="x" * 1000)))
    for at in (1, 3, 4, 5, len(data) - 1):
        reader = FrameReader(MAX_FROM_VIEWER)
        assert reader.feed(data[:at]) == []
        assert len(reader.feed(data[at:])) == 1


@pytest.mark.parametrize("length", [0, MAX_FROM_VIEWER + 1, 2**31, 2**32 - 1])
def test_an_invalid_length_is_an_error_before_the_body_arrives(length: int) -> None:
    with pytest.raises(FrameError, match=f"a frame of {length} bytes; allowed: 1 to {MAX_FROM_VIEWER}"):
        FrameReader(MAX_FROM_VIEWER).feed(HEADER.pack(length))


def test_the_largest_allowed_frame_is_accepted() -> None:
    body = b"\xc0" * MAX_FROM_VIEWER
    assert FrameReader(MAX_FROM_VIEWER).feed(HEADER.pack(len(body)) + body) == [body]


@pytest.mark.parametrize("seed", range(10))
def test_random_bytes_are_never_a_message(seed: int) -> None:
    random_ = random.Random(seed)
    for n in range(200):
        data = random_.randbytes(random_.randrange(1, 2000))
        if n % 2:  # an honest length before rubbish
            data = HEADER.pack(len(data)) + data
        reader = FrameReader(MAX_FROM_VIEWER)
        with contextlib.suppress(FrameError):
            for body in reader.feed(data):
                decode(from_viewer, body)
                pytest.fail("random bytes were decoded as a message")


@pytest.mark.parametrize("seed", range(10))
def test_a_message_with_flipped_bytes_is_a_message_or_a_frame_error(seed: int) -> None:
    random_ = random.Random(seed)
    requests = [(from_viewer, Request(request=9, command=command)) for command in COMMANDS]
    for _ in range(500):
        decoder, message = random_.choice([*requests, *((to_viewer, event) for event in EVENTS)])
        body = bytearray(frame(message)[HEADER.size :])
        for _ in range(random_.randrange(1, 5)):
            body[random_.randrange(len(body))] = random_.choice((random_.randrange(256), 0xDD, 0xDF, 0xFF, 0xC6))
        with contextlib.suppress(FrameError):
            decode(decoder, bytes(body))


def test_invalid_utf_8_is_a_frame_error() -> None:
    body = frame(Request(request=1, command=Mark(text="abc")))[HEADER.size :].replace(b"abc", b"a\xff\xfe")
    with pytest.raises(FrameError, match="not a message of protocol 2: 'utf-8' codec"):
        decode(from_viewer, body)


@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xa1a", b"\xdd\x00\x00\x00\x01"], ids=["array", "map", "array32"])
def test_deep_nesting_is_a_frame_error(opener: bytes) -> None:
    body = opener * (MAX_FROM_VIEWER // len(opener))
    for decoder in (from_viewer, to_viewer, from_trainer, to_trainer):
        with pytest.raises(FrameError):
            decode(decoder, body)


def test_deep_nesting_inside_a_scenario_is_a_frame_error() -> None:
    body = frame(STARTED)[HEADER.size :]
    spot = body.index(b"\xa8scenario") + len(b"\xa8scenario")
    deep = body[:spot] + b"\x81\xa1a" * 20000
    with pytest.raises(FrameError):
        decode(to_viewer, deep)


def test_an_unknown_command_and_a_wrong_type_are_frame_errors() -> None:
    pack = msgspec.msgpack.encode
    for table in (
        {"say": "request", "request": 1, "command": {"do": "format_disk"}},
        {"say": "request", "request": "1", "command": {"do": "pause"}},
        {"say": "request", "request": 1, "command": {"do": "steps", "steps": 1.5}},
        {"say": "request", "request": 1, "command": {"do": "turn", "knob": "lr", "value": 0.1}},
        {"say": "request", "request": 1, "command": {"do": "pause"}, "source": "god"},
        {"say": "goodbye"},
        {},
        [],
        None,
    ):
        with pytest.raises(FrameError):
            decode(from_viewer, pack(table))
