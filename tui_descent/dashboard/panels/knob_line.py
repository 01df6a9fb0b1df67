"""The bottom line: knobs with their present values and the keys beside them, as many as fit, none of them cut."""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len
from rich.style import Style

from tui_descent.dashboard import colours
from tui_descent.dashboard.actions import AT_REST
from tui_descent.dashboard.text.layer_names import target_of
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.safe_text import plain
from tui_descent.dashboard.view import View

Parts = list[tuple[str, Style]]
VALUE, BRIEF_VALUE = 24, 14


@dataclass(frozen=True, slots=True)
class Item:
    """A key, its word and a shorter one, and the knob whose value stands behind; `rank` 0 is left out last."""

    keys: str
    word: str
    brief: str
    rank: int
    knob: str = ""


# In the order of the line.
ITEMS = (
    Item("+ -", "rate", "rate", 2, "lr"),
    Item("a", "act", "", 5, "activation"),
    Item("r", "residual", "res", 3, "residual"),
    Item("n", "norm", "norm", 9, "norm"),
    Item("o", "optimizer", "", 10, "optimizer"),
    Item("s", "schedule", "", 11, "schedule"),
    Item(", ;", "pace", "pace", 8, "pace"),
    Item("u", "undo", "undo", 4),
    Item("space", "pause", "", 6),
    Item("f", "range test", "range", 12),
    Item("1-5", "views", "", 7),
    Item("?", "help", "help", 1),
    Item("q", "leave", "leave", 0),
)
ONLY_LIVE = ("u", "space", "f")
LATER = len(ITEMS)


def keybar(view: View, width: int) -> Line:
    """Rather more keys with short words than fewer with long ones; the least important lose theirs first."""
    over = not (view.history.live and view.connected)
    known = [item for item in ITEMS if not (over and item.keys in ONLY_LIVE)]
    # When all is over a knob's value is still worth a look, but a key that acts is worth more.
    rests = view.history.state.state in AT_REST

    def rank(item: Item) -> float:
        return 1.5 if rests and item.keys == "space" else item.rank + (LATER if over and item.knob else 0)

    before = _selected(view)
    by_rank = sorted(known, key=rank)
    full, brief = ({i.keys: _parts(view, i, full=long, over=over) for i in known} for long in (True, False))
    shown = _chosen(by_rank, full, brief, width - 1 - (cell_len(before) + 2 if before else 0))
    line = Line().put(" ").put(before, colours.NAME)
    for item in known:
        if item.keys in shown:
            line.put("  " if line.width > 1 else "")
            for text, style in shown[item.keys]:
                line.put(text, style)
    return line


def _chosen(by_rank: list[Item], full: dict[str, Parts], brief: dict[str, Parts], room: int) -> dict[str, Parts]:
    """As many of the first ones as fit, and as many of these as fit with the full word."""
    room += 2  # no blanks before the first
    kept: list[str] = []
    for item in by_rank:
        if (cells := _width(brief[item.keys])) > room:
            break
        room -= cells
        kept.append(item.keys)
    shown = {keys: brief[keys] for keys in kept}
    for keys in kept:
        more = _width(full[keys]) - _width(brief[keys])
        if more > room:
            break
        room -= more
        shown[keys] = full[keys]
    return shown


def _width(parts: Parts) -> int:
    """With the blanks before it."""
    return 2 + sum(cell_len(text) for text, _ in parts)


def _selected(view: View) -> str:
    if view.selected is None or view.selected >= len(view.layers):
        return ""
    return f"▸{plain(target_of(view.layers[view.selected]) or 'no block', 24)}"


def _parts(view: View, item: Item, *, full: bool, over: bool) -> Parts:
    """`r residual off`: the value as the trainer told it, a dash where the knob cannot act."""
    history, word = view.history, item.word if full else item.brief
    if item.keys == "space" and history.state.state in AT_REST:
        word = "go on"
    away = bool(item.knob) and (over or item.knob in history.unavailable)
    parts = [(item.keys, colours.FAINT if away else colours.KEY), (f" {word}" if word else "", colours.DIM)]
    if item.knob:
        value = "–" if item.knob in history.unavailable else history.knobs.get(item.knob, "…")
        text = plain(value, VALUE) if full else plain(_brief(value), BRIEF_VALUE)
        parts.append((f" {text}", colours.FAINT if away else colours.BRIGHT))
    return parts


def _brief(value: str) -> str:
    """Four digits of a number; of other values the first word."""
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value.replace(",", " ").split(" ")[0]
