"""How a run is handed from the command line to its keeper and on to its trainer: one file in the run's folder."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tui_descent.protocol.inherited_fds import socket_pair
from tui_descent.protocol.ring import ring_file

# The trainer finds its run by these: the run's folder, the inherited socket to the keeper and the memory both share.
ENV_FOLDER = "TUI_DESCENT_RUN"
ENV_LINK = "TUI_DESCENT_LINK"
ENV_RING = "TUI_DESCENT_RING"
LAUNCH_FILE, LOG_FILE, CLAIM_FILE = "launch.json", "run.log", "claimed"
UNDO_FOLDER = "undo"
ENV_UNDO_BUDGET = "TUI_DESCENT_UNDO_BUDGET"
UNDO_BUDGET, UNDO_DISK = 256_000_000, 8_000_000_000
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """One run's orders. `command` is an own script; otherwise the scenario is trained.

    `attended`: a person watches, so the run waits at its end, is held on a fault, and ends when the last viewer leaves.
    `pace` is in steps a second, None as fast as it goes. `watch_at` forces readings at these steps.
    `curvature` has it read from the start on, `curvature_at` at these steps; before `range_at` the
    learning rates are tested. `undo_budget` is the memory of all exact states together, in bytes, 0 for none at all;
    `undo_disk` the disk's share for those too large.
    """

    run: str
    name: str
    folder: str
    socket: str | None
    scenario: dict[str, Any] | None = None
    command: tuple[str, ...] | None = None
    attended: bool = False
    pace: float | None = None
    plan: tuple[tuple[int, str], ...] = ()
    watch_every: int | None = None
    watch_budget: float = 0.01
    watch_at: tuple[int, ...] = ()
    curvature: bool = False
    curvature_at: tuple[int, ...] = ()
    range_at: tuple[int, ...] = ()
    undo_budget: int = UNDO_BUDGET
    undo_disk: int = UNDO_DISK

    @property
    def path(self) -> Path:
        """The run's folder."""
        return Path(self.folder)

    def write(self) -> None:
        """Put it into its folder. Raises `OSError`."""
        (self.path / LAUNCH_FILE).write_bytes(msgspec.json.encode(self))

    @classmethod
    def read(cls, folder: Path) -> Launch:
        """The run's orders. Raises `OSError` or `msgspec.DecodeError`."""
        return msgspec.json.decode((folder / LAUNCH_FILE).read_bytes(), type=cls)


def undo_budget(asked: str | None) -> int:
    """Bytes from `256MB` as asked, else as the environment says, else the default. Raises `ValueError`."""
    where, text = ("--undo-budget", asked) if asked is not None else (ENV_UNDO_BUDGET, os.environ.get(ENV_UNDO_BUDGET))
    if not text:
        return UNDO_BUDGET
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise ValueError(f"{where} {text[:40]!a}: allowed: a size, as in 256MB or 2GB; 0 keeps no exact states")
    return int(float(found[1]) * unit)


PARENT = "--parent"


@contextlib.contextmanager
def open_connection(launch: Launch) -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """Our end of the line, the other process's end, and the ring's file, for a process that is started inside.

    Theirs is closed behind it, ours and the file only where it could not be started. Raises `OSError`.
    """
    with contextlib.ExitStack() as failed:
        ours, theirs = socket_pair()
        failed.callback(ours.close)
        with theirs:
            file = ring_file(launch.path)
            failed.callback(os.close, file)
            yield ours, theirs, file
        failed.pop_all()


def start_keeper(launch: Launch, *, trainer: tuple[socket.socket, int] | None = None) -> subprocess.Popen[bytes]:
    """Start a keeper in a session of its own, out of reach of a hang-up.

    `trainer`: the caller is, its socket's other end and the file of the ring that both will share.

    Raises `OSError`.
    """
    command = [sys.executable, "-m", "tui_descent.keeper.process", launch.folder]
    shared = [] if trainer is None else [trainer[0].fileno(), trainer[1]]
    if shared:
        command += [PARENT, *map(str, shared)]
    with (launch.path / LOG_FILE).open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=shared,
            start_new_session=True,
        )
