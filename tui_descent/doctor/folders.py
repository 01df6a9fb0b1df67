"""Checks the folders of runs and of sockets: permissions, space, and whether records can be written there."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tui_descent import paths
from tui_descent.doctor.checks import Check
from tui_descent.protocol.channel import ChannelError
from tui_descent.protocol.private_folder import protected_folder
from tui_descent.telemetry.record.schema import is_on_network

LITTLE, TOO_LITTLE = 1_000_000_000, 20_000_000  # bytes


def checks(runs_dir: str | None = None) -> Iterator[Check]:
    """All checks of the folders. They are created if they are missing, as a run would do."""
    try:
        runs = paths.runs_folder(runs_dir)
        protected_folder(runs, advice="choose another with --runs-dir")
    except ChannelError as error:
        yield Check("runs", "bad", str(error))
    else:
        yield Check("runs", "ok", str(runs))
        yield space(runs)
        yield record(runs)
    yield sockets()


def space(folder: Path) -> Check:
    """Whether there is space for records and snapshots."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check("space", "note", f"not known: {error.strerror}")
    text = f"{free / 1e9:.1f} GB free"
    if free < TOO_LITTLE:
        return Check(
            "space", "bad", f"{free / 1e6:.1f} MB free", "runs cannot be recorded; tui-descent runs prune --keep 5"
        )
    if free < LITTLE:
        return Check("space", "note", text, "an hour of a large run takes about 20 MB; see tui-descent runs")
    return Check("space", "ok", text)


def record(folder: Path) -> Check:
    """Whether a database can be written there, and whether readers and the writer can work at the same time."""
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as place:
            mode = _written(Path(place) / "try.sqlite")
    except (OSError, sqlite3.Error) as error:
        return Check("record", "bad", f"cannot write to {folder}: {error}", "choose another folder with --runs-dir")
    if is_on_network(folder):
        advice = "it works, with more waiting; --runs-dir or TUI_DESCENT_RUNS_DIR can name a local folder"
        return Check("record", "note", "the folder is on a network file system", advice)
    if mode != "wal":
        advice = "it works, but readers and the writer wait for each other"
        return Check("record", "note", f"no write-ahead log on this file system ({mode})", advice)
    return Check("record", "ok", "can be written, with a write-ahead log")


def _written(path: Path) -> str:
    """Write a database; returns its kind of journal."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        (mode,) = database.execute("PRAGMA journal_mode = WAL").fetchone()
        database.execute("CREATE TABLE try (number)")
        database.execute("INSERT INTO try VALUES (1)")
        return str(mode)


def sockets() -> Check:
    """Whether a keeper can open its socket."""
    try:
        path = paths.socket_path(f"doctor-{os.getpid()}")
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as tried:
            tried.bind(str(path))
        path.unlink()
    except ChannelError as error:
        return Check("sockets", "bad", str(error))
    except OSError as error:
        return Check(
            "sockets", "bad", f"cannot open a socket in {path.parent}: {error.strerror}", "set TUI_DESCENT_HOME"
        )
    return Check("sockets", "ok", str(path.parent))
