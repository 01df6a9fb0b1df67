"""The curvature readings, shared by the three panels of the curvature view."""

from __future__ import annotations

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.panels.panel import notice, waiting_notice
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import CurvatureTaken


def curvature_readings(view: View) -> list[CurvatureTaken]:
    """The readings of the current segment."""
    return [taken for taken in view.history.curvatures if taken.segment == view.history.segment]


def reading_key(view: View) -> object:
    """A value that changes when the panels of the curvature view must be redrawn."""
    history, taken = view.history, view.history.curvatures
    turned = (len(history.interventions), len(history.marks), history.state.state)
    return history, len(taken), taken[-1].step if taken else None, turned, view.connected, view.log, view.recent


def nothing_to_show(view: View, width: int, height: int) -> list[Strip]:
    """Why there is no curvature to show."""
    started = view.history.started
    if started is not None and started.scenario is None:
        lines = [
            ("not available for your own loop", colours.TEXT),
            (
                "the curvature needs one batch many times; yours cannot be replayed",
                colours.DIM,
            ),
        ]
        return notice(lines, width, height)
    if not view.history.live:
        return notice([("the curvature was not measured during the run", colours.DIM)], width, height)
    return waiting_notice(view, width, height, "curvature reading")
