"""The diagnosis of many nets compared with the oracle, in one table."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from diagnosis_nets import RunData, context_of_scenario
from diagnosis_oracle import Verdict, settled

from tui_descent.protocol.events import Advice
from tui_descent.scenario import presets
from tui_descent.scenario.spec import Scenario
from tui_descent.telemetry.diagnosis import Diagnosis, Finding
from tui_descent.telemetry.diagnosis.findings import FINE

ALL = frozenset({"lr", "activation", "residual", "pace", "norm", "optimizer", "init", "undo"})
SURE = 0.8
SILENT = frozenset({"nothing", "not clear"})  # no answer
HARMLESS = FINE | SILENT | {"rate at the edge"}


def diagnosis_of(scenario: Scenario, seen: RunData, *, knobs: Collection[str] = ALL) -> Diagnosis:
    return Diagnosis(seen.layers, knobs=knobs, context=context_of_scenario(scenario))


def feed(diagnosis: Diagnosis, seen: RunData, steps: Iterable[int], *, every: int = 1) -> None:
    for step in steps:
        diagnosis.add_loss(step, seen.losses[step])
        if step % every == 0 and step in seen.readings:
            diagnosis.add_reading(seen.readings[step])


def finding_of(scenario: Scenario, seen: RunData, *, knobs: Collection[str] = ALL, every: int = 1) -> Finding | None:
    diagnosis = diagnosis_of(scenario, seen, knobs=knobs)
    feed(diagnosis, seen, range(len(seen.losses)), every=every)
    return diagnosis.finding()


def preset(name: str, *, seed: int = 0) -> Scenario:
    return presets.find(name, overrides=[f"run.seed={seed}", "run.threads=1"])[1]


def changes_of(advice: Advice) -> set[str]:
    """The oracle's names for what is advised."""
    if advice.knob == "lr":
        return {f"lr{advice.value}", f"undo lr{advice.value}"}
    if advice.knob == "norm":
        return {"norm mid" if "mid" in advice.value else "norm pre"}
    if advice.knob == "activation":
        return {"leaky_relu" if advice.value == "leaky_relu" else "unbounded"}
    if advice.knob == "optimizer":
        return {"adam mapped"}  # what the knob does
    return {"residual": {"residual"}, "init": {f"init {advice.value}"}}.get(advice.knob, set())


@dataclasses.dataclass(slots=True)
class Score:
    """`right` counts nets whose finding is right or whose first advice is a cure, `named` those whose finding is right.

    "not clear" and no finding are no answer: such a net counts in `judged` and not in `spoke`. "converged" is right
    where the oracle finds nothing wrong. `false_alarms` are problems named on nets that are only healthy.
    Nets that no change makes train (`unknown`), and those on which the oracle's repetitions agree on nothing
    (`undecided`), are left out.
    """

    table: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)
    judged: int = 0
    unknown: int = 0
    undecided: int = 0
    retests: list[float] = dataclasses.field(default_factory=list)
    spoke: int = 0
    right: int = 0
    named: int = 0
    healthy: int = 0
    false_alarms: int = 0
    ill: int = 0
    ill_right: int = 0
    ill_named: int = 0
    cured: int = 0
    advised: int = 0
    broad: int = 0
    bands: dict[float, list[int]] = dataclasses.field(default_factory=lambda: {0.5: [0, 0], 0.65: [0, 0], SURE: [0, 0]})

    def add(self, seed: int, verdicts: Sequence[Verdict], finding: Finding | None) -> None:
        verdict, established = settled(verdicts), [v.findings for v in verdicts if v.findings]
        self.retests += [len(a & b) / len(a) for a, b in itertools.permutations(established, 2)]
        if not verdict.findings:
            self.unknown += 2 * len(established) <= len(verdicts)
            self.undecided += 2 * len(established) > len(verdicts)
            return
        name = finding.finding if finding else "nothing"
        first = next((a for a in finding.advice if a.knob != "undo"), None) if finding else None
        fine = "healthy" in verdict.findings and name in FINE
        named = name in verdict.findings or fine
        cures = first is not None and bool(changes_of(first) & verdict.cures)
        self.judged += 1
        if verdict.findings == {"healthy"}:
            self.healthy += 1
            self.false_alarms += name not in HARMLESS
        self.spoke += name not in SILENT
        self.named += named
        self.right += named or cures
        self.broad += len(verdict.findings)
        if finding is not None and name not in SILENT:
            band = self.bands[max(b for b in self.bands if b <= max(0.5, finding.sure))]
            band[0] += named or cures
            band[1] += 1
        self.table[" / ".join(sorted(verdict.findings)), name] += 1
        if verdict.ill:
            self.ill += 1
            self.ill_named += named
            self.ill_right += named or cures
            self.advised += first is not None
            self.cured += cures
        if not (named or cures or name in SILENT):
            self.wrong.append(f"{seed}: {name}, oracle {sorted(verdict.findings)} {sorted(verdict.cures)}")

    @property
    def retest(self) -> float:
        """The share of one repetition's findings that another one confirms."""
        return statistics.fmean(self.retests) if self.retests else 1.0

    @property
    def share(self) -> float:
        """The share of right answers, where there is one."""
        return self.right / self.spoke

    @property
    def spoken(self) -> float:
        return self.spoke / self.judged

    @property
    def sure(self) -> int:
        """The number of nets on which the diagnosis is sure."""
        return self.bands[SURE][1]

    @property
    def sure_share(self) -> float:
        """The share of those on which it is right."""
        return self.bands[SURE][0] / self.sure

    def __str__(self) -> str:
        rows = [f"{n:4d}  {oracle:64s} → {name}" for (oracle, name), n in sorted(self.table.items())]
        return "\n".join(
            [
                *rows,
                f"{self.right}/{self.spoke} = {self.share:.1%} right, {self.named / self.spoke:.1%} by name alone; "
                f"an answer on {self.spoke}/{self.judged} = {self.spoken:.1%}; "
                f"{self.false_alarms} of {self.healthy} healthy nets called ill; "
                f"left out: {self.unknown} that nothing makes train, {self.undecided} with an undecided oracle",
                f"the oracle against itself: {self.retest:.1%} of the findings are confirmed by another repetition",
                *(f"sure from {b}: {right}/{of} right" for b, (right, of) in self.bands.items()),
                f"nets with a problem: {self.ill_right}/{self.ill} right, {self.ill_named} by name alone; "
                f"the first advice is a cure on {self.cured} of {self.advised} that got one",
                f"'healthy' for all would be right on {sum(n for (o, _), n in self.table.items() if 'healthy' in o)}, "
                f"the oracle accepts {self.broad / self.judged:.2f} findings a net",
                *self.wrong,
            ]
        )
