"""Finds facts about how a loop, its net and its optimizers are connected, and reports each with `WiringFound`. At each
of the first updates, everything that needs no reading is checked. Later, everything is checked at each reading. The
names of the facts and their sentences are in `telemetry/diagnosis/wiring.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from torch import nn

from tui_descent.instruments.deferred import Deferred, is_asynchronous
from tui_descent.instruments.failures import Failures
from tui_descent.instruments.instrument_set import Sample
from tui_descent.instruments.net_ends import Ends, NetEnds
from tui_descent.instruments.net_structure import NetStructure, WatchedLayer
from tui_descent.protocol.readings import row_value
from tui_descent.training.progress import Progress
from tui_descent.training.several_nets import whole_nets
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.equal_units import EqualUnits
from tui_descent.training.watch.facts import Evidence, Facts
from tui_descent.training.watch.layer_list import LayerList
from tui_descent.training.watch.loss_facts import LossFacts
from tui_descent.training.watch.optimizer_facts import ZERO_RATES, OptimizerFacts
from tui_descent.training.watch.overwritten_weights import OverwrittenWeights, can_be_compared
from tui_descent.training.watch.reading_facts import LEAST_GRADIENT, ReadingFacts
from tui_descent.training.watch.uncleared_gradients import UnclearedGradients, can_be_followed
from tui_descent.training.watch.unheld_weights import UnheldWeights
from tui_descent.training.watch.unregistered_layers import UnregisteredLayers

PART = "the checks of the wiring"
# The number of first updates, each of which is checked; none of them is a fast step.
LOOKS = 20
MEASURED = (1, 3, 10, 13, 16)  # inputs and outputs are measured at the update after this many checked updates
UNCLEARED, TAKEN_BACK, CUT = 3, 3, 3  # after this many updates in a row the fact is reported
CUT_TO = 1e-2  # a gradient of which less is left counts as cut
UNMOVED = 4  # if all weights are still the same after this many updates in a row, that is reported
STAYED_EQUAL = 10  # after this many updates, units that started equal would differ
# This many losses without an update are reported, unless the loop accumulates gradients over nearly as many batches.
MANY_LOSSES = 20
MANY_ACCUMULATIONS = 10
MANY_SKIPPED = 20


class Wiring:
    """The facts about one run.

    `before_update` is called in the optimizer's pre-hook, and `step` after it in `run.step`. Nothing is called in a
    fast step. While `looks` is true, there are no fast steps.
    """

    def __init__(
        self,
        model: nn.Module,
        steering: Steering,
        layers: LayerList,
        progress: Progress,
        failures: Failures,
        *,
        is_scenario: bool,
    ) -> None:
        self._model, self._steering, self._layers = model, steering, layers
        self._progress, self._failures = progress, failures
        self._facts = facts = Facts(progress)
        self._by_reading = ReadingFacts(facts)
        self._by_loss = None if is_scenario else LossFacts(facts, progress)
        self._by_optimizer = OptimizerFacts(facts, model, steering, layers.order)
        others = self._by_optimizer.others
        self._unregistered = None if is_scenario else UnregisteredLayers(facts, model, steering, others)
        self._looks_left = LOOKS
        self._stopped = self._muted = False
        self._measures = False  # whether inputs and outputs are measured at the current step, without a reading
        self._asynchronous = any(is_asynchronous(p.device) for p in model.parameters())
        self._due = False  # whether everything is checked after the current update
        self._rewinds = self._interventions = 0
        self._net: NetStructure | None = None  # the net to which the following fields belong
        self._ends = NetEnds(whole_nets(model), (), failures)
        self._ends_attached = False
        self._uncleared: UnclearedGradients | None = None
        self._cut = 0  # updates in a row with a gradient of which little was left
        self._overwritten: OverwrittenWeights | None = None
        self._equal: EqualUnits | None = None
        self._unmoved: UnheldWeights | None = UnheldWeights()  # in the first updates, until a weight moves
        self._follows_gradient = not is_scenario
        # Losses since the last update, and the largest number of losses between two updates so far.
        self._losses = self._most_losses = 0

    @property
    def looks(self) -> bool:
        """Whether the next step is checked: it is one of the first steps, or the first after an intervention."""
        return self._looks_left > 0 or (self._interventions != self._progress.interventions and not self._stopped)

    def start(self) -> None:
        """Listen to the first forward pass and to the steps of other optimizers."""
        self._by_optimizer.others.listen()
        self._attach_ends()

    def stop(self) -> None:
        """Remove all hooks."""
        self._stopped, self._looks_left = True, 0
        self._ends_attached = False
        self._by_optimizer.others.ignore()
        self._ends.detach()
        if self._uncleared is not None:
            self._uncleared.detach()

    def attach(self) -> None:
        """Measure what goes into the net and what comes out in the coming forward pass, for a reading."""
        if self._stopped:
            return
        with self._checks():
            self._follow_net()
            self._attach_ends()

    @contextmanager
    def muted(self) -> Iterator[None]:
        """A context with the hooks removed, for passes that do not belong to the step."""
        if self._muted:
            yield
            return
        ends, uncleared, self._muted = self._ends_attached, self._uncleared, True
        self._ends.detach()
        if uncleared is not None:
            uncleared.detach()
        try:
            yield
        finally:
            self._muted = False
            if ends and self._ends_attached:
                self._ends.attach()
            if uncleared is not None and uncleared is self._uncleared and self._looks_left > 0:
                uncleared.attach()

    def before_update(self, n: int, *, closure: bool) -> None:
        """Called before one of the first updates of optimizer `n`, or before its update in a measured step. With a
        `closure`, it may compute several gradients for one update.
        """
        if self._stopped:
            return
        with self._checks():
            self._due = True
            self._detach_ends()
            if self._looks_left == LOOKS and self._equal is None and not self._asynchronous:
                self._equal = EqualUnits(() if self._layers.net is None else self._layers.net.layers)
            if closure:
                self._stop_following()
            elif self._uncleared is not None:
                self._uncleared.before_update()
            if self._by_optimizer.before_update(n) and not self._looks_left:
                self._looks_left = ZERO_RATES + 1  # check each update, to see whether the rate stays at 0
            if self._overwritten is not None and not n:
                self._overwritten.before_update(self._progress.step)

    def read(self) -> Deferred[Ends]:
        """The measurements of the pass of this step."""
        return self._ends.read()

    def report(self, step: int, sample: Sample | None, ends: Ends) -> Sample | None:
        """Called when the reading of update `step` has arrived. Returns its `sample`."""
        if not self._stopped:
            with self._checks():
                if sample is not None:
                    self._by_reading.check_updates(sample, self._layers_now, self._steering.optimizers)
                    if (one := self._overwritten) is not None and one.row < len(sample.rows):
                        fresh = row_value(sample.rows[one.row], "age") == 0
                        one.measured(step, row_value(sample.rows[one.row], "update_norm") if fresh else None)
                self._check_ends(step, ends)
        return sample

    def _check_ends(self, step: int, ends: Ends) -> None:
        self._by_reading.check_ends(step, ends)
        if self._by_loss is not None:
            self._by_loss.add_outputs(step, ends.outputs)

    def step(self, loss: object, updates: int, *, skipped: bool, skipped_in_a_row: int) -> None:
        """Called at `run.step(loss)`. `updates` is the number of updates since the last call. `skipped` says that an
        update was dropped or skipped. `skipped_in_a_row` is the number of newest steps in a row that were skipped.
        """
        if not self._stopped:
            with self._checks():
                self._step(loss, updates, skipped=skipped, skipped_in_a_row=skipped_in_a_row)

    @contextmanager
    def _checks(self) -> Iterator[None]:
        """A context that stops all checks if its body raises."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it must not end the user's training
            self._failures.add(PART, error)
            with suppress(Exception):
                self.stop()

    def _step(self, loss: object, updates: int, *, skipped: bool, skipped_in_a_row: int) -> None:
        if self._rewinds != self._progress.rewinds:
            self._rewinds = self._progress.rewinds
            self._forget()
        self._detach_ends()  # still attached if the update was dropped
        self._follow_net()
        if self._by_loss is not None:
            self._by_loss.observe(loss, self._ends)
            if self._due:
                self._by_loss.add_loss(self._progress.step, loss)
        if not updates and not skipped:
            self._stop_following()  # the loop accumulates gradients
            self._losses += 1
            if self._losses == max(MANY_LOSSES, MANY_ACCUMULATIONS * self._most_losses):
                self._facts.found("no optimizer step", None, self._by_optimizer.without_step(self._losses))
            return
        self._most_losses, self._losses = max(self._most_losses, self._losses), 0
        self._facts.ended("no optimizer step")
        if skipped_in_a_row >= MANY_SKIPPED:
            self._facts.found("every update skipped", None, {"steps": float(skipped_in_a_row)}, keep=True)
        elif not skipped_in_a_row:
            self._facts.ended("every update skipped")
        if self._due or self.looks:
            self._due, self._interventions = False, self._progress.interventions
            self._check(loss)
        if self._looks_left > 0:
            if self._measures:
                self._check_ends(self._progress.step, self._ends.read().result())
            self._looks_left -= 1
            self._measures = LOOKS - self._looks_left in MEASURED and not self._asynchronous
            if self._measures:
                self._attach_ends()
            if self._looks_left == 0:
                self._by_optimizer.others.ignore()
                self._stop_following()
                self._overwritten = None
            elif self._follows_gradient:
                self._follow_gradient()
                self._follow_weight()

    def _forget(self) -> None:
        """Reset all counts, after an undo or redo."""
        self._by_optimizer.forget()
        self._by_reading.forget()

    @property
    def _layers_now(self) -> Sequence[WatchedLayer]:
        return () if self._net is None else self._net.layers

    def _follow_net(self) -> None:
        net = self._layers.net
        if net is None or net is self._net:
            return
        attached = self._ends_attached
        self._detach_ends()
        if self._net is not None:
            self._by_optimizer.add(net.layers, known=self._net.layers)
        self._overwritten = None
        self._net, before = net, self._ends
        self._ends = NetEnds(whole_nets(self._model), net.layers, self._failures)
        self._ends.batch, self._ends.last = before.batch, before.last
        if attached:
            self._attach_ends()

    def _attach_ends(self) -> None:
        self._ends_attached = True
        self._ends.attach()

    def _detach_ends(self) -> None:
        self._ends_attached = False
        self._ends.detach()

    def _check(self, loss: object) -> None:
        if self._net is None:
            return
        self._by_optimizer.check(self._net.layers, loss)
        if self.looks and self._unregistered is not None:
            self._unregistered.check()
        if self._uncleared is not None and self._uncleared.in_a_row >= UNCLEARED:
            evidence: Evidence = {"updates": float(self._uncleared.in_a_row)}
            self._facts.found("gradients not cleared", self._uncleared.name, evidence, keep=True)
        elif self._uncleared is not None and not self._uncleared.in_a_row:
            self._facts.ended("gradients not cleared")
        if (one := self._uncleared) is not None and one.left is not None:
            self._cut = self._cut + 1 if 0 < one.left < CUT_TO else 0
            if not self._cut:
                self._facts.ended("gradients cut")
            elif self._cut >= CUT:
                self._facts.found("gradients cut", None, {"left": one.left}, keep=True)
        if self.looks and self._unmoved is not None and not self._asynchronous:
            self._check_movement(self._net.layers, self._unmoved)
        if self._equal and LOOKS - self._looks_left >= STAYED_EQUAL:
            self._check_units(self._equal)
        if (weight := self._overwritten) is not None and weight.in_a_row >= TAKEN_BACK:
            self._facts.found("no update", weight.name, {"left": weight.left}, keep=True)

    def _check_movement(self, layers: Sequence[WatchedLayer], known: UnheldWeights) -> None:
        """Whether no weight has moved so far. The first that moves usually ends this after two updates."""
        optimizers = self._steering.optimizers
        held = {id(p) for one in optimizers for p in one.parameters()}
        weights = [w.weight for w in layers if id(w.weight) in held and w.weight.requires_grad]
        rate = max((rate for one in optimizers for rate in one.rate.rates), default=0.0)
        # Weights that have moved in an update, and have not now, were set back by something else.
        if (
            self._by_reading.moved
            or not weights
            or not rate
            or not all(known.is_constant(weight) for weight in weights)
        ):
            self._unmoved = None
            return
        if min(known.looks(weight) for weight in weights) < UNMOVED:
            return
        self._unmoved = None
        gradient = max((float(p.grad.detach().abs().max()) for p in weights if p.grad is not None), default=0.0)
        if gradient > LEAST_GRADIENT:
            evidence: Evidence = {"rate": rate, "dtype": str(weights[0].dtype).removeprefix("torch.")}
            self._facts.found("no update", None, evidence, keep=True)

    def _check_units(self, units: EqualUnits) -> None:
        equal = units.still_equal()
        if not equal:
            self._equal = None
            self._facts.ended("equal weights")
            return
        evidence: Evidence = {"start": "at 0" if units.at_zero else "equal", "layers": float(len(equal))}
        self._facts.found("equal weights", equal[0], evidence, keep=True)

    def _follow_gradient(self) -> None:
        """Choose the weight whose gradient is followed, and listen to the next step."""
        if self._uncleared is None and len(self._steering.optimizers) == 1 and self._net is not None:
            held = {id(p) for p in self._steering.optimizers[0].parameters()}
            fitting = (w for w in reversed(self._net.layers) if id(w.weight) in held and can_be_followed(w.weight))
            watched = next(fitting, None)
            if watched is None:
                return
            self._uncleared = UnclearedGradients(watched, self._failures)
        if self._uncleared is not None:
            self._uncleared.attach()

    def _follow_weight(self) -> None:
        """Choose the weight whose updates are followed."""
        if self._overwritten is None and self._net is not None:
            held = {id(p) for p in self._steering.optimizers[0].parameters()}
            for row, w in enumerate(self._net.layers):
                if id(w.weight) in held and w.weight.requires_grad and can_be_compared(w.weight):
                    self._overwritten = OverwrittenWeights(w, row)
                    return

    def _stop_following(self) -> None:
        self._follows_gradient = False
        if self._uncleared is not None:
            self._uncleared.detach()
            self._uncleared = None
