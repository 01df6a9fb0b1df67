"""What a panel is given to draw: the run's history, and how the person wants to see it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tui_descent.dashboard.bridge import Exchange
from tui_descent.protocol.events import Layer
from tui_descent.telemetry.history import History


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """`selected` numbers a layer in forward order; `recent` asks for the last steps instead of the whole run.

    `ghosts` shows what an undo left behind.
    """

    history: History
    name: str = ""
    exchange: Exchange = field(default_factory=Exchange)
    connected: bool = True
    trouble: str = ""
    log: bool = True
    recent: bool = False
    ghosts: bool = True
    selected: int | None = None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The net's layers now, in forward order; none before it exists."""
        return self.history.layers

    def idle(self, layer: int) -> str:
        """`frozen` or `unused` where the newest reading says that a layer got no gradient; empty where it learns."""
        statuses = self.history.readings.statuses if self.history.readings else []
        status = statuses[layer] if layer < len(statuses) else "used"
        return "" if status == "used" else status

    @property
    def steps_known(self) -> bool:
        """Whether there is a step to draw."""
        return bool(self.history.losses)
