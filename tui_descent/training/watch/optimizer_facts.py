"""Facts about the optimizers: weights that none of them holds, weights without a gradient, frozen weights, and rates of
0.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tui_descent.instruments.forward_order import ForwardOrder
from tui_descent.instruments.loss_graph import reaches
from tui_descent.instruments.net_structure import WatchedLayer
from tui_descent.training.steering.steered_optimizer import SteeredOptimizer
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.facts import Evidence, Facts
from tui_descent.training.watch.other_optimizers import OtherOptimizers
from tui_descent.training.watch.unheld_weights import UnheldWeights

# After this many updates a layer without a gradient is reported. A net without any gradient is reported earlier.
CUT_AFTER, NONE_AFTER = 5, 3
ZERO_RATES = 10  # this many updates with a rate of 0 are reported: a warm-up starts with one such update
UNCHANGED = 3  # how often a weight that no optimizer holds is checked before it is reported


class OptimizerFacts:
    """What the updates of a run have shown so far. `order` has the modules that were called, in forward order."""

    def __init__(self, facts: Facts, model: nn.Module, steering: Steering, order: ForwardOrder) -> None:
        self._facts, self._model, self._steering, self._order = facts, model, steering, order
        self.others = OtherOptimizers(steering)
        # Parameters that have had no gradient so far, by id.
        self._without_gradient = {id(p): p for p in model.parameters() if p.requires_grad}
        self._any_gradient = False
        self._updates: list[int] = []  # for each optimizer: the number of updates seen so far
        self._zero_rates: dict[tuple[int, int], int] = {}  # by optimizer and group: updates in a row with rate 0
        self._unheld = UnheldWeights()

    def add(self, layers: Sequence[WatchedLayer], *, known: Sequence[WatchedLayer]) -> None:
        """Called when the layers of the net have changed."""
        before = {id(w.weight) for w in known}
        for w in layers:
            if id(w.weight) not in before and w.weight.requires_grad:
                self._without_gradient[id(w.weight)] = w.weight

    def forget(self) -> None:
        """Reset the counts, after an undo or redo."""
        self._zero_rates.clear()

    def before_update(self, n: int) -> bool:
        """Called when optimizer `n` is about to make an update. Returns whether one of its rates has just become 0."""
        optimizers = self._steering.optimizers
        self._updates += [0] * (len(optimizers) - len(self._updates))
        self._updates[n] += 1
        found = [key for key, p in self._without_gradient.items() if p.grad is not None]
        for key in found:
            del self._without_gradient[key]
        self._any_gradient = self._any_gradient or bool(found)
        return self._count_zero_rates(n, optimizers[n])

    def check(self, layers: Sequence[WatchedLayer], loss: object) -> None:
        """Update the facts. Called after an update, with the loss of `run.step`."""
        layers = [w for w in layers if w.weight.is_floating_point() or w.weight.is_complex()]
        optimizers = self._steering.optimizers
        held = [{id(p) for p in one.parameters()} for one in optimizers]
        self._check_frozen(layers, held)
        foreign = self._check_held(layers, held)
        self._check_gradients(layers, held, loss, foreign=foreign)
        self._check_rates(layers, optimizers)

    def without_step(self, losses: int) -> Evidence:
        """The evidence for a fact: this many losses came without a step of the watched optimizers."""
        names = ", ".join(type(one.optimizer).__name__ for one in self._steering.optimizers)
        evidence: Evidence = {"losses": float(losses), "optimizer": names}
        if (other := self.others.stepped) is not None:
            held = {id(p) for one in self._steering.optimizers for p in one.parameters()}
            shares = any(id(p) in held for group in other.param_groups for p in group["params"])
            evidence |= {"other": type(other).__name__, "shares": float(shares)}
        return evidence

    def _count_zero_rates(self, n: int, one: SteeredOptimizer) -> bool:
        rates = one.rate.rates
        if len(rates) != len(one.optimizer.param_groups):
            return False  # the optimizer sets its own rate
        for group, rate in enumerate(rates):
            self._zero_rates[n, group] = self._zero_rates.get((n, group), 0) + 1 if rate == 0 else 0
        return any(self._zero_rates[n, group] == 1 for group in range(len(rates)))

    def _check_frozen(self, layers: Sequence[WatchedLayer], held: Sequence[set[int]]) -> None:
        frozen = [w for w in layers if not w.weight.requires_grad]
        if not frozen:
            self._facts.ended("frozen layers")
            return
        in_optimizer = sum(any(id(w.weight) in those for those in held) for w in frozen)
        counts: Evidence = {"frozen": float(len(frozen)), "layers": float(len(layers))}
        counts |= {"in_optimizer": float(in_optimizer)} | ({"biases": 1.0} if _only_biases_train(frozen) else {})
        self._facts.found("frozen layers", frozen[0].layer.name, counts)

    def _check_held(self, layers: Sequence[WatchedLayer], held: Sequence[set[int]]) -> bool:
        """Check that the optimizers hold the net's weights. Returns True if they hold none of the weights."""
        all_held = set[int]().union(*held)
        own = {id(p) for p in self._model.parameters()}
        trainable = [w for w in layers if w.weight.requires_grad]
        none_held = bool(all_held) and not all_held & own
        absent = [
            w
            for w in trainable
            if id(w.weight) not in all_held
            and (none_held or id(w.weight) not in self._without_gradient)
            and not self.others.holds(w.weight)
        ]
        # Something else may train these weights, such as an optimizer that holds copies of them in another precision.
        absent = [w for w in absent if self._unheld.is_constant(w.weight)]
        self._unheld.keep_only(absent)
        lasting = [w for w in absent if self._unheld.looks(w.weight) >= UNCHANGED]
        foreign = len(all_held - own)
        if not lasting:
            self._facts.ended("foreign parameters")
            self._facts.ended("untrained parameters")
            return none_held
        evidence: Evidence = {"absent": float(len(lasting)), "layers": float(len(layers)), "foreign": float(foreign)}
        fault, other = "untrained parameters", "foreign parameters"
        if foreign:
            fault, other = other, fault
        self._facts.ended(other)
        self._facts.found(fault, lasting[0].layer.name, evidence)
        return none_held

    def _check_gradients(
        self, layers: Sequence[WatchedLayer], held: Sequence[set[int]], loss: object, *, foreign: bool
    ) -> None:
        if not self._any_gradient:
            seen = min(self._updates, default=0)
            # A loss that was made to require a gradient has lost its graph.
            leaf = isinstance(loss, Tensor) and loss.requires_grad and loss.grad_fn is None
            if seen >= (1 if leaf else NONE_AFTER) and self._without_gradient and not foreign:
                evidence: Evidence = {"updates": float(seen)}
                if leaf:
                    evidence["no_graph"] = 1.0
                elif isinstance(loss, Tensor) and loss.requires_grad and not reaches(loss, self._model.parameters()):
                    evidence["not_reached"] = 1.0
                self._facts.found("no gradient", None, evidence, keep=True)
            return
        if (idle := self._without_any_gradient(layers, held)) is not None:
            self._facts.found("no gradient", None, {"updates": float(CUT_AFTER), "optimizer": idle})
            return
        self._facts.ended("no gradient")
        cut = self._cut(layers, held) if self._order.names and self._without_gradient else None
        if cut is None:
            self._facts.ended("gradient cut")
        else:
            without, after, count = cut
            self._facts.found("gradient cut", without, {"after": after, "without": float(count)})

    def _without_any_gradient(self, layers: Sequence[WatchedLayer], held: Sequence[set[int]]) -> str | None:
        """The name of one of several optimizers whose weights have never had a gradient, as behind a `detach()`."""
        for n, (one, those) in enumerate(zip(self._steering.optimizers, held, strict=True)):
            if len(held) > 1 and n < len(self._updates) and self._updates[n] >= CUT_AFTER:
                own = [id(w.weight) for w in layers if w.weight.requires_grad and id(w.weight) in those]
                if own and all(weight in self._without_gradient for weight in own):
                    return one.name
        return None

    def _cut(self, layers: Sequence[WatchedLayer], held: Sequence[set[int]]) -> tuple[str, str, int] | None:
        """The place where the gradient is cut: the last layer without a gradient, the first layer with one, and the
        number of layers without. The layers are those that one optimizer trains and that were called, in forward order.
        None unless all layers up to the cut have no gradient and all layers after it have one.
        """
        modules = dict(self._model.named_modules())
        called = {id(modules[name]) for name in self._order.names if name in modules}
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
            self._facts.ended("rate zero")
            return
        of = sum(id(p) in weights for one in optimizers for p in one.parameters())
        first = zero[0].layer.name if len(zero) < of else None
        evidence: Evidence = {"updates": float(ZERO_RATES), "layers": float(len(zero)), "of": float(of)}
        self._facts.found("rate zero", first, evidence)


def _only_biases_train(frozen: Sequence[WatchedLayer]) -> bool:
    """Whether each of these layers with a frozen weight trains its bias, if it has one."""
    biases = [[p for p in w.module.parameters(recurse=False) if p.ndim <= 1 and p is not w.weight] for w in frozen]
    return any(biases) and all(any(p.requires_grad for p in those) for those in biases if those)
