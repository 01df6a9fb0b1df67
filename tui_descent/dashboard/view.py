"""The data that every panel draws: the run's history and the display settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from tui_descent.dashboard.bridge import Exchange
from tui_descent.dashboard.prediction import Prediction
from tui_descent.protocol.events import Layer
from tui_descent.scenario.spec import Scenario
from tui_descent.telemetry.history import History
from tui_descent.telemetry.pyramid import Pyramid

# The titles of the views by the names that the stylesheet uses, in the order of the keys 1-9.
VIEWS = {
    "overview": "overview",
    "layers": "layers",
    "events": "events",
    "chain": "chain rule",
    "curvature": "curvature",
    "metrics": "metrics",
    "output": "output",
    "task": "task",
    "lens": "activation lens",
}
RACE_VIEWS = ("overview", "events", "task")  # those of a race
STORY = "story"  # the view of the key h


@dataclass(frozen=True, slots=True)
class Nudge:
    """Where the activation lens compares a difference quotient with the derivative: at `x`, over the distance `h`."""

    x: float = 1.0
    h: float = 1.0


@dataclass(frozen=True, slots=True)
class Compared:
    """The loss of a recorded run, drawn as a ghost."""

    label: str
    losses: Pyramid
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The history, the connection, and the display settings.

    `scenario`: the run's scenario, known before the run has started; None for a script. `exchange`: the last request
    and its reply. `trouble`: what is wrong with the connection. `reconnecting`: it was lost, and is tried again.
    `keeper_silent_s`: as in the bridge. `log`: the loss
    axis is logarithmic. `recent`: the time axis shows the last steps instead of the whole run. `ghosts`: show the loss
    curves of undone steps. `all_events`: the event log shows evaluations and plain notes too. `selected`: the index of
    the selected layer, in forward order. `output`: the newest lines that the script has printed, while they are shown.
    `read_only`: this dashboard changes nothing. `own_terminal`: a script was not started by us, so what it prints is
    not known.
    `stopping`: the user has asked to stop, and the script has not ended yet. `shown`: the name of the view, `story` for
    the story. `hidden`: the lines of charts that are not drawn. `predict`: the story view asks for a prediction before
    a change; `prediction` is the newest one. `nudge`: what the activation lens compares.
    `replay`: the state of the replay of a recorded run; empty for a live one. `compared`: another run.
    """

    history: History
    name: str = ""
    scenario: Scenario | None = None
    exchange: Exchange = field(default_factory=Exchange)
    connected: bool = True
    trouble: str = ""
    reconnecting: bool = False
    keeper_silent_s: int = 0
    log: bool = True
    recent: bool = False
    ghosts: bool = True
    all_events: bool = True
    selected: int | None = None
    output: tuple[str, ...] = ()
    stopping: bool = False
    own_terminal: bool = False
    read_only: bool = False
    shown: str = "overview"
    hidden: frozenset[str] = frozenset()
    predict: bool = True
    prediction: Prediction | None = None
    nudge: Nudge = Nudge()
    replay: str = ""
    compared: Compared | None = None

    @property
    def story_open(self) -> bool:
        """Whether the story view is open."""
        return self.shown == STORY

    @property
    def silent_s(self) -> int:
        """For how many seconds the keeper or the trainer has been silent; 0 as long as both respond."""
        return self.keeper_silent_s or self.history.state.silent_s

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The net's current layers, in forward order; empty before the net is built."""
        return self.history.layers

    def idle(self, layer: int) -> str:
        """`frozen`, `no grad` or `n/a` for a layer without a gradient in the newest reading; empty for other layers.

        `n/a` means that a layer is not measured.
        """
        statuses = self.history.readings.statuses if self.history.readings else []
        status = statuses[layer] if layer < len(statuses) else "used"
        return {"used": "", "not measured": "n/a", "unused": "no grad"}.get(status, status)

    @property
    def has_steps(self) -> bool:
        """Whether any step has been received."""
        return bool(self.history.losses)
