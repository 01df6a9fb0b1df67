"""Events in the record: one row each. Most are JSON. Readings, long events, and events that hold NaN or infinities are
compressed msgpack.
"""

from __future__ import annotations

import contextlib
import zlib
from array import array
from typing import Any

import msgspec

from tui_descent.protocol import codec
from tui_descent.protocol.events import (
    AnyEvent,
    LaneSteps,
    LedgerTaken,
    LensTaken,
    ReadingsTaken,
    StepsCompleted,
    TaskTaken,
)
from tui_descent.telemetry.record.step_rows import checksum

LONGEST_JSON = 4096
NOT_RECORDED = (StepsCompleted, LensTaken)  # steps have their own table; a lens is for one screen only
PACKED = "seq, after, body, crc"
_json_encoder = msgspec.json.Encoder()
_json: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def kind_of(event: AnyEvent) -> str:
    """The event's name, as in `--json`."""
    return str(type(event).__struct_config__.tag)


def pack(event: AnyEvent) -> str | bytes:
    """The body of an event's row."""
    if isinstance(event, ReadingsTaken):
        return zlib.compress(codec.encode(_rounded(event)), 1)
    if not isinstance(event, LaneSteps | LedgerTaken | TaskTaken):
        with contextlib.suppress(UnicodeEncodeError):  # a lone surrogate, as in a file name that is not UTF-8
            data = _json_encoder.encode(event)
            # JSON writes NaN and infinities as null.
            if len(data) <= LONGEST_JSON and (b"null" not in data or _is_exact(data, event)):
                return data.decode()
    return zlib.compress(codec.encode(event), 1)


def _is_exact(data: bytes, event: AnyEvent) -> bool:
    try:
        return _json.decode(data) == event
    except msgspec.ValidationError:
        return False


def _rounded(event: ReadingsTaken) -> ReadingsTaken:
    """The reading with its values rounded to float32, which halves the size of its row."""
    return msgspec.structs.replace(
        event, values={name: [_float32(value) for value in column] for name, column in event.values.items()}
    )


def _float32(value: float | None) -> float | None:
    if value is None:
        return None
    short = array("f", (value,))[0]
    return short if abs(value) < 3e38 and (abs(value) > 1e-37 or value == 0) else value


def unpack(row: tuple[Any, ...]) -> AnyEvent:
    """The event of one row, given as `PACKED`. Raises `ValueError` if the row is damaged or its event not known."""
    seq, after, body, crc = row
    try:
        if checksum(seq, after, body.encode() if isinstance(body, str) else body) != crc:
            raise ValueError("the checksum is wrong")
        if isinstance(body, str):
            return _json.decode(body)
        return codec.decode(codec.from_trainer, zlib.decompress(body))
    except (TypeError, AttributeError, zlib.error, codec.FrameError, msgspec.DecodeError) as error:
        raise ValueError(str(error)) from None
