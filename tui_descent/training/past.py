"""What can be gone back to: a moment before each intervention, at the start, and now and then, within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tui_descent.protocol.commands import TurnKnob
from tui_descent.training.moments import Moment, bytes_needed

BUDGET = 256_000_000
EVERY_S = 30.0
SHARE = 0.01  # of the time that the moments taken now and then may cost
# Knobs that change nothing about what is learnt: an undo leaves them.
INDIFFERENT = frozenset({"pace"})


@dataclass(slots=True, eq=False)
class Turn:
    """One intervention in force or undone: `before` it, and once undone `after`, where redo leads.

    Without a moment only its value can be turned back and forth.
    """

    id: int
    step: int
    label: str
    back: TurnKnob
    forth: TurnKnob
    before: Moment | None
    after: Moment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One way `back` or forth: to a moment, or by `turn` alone where there is none. `of` is the intervention."""

    what: str
    back: bool
    of: Turn | None = None
    moment: Moment | None = None
    turn: TurnKnob | None = None


@dataclass(slots=True)
class Past:
    """The moments of one run, oldest first. `roots` gives what a moment is taken of, as it stands."""

    roots: Callable[[], list[object]]
    optimizer: Callable[[], torch.optim.Optimizer]
    model: torch.nn.Module
    budget: int = BUDGET
    randoms: bool = True
    _turns: list[Turn] = field(default_factory=list)
    _undone: list[Turn] = field(default_factory=list)
    _periodic: list[Moment] = field(default_factory=list)
    _now: Moment | None = None  # just gone to, and nothing has happened since
    _due_s: float = 0.0

    @property
    def nbytes(self) -> int:
        """Memory of all moments together."""
        return sum(moment.nbytes for moment in self._all())

    @property
    def in_force(self) -> tuple[int, ...]:
        """The interventions that an undo would take back, by id, oldest first."""
        return tuple(turn.id for turn in self._turns)

    @property
    def too_large(self) -> str:
        """Why no moment is taken; empty where there is room."""
        needed = bytes_needed(self.model, self.optimizer())
        if needed <= self.budget:
            return ""
        return f"the exact state takes {needed / 1e6:,.0f} MB, the budget is {self.budget / 1e6:,.0f} MB"

    def take(self, segment: int, step: int) -> Moment | None:
        """The state now, if one has room at all."""
        if self._now is not None:
            return self._now
        if self.too_large:
            return None
        moment = Moment.take(self.roots(), segment=segment, step=step, randoms=self.randoms)
        return moment if moment.nbytes <= self.budget else None

    def now_and_then(self, segment: int, step: int) -> Moment | None:
        """The state now, where the last one taken so is long enough ago."""
        start_s = time.monotonic()
        if start_s < self._due_s:
            return None
        moment = self.take(segment, step)
        end_s = time.monotonic()
        self._due_s = end_s + max(EVERY_S, (end_s - start_s) / SHARE)
        if moment is not None:
            self._periodic.append(moment)
            self._evict(moment)
        return moment

    def turned(self, turn: Turn) -> None:
        """An intervention was made: what was undone before it can no longer be redone."""
        self._undone.clear()
        self._turns.append(turn)
        self._now = None
        if turn.before is not None:
            self._evict(turn.before)

    def moved_on(self) -> None:
        """Updates go on from here."""
        self._now = None

    def undo(self, segment: int, step: int, *, broken: bool) -> Step:
        """Back to before the last intervention in force; `broken`: to the last good moment where that is later.

        Raises `ValueError` where there is nothing to go back to.
        """
        last = self._turns[-1] if self._turns else None
        good = self.last_good() if broken else None
        if good is not None and (last is None or (good is not last.before and good.step >= last.step)):
            return self._gone_to(good, "the steps since the last good moment", back=True)
        if last is None:
            raise ValueError("nothing to undo: no intervention is in force")
        if last.before is None:
            reason = self.too_large or "its moment had to make room for later ones"
            self._undone.append(self._turns.pop())
            return Step(what=f"{last.label}; by value only: {reason}", back=True, of=last, turn=last.back)
        last.after = self.take(segment, step)
        self._undone.append(self._turns.pop())
        return self._gone_to(last.before, last.label, back=True, of=last)

    def redo(self) -> Step:
        """Forward to where the last undo was made. Raises `ValueError` where nothing was undone."""
        if not self._undone:
            raise ValueError("nothing to redo")
        turn = self._undone.pop()
        self._turns.append(turn)
        after, turn.after = turn.after, None
        if after is None:
            return Step(what=f"{turn.label}; by value only", back=False, of=turn, turn=turn.forth)
        return self._gone_to(after, turn.label, back=False, of=turn)

    def refused(self, step: Step) -> None:
        """The step could not be made: as if it had not been asked for."""
        self._now = None
        if step.of is None:
            return
        if step.back:
            step.of.after = None
            self._turns.append(self._undone.pop())
        else:
            step.of.after = step.moment
            self._undone.append(self._turns.pop())

    def last_good(self) -> Moment | None:
        """The newest moment whose weights are numbers."""
        known = [*self._periodic, *(t.before for t in self._turns if t.before is not None)]
        return next((m for m in sorted(known, key=lambda m: -m.step) if m.finite()), None)

    def _gone_to(self, moment: Moment, what: str, *, back: bool, of: Turn | None = None) -> Step:
        self._periodic = [m for m in self._periodic if m.segment <= moment.segment and m.step <= moment.step]
        self._now = moment
        self._evict(moment)
        return Step(what=what, back=back, of=of, moment=moment)

    def _all(self) -> list[Moment]:
        held = [*self._periodic]
        for turn in (*self._turns, *self._undone):
            held += [m for m in (turn.before, turn.after) if m is not None]
        if self._now is not None:
            held.append(self._now)
        return list({id(m): m for m in held}.values())

    def _evict(self, newest: Moment) -> None:
        """Make room: first those taken now and then, then where redo leads, last the oldest before an intervention."""
        while self.nbytes > self.budget:
            old = next((m for m in self._periodic if m is not newest), None)
            if old is not None:
                self._periodic.remove(old)
                continue
            undone = next((t for t in self._undone if t.after not in (None, newest)), None)
            if undone is not None:
                undone.after = None
                continue
            turn = next((t for t in self._turns if t.before not in (None, newest)), None)
            if turn is None:
                return
            turn.before = None
