"""Verify the claims of presets. Every run that several claims need is made once, headless, in a thread of this process.

`scenario/claims.py` says which runs a claim needs and judges whether it holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from tui_descent import headless, output, paths
from tui_descent.protocol.launch import Launch
from tui_descent.scenario import knobs, presets
from tui_descent.scenario.claims import Found, Sample, Verdict, judge, samples
from tui_descent.scenario.metrics import NEEDS_CURVATURE, NEEDS_READING, Transcript, curvature_steps
from tui_descent.scenario.spec import Claim, Scenario
from tui_descent.scenario.toml import to_table, variant


def verify(names: Sequence[str], *, seeds: int) -> int:
    """Check and print every claim of the presets for seeds 0, 1, …. Returns 1 if any is broken, otherwise 0.

    Raises `ScenarioError` for an unknown name.
    """
    broken = 0
    for name in names:
        _, scenario = presets.find(name)
        for seed in range(seeds):
            for verdict in verdicts(name, scenario, scenario.claim, seed=seed):
                broken += not verdict.holds
                print(f"{name:<18} seed {seed}  {verdict}", flush=True)
    if broken:
        output.say(f"tui-descent: broken claims: {broken}")
    return 1 if broken else 0


def verdicts(name: str, scenario: Scenario, claims: Iterable[Claim], *, seed: int = 0) -> list[Verdict]:
    """Check claims about a scenario with one seed."""
    claims = tuple(claims)
    runs = Runs(name, scenario, [sample for claim in claims for sample in samples(claim, seed=seed)])
    return [judge(claim, runs.measure, seed=seed) for claim in claims]


class Runs:
    """The runs for some samples, each made when its first sample is measured."""

    def __init__(self, name: str, scenario: Scenario, wanted: Iterable[Sample]) -> None:
        self._name, self._scenario = name, scenario
        self._wanted: dict[Sample, list[Sample]] = {}  # by run
        self._transcripts: dict[Sample, Transcript] = {}
        for sample in wanted:
            self._wanted.setdefault(_run_of(sample), []).append(sample)

    def measure(self, sample: Sample) -> Found:
        """The value of one of the samples; None if its run has no value for it."""
        key = _run_of(sample)
        if key not in self._transcripts:
            self._transcripts[key] = run(self._name, self._scenario, self._wanted[key])
        since = max((knobs.parse_at(text)[0] for text in sample.given), default=0)
        return self._transcripts[key].metric(sample.metric, sample.at, target=sample.target, since=since)


def _run_of(sample: Sample) -> Sample:
    """The same for all samples that share a run."""
    return msgspec.structs.replace(sample, metric="", at=None, target=None)


def steps_needed(scenario: Scenario, given: Sequence[str], ats: Iterable[int | None]) -> int:
    """The number of updates after which metrics at the steps `ats` are known.

    All of them if one of them is None, the end of the run, or if the learning rate depends on how many there are.
    """
    turns = (*given, *(planned.turn for planned in scenario.plan))
    varying = scenario.schedule.name != "constant" or any("schedule" in turn for turn in turns)
    last = [scenario.run.steps if varying or at is None else at + 1 for at in ats]
    return min(scenario.run.steps, max(last))


def run(name: str, scenario: Scenario, wanted: Sequence[Sample]) -> Transcript:
    """Make the run that the samples `wanted` share, with readings at their steps."""
    from tui_descent.trainer_thread import TrainerThread  # imports torch

    transcript = Transcript()
    first = wanted[0]
    scenario = variant(scenario, [f"run.seed={first.seed}", *first.overrides])
    steps = steps_needed(scenario, first.given, [sample.at for sample in wanted])
    scenario = msgspec.structs.replace(scenario, run=msgspec.structs.replace(scenario.run, steps=steps))
    run_id, folder = paths.new_run(name)
    launch = Launch(
        run=run_id,
        name=name,
        folder=str(folder),
        socket=None,
        scenario=to_table(scenario),
        plan=tuple((at, knobs.text_of(command)) for at, command in map(knobs.parse_at, first.given)),
        watch_budget=0.0,
        watch_at=tuple(s.at for s in wanted if s.at is not None and s.metric in NEEDS_READING),
        curvature_at=tuple(
            step
            for s in wanted
            if s.metric in NEEDS_CURVATURE
            for step in curvature_steps(s.metric, steps if s.at is None else s.at)
        ),
    )
    launch.write()
    code = headless.run(launch, listen=transcript.add, start=TrainerThread.start)
    if code > 128:
        raise SystemExit(code)  # a signal ends the whole verification
    return transcript
