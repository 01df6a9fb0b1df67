"""Reads the bytes of a data file, plain or compressed with gzip, up to a limit."""

from __future__ import annotations

import stat
import zlib
from pathlib import Path

from tui_descent.scenario.validate import escape_controls, shorten

SAMPLES = Path(__file__).resolve().parent / "samples"
GZIP_MAGIC = b"\x1f\x8b"
WITH_GZIP_HEADER = 31  # for zlib: 15 bits of window, and a gzip header with a checksum


def shown(path: Path | str) -> str:
    """The name of a file for an error message."""
    return escape_controls(shorten(str(path), 200))


def version(path: Path) -> tuple[int, int] | None:
    """When the file was changed, and its size: what was read from another version is no longer true."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a file, uncompressed if it is a gzip file. At most `most` bytes are read.

    Raises `ValueError` if the file is missing, not a regular file, too large, or a broken gzip file.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for a writer
            what = "a folder" if stat.S_ISDIR(info.st_mode) else "not a regular file"
            raise ValueError(f"{shown(path)} is {what}; give a file")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise ValueError(f"{shown(path)}: no such file") from None
    except OSError as error:
        raise ValueError(f"{shown(path)} cannot be read: {error.strerror}") from None
    too_large = f"{shown(path)} is larger than {most:,} bytes, the limit"
    if len(data) > most:
        raise ValueError(too_large)
    if not data.startswith(GZIP_MAGIC):
        return data
    inflater = zlib.decompressobj(WITH_GZIP_HEADER)
    try:
        data = inflater.decompress(data, most + 1)
    except zlib.error:
        raise ValueError(f"{shown(path)} is not a valid gzip file") from None
    if len(data) > most:
        raise ValueError(f"{too_large}, when uncompressed")
    if not inflater.eof:
        raise ValueError(f"{shown(path)} is a gzip file that ends too early")
    if inflater.unused_data.strip(b"\0"):
        raise ValueError(f"{shown(path)} has more bytes after the end of its gzip data")
    return data


def read_text(path: Path, most: int) -> str:
    """The content of a UTF-8 file, with or without a byte-order mark; line ends become line feeds."""
    data = read_bytes(path, most)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{shown(path)}: line {line:,} is not UTF-8; save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
