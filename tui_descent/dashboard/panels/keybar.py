"""The bottom line: knobs with their present values and the keys beside them, as many as fit, none of them cut."""

from __future__ import annotations

from dataclasses import dataclass

from tui_descent.dashboard import ink
from tui_descent.dashboard.actions import AT_REST
from tui_descent.dashboard.panels.line import Line
from tui_descent.dashboard.panels.names import target_of
from tui_descent.dashboard.panels.view import View
from tui_descent.dashboard.plain import plain

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

    items = sorted(known, key=rank)
    for kept in range(len(items), 0, -1):
        for full in range(kept, -1, -1):
            line = _line(view, {item.keys: n < full for n, item in enumerate(items[:kept])}, over=over)
            if line.width <= width:
                return line
    return line


def _line(view: View, shown: dict[str, bool], *, over: bool) -> Line:
    """`shown` tells by keys whether the word is the full one."""
    line = Line().put(" ")
    if view.selected is not None and view.selected < len(view.layers):
        target = target_of(view.layers[view.selected])
        line.put(f"▸{plain(target or 'no block', 24)}", ink.NAME)
    for item in ITEMS:
        if item.keys in shown:
            if line.width > 1:
                line.put("  ")
            _put(line, view, item, full=shown[item.keys], over=over)
    return line


def _put(line: Line, view: View, item: Item, *, full: bool, over: bool) -> None:
    """`r residual off`: the value as the trainer told it, a dash where the knob cannot act."""
    history, word = view.history, item.word if full else item.brief
    if item.keys == "space" and history.state.state in AT_REST:
        word = "go on"
    away = bool(item.knob) and (over or item.knob in history.unavailable)
    line.put(item.keys, ink.FAINT if away else ink.KEY).put(f" {word}" if word else "", ink.DIM)
    if item.knob:
        value = "–" if item.knob in history.unavailable else _rounded(history.knobs.get(item.knob, "…"))
        text = plain(value, VALUE) if full else plain(value.replace(",", " ").split(" ")[0], BRIEF_VALUE)
        line.put(f" {text}", ink.FAINT if away else ink.BRIGHT)


def _rounded(value: str) -> str:
    """Four digits of a number; other values as they are."""
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value
