"""A ring writer for tests that kill it. It writes at full speed and acknowledges each step on stdout afterwards.

ring_writer.py FD STEPS_IN_RING [COUNT]
"""

from __future__ import annotations

import os
import struct
import sys

from tui_descent.protocol.ring import Ring

PACKED = struct.Struct("<Q")


def values(step: int) -> tuple[float, float, float]:
    """Loss, rate and time; different for every step."""
    return step * 0.5, step + 0.25, step * 3.0


def rows(step: int) -> list[list[float]]:
    return [[3.0, step + n * 0.125, -float(step)] for n in range(50)]


def main() -> None:
    ring = Ring.create(int(sys.argv[1]), layers=50, columns=2, steps=int(sys.argv[2]))
    os.write(1, PACKED.pack(0))
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 1 << 40
    for step in range(count):
        ring.write_step(step, *values(step), step // 1000, step % 7 == 0)
        if step % 50 == 0:
            ring.write_reading(step, step // 1000, step * 2.0, 0.5, rows(step))
        if len(sys.argv) <= 3:
            os.write(1, PACKED.pack(step + 1))


if __name__ == "__main__":
    main()
