"""One result of the doctor, and how other programs are asked."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Literal

import msgspec

# ok: it works. note: the program runs, but something could be better. bad: the program cannot be used.
Status = Literal["ok", "note", "bad"]


class Check(msgspec.Struct, frozen=True):
    """What was found about one thing, and what to do about it.

    `advice` is empty if there is nothing to do. `command` is a command, or a line of a settings file, that does it.
    """

    name: str
    status: Status
    found: str
    advice: str = ""
    command: str = ""


def asked(command: Sequence[str], *, within_s: float = 5.0) -> str | None:
    """What a program prints on stdout; None if it is missing, fails or does not answer in time."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=within_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
