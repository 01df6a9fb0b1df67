"""What is wrong with the claims of a scenario."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from tui_descent.scenario import knobs
from tui_descent.scenario.metrics import METRICS, NEEDS_TARGET, WORDS
from tui_descent.scenario.spec import Claim, Scenario
from tui_descent.scenario.validate import Problem, nearest, shorten

# The tables of a scenario that `with` may change.
CHANGEABLE = ("data", "model", "loss", "optimizer", "schedule", "run")
MAX_VARIANTS = 300  # each is read as a scenario of its own


def claim_problems(s: Scenario, read: Callable[[tuple[str, ...]], list[Problem]], *, whole: bool) -> Iterator[Problem]:
    """The problems of all claims and of `cause_off`. `read` reads the scenario with some overrides.

    With `whole`, the scenario is as its file says, so steps and overrides have to fit.
    """
    for n, claim in enumerate(s.claim):
        yield from _problems(claim, f"claim[{n}]", last=s.run.steps if whole else None)
    if not whole:
        return
    variants = {overrides: place for place, overrides in reversed([*_variants(s)]) if overrides}
    if len(variants) > MAX_VARIANTS:
        yield Problem("claim", f"found {len(variants):,} different variants; allowed: at most {MAX_VARIANTS}")
        return
    for overrides, place in sorted(variants.items(), key=lambda item: item[1]):
        wrong = [o for o in overrides if o.partition("=")[0].partition(".")[0] not in CHANGEABLE]
        if wrong:
            text = f'found "{shorten(wrong[0], 60)}"; allowed: a place=value in {", ".join(CHANGEABLE)}'
            yield Problem(place, text)
            continue
        for problem in read(overrides):
            yield Problem(place, str(problem))


def _variants(s: Scenario) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Place and overrides of each other scenario that is run for the claims."""
    yield "cause_off", s.cause_off
    for n, claim in enumerate(s.claim):
        place = f"claim[{n}]"
        other = claim.divided_by.overrides if claim.divided_by is not None else None
        yield f"{place}.with", claim.overrides
        yield f"{place}.divided_by.with", other or ()
        if claim.largest is not None:
            for k, value in enumerate(claim.among):
                yield f"{place}.among[{k}]", (*claim.overrides, f"{claim.largest}={value}")


def _problems(claim: Claim, place: str, *, last: int | None) -> Iterator[Problem]:
    if claim.metric not in METRICS:
        text = f'found "{shorten(claim.metric, 60)}"; allowed: {", ".join(METRICS)}{nearest(claim.metric, METRICS)}'
        yield Problem(f"{place}.metric", text)
        return
    if claim.below is None and claim.above is None and claim.equals is None:
        yield Problem(place, "has no condition; add below, above or equals")
    if claim.metric in NEEDS_TARGET and claim.target is None:
        yield Problem(f"{place}.target", f"missing; {claim.metric} needs the loss to be reached, as in target = 0.5")
    if claim.metric not in NEEDS_TARGET and claim.target is not None:
        yield Problem(f"{place}.target", f"found a number; allowed only for {', '.join(sorted(NEEDS_TARGET))}")
    other = claim.divided_by
    steps = [("at", claim.at), ("divided_by.at", other.at if other is not None else None)]
    longer = any(override.startswith("run.steps") for override in claim.overrides)
    for name, at in steps:
        if last is not None and not longer and at is not None and at > last:
            yield Problem(f"{place}.{name}", f"found {at}; allowed: at most run.steps = {last}")
    for name, given in (
        ("given", claim.given),
        ("divided_by.given", (other.given if other is not None else None) or ()),
    ):
        for k, text in enumerate(given):
            try:
                knobs.parse_at(text)
            except ValueError as error:
                yield Problem(f"{place}.{name}[{k}]", str(error))
    if other is not None:
        if other.at is None and other.given is None and other.overrides is None:
            yield Problem(f"{place}.divided_by", "is empty; say what differs, for example given = [] or at = 0")
        if claim.metric in WORDS and claim.seeds is None and claim.largest is None:
            yield Problem(f"{place}.divided_by", f"{claim.metric} is a word, which cannot be divided")
    yield from _count_problems(claim, place)


def _count_problems(claim: Claim, place: str) -> Iterator[Problem]:
    """Problems of what a claim counts or searches."""
    if claim.seeds is not None and claim.largest is not None:
        yield Problem(place, "has both seeds and largest; use only one of them")
    counts = claim.seeds is not None or claim.largest is not None
    if counts and claim.at_least is None and claim.at_most is None:
        what = "share of the seeds" if claim.seeds is not None else "largest value"
        yield Problem(place, f"has no bound for the {what}; add at_least or at_most")
    if not counts and (claim.at_least is not None or claim.at_most is not None):
        yield Problem(place, "at_least and at_most need seeds or largest; for the metric itself use above or below")
    for name, bound in (("at_least", claim.at_least), ("at_most", claim.at_most)):
        if claim.seeds is not None and claim.divided_by is None and bound is not None and not 0 <= bound <= 1:
            yield Problem(f"{place}.{name}", f"found {bound:g}; allowed: a share of the seeds, from 0 to 1")
    if claim.largest is not None and len(claim.among) < 2:
        yield Problem(f"{place}.among", f"found {len(claim.among)} values; allowed: two or more to try in turn")
    if claim.largest is None and claim.among:
        yield Problem(f"{place}.among", 'needs largest, the place of the number, as in largest = "optimizer.lr"')
    if any(a >= b for a, b in pairwise(claim.among)):
        yield Problem(f"{place}.among", "is not in ascending order")
