"""Runs presets headless as a user would, and applies what is advised: `python tests/helpers/preset_runs.py`."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tui_descent.scenario import presets

TESTS = Path(__file__).parent.parent
Line = dict[str, Any]
# By preset: the finding to be said, and others that are true at some time of the run. Without the curvature, which
# headless runs do not measure, nobody can tell a saddle from a minimum or see the edge of stability.
TRUE: dict[str, tuple[str, set[str]]] = {
    "vanishing": ("vanishing", set()),
    "exploding": ("exploding", set()),
    "plateau": ("plateau", set()),
    "too-hot": ("diverged", {"diverging", "exploding"}),
    "dead-relu": ("dead units", set()),
    "transformer": ("vanishing", set()),
    "transformer-deep": ("vanishing", set()),
    "post-ln": ("vanishing", set()),
    "rare-classes": ("healthy", {"converged"}),
    "grokking": ("converged", {"healthy"}),
    "spirals": ("vanishing", {"saturated"}),  # with some seeds: half of the sigmoids of five layers
    "digits": ("healthy", {"converged"}),
    "own-text": ("healthy", {"converged"}),
    "own-images": ("healthy", {"converged"}),
    "own-points": ("healthy", {"converged"}),
    "healthy": ("healthy", {"converged"}),
    "first-descent": ("healthy", {"converged"}),
    "saddle": ("not clear", {"healthy", "saddle", "converged"}),
    "edge-of-stability": ("healthy", {"converged", "rate at the edge"}),
    "too-cold": ("rate too small", set()),
    "warmup": ("diverged", {"diverging", "exploding", "rate too large"}),
    "adam-edge": ("healthy", {"converged", "rate at the edge"}),
    "catapult": ("healthy", {"converged", "rate at the edge"}),
    "rate-too-small": ("rate too small", set()),
    "rate-at-the-limit": ("rate too large", set()),
    "cross-entropy": ("healthy", {"converged"}),
    "chain-rule": ("healthy", {"converged"}),
    "careful-init": ("vanishing", set()),
    "layer-norm": ("exploding", set()),
    "hundred-layers": ("not clear", {"healthy"}),
    "rezero-1000": ("vanishing", set()),
    "activations": ("healthy", {"converged"}),
    "born-dead": ("dead units", set()),
    "break-it": ("healthy", {"converged"}),
    "narrow-valley": ("healthy", {"converged"}),
    "monkey-saddle": ("healthy", {"converged", "saddle", "plateau"}),
    "saddles-not-minima": ("healthy", {"converged", "saddle"}),
    "saddle-to-saddle": ("healthy", {"converged", "saddle", "plateau"}),
}
SICK = (
    "vanishing", "exploding", "plateau", "too-hot", "dead-relu", "transformer", "rate-too-small", "rate-at-the-limit",
    "careful-init", "layer-norm", "rezero-1000", "born-dead",
)  # fmt: skip
PACED_STEPS = 200
CURE_STEPS = 250  # how long the advice may take
SLOWER = {"transformer": 1000, "too-cold": 500, "warmup": 1000}  # longer for these presets
FASTEST = {"edge-of-stability": 1200}  # steps at full speed, where the preset's own number takes too long
ALSO_NAMED = {"warmup": "rate too large"}  # with some seeds all units die before a number overflows
CURED = 0.8  # of the loss without the advice
SICK += ("transformer-deep", "post-ln", "spirals", "too-cold", "warmup")


@dataclasses.dataclass(frozen=True, slots=True)
class PresetRun:
    """What a preset's run said."""

    name: str
    seed: int
    lines: list[Line]

    @property
    def said(self) -> list[Line]:
        return [line for line in self.lines if line["event"] == "diagnosis"]

    @property
    def wanted(self) -> str:
        return TRUE[self.name][0]

    @property
    def named(self) -> bool:
        """Whether its own problem was named; of a preset without one, that it is the last verdict, or none was."""
        findings = [line["finding"] for line in self.said]
        if self.name in SICK:
            return not {self.wanted, ALSO_NAMED.get(self.name)}.isdisjoint(findings)
        return not findings or findings[-1] in self.true

    @property
    def true(self) -> set[str]:
        return {self.wanted, "not clear"} | TRUE[self.name][1]

    @property
    def false(self) -> list[str]:
        return sorted({line["finding"] for line in self.said} - self.true)

    @property
    def changes(self) -> int:
        findings = [line["finding"] for line in self.said]
        return sum(a != b for a, b in itertools.pairwise(findings))

    @property
    def first(self) -> Line | None:
        """The first line that names its problem."""
        return next((line for line in self.said if line["finding"] == self.wanted), None)

    @property
    def first_advice(self) -> str | None:
        if self.first is None or not self.first.get("try"):
            return None
        return f"{self.first['try'][0]['knob']}={self.first['try'][0]['value']}"

    @property
    def last_loss(self) -> float:
        """The mean of the last twenty losses, because batches differ."""
        losses = [line["loss"] for line in self.lines if line["event"] == "step"][-20:]
        known = losses and all(isinstance(loss, float | int) for loss in losses)
        return statistics.fmean(losses) if known else math.inf

    def __str__(self) -> str:
        findings = [f"{line['finding']}@{line['step']}" for line in self.said]
        short = [f for n, f in enumerate(findings) if n == 0 or f.split("@")[0] != findings[n - 1].split("@")[0]]
        marks = [] if self.named else ["MISSED"]
        marks += [f"FALSE {', '.join(self.false)}"] if self.false else []
        text = f"{self.name:18s} seed {self.seed}  {' '.join(short) or '-'}  first advice: {self.first_advice}"
        return f"{text}  <<< {' | '.join(marks)}" if marks else text


def run_preset(name: str, seed: int, *options: str, steps: int, home: Path) -> PresetRun:
    """One headless run at the usual budget."""
    from runs import run

    done = run("run", name, "--json", "--seed", str(seed), "--steps", str(steps), *options, home=home, within_s=600)
    return PresetRun(name, seed, done.lines)


def run_cure(sick: PresetRun, *, home: Path) -> tuple[str, float, float] | None:
    """Apply the first advice when it is given: what was done, and the losses at the end without and with it.

    A headless run that has diverged has ended, so nothing is advised. It can only be started again: what its preset
    names as a remedy besides going back is applied at the start.
    """
    if sick.wanted == "diverged":
        at, advised = 0, [one for one in presets.find(sick.name)[1].remedy if one != "undo"]
    elif sick.first is None:
        return None
    else:
        at, advised = sick.first["step"], [f"{a['knob']}={a['value']}" for a in sick.first.get("try", ())]
    if not advised:
        return None
    steps = at + SLOWER.get(sick.name, CURE_STEPS)
    plain = run_preset(sick.name, sick.seed, steps=steps, home=home)
    cured = run_preset(sick.name, sick.seed, "--at", f"{at}:{advised[0]}", steps=steps, home=home)
    return f"{at}:{advised[0]}", plain.last_loss, cured.last_loss


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--paced", action="store_true", help="at the pace of the preset, for fewer steps")
    parser.add_argument("--cures", action="store_true", help="apply the first advice, too")
    parser.add_argument("presets", nargs="*", metavar="PRESET")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="td") as folder:
        for name in args.presets or TRUE:
            for seed in range(args.seeds):
                done = run_anyway(name, seed, paced=args.paced, home=Path(folder))
                print(done, flush=True)
                if args.cures and name in SICK and (cure := run_cure(done, home=Path(folder))):
                    print(
                        f"{'':18s} {cure[0]}: loss {cure[1]:.4g} without, {cure[2]:.4g} with it",
                        flush=True,
                    )


def run_anyway(name: str, seed: int, *, paced: bool, home: Path) -> PresetRun:
    """The whole preset at full speed, or its first steps at its own pace."""
    _, scenario = presets.find(name)
    if paced:
        return run_preset(name, seed, "--pace", str(scenario.run.pace or 30), steps=PACED_STEPS, home=home)
    return run_preset(name, seed, steps=FASTEST.get(name, scenario.run.steps), home=home)


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(TESTS / "process"))
    main()
