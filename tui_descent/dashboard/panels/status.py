"""The line at the top: what is trained, how far it is, and its state as a word."""

from __future__ import annotations

import math

from rich.cells import cell_len
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.text.device_info import phrases
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import count, rate, short
from tui_descent.dashboard.text.safe_text import plain
from tui_descent.dashboard.view import View

Part = list[tuple[str, Style]]


class StatusPanel(Panel, can_focus=False):
    """Name, numbers, state."""

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """The state stands at the right edge; of the rest, what does not fit is left out by rank."""
        word, style = state_of(view)
        end = Line().put("● ", style).put(word, style).put(" ")
        room = width - end.width  # a blank at each end and two between make two for each
        parts = _parts(view)
        kept: list[int] = []
        for n in sorted(range(len(parts)), key=lambda n: parts[n][0]):
            if _width(parts[n][1]) + 2 <= room:
                kept.append(n)
                room -= _width(parts[n][1]) + 2
        line = Line().put(" ")
        for n in sorted(kept):
            line.put("  " if line.width > 1 else "")
            for text, ink_ in parts[n][1]:
                line.put(text, ink_)
        return [line.at(width - end.width).extend(end.segments).strip(width)]


def state_of(view: View) -> tuple[str, Style]:
    """The word for what goes on, and its colour."""
    history = view.history
    if history.ended is not None:
        return history.ended.status, colours.end(history.ended)
    if not view.connected:
        if history.started is None and not view.trouble:
            return "connecting", colours.DIM
        return "keeper lost", colours.state("lost")
    return history.state.state, colours.state(history.state.state)


def _parts(view: View) -> list[tuple[int, Part]]:
    """Phrases in reading order, each with its rank: 0 is left out last."""
    history, started = view.history, view.history.started
    name = plain(started.name if started else view.name, 40)
    parts: list[tuple[int, Part]] = [(0, [(name or "run", colours.NAME)])]
    if started is not None:
        parts.append((9, [(plain(started.about, 80), colours.DIM)]))
        parts.append((8, [(plain(started.device, 20), colours.DIM)]))
    if view.steps_known:
        steps = f"/{count(started.steps)}" if started and started.steps else ""
        parts.append(
            (1, [("step ", colours.DIM), (f"{count(history.steps):>5}", colours.BRIGHT), (steps, colours.DIM)])
        )
        parts.append((3, [(f"{rate(history.steps_per_s):>4}/s", colours.TEXT)]))
        loss = history.shown_loss if history.losses.get(history.segment) else None
        bad = loss is not None and not math.isfinite(history.loss)
        parts.append((2, [("loss ", colours.DIM), (f"{short(loss):<6}", colours.RED if bad else colours.BRIGHT)]))
    # Of the stretch that is gone on with: an undo leaves later ones behind.
    newest = next((e for e in reversed(history.evaluations) if e.segment == history.segment), None)
    if newest is not None:
        parts.append((4, [("val ", colours.DIM), (f"{short(newest.loss):<6}", colours.TEXT)]))
        if newest.accuracy is not None:
            parts.append((5, [("acc ", colours.DIM), (f"{newest.accuracy:5.1%}", colours.TEXT)]))
    memory, busy, heat = phrases(history)
    parts += [(6, [(memory, colours.DIM)]), (6, [(busy, colours.DIM)]), (10, [(heat, colours.DIM)])]
    if history.readings is not None and math.isfinite(cost := history.readings.watch_cost):
        # Paced, readings are taken out of the waits: of the time between them they may well be a large share.
        paced = history.knobs.get("pace", "max") != "max"
        parts.append((7, [(f"watch {cost:.0%} in waits" if paced else f"watch {cost:.1%}", colours.DIM)]))
    if (taken := history.snapshot) is not None:
        disk = f" + {taken.disk_bytes / 1e6:.0f} on disk" if taken.disk_bytes else ""
        parts.append(
            (11, [(f"undo {taken.used_bytes / 1e6:.0f}/{taken.budget_bytes / 1e6:.0f} MB{disk}", colours.DIM)])
        )
    return [(rank, part) for rank, part in parts if _width(part)]


def _width(part: Part) -> int:
    return sum(cell_len(text) for text, _ in part)
