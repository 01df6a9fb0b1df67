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
SHARE = 1 / 128
FREELY = 8
WAITS_S = 0.25  # at most


@dataclass(slots=True)
class Batch:
    """What is carried out at once: `order`, standing for the requests `earlier` too. Each still gets its reply."""

    order: ClientRequest
    earlier: list[ClientRequest] = field(default_factory=list)

    def takes(self, order: ClientRequest) -> bool:
        """Fold in the turn that follows directly, from the same client; False where it cannot be folded."""
        ours, theirs = self.order.command, order.command
        if not (isinstance(ours, TurnKnob) and isinstance(theirs, TurnKnob)):
            return False
        if (order.client, order.source) != (self.order.client, self.order.source):
            return False
        both = knobs.combined(ours, theirs)
        if both is None:
            return False
        self.earlier.append(self.order)
        self.order = msgspec.structs.replace(order, command=both)
        return True


class CommandQueue:
    """Commands that wait to be carried out between two updates."""

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()
        self._last: tuple[str, str] | None = None
        self._level_s = 0.0  # when what was made so far is paid for
        self._free_s = 0.0
        self._highest_price_s = 0.0

    @property
    def waiting(self) -> bool:
        """Whether there is any."""
        return bool(self._batches)

    def poll(self, link: KeeperLink) -> None:
        """Take what the keeper has sent."""
        for order in link.commands():
            self.put(order)

    def put(self, order: ClientRequest) -> None:
        """One more, after the others."""
        if not (self._batches and self._batches[-1].takes(order)):
            self._batches.append(Batch(order))

    def put_back(self, batch: Batch) -> None:
        """One that was taken, ahead of all others."""
        self._batches.appendleft(batch)

    def due(self, now_s: float) -> bool:
        """Whether one that was made to wait has waited long enough."""
        return bool(self._batches) and now_s >= self._free_s

    def take(self, *, at_once: bool) -> Batch | None:
        """The next to be carried out. One that stands alone may have to wait for others like it, unless `at_once`."""
        if not self._batches:
            return None
        if not at_once and len(self._batches) == 1 and self._waits(self._batches[0]):
            return None
        return self._batches.popleft()

    def made(self, batch: Batch, took_s: float) -> None:
        """It was carried out. After a few of the same knob the next waits in proportion to what they cost."""
        command = batch.order.command
        if isinstance(command, TurnKnob) and _folds(command):
            self._last = command.knob, command.target
            now_s, price_s = time.monotonic(), min(WAITS_S, took_s / SHARE)
            # A cheap turn after an expensive one has not used up the free ones.
            self._highest_price_s = max(self._highest_price_s, price_s)
            free_s = FREELY * self._highest_price_s
            self._level_s = min(max(self._level_s, now_s), now_s + free_s) + price_s
            self._free_s = min(self._level_s - free_s, now_s + WAITS_S)

    def _waits(self, batch: Batch) -> bool:
        command = batch.order.command
        again = isinstance(command, TurnKnob) and _folds(command) and (command.knob, command.target) == self._last
        return again and time.monotonic() < self._free_s


def _folds(turn: TurnKnob) -> bool:
    knob = knobs.KNOBS.get(turn.knob)
    return knob is not None and knob.combinable
