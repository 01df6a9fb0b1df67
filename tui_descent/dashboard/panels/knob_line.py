"""The footer's third line: keys with their words and the knobs' current values.

Entries that do not fit are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.style import Style

from tui_descent.dashboard import colours
from tui_descent.dashboard.bridge import STOPPED_STATES
from tui_descent.dashboard.panels.tabs import compact_tabs
from tui_descent.dashboard.text.clickable import presses
from tui_descent.dashboard.text.layer_names import block_of
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.view import View
from tui_descent.scenario.keys import KEYS, VIEW_KEYS, FooterEntry
from tui_descent.scenario.knobs import shown_value
from tui_descent.scenario.optimizers import OWN_RATE, all_rates_text

Parts = list[tuple[str, Style]]
VALUE_WIDTH, SHORT_VALUE_WIDTH = 24, 14
RATES_WIDTH, SHORT_RATES_WIDTH = 40, 18

RACE_ENTRIES = {", ;", "space", VIEW_KEYS, "?", "q"}  # the others do not act in a race

# By the key that is shown: the entry, and the knob whose value is shown after the word.
ENTRIES: dict[str, tuple[FooterEntry, str | None]] = {
    binding.footer.keys or binding.shown: (binding.footer, binding.knob) for binding in KEYS if binding.footer
}


def knob_line(view: View, width: int, *, tabs: bool = False) -> Line:
    """Add entries with short words, by rank, until the line is full; then use long words where there is room.

    With `tabs`, the views have a row of their own and are not repeated here.
    """
    over = not (view.history.live and view.connected) or bool(view.replay)
    started = view.history.started
    is_user_loop = started is not None and started.scenario is None
    keys = [
        key
        for key, (entry, _) in ENTRIES.items()
        if not (over and entry.live_only)
        and not (is_user_loop and entry.scenario_only)
        and (not view.history.lanes or key in RACE_ENTRIES)
        and not (tabs and key == VIEW_KEYS)
    ]
    stopped = view.history.state.state in STOPPED_STATES

    def rank(key: str) -> float:
        entry, knob = ENTRIES[key]
        if key == "space" and stopped:
            return 1.5  # the key to resume
        # After the run's end knobs cannot be changed, so keys that still do something come first.
        return entry.rank + (len(ENTRIES) if over and knob else 0)

    selection = _selection(view)
    full, short = ({key: _parts(view, key, full=full, over=over) for key in keys} for full in (True, False))
    room = width - 1 - (cell_len(selection) + 2 if selection else 0)
    shown = _fit(sorted(keys, key=rank), full, short, room)
    line = Line().add(" ").add(selection, colours.NAME)
    for key in keys:
        if key in shown:
            line.add("  " if line.width > 1 else "")
            for text, style in shown[key]:
                line.add(text, style)
    return line


def _fit(by_rank: list[str], full: dict[str, Parts], short: dict[str, Parts], room: int) -> dict[str, Parts]:
    """Add entries in their short form until one does not fit, then switch them to their full form in the same way."""
    room += 2  # there are no blanks before the first entry
    shown: dict[str, Parts] = {}
    for key in by_rank:
        if (cells := _width(short[key])) > room:
            break
        room -= cells
        shown[key] = short[key]
    for key in shown:
        more = _width(full[key]) - _width(short[key])
        if more > room:
            break
        room -= more
        shown[key] = full[key]
    return shown


def _width(parts: Parts) -> int:
    """The width in cells, including the two blanks before an entry."""
    return 2 + sum(cell_len(text) for text, _ in parts)


def _selection(view: View) -> str:
    if view.selected is None or view.selected >= len(view.layers):
        return ""
    return f"▸{safe(block_of(view.layers[view.selected]) or 'no block', 24)}"


def _parts(view: View, key: str, *, full: bool, over: bool) -> Parts:
    """Key, word and value: `r residual off`. A knob that is not available has a dash as its value."""
    if key == VIEW_KEYS:
        return compact_tabs(view)
    history, (entry, knob) = view.history, ENTRIES[key]
    word = entry.word if full else entry.short
    if key == "space" and history.state.state in STOPPED_STATES:
        word = "resume"
    inactive = knob is not None and (over or knob in history.unavailable)
    first, *others = key.split(" ")  # one entry may stand for two keys
    click, look = presses(_name_of(first)), colours.FAINT if inactive else colours.KEY
    parts = [(first, look + click)]
    for other in others:
        parts += [(" ", look), (other, look + presses(_name_of(other)))]
    parts.append((f" {word}" if word else "", colours.DIM + click))
    if knob is not None:
        value = "–" if knob in history.unavailable else history.knobs.get(knob, "…")
        value = shown_value(knob, value)
        text = safe(value, VALUE_WIDTH) if full else safe(_shortened(value), SHORT_VALUE_WIDTH)
        if knob == "lr" and history.rates is not None and knob not in history.unavailable:
            rates = history.rates.rates
            text = safe(all_rates_text(rates), RATES_WIDTH) if full else _short_rates(rates)
        if knob == "lr" and history.unavailable.get(knob, "").endswith(OWN_RATE):
            text = "its own"
        parts.append((f" {text}", (colours.FAINT if inactive else colours.BRIGHT) + click))
    return parts


def _name_of(shown: str) -> str:
    """Textual's name of a key."""
    return next(binding.keys[0] for binding in KEYS if binding.shown == shown)


def _short_rates(rates: Mapping[str, Sequence[float]]) -> str:
    """All rates if they fit, otherwise the first one and how many others there are: `0.001 +5`."""
    each = [rate for groups in rates.values() for rate in dict.fromkeys(groups)]
    text = "/".join(f"{rate:.3g}" for rate in each)
    return text if len(text) <= SHORT_RATES_WIDTH else f"{each[0]:.3g} +{len(each) - 1}"


def _shortened(value: str) -> str:
    """Three digits of a number, or the first word of other values."""
    try:
        return f"{float(value):.3g}"
    except ValueError:
        return value.replace(",", " ").split(" ")[0]
