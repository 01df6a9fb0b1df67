"""The messages between a keeper and the process that holds the terminal of a user's script."""

from __future__ import annotations

import msgspec


class ToTerminal(msgspec.Struct, frozen=True, kw_only=True, tag_field="do"):
    """A message from the keeper."""


class SetSize(ToTerminal, frozen=True, kw_only=True, tag="size"):
    """Give the script's terminal another size."""

    columns: int
    rows: int


class SendSignal(ToTerminal, frozen=True, kw_only=True, tag="signal"):
    """Send a signal to the script and its children."""

    number: int


class ScriptExited(msgspec.Struct, frozen=True, kw_only=True):
    """The script has exited with `code`, negative for a signal. All that it printed is in the run's log."""

    code: int


to_terminal: msgspec.msgpack.Decoder[SetSize | SendSignal] = msgspec.msgpack.Decoder(SetSize | SendSignal)
to_keeper: msgspec.msgpack.Decoder[ScriptExited] = msgspec.msgpack.Decoder(ScriptExited)
MAX_BYTES = 1024
