"""The task panel: a picture of what is being learnt, which the trainer makes while the panel is open."""

from __future__ import annotations

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.picture import Depth, depth_of
from tui_descent.dashboard.panels.panel import Panel, notice, waiting_notice
from tui_descent.dashboard.pictures.draw import Drawings, grid, legend, title
from tui_descent.dashboard.view import View


class TaskPanel(Panel):
    """The surface, the decision regions, the images, the text or the table that the run learns."""

    min_interval_s = 0.1
    help_text = (
        "A picture of what the net has learnt. The trainer makes it while this view is open, at most five times a "
        "second. A test surface: its contour map (dark is low), or its curve, with the path so far, minima and "
        "saddles. The arrow shows the direction of the negative gradient, not its length. Data in the plane: the "
        "class that the net predicts at each place, and the training points. Images: the net's answer for each held- "
        "out image. Text: what the net writes, and its loss at each character of held-out text, in nats. Modular "
        "addition: the table of all sums, those the net gets right bright. Rare classes: the loss by class size."
    )

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._drawings = Drawings()

    @property
    def grid(self) -> tuple[int, int]:
        """The columns and rows of the picture to ask for; 0 while the panel is not shown."""
        return grid(*self.content_size)

    def heading(self, view: View) -> tuple[str, str]:
        taken = view.history.task
        if taken is None:
            return "Task", ""
        return f"Task  [dim]{title(taken.picture)}[/dim]", legend(taken.picture, self._depth, self.content_size.width)

    def depends_on(self, view: View) -> object:
        """The newest picture."""
        history = view.history
        return history, history.task, history.started, history.state, view.connected, history.live

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        taken = view.history.task
        if taken is None:
            return _nothing_to_show(view, width, height)
        return self._drawings.draw(taken, width, height, self._depth)

    @property
    def _depth(self) -> Depth:
        return depth_of(self.app.console.color_system, no_colour=self.app.no_color)


def _nothing_to_show(view: View, width: int, height: int) -> list[Strip]:
    """Why there is no picture."""
    started = view.history.started
    if started is not None and started.scenario is None:
        lines = [
            ("not available for your own loop", colours.TEXT),
            ("your data, and what the outputs of your net mean, are not known here", colours.DIM),
        ]
        return notice(lines, width, height)
    if view.history.lanes and started is not None and (started.scenario or {}).get("data") is not None:
        lines = [
            ("in a race the task view shows the map of a test surface", colours.TEXT),
            ("this race is one of nets: 1 shows its curves", colours.DIM),
        ]
        return notice(lines, width, height)
    if not view.history.live and not view.replay:
        return notice([("this view was not open during the run", colours.DIM)], width, height)
    return waiting_notice(view, width, height, "picture", state=True)
