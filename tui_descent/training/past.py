"""What can be gone back to: a moment before each intervention, at the start, and now and then, within a budget.

One too large for memory goes onto the disk: before interventions only, since writing it takes seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import SnapshotTaken
from tui_descent.protocol.launch import UNDO_BUDGET, UNDO_FOLDER, Launch
from tui_descent.training.disk import Disk
from tui_descent.training.knobs.ground import Turned
from tui_descent.training.moments import Moment, bytes_needed

EVERY_S = 30.0
SHARE = 0.01  # of the time that the moments taken now and then may cost
# Knobs that change nothing about what is learnt: an undo leaves them.
INDIFFERENT = frozenset({"pace"})
# Knobs that set a number, pressed time and again, whose value can be turned back: with a state that takes seconds to
# write, one press gets an exact way back, and the next ones only once that took no more than this share of the time.
NUMBERS = frozenset({"lr", "momentum", "betas", "weight_decay", "clip", "batch_size"})
DISK_SHARE = 0.05


@dataclass(slots=True, eq=False)
class Turn:
    """One intervention in force or undone: `before` it, and once undone `after`, where redo leads.

    Without a moment only its value can be turned back and forth, and `why` tells the reason.
    """

    id: int
    step: int
    label: str
    back: tuple[TurnKnob, ...]
    forth: tuple[TurnKnob, ...]
    before: Moment | None
    after: Moment | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One way `back` or forth: to a moment, or by `turns` alone where there is none. `of` is the intervention."""

    what: str
    back: bool
    of: Turn | None = None
    moment: Moment | None = None
    turns: tuple[TurnKnob, ...] = ()


@dataclass(slots=True)
class Past:
    """The moments of one run, oldest first. `roots` gives what a moment is taken of, as it stands."""

    roots: Callable[[], list[object]]
    optimizer: Callable[[], torch.optim.Optimizer]
    model: torch.nn.Module
    budget: int = UNDO_BUDGET
    randoms: bool = True
    disk: Disk | None = None
    _turns: list[Turn] = field(default_factory=list)
    _undone: list[Turn] = field(default_factory=list)
    _periodic: list[Moment] = field(default_factory=list)
    _now: Moment | None = None  # just gone to, and nothing has happened since
    _due_s: float = 0.0
    _why: str = ""  # the last take gave none
    _disk_due_s: float = 0.0  # from when on a number gets an exact way back on the disk again

    @classmethod
    def of(
        cls,
        launch: Launch,
        roots: Callable[[], list[object]],
        optimizer: Callable[[], torch.optim.Optimizer],
        model: torch.nn.Module,
        own_loop: bool,
    ) -> Past:
        """A run's, within the budgets of its orders. A foreign loop's random numbers go on with its data."""
        disk = Disk(launch.path / UNDO_FOLDER, budget=launch.undo_disk)
        return cls(roots, optimizer, model, launch.undo_budget, own_loop, disk)

    @property
    def nbytes(self) -> int:
        """Memory of all moments together."""
        return sum(moment.nbytes for moment in self._all())

    @property
    def disk_bytes(self) -> int:
        """What they take of the disk."""
        return sum(moment.disk_bytes for moment in self._all())

    @property
    def in_force(self) -> tuple[int, ...]:
        """The interventions that an undo would take back, by id, oldest first."""
        return tuple(turn.id for turn in self._turns)

    def take(self, segment: int, step: int, *, for_redo: bool = False, knob: str = "") -> Moment | None:
        """The state now, if one has room at all; on the disk no way back makes room for one `for_redo`.

        `knob` is what is about to be turned.
        """
        if self._now is not None:
            return self._now
        if (moment := self._in_memory(segment, step)) is not None:
            return moment
        if knob in NUMBERS and (wait_s := self._disk_due_s - time.monotonic()) > 0:
            self._why += f"; one was written just now, and takes so long that numbers get the next in {wait_s:.0f} s"
            return None
        start_s = time.monotonic()
        moment = self._on_disk(segment, step, give_up=not for_redo)
        end_s = time.monotonic()
        self._disk_due_s = end_s + (end_s - start_s) / DISK_SHARE
        return moment

    def _in_memory(self, segment: int, step: int) -> Moment | None:
        needed = bytes_needed(self.model, self.optimizer())
        if needed <= self.budget:
            moment = Moment.take(self.roots(), segment=segment, step=step, randoms=self.randoms)
            if (needed := moment.nbytes) <= self.budget:
                return moment
        self._why = f"the exact state takes {needed / 1e6:,.0f} MB, the budget is {self.budget / 1e6:,.0f} MB"
        return None

    def _on_disk(self, segment: int, step: int, *, give_up: bool) -> Moment | None:
        if self.disk is None or self.budget == 0:
            return None
        needed, used = bytes_needed(self.model, self.optimizer()), self.disk_bytes
        # Nothing is given up for what would have no room even then.
        why = self.disk.refusal(needed, used=used, given_up=used if give_up else 0)
        while not why and self.disk.refusal(needed, used=self.disk_bytes) and self._drop(None, on_disk=True):
            pass
        if why:
            self._why += f"; {why}"
            return None
        try:
            roots = self.roots()
            return Moment.take(roots, segment=segment, step=step, randoms=self.randoms, onto=self.disk)
        except OSError as error:
            self._why += f"; the disk: {error.strerror}"
            return None

    def taken(self, reason: str, segment: int, step: int) -> SnapshotTaken:
        """What is to be told of a moment that was taken there."""
        return SnapshotTaken(
            segment=segment,
            step=step,
            reason=reason,
            used_bytes=self.nbytes,
            budget_bytes=self.budget,
            disk_bytes=self.disk_bytes,
        )

    @property
    def due(self) -> bool:
        """Whether the state is to be taken now whatever happens."""
        return time.monotonic() >= self._due_s

    def now_and_then(self, segment: int, step: int) -> Moment | None:
        """The state now, where the last one taken so is long enough ago."""
        start_s = time.monotonic()
        if start_s < self._due_s:
            return None
        moment = self._now or self._in_memory(segment, step)
        end_s = time.monotonic()
        self._due_s = end_s + max(EVERY_S, (end_s - start_s) / SHARE)
        if moment is None:
            return None
        self._periodic.append(moment)
        self._evict(None)
        return moment if moment in self._periodic else None

    def turned(self, turn: Turn) -> None:
        """An intervention was made: what was undone before it can no longer be redone."""
        self._undone.clear()
        self._turns.append(turn)
        self._now = None
        if turn.before is None:
            turn.why = self._why
        else:
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
        if last.before is not None and (damage := last.before.damage()):
            last.before, last.why = None, damage
        if last.before is None:
            self._undone.append(self._turns.pop())
            return Step(what=f"{last.label}; by value only: {last.why}", back=True, of=last, turns=last.back)
        last.after = self.take(segment, step, for_redo=True)
        self._undone.append(self._turns.pop())
        return self._gone_to(last.before, last.label, back=True, of=last)

    def redo(self) -> Step:
        """Forward to where the last undo was made. Raises `ValueError` where nothing was undone."""
        if not self._undone:
            raise ValueError("nothing to redo")
        turn = self._undone.pop()
        self._turns.append(turn)
        after, turn.after = turn.after, None
        why = f": {after.damage()}" if after is not None and after.damage() else ""
        if after is None or why:
            return Step(what=f"{turn.label}; by value only{why}", back=False, of=turn, turns=turn.forth)
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
        return next((m for m in sorted(known, key=lambda m: -m.step) if m.finite() and not m.damage()), None)

    def close(self) -> None:
        """The run is over: nothing can be gone back to any more."""
        self._now = None
        for kept in (self._turns, self._undone, self._periodic):
            kept.clear()
        if self.disk is not None:
            self.disk.clear()

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

    def _evict(self, newest: Moment | None) -> None:
        """Back within the budgets, as far as that goes without `newest`."""
        while self.nbytes > self.budget and self._drop(newest, on_disk=False):
            pass
        while self.disk is not None and self.disk_bytes > self.disk.budget and self._drop(newest, on_disk=True):
            pass

    def _drop(self, keep: Moment | None, *, on_disk: bool) -> bool:
        """One taken now and then, else where redo leads, else the oldest before an intervention, if any."""

        def can_go(moment: Moment | None) -> bool:
            return moment is not None and moment is not keep and (moment.disk_bytes > 0) == on_disk

        old = next((m for m in self._periodic if can_go(m)), None)
        if old is not None:
            self._periodic.remove(old)
            return True
        undone = next((t for t in self._undone if can_go(t.after)), None)
        if undone is not None:
            undone.after = None
            return True
        turn = next((t for t in self._turns if can_go(t.before)), None)
        if turn is None:
            return False
        turn.before, turn.why = None, "its moment had to make room for later ones"
        return True


def undoable(
    id_: int, step: int, command: TurnKnob, turned: Turned, before: Moment | None, *, rates: tuple[float, float]
) -> Turn:
    """The intervention `id_`, made before update `step` where the state was `before`; the `rates` then and after it."""
    # Another optimizer's rate is not always the old one's, mapped: the scenario may name it.
    back, forth = ((TurnKnob(knob="lr", value=repr(r)),) if command.knob == "optimizer" else () for r in rates)
    target = "" if command.target == "all" else f" of {command.target}"
    return Turn(
        id=id_,
        step=step,
        label=f"{command.knob}{target} {turned.old} → {turned.new}",
        back=(TurnKnob(knob=command.knob, value=turned.old, target=command.target), *back),
        forth=(
            TurnKnob(
                knob=command.knob,
                value=turned.new,
                target=command.target,
                way=turned.way,
                scale=turned.scale,
                where=turned.where,
                parameters=command.parameters,
            ),
            *forth,
        ),
        before=before,
    )
