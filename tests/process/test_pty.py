"""The program in a real terminal, with real data and real keys."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest
import tiny_trainer
from runs import children
from terminal import Terminal

COMMAND = [sys.executable, "-m", "tui_descent"]
DETACHED = re.compile(r"detached: (\S+) at step \d+, training loss [\d.]+; come back with: tui-descent attach \1\r")
VANISHING = ("vanishing", "--pace", "100", "--set", "run.steps=100000")  # it does not end before the last key
WITHOUT_TORCH = ("exec", "--", sys.executable, tiny_trainer.__file__)


@pytest.fixture
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    columns, rows, *arguments = request.param
    opened = Terminal([*COMMAND, *arguments], columns=columns, rows=rows)
    yield opened
    opened.close()


def started(*arguments: str, columns: int = 120, rows: int = 40, heavy: bool = False) -> pytest.param:
    marks = pytest.mark.heavy if heavy else ()
    return pytest.param((columns, rows, *arguments), id=f"{columns}x{rows}", marks=marks)


def shell(terminal: Terminal) -> str:
    """What is on the shell after the dashboard has left the alternate screen."""
    return bytes(terminal.raw).rpartition(b"\x1b[?1049l")[2].decode(errors="replace")


def step_of(text: str) -> int:
    found = re.search(r"step\s+([\d,]+)", text)
    return int(found[1].replace(",", "")) if found else -1


def brightness(terminal: Terminal, label: str) -> float | None:
    """Mean brightness of the heat map in the row of a label, at its right end; None while it has one column."""
    rows = [n for n, line in enumerate(terminal.screen.display) if label in line[:16]]
    assert rows, terminal.text()
    line = [terminal.screen.buffer[rows[-1]][x] for x in range(12, terminal.screen.columns - 2)]
    # A cell shows two rows of the map as half blocks, or as a space with a background colour if both are equal.
    tops = [c.fg if c.data == "▀" else c.bg for c in line if c.data == "▀" or c.bg != line[-1].bg]
    newest = tops[-6:-1]
    if not newest:
        return None
    return sum(int(colour[k : k + 2], 16) for colour in newest for k in (0, 2, 4)) / len(newest) / 3


def processes_of(home: str) -> list[str]:
    """Commands of this user's keepers and trainers for runs under `home`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if home in line and "tui_descent" in line:
                found.append(line)
    return found


def gone(home: str, *, within: float = 15.0) -> bool:
    end = time.monotonic() + within
    while processes_of(home) and time.monotonic() < end:
        time.sleep(0.1)
    return not processes_of(home)


def restored(terminal: Terminal) -> bool:
    """Whether the program switched the alternate screen and the mouse off at its end."""
    raw = bytes(terminal.raw)
    return raw.rfind(b"\x1b[?1049l") > raw.rfind(b"\x1b[?1049h") and raw.rfind(b"\x1b[?1000l") >= raw.rfind(
        b"\x1b[?1000h"
    )


@pytest.mark.parametrize(
    "terminal", [started(*VANISHING, heavy=True), started(*VANISHING, columns=80, rows=24)], indirect=True
)
def test_one_key_cures_the_vanishing_gradient_and_every_main_key_has_an_effect(terminal: Terminal) -> None:
    terminal.wait("running")
    terminal.wait(lambda text: step_of(text) >= 30)
    before = terminal.text()
    assert "Loss" in before
    assert "Gradient flow" in before
    assert "residual off" in before or "res off" in before
    terminal.wait(lambda _: brightness(terminal, "stem") is not None)
    dark = brightness(terminal, "stem")
    terminal.press("r")
    shown = terminal.wait(lambda text: re.search(r"applied at step\s+\d+", text) is not None)
    at = int(re.search(r"applied at step\s+(\d+)", shown)[1])  # type: ignore[index]
    assert "residual off → on" in shown
    terminal.wait(lambda text: step_of(text) >= at + 90)
    lit = brightness(terminal, "stem")
    assert dark is not None
    assert lit is not None
    assert lit > dark + 60
    terminal.press("+")
    terminal.wait("0.125")
    terminal.press("-")
    terminal.wait(lambda text: "rate 0.1 " in text)
    terminal.press("space")
    terminal.wait("paused")
    stood = step_of(terminal.text())
    terminal.press(".")
    terminal.wait(lambda text: step_of(text) == stood + 1 and "paused" in text)
    terminal.press("a")
    terminal.wait("1 / (1 + e")  # the present activation is highlighted
    terminal.press("up", "enter")
    terminal.wait(lambda text: "activation sigmoid →" in text)
    terminal.press("space")
    terminal.wait(lambda text: step_of(text) > stood + 5 and "running" in text)
    terminal.press("q")
    terminal.wait("Leave this run?")
    terminal.press("escape")
    terminal.wait(lambda text: "Leave this run?" not in text)
    now = step_of(terminal.text())
    terminal.wait(lambda text: step_of(text) > now + 5)
    terminal.press("q")
    terminal.wait("Leave this run?")
    terminal.press("s")
    assert terminal.ended() == 0
    assert restored(terminal)
    assert gone(os.environ["TUI_DESCENT_HOME"])


@pytest.mark.parametrize("terminal", [started(*WITHOUT_TORCH)], indirect=True)
def test_a_killed_trainer_is_shown_within_a_second_and_the_screen_stays(terminal: Terminal) -> None:
    terminal.wait(lambda text: step_of(text) >= 10)
    (keeper,) = children(terminal.child.pid)
    (holder,) = children(keeper)
    (trainer,) = children(holder)
    os.kill(trainer, signal.SIGKILL)
    killed = time.monotonic()
    terminal.wait(lambda text: re.search(r"trainer lost \(signal 9\) at step \d+", text) is not None)
    took = time.monotonic() - killed
    assert took < 5.0, took  # a second on an idle machine; this one may be loaded
    terminal.press("?")
    terminal.wait("learning rate × 1.25")
    terminal.press("escape")
    terminal.wait(lambda text: "learning rate × 1.25" not in text)
    terminal.press("q")
    assert terminal.ended() == 4
    assert restored(terminal)


@pytest.mark.parametrize("terminal", [started(*WITHOUT_TORCH)], indirect=True)
@pytest.mark.parametrize(
    "number",
    [signal.SIGHUP, *(pytest.param(n, marks=pytest.mark.heavy) for n in (signal.SIGTERM, signal.SIGINT))],
)
def test_signals_restore_the_terminal_and_leave_the_run_going(terminal: Terminal, number: signal.Signals) -> None:
    terminal.wait(lambda text: step_of(text) >= 3)
    terminal.child.kill(number)
    assert terminal.ended() == 128 + number
    assert restored(terminal)
    assert DETACHED.search(shell(terminal))
    assert processes_of(os.environ["TUI_DESCENT_HOME"])


@pytest.mark.parametrize("terminal", [started(*WITHOUT_TORCH, columns=100, rows=30)], indirect=True)
def test_q_leaves_the_run_going(terminal: Terminal) -> None:
    terminal.wait(lambda text: step_of(text) >= 3)
    terminal.press("q")
    terminal.wait("Leave this run?")
    terminal.press("enter")
    assert terminal.ended() == 0
    assert restored(terminal)
    assert DETACHED.search(shell(terminal))
    assert processes_of(os.environ["TUI_DESCENT_HOME"])


# Usual: test_viewers_and_commands.py has the held run, test_run_states.py its screen.
@pytest.mark.parametrize("terminal", [started("too-hot")], indirect=True)
@pytest.mark.heavy
def test_a_diverging_run_is_held_before_the_update(terminal: Terminal) -> None:
    terminal.wait(
        lambda text: re.search(r"loss is (nan|inf) at step \d+: matmul overflows in blocks", text) is not None
    )
    terminal.press("q")
    terminal.wait("Leave this run?")
    terminal.press("s")
    assert terminal.ended() == 0


@pytest.mark.parametrize("terminal", [started("first-descent", "--pace", "20")], indirect=True)
@pytest.mark.heavy
def test_a_preset_waits_at_its_end_and_can_be_continued(terminal: Terminal) -> None:
    terminal.wait(lambda text: "● waiting" in text and step_of(text) == 10)
    terminal.press("space")
    terminal.wait(lambda text: "● waiting" in text and step_of(text) == 20)
    terminal.press("q")
    terminal.wait("Leave this run?")
    terminal.press("s")
    assert terminal.ended() == 0


USER_LOOP = """
import time
import torch
from torch import nn
from tui_descent import watch

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with watch(model, optimizer, name="mine") as run:
    while True:
        time.sleep(0.01)  # as if it waited for its data: the machine has other tests to run
        x = torch.randn(512, 8)
        loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step(loss)
print("the script goes on")
"""


def test_a_user_loop_is_shown_and_its_learning_rate_changed(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(USER_LOOP)
    terminal = Terminal([*COMMAND, "exec", "--", sys.executable, str(script)], columns=120, rows=40)
    try:
        terminal.wait(lambda text: step_of(text) > 50 and "running" in text)
        terminal.press("]")
        text = terminal.wait(lambda text: re.search(r"applied at step\s+[\d,]+", text) is not None)
        assert "0.1 → 1" in text
        terminal.press("r")
        terminal.wait("no block keeps its input's shape")
        terminal.press("q")
        terminal.wait("Leave this run?")
        terminal.press("s")
        assert terminal.ended() == 0
        assert gone(os.environ["TUI_DESCENT_HOME"])
    finally:
        terminal.close()


def test_a_script_that_fails_after_its_run_is_reported_and_its_output_kept() -> None:
    then = "raise SystemExit('no room for the plots')"
    terminal = Terminal([*COMMAND, *WITHOUT_TORCH, "20", "finished", then], columns=120, rows=40)
    try:
        text = terminal.wait("the script then failed with exit code 1")
        assert "finished" in text
        assert "at step 20" in text
        assert "no room for the plots" in terminal.wait("full log:")
        terminal.press("q")
        assert terminal.ended() == 1
        assert gone(os.environ["TUI_DESCENT_HOME"])
        (log,) = Path(os.environ["TUI_DESCENT_HOME"]).glob("runs/*/run.log")
        assert "no room for the plots" in log.read_text()
    finally:
        terminal.close()


@pytest.mark.parametrize(
    "exported",
    [
        pytest.param({}, id="", marks=pytest.mark.heavy),
        pytest.param({"COLUMNS": "80", "LINES": "24"}, id="a size exported"),
    ],
)
def test_a_too_small_terminal_shows_the_size_it_needs_until_it_is_enlarged(exported: dict[str, str]) -> None:
    terminal = Terminal([*COMMAND, *WITHOUT_TORCH], columns=50, rows=12, env=exported)

    def resize(columns: int, rows: int) -> None:
        terminal.screen.resize(rows, columns)
        terminal.child.setwinsize(rows, columns)

    try:
        terminal.wait("60×20")
        resize(1, 1)
        terminal.read(0.3)
        resize(500, 200)
        terminal.wait(lambda text: "Gradient flow" in text and max(map(len, text.splitlines())) > 400)
        resize(20, 5)
        terminal.wait("60×20")
        for n in range(40):  # as when the edge of a window is dragged
            resize(1 + 12 * n, 1 + 4 * n)
            terminal.read(0.01)
        resize(120, 40)
        terminal.wait(lambda text: "Gradient flow" in text and max(map(len, text.splitlines())) > 110)
        terminal.press("q")
        terminal.wait("Leave this run?")
        terminal.press("s")
        assert terminal.ended() == 0
    finally:
        terminal.close()


@pytest.mark.heavy
def test_the_gallery_starts_the_chosen_preset() -> None:
    terminal = Terminal(COMMAND, columns=100, rows=30)
    try:
        text = terminal.wait("Ten steps down a parabola")
        assert "vanishing" in text
        terminal.press("enter")
        terminal.wait("Gradient flow")
        terminal.press("q")
        terminal.wait("Leave this run?")
        terminal.press("s")
        assert terminal.ended() == 0
    finally:
        terminal.close()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_utf8_gets_its_own_characters_even_if_stderr_is_elsewhere(encoding: str, home: Path) -> None:
    command = " ".join([*COMMAND, *WITHOUT_TORCH])
    terminal = Terminal(
        ["bash", "-c", f"exec {command} 2>{home / 'stderr'}"], columns=80, rows=24, env={"PYTHONIOENCODING": encoding}
    )
    text = terminal.wait("running")
    assert "f?nf" not in text
    assert "\\u" not in text
    assert "+- " in text, "the panels have borders"
    screen = pyte.Screen(80, 24)  # the terminal's own screen decodes UTF-8
    pyte.Stream(screen).feed(bytes(terminal.raw).decode(encoding))
    shown = "\n".join(screen.display)
    assert ("f\xfcnf -> l" if encoding == "latin-1" else "funf > l").replace("->", ">") in shown
    terminal.press("q")
    terminal.wait("Leave this run?")
    terminal.press("s")
    assert terminal.ended() == 0
    assert (home / "stderr").read_text() == ""
