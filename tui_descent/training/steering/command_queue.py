"""A queue of commands in order of arrival. Repeated changes of one knob are merged, and their rate is limited."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field

import msgspec

from tui_descent.protocol.commands import ClientRequest, TurnKnob
from tui_descent.scenario import knobs
from tui_descent.training.keeper_link import KeeperLink

# The first FREE_COUNT changes of one knob in quick succession are made at once. Further changes may take at most the
# share TIME_SHARE of the time. Changes that arrive faster wait for at most MAX_WAIT_S and are merged.
TIME_SHARE = 1 / 256
FREE_COUNT = 8
MAX_WAIT_S = 0.25


@dataclass(slots=True)
class QueuedCommand:
    """One command to carry out. The earlier requests in `merged` were merged into `request`; each gets a reply."""

    request: ClientRequest
    merged: list[ClientRequest] = field(default_factory=list)

    def merge(self, request: ClientRequest) -> bool:
        """Merge the next request into this one. Returns False if they cannot be merged."""
        first, then = self.request.command, request.command
        if not (isinstance(first, TurnKnob) and isinstance(then, TurnKnob)):
            return False
        if (request.client, request.source) != (self.request.client, self.request.source):
            return False
        combined = knobs.combined(first, then)
        if combined is None:
            return False
        self.merged.append(self.request)
        self.request = msgspec.structs.replace(request, command=combined)
        return True


class CommandQueue:
    """Commands that wait to be carried out between two updates.

    The rate limit is a leaky bucket. Each change of a knob costs its time divided by TIME_SHARE. The bucket holds
    FREE_COUNT changes at the highest cost seen so far.
    """

    def __init__(self) -> None:
        self._commands: deque[QueuedCommand] = deque()
        self._last: tuple[str, str] | None = None  # the knob and target of the last change
        self._empty_s = 0.0  # when the bucket is empty again
        self._ready_s = 0.0  # when the next change of the same knob may be made
        self._highest_cost_s = 0.0

    def poll(self, link: KeeperLink) -> bool:
        """Add the commands that the keeper has sent. Returns whether there were any."""
        arrived = link.commands()
        for request in arrived:
            self.put(request)
        return bool(arrived)

    def put(self, request: ClientRequest) -> None:
        """Append a request, or merge it into the last command if possible."""
        if not (self._commands and self._commands[-1].merge(request)):
            self._commands.append(QueuedCommand(request))

    def put_back(self, queued: QueuedCommand) -> None:
        """Return a command from `take` to the front of the queue."""
        self._commands.appendleft(queued)

    def wait_s(self, now_s: float) -> float:
        """The time until a waiting command may be carried out, 0 if at once; infinite if none is waiting."""
        return max(0.0, self._ready_s - now_s) if self._commands else math.inf

    def take(self, *, at_once: bool) -> QueuedCommand | None:
        """Remove and return the next command to carry out; None if there is none.

        If the only waiting command changes the same knob as the last change, the rate limit may delay it, unless
        `at_once`.
        """
        if not self._commands:
            return None
        if not at_once and len(self._commands) == 1 and self._must_wait(self._commands[0]):
            return None
        return self._commands.popleft()

    def add_cost(self, queued: QueuedCommand, took_s: float) -> None:
        """Add the time that carrying out a command took to the rate limit."""
        command = queued.request.command
        if isinstance(command, TurnKnob) and _mergeable(command):
            self._last = command.knob, command.target
            now_s, cost_s = time.monotonic(), min(MAX_WAIT_S, took_s / TIME_SHARE)
            # The capacity is computed from the highest cost, so there is room for a cheap change even after an
            # expensive one.
            self._highest_cost_s = max(self._highest_cost_s, cost_s)
            capacity_s = FREE_COUNT * self._highest_cost_s
            self._empty_s = min(max(self._empty_s, now_s), now_s + capacity_s) + cost_s
            self._ready_s = min(self._empty_s - capacity_s, now_s + MAX_WAIT_S)

    def _must_wait(self, queued: QueuedCommand) -> bool:
        command = queued.request.command
        same = isinstance(command, TurnKnob) and _mergeable(command) and (command.knob, command.target) == self._last
        return same and time.monotonic() < self._ready_s


def _mergeable(turn: TurnKnob) -> bool:
    knob = knobs.KNOBS.get(turn.knob)
    return knob is not None and knob.combinable
