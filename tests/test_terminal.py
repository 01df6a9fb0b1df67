"""The terminal that other tests type into, against a program that draws slowly."""

from __future__ import annotations

import sys

import pytest
from terminal import Terminal

SLOW = """
import sys, time, tty
tty.setraw(0)
def write(text):
    sys.stdout.write(text)
    sys.stdout.flush()
write("\\x1b[?2026$p")
answer = sys.stdin.read(len("\\x1b[?2026;2$y")) if {asks} else ""
write("\\x1b[?2026h" * {asks} + "first half")
time.sleep(0.4)
write(", second half")
write("\\x1b[?2026l" * {asks})
sys.stdin.read(1)
"""


@pytest.mark.parametrize(("asks", "seen"), [(True, "first half, second half"), (False, "first half")])
def test_a_frame_half_drawn_is_not_looked_at(asks: bool, seen: str) -> None:
    terminal = Terminal([sys.executable, "-c", SLOW.format(asks=asks)], columns=60, rows=5)
    try:
        assert terminal.wait("first half").rstrip() == seen
        terminal.press("q")
        assert terminal.ended() == 0
    finally:
        terminal.close()
