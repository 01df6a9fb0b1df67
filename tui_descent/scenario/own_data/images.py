"""Grey images and their classes from two IDX files, the format of MNIST.

An IDX file begins with two zero bytes, the type of its numbers (8 for bytes) and the number of dimensions; then follows
the size of each dimension in four bytes, the most significant first, and then the numbers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import msgspec

from tui_descent.scenario.own_data.files import SAMPLES, read_bytes, shown, version
from tui_descent.scenario.spec import OwnImagesData

MAX_BYTES = 64_000_000
MAX_SIDE, MIN_SIDE, MAX_CLASSES = 64, 2, 100
MIN_IMAGES, MAX_IMAGES = 20, 100_000
HELD_OUT, MOST_HELD_OUT = 0.2, 2000  # a fraction of the images, but not more than this many
BYTES = 8  # the type of an IDX file of bytes
TYPES = {8: "bytes", 9: "signed bytes", 11: "16-bit integers", 12: "32-bit integers", 13: "floats", 14: "doubles"}


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of the images and how many there are."""

    height: int
    width: int
    classes: int
    training: int
    held_out: int

    @property
    def pixels(self) -> int:
        """The number of pixels of an image."""
        return self.height * self.width


class Images(msgspec.Struct, frozen=True, kw_only=True):
    """All images: `pixels` has height · width bytes for each, row by row; `labels` has a byte for each."""

    sizes: Sizes
    pixels: bytes
    labels: bytes


def read(data: OwnImagesData) -> Images:
    """Read the images and their classes. Raises `ValueError` if a file is invalid or the two do not belong together."""
    path, labels_path = paths(data)
    (count, height, width), pixels = _idx(path, "images", dimensions=3)
    for name, side in (("rows", height), ("columns", width)):
        if not MIN_SIDE <= side <= MAX_SIDE:
            raise ValueError(f"{shown(path)}: images of {side} {name}; allowed: {MIN_SIDE} to {MAX_SIDE}")
    if not MIN_IMAGES <= count <= MAX_IMAGES:
        raise ValueError(f"{shown(path)} has {count:,} images; allowed: {MIN_IMAGES} to {MAX_IMAGES:,}")
    if data.subset is not None and data.subset > count:
        raise ValueError(f"{shown(path)} has {count:,} images; subset asks for {data.subset:,}")
    (label_count,), labels = _idx(labels_path, "labels", dimensions=1)
    if label_count != count:
        raise ValueError(f"{shown(labels_path)} has {label_count:,} labels, but there are {count:,} images")
    if (largest := max(labels)) >= MAX_CLASSES:
        at = labels.index(largest) + 1
        raise ValueError(f"{shown(labels_path)}: label {at:,} is {largest}; allowed: 0 to {MAX_CLASSES - 1}")
    if len(set(labels)) < 2:
        raise ValueError(f"{shown(labels_path)}: all labels are {labels[0]}; needs at least two classes")
    held_out = min(int(count * HELD_OUT), MOST_HELD_OUT)
    training = min(data.subset or count, count - held_out)
    sizes = Sizes(height=height, width=width, classes=largest + 1, training=training, held_out=held_out)
    return Images(sizes=sizes, pixels=pixels, labels=labels)


def sizes(data: OwnImagesData) -> Sizes:
    """The sizes of the images. Raises `ValueError` as `read` does."""
    return _sizes(data, *map(version, paths(data)))


@lru_cache(maxsize=1)
def _sizes(data: OwnImagesData, *versions: object) -> Sizes:
    return read(data).sizes


def paths(data: OwnImagesData) -> tuple[Path, Path]:
    """The files of the images and of the labels. Raises `ValueError` if the labels' name cannot be derived."""
    path = Path(data.path) if data.path else SAMPLES / "shapes-images-idx3-ubyte.gz"
    if data.labels:
        return path, Path(data.labels)
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    if name == path.name:
        raise ValueError(f'{shown(path)}: its name has no "images" to find the labels by; set data.labels, too')
    return path, path.with_name(name)


def _idx(path: Path, what: str, *, dimensions: int) -> tuple[tuple[int, ...], bytes]:
    """The size of each dimension, and the numbers of an IDX file of bytes."""
    data = read_bytes(path, MAX_BYTES)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in TYPES:
        raise ValueError(f"{shown(path)} is not an IDX file: it does not begin with 0, 0, 8 and {dimensions}")
    if data[2] != BYTES:
        raise ValueError(f"{shown(path)} has {TYPES[data[2]]}; allowed: bytes (type 8)")
    if data[3] != dimensions:
        text = f"{shown(path)} has {data[3]} dimensions; {what} need {dimensions}"
        raise ValueError(text + (": number, rows, columns" if dimensions == 3 else ""))
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise ValueError(f"{shown(path)} ends within its header")
    shape = tuple(int.from_bytes(data[n : n + 4], "big") for n in range(4, start, 4))
    if (found := len(data) - start) != (wanted := math.prod(shape)):
        size = " × ".join(f"{n:,}" for n in shape)
        raise ValueError(f"{shown(path)} has {found:,} bytes after its header; {size} {what} are {wanted:,}")
    if not wanted:
        raise ValueError(f"{shown(path)} has no {what}")
    return shape, data[start:]
