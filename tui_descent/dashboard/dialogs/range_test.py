"""The range-test dialog requests a range test and shows its progress and result; enter sets the suggested rate."""

from __future__ import annotations

import math
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from tui_descent.dashboard import colours
from tui_descent.dashboard.bridge import STOPPED_STATES, Bridge
from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.panels.look_ahead import LookAheadPanel
from tui_descent.dashboard.panels.range_test import RangeTestPanel
from tui_descent.dashboard.panels.range_test_result import RangeTestResultPanel
from tui_descent.dashboard.text.numbers import short, with_commas
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.view import View
from tui_descent.protocol.commands import CancelRangeTest, RunRangeTest
from tui_descent.protocol.events import CommandRejected, KnobTurned, RangeTestCompleted, Rewound
from tui_descent.scenario.knobs import NEUTRAL_KNOBS
from tui_descent.telemetry.history import History

REFRESH_S = 0.1


class RangeTestDialog(Dialog[str]):
    """Answers with the suggested learning rate. Closing it cancels a running test."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take_suggestion", show=False),
        Binding("f", "test_again", show=False),
        Binding("q", "cancel", show=False),
    ]

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self._bridge = bridge
        self._result: RangeTestCompleted | None = None
        self._previous: object = None
        self._request: int | None = None
        self._rejection = ""

    def compose(self) -> ComposeResult:
        """Two plots, with the numbers below them."""
        with Vertical(classes="dialog range-test") as box:
            box.border_title = "Learning rates"
            with Horizontal():
                yield RangeTestPanel(id="range-test-panel")
                yield LookAheadPanel(id="look-ahead")
            yield Static(id="result-text")

    def on_mount(self) -> None:
        """Show the existing result if it is still valid; otherwise start a test."""
        self._result = still_valid(self._bridge.history)
        if self._result is None:
            self.action_test_again()
        self._refresh()
        self.set_interval(REFRESH_S, self._refresh)

    def action_test_again(self) -> None:
        """Start a test from the current step."""
        if self._request is None:
            self._result, self._previous, self._rejection = None, _identity(self._bridge.history.swept), ""
            self._request = self._bridge.send(RunRangeTest())
            if self._request is None:
                self._rejection = self._bridge.exchange.refusal

    def action_take_suggestion(self) -> None:
        """Answer with the suggested rate. The caller then sets it like any learning rate."""
        if self._result is not None and self._result.suggestion is not None:
            self.dismiss(f"{self._result.suggestion:.3g}")

    def action_cancel(self) -> None:
        """Close without changing the learning rate."""
        if self._request is not None:
            self._bridge.send(CancelRangeTest())
        self.dismiss(None)

    def _refresh(self) -> None:
        bridge, history = self._bridge, self._bridge.history
        if self._request is not None:
            self._take_reply(self._request, history)
        message = ""
        if self._request is not None:
            testing = history.state.state == "testing"
            message = f"testing {safe(history.state.reason, 20)}…" if testing else "range test requested…"
        view = View(history=history, connected=bridge.connected)
        for panel in self.query(RangeTestResultPanel):
            panel.set_result(self._result, message)
            panel.show(view)
        box = self.query_one(".dialog")
        result = self._result
        if result is not None:
            box.border_title = (
                f"Learning rates  [dim]tested before step {with_commas(result.step)}; the run has been restored[/dim]"
            )
        take = (
            f"enter sets lr={result.suggestion:.3g} · " if result is not None and result.suggestion is not None else ""
        )
        self.hints = "escape cancels" if self._request is not None else f"{take}f tests again · escape closes"
        self.show_hints()
        text = Text(self._rejection, style=colours.ORANGE) if self._rejection else result_text(result)
        self.query_one("#result-text", Static).update(text)

    def _take_reply(self, request: int, history: History) -> None:
        """When the reply has arrived, store the result or the reason for the rejection. The result arrives just before
        the reply.
        """
        if not (history.live and self._bridge.connected):
            self._rejection, self._request = self._bridge.unavailable, None
        if self._bridge.awaits_reply(request):
            return
        self._request = None
        if history.swept is not None and _identity(history.swept) != self._previous:
            self._result = history.swept
            return
        for fact in reversed(history.log):
            if isinstance(fact, CommandRejected) and (fact.client, fact.request) == (self._bridge.client, request):
                self._rejection = safe(fact.reason)
                return


def _identity(swept: RangeTestCompleted | None) -> object:
    """A key that identifies a result. The objects cannot be compared by identity, because the whole history can be
    received again.
    """
    return None if swept is None else (swept.segment, swept.step, swept.seconds)


def still_valid(history: History) -> RangeTestCompleted | None:
    """The newest result, if the run is still stopped at its step and no knob has been turned since; otherwise None."""
    result = history.swept
    if result is None or history.state.state not in STOPPED_STATES:
        return None
    if (result.segment, result.step) != (history.segment, history.steps):
        return None
    for fact in reversed(history.log):
        if isinstance(fact, RangeTestCompleted):
            return result
        if isinstance(fact, Rewound) or (isinstance(fact, KnobTurned) and fact.knob not in NEUTRAL_KNOBS):
            return None
    return None


def result_text(result: RangeTestCompleted | None) -> Text:
    """The results of range test and look-ahead in numbers, one line for each."""
    text = Text(no_wrap=False)
    if result is None:
        return Text("\n")
    text.append("rate   ", colours.DIM).append(f"now {result.rate:.3g}", colours.BRIGHT)
    if result.suggestion is not None and result.lowest is not None:
        text.append("  try ", colours.DIM).append(f"{result.suggestion:.3g}", colours.GREEN)
        text.append(f" = {result.lowest:.3g} / 10", colours.DIM)
        if result.ended_at is not None:
            text.append("  diverges at ", colours.DIM).append(f"{result.ended_at:.3g}", colours.ORANGE)
    else:
        text.append("  no suggestion: ", colours.ORANGE).append(safe(result.words))
    text.append("\nahead  ", colours.DIM)
    finite = [(loss, scale) for scale, loss in zip(result.scales, result.ahead, strict=True) if math.isfinite(loss)]
    if not finite:
        return text.append("the next update changes nothing", colours.DIM)
    best, size = min(finite)
    after = dict(zip(result.scales, result.ahead, strict=True)).get(1.0)
    text.append(f"loss {short(result.ahead[0])} → {short(after)}", colours.BRIGHT).append(" at s = 1", colours.DIM)
    return text.append(f", lowest {short(best)} at s = {size:g}", colours.DIM)
