"""The status line at the top: what is trained, its progress and its state."""

from __future__ import annotations

import math

from rich.cells import cell_len
from rich.style import Style
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.diagnosis_line import STARTING
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.text.device_info import status_texts
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import byte_size, per_second, short, with_commas
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.view import View

Part = list[tuple[str, Style]]
# The memory of snapshots is shown once this share of its limit is used, because it may then run out.
SHOWN_SHARE = 0.1


class StatusPanel(Panel, can_focus=False):
    """One row, always visible."""

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """The state is at the right edge, after a word if this dashboard is read-only.

        If the other parts do not all fit, those with the highest ranks are left out.
        """
        word, style = state_of(view)
        end = Line()
        if view.read_only and not view.replay:
            end.add("read-only  ", colours.KEY)
        end.add(f"{colours.state_glyph(word)} ", style).add(word, style).add(" ")
        room = width - end.width  # each part takes two more cells, for the blanks between parts and at both ends
        parts = _parts(view)
        kept: list[int] = []
        for n in sorted(range(len(parts)), key=lambda n: parts[n][0]):
            if _width(parts[n][1]) + 2 <= room:
                kept.append(n)
                room -= _width(parts[n][1]) + 2
        line = Line().add(" ")
        for n in sorted(kept):
            line.add("  " if line.width > 1 else "")
            for text, part_style in parts[n][1]:
                line.add(text, part_style)
        return [line.pad_to(width - end.width).extend(end.segments).to_strip(width)]


def state_of(view: View) -> tuple[str, Style]:
    """The run's state as a word, and its style."""
    history = view.history
    if view.replay:
        return view.replay, colours.KEY
    if history.ended is not None:
        return history.ended.status, colours.end_style(history.ended)
    if not view.connected:
        if view.reconnecting:
            return "reconnecting", colours.ORANGE
        if history.started is None and not view.trouble:
            return "connecting", colours.DIM
        return "disconnected", colours.state_style("lost")
    if view.keeper_silent_s or (view.silent_s and history.state.state not in STARTING):
        return f"silent for {view.silent_s} s", colours.ORANGE
    return history.state.state, colours.state_style(history.state.state)


def _parts(view: View) -> list[tuple[int, Part]]:
    """The parts in reading order, each with its rank: rank 0 is the last to be left out."""
    history, started = view.history, view.history.started
    name = safe(started.name if started else view.name, 40)
    parts: list[tuple[int, Part]] = [(0, [(name or "run", colours.NAME)])]
    if history.lanes:
        parts.append((0, [("race", colours.TEXT)]))
    if started is not None:
        parts.append((9, [(safe(started.about, 80), colours.DIM)]))
        parts.append((8, [(safe(started.device, 20), colours.DIM)]))
    if view.has_steps or history.lanes:
        # After the planned end more steps may have been requested.
        planned = started.steps if started is not None else None
        steps = f"/{with_commas(planned)}" if planned and history.steps <= planned else ""
        parts.append(
            (1, [("step ", colours.DIM), (f"{with_commas(history.steps):>5}", colours.BRIGHT), (steps, colours.DIM)])
        )
    if history.recording is not None and history.recording.trouble:
        parts.append((1, [("not recorded: ", colours.ORANGE), (safe(history.recording.trouble, 60), colours.ORANGE)]))
    if view.has_steps:
        parts.append((3, [(f"{per_second(history.steps_per_s):>4}/s", colours.TEXT)]))
        loss = history.shown_loss if history.losses.get(history.segment) else None
        bad = loss is not None and not math.isfinite(history.loss)
        parts.append((2, [("loss ", colours.DIM), (f"{short(loss):<6}", colours.RED if bad else colours.BRIGHT)]))
    # Only evaluations of the current segment count: an undo does not keep the later ones.
    newest = next((e for e in reversed(history.evaluations) if e.segment == history.segment), None)
    if newest is not None:
        parts.append((4, [("val ", colours.DIM), (f"{short(newest.loss):<6}", colours.TEXT)]))
        if newest.accuracy is not None:
            parts.append((5, [("acc ", colours.DIM), (f"{newest.accuracy:5.1%}", colours.TEXT)]))
    memory, busy, heat = status_texts(history)
    parts += [(6, [(memory, colours.DIM)]), (6, [(busy, colours.DIM)]), (10, [(heat, colours.DIM)])]
    cost = history.readings.watch_cost if history.readings is not None else math.nan
    # While a pace limits the run, readings are measured while it waits, so they cost no training time.
    if math.isfinite(cost) and history.knobs.get("pace", "max") == "max":
        parts.append((7, [(f"watch {cost:.1%}", colours.DIM)]))
    if (taken := history.snapshot) is not None and taken.used_bytes >= SHOWN_SHARE * taken.budget_bytes > 0:
        size = f"{byte_size(taken.used_bytes)} of {byte_size(taken.budget_bytes)}"
        parts.append((11, [(f"undo snapshots {size}", colours.DIM)]))
    return [(rank, part) for rank, part in parts if _width(part)]


def _width(part: Part) -> int:
    return sum(cell_len(text) for text, _ in part)
