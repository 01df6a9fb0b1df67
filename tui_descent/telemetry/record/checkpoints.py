"""Checkpoints in the record: the bounded history as one message, smaller than viewers get it.

The gradients of all layers over time are most of it. They are logarithms, of which float32 numbers without their lower
half say enough for a heat-map: to about 1 part in 200.
"""

from __future__ import annotations

import zlib
from array import array

import msgspec

from tui_descent.protocol import codec
from tui_descent.protocol.events import HistorySent, LevelSent


def pack(sent: HistorySent) -> bytes:
    """A history as bytes."""
    grads = {segment: [_shortened(level) for level in levels] for segment, levels in sent.grads.items()}
    return zlib.compress(codec.encode(msgspec.structs.replace(sent, grads=grads)), 1)


def unpack(body: bytes) -> HistorySent | None:
    """The inverse of `pack`; None if the bytes are damaged or from another version."""
    try:
        sent = codec.decode(codec.to_viewer, zlib.decompress(body))
    except (zlib.error, codec.FrameError):
        return None
    if not isinstance(sent, HistorySent):
        return None
    grads = {segment: [_lengthened(level) for level in levels] for segment, levels in sent.grads.items()}
    return msgspec.structs.replace(sent, grads=grads)


def _shortened(level: LevelSent) -> LevelSent:
    data = array("f", array("d", level.values)).tobytes()
    return msgspec.structs.replace(level, values=data[2::4] + data[3::4])


def _lengthened(level: LevelSent) -> LevelSent:
    count = len(level.values) // 2
    data = bytearray(4 * count)
    data[2::4], data[3::4] = level.values[:count], level.values[count:]
    return msgspec.structs.replace(level, values=array("d", array("f", bytes(data))).tobytes())
