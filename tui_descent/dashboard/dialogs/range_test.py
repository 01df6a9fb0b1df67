"""The range test: asks for it, follows it, shows what came of it; enter adopts the suggestion."""

from __future__ import annotations

import math
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from tui_descent.dashboard import colours
from tui_descent.dashboard.bridge import Bridge
from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.panels.range_test import AheadPanel, RatesPanel, SweepPanel
from tui_descent.dashboard.text.numbers import count, short
from tui_descent.dashboard.text.safe_text import plain
from tui_descent.dashboard.view import View
from tui_descent.protocol.commands import CancelSweep, SweepRates
from tui_descent.protocol.events import CommandRejected, KnobTurned, RatesSwept, Rewound
from tui_descent.telemetry.history import History

REFRESH_S = 0.1
AT_REST = frozenset({"paused", "held", "waiting", "ended"})


class RatesDialog(Dialog[str]):
    """Answers with the suggested rate. Leaving while the test is under way gives it up."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "adopt", show=False),
        Binding("f", "again", show=False),
        Binding("q", "away", show=False),
    ]

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge
        self._swept: RatesSwept | None = None
        self._before: object = None
        self._asked: int | None = None
        self._refused = ""

    def compose(self) -> ComposeResult:
        """Two pictures, and the figures below them."""
        with Vertical(classes="dialog rates") as box:
            box.border_title = "Learning rates"
            with Horizontal():
                yield SweepPanel(id="sweep")
                yield AheadPanel(id="ahead")
            yield Static(id="figures")

    def on_mount(self) -> None:
        """A result of this very place is shown as it is."""
        self._swept = still_true(self._bridge.history)
        if self._swept is None:
            self.action_again()
        self._refresh()
        self.set_interval(REFRESH_S, self._refresh)

    def action_again(self) -> None:
        """Test from where the run stands now."""
        if self._asked is None:
            self._swept, self._before, self._refused = None, _place(self._bridge.history.swept), ""
            self._asked = self._bridge.send(SweepRates())
            if self._asked is None:
                self._refused = self._bridge.exchange.refusal

    def action_adopt(self) -> None:
        """An ordinary turn of the rate."""
        if self._swept is not None and self._swept.suggestion is not None:
            self.dismiss(f"{self._swept.suggestion:.3g}")

    def action_away(self) -> None:
        """Nothing is turned."""
        if self._asked is not None:
            self._bridge.send(CancelSweep())
        self.dismiss(None)

    def _refresh(self) -> None:
        bridge, history = self._bridge, self._bridge.history
        if self._asked is not None:
            self._look_for_an_answer(self._asked, history)
        words = ""
        if self._asked is not None:
            testing = history.state.state == "testing"
            words = f"testing {plain(history.state.reason, 20)}…" if testing else "asked to test rates…"
        view = View(history=history, connected=bridge.connected)
        for panel in self.query(RatesPanel):
            panel.tell(self._swept, words)
            panel.show(view)
        box = self.query_one(".dialog")
        found = self._swept
        if found is not None:
            box.border_title = f"Learning rates  [dim]before step {count(found.step)}, all put back since[/dim]"
        adopt = f"enter lr={found.suggestion:.3g} · " if found is not None and found.suggestion is not None else ""
        box.border_subtitle = (
            "escape gives it up" if self._asked is not None else f"{adopt}f tests again · escape changes nothing"
        )
        figures = Text(self._refused, style=colours.ORANGE) if self._refused else figures_of(found)
        self.query_one("#figures", Static).update(figures)

    def _look_for_an_answer(self, request: int, history: History) -> None:
        """A result is told just before the reply."""
        if not (history.live and self._bridge.connected):
            self._refused, self._asked = "the run has ended" if not history.live else "the keeper is gone", None
        if self._bridge.awaits_reply(request):
            return
        self._asked = None
        if history.swept is not None and _place(history.swept) != self._before:
            self._swept = history.swept
            return
        for fact in reversed(history.log):
            if isinstance(fact, CommandRejected) and (fact.client, fact.request) == (self._bridge.client, request):
                self._refused = plain(fact.reason)
                return


def _place(swept: RatesSwept | None) -> object:
    """What tells one result from another; a history that is sent anew holds another object."""
    return None if swept is None else (swept.segment, swept.step, swept.seconds)


def still_true(history: History) -> RatesSwept | None:
    """The newest result, where the run stands at its place and nothing was turned since."""
    found = history.swept
    if found is None or history.state.state not in AT_REST:
        return None
    if (found.segment, found.step) != (history.segment, history.steps):
        return None
    for fact in reversed(history.log):
        if isinstance(fact, RatesSwept):
            return found
        if isinstance(fact, Rewound) or (isinstance(fact, KnobTurned) and fact.knob != "pace"):
            return None
    return None


def figures_of(swept: RatesSwept | None) -> Text:
    """Both results in a line each."""
    text = Text(no_wrap=False)
    if swept is None:
        return Text("\n")
    text.append("rate   ", colours.DIM).append(f"now {swept.rate:.3g}", colours.BRIGHT)
    if swept.suggestion is not None and swept.lowest is not None:
        text.append("  try ", colours.DIM).append(f"{swept.suggestion:.3g}", colours.GREEN)
        text.append(f" = {swept.lowest:.3g} / 10", colours.DIM)
        if swept.ended_at is not None:
            text.append("  blows up at ", colours.DIM).append(f"{swept.ended_at:.3g}", colours.ORANGE)
    else:
        text.append("  no suggestion, ", colours.ORANGE).append(plain(swept.words))
    text.append("\nahead  ", colours.DIM)
    finite = [(loss, scale) for scale, loss in zip(swept.scales, swept.ahead, strict=True) if math.isfinite(loss)]
    if not finite:
        return text.append("the next update moves nothing", colours.DIM)
    best, size = min(finite)
    after = dict(zip(swept.scales, swept.ahead, strict=True)).get(1.0)
    text.append(f"loss {short(swept.ahead[0])} → {short(after)}", colours.BRIGHT).append(" at s = 1", colours.DIM)
    return text.append(f", lowest {short(best)} at s = {size:g}", colours.DIM)
