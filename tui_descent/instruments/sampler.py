"""When to take a reading: within a share of the run's time, or on exactly the steps that were asked for."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

# A gap between two steps (an evaluation, a checkpoint, a suspended machine) is no step's time: no more than this many
# usual steps of it count.
LONGEST_STEP = 4.0
# While paced, a reading may take this part of what a step waits, or this part of the time since the last.
SLACK_USED = 0.5
PACED_SHARE = 0.1
# What most runs are watched with. It buys no more readings than a screen shows; a larger share buys more.
USUAL_BUDGET, APART_S = 0.01, 0.095
# Tiers beyond the norms: how often at most, and the share of the budget they may have. Norms come first: what these
# leave is theirs.
SIGNALS_EVERY_S, SIGNALS_SHARE = 0.1, 0.08
SLOW_EVERY_S, SLOW_SHARE = 1.0, 0.08
RARE_EVERY_S, RARE_SHARE = 10.0, 0.03
# The curvature, while it is asked for: its share is taken from the readings'. Paced, it may come more often.
CURVATURE_EVERY_S, CURVATURE_SHARE = 10.0, 0.2
CURVATURE_PACED_EVERY_S = 0.5
# Of the newest figure in the running means of a step's and a reading's time.
NEWEST = 1 / 16
# What a tier's first reading is taken to cost, in steps: hooks at boundaries; activations; two passes more.
GUESSES = (0.25, 1.0, 3.0)
# The clock is looked at when a reading can be paid, but once in this time and so many steps at least: a look costs
# several steps' watching.
LOOK_EVERY_S, STEPS_A_LOOK = 0.2, 150
# Steps after a reading that are still slower for it, since it has pushed the training's numbers out of the cache.
AFTERMATH = 3
# Of the readings of a kind, one in so many has its aftermath timed, and the first few.
AFTERMATH_EVERY = 4
# Steps without a reading, after which their usual time is known.
KNOWN_AFTER = 8


class Tiers(NamedTuple):
    """What a sampled step reads besides the norms: boundary signals; activations and the ledger; the batch again.

    `waited`: the run waits or stands behind it, so that no budget pays for it.
    """

    signals: bool = False
    slow: bool = False
    rare: bool = False
    waited: bool = False


class Tier:
    """One tier's account: what it has spent, what it costs, when it was last read."""

    def __init__(self, every_s: float, share: float) -> None:
        self.spent_s = 0.0
        self.cost_s = 0.0
        self._every_s = every_s
        self._share = share
        self._last_s = -1e9

    def due(self, now_s: float, allowance_s: float, *, guess_s: float = 0.0) -> bool:
        """Whether its time has come and its share of the allowance can pay for it; at first its price is a guess."""
        price_s = self.cost_s or guess_s
        return now_s - self._last_s >= self._every_s and self.spent_s + price_s <= self._share * allowance_s + (
            0.0 if price_s else 1e-9
        )

    def took(self, cost_s: float, now_s: float, *, paid: bool = True) -> None:
        """It was read; `paid` out of the budget, and not out of a wait."""
        if paid:
            self.spent_s += cost_s
        self.cost_s = cost_s if not self.cost_s else self.cost_s + (cost_s - self.cost_s) / 4
        self._last_s = now_s


class Sampler:
    """`every` fixes the steps; otherwise readings take at most `budget` of the time. `at` are steps besides.

    Time is the training thread's CPU seconds, which other processes do not lengthen, and what it waited, for data, say.
    """

    def __init__(self, *, every: int | None = None, budget: float = USUAL_BUDGET, at: Iterable[int] = ()) -> None:
        self._every = every
        self._budget = budget
        self._at = frozenset(at)
        self._apart_s = APART_S * min(1.0, USUAL_BUDGET / budget) if budget > 0 else math.inf
        self._next_at_s = 0.0  # in the run's time, the earliest that a reading comes
        self._forgone_s = 0.0  # of the budget, since nothing was to be had for it
        self._given_s = 0.0  # readings took it out of waits
        self._paced = self._in_wait = False
        self._before = 0.0, 0.0  # what watching took, and the run, when the pace was last put on or off
        self._spent_s = 0.0
        self._busy_s = self._waited_s = 0.0
        self._cost_s = 0.0
        self._step_s = self._wait_s = 0.0  # a usual step's
        self._since_reading_s = 0.0
        self._timed_s: float | None = None
        self._charged_s = 0.0  # since the last look, of readings before the one that is timed
        self._plain_steps, self._plain_s = 0, 0.0  # steps without a reading; what one took by the last look
        self._steps = 0
        self._asked_at = -1
        self._hooked_s, self._hooked_steps = 0.0, 0
        self._signals = Tier(SIGNALS_EVERY_S, SIGNALS_SHARE)
        self._slow = Tier(SLOW_EVERY_S, SLOW_SHARE)
        self._rare = Tier(RARE_EVERY_S, RARE_SHARE)
        self._along: list[Tier] = []
        self._extra_s: dict[Tiers, float] = {}  # what readings cost outside their own clock
        self._read = Tiers()
        self._readings: Counter[Tiers] = Counter()
        self._curvature = Tier(CURVATURE_EVERY_S, CURVATURE_SHARE)
        self._curvature_read_s = -1e9
        self._curvature_s = 0.0
        self._curvature_on_s: float | None = None  # busy time when it was asked for
        self._curvature_allowed_s = 0.0  # of the budget, up to when it was last switched off

    @property
    def fixed(self) -> bool:
        """Whether readings fall on fixed steps."""
        return self._every is not None or bool(self._at)

    def due(self, step: int, *, period_s: float | None, pauses: bool = False) -> bool:
        """Whether update `step` is to be measured; `period_s` is the time a paced step has.

        A run that `pauses` behind it has all the time there is.
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
        if pauses:
            self._in_wait = True
            return True
        if period_s is not None:
            self._since_reading_s += period_s
            if (
                self._cost_s <= SLACK_USED * (period_s - self._step_s)
                or self._cost_s <= PACED_SHARE * self._since_reading_s
            ):
                self._since_reading_s = 0.0
                self._in_wait = True
                return True
        if self._asked_at == self._steps:
            return False  # nothing has been earned since the last answer
        self._asked_at = self._steps
        return self._waiting_s() <= 0 or self._cost_s == 0.0

    def steps_to_reading(self, step: int) -> float:
        """How many updates from `step` on none is due on a fixed step; what the budget pays for is due at a look."""
        first = min((at for at in self._at if at >= step), default=math.inf)
        if self._every is not None and self._every > 0:
            first = min(first, -(-step // self._every) * self._every)
        return first - step

    def along(self, now_s: float, *, paced: bool) -> Tiers:
        """What is read with a reading that is due."""
        if self._every is not None:
            return Tiers(True, True, True)
        allowance_s = math.inf if paced else self._allowance_s()
        guesses_s = (share * self._step_s for share in GUESSES)
        tiers = zip((self._signals, self._slow, self._rare), guesses_s, strict=True)
        due = Tiers(*(tier.due(now_s, allowance_s, guess_s=guess_s) for tier, guess_s in tiers))
        return due._replace(signals=due.signals or paced, waited=self._in_wait)

    def spent(self, cost_s: float, tiers: Tiers = Tiers()) -> None:  # noqa: B008 - immutable
        """The reading of the step under way took this long by its own clock, with these tiers along."""
        self._charge(None)  # of the one before, where they come that close
        self._timed_s, self._read = cost_s, tiers
        # A beat: one that came a little late does not put off those behind it.
        self._next_at_s = min(max(self._next_at_s, self.time_s - self._apart_s), self.time_s) + self._apart_s
        self._readings[tiers] += 1
        accounts = (self._signals, self._slow, self._rare)
        self._along = [tier for tier, read in zip(accounts, tiers[:3], strict=True) if read]

    def hooked(self, took_s: float, steps: int) -> None:
        """What watching took of so many steps that were not measured: hooks, guard, record, a look for commands."""
        if self._plain_steps < KNOWN_AFTER:
            return  # what begins a run comes once
        # By the clock on the wall: what interrupts a step now and then is none of ours.
        if self._hooked_steps:
            took_s = min(took_s, LONGEST_STEP * self._hooked_s / self._hooked_steps * max(steps, STEPS_A_LOOK))
        self._hooked_s += took_s
        self._hooked_steps += steps

    @property
    def next_look(self) -> int:
        """After how many steps from the last look the clock is worth another."""
        if self._timed_s is not None:
            count = self._readings[self._read]
            if count <= AFTERMATH_EVERY or count % AFTERMATH_EVERY == 0:
                return 1 + AFTERMATH
        if self._plain_steps < KNOWN_AFTER:
            return 1
        step_s = max(self._step_s + self._wait_s, 1e-9)
        most = min(STEPS_A_LOOK, LOOK_EVERY_S / step_s)
        if self._every is None and self._budget > 0:
            # A little later rather than too early, which would cost another look.
            most = min(most, 1.05 * self._waiting_s() / step_s + 1)
        return max(1, math.ceil(most))

    def stepped(self, busy_s: float, *, steps: int = 1, waited_s: float = 0.0) -> None:
        """So many steps took this long together, readings included, and waited besides; behind a measured one a few.

        What a reading costs outside its own clock (hooks in the passes, a cache that holds other things) shows in how
        much longer these steps took than usual.
        """
        measured = self._timed_s is not None
        told = measured and not self._charged_s and AFTERMATH < steps <= AFTERMATH + 2
        self._charge(busy_s - steps * self._step_s if told else None)
        cost_s, self._charged_s = self._charged_s, 0.0
        plain_s = max(busy_s - cost_s, 0.0) / steps
        usual_s = self._step_s or plain_s
        # One gap between two of the steps, however many they were; what two looks find one after the other is no gap.
        before_s, self._plain_s = self._plain_s, plain_s
        plain_s = min(plain_s, max((1 + (LONGEST_STEP - 1) / steps) * usual_s, before_s))
        self._busy_s += plain_s * steps + cost_s
        wait_s = min(waited_s / steps, LONGEST_STEP * max(self._wait_s, self._step_s))
        self._waited_s += wait_s * steps
        self._steps += steps
        if not measured or steps > 2 + AFTERMATH or self._plain_steps < KNOWN_AFTER:
            self._plain_steps += 0 if measured else steps
            self._step_s = usual_s + (plain_s - usual_s) * min(1.0, steps * NEWEST)
            self._wait_s += (wait_s - self._wait_s) * min(1.0, steps * NEWEST)

    def _charge(self, longer_s: float | None) -> None:
        """The last reading is paid for; its step and those behind it took `longer_s` more than usual, where known."""
        if self._timed_s is None:
            return
        timed_s, self._timed_s = self._timed_s, None
        cost_s = timed_s
        if self._plain_steps >= KNOWN_AFTER:
            cost_s += self._outside_s(timed_s, None if longer_s is None else longer_s - timed_s)
        self._charged_s += cost_s
        self._account(cost_s)

    def _outside_s(self, timed_s: float, excess_s: float | None) -> float:
        """What such readings cost outside their own clock: a mean, since of one step's time most is chance."""
        if excess_s is not None:
            excess_s = min(max(excess_s, -self._step_s), 4 * timed_s + self._step_s)
            usual_s = self._extra_s.get(self._read, excess_s)
            self._extra_s[self._read] = usual_s + (excess_s - usual_s) / 8
        return max(self._extra_s.get(self._read, 0.0), 0.0)

    def _account(self, cost_s: float) -> None:
        # What was left over for want of time between readings is not saved up: dearer ones would come in a burst.
        self._forgone_s += max(0.0, -self._missing_s() - cost_s)
        self._spent_s += cost_s
        if self._read.waited:
            self._given_s += cost_s
        now_s = time.monotonic()
        if not self._along:
            self._cost_s = cost_s if not self._cost_s else self._cost_s + (cost_s - self._cost_s) / 4
            return
        more_s = max(cost_s - self._cost_s, 0.0) if self._cost_s else cost_s / (1 + len(self._along))
        self._cost_s = self._cost_s or more_s
        # What is known of the cheaper tiers is theirs; the rest is the last one's, the dearest.
        shares = []
        for tier in self._along[:-1]:
            shares.append(min(tier.cost_s or more_s / len(self._along), more_s))
            more_s -= shares[-1]
        shares.append(more_s)
        for tier, share in zip(self._along, shares, strict=True):
            tier.took(share, now_s, paid=not self._read.waited)

    def want_curvature(self, on: bool) -> None:
        """Whether the curvature is asked for: only then is a share of the budget set aside for it."""
        if on and self._curvature_on_s is None:
            self._curvature_on_s = self._busy_s
        elif not on:
            self._curvature_allowed_s = self._set_aside_s()
            self._curvature_on_s = None

    def curvature_due(self, now_s: float, *, paced: bool) -> bool:
        """Whether its time has come: out of the waits of a paced run, otherwise out of its share of the budget."""
        if self._budget <= 0:
            return False
        if paced:
            since_s = now_s - self._curvature_read_s
            return since_s >= CURVATURE_PACED_EVERY_S and self._curvature.cost_s <= PACED_SHARE * since_s
        return self._curvature.due(now_s, self._set_aside_s() / CURVATURE_SHARE)

    def curvature_took(self, cost_s: float, now_s: float, *, paid: bool) -> None:
        """It was read between two steps; `paid` out of the budget, and not out of a wait."""
        self._curvature.took(cost_s, now_s, paid=paid)
        self._curvature_read_s = now_s
        self._curvature_s += cost_s
        self._busy_s += cost_s

    def _set_aside_s(self) -> float:
        on_s = 0.0 if self._curvature_on_s is None else self._busy_s - self._curvature_on_s
        return self._curvature_allowed_s + CURVATURE_SHARE * self._budget * on_s

    def _allowance_s(self) -> float:
        """What readings may have taken so far. The hooks of every step come on top: they are not to be had for less."""
        return self._budget * self.time_s

    def _missing_s(self) -> float:
        """What the next reading's price still lacks: it is paid beforehand, so that the share always holds."""
        just_taken_s = 0.0 if self._timed_s is None else self._timed_s + self._extra_s.get(self._read, 0.0)
        free_s = self._allowance_s() - self._set_aside_s() - self._forgone_s + self._given_s
        return self._spent_s + just_taken_s + self._cost_s - free_s

    def _waiting_s(self) -> float:
        """How long the run still has to go before a reading can be paid and is not too close to the last."""
        return max(self._missing_s() / self._budget, self._next_at_s - self.time_s)

    @property
    def time_s(self) -> float:
        """Seconds that the run's steps took so far, watching included: CPU time and waits."""
        return self._busy_s + self._waited_s

    @property
    def _took_s(self) -> float:
        return self._spent_s + self._curvature_s + self._hooked_s

    @property
    def cost(self) -> float:
        """The share of the time that watching took since the pace was put on or off: readings, curvature, hooks.

        Of a paced run's time its waits are none: what is taken out of these slows nothing.
        """
        took_s, time_s = self._took_s - self._before[0], self.time_s - self._before[1]
        return took_s / time_s if time_s else 0.0
