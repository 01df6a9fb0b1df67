"""Data files as a user may have them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path


def idx(shape: tuple[int, ...], numbers: bytes, *, kind: int = 8) -> bytes:
    """An IDX file of bytes."""
    return bytes([0, 0, kind, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + numbers


def write_images(
    folder: Path,
    *,
    count: int = 40,
    height: int = 4,
    width: int = 4,
    classes: int = 3,
    write: Callable[[bytes], bytes] = bytes,
) -> Path:
    """Write images and labels under the names of MNIST, and return the path of the images."""
    shape = (count, height, width)
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(write(idx(shape, bytes(n % 256 for n in range(math.prod(shape))))))
    (folder / "train-labels-idx1-ubyte").write_bytes(write(idx((count,), bytes(n % classes for n in range(count)))))
    return path
