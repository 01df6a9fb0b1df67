"""Moments whose tensors are too many for memory: a file each in the run's folder, with a checksum, within bounds.

They serve the process that wrote them: what names the tensors stays in its memory, and all goes when the run ends.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

BUDGET = 8_000_000_000
SPARED = 1_000_000_000  # bytes of the disk that are left to others


class Stored:
    """A file with tensors, gone when nobody holds on to this any more. `nbytes` is its size."""

    def __init__(self, path: Path, digest: str, nbytes: int) -> None:
        self.path, self.nbytes = path, nbytes
        self._digest = digest
        weakref.finalize(self, path.unlink, missing_ok=True)

    def damage(self) -> str:
        """Why it cannot be read; empty where every byte is as it was written. Reads all of it."""
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != self.nbytes:
                    return f"{self.path.name} has {size:,} of {self.nbytes:,} bytes"
                if hashlib.file_digest(file, "sha256").hexdigest() != self._digest:
                    return f"{self.path.name} is damaged: its checksum is another"
        except OSError as error:
            return f"{self.path.name} cannot be read: {error.strerror}"
        return ""

    def read(self) -> list[Tensor]:
        """The tensors as they were written, mapped on the CPU. Raises `ValueError` where they are not whole."""
        if why := self.damage():
            raise ValueError(why)
        try:
            read = torch.load(self.path, weights_only=True, mmap=True, map_location="cpu")
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise ValueError(f"{self.path.name} cannot be read: {type(error).__name__}") from error
        return cast("list[Tensor]", read)


class Disk:
    """The folder of one run's stored moments: `budget` bytes at most, and `spared` of the disk stay free."""

    def __init__(self, folder: Path, *, budget: int = BUDGET, spared: int = SPARED) -> None:
        self.folder = folder
        self.budget, self.spared = budget, spared
        self._count = 0

    def refusal(self, nbytes: int, *, used: int, given_up: int = 0) -> str:
        """Why so much has no room beside what is `used` here, `given_up` of that being free to go; else empty."""
        if used - given_up + nbytes > self.budget:
            return f"on disk {self.budget / 1e6:,.0f} MB are allowed"
        if nbytes > (free := self._free()) + given_up - self.spared:
            return f"the disk has {free / 1e6:,.0f} MB left, and {self.spared / 1e6:,.0f} MB are spared"
        return ""

    def store(self, tensors: Sequence[Tensor]) -> Stored:
        """Write them aside, then under their name. Raises `OSError`, with nothing left, where they find no room."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._count += 1
        path = self.folder / f"{self._count}.pt"
        aside = path.with_suffix(".part")
        writer = None
        try:
            with aside.open("wb") as file:
                writer = _Summing(file, most=self._free() - self.spared)
                torch.save([t.detach() for t in tensors], writer)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except (OSError, RuntimeError) as error:
            aside.unlink(missing_ok=True)
            # Torch tells of our writer's error in words of its own.
            found = (writer.failed if writer is not None else None) or error
            raise found if isinstance(found, OSError) else OSError(errno.EIO, str(found)[:200]) from error
        return Stored(path, writer.sha.hexdigest(), writer.written)

    def clear(self) -> None:
        """The run is over."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _free(self) -> int:
        try:
            return shutil.disk_usage(self.folder if self.folder.exists() else self.folder.parent).free
        except OSError:
            return 0


class _Summing:
    """A file that sums up what is written to it, and ends before the disk is full."""

    def __init__(self, file: BinaryIO, *, most: int) -> None:
        self.sha = hashlib.sha256()
        self.written = 0
        self.failed: OSError | None = None
        self._file, self._most = file, most

    def write(self, data: bytes) -> int:
        """All of it. Raises `OSError`."""
        size = len(data)
        try:
            if self.written + size > self._most:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._file.write(data)
        except OSError as error:
            self.failed = error
            raise
        self.sha.update(data)
        self.written += size
        return size

    def flush(self) -> None:
        """As torch's writer asks."""
        self._file.flush()
