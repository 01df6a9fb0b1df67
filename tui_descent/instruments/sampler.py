"""When to take a reading: within a share of the run's time, or on exactly the steps that were asked for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from tui_descent.instruments.purse import Purse, Tiers
from tui_descent.instruments.usual import LONGEST_STEP, Usual

# While paced, a reading may take this part of what a step waits, or this part of the time since the last.
SLACK_USED = 0.5
PACED_SHARE = 0.1
# What most runs are watched with. It buys no more readings than a screen shows; a larger share buys more.
USUAL_BUDGET, APART_S = 0.01, 0.095
# The clock is looked at when a reading can be paid, but once in this time and so many steps at least: a look costs
# several steps' watching.
LOOK_EVERY_S, STEPS_A_LOOK = 0.2, 150
# Steps after a reading that are still slower for it, since it has pushed the training's numbers out of the cache.
AFTERMATH = 3
# Of the readings of a kind, one in so many has its aftermath timed, and the first few.
AFTERMATH_EVERY = 4


class Sampler:
    """`every` fixes the steps; otherwise readings take at most `budget` of the time. `at` are steps besides.

    Time is the training thread's CPU seconds, which other processes do not lengthen, and what it waited, for data, say.
    """

    def __init__(self, *, every: int | None = None, budget: float = USUAL_BUDGET, at: Iterable[int] = ()) -> None:
        self._every, self._budget, self._at = every, budget, frozenset(at)
        self._usual = Usual()
        self._purse = Purse(budget, self._usual)
        self.curvature = self._purse.curvature
        # In the run's time: how far apart readings are, and the earliest that the next one comes.
        self._apart_s = APART_S * min(1.0, USUAL_BUDGET / budget) if budget > 0 else math.inf
        self._next_at_s = 0.0
        self._paced = self._in_wait = False
        self._since_reading_s = 0.0  # of a paced run
        # The last reading: its tiers, what it took by its own clock until it is paid for; what others before it took
        # since the last look.
        self._read, self._timed_s, self._earlier_s = Tiers(), 0.0, 0.0
        self._readings: Counter[Tiers] = Counter()
        self._outside: dict[Tiers, float] = {}  # what readings cost outside their own clock
        self._hooked_s, self._hooked_steps = 0.0, 0
        self._free_s = 0.0  # readings of a run without a pace took it while that stood
        self._before = 0.0, 0.0  # what watching took, and the run, when the pace was last put on or off

    @property
    def fixed(self) -> bool:
        """Whether readings fall on fixed steps."""
        return self._every is not None or bool(self._at)

    def due(
        self, step: int, *, period_s: float | None, pauses: bool = False, ahead: int = 0, reading: bool = False
    ) -> bool:
        """Whether update `step`, `ahead` updates behind the coming one, is to be measured.

        `period_s` is the time a paced step has; a run that `pauses` behind it has all the time there is. `reading`: one
        of those before it is to be, too.
        """
        if self._paced != (period_s is not None):
            self._paced = not self._paced
            self._before = self._took_s, self.time_s
        self._in_wait = False
        if step in self._at:
            return True
        if self._every is not None:
            return self._every > 0 and step % self._every == 0
        if self._budget <= 0:
            return False
        self._in_wait = pauses or (period_s is not None and self._has_time(period_s))
        if self._in_wait:
            return True
        if not self._purse.price_s:
            return not reading and not self._timed_s  # the first is on credit
        return self._to_wait_s(ahead, reading=reading) <= 0

    def _has_time(self, period_s: float) -> bool:
        self._since_reading_s += period_s
        price_s = self._purse.price_s
        if price_s > SLACK_USED * (period_s - self._usual.step_s) and price_s > PACED_SHARE * self._since_reading_s:
            return False
        self._since_reading_s = 0.0
        return True

    def steps_to_reading(self, step: int) -> float:
        """How many updates from `step` on none is due on a fixed step; what the budget pays for is due at a look."""
        first = min((at for at in self._at if at >= step), default=math.inf)
        if self._every is not None and self._every > 0:
            first = min(first, -(-step // self._every) * self._every)
        return first - step

    def along(
        self,
        now_s: float,
        *,
        paced: bool,
        pauses: bool = False,
        ahead: int = 0,
        behind: Tiers = Tiers(),  # noqa: B008 - immutable
    ) -> Tiers:
        """What is read with a reading that is due, where the run pauses behind it all but what takes further passes.

        `behind`: the tiers of one that is about to be taken before it.
        """
        if self._every is not None:
            return Tiers(True, True, True)
        signals, slow, rare = self._purse.along(now_s, free=paced or pauses, ahead=ahead, behind=behind)
        return Tiers(signals or paced or pauses, slow or pauses, rare, waited=self._in_wait)

    def spent(self, cost_s: float, tiers: Tiers = Tiers()) -> None:  # noqa: B008 - immutable
        """The reading of the step under way took this long by its own clock, with these tiers along."""
        self._earlier_s += self._settle(None)  # the one before, where they come that close
        self._read, self._timed_s = tiers, cost_s
        self._readings[tiers] += 1
        self._purse.read(tiers)
        self._next_at_s = self._behind_s()

    def hooked(self, took_s: float, steps: int) -> None:
        """What watching took of so many steps that were not measured: hooks, guard, record, a look for commands."""
        if not self._usual.known:
            return  # what begins a run comes once
        # By the clock on the wall: what interrupts a step now and then is none of ours.
        if self._hooked_steps:
            took_s = min(took_s, LONGEST_STEP * self._hooked_s / self._hooked_steps * max(steps, STEPS_A_LOOK))
        self._hooked_s += took_s
        self._hooked_steps += steps

    @property
    def next_look(self) -> int:
        """After how many steps from the last look the clock is worth another."""
        if self._timed_s:
            count = self._readings[self._read]
            if count <= AFTERMATH_EVERY or count % AFTERMATH_EVERY == 0:
                return 1 + AFTERMATH
        usual = self._usual
        if not usual.known:
            return 1
        step_s = max(usual.step_s + usual.wait_s, 1e-9)
        most = min(STEPS_A_LOOK, LOOK_EVERY_S / step_s)
        if self._every is None and self._budget > 0:
            # A little later rather than too early, which would cost another look.
            most = min(most, 1.05 * self._to_wait_s() / step_s)
        return max(1, math.ceil(most))

    def stepped(self, busy_s: float, *, steps: int = 1, waited_s: float = 0.0) -> None:
        """So many steps took this long together, readings included, and waited besides; behind a measured one a few.

        What a reading costs outside its own clock (hooks in the passes, a cache that holds other things) shows in how
        much longer these steps took than usual.
        """
        read = self._timed_s > 0
        tells = read and not self._earlier_s and AFTERMATH < steps <= AFTERMATH + 2
        cost_s = self._earlier_s + self._settle(busy_s - steps * self._usual.step_s if tells else None)
        self._earlier_s = 0.0
        few = read and steps <= 2 + AFTERMATH
        self._usual.went(busy_s, waited_s, steps=steps, readings_s=cost_s, read=read, few=few)

    def stood(self) -> None:
        """The run stood still: of what was not looked at nothing counts but the reading."""
        self._usual.busy_s += self._earlier_s + self._settle(None)
        self._earlier_s = 0.0

    def _settle(self, longer_s: float | None) -> float:
        """Pay for the last reading, and give what it cost.

        Its step and those behind it took `longer_s` more than usual, where that is known. What such readings cost
        outside their own clock is a mean, since of one step's time most is chance.
        """
        timed_s, self._timed_s = self._timed_s, 0.0
        if not timed_s:
            return 0.0
        outside_s = 0.0
        if self._usual.known:
            if longer_s is not None:
                step_s = self._usual.step_s
                more_s = min(max(longer_s - timed_s, -step_s), 4 * timed_s + step_s)
                usual_s = self._outside.get(self._read, more_s)
                self._outside[self._read] = usual_s + (more_s - usual_s) / 8
            outside_s = max(self._outside.get(self._read, 0.0), 0.0)
        self._purse.pay(timed_s + outside_s, self._read)
        if self._read.waited and not self._paced:
            self._free_s += timed_s + outside_s
        return timed_s + outside_s

    def _behind_s(self) -> float:
        """The earliest of the next reading, behind one that is taken now.

        A beat: one that came a little late does not put off those behind it.
        """
        return min(max(self._next_at_s, self.time_s - self._apart_s), self.time_s) + self._apart_s

    def _to_wait_s(self, ahead: int = 0, *, reading: bool = False) -> float:
        """How long the run has to go from a step on before a reading can be paid and is not too close to the last."""
        owed_s = self._timed_s + self._outside.get(self._read, 0.0) if self._timed_s else 0.0
        next_at_s = self._next_at_s
        if reading:
            owed_s, next_at_s = owed_s + self._purse.price_s, self._behind_s()
        wait_s = max(self._purse.lacks_s(owed_s) / self._budget, next_at_s - self.time_s)
        return wait_s - ahead * (self._usual.step_s + self._usual.wait_s)

    @property
    def time_s(self) -> float:
        """Seconds that the run's steps took so far, watching included: CPU time and waits."""
        return self._usual.time_s

    @property
    def _took_s(self) -> float:
        return self._purse.spent_s - self._free_s + self.curvature.took_s + self._hooked_s

    @property
    def cost(self) -> float:
        """The share of the time that watching took since the pace was put on or off: readings, curvature, hooks.

        Of a paced run's time its waits are none: what is taken out of these slows nothing.
        """
        took_s, time_s = self._took_s - self._before[0], self.time_s - self._before[1]
        return took_s / time_s if time_s else 0.0
