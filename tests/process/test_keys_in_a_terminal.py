"""Keys typed into the real program while its trainer runs at full speed."""

from __future__ import annotations

import re
import socket
import string
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from attended import Reply, Viewer
from runs import temporary_home
from terminal import Terminal

from tui_descent.protocol.events import CommandDone, CommandRejected, HistorySent, KnobTurned, Marked

COMMAND = [sys.executable, "-m", "tui_descent", "run", "healthy", "--pace", "max", "--set", "run.steps=10000000"]


@pytest.fixture(scope="module")
def shared_home() -> Iterator[Path]:
    with temporary_home() as folder:
        yield folder


@pytest.fixture(scope="module")
def terminal(shared_home: Path) -> Iterator[Terminal]:
    opened = Terminal(COMMAND, columns=120, rows=40, env={"TUI_DESCENT_HOME": str(shared_home)})
    opened.wait("running")
    opened.wait(lambda text: "rate 0." in text)
    yield opened
    opened.press("q")
    opened.wait("Leave this run?")
    opened.press("s")
    assert opened.ended() == 0
    opened.close()


@pytest.fixture
def viewer(terminal: Terminal, shared_home: Path) -> Iterator[Viewer]:
    """A second viewer, to receive the replies to the terminal's keys."""
    (path,) = (shared_home / "sockets").iterdir()
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    beside = Viewer(sock)
    beside.hello()
    beside.until_event(HistorySent)
    yield beside
    beside.close()


def rate(text: str) -> float:
    found = re.search(r"rate ([\d.e-]+)", text)
    return float(found[1]) if found else -1.0


def test_a_thousand_keys_in_one_write_take_effect_within_two_seconds(terminal: Terminal, viewer: Viewer) -> None:
    before = rate(terminal.text())
    after = before / 1.25**10
    begun_s = time.monotonic()
    terminal.child.send("-+" * 495 + "-" * 10)
    terminal.wait(lambda text: rate(text) == float(f"{after:.4g}"), within=20)
    took_s = time.monotonic() - begun_s
    viewer.until(lambda m: isinstance(m, KnobTurned) and float(m.new) == pytest.approx(after, rel=1e-5))
    turns = viewer.events(KnobTurned)
    assert all(a.new == b.old for a, b in pairwise(turns))
    assert len(turns) < 100
    assert took_s < 2.0


def test_a_paste_of_ten_kilobytes_changes_nothing(terminal: Terminal, viewer: Viewer) -> None:
    letters = (string.ascii_letters + "+-=[]., ;>") * 200
    terminal.child.send(f"\x1b[200~{letters[:10240]}\x1b[201~")
    terminal.press("m")
    viewer.until_event(Marked, 20)
    viewer.until(lambda m: isinstance(m, CommandDone), 20)
    replies = [m for m in viewer.heard if isinstance(m, Reply)]
    assert [reply.what for reply in replies if isinstance(reply, CommandDone)] == ["marked"]
    assert not [m for m in viewer.heard if isinstance(m, KnobTurned | CommandRejected)]


@pytest.mark.heavy
def test_a_key_takes_effect_and_shows_on_screen_soon(terminal: Terminal, viewer: Viewer) -> None:
    for n, key in enumerate("-+" * 5):
        before = rate(terminal.text())
        begun_s = time.monotonic()
        terminal.press(key)
        terminal.wait(lambda text, before=before: rate(text) not in (before, -1.0), within=20)
        assert time.monotonic() - begun_s < 2.0, n
    viewer.until(lambda _: len(viewer.events(KnobTurned)) == 10)
    turns = viewer.events(KnobTurned)
    assert len(turns) == 10
    assert all(a.step < b.step for a, b in pairwise(turns))
