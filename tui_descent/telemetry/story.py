"""A preset's story while its run goes on: what to press next, and at the end, which claims have held. It depends only
on the run's history, so every viewer sees the same, even one that has joined late.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import msgspec

from tui_descent.protocol.events import CurvatureTaken, KnobTurned, RunEnded
from tui_descent.scenario.claims import claim_sentence, holds
from tui_descent.scenario.key_words import how_to_press
from tui_descent.scenario.knob_table import NEUTRAL_KNOBS
from tui_descent.scenario.knobs import parse, parse_at
from tui_descent.scenario.metrics import FROM_LEDGER, NEEDS_CURVATURE, NEEDS_READING, curvature_value, ledger_value
from tui_descent.scenario.presets import names
from tui_descent.scenario.spec import UNDO, Claim, Scenario
from tui_descent.telemetry.diagnosis.findings import FINE
from tui_descent.telemetry.history import History

# The loss after an intervention is compared with the loss before it this many steps later.
EFFECT_STEPS = 50
# A claim about the end of the run is not tested if its keys were pressed late, by more than this share of the run.
LATE_SHARE = 0.1
# If the loss falls by this share of the first one before the key was pressed, the key comes too late.
FELL = 0.25

Outcome = Literal["held", "not held", "not tested"]


class ClaimResult(msgspec.Struct, frozen=True):
    """A claim of the preset in words, what this run shows about it, and whether it held."""

    claim: str
    found: str
    outcome: Outcome


class EndCard(msgspec.Struct, frozen=True):
    """What happened in a run, what became of the preset's claims, and what to try next."""

    happened: tuple[str, ...]
    claims: tuple[ClaimResult, ...]
    next: tuple[str, ...]


def next_hint(scenario: Scenario, history: History) -> str:
    """What the learner can do now, in words; empty if the story names nothing more."""
    state = history.state.state
    if not history.live or state == "waiting":
        changed = [made for made in _in_force(history) if made.knob not in NEUTRAL_KNOBS]
        if history.live and any(made.step == history.steps for made in changed):
            return "press space to see what the change does"
        again = next(_to_try_again(scenario, history), "")
        return f"restart (R), then {again}" if again else "restart (R), or choose another preset (p)"
    if state == "held":
        remedy = next((text for text in scenario.remedy), "")
        return f"{how_to_press(remedy)}{', then space' if remedy != UNDO else ''}" if remedy else "press u or space"
    go_on = "press space, then " if state == "paused" else ""
    for at, turn in _steps_of_story(scenario):
        if _is_done(turn, history):
            continue
        keys = how_to_press(turn)
        if history.steps < at:
            return f"{go_on}watch until about step {at:,}, then {keys}"
        if turn in scenario.remedy and _fell_without(history, at):
            return f"the loss fell without it; restart (R), then {keys}"
        return f"{keys}, then space" if state == "paused" else keys
    if not any(turn.knob not in NEUTRAL_KNOBS for turn in _in_force(history)):
        return f"{go_on}watch"
    return f"{go_on}watch what the loss does; u undoes the last change"


def _fell_without(history: History, at: int) -> bool:
    """Whether an unchanged run has left what the story shows by itself: it is healthy, and the loss has fallen far
    since step `at`.
    """
    found = history.diagnosis
    if found is None or found.finding not in FINE or any(t.knob not in NEUTRAL_KNOBS for t in _in_force(history)):
        return False
    first, fallen = _loss("loss", 0, history), loss_change(history, at, history.steps - at)
    return first is not None and fallen is not None and fallen[0] - fallen[1] > FELL * abs(first)


def end_card(scenario: Scenario, history: History, name: str) -> EndCard:
    """The summary of a run at its end. `name` is the preset's."""
    claims = tuple(_judged(claim, scenario, history, name) for claim in scenario.claim)
    return EndCard(happened=tuple(_happened(history)), claims=claims, next=tuple(_to_try(scenario, history, name)))


def loss_change(history: History, step: int, after: int) -> tuple[float, float] | None:
    """The smoothed loss before update `step` and `after` updates later; None if one of them is not known.

    The loss before update 0 is that of its batch, which was computed from the initial weights.
    """
    pyramid = history.losses.get(history.segment)
    if pyramid is None or history.steps < step + after:
        return None
    bins = [pyramid.window(1, at, at) for at in (max(0, step - 1), step + after - 1)]
    if not all(bins):
        return None
    before, later = (found[0][1][3] for found in bins)
    return before, later


def _steps_of_story(scenario: Scenario) -> list[tuple[int, str]]:
    """The interventions that the story is about, each with its step; without a plan, the remedies."""
    planned = [(entry.at, entry.turn) for entry in scenario.plan if entry.turn]
    return planned or [(0, text) for text in scenario.remedy if text != UNDO][:1]


def _in_force(history: History) -> list[KnobTurned]:
    """The interventions that were made and not undone."""
    return [turned for turned in history.interventions if turned.segment == history.segment]


def _is_done(text: str, history: History) -> bool:
    wanted = parse(text)
    return any(
        turned.knob == wanted.knob and turned.target == wanted.target and _same_value(wanted.value, turned)
        for turned in _in_force(history)
    )


def _is_first(text: str, history: History) -> bool:
    """Whether the run starts with this value."""
    wanted = parse(text)
    return history.initial_state(wanted.knob).value == wanted.value


def _same_value(wanted: str, turned: KnobTurned) -> bool:
    if wanted[:1] in "*/":  # a factor: only its direction counts
        try:
            return (float(turned.new) > float(turned.old)) == (wanted[0] == "*")
        except ValueError:
            return False
    return turned.new.split(",")[0].split(" ")[0] == wanted or turned.new == wanted


def _happened(history: History) -> Iterator[str]:
    end, pyramid = history.end, history.losses.get(history.segment)
    first = pyramid.window(1, 0, 0) if pyramid is not None else []
    on_surface = end is not None and end.position is not None  # the loss of a net at the end is that of held-out data
    last = end.loss if end is not None and end.loss is not None and on_surface else history.shown_loss
    if first and math.isfinite(last):
        yield f"The loss went from {first[0][1][2]:.3g} to {last:.3g} in {history.steps:,} steps."
    elif history.steps:
        yield f"After {history.steps:,} steps the loss is not finite."
    if (accuracy := _accuracy(None, history)) is not None:
        yield f"On held-out data {accuracy:.1%} are right."
    for turned in [turned for turned in _in_force(history) if turned.knob not in NEUTRAL_KNOBS][-5:]:
        text = f"Step {turned.step:,}: {turned.knob} {turned.old} → {turned.new}"
        after = min(EFFECT_STEPS, history.steps - turned.step)
        change = loss_change(history, turned.step, after) if after > 0 else None
        if change is not None:
            text += f"; within {after} steps the loss went from {change[0]:.3g} to {change[1]:.3g}"
        yield f"{text}."
    if not any(turned.knob not in NEUTRAL_KNOBS for turned in history.interventions):
        yield "Nothing was changed."


def _to_try(scenario: Scenario, history: History, name: str) -> Iterator[str]:
    for keys in _to_try_again(scenario, history):
        yield f"Restart (R), then {keys}."
    known = names()
    if name in known and known.index(name) + 1 < len(known):
        yield f"The next preset: {known[known.index(name) + 1]} (p: gallery)."


def _to_try_again(scenario: Scenario, history: History) -> Iterator[str]:
    """The keys for changes that the preset is about and that were not made in this run."""
    tried = [turn for _, turn in _steps_of_story(scenario)] + [text for text in scenario.remedy if text != UNDO]
    tried += [given.partition(":")[2] for claim in scenario.claim for given in claim.given]
    open_turns = [turn for turn in dict.fromkeys(tried) if not _is_done(turn, history) and not _is_first(turn, history)]
    seen: set[str] = set()
    for turn in open_turns:
        keys = how_to_press(turn)
        if keys not in seen and len(seen) < 3:
            seen.add(keys)
            yield keys


def _judged(claim: Claim, scenario: Scenario, history: History, name: str) -> ClaimResult:
    given = [parse_at(text) for text in claim.given]
    words = claim_sentence(claim)
    if claim.divided_by is not None or claim.seeds is not None or claim.largest is not None:
        return ClaimResult(words, "needs several runs: presets --verify", "not tested")
    if claim.overrides:
        return ClaimResult(words, "needs another scenario: presets --verify", "not tested")
    made = [turned for turned in _in_force(history) if turned.knob not in NEUTRAL_KNOBS]
    shift = 0
    if given:
        same = len(made) == len(given) and all(
            turned.knob == command.knob and _same_value(command.value, turned)
            for turned, (_, command) in zip(made, given, strict=True)
        )
        if not same:
            return ClaimResult(words, "not tried in this run", "not tested")
        shift = made[-1].step - given[-1][0]
        if claim.at is None and shift > LATE_SHARE * scenario.run.steps:
            return ClaimResult(words, f"pressed {shift:,} steps later than the claim says", "not tested")
    elif made and min(turned.step for turned in made) < (history.steps if claim.at is None else claim.at):
        return ClaimResult(words, "something was changed before", "not tested")
    step = None if claim.at is None else claim.at + shift
    if step is not None and step > history.steps:
        return ClaimResult(words, f"the run ended before step {step:,}", "not tested")
    since = made[-1].step if given else 0
    value, read_at = _value(claim, step, since, history)
    if value is None:
        why = "not measured in this run"
        if claim.metric in NEEDS_CURVATURE:
            why = "press 5 to measure the curvature"
        elif claim.metric in NEEDS_READING:
            why = f"not kept by the dashboard; presets {name} --verify tests it"
        return ClaimResult(words, why, "not tested")
    digits = ".12g" if isinstance(claim.equals, float) and claim.within < 1e-6 else ".4g"
    shown = value if isinstance(value, str) else format(value, digits)
    where = f" at step {read_at:,}" if read_at is not None and read_at != claim.at else ""
    return ClaimResult(words, f"{shown}{where}", "held" if holds(claim, value) else "not held")


def _value(claim: Claim, step: int | None, since: int, history: History) -> tuple[float | str | None, int | None]:
    """The metric at a step as the history knows it, and the step at which it was measured."""
    end, metric = history.end, claim.metric
    if metric in ("loss_max", "steps_to"):
        return _over_losses(claim, step, since, history), step
    if metric in ("loss", "loss_mean", "loss_ratio"):
        return _loss(metric, step, history), step
    if metric in NEEDS_CURVATURE:
        return _curvature(metric, step, history)
    if metric in NEEDS_READING:
        return _reading(metric, step, history)
    if metric == "steps":
        return float(history.steps), None
    if metric == "accuracy":
        return _accuracy(step, history), None
    if end is None:
        return None, None
    if metric == "position":
        return (end.position[0] if end.position else None), None
    status = end.status if isinstance(end, RunEnded) else "finished"
    return (status if metric == "status" else None), None


def _accuracy(step: int | None, history: History) -> float | None:
    """The newest held-out accuracy up to a step. Without a step: that of the run's end, if it has ended."""
    if step is None and history.end is not None and history.end.accuracy is not None:
        return history.end.accuracy
    known = reversed(history.evaluations)
    return next((found.accuracy for found in known if step is None or found.step <= step), None)


def _loss(metric: str, step: int | None, history: History) -> float | None:
    pyramid = history.losses.get(history.segment)
    if pyramid is None:
        return None
    if metric == "loss":
        if step is None:
            return history.end.loss if history.end is not None else None
        found = pyramid.window(1, step, step)
        return found[0][1][2] if found else None
    end = history.steps if step is None else step
    bins = pyramid.window(1, max(0, end - 20), end - 1)
    mean = math.fsum(values[2] for _, values in bins) / len(bins) if bins else None
    if metric == "loss_mean" or mean is None:
        return mean
    first = pyramid.window(1, 0, 0)
    return mean / first[0][1][2] if first and first[0][1][2] else None


def _over_losses(claim: Claim, step: int | None, since: int, history: History) -> float | None:
    """The largest loss before a step, or the number of steps to a loss; None if old losses are no longer kept."""
    pyramid = history.losses.get(history.segment)
    first, end = (since if claim.metric == "steps_to" else 0), (history.steps if step is None else step)
    bins = pyramid.window(1, first, end - 1) if pyramid is not None else []
    if len(bins) < end - first or not bins:
        return None
    if claim.metric == "loss_max":
        return max(values[1] for _, values in bins)
    assert claim.target is not None
    reached = (k for k, values in bins if values[2] < claim.target)
    return float(next(reached, math.inf) - first)


def _curvature(metric: str, step: int | None, history: History) -> tuple[float | None, int | None]:
    known = [taken for taken in history.curvatures if taken.segment == history.segment]
    taken = _nearest(known, step, history)
    if taken is None:
        return None, None
    return curvature_value(metric, [one for one in known if one.step <= taken.step]), taken.step


def _reading(metric: str, step: int | None, history: History) -> tuple[float | None, int | None]:
    """A value from a reading. Over the whole run, only the gradients of the layers are kept."""
    if metric in FROM_LEDGER:
        ledger = history.ledger
        near = ledger is not None and (step is None or abs(ledger.step - step) <= history.steps / 10)
        return (ledger_value(metric, ledger), ledger.step) if ledger is not None and near else (None, None)
    grads = history.grads.get(history.segment)
    if metric != "first_to_last_grad" or grads is None:
        return None, None
    blocks = [(layer.block, n) for n, layer in enumerate(history.layers) if layer.block is not None]
    if len({block for block, _ in blocks}) < 2:
        return None, None
    ends = (min(blocks)[0], max(blocks)[0])
    first, last = (
        max((n for block, n in blocks if block == end), key=lambda n: history.layers[n].params) for end in ends
    )
    end = history.steps if step is None else step
    bins = [found for found in grads.window(1, max(0, end - history.steps // 10), end) if found[0] <= end]
    if not bins:
        return None, None
    at, values = bins[-1]
    return 10.0 ** (values[first] - values[last]), at


def _nearest(known: list[CurvatureTaken], step: int | None, history: History) -> CurvatureTaken | None:
    """The newest entry up to `step`, if it is not much older."""
    end = history.steps if step is None else step
    near = [taken for taken in known if end - history.steps / 10 <= taken.step <= end]
    return near[-1] if near else None
