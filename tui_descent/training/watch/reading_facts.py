"""Facts that need readings: updates that are exactly 0, a constant output, inputs of a wrong scale, batch norms that
get one sample, nets in eval mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tui_descent.instruments.instrument_set import Sample
from tui_descent.instruments.net_ends import Ends, Mode, Output
from tui_descent.instruments.net_structure import WatchedLayer
from tui_descent.protocol.readings import row_value
from tui_descent.training.steering.steered_optimizer import SteeredOptimizer
from tui_descent.training.watch.facts import Evidence, Facts

READINGS = 3  # readings in a row, for updates of 0 and a constant output
PASSES = 2  # readings in a row, for inputs and batch norms
SETTLED = 10  # a constant output is a fact only after this many updates, because a head may start at zero
CONSTANT = 1e-6  # below this an output is constant: its standard deviation over the samples, relative to its rms
SLOWED = 1e-3  # below this fraction of the largest rate with which weights moved, the rate stops them, not a minimum
CUTTING = ("relu", "clamp")
LEAST_GRADIENT = 1e-6  # below this gradient a run is so close to a minimum that its updates may well be rounded away
INPUT_RMS = 1e-2, 1e2


class ReadingFacts:
    """Counts in how many measured steps in a row each fact has held."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._unmoved = 0  # readings without any update
        self._moved_at: float | None = None  # the largest rate with which weights moved
        self._zero: dict[str, int] = {}  # by net: readings in a row with an output of 0 for every sample
        self._constant: dict[str, int] = {}  # by net: readings in a row with a constant output
        self._scaled: dict[str, int] = {}  # by layer: readings in a row with inputs that are too large or too small
        self._lone_norms = 0
        self._trained: dict[str, set[str]] = {}  # by net: modules that have been in training mode
        self._evaluating: dict[str, int] = {}  # by net: measured steps in a row with modules in eval mode

    @property
    def moved(self) -> bool:
        """Whether a reading has seen an update that was not 0."""
        return self._moved_at is not None

    def forget(self) -> None:
        """Reset the counts, after an undo or redo."""
        self._zero.clear()
        self._constant.clear()
        self._scaled.clear()
        self._lone_norms = self._unmoved = 0

    def check_updates(
        self, sample: Sample, layers: Sequence[WatchedLayer], optimizers: Sequence[SteeredOptimizer]
    ) -> None:
        """Check whether any weight moves. Row n of the `sample` belongs to layer n. Weights that moved before may stop
        because they are at a minimum. So they are reported only if the rate has fallen far since.
        """
        held = {id(p) for one in optimizers for p in one.parameters()}
        updates = [
            update
            for w, row in zip(layers, sample.rows, strict=False)
            if row_value(row, "age") == 0 and (update := row_value(row, "update_norm")) is not None
            if (row_value(row, "grad_norm") or 0.0) > LEAST_GRADIENT and id(w.weight) in held
        ]
        rate = max((rate for one in optimizers for rate in one.rate.rates), default=0.0)
        if any(update != 0 for update in updates):  # NaN counts as an update
            self._unmoved, self._moved_at = 0, max(rate, self._moved_at or 0.0)
            self._facts.ended("no update")
            return
        slow = self._moved_at is None or rate < SLOWED * self._moved_at
        if updates and rate and slow and sample.global_grad_norm < math.inf:
            self._unmoved += 1
            if self._unmoved >= READINGS:
                evidence: Evidence = {
                    "gradient": sample.global_grad_norm,
                    "rate": rate,
                    "dtype": str(layers[0].weight.dtype).removeprefix("torch."),
                }
                if self._moved_at is not None:
                    evidence["fell_from"] = self._moved_at
                self._facts.found("no update", None, evidence, keep=True)

    def check_ends(self, step: int, ends: Ends) -> None:
        """Check what went into the net and what came out before update `step`."""
        if 0.0 not in ends.input_rms.values():  # of which a constant output is the consequence
            self._check_outputs(step, ends)
            self._check_cut_off(step, ends)
        self._check_modes(ends.modes)
        for layer, rms in ends.input_rms.items():
            outside = math.isfinite(rms) and not INPUT_RMS[0] <= rms <= INPUT_RMS[1]
            self._scaled[layer] = self._scaled.get(layer, 0) + 1 if outside else 0
        first = next((layer for layer, count in self._scaled.items() if count >= PASSES), None)
        if first is None:
            self._facts.ended("input scale")
        elif first in ends.input_rms:
            self._facts.found("input scale", first, {"rms": ends.input_rms[first]}, keep=True)
        if ends.lone_norms is not None:
            self._lone_norms = self._lone_norms + 1 if ends.lone_norms else 0
            if not self._lone_norms:
                self._facts.ended("batch norm of one sample")
            elif self._lone_norms >= PASSES:
                norms = float(len(ends.lone_norms))
                self._facts.found("batch norm of one sample", ends.lone_norms[0], {"norms": norms})

    def _check_outputs(self, step: int, ends: Ends) -> None:
        for name, output in ends.outputs.items():
            constant = output.samples > 1 and output.inputs_vary and output.std <= CONSTANT * output.rms
            constant = constant and not _is_cut_off(output)
            self._constant[name] = self._constant.get(name, 0) + 1 if constant and step >= SETTLED else 0
        lasting = next((name for name, count in self._constant.items() if count >= READINGS), None)
        if lasting is None:
            self._facts.ended("constant output")
        elif (found := ends.outputs.get(lasting)) is not None:
            evidence: Evidence = {"std": found.std, "rms": found.rms, "samples": float(found.samples)}
            self._facts.found("constant output", lasting or None, evidence, keep=True)

    def _check_cut_off(self, step: int, ends: Ends) -> None:
        """Check whether the activation at a net's end lets nothing through."""
        for name, output in ends.outputs.items():
            zero = _is_cut_off(output) and step >= SETTLED
            self._zero[name] = self._zero.get(name, 0) + 1 if zero else 0
        lasting = next((name for name, count in self._zero.items() if count >= READINGS), None)
        if lasting is None:
            self._facts.ended("zero output")
        elif (found := ends.outputs.get(lasting)) is not None and found.last is not None:
            self._facts.found("zero output", lasting or None, {"gets": found.last[0]})

    def _check_modes(self, modes: Mapping[str, Mode]) -> None:
        """Check whether updates are made from passes in eval mode.

        It is a question where this may be meant: a net that comes with its running statistics may keep them.
        """
        if not modes:
            return
        found: dict[str, tuple[str, Evidence]] = {}
        for name, mode in modes.items():
            trained = self._trained.setdefault(name, set())
            trained |= mode.training
            whole = {path for path, top in mode.evaluating.items() if top == name}
            certain = mode.evaluating.keys() & trained or mode.fresh or (len(modes) == 1 and whole & mode.dropouts)
            self._evaluating[name] = self._evaluating.get(name, 0) + 1 if certain or whole else 0
            if self._evaluating[name] >= PASSES:
                first = min(certain or whole)
                dropouts, norms = len(mode.dropouts), len(mode.evaluating) - len(mode.dropouts)
                evidence: Evidence = {"dropouts": float(dropouts), "norms": float(norms)}
                found[name] = mode.evaluating[first], evidence | ({} if certain else {"question": 1.0})
        if not found:
            self._facts.ended("eval mode")
            return
        # What is certain comes before a question.
        layer, evidence = min(found.values(), key=lambda one: (len(one[1]), one[0]))
        self._facts.found("eval mode", layer or None, evidence)


def _is_cut_off(output: Output) -> bool:
    """Whether an operation that cuts off negative numbers has made every output 0."""
    return output.rms == 0 and output.last is not None and output.last[0] in CUTTING
