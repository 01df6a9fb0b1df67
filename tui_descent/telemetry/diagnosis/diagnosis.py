"""Follows a run and says what is wrong with it now. After an intervention it compares the prediction with what
happened.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from tui_descent.protocol.events import KnobState, Layer, NotFinite, ReadingsTaken, WiringFound
from tui_descent.telemetry.diagnosis import wiring
from tui_descent.telemetry.diagnosis.advice import advice_for, exploding_advice, is_advised, usable
from tui_descent.telemetry.diagnosis.dynamics import UNKNOWN
from tui_descent.telemetry.diagnosis.features import (
    FEW,
    FIRST_STEPS,
    LEAPT,
    LONG_WINDOW,
    NOISY,
    SPOILS,
    TAIL,
    WINDOW,
    Curvature,
    FeatureExtractor,
    Features,
    Window,
    differ,
    far_below,
    first_level,
    low_of,
    median,
    newest_of,
    scatter_of,
    values_of,
)
from tui_descent.telemetry.diagnosis.findings import FINE, NEUTRAL, Finding, Outcome
from tui_descent.telemetry.diagnosis.loss_history import LossHistory
from tui_descent.telemetry.diagnosis.numerics import numerics_finding
from tui_descent.telemetry.diagnosis.rate_fall import RateFall
from tui_descent.telemetry.diagnosis.rules import (
    ABOVE_BEST,
    CLEAR,
    ENOUGH_READINGS,
    FALLEN,
    LARGE_UPDATE,
    LARGE_WEIGHTS,
    MANY_DEAD,
    RISEN_AGAIN,
    SATURATED,
    SHRUNK,
    STILL_FALLS,
    VANISHED,
    apply_rules,
    crawls,
    exploded,
    flat_surface,
    rate_was_cut,
    rises,
    rose_again,
    spoilt,
)
from tui_descent.telemetry.diagnosis.situation import RunContext

# A window begins with the run and with each intervention. It is judged once it has this many steps and readings.
MIN_STEPS, MIN_READINGS = 50, 5
# A window is judged every CHECK_EVERY steps; once it has RARELY_FROM steps, every CHECK_RARELY steps.
CHECK_EVERY, RARELY_FROM, CHECK_RARELY = 10, 300, 25
# A new judgement replaces the old one if it stays the same for HOLD steps, but at the earliest CHANGE_EVERY steps after
# the last change.
HOLD, HOLD_UNCLEAR, CHANGE_EVERY = 30, 50, 100
# A judgement that is less sure than CERTAIN needs FIRM_STEPS steps, and must be the same FIRM times in a row.
CERTAIN, FIRM_STEPS, FIRM = 0.8, 100, 3
STEPS_TO_CHECK = 5  # after an intervention, until all facts about the wiring have been checked again
PATIENCE = 1000  # steps at the loss of a guess until the script is to be checked: some tasks start with a plateau
NEAR_GUESS = 0.03  # a loss this close to ln(classes) is that of a guess
SHOWN_LOSSES = 20  # a sentence has the mean of so many losses, like the line of the loss chart
FINITE_AGAIN = 20  # finite losses after which a NaN is over
MAX_LOSS = 1e100  # larger losses count as this one, whose square does not overflow
KEPT_READINGS = 40
OF_SPOILT_WEIGHTS = ("dead units", "saturated", "vanishing", "plateau")  # what may follow from far too large updates
RATES = ("rate too small", "rate too large", "diverging")  # a further change of the rate may help them
LEFT_SADDLE = 0.05  # of a surface's first loss: a change after which the last curvature does not count any more
ELSEWHERE = 10.0  # the same for a net: a loss that is so many times as large or as small
FALLEN_AGAIN = 0.7  # of the loss at which a run was called converged
EARLY = 4  # the first steps of a window, before small updates have changed much


class Diagnosis:
    """Collects a run's losses, readings and facts. `finding` can be called at any time. Only `knobs` are advised."""

    def __init__(self, layers: Sequence[Layer], *, knobs: Collection[str], context: RunContext | None = None) -> None:
        self.context = context or RunContext()
        self.outcome: Outcome | None = None
        self._knobs = frozenset(knobs)
        # Measured on a transformer: re-initialising by He or Xavier, embedding included, makes it worse.
        self._harmful = frozenset({"init"} if any(layer.kind == "Embedding" for layer in layers) else ())
        self._wiring: dict[str, Finding] = {}
        self._run_first_losses: list[float] = []
        self._run_reading: ReadingsTaken | None = None
        self._best = math.inf
        self._curvature_requested = False
        self._predicted: str | None = None
        self._before = ""  # the finding before the last intervention
        self._try: tuple[str, str, str] | None = None  # what should have helped: the finding before, key, and knob
        self._spoilt: str | None = None  # the largest update, if updates have spoilt the weights for good
        self._failed: set[str] = set()  # knobs that should have helped and have not
        self.undoable = False  # whether an intervention is in effect, so that undo has something to undo
        self._new_window(0)
        self.change_layers(layers, 0)

    def change_layers(self, layers: Sequence[Layer], structure: int) -> None:
        """The net has these layers from now on. Readings of another `structure` are ignored."""
        self._layers, self._structure = tuple(layers), structure
        self._extractor = FeatureExtractor(self._layers, self.context.nets)
        self._forget_readings()

    def _new_window(self, step: int, gradual: int = 0) -> None:
        self._window_start, self._step_count = step, 0
        self._first_losses: list[float] = []
        self._losses: deque[float] = deque(maxlen=LONG_WINDOW)
        self._history = LossHistory(gradual)
        self._rate: float | None = None
        self._largest_rate = 0.0
        self._rate_fall = RateFall()
        self._numerics: Finding | None = None
        self._finite = 0  # losses since the last non-finite loss
        self._curvature: Curvature | None = None
        self._curvature_loss = 0.0  # where it was measured
        self._said: Finding | None = None  # the judgement of the loss and the gradients
        self._said_at = 0  # the step count of the last change
        self._others: deque[tuple[str | None, int]] = deque(maxlen=CHANGE_EVERY)  # judgements unlike the current one
        self._forget_readings()

    def _forget_readings(self) -> None:
        self._first_reading: ReadingsTaken | None = None
        self._early: list[ReadingsTaken] = []  # of the first steps, before updates have changed much
        self._first_saturated: float | None = None  # the largest share of a layer, before updates have changed much
        self._largest_update: tuple[float, float] | None = None  # by Xavier's weights, and by these weights
        self._readings: deque[ReadingsTaken] = deque(maxlen=KEPT_READINGS)
        self._taken = 0

    # --- what happens in the run

    def add_loss(self, step: int, loss: float, *, rate: float | None = None) -> None:
        """The loss from which update `step` was computed, which may be NaN or infinite, and the learning rate."""
        if not math.isfinite(loss):
            if self._numerics is None:
                self.add_not_finite(
                    NotFinite(segment=0, step=step, what="loss", layer=None, text="", loss=loss, value=str(loss))
                )
            self._finite = 0
            return
        if self._numerics is not None:
            self._finite += 1
            if self._finite < FINITE_AGAIN:
                return
            self._new_window(step)
        loss = max(-MAX_LOSS, min(loss, MAX_LOSS))
        for first in (self._run_first_losses, self._first_losses):
            first += [loss] if len(first) < FIRST_STEPS else []
        self._losses.append(loss)
        self._history.add(loss)
        if rate is not None and math.isfinite(rate):
            self._rate, self._largest_rate = rate, max(rate, self._largest_rate)
            self._rate_fall.add(rate)
        self._step_count += 1
        if self._step_count % (CHECK_EVERY if self._step_count <= RARELY_FROM else CHECK_RARELY) == 0:
            self._judge()

    def add_not_finite(self, event: NotFinite) -> None:
        """The loss or a gradient became NaN or infinite."""
        self._finite = 0
        found = numerics_finding(
            event,
            available=self._available,
            user_loop=self.context.user_loop,
            rising=self._has_risen(),
            large_updates=self._updates_were_too_large(event.step),
        )
        self._numerics = self._with_cure_of_large_weights(found)
        self._check_prediction()

    def add_wiring(self, event: WiringFound) -> None:
        """A fact about how loop, net and optimizer are connected, or its end."""
        self._wiring.pop(event.fault, None)
        if event.present:
            self._wiring[event.fault] = wiring.wiring_finding(event, self._available, self.context.user_loop)

    def add_reading(self, reading: ReadingsTaken) -> None:
        """One step's readings. There need not be one at every step. Those from before an intervention are ignored."""
        if reading.step < self._window_start or reading.structure != self._structure:
            return
        self._run_reading = self._run_reading or reading
        self._first_reading = self._first_reading or reading
        size = self._extractor.update_ratio(reading)
        is_early = reading.step < self._window_start + EARLY
        self._early += [reading] if is_early else []
        changed_little = max(size or 0.0, (self._largest_update or (0.0,))[0]) < LARGE_UPDATE
        if self._first_saturated is None and (is_early or changed_little):
            self._first_saturated = max(values_of(reading, "saturated_fraction"), default=None)
        if size is not None and size > (self._largest_update or (0.0,))[0]:
            self._largest_update = size, median(values_of(reading, "update_ratio")) or size
        self._taken += 1
        self._readings.append(reading)
        while len(self._readings) > MIN_READINGS and self._readings[0].step <= reading.step - WINDOW:
            self._readings.popleft()

    def add_curvature(self, lambda_max: float, lambda_min: float, *, edge: float | None = None) -> None:
        """The Hessian's extreme eigenvalues. `edge`: λmax over the stability limit, so λmax·η/2 for plain SGD."""
        first = self._curvature is None
        self._curvature_loss = self._newest_loss
        self._curvature, self._curvature_requested = Curvature(lambda_max, lambda_min, edge), True
        if first:  # a viewer has asked for the curvature, which can show what readings cannot
            self._judge(at_once=True)

    def turn_knob(
        self, step: int, knob: str | None = None, value: str = "", *, old: str = "", gradual: int = 0
    ) -> None:
        """An intervention before update `step`: a new window starts. With a `knob`, an `outcome` follows. `gradual` is
        the number of steps that the change is spread over, if it is.
        """
        before = self.finding()
        self._predicted, self.outcome, self._try = None, None, None
        self._before = "" if before is None else before.finding
        if before is not None and knob is not None:
            helps = before.finding in FINE or any(is_advised(a, knob, value, old) for a in before.advice)
            self._predicted = "healthy" if helps else before.finding
            advised = next((a for a in before.advice if is_advised(a, knob, value, old)), None)
            if advised is not None and before.finding not in FINE:
                self._try = before.finding, advised.key, knob
        self.context = msgspec.structs.replace(self.context, remedies=())
        self.undoable = True
        self._spoilt = None if knob == "init" else self._spoilt  # new weights
        if knob is not None:
            self.set_knobs([KnobState(name=knob, value=value)] if value[:1] not in ("*", "/") else ())
        self._new_window(step, gradual)

    def rewind(self, step: int, knobs: Iterable[KnobState] | Mapping[str, str]) -> None:
        """The run is back before update `step`, with these knobs: a new window starts."""
        self._spoilt = None
        self._predicted, self.outcome, self._try = None, None, None
        if isinstance(knobs, Mapping):
            knobs = [KnobState(name=name, value=value) for name, value in knobs.items()]
        self.set_knobs(knobs)
        self._new_window(step)

    def set_knobs(self, states: Iterable[KnobState]) -> None:
        """These knobs have these values now, or are not available any more."""
        states = list(states)
        self.context = self.context.with_knobs(states)
        self._knobs -= {s.name for s in states if s.unavailable is not None}
        self._knobs |= {s.name for s in states if s.unavailable is None}

    def allow_advice(self, knob: str) -> None:
        """From now on this knob may be advised, too."""
        self._knobs |= {knob}

    # --- what follows from it

    def finding(self) -> Finding | None:
        """What is wrong now, or "healthy"; None in the first steps of a window.

        NaN comes first, then facts about the wiring, then the judgement of loss and gradients. A neutral fact such as
        frozen layers, and a question, give way to a run that trains.
        """
        if self._numerics is not None:
            return self._numerics
        facts = [x for x in self._wiring.values() if self._counts(x)]
        facts.sort(key=lambda fact: (_is_neutral(fact), wiring.ORDER.index(fact.finding)))
        said = self._said
        gives_way = (said is not None and said.finding in FINE) or self._may_have_ended
        if facts and not (_is_neutral(facts[0]) and gives_way):
            return facts[0]
        if self._rate_fall.fall is not None and self.context.user_loop and (said is None or said.finding not in FINE):
            return self._of_rate_fall(*self._rate_fall.fall)
        return said

    def _of_rate_fall(self, rate: float, steps: int) -> Finding:
        evidence: dict[str, float | str] = {"rate": rate, "within": float(steps), "loss": self._newest_loss}
        return Finding(finding="rate too small", sure=CERTAIN, evidence=evidence)

    @property
    def _may_have_ended(self) -> bool:
        """Whether facts about the wiring have not been checked yet since the last intervention."""
        return self._window_start > 0 and self._step_count < STEPS_TO_CHECK

    def _counts(self, fact: Finding) -> bool:
        """Whether a fact may be shown now."""
        if fact.finding in wiring.SLOWS_SGD:
            said = None if self._said is None else self._said.finding
            return said in ("plateau", "rate too small", "not clear") and self.context.adaptive is False
        if fact.finding in wiring.OF_SPOILT_WEIGHTS and self._said is not None:
            return self._said.finding != "rate too large"
        return fact.finding not in wiring.SYMPTOMS or not self._is_explained()

    def _is_explained(self) -> bool:
        """Whether an output that is the same for all samples follows from dead units or a vanishing gradient.

        The net of a scenario is wired as it should be: there it may follow until the gradients are judged. After an
        intervention it may be over.
        """
        wired = self.context.user_loop and self._window_start == 0
        if not wired and (self._step_count < MIN_STEPS or self._taken < MIN_READINGS):
            return True
        if self._said is not None and self._said.finding not in NEUTRAL | {"plateau"}:
            return True
        weights = newest_of(self._readings, "weight_norm")
        if any(weights.get(row) == 0 for row in self._extractor.rows):
            return False  # no signal passes weights that are all 0
        products = [p for r in self._readings if (p := self._extractor.product(r)) is not None]
        dead = newest_of(self._readings, "dead_fraction").values()
        saturated = newest_of(self._readings, "saturated_fraction").values()
        vanished = bool(products) and products[-1] < VANISHED
        return vanished or max(dead, default=0.0) > MANY_DEAD or max(saturated, default=0.0) > SATURATED

    def _judge(self, *, at_once: bool = False) -> None:
        """Judge the window. The current judgement stays until another one has been the same for a while."""
        features = self.features()
        if features is None or self._numerics is not None:
            return
        name, sure = self._judgement(features)
        said, count = self._said, self._step_count
        if said is not None and said.finding == "converged" and name == "healthy" and not _falls_again(features, said):
            name = "converged"  # noise makes it less sure, not untrue
        refuted = said is not None and name not in FINE and self._is_refuted(said)
        if said is not None and name == said.finding:
            self._others.clear()
        elif refuted:
            name, sure = (name, sure) if name == "large momentum" else ("not clear", 0.5)
        elif not at_once and not self.context.surface:  # the loss of a test surface has no noise
            self._others.append((name, count))
            if said is None:
                # After a change that should help, a loss that is still stuck gets more time.
                waits = LONG_WINDOW if self._predicted in FINE and name not in FINE else FIRM_STEPS
                if name is None or (sure < CERTAIN and (count < waits or not self._is_firm(name))):
                    return
            else:
                # A problem does not end just because it is less certain now.
                unclear = name in (None, "not clear") and said.finding not in FINE
                if count - self._others[0][1] < (HOLD_UNCLEAR if unclear else HOLD):
                    return
                if count - self._said_at < CHANGE_EVERY:
                    return
                if not self._is_firm(name):
                    name, sure = "not clear", 0.5
        if name is None:
            self._said = None
            return
        if said is None or name != said.finding:
            self._said_at = count
            self._others.clear()
        self._said = self._made(name, sure, features)
        if refuted and said is not None and name == "not clear":
            now = {"before": said.evidence["loss"], "loss": statistics.median(list(self._losses)[-TAIL:])}
            self._said = msgspec.structs.replace(self._said, evidence=self._said.evidence | now)
        self._check_prediction()

    def _is_refuted(self, said: Finding) -> bool:
        """Whether the loss has risen so far since it was called healthy or converged that this is untrue now."""
        before = said.evidence.get("loss")
        if said.finding not in FINE or not isinstance(before, float) or before < 0:
            return False
        low = FALLEN * min(abs(self._guess), abs(self._run_first_loss or 0.0))
        newest = list(self._losses)[-TAIL:]
        return statistics.median(newest) > max(RISEN_AGAIN * before, low) and sorted(newest)[1] > before

    def _is_firm(self, name: str | None) -> bool:
        """Whether the newest judgements are the same."""
        return len(self._others) >= FIRM and all(other == name for other, _ in list(self._others)[-FIRM:])

    def _judgement(self, f: Features) -> tuple[str | None, float]:
        judged = apply_rules(f, self.context)
        if judged is None:
            return None, 0.0
        name, sure = judged
        if self._spoilt is not None and name in OF_SPOILT_WEIGHTS:
            name, sure = "rate too large", max(sure, CERTAIN)
        sure = 0.5 + (sure - 0.5) * min(1.0, (f.readings + 3) / (ENOUGH_READINGS + 3))
        if name != "not clear" and sure >= CLEAR:
            return name, sure
        if self._step_count < LONG_WINDOW and self._said is None and not flat_surface(f, self.context):
            return None, 0.0  # it may become clear
        return "not clear", 0.5

    def _made(self, name: str, sure: float, f: Features) -> Finding:
        layer, evidence = self._evidence(name, f)
        if name == "not clear" and not self._curvature_requested and flat_surface(f, self.context):
            evidence["curvature"] = UNKNOWN
        advice = advice_for(name, f, self.context)
        if name == "rate at the edge" and f.fall > 0:
            advice = []
        if evidence.get("all_zero") and layer == self._layers[-1].name and self.context.user_loop:
            advice = []  # the activation of the net's output cannot be changed
        remedies = () if name in NEUTRAL else self.context.remedies
        knobs = self._available if self.undoable else self._available - {"undo"}
        before_window = name == "rate too large" and self._spoilt is not None and "largest" not in evidence
        if before_window:
            evidence["largest"] = self._spoilt or ""
            knobs = knobs - {"undo"}  # the weights were as bad before the last intervention
        if name in ("diverging", "rate too large") and self.context.user_loop and "undo" not in knobs and spoilt(f):
            # Nothing can bring the weights of a script back.
            evidence["restart"], advice = 1.0, []
        if name in FINE:
            self._spoilt = None
        elif name == "rate too large" and "largest" in evidence and spoilt(f):
            self._spoilt = str(evidence["largest"])
        advice = [a for a in advice if a.knob not in self._failed or (a.knob == "lr" and name in RATES)]
        if self._try is not None and self._try[0] == name:
            evidence["tried"] = self._try[1]
            self._failed |= {self._try[2]}
        available = usable(advice, self.context, knobs, first=remedies)
        return Finding(finding=name, layer=layer, sure=round(sure, 2), evidence=evidence, advice=available)

    @property
    def _available(self) -> frozenset[str]:
        return self._knobs - self._harmful

    def _check_prediction(self) -> None:
        """Find the outcome of an intervention, once it is clear. One that was not predicted needs more evidence."""
        found = self._numerics or self._said
        if self._predicted is None or found is None or found.finding == "not clear":
            return
        if self._predicted not in FINE:
            self._predicted = None  # that a change will not help is no prediction that anybody has seen
            return
        held = found.finding in FINE
        if held or found.kind == "numerics" or self._step_count >= LONG_WINDOW:
            self.outcome = Outcome(predicted=self._predicted, happened=found.finding, held=held, before=self._before)
            self._predicted = None

    def _has_risen(self) -> bool:
        """Whether the loss had risen before it became NaN or infinite."""
        losses = [loss for loss in list(self._losses)[-TAIL:] if abs(loss) < MAX_LOSS]
        if not losses or self._run_first_loss is None:
            return False
        # After a fault a new window begins, perhaps at a low loss. Noise above that loss does not count as a rise.
        start = max(self._first_losses[0], self._run_first_loss)
        return max(losses) > start + 0.5 * abs(start)

    def _updates_were_too_large(self, step: int) -> bool:
        """Whether the last update before this step was larger than the weights."""
        last = next((r for r in self._readings if r.step == step - 1), None)
        ratio = None if last is None else self._extractor.update_ratio(last)
        return ratio is not None and ratio > 1

    def _with_cure_of_large_weights(self, found: Finding) -> Finding:
        """No knob helps if weights are NaN. So the first advice is to go back, followed by what helps from there."""
        advice = list(found.advice)
        if self.context.remedies and advice:
            advice = [*self.context.remedies, *(a for a in advice if a not in self.context.remedies)]
        elif found.finding == "diverged" and advice:
            first_loss = statistics.fmean(self._first_losses[:FEW]) if self._first_losses else math.inf
            reading = self._first_reading
            large = reading is not None and exploded(first_loss, self._guess, self._extractor.product(reading))
            if large:
                advice = [*(a for a in advice if a.knob != "lr"), *exploding_advice(self.context)]
        return msgspec.structs.replace(found, advice=usable(advice, self.context, self._available | {"resume"}))

    @property
    def _first_loss(self) -> float:
        """The mean of the window's first losses; of fewer if they move, of one if the first updates made it leap."""
        first, few = self._first_losses[0], statistics.fmean(self._first_losses[:FEW])
        return first_level(self._first_losses, otherwise=first if few - first > LEAPT * abs(first) else few)

    @property
    def _run_first_loss(self) -> float | None:
        first = self._run_first_losses
        return first_level(first, otherwise=first[0]) if first else None

    @property
    def _has_left_start(self) -> bool:
        """Whether nearly all newest losses are above the first ones: the mean of these, or each, if they move."""
        first, losses = self._first_losses, list(self._losses)
        level = self._first_loss
        if level == first[0]:
            since = losses[FIRST_STEPS - self._step_count :]
            return far_below(level, since) or (low_of(since[-WINDOW:]) > level and differ(first, since[-WINDOW:]))
        many = level == statistics.fmean(first)
        since = losses[(FIRST_STEPS if many else FEW) - self._step_count :][-WINDOW:]
        return low_of(since) > (level if many else max(first[:FEW]))

    @property
    def _guess(self) -> float:
        classes, guess = self.context.classes, self.context.guess
        return math.log(classes) if classes else (self._run_first_loss or 0.0) if guess is None else guess

    @property
    def _newest_loss(self) -> float:
        losses = list(self._losses)[-TAIL:]
        return statistics.fmean(losses) if losses else 0.0

    def _forget_old_curvature(self) -> None:
        """When the loss has changed, the weights are elsewhere, and the curvature is another one."""
        now, then = self._newest_loss, self._curvature_loss or self._first_loss  # it may be measured before all steps
        moved = abs(now - then) > LEFT_SADDLE * abs(self._guess)
        if not self.context.surface:
            moved = min(now, then) > 0 and not then / ELSEWHERE <= now <= then * ELSEWHERE
        if moved:
            self._curvature, self._curvature_requested = None, False

    def features(self) -> Features | None:
        """The window in numbers; None in its first steps."""
        first_reading = self._first_reading
        if first_reading is None or self._step_count < MIN_STEPS or self._taken < MIN_READINGS:
            return None
        self._forget_old_curvature()
        losses = list(self._losses)
        self._best = min(self._best, statistics.fmean(losses[-TAIL:]))
        window = Window(
            losses=losses,
            readings=list(self._readings),
            first_reading=first_reading,
            run_reading=self._run_reading,
            first_loss=self._first_loss,
            left_start=self._has_left_start,
            moved=scatter_of(losses) <= NOISY or differ(self._run_first_losses, losses[-WINDOW:]),
            run_first_loss=self._run_first_loss,
            best=self._best,
            guess=self._guess,
            steps=self._step_count,
            taken=self._taken,
            curvature=self._curvature,
            early=self._early,
            first_saturated=self._first_saturated,
            largest_update=None if self._largest_update is None else self._largest_update[0],
            peak=self._history.peak,
            rate=self._rate,
            largest_rate=self._largest_rate,
            weight_decay=self.context.weight_decay,
            decoupled=self.context.decoupled,
            lowest=self._history.lowest,
            lowest_since=self._history.lowest_since,
            last_half=self._history.fall(),
        )
        return self._extractor.features(window)

    def _evidence(self, name: str, f: Features) -> tuple[str | None, dict[str, float | str]]:
        """The layer that the finding is about, if any, and the numbers it is based on."""
        losses = list(self._losses)[-SHOWN_LOSSES:]
        numbers = {
            "loss": statistics.fmean(losses) if losses else f.now,
            "first": f.first,
            "run_first": f.run_first,
            "product": f.product,
            "update": max(values_of(self._readings[-1], "update_ratio"), default=None),
            "cosine": f.cosine,
            "kept": f.kept if name == "weights decaying" else None,
            "rate": self._rate if name == "rate too small" and rate_was_cut(f) else None,
            "edge": None if f.curvature is None else f.curvature.edge,
        }
        shown: dict[str, float | str] = {key: value for key, value in numbers.items() if value is not None}
        rows = self._extractor.rows or self._extractor.alike
        row = rows[0] if rows and name in ("vanishing", "exploding") else None
        if name in ("dead units", "saturated"):
            shares = newest_of(self._readings, "dead_fraction" if name == "dead units" else "saturated_fraction")
            row = max(shares, key=shares.__getitem__, default=None)
            if shares:
                shown["share"] = max(shares.values())
            if name == "saturated":
                shown["why"] = "large weights" if (f.weight_size or 0.0) > LARGE_WEIGHTS else "large inputs or biases"
            if name == "dead units" and f.no_gradient:
                shown["all_zero"] = 1.0
                row = self._silent_row()
            elif name == "dead units" and f.no_weight_gradient and not shares:
                shown["only_biases"] = 1.0
            elif name == "dead units" and not shares and f.silent_row is not None:
                row, shown["no_gradient"] = f.silent_row, 1.0
        if name == "plateau" and self.context.classes is not None and abs(f.now - f.guess) < NEAR_GUESS * f.guess:
            shown["guess"] = f.guess
        if name == "plateau" and self.context.user_loop and f.steps < PATIENCE:
            shown["steps"] = float(f.steps)
        if name == "weights decaying" and f.decay_share is not None and (f.kept is None or f.kept > SHRUNK):
            shown["decay"] = f.decay_share
        if name == "rate too large" and self._largest_update is not None and self._largest_update[0] > LARGE_UPDATE:
            shown["largest"] = f"{self._largest_update[1]:.0%}"
            if self._largest_update[0] <= SPOILS and f.now > ABOVE_BEST * f.best:
                shown["best"] = f.best
        if f.product is not None and f.product > VANISHED:
            shown["arrives"] = 1.0
        rms = self._readings[-1].values.get("grad_rms", [])
        ends = [rms[n] for n in rows[:: max(1, len(rows) - 1)] if n < len(rms)]
        if len(ends) == 2 and ends[0] is not None and ends[1]:
            shown |= {"first_to_last_grad": ends[0] / ends[1], "last": self._layers[rows[-1]].name}
        if name == "large momentum" and self.context.momentum is not None:
            shown |= {"momentum": self.context.momentum, "memory": 1 / (1 - self.context.momentum)}
        if name == "not clear" and (self._has_risen_again(f) or rises(f)) and self.context.loss_means_fit:
            shown["before"] = f.lowest
        if name == "not clear" and self.context.surface and crawls(f):
            size = math.hypot(*values_of(self._readings[-1], "update_norm"))
            shown |= {"gradient": self._readings[-1].global_grad_norm, "step_size": size}
        if name == "not clear":
            shown |= {"trend": _trend(f), "gradients": _gradients(f, self._readings[-1])}
        return None if row is None else self._layers[row].name, shown

    def _has_risen_again(self, f: Features) -> bool:
        said = self._said
        was_said = said is not None and said.finding == "not clear" and "before" in said.evidence
        return rose_again(f) or (was_said and f.now > RISEN_AGAIN * f.lowest > 0)

    def _silent_row(self) -> int | None:
        """The last layer whose outputs are all 0."""
        means, spreads = (newest_of(self._readings, f"activation_{kind}") for kind in ("mean", "std"))
        silent = [n for n, mean in means.items() if mean == 0 and spreads.get(n) == 0]
        return max(silent, default=None)


def _falls_again(f: Features, said: Finding) -> bool:
    """Whether a loss that was called level has fallen since."""
    before = said.evidence.get("loss")
    surely = f.last_half is not None and f.last_half[0] > STILL_FALLS
    return surely or (isinstance(before, float) and f.now < FALLEN_AGAIN * before)


def _is_neutral(fact: Finding) -> bool:
    return fact.finding in NEUTRAL or bool(fact.evidence.get("question"))


def _trend(f: Features) -> str:
    """How the loss has moved over the newest steps."""
    if abs(f.long_slope if f.long_slope is not None else f.slope) < 2.5:
        return f"level at {f.mean:.3g}"
    if f.first <= 0 or f.now <= 0 or f.now > 2 * f.first:  # a percentage would mean little
        return f"from {f.first:.3g} to {f.now:.3g} in {f.steps:,} steps"
    change = f.now / f.first - 1
    if change < -0.99:  # such percentages say little
        return f"down from {f.first:.3g} to {f.now:.2g} in {f.steps:,} steps"
    if abs(change) < 0.005:  # less than can be shown
        return f"level at {f.mean:.3g}"
    return f"{'up' if change > 0 else 'down'} {abs(change):.0%} in {f.steps:,} steps, now {f.now:.3g}"


def _gradients(f: Features, reading: ReadingsTaken) -> str:
    """What is known of the gradients: whether they arrive, or which range they have, or how many layers have none."""
    if f.product is not None:
        return "gradients arrive" if f.product > VANISHED else f"backprop ×{f.product:.1e}"
    norms = reading.values.get("grad_norm", [])
    measured = [n for n in range(len(norms)) if norms[n] is not None]
    without = sum(not norms[n] for n in measured) + sum(status == "unused" for status in reading.statuses)
    if without:
        return f"{without} of {len(norms)} layers have no gradient"
    known = [norm for norm in norms if norm is not None]
    if not known:
        return "gradients not measured"
    least, most = f"{min(known):.1g}", f"{max(known):.1g}"
    return f"gradient norm {most}" if least == most else f"gradients {least} to {most}"
