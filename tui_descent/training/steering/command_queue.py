"""Commands in the order they came. Repeated turns of one knob are folded into one, and made only so often."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import msgspec

from tui_descent.protocol.commands import ClientRequest, TurnKnob
from tui_descent.scenario import knobs
from tui_descent.training.keeper_link import KeeperLink

# After a few turns of one knob in quick succession, further ones may take this share of the time; those that come
# faster wait and are folded.
TIME_SHARE = 1 / 128
FREE_COUNT = 8
MAX_WAIT_S = 0.25  # at most


@dataclass(slots=True)
class QueuedCommand:
    """What is carried out at once: `request`, standing for the requests `earlier` too. Each still gets its reply."""

    request: ClientRequest
    merged: list[ClientRequest] = field(default_factory=list)

    def merge(self, request: ClientRequest) -> bool:
        """Fold in the turn that follows directly, from the same client; False where it cannot be folded."""
        ours, theirs = self.request.command, request.command
        if not (isinstance(ours, TurnKnob) and isinstance(theirs, TurnKnob)):
            return False
        if (request.client, request.source) != (self.request.client, self.request.source):
            return False
        both = knobs.combined(ours, theirs)
        if both is None:
            return False
        self.merged.append(self.request)
        self.request = msgspec.structs.replace(request, command=both)
        return True


class CommandQueue:
    """Commands that wait to be carried out between two updates."""

    def __init__(self) -> None:
        self._commands: deque[QueuedCommand] = deque()
        self._last: tuple[str, str] | None = None
        self._level_s = 0.0  # when what was made so far is paid for
        self._free_s = 0.0
        self._highest_price_s = 0.0

    @property
    def waiting(self) -> bool:
        """Whether there is any."""
        return bool(self._commands)

    def poll(self, link: KeeperLink) -> None:
        """Take what the keeper has sent."""
        for request in link.orders():
            self.put(request)

    def put(self, request: ClientRequest) -> None:
        """One more, after the others."""
        if not (self._commands and self._commands[-1].merge(request)):
            self._commands.append(QueuedCommand(request))

    def put_back(self, queued: QueuedCommand) -> None:
        """One that was taken, ahead of all others."""
        self._commands.appendleft(queued)

    def due(self, now_s: float) -> bool:
        """Whether one that was made to wait has waited long enough."""
        return bool(self._commands) and now_s >= self._free_s

    def take(self, *, at_once: bool) -> QueuedCommand | None:
        """The next to be carried out. One that stands alone may have to wait for others like it, unless `at_once`."""
        if not self._commands:
            return None
        if not at_once and len(self._commands) == 1 and self._waits(self._commands[0]):
            return None
        return self._commands.popleft()

    def add_cost(self, queued: QueuedCommand, took_s: float) -> None:
        """It was carried out. After a few of the same knob the next waits in proportion to what they cost."""
        command = queued.request.command
        if isinstance(command, TurnKnob) and _mergeable(command):
            self._last = command.knob, command.target
            now_s, price_s = time.monotonic(), min(MAX_WAIT_S, took_s / TIME_SHARE)
            # A cheap turn after an expensive one has not used up the free ones.
            self._highest_price_s = max(self._highest_price_s, price_s)
            free_s = FREE_COUNT * self._highest_price_s
            self._level_s = min(max(self._level_s, now_s), now_s + free_s) + price_s
            self._free_s = min(self._level_s - free_s, now_s + MAX_WAIT_S)

    def _waits(self, queued: QueuedCommand) -> bool:
        command = queued.request.command
        again = isinstance(command, TurnKnob) and _mergeable(command) and (command.knob, command.target) == self._last
        return again and time.monotonic() < self._free_s


def _mergeable(turn: TurnKnob) -> bool:
    knob = knobs.KNOBS.get(turn.knob)
    return knob is not None and knob.combinable
