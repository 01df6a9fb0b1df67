"""Establishes facts about how a loop, its net and its optimizers are connected, and reports each with `WiringFound`.

In the first updates everything that needs no reading is checked; later all is checked again at each reading. The names
of the facts and their sentences are in `telemetry/diagnosis/wiring.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from torch import Tensor, nn

from tui_descent.instruments.deferred import Deferred, is_asynchronous
from tui_descent.instruments.failures import Failures
from tui_descent.instruments.instrument_set import Sample
from tui_descent.instruments.loss_graph import LossGraph, read_loss_graph
from tui_descent.instruments.net_ends import Ends, NetEnds
from tui_descent.instruments.net_structure import NetStructure, WatchedLayer
from tui_descent.protocol.events import LoopObserved, WiringFound
from tui_descent.protocol.readings import row_value
from tui_descent.training.progress import Progress
from tui_descent.training.several_nets import whole_nets
from tui_descent.training.steering.steered_optimizer import SteeredOptimizer
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.layer_list import LayerList
from tui_descent.training.watch.other_optimizers import OtherOptimizers
from tui_descent.training.watch.overwritten_weights import OverwrittenWeights, can_be_compared
from tui_descent.training.watch.uncleared_gradients import UnclearedGradients, can_be_followed
from tui_descent.training.watch.unheld_weights import UnheldWeights

PART = "the checks of the wiring"
# The first updates, at which nothing is left out.
LOOKS = 20
MEASURED = (1, 3, 10, 13, 16)  # inputs and outputs are measured in the update after so many looks
# A layer that has no gradient after so many updates gets none. A net without any is noticed earlier.
CUT_AFTER, NONE_AFTER = 5, 3
ZERO_RATES = 10  # updates with a rate of 0: a warm-up starts with one
UNCLEARED = 3  # updates in a row
READINGS = 3  # in a row
SETTLED = 10  # updates after which an output may no longer be constant: a head may start at zero
CONSTANT = 1e-6  # standard deviation over the samples, relative to the rms
LEAST_GRADIENT = 1e-6  # below it a run is so close to a minimum that its updates may well be rounded away
INPUT_RMS = 1e-2, 1e2
# So many losses without an update are reported, unless the loop accumulates gradients over nearly as many batches.
MANY_LOSSES = 20
MANY_ACCUMULATIONS = 10
MANY_SKIPPED = 20
# How close to ln(classes) a first loss is that starts as one of a guess. And the first losses, and the lowest loss, of
# a binary cross-entropy of logits between 0 and 1.
NEAR, SIGMOID_LOSSES, LOWEST_SIGMOID_LOSS = 0.1, (0.7, 0.98), math.log1p(math.exp(-1))

Evidence = dict[str, float | str]


class Wiring:
    """The facts about one run.

    `before_update` is called in the optimizer's pre-hook, and `step` after it in `run.step`. Nothing is called in a
    fast step, and there are none while `looks` is true.
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
        self._progress, self._failures, self._is_scenario = progress, failures, is_scenario
        self._present: dict[str, tuple[str | None, Evidence]] = {}  # layer and evidence of each fact
        self.others = OtherOptimizers(steering)
        self._looks_left = LOOKS
        self._stopped = False
        self._measures = False  # whether inputs and outputs are measured at the current step, without a reading
        self._asynchronous = any(is_asynchronous(p.device) for p in model.parameters())
        self._due = False  # whether everything is checked after the current update
        self._rewinds = 0
        self._net: NetStructure | None = None  # the net that the following belongs to
        self._ends = NetEnds(whole_nets(model), (), failures)
        self._ends_attached = False
        # Parameters that have had no gradient so far, by id.
        self._without_gradient = {id(p): p for p in model.parameters() if p.requires_grad}
        self._any_gradient = False
        self._updates: list[int] = []  # seen so far, of each optimizer
        self._zero_rates: dict[tuple[int, int], int] = {}  # updates in a row with rate 0, by optimizer and group
        self._unheld = UnheldWeights()
        self._uncleared: UnclearedGradients | None = None
        self._overwritten: OverwrittenWeights | None = None
        self._follows_gradient = not is_scenario
        self._losses = self._most_losses = 0  # losses since the last update, and the most so far
        self._observed = is_scenario  # whether `LoopObserved` was sent
        self._constant: dict[str, int] = {}  # readings in a row, by net
        self._scaled: dict[str, int] = {}  # readings in a row with inputs that are too large or too small, by layer
        self._lone_norms = 0
        self._unmoved: int | None = 0  # readings in a row without any update; None once there was one

    @property
    def looks(self) -> bool:
        """Whether each of the next steps is looked at."""
        return self._looks_left > 0

    def start(self) -> None:
        """Listen to the first forward pass and to the steps of other optimizers."""
        self.others.listen()
        self._attach_ends()

    def stop(self) -> None:
        """Remove all hooks."""
        self._stopped, self._looks_left = True, 0
        self._ends_attached = False
        self.others.ignore()
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
        ends, uncleared = self._ends_attached, self._uncleared
        self._ends.detach()
        if uncleared is not None:
            uncleared.detach()
        try:
            yield
        finally:
            if ends and self._ends_attached:
                self._ends.attach()
            if uncleared is not None and uncleared is self._uncleared and self.looks:
                uncleared.attach()

    def before_update(self, n: int, *, closure: bool) -> None:
        """Optimizer `n` is about to make an update: of the first ones, or of a step that is measured.

        With a `closure`, it may compute several gradients for one update.
        """
        if self._stopped:
            return
        with self._checks():
            self._due = True
            self._detach_ends()
            if closure:
                self._stop_following()
            elif self._uncleared is not None:
                self._uncleared.before_update()
            optimizers = self._steering.optimizers
            self._updates += [0] * (len(optimizers) - len(self._updates))
            self._updates[n] += 1
            self._look_at_gradients()
            if self._overwritten is not None and not n:
                self._overwritten.before_update(self._progress.step)
            self._count_zero_rates(n, optimizers[n])

    def read(self) -> Deferred[Ends]:
        """What was measured in the pass of this step."""
        return self._ends.read()

    def report(self, step: int, sample: Sample | None, ends: Ends) -> Sample | None:
        """The reading of update `step` has arrived. Returns its `sample`."""
        if not self._stopped:
            with self._checks():
                if sample is not None:
                    self._check_updates(sample)
                    if (one := self._overwritten) is not None and one.row < len(sample.rows):
                        fresh = row_value(sample.rows[one.row], "age") == 0
                        one.measured(step, row_value(sample.rows[one.row], "update_norm") if fresh else None)
                self._check_ends(step, ends)
        return sample

    def step(self, loss: object, updates: int, *, skipped: bool, skipped_in_a_row: int) -> None:
        """`run.step(loss)` was called after so many updates. `skipped`: an update was dropped or skipped.

        `skipped_in_a_row` is how many of the newest steps in a row were skipped.
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
        self._follow_net()
        self._observe_loss(loss)
        if not updates and not skipped:
            self._stop_following()  # the loop accumulates gradients
            self._losses += 1
            if self._losses == max(MANY_LOSSES, MANY_ACCUMULATIONS * self._most_losses):
                self._set("no optimizer step", None, self._no_step())
            return
        self._most_losses, self._losses = max(self._most_losses, self._losses), 0
        self._set("no optimizer step", None, None)
        if skipped_in_a_row >= MANY_SKIPPED:
            self._set("every update skipped", None, {"steps": float(skipped_in_a_row)}, keep=True)
        elif not skipped_in_a_row:
            self._set("every update skipped", None, None)
        if self._due or self.looks:
            self._due = False
            self._check()
        if self.looks:
            if self._measures:
                self._check_ends(self._progress.step, self._ends.read().result())
            self._looks_left -= 1
            self._measures = LOOKS - self._looks_left in MEASURED and not self._asynchronous
            if self._measures:
                self._attach_ends()
            if self._looks_left == 0:
                self.others.ignore()
                self._stop_following()
                self._overwritten = None
            elif self._follows_gradient:
                self._follow_gradient()
                self._follow_weight()

    def _set(self, fault: str, layer: str | None, evidence: Evidence | None, *, keep: bool = False) -> None:
        """Report a fact if it is new, or if its layer or its evidence has changed; without evidence, that it has ended.

        With `keep`, the first evidence is kept: its numbers change from step to step.
        """
        known = self._present.get(fault)
        if evidence is None:
            if known is not None:
                del self._present[fault]
                self._emit(fault, known[0], {}, present=False)
        elif known is None or (known != (layer, evidence) and not (keep and known[0] == layer)):
            self._present[fault] = layer, evidence
            self._emit(fault, layer, evidence, present=True)

    def _emit(self, fault: str, layer: str | None, evidence: Evidence, *, present: bool) -> None:
        self._progress.emit(
            WiringFound(**self._progress.place, fault=fault, present=present, layer=layer, evidence=evidence)
        )

    def _forget(self) -> None:
        """Begin all series anew, after an undo or redo."""
        self._zero_rates.clear()
        self._constant.clear()
        self._scaled.clear()
        self._lone_norms, self._unmoved = 0, None if self._unmoved is None else 0

    def _follow_net(self) -> None:
        net = self._layers.net
        if net is None or net is self._net:
            return
        attached = self._ends_attached
        self._detach_ends()
        known = set() if self._net is None else {id(w.weight) for w in self._net.layers}
        if known:
            added = {id(w.weight): w.weight for w in net.layers if id(w.weight) not in known}
            self._without_gradient |= {key: weight for key, weight in added.items() if weight.requires_grad}
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

    def _look_at_gradients(self) -> None:
        if self._without_gradient:
            found = [key for key, p in self._without_gradient.items() if p.grad is not None]
            for key in found:
                del self._without_gradient[key]
            self._any_gradient = self._any_gradient or bool(found)

    def _count_zero_rates(self, n: int, one: SteeredOptimizer) -> None:
        rates = one.rate.rates
        if len(rates) != len(one.optimizer.param_groups):
            return  # the optimizer sets its own rate
        for group, rate in enumerate(rates):
            self._zero_rates[n, group] = self._zero_rates.get((n, group), 0) + 1 if rate == 0 else 0
        if not self.looks and any(self._zero_rates.get((n, group)) == 1 for group in range(len(rates))):
            self._looks_left = ZERO_RATES + 1

    def _check(self) -> None:
        if self._net is None:
            return
        layers = [w for w in self._net.layers if w.weight.is_floating_point() or w.weight.is_complex()]
        optimizers = self._steering.optimizers
        held = [{id(p) for p in one.parameters()} for one in optimizers]
        self._check_frozen(layers, held)
        foreign = self._check_held(layers, held)
        self._check_gradients(layers, held, foreign=foreign)
        self._check_rates(layers, optimizers)
        if self._uncleared is not None and self._uncleared.in_a_row >= UNCLEARED:
            evidence: Evidence = {"updates": float(self._uncleared.in_a_row)}
            self._set("gradients not cleared", self._uncleared.name, evidence, keep=True)
        elif self._uncleared is not None and not self._uncleared.in_a_row:
            self._set("gradients not cleared", None, None)
        if (one := self._overwritten) is not None and one.in_a_row >= READINGS:
            self._set("no update", one.name, {"left": one.left}, keep=True)

    def _check_frozen(self, layers: Sequence[WatchedLayer], held: Sequence[set[int]]) -> None:
        frozen = [w for w in layers if not any(p.requires_grad for p in w.module.parameters(recurse=False))]
        in_optimizer = sum(any(id(w.weight) in those for those in held) for w in frozen)
        evidence = {"frozen": float(len(frozen)), "layers": float(len(layers)), "in_optimizer": float(in_optimizer)}
        self._set("frozen layers", frozen[0].layer.name if frozen else None, dict(evidence) if frozen else None)

    def _check_held(self, layers: Sequence[WatchedLayer], held: Sequence[set[int]]) -> bool:
        """Check that the optimizers hold the net's weights. Returns whether they hold none of them."""
        all_held = set[int]().union(*held)
        own = {id(p) for p in self._model.parameters()}
        trainable = [w for w in layers if w.weight.requires_grad]
        none_held = bool(all_held) and not all_held & own
        absent = [
            w
            for w in trainable
            if id(w.weight) not in all_held
            and (none_held or w.weight.grad is not None)
            and not self.others.holds(w.weight)
        ]
        # Something else may train them, such as an optimizer of copies of the weights in another precision.
        absent = [w for w in absent if self._unheld.is_constant(w.weight)]
        self._unheld.keep_only(absent)
        lasting = [w for w in absent if self._unheld.looks(w.weight) >= READINGS]
        foreign = len(all_held - own)
        if not lasting:
            self._set("foreign parameters", None, None)
            self._set("untrained parameters", None, None)
            return none_held
        evidence: Evidence = {"absent": float(len(lasting)), "layers": float(len(layers)), "foreign": float(foreign)}
        fault, other = "untrained parameters", "foreign parameters"
        if foreign:
            fault, other = other, fault
        self._set(other, None, None)
        self._set(fault, lasting[0].layer.name, evidence)
        return none_held

    def _check_gradients(self, layers: Sequence[WatchedLayer], held: Sequence[set[int]], *, foreign: bool) -> None:
        if not self._any_gradient:
            seen = min(self._updates, default=0)
            if seen >= NONE_AFTER and self._without_gradient and not foreign:
                self._set("no gradient", None, {"updates": float(seen)}, keep=True)
            return
        self._set("no gradient", None, None)
        cut = self._cut(layers, held) if self._layers.order.names and self._without_gradient else None
        if cut is None:
            self._set("gradient cut", None, None)
        else:
            without, after, count = cut
            self._set("gradient cut", without, {"after": after, "without": float(count)})

    def _cut(self, layers: Sequence[WatchedLayer], held: Sequence[set[int]]) -> tuple[str, str, int] | None:
        """The last layer without a gradient, the first one with it, and the number of layers without.

        All layers before the one have none, and all layers after it have one, in the forward order of those that one
        optimizer trains and that were called.
        """
        modules = dict(self._model.named_modules())
        called = {id(modules[name]) for name in self._layers.order.names if name in modules}
        for n, those in enumerate(held):
            if n >= len(self._updates) or self._updates[n] < CUT_AFTER:
                continue
            ran = [w for w in layers if w.weight.requires_grad and id(w.weight) in those and id(w.module) in called]
            without = [id(w.weight) in self._without_gradient for w in ran]
            count = sum(without)
            if 0 < count < len(ran) and all(without[:count]):
                return ran[count - 1].layer.name, ran[count].layer.name, count
        return None

    def _check_rates(self, layers: Sequence[WatchedLayer], optimizers: Sequence[SteeredOptimizer]) -> None:
        weights = {id(w.weight): w for w in layers if w.weight.requires_grad}
        zero: list[WatchedLayer] = []
        for (n, group), count in self._zero_rates.items():
            groups = optimizers[n].optimizer.param_groups if n < len(optimizers) else []
            if count >= ZERO_RATES and group < len(groups):
                zero += [weights[id(p)] for p in groups[group]["params"] if id(p) in weights]
        if not zero:
            self._set("rate zero", None, None)
            return
        of = sum(id(p) in weights for one in optimizers for p in one.parameters())
        first = zero[0].layer.name if len(zero) < of else None
        evidence: Evidence = {"updates": float(ZERO_RATES), "layers": float(len(zero)), "of": float(of)}
        self._set("rate zero", first, evidence)

    def _check_updates(self, sample: Sample) -> None:
        """Check whether any weight has moved so far in this run."""
        if self._unmoved is None:
            return
        held = {id(p) for one in self._steering.optimizers for p in one.parameters()}
        layers = self._net.layers if self._net is not None else ()
        updates = [
            update
            for w, row in zip(layers, sample.rows, strict=False)
            if row_value(row, "age") == 0 and (update := row_value(row, "update_norm")) is not None
            if (row_value(row, "grad_norm") or 0.0) > LEAST_GRADIENT and id(w.weight) in held
        ]
        rates = [rate for one in self._steering.optimizers for rate in one.rate.rates]
        if any(update != 0 for update in updates):  # NaN counts as an update
            self._unmoved = None
            self._set("no update", None, None)
        elif updates and any(rates) and sample.global_grad_norm < math.inf:
            self._unmoved += 1
            if self._unmoved >= READINGS:
                dtype = next(w.weight.dtype for w in layers)
                evidence: Evidence = {
                    "gradient": sample.global_grad_norm,
                    "rate": max(rates),
                    "dtype": str(dtype).removeprefix("torch."),
                }
                self._set("no update", None, evidence, keep=True)

    def _check_ends(self, step: int, ends: Ends) -> None:
        for name, output in ends.outputs.items():
            constant = output.samples > 1 and output.inputs_vary and output.std <= CONSTANT * output.rms
            self._constant[name] = self._constant.get(name, 0) + 1 if constant and step >= SETTLED else 0
        lasting = [name for name, count in self._constant.items() if count >= READINGS]
        if lasting and (found := ends.outputs.get(lasting[0])) is not None:
            evidence: Evidence = {"std": found.std, "rms": found.rms, "samples": float(found.samples)}
            self._set("constant output", lasting[0] or None, evidence, keep=True)
        elif not lasting:
            self._set("constant output", None, None)
        for layer, rms in ends.input_rms.items():
            outside = math.isfinite(rms) and not INPUT_RMS[0] <= rms <= INPUT_RMS[1]
            self._scaled[layer] = self._scaled.get(layer, 0) + 1 if outside else 0
        first = next((layer for layer, count in self._scaled.items() if count >= 2), None)
        if first is not None and first in ends.input_rms:
            self._set("input scale", first, {"rms": ends.input_rms[first]}, keep=True)
        elif ends.input_rms and first is None:
            self._set("input scale", None, None)
        if ends.lone_norms is not None:
            self._lone_norms = self._lone_norms + 1 if ends.lone_norms else 0
            if not self._lone_norms:
                self._set("batch norm of one sample", None, None)
            elif self._lone_norms >= 2:
                norms: Evidence = {"norms": float(len(ends.lone_norms))}
                self._set("batch norm of one sample", ends.lone_norms[0], norms)

    def _observe_loss(self, loss: object) -> None:
        """Read the graph of the first loss, and report what it shows; later see whether the loss answers a question."""
        if self._observed:
            if (known := self._present.get("softmax twice")) is not None and known[1].get("question"):
                value = _number(loss)
                if value is not None and value < float(known[1]["lowest"]):
                    self._set("softmax twice", None, None)
            return
        self._observed = True
        graph = read_loss_graph(loss) if isinstance(loss, Tensor) else LossGraph()
        self._progress.emit(
            LoopObserved(
                **self._progress.place,
                loss_function=graph.loss_function,
                classes=graph.classes,
                batch=self._ends.batch,
            )
        )
        if graph.takes is not None and graph.gets is not None:
            self._set("softmax twice", None, {"takes": graph.takes, "gets": graph.gets})
        elif not isinstance(loss, Tensor) or loss.grad_fn is None:
            self._ask(loss)

    def _ask(self, loss: object) -> None:
        """Ask whether the loss squashes an output that is squashed already, if it starts as if it did."""
        value, last = _number(loss), self._ends.last
        if value is None or last is None:
            return
        gets, classes = last
        if gets == "softmax" and classes > 1:
            guess, lowest = math.log(classes), math.log1p((classes - 1) * math.exp(-1))
            asks = abs(value - guess) < NEAR * guess
        else:
            lowest = LOWEST_SIGMOID_LOSS
            asks = gets == "sigmoid" and SIGMOID_LOSSES[0] < value < SIGMOID_LOSSES[1]
        if asks:
            evidence: Evidence = {"gets": gets, "loss": value, "lowest": lowest, "question": 1.0}
            self._set("softmax twice", None, evidence)

    def _no_step(self) -> Evidence:
        names = ", ".join(type(one.optimizer).__name__ for one in self._steering.optimizers)
        evidence: Evidence = {"losses": float(self._losses), "optimizer": names}
        if (other := self.others.stepped) is not None:
            held = {id(p) for one in self._steering.optimizers for p in one.parameters()}
            shares = any(id(p) in held for group in other.param_groups for p in group["params"])
            evidence |= {"other": type(other).__name__, "shares": float(shares)}
        return evidence

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


def _number(loss: object) -> float | None:
    """The loss as a number, if reading it does not wait for a device."""
    if isinstance(loss, Tensor):
        waits = is_asynchronous(loss.device)
        return None if waits or loss.numel() != 1 or loss.is_complex() else float(loss.detach())
    return float(loss) if isinstance(loss, int | float) else None
