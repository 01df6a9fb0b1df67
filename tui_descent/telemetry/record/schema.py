"""The tables of a record, and how its file is opened."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path
from urllib.parse import quote

RECORD_FILE = "record.sqlite"
VERSION = 1
SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE steps (
    seq INTEGER PRIMARY KEY, segment INTEGER NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL,
    mean REAL, lowest REAL, highest REAL, lr REAL, began_s REAL, ended_s REAL,
    losses BLOB NOT NULL, rates BLOB NOT NULL, times BLOB NOT NULL, skipped BLOB, curve TEXT NOT NULL,
    crc INTEGER NOT NULL);
CREATE INDEX steps_by_step ON steps (segment, first);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, segment INTEGER NOT NULL, step INTEGER NOT NULL, after INTEGER NOT NULL,
    time REAL NOT NULL, kind TEXT NOT NULL, body NOT NULL, crc INTEGER NOT NULL);
CREATE INDEX changes ON events (seq) WHERE kind IN ('intervention', 'rewound');
CREATE INDEX pictures ON events (seq) WHERE kind = 'task';
CREATE TABLE checkpoints (
    id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, after INTEGER NOT NULL, segment INTEGER NOT NULL,
    step INTEGER NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE VIEW loss_curve AS
    SELECT segment, json_extract(point.value, '$[0]') AS step, json_extract(point.value, '$[1]') AS loss
    FROM steps, json_each(steps.curve) AS point ORDER BY seq, step;
"""
# The shared memory of a write-ahead log does not work between two machines.
NETWORK_FILE_SYSTEMS = (
    "nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p", "fuse.sshfs", "fuse.gluster",
    "pvfs", "orangefs", "wekafs", "panfs", "vboxsf", "drvfs",
)  # fmt: skip


class RecordError(Exception):
    """The record cannot be used. The text says why, and what to do."""


class OtherVersionError(RecordError):
    """Another version of tui-descent has written the record."""


def error_code(error: sqlite3.Error) -> int:
    """SQLite's primary code of an error; 0 if it is an error of Python's module."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def is_on_network(folder: Path, mounts: str = "/proc/self/mounts") -> bool:
    """Whether the folder is on a network file system, as far as the system says. Only Linux does."""
    found, kind = -1, ""
    with contextlib.suppress(OSError, ValueError, IndexError):
        real = os.path.realpath(folder)
        for line in Path(mounts).read_text(encoding="utf-8", errors="replace").splitlines():
            point, name = line.split(" ")[1:3]
            point = point.encode().decode("unicode_escape")  # a space is written as \040
            if len(point) > found and (real == point or real.startswith(point.rstrip("/") + "/")):
                found, kind = len(point), name
    return kind.startswith(NETWORK_FILE_SYSTEMS)


def connect_to_write(path: Path) -> sqlite3.Connection:
    """Open the record to write it, or create it.

    It has a write-ahead log, so that readers do not block the writer; on network file systems a rollback journal.
    Raises `sqlite3.Error`, `OSError`, and `RecordError` if another version has written it.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    connection = sqlite3.connect(path, timeout=0.1, isolation_level=None, check_same_thread=False)
    try:
        # Every commit writes whole pages; with small ones, a batch is a few kilobytes.
        connection.execute("PRAGMA page_size = 1024")
        version = version_of(connection)
        if version not in (0, VERSION):
            raise OtherVersionError(other_version(version))
        if is_on_network(path.parent) or _turn_on_log(connection) != "wal":
            connection.execute("PRAGMA journal_mode = TRUNCATE")
        # What was committed survives the end of this process. After a power cut, the newest batches may be missing.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA journal_size_limit = 4194304")
        if not version:
            connection.executescript(f"BEGIN IMMEDIATE;{SCHEMA}PRAGMA user_version = {VERSION};COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def _turn_on_log(connection: sqlite3.Connection) -> str:
    try:
        return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
    except sqlite3.OperationalError as error:  # the file system has no shared memory
        if error_code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY):
            raise
        return ""


def connect_to_read(path: Path) -> tuple[sqlite3.Connection, bool]:
    """Open the record to read it. Returns also whether its file was cut off. Raises `RecordError`."""
    if not path.is_file():
        raise RecordError(f"{path.parent.name}: nothing was recorded ({RECORD_FILE} is missing)")
    where = "file:" + quote(str(path.absolute()))
    # Without a log, a folder that cannot be written to is enough. SQLite reads what is there of a file that was cut off
    # only if the schema may be mended.
    for option, cut_off in (("mode=ro", False), ("mode=ro&immutable=1", False), ("mode=ro&immutable=1", True)):
        connection = sqlite3.connect(
            f"{where}?{option}", uri=True, timeout=2.0, isolation_level=None, check_same_thread=False
        )
        try:
            if cut_off:
                connection.execute("PRAGMA writable_schema = ON")
            version = version_of(connection)
            break
        except sqlite3.DatabaseError as error:
            connection.close()
            problem = error
    else:
        raise RecordError(f"{path}: not a record, or damaged at its beginning: {problem}")
    if version != VERSION:
        connection.close()
        raise OtherVersionError(f"{path}: {other_version(version)}" if version else f"{path}: not a record")
    return connection, cut_off


def version_of(connection: sqlite3.Connection) -> int:
    """The schema's version; 0 if the file is empty."""
    until_s = time.monotonic() + 2.0
    while True:
        try:
            tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'steps'").fetchone()[0]
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            return version if tables or not version else -1
        except sqlite3.OperationalError as error:
            if error_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > until_s:
                raise
        except UnicodeDecodeError:  # the message names a damaged table, in bytes that are no text
            damaged = sqlite3.DatabaseError("the list of its tables is damaged")
            damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damaged from None


def other_version(version: int) -> str:
    """The message for a record of another version."""
    if version < 0:
        return "not a record of tui-descent"
    newer = "a newer" if version > VERSION else "an older"
    return f"the record has schema {version}, from {newer} version of tui-descent; this one reads schema {VERSION}"
