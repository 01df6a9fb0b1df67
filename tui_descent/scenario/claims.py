"""The claims of a preset: which runs they need, whether they hold, and how they read. `verify.py` makes the runs.

A claim is about one number: a metric of one run; with `divided_by`, the metric divided by that of another run; with
`seeds`, the share of the seeds for which the condition on the metric holds; with `largest`, the largest value of a
ladder for which it holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import msgspec

from tui_descent.scenario.metrics import METRIC_WORDS
from tui_descent.scenario.spec import Claim


class Sample(msgspec.Struct, frozen=True):
    """One metric of one run: the preset with some overrides, interventions and a seed."""

    metric: str
    at: int | None
    target: float | None
    overrides: tuple[str, ...]
    given: tuple[str, ...]
    seed: int


Found = float | str | None
Measure = Callable[[Sample], Found]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A claim, the value that was found, and whether the claim holds. `numbers` are what the value is made of."""

    claim: Claim
    found: Found
    holds: bool
    numbers: str = ""

    def __str__(self) -> str:
        digits = ".12g" if isinstance(self.claim.equals, float) else ".4g"
        found = "none" if self.found is None else format(self.found, "" if isinstance(self.found, str) else digits)
        numbers = f" ({self.numbers})" if self.numbers else ""
        return f"{'holds ' if self.holds else 'BROKEN'}  {claim_sentence(self.claim)}: found {found}{numbers}"


def claim_sentence(claim: Claim) -> str:
    """The claim in words: `loss ÷ first loss below 0.5 at step 230, after residual=on at step 150`."""
    metric = METRIC_WORDS[claim.metric].format(target=claim.target)
    inner = f"{metric} {_condition(claim)}{_when(claim)}"
    run = _changes(claim.overrides, claim.given)
    if claim.seeds is not None:
        if claim.divided_by is None:
            return f"{inner} for {_bounds(claim, percent=True)} of {claim.seeds} seeds{run}"
        return f"share of {claim.seeds} seeds with {inner}{run}, divided by that {_other(claim)}: {_bounds(claim)}"
    if claim.largest is not None:
        what = f"largest {claim.largest} with {inner}{run}"
        divided = f", divided by that {_other(claim)}" if claim.divided_by is not None else ""
        return f"{what}{divided}: {_bounds(claim)}"
    if claim.divided_by is not None:
        return f"{metric}{_when(claim)}{run}, divided by that {_other(claim)}: {_condition(claim)}"
    return f"{inner}{run}"


def _condition(claim: Claim) -> str:
    parts = []
    if claim.below is not None:
        parts.append(f"below {claim.below:g}")
    if claim.above is not None:
        parts.append(f"above {claim.above:g}")
    if claim.equals is not None:
        equals = claim.equals if isinstance(claim.equals, str) else f"{claim.equals:.12g}"
        parts.append(f"= {equals}" + (f" ± {claim.within:g}" if claim.within else ""))
    return " and ".join(parts)


def _bounds(claim: Claim, *, percent: bool = False) -> str:
    found = [("at least", claim.at_least), ("at most", claim.at_most)]
    return " and ".join(
        f"{words} {100 * bound:.4g}%" if percent else f"{words} {bound:g}"
        for words, bound in found
        if bound is not None
    )


def _when(claim: Claim) -> str:
    if claim.at is None:
        return "" if claim.metric in ("steps_to", "loss_max", "status", "steps") else " at the end"
    return f" {'within' if claim.metric in ('steps_to', 'loss_max') else 'at'} step {claim.at:,}"


def _changes(overrides: tuple[str, ...], given: tuple[str, ...]) -> str:
    """What was changed in the scenario and during the run: `, with optimizer.lr=0.26, after lr=*10 at step 50`."""
    turns = [f"{turn} at step {int(step):,}" for step, _, turn in (text.partition(":") for text in given)]
    changed = f", with {' and '.join(overrides)}" if overrides else ""
    return changed + (f", after {' and '.join(turns)}" if turns else "")


def _other(claim: Claim) -> str:
    """How the run of the divisor differs: `without residual=on`, `with optimizer.lr=0.1`."""
    other, words = claim.divided_by, []
    assert other is not None
    if other.overrides is not None:
        words.append(_changes(other.overrides, ())[2:] or f"without {' and '.join(claim.overrides)}")
    if other.given is not None:
        turns = " and ".join(text.partition(":")[2] for text in claim.given)
        words.append(_changes((), other.given)[2:] or f"without {turns}")
    if other.at is not None:
        words.append(f"at step {other.at:,}")
    return " and ".join(words)


def samples(claim: Claim, *, seed: int) -> list[Sample]:
    """Everything that is measured to judge the claim. The steps of a ladder above the first failure are not needed."""
    return [sample for side in _sides(claim) for sample in _samples(side, seed)]


def judge(claim: Claim, measure: Measure, *, seed: int = 0) -> Verdict:
    """Check a claim. `measure` returns the value of a sample: it makes the run, or knows it.

    With `seeds`, the seeds seed * seeds, seed * seeds + 1, … are used. A missing or NaN value breaks the claim.
    """
    values = [_value(side, measure, seed) for side in _sides(claim)]
    found, numbers = values[0]
    if len(values) == 2:
        divisor, _ = values[1]
        numbers = " ÷ ".join("none" if v is None else f"{v:.4g}" for v, _ in values if not isinstance(v, str))
        found = found / divisor if isinstance(found, float) and isinstance(divisor, float) and divisor else None
    if claim.seeds is None and claim.largest is None:
        return Verdict(claim=claim, found=found, holds=holds(claim, found), numbers=numbers)
    is_held = isinstance(found, float) and not math.isnan(found)
    if isinstance(found, float) and is_held:
        is_held = (claim.at_least is None or found >= claim.at_least) and (
            claim.at_most is None or found <= claim.at_most
        )
    return Verdict(claim=claim, found=found, holds=is_held, numbers=numbers)


def _sides(claim: Claim) -> Iterator[Claim]:
    """The claim, and with `divided_by` the claim as it is for the divisor."""
    yield claim
    other = claim.divided_by
    if other is not None:
        yield msgspec.structs.replace(
            claim,
            at=claim.at if other.at is None else other.at,
            given=claim.given if other.given is None else other.given,
            overrides=claim.overrides if other.overrides is None else other.overrides,
        )


def _samples(claim: Claim, seed: int) -> list[Sample]:
    first = Sample(claim.metric, claim.at, claim.target, claim.overrides, claim.given, seed)
    if claim.seeds is not None:
        return [msgspec.structs.replace(first, seed=seed * claim.seeds + n) for n in range(claim.seeds)]
    if claim.largest is not None:
        rungs = [(*claim.overrides, f"{claim.largest}={value}") for value in claim.among]
        return [msgspec.structs.replace(first, overrides=rung) for rung in rungs]
    return [first]


def _value(claim: Claim, measure: Measure, seed: int) -> tuple[Found, str]:
    """The number that the claim is about, without `divided_by`, and what it is made of."""
    wanted = _samples(claim, seed)
    if claim.seeds is not None:
        count = sum(holds(claim, measure(sample)) for sample in wanted)
        return count / claim.seeds, f"{count} of {claim.seeds}"
    if claim.largest is not None:
        found: Found = None
        for sample, value in zip(wanted, claim.among, strict=True):
            if not holds(claim, measure(sample)):
                return found, f"not with {value:g}"
            found = float(value)
        return found, "no larger value was tried"
    return measure(wanted[0]), ""


def holds(claim: Claim, found: Found) -> bool:
    """Whether the value fulfils the condition. A missing or NaN value does not."""
    if isinstance(found, str) or isinstance(claim.equals, str):
        return found == claim.equals
    if found is None or math.isnan(found):
        return False
    return (
        (claim.below is None or found < claim.below)
        and (claim.above is None or found > claim.above)
        and (claim.equals is None or abs(found - claim.equals) <= claim.within)
    )
