"""Encode messages as frames and decode them. A frame is a four-byte big-endian length and that many msgpack bytes."""

from __future__ import annotations

import struct
from typing import Any, TypeVar

import msgspec

from tui_descent.protocol.commands import ClientRequest, FromViewer
from tui_descent.protocol.events import AnyEvent, ToViewer

VERSION = 2
MAX_FROM_VIEWER = 64 * 1024
MAX_TO_VIEWER = 64 * 1024 * 1024
HEADER = struct.Struct(">I")

_encoder = msgspec.msgpack.Encoder()
from_viewer: msgspec.msgpack.Decoder[FromViewer] = msgspec.msgpack.Decoder(FromViewer)
to_viewer: msgspec.msgpack.Decoder[ToViewer] = msgspec.msgpack.Decoder(ToViewer)
from_trainer: msgspec.msgpack.Decoder[AnyEvent] = msgspec.msgpack.Decoder(AnyEvent)
from_ring: msgspec.msgpack.Decoder[list[AnyEvent]] = msgspec.msgpack.Decoder(list[AnyEvent])
to_trainer: msgspec.msgpack.Decoder[ClientRequest] = msgspec.msgpack.Decoder(ClientRequest)


class FrameError(Exception):
    """The bytes are not a valid frame or message of this protocol. The text says what was found."""


def frame(message: Any) -> bytes:
    """Encode one message as a frame."""
    body = encode(message)
    return HEADER.pack(len(body)) + body


def encode(message: Any) -> bytes:
    """Encode one message, or a list of messages. Characters that UTF-8 cannot encode become question marks."""
    try:
        return _encoder.encode(message)
    except UnicodeEncodeError:  # a lone surrogate, as in a file name that is not UTF-8
        return _encoder.encode(_encodable(msgspec.to_builtins(message, builtin_types=(bytes,))))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_encodable(key): _encodable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_encodable(inner) for inner in value]
    return value


class FrameReader:
    """Splits a byte stream into frame bodies; the stream may arrive in pieces of any size."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add `data`; returns the frame bodies that are now complete.

        Raises `FrameError` for a length of 0 or above `limit`.
        """
        self._buffer += data
        bodies, at = [], 0
        while len(self._buffer) - at >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer, at)
            if not 0 < length <= self.limit:
                raise FrameError(f"a frame of {length} bytes; allowed: 1 to {self.limit}")
            if len(self._buffer) - at - HEADER.size < length:
                break
            at += HEADER.size
            bodies.append(bytes(self._buffer[at : at + length]))
            at += length
        del self._buffer[:at]
        return bodies


T = TypeVar("T")


def decode(decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
    """Decode the message in a frame body. Raises `FrameError` if the decoder does not accept it."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"not a message of protocol {VERSION}: {error}") from None
