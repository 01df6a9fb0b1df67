"""Make the README's pictures: run the program in a real terminal, type keys, and draw the screen.

python docs/pictures.py [NAME]     (PNG needs rsvg-convert and DejaVu Sans Mono)
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from terminal import Terminal  # noqa: E402

CELL_W, CELL_H, BASE = 8.43, 17, 13
GROUND, INK = "#0c0c0c", "#d4d4d4"
ANSI = {
    "black": "#000000", "red": "#cd3131", "green": "#0dbc79", "brown": "#e5e510", "blue": "#2472c8",
    "magenta": "#bc3fbc", "cyan": "#11a8cd", "white": "#e5e5e5",
}  # fmt: skip


def colour(name: str, default: str) -> str:
    """Convert a pyte colour to CSS."""
    return default if name == "default" else ANSI.get(name, f"#{name}")


def svg(screen: Any) -> str:
    """The screen as SVG: one rectangle and one text for each run of cells with the same style."""
    width, height = screen.columns * CELL_W, screen.lines * CELL_H
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        f'font-family="DejaVu Sans Mono, monospace" font-size="14"><rect width="100%" height="100%" fill="{GROUND}"/>'
    ]
    for y in range(screen.lines):
        x, row = 0, screen.buffer[y]
        while x < screen.columns:
            cell, start, text = row[x], x, ""
            while x < screen.columns and row[x][1:] == cell[1:]:
                text += row[x].data or " "
                x += 1
            fore, back = colour(cell.fg, INK), colour(cell.bg, GROUND)
            if cell.reverse:
                fore, back = back, fore
            if back != GROUND:
                out.append(
                    f'<rect x="{start * CELL_W:.2f}" y="{y * CELL_H}" width="{(x - start) * CELL_W + 0.3:.2f}" '
                    f'height="{CELL_H + 0.3}" fill="{back}"/>'
                )
            weight = ' font-weight="bold"' if cell.bold else ""
            # Glyphs from a fallback font (braille) may be wider than a cell, so place such characters one by one.
            pieces = list(enumerate(text)) if max(text) > "\u24ff" else [(0, text)]
            out += [
                f'<text xml:space="preserve" x="{(start + k) * CELL_W:.2f}" y="{y * CELL_H + BASE}" '
                f'fill="{fore}"{weight}>{html.escape(piece)}</text>'
                for k, piece in pieces
                if piece.strip()
            ]
    return "".join(out) + "</svg>"


def save(terminal: Terminal, name: str) -> None:
    """Write the picture to docs/, as PNG if rsvg-convert is installed, otherwise as SVG."""
    target = ROOT / "docs" / f"{name}.svg"
    target.write_text(svg(terminal.screen), encoding="utf-8")
    if shutil.which("rsvg-convert"):
        subprocess.run(["rsvg-convert", target, "-o", target.with_suffix(".png")], check=True)
        target.unlink()
    print(target.stem)


def step_of(text: str) -> int:
    """The step in the status line, or -1."""
    found = re.search(r"step\s+([\d,]+)", text)
    return int(found[1].replace(",", "")) if found else -1


@contextmanager
def running(arguments: Sequence[str], columns: int, rows: int) -> Iterator[Terminal]:
    """The program in a terminal of this size. It is stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="td") as home:
        command = [sys.executable, "-m", "tui_descent", *arguments]
        terminal = Terminal(command, columns=columns, rows=rows, env={"TUI_DESCENT_HOME": home}, cwd=str(ROOT))
        try:
            yield terminal
            terminal.press("q")
            terminal.read(0.5)
            terminal.press("s")
            terminal.ended()
        finally:
            terminal.close()


def wait_for_step(terminal: Terminal, step: int) -> None:
    """Wait until the status line shows at least this step."""
    terminal.wait(lambda text: step_of(text) >= step)


def picture(name: str, arguments: list[str], size: tuple[int, int], *, keys: dict[int, str], save_at: int) -> None:
    """Run the program, press `keys` at about their steps, and take the picture at the step `save_at`."""
    with running(arguments, *size) as terminal:
        for step, key in keys.items():
            wait_for_step(terminal, step)
            terminal.press(key)
        wait_for_step(terminal, save_at)
        save(terminal, name)


def main() -> int:
    """Make all pictures, or those that are named."""
    pictures: dict[str, Callable[[], None]] = {
        "overview": lambda: picture("overview", ["vanishing"], (120, 40), keys={148: "r"}, save_at=420),
        "overview-80x24": lambda: picture("overview-80x24", ["vanishing"], (80, 24), keys={148: "r"}, save_at=420),
        "race": lambda: picture("race", ["race", "saddle"], (120, 30), keys={}, save_at=760),
    }
    for name in sys.argv[1:] or pictures:
        pictures[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
