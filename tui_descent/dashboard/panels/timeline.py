"""The time line of a replay, above the footer: where the cursor is, where the run was changed, and the keys."""

from __future__ import annotations

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.numbers import with_commas
from tui_descent.dashboard.view import View
from tui_descent.telemetry.record.player import Player

KEYS = "  ←→ home end: move · space: {} · , ;: speed"
SHORT_KEYS = "  ←→ · space: {} · , ;"
MIN_BAR = 24  # cells


class TimelinePanel(Panel, can_focus=False):
    """One row. `player` is what it shows."""

    def __init__(self, player: Player, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._player = player

    def depends_on(self, view: View) -> object:
        player = self._player
        return player.position, player.playing, player.speed, player.damage

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        player = self._player
        here, end_place = _places(player)
        line = Line().add(f" {'▸' if player.playing else ' '} ×{player.speed:<4}", colours.KEY)
        line.add(f"{here:>{len(end_place)}}", colours.BRIGHT).add(f" of {end_place}  ", colours.DIM)
        end = Line()
        for text in (KEYS, SHORT_KEYS, ""):
            keys = text.format("pause" if player.playing else "play")
            end = Line().add(keys, colours.DIM)
            if width - line.width - end.width >= MIN_BAR:
                break
        cells = max(0, width - line.width - end.width - 1)
        return [_bar(line, player, cells).extend(end.segments).to_strip(width)]


def _places(player: Player) -> tuple[str, str]:
    """Where the cursor is, and where the run ends: as steps, or as `segment·step` if the run has several segments."""
    segment, step = player.end
    if segment and not player.history.lanes:
        return f"{player.history.segment}·{with_commas(player.history.steps)}", f"{segment}·{with_commas(step)}"
    return with_commas(player.position), with_commas(player.total)


def _bar(line: Line, player: Player, cells: int) -> Line:
    """The whole run, with the cursor and a mark for each intervention."""
    if not cells:
        return line

    def cell(position: int) -> int:
        return round(position / max(1, player.total) * (cells - 1))

    cursor, changes = cell(player.position), {cell(position) for position in player.changes}
    for n in range(cells):
        if n == cursor:
            line.add("●", colours.KEY)
        elif n in changes:
            line.add("◆", colours.ORANGE)
        else:
            line.add("─", colours.TEXT if n < cursor else colours.DIM)
    return line
