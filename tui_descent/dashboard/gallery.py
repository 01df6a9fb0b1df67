"""The preset gallery.

The list of presets is on the left, the highlighted preset's story and claims are on the right.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tui_descent.dashboard import colours
from tui_descent.dashboard.signals import Signals, run_app
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.theme import THEME
from tui_descent.scenario import presets
from tui_descent.scenario.claims import claim_text
from tui_descent.scenario.spec import Scenario, about
from tui_descent.scenario.toml import ScenarioError

OWN = """\
Run your own scenario:
  tui-descent FILE.toml
Print a preset's file:
  tui-descent presets NAME --toml"""


class GalleryApp(App[str | None]):
    """Returns the name of the chosen preset, or None."""

    CSS_PATH = Path(__file__).parent / "dashboard.tcss"
    ENABLE_COMMAND_PALETTE = False
    TITLE = "tui-descent"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,ctrl+c", "quit_gallery", "quit", show=False),
        Binding("j", "down", show=False),
        Binding("k", "up", show=False),
        Binding("pagedown", "scroll(1)", show=False, priority=True),
        Binding("pageup", "scroll(-1)", show=False, priority=True),
    ]

    def __init__(self, signals: Signals | None = None) -> None:
        super().__init__()
        self._signals = signals
        self._known = {name: _read(name) for name in presets.names()}

    def compose(self) -> ComposeResult:
        """The list of presets, the highlighted preset's text, and the keys."""
        yield Static(Text(" tui-descent  see and steer gradient descent", style=colours.NAME), id="gallery-title")
        with Horizontal(id="gallery"):
            with Vertical(id="left"):
                yield OptionList(
                    *(Option(_row(name, found), id=name) for name, found in self._known.items()), id="names"
                )
                yield Static(Text(OWN, style=colours.DIM), id="own")
            with VerticalScroll(id="preset") as box:
                box.can_focus = False
                yield Static(id="story-text")
        yield Static(_foot(), id="gallery-foot")

    def on_mount(self) -> None:
        """Set the titles and focus the list."""
        if self._signals is not None:
            self._signals.attach(lambda code: self.exit(return_code=code))
        self.register_theme(THEME)
        self.theme = THEME.name
        names = self.query_one(OptionList)
        names.border_title = "Presets"
        self.query_one("#preset").border_title = "What it shows"
        names.focus()
        if not self._known:
            self.query_one("#story-text", Static).update(Text(f"no presets found in {presets.folder()}"))

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Show the preset's story and claims."""
        name = event.option.id or ""
        self.query_one("#story-text", Static).update(_story(name, self._known[name]))
        self.query_one("#preset").scroll_home(animate=False)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Start the preset."""
        self.exit(event.option.id)

    def action_quit_gallery(self) -> None:
        """Quit without a choice."""
        self.exit(None)

    def action_down(self) -> None:
        self.query_one(OptionList).action_cursor_down()

    def action_up(self) -> None:
        self.query_one(OptionList).action_cursor_up()

    def action_scroll(self, pages: int) -> None:
        """Scroll the preset's text. The list of presets is short and needs no scrolling."""
        box = self.query_one("#preset", VerticalScroll)
        (box.scroll_page_down if pages > 0 else box.scroll_page_up)(animate=False)


def pick() -> str | None:
    """Let the user choose a preset. Returns its name, or None if they quit. A signal ends the process."""
    signals = Signals()
    chosen = run_app(GalleryApp(signals), signals)
    if signals.caught is not None:
        raise SystemExit(128 + signals.caught)
    return chosen


def _read(name: str) -> Scenario | str:
    try:
        return presets.find(name)[1]
    except ScenarioError as error:
        return str(error)


def _row(name: str, found: Scenario | str) -> Text:
    theme = "cannot be read" if isinstance(found, str) else safe(found.theme, 40)
    row = Text(no_wrap=True, overflow="ellipsis")
    row.append(f"{name:<17} ")
    row.append(theme, style=colours.ORANGE if isinstance(found, str) else colours.DIM)
    return row


def _story(name: str, found: Scenario | str) -> Text:
    if isinstance(found, str):
        return Text("\n".join(safe(line) for line in found.splitlines()), style=colours.ORANGE)
    text = Text()
    text.append(safe(found.title), style=colours.BRIGHT)
    facts = f"{about(found)} · {found.optimizer.name}, learning rate {found.optimizer.lr:g} · {found.run.steps:,} steps"
    text.append(f"\n{facts}\n\n", style=colours.DIM)
    for paragraph in textwrap.dedent(found.story).strip().split("\n\n"):
        text.append(safe(" ".join(paragraph.split()), 4000) + "\n\n", style=colours.TEXT)
    if found.claim:
        text.append("Claims, checked by a test\n", style=colours.BRIGHT)
    for claim in found.claim:
        at = f" at step {claim.at}" if claim.at is not None else " at the end"
        given = f", after {', '.join(claim.given)}" if claim.given else ""
        text.append(f"  {safe(claim.metric, 40)} {claim_text(claim)}{at}{safe(given)}\n", style=colours.DIM)
    return text


def _foot() -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for key, what in (("↑ ↓", "choose"), ("enter", "start"), ("pgup pgdn", "scroll the text"), ("q", "quit")):
        text.append(f" {key}", style=colours.KEY)
        text.append(f" {what} ", style=colours.DIM)
    return text
