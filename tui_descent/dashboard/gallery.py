"""The gallery of presets, with the runs that are going on and those that are recorded.

The presets are on the left, grouped by theme; a small picture, the story and the claims of the highlighted preset are
on the right. The runs have no picture.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from tui_descent.dashboard import colours
from tui_descent.dashboard.dialogs.fields import FindList
from tui_descent.dashboard.gallery_runs import PREFIX, about_run, listed_runs, run_rows
from tui_descent.dashboard.signals import Signals, run_app
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.text.story_keys import keep_together, parts
from tui_descent.dashboard.theme import THEME
from tui_descent.run_actions import RunSummary
from tui_descent.scenario import presets
from tui_descent.scenario.claims import claim_sentence
from tui_descent.scenario.spec import Scenario, about
from tui_descent.scenario.toml import ScenarioError

LOW = 30  # rows
START = "Start here"
OWN = """\
Run your own scenario:
  tui-descent FILE.toml
Print a preset's file:
  tui-descent presets NAME --toml"""


class GalleryApp(App[str | None]):
    """Returns the name of the chosen preset, or `run:` and the id of the chosen run; None if there is no choice. The
    list begins at the preset `highlighted`, if it is known.
    """

    CSS_PATH = Path(__file__).parent / "dashboard.tcss"
    ENABLE_COMMAND_PALETTE = False
    TITLE = "tui-descent"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave_filter", show=False, priority=True),
        Binding("ctrl+c,ctrl+q", "quit_gallery", show=False, priority=True),
        Binding("q", "quit_gallery", show=False),
        Binding("slash", "filter", show=False),
        Binding("j", "down", show=False),
        Binding("k", "up", show=False),
        Binding("pagedown", "scroll(1)", show=False, priority=True),
        Binding("pageup", "scroll(-1)", show=False, priority=True),
    ]

    def __init__(
        self, signals: Signals | None = None, *, highlighted: str = "", runs: Sequence[RunSummary] = ()
    ) -> None:
        super().__init__()
        self._runs = runs
        self._signals = signals
        self._known = {name: _read(name) for name in presets.names()}
        self._first = highlighted

    def compose(self) -> ComposeResult:
        """The list of presets, the highlighted preset's text, and the keys."""
        yield Static(Text(" tui-descent  see and steer gradient descent", style=colours.NAME), id="gallery-title")
        with Horizontal(id="gallery"):
            with Vertical(id="left"):
                yield Input(id="filter", placeholder="type a part of the name", max_length=40)
                yield FindList(id="names")
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
        self.query_one("#filter").display = False
        names = self.query_one(OptionList)
        names.border_title = "Presets"
        self.query_one("#preset").border_title = "What it shows"
        self._fill()
        names.focus()
        if not self._known:
            self.query_one("#story-text", Static).update(Text(f"no presets found in {presets.folder()}"))

    def on_resize(self, event: events.Resize) -> None:
        """On a low screen, leave the room to the list."""
        self.query_one("#own").display = event.size.height >= LOW

    def _fill(self, wanted: str = "") -> None:
        """List the presets whose name, theme or title contains `wanted`."""
        names = self.query_one(OptionList)
        names.clear_options()
        names.add_options(run_rows(self._runs, live=True, wanted=wanted))
        names.add_options(_rows({name: found for name, found in self._known.items() if _matches(wanted, name, found)}))
        names.add_options(run_rows(self._runs, live=False, wanted=wanted))
        choices = [n for n in range(names.option_count) if not names.get_option_at_index(n).disabled]
        first = [n for n in choices if names.get_option_at_index(n).id == self._first] or choices
        names.highlighted = first[0] if first else None
        if not choices:
            self.query_one("#story-text", Static).update(Text("no preset or run matches", style=colours.DIM))

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Show the preset's picture, story and claims."""
        name = event.option.id or ""
        if name in self._known:
            self.query_one("#story-text", Static).update(_story(name, self._known[name]))
            self.query_one("#preset").scroll_home(animate=False)
        for run in self._runs:
            if name == f"{PREFIX}{run.run}":
                self.query_one("#story-text", Static).update(about_run(run))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Start the preset, or open the run."""
        self.exit(event.option.id)

    def on_input_changed(self, event: Input.Changed) -> None:
        """List what matches."""
        self._fill(event.value)

    def on_input_submitted(self) -> None:
        """Go on to the list."""
        self.query_one(OptionList).focus()

    def on_key(self, event: events.Key) -> None:
        """In the filter, the arrow keys choose from the list."""
        if event.key in ("up", "down") and self.query_one("#filter").has_focus:
            self.action_up() if event.key == "up" else self.action_down()

    def action_filter(self) -> None:
        """Show the filter's field."""
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()

    def action_leave_filter(self) -> None:
        """Empty and close the filter; without a filter, quit."""
        field = self.query_one("#filter", Input)
        if not field.display:
            self.exit(None)
            return
        field.value = ""
        field.display = False
        self.query_one(OptionList).focus()

    def action_start(self) -> None:
        """Start the highlighted preset."""
        self.query_one(OptionList).action_select()

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


def pick(highlighted: str = "") -> str | None:
    """Let the user choose a preset or a run. Returns its name, or `run:` and the run's id; None if they quit. A signal
    ends the process.
    """
    signals = Signals()
    chosen = run_app(GalleryApp(signals, highlighted=highlighted, runs=listed_runs()), signals)
    if signals.caught is not None:
        raise SystemExit(128 + signals.caught)
    return chosen


def _read(name: str) -> Scenario | str:
    try:
        return presets.find(name)[1]
    except ScenarioError as error:
        return str(error)


def _matches(wanted: str, name: str, found: Scenario | str) -> bool:
    texts = [name] if isinstance(found, str) else [name, found.theme, found.title]
    return all(any(word in text.lower() for text in texts) for word in wanted.lower().split())


def _rows(known: dict[str, Scenario | str]) -> Iterator[Option]:
    """The presets under a heading for each theme, with the length of each run."""
    groups: dict[str, list[str]] = {}
    for name, found in known.items():
        theme = "Cannot be read" if isinstance(found, str) else safe(found.theme, 40)
        groups.setdefault(START if name == presets.START else theme, []).append(name)
    for theme in sorted(groups, key=lambda theme: theme != START):
        yield Option(Text(theme, style=colours.DIM), disabled=True)
        for name in groups[theme]:
            found = known[name]
            broken = isinstance(found, str)
            row = Text(f"  {name:<19}", style=colours.ORANGE if broken else "", no_wrap=True, overflow="ellipsis")
            row.append("" if isinstance(found, str) else length(found), style=colours.DIM)
            yield Option(row, id=name)


def length(scenario: Scenario) -> str:
    """How long the run takes at its pace."""
    if scenario.run.pace == "max":
        return f"{scenario.run.steps:,} steps"
    seconds = scenario.run.steps / scenario.run.pace
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _story(name: str, found: Scenario | str) -> RenderableType:
    if isinstance(found, str):
        return Text("\n".join(safe(line) for line in found.splitlines()), style=colours.ORANGE)
    text = Text()
    text.append(safe(found.title), style=colours.BRIGHT)
    facts = f"{about(found)} · {found.optimizer.name}, learning rate {found.optimizer.lr:g} · {found.run.steps:,} steps"
    text.append(f"\n{facts}\n\n", style=colours.DIM)
    if still := presets.still(name):
        text.append(f"{still}\n", style=colours.PICTURE)
    for paragraph in textwrap.dedent(found.story).strip().split("\n\n"):
        for part, is_key in parts(keep_together(safe(" ".join(paragraph.split()), 4000))):
            text.append(part, style=colours.KEY if is_key else colours.TEXT)
        text.append("\n\n")
    if not found.claim:
        return text
    text.append("Claims, checked by a test", style=colours.BRIGHT)
    claims = Table.grid(padding=(0, 1))
    for claim in found.claim:
        claims.add_row(Text("·", style=colours.DIM), Text(safe(claim_sentence(claim)), style=colours.DIM))
    return Group(text, claims)


def _foot() -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    keys = {
        "↑ ↓": ("choose", "down"),
        "enter": ("start", "start"),
        "/": ("filter", "filter"),
        "pgup pgdn": ("scroll the text", "scroll(1)"),
        "q": ("quit", "quit_gallery"),
    }
    for key, (what, action) in keys.items():
        click = Style.from_meta({"@click": f"app.{action}"})
        text.append(" ").append(key, style=colours.KEY + click)
        text.append(f" {what}", style=colours.DIM + click).append(" ")
    return text
