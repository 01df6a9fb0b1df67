"""The file of a snapshot: a dict of plain containers and tensors, written by `torch.save`, with a checksum of its own.

`torch.load(path, weights_only=True)` reads it without this package. It is never unpickled in any other way, so a file
cannot run code. The checksum is needed because torch loads a file with a changed byte without an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from tui_descent.training.run_description import describe

FORMAT = "tui-descent snapshot"
VERSION = 1  # of the file's content. A reader refuses any other version by its number.
_NAME = re.compile(r"(\d{1,15})-(\d{1,15})(?:-(\d{1,15}))?\.pt")
_TEMPORARY = ".tmp"
_ZIP = b"PK\x03\x04"  # what torch's files begin with; older formats of torch are not read
_MAX_DEPTH = 50
Place = tuple[int, int, int]  # a segment, a step, and the number of interventions before this state


class SnapshotError(ValueError):
    """A snapshot that cannot be saved, read or used. The message says why."""


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """A file with the state before update `step` of `segment`, after that number of interventions.

    In files of older versions, the number of interventions is not a part of the name. It is 0 here.
    """

    path: Path
    segment: int
    step: int
    interventions: int
    nbytes: int

    @property
    def place(self) -> Place:
        """Which state of the run it is."""
        return self.segment, self.step, self.interventions


def files(folder: Path) -> list[SnapshotFile]:
    """The snapshots in a folder, the oldest first. Files with other names, and unfinished ones, are left out."""
    found: list[SnapshotFile] = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            name = _NAME.fullmatch(entry.name)
            if name is not None and entry.is_file(follow_symlinks=False):
                size = entry.stat(follow_symlinks=False).st_size
                found.append(SnapshotFile(Path(entry.path), int(name[1]), int(name[2]), int(name[3] or 0), size))
    return sorted(found, key=lambda file: file.place)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes have left half written."""
    with contextlib.suppress(OSError):
        for entry in [one for one in os.scandir(folder) if one.name.endswith(_TEMPORARY)]:
            os.unlink(entry.path)


def write(folder: Path, segment: int, step: int, content: dict[str, Any]) -> SnapshotFile:
    """Write a snapshot and return its file; it appears under its name only when it is complete and on the disk.

    `content` has plain containers, strings, numbers and tensors on the CPU. The number of its "interventions" becomes a
    part of the name, so that the states before several interventions at one step have a file each. Raises `OSError`,
    with no new file left, and `SnapshotError` for content of another kind.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    interventions = int(content.get("interventions", 0))
    path = folder / (f"{segment}-{step}-{interventions}.pt" if interventions else f"{segment}-{step}.pt")
    temporary = folder / f".{path.name}.{os.getpid()}{_TEMPORARY}"
    complete = {"format": FORMAT, "version": VERSION, **content}
    complete["checksum"] = checksum(complete)
    try:
        with contextlib.closing(_Writer(temporary)) as writer:
            torch.save(complete, cast("IO[bytes]", writer))  # which only calls `write` and `flush`
            writer.finish()
        temporary.rename(path)
        _sync_folder(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return SnapshotFile(path, segment, step, interventions, path.stat().st_size)


def read(path: Path) -> dict[str, Any]:
    """The content of a snapshot, with its tensors on the CPU. Raises `SnapshotError` with the reason if it is damaged,
    of another version, or no snapshot.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SnapshotError(f"it cannot be read: {error.strerror or error}") from None
    try:
        with open(file, "rb") as opened:
            if not stat.S_ISREG(os.fstat(file).st_mode) or opened.read(len(_ZIP)) != _ZIP:
                raise ValueError("it is not a file of torch.save")
            opened.seek(0)
            content = torch.load(opened, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many kinds for a damaged file
        raise SnapshotError(f"it is damaged: {describe(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SnapshotError("it is not a snapshot of tui-descent")
    if content.get("version") != VERSION:
        version = str(content.get("version"))[:20]
        raise SnapshotError(f"it has version {version} of the format; this tui-descent reads version {VERSION}")
    if content.pop("checksum", None) != checksum(content):
        raise SnapshotError("it is damaged: its checksum does not match")
    return content


def checksum(value: object) -> str:
    """SHA-256 over everything in `value`. Raises `SnapshotError` if it contains anything but plain values."""
    digest = hashlib.sha256()
    for part in _parts(value, 0):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: object, depth: int) -> Iterator[bytes | memoryview]:
    """The value as bytes; different values have different bytes."""
    if depth > _MAX_DEPTH:
        raise SnapshotError("a snapshot cannot hold containers that are nested so deeply")
    kind = type(value)
    if kind is Tensor:
        assert isinstance(value, Tensor)
        yield f"tensor {value.dtype} {tuple(value.shape)};".encode()
        yield from _numbers_of(value)
    elif kind in (list, tuple):
        assert isinstance(value, list | tuple)
        yield f"{kind.__name__} {len(value)};".encode()
        for one in value:
            yield from _parts(one, depth + 1)
    elif kind is dict:
        assert isinstance(value, dict)
        yield f"dict {len(value)};".encode()
        for key, one in value.items():
            yield from _parts(key, depth + 1)
            yield from _parts(one, depth + 1)
    elif kind is float:
        yield b"float;" + struct.pack("<d", value)
    elif kind in (int, bool, str, type(None)):
        text = str(value).encode("utf-8", "surrogatepass")
        yield f"{kind.__name__} {len(text)};".encode() + text
    else:
        raise SnapshotError(f"a snapshot cannot hold a {kind.__name__}")


def _numbers_of(tensor: Tensor) -> Iterator[memoryview]:
    """The numbers of a tensor on the CPU, in order. They are not copied, unless their order in memory is another."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise SnapshotError(f"a snapshot cannot hold a {tensor.layout} tensor on {tensor.device.type}")
    dense = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if nbytes := dense.numel() * dense.element_size():
        yield memoryview((ctypes.c_char * nbytes).from_address(dense.data_ptr()))


class _Writer:
    """What `torch.save` writes to. An error is kept until `finish`, because torch's own writer may abort the process
    when the file raises.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        while left and self._error is None:
            try:
                left = left[os.write(self._file, left) :]
            except OSError as error:
                self._error = error
        return size

    def flush(self) -> None:
        """Nothing is buffered."""

    def finish(self) -> None:
        """Wait until everything is on the disk. Raises `OSError` if anything could not be written."""
        if self._error is not None:
            raise self._error
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def _sync_folder(folder: Path) -> None:
    """Write the new name to the disk too, where the file system supports this."""
    with contextlib.suppress(OSError):
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
