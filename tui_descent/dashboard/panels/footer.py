"""The footer: the diagnosis, the answer to the last key, and the knobs with their keys."""

from __future__ import annotations

from typing import Any

from rich.cells import cell_len, set_cell_size
from textual.events import Click
from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.answer_line import answer_line, is_answer
from tui_descent.dashboard.panels.diagnosis_line import diagnosis_line
from tui_descent.dashboard.panels.knob_line import knob_line
from tui_descent.dashboard.panels.panel import Panel
from tui_descent.dashboard.text.clickable import PRESS
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.view import VIEWS, View
from tui_descent.scenario.keys import BINDING_OF, VIEW_KEYS
from tui_descent.telemetry.last_verdict import verdict_of_ended

# Advice on what to do begins with one of these. It is kept when a sentence has to be cut.
ADVICE = (
    "; space drops ",
    " Try ",
    " Press ",
    "; u goes back ",
    " · u: ",
    " · space: ",
    "; space goes on",
    ". space tries",
    " · q: ",
)
MAYBE = "maybe "  # shown as a question mark where there is no room for the word
# A sentence is left out if fewer than this many cells of it would be shown.
MIN_CELLS = 12
# A sentence is cut before a clause if the rest still uses this share of its room, else before a word.
CLAUSES_SHARE = 0.4


class FooterPanel(Panel, can_focus=False):
    """Three rows, always visible."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._described = ""  # the key below the mouse; empty after a click, so that its answer is seen

    def hover(self, what: dict[str, Any]) -> None:
        """Say what a click would do."""
        if what != self._hovered:
            self._describe(what.get(PRESS, ""))
        super().hover(what)

    def on_click(self, event: Click) -> None:
        """Make room for the answer. Textual also calls the base class' handler, which acts as the key."""
        self._describe("")

    @property
    def _has_tabs(self) -> bool:
        """Whether the tabs have a row of their own."""
        return self.is_attached and self.screen.has_class("-tall")

    def _describe(self, key: str) -> None:
        if key != self._described:
            self._described = key
            self.invalidate()
            self.post_message(self.RedrawNeeded())

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        word, style, text, text_style = diagnosis_line(view)
        if word.startswith(MAYBE) and cell_len(f" {word}  {text}") > width:
            word = f"{word.removeprefix(MAYBE)}?"
        first, second = Line().add(" ").add(word, style), answer_line(view, width)
        over = view.history.ended is not None or view.history.state.state == "stopping"
        if over and not is_answer(view):
            found, sentence = verdict_of_ended(view.history)
            if found:
                second = Line().add(" ").add(safe(found), colours.diagnosis_style(found))
                second.add(f"  {safe(sentence)}")
        if self._described:
            second = _description(self._described)
        if text:
            first.add("  " if word else "")
            room = width - first.width
            sentence, advice = _parts(text)
            if cell_len(text) > room and view.history.state.state == "held":
                if is_answer(view):  # only the first advice: the cause says more than the others
                    text = f"{sentence}{_first(advice)}"
                else:
                    second = Line().add(" ").add(advice.lstrip(" ;·."))
                    text = sentence if cell_len(sentence) <= room else f"{_whole_words(sentence, room - 1)}…"
            first.add(_keep_advice(text, room), text_style)
        return [line.to_strip(width) for line in (first, second, knob_line(view, width, tabs=self._has_tabs))]


def _description(key: str) -> Line:
    """What a key does, for the row of answers."""
    binding = BINDING_OF[key]
    shown, what = binding.shown, binding.description
    if shown == VIEW_KEYS:
        shown, what = key, f"view: {list(VIEWS.values())[binding.keys.index(key)]}"
    return Line().add(" ").add(shown, colours.KEY).add(f"  {what}", colours.DIM)


def _parts(text: str) -> tuple[str, str]:
    """A sentence, and the advice at its end."""
    start = next((text.rindex(sign) for sign in ADVICE if sign in text), len(text))
    return text[:start], text[start:]


def _first(advice: str) -> str:
    """The first piece of advice among several."""
    ends = [start for sign in ADVICE if (start := advice.find(sign, 1)) > 0]
    return advice[: min(ends, default=len(advice))]


def _keep_advice(text: str, width: int) -> str:
    """Shorten a sentence to `width` cells but keep its advice; if nothing else fits, return only the advice."""
    sentence, advice = _parts(text)
    if cell_len(text) <= width or not advice:
        return text
    room = width - cell_len(advice) - 1
    if room < MIN_CELLS:
        return advice.lstrip(" ;·.")
    return f"{_whole_words(sentence, room)}…{advice}"


def _whole_words(sentence: str, room: int) -> str:
    """The clauses of the sentence that fit into `room` cells. If whole clauses would fill too little, the words that
    fit.
    """
    part = set_cell_size(sentence, room)
    if sentence[len(part) :][:1] not in ("", " "):
        words, _, rest = part.rpartition(" ")
        part = words if 2 * cell_len(rest) < room else part
    clauses = max((part.rpartition(sign)[0] for sign in (", ", " · ", " (")), key=len)
    return (clauses if cell_len(clauses) > CLAUSES_SHARE * room else part).rstrip(" .,:;")
