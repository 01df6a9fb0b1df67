"""Make the sample images and points that are shipped: python docs/samples.py"""

from __future__ import annotations

import gzip
import math
import random

from tui_descent.scenario.own_data.files import SAMPLES

SIDE, IMAGES, POINTS = 12, 400, 300
FINE = 3  # pixels are the mean of FINE × FINE samples
SHAPES = (
    lambda x, y: x * x + y * y < 1,
    lambda x, y: max(abs(x), abs(y)) < 0.9,
    lambda x, y: -1 < y < 0.9 and abs(x) < 0.55 * (y + 1),
    lambda x, y: min(abs(x), abs(y)) < 0.32 and max(abs(x), abs(y)) < 1,
)


def image(shape: int, chance: random.Random) -> bytes:
    """One image, row by row, a byte for each pixel."""
    radius = chance.uniform(2.5, 4.2)
    left, top = (chance.uniform(-1.2, 1.2) + SIDE / 2 for _ in range(2))
    inside = SHAPES[shape]
    pixels = []
    for y in range(SIDE):
        for x in range(SIDE):
            steps = [(n + 0.5) / FINE for n in range(FINE)]
            hits = sum(inside((x + i - left) / radius, (y + j - top) / radius) for i in steps for j in steps)
            pixels.append(round(hits / FINE**2 * 255))
    return bytes(pixels)


def point(chance: random.Random) -> str:
    """One line of the CSV: a point in the disc of radius 2, divided as the yin-yang is."""
    radius, angle = 2 * math.sqrt(chance.random()), chance.uniform(0, 2 * math.pi)
    x, y = radius * math.cos(angle), radius * math.sin(angle)
    light = math.hypot(x, y - 1) < 1 or (x > 0 and math.hypot(x, y + 1) >= 1)
    return f"{x:.2f},{y:.2f},{'light' if light else 'dark'}"


def main() -> None:
    """Write the files."""
    chance = random.Random(0)
    labels = [n % len(SHAPES) for n in range(IMAGES)]
    chance.shuffle(labels)
    sizes = b"".join(n.to_bytes(4, "big") for n in (IMAGES, SIDE, SIDE))
    drawn: dict[bytes, None] = {}  # no image twice, or a held-out one could be known from the training
    for label in labels:
        while (one := image(label, chance)) in drawn:
            pass
        drawn[one] = None
    images = b"\0\0\x08\x03" + sizes + b"".join(drawn)
    files = {"images-idx3": images, "labels-idx1": b"\0\0\x08\x01" + sizes[:4] + bytes(labels)}
    for name, content in files.items():
        (SAMPLES / f"shapes-{name}-ubyte.gz").write_bytes(gzip.compress(content, 9, mtime=0))
    rows = ["x,y,label", *(point(chance) for _ in range(POINTS))]
    (SAMPLES / "two-fields.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
