"""What readings cost, and what of the run's time they may take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from tui_descent.instruments.usual import Usual

# Tiers beyond the norms, as in `Tiers`: how often at most, and the share of the budget they may have. Norms come first:
# what these leave is theirs.
TIERS = ((0.1, 0.06), (1.0, 0.06), (10.0, 0.03))
# What a tier's first reading is taken to cost, in steps: hooks at boundaries; activations; two passes more.
GUESSES = (0.25, 1.0, 3.0)
# The curvature, while it is asked for: its share is taken from the readings'. Paced, it may come more often, for this
# part of the time since the last.
CURVATURE_EVERY_S, CURVATURE_SHARE = 10.0, 0.2
CURVATURE_PACED_EVERY_S, CURVATURE_PACED_SHARE = 0.5, 0.1


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
        self.last_s = -1e9
        self._sure = False
        self._every_s = every_s
        self._share = share

    def due(
        self, now_s: float, allowance_s: float, *, guess_s: float = 0.0, ahead_s: float = 0.0, reading: bool = False
    ) -> bool:
        """Whether in so long its time has come and its share of the allowance can pay for it; at first by a guess.

        `reading`: it is about to be read, and this is the time after that.
        """
        price_s = self.cost_s or guess_s
        last_s, spent_s = (now_s, self.spent_s + price_s) if reading else (self.last_s, self.spent_s)
        enough_s = self._share * allowance_s + (0.0 if price_s else 1e-9)
        return now_s + ahead_s - last_s >= self._every_s and spent_s + price_s <= enough_s

    def took(self, cost_s: float, *, paid: bool, sure: bool = True) -> None:
        """A reading's cost, `paid` out of the budget, not out of a wait; not `sure` while the share is a guess."""
        if paid:
            self.spent_s += cost_s
        self.cost_s = self.cost_s + (cost_s - self.cost_s) / 4 if self._sure else cost_s
        self._sure = sure


class CurvatureShare:
    """The curvature's part of the `budget`, set aside from when it is asked for until it no longer is."""

    def __init__(self, budget: float, usual: Usual) -> None:
        self.took_s = 0.0  # by the budget and by waits
        self._budget, self._usual = budget, usual
        self._tier = Tier(CURVATURE_EVERY_S, CURVATURE_SHARE)
        self._on_s: float | None = None  # busy time when it was asked for
        self._allowed_s = 0.0  # up to when it was last switched off

    def want(self, on: bool) -> None:
        """Whether it is asked for."""
        if on and self._on_s is None:
            self._on_s = self._usual.busy_s
        elif not on:
            self._allowed_s = self.set_aside_s
            self._on_s = None

    def due(self, now_s: float, *, paced: bool) -> bool:
        """Whether its time has come: out of the waits of a paced run, otherwise out of its share of the budget."""
        if self._budget <= 0:
            return False
        if paced:
            since_s = now_s - self._tier.last_s
            return since_s >= CURVATURE_PACED_EVERY_S and self._tier.cost_s <= CURVATURE_PACED_SHARE * since_s
        return self._tier.due(now_s, self.set_aside_s / CURVATURE_SHARE)

    def took(self, cost_s: float, now_s: float, *, paid: bool) -> None:
        """It was read between two steps; `paid` out of the budget, and not out of a wait."""
        self._tier.took(cost_s, paid=paid)
        self._tier.last_s = now_s
        self.took_s += cost_s
        self._usual.busy_s += cost_s

    @property
    def set_aside_s(self) -> float:
        """What readings may not have of the budget."""
        on_s = 0.0 if self._on_s is None else self._usual.busy_s - self._on_s
        return self._allowed_s + CURVATURE_SHARE * self._budget * on_s


class Purse:
    """What readings have taken, of a run's time and of its waits, and what is left of the `budget` for the next.

    `price_s` is what one without tiers costs, 0 as long as none is known.
    """

    def __init__(self, budget: float, usual: Usual) -> None:
        self.spent_s = self.price_s = 0.0
        self.curvature = CurvatureShare(budget, usual)
        self._budget, self._usual = budget, usual
        self._given_s = 0.0  # of what was spent, by waits
        self._forgone_s = 0.0  # of the budget
        self._tiers = tuple(Tier(every_s, share) for every_s, share in TIERS)

    def lacks_s(self, owed_s: float = 0.0) -> float:
        """What the next reading's price still lacks: it is paid beforehand, so that the share always holds.

        `owed_s` are not paid yet. The hooks of every step come on top: they are not to be had for less.
        """
        allowance_s = self._budget * self._usual.time_s - self.curvature.set_aside_s
        return self.spent_s + owed_s + self.price_s - (allowance_s - self._forgone_s + self._given_s)

    def along(
        self,
        now_s: float,
        *,
        free: bool,
        ahead: int = 0,
        behind: Tiers = Tiers(),  # noqa: B008 - immutable
    ) -> tuple[bool, bool, bool]:
        """Which tiers are due with a reading so many steps ahead; `free`: their share is not asked for.

        `behind`: the tiers of one that is about to be taken before it.
        """
        allowance_s = float("inf") if free else self._budget * self._usual.time_s
        step_s = self._usual.step_s
        ahead_s = ahead * (step_s + self._usual.wait_s)
        signals, slow, rare = (
            tier.due(now_s, allowance_s, guess_s=share * step_s, ahead_s=ahead_s, reading=reading)
            for tier, share, reading in zip(self._tiers, GUESSES, behind[:3], strict=True)
        )
        return signals, slow, rare

    def read(self, tiers: Tiers) -> None:
        """A reading with these tiers is taken now."""
        for tier in self._of(tiers):
            tier.last_s = time.monotonic()

    def pay(self, cost_s: float, tiers: Tiers) -> None:
        """It took so much."""
        # What is left over between readings is not saved up: if they became dearer they would come in a burst. But for
        # the dearest that is known, which a silence would follow otherwise.
        kept_s = max(cost_s, *(self.price_s + tier.cost_s for tier in self._tiers))
        self._forgone_s += max(0.0, -self.lacks_s() - kept_s)
        self.spent_s += cost_s
        if tiers.waited:
            self._given_s += cost_s
        self._split(cost_s, self._of(tiers), paid=not tiers.waited)

    def _of(self, tiers: Tiers) -> list[Tier]:
        return [tier for tier, read in zip(self._tiers, tiers[:3], strict=True) if read]

    def _split(self, cost_s: float, along: Sequence[Tier], *, paid: bool) -> None:
        if not along:
            self.price_s = cost_s if not self.price_s else self.price_s + (cost_s - self.price_s) / 4
            return
        known_s = self.price_s + sum(tier.cost_s for tier in along)
        if cost_s < known_s and all(tier.cost_s for tier in along):
            # Whose price has fallen is not known: each one's in its proportion.
            factor = cost_s / known_s
            self.price_s *= 1 + (factor - 1) / 4
            for tier in along:
                tier.took(tier.cost_s * factor, paid=paid)
            return
        sure = self.price_s > 0  # of the very first no part is known
        self.price_s = min(self.price_s, cost_s) or cost_s / (1 + len(along))
        more_s = cost_s - self.price_s
        # What is known of the cheaper tiers is theirs; the rest is the last one's, the dearest.
        shares = []
        for tier in along[:-1]:
            shares.append(min(tier.cost_s or more_s / len(along), more_s))
            more_s -= shares[-1]
        shares.append(more_s)
        for tier, share in zip(along, shares, strict=True):
            tier.took(share, paid=paid, sure=sure)
