"""Verify the claims of presets. Claims with the same interventions share one headless run.

`scenario/claims.py` judges whether a claim holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tui_descent import headless, output, paths
from tui_descent.protocol.launch import Launch
from tui_descent.scenario import knobs, presets
from tui_descent.scenario.claims import NEEDS_CURVATURE, NEEDS_READING, Transcript, Verdict, judge
from tui_descent.scenario.spec import Claim, Scenario
from tui_descent.scenario.toml import to_table


def verify(names: Sequence[str], *, seeds: int) -> int:
    """Check and print every claim of the presets for seeds 0, 1, …. Returns 1 if any is broken, otherwise 0.

    Raises `ScenarioError` for an unknown name.
    """
    broken = 0
    for name in names:
        for seed in range(seeds):
            for verdict in verdicts(name, seed=seed):
                broken += not verdict.holds
                print(f"{name:<18} seed {seed}  {verdict}", flush=True)
    if broken:
        output.say(f"tui-descent: broken claims: {broken}")
    return 1 if broken else 0


def verdicts(name: str, *, seed: int) -> list[Verdict]:
    """Check all claims of a preset with one seed."""
    _, scenario = presets.find(name, overrides=[f"run.seed={seed}"])
    by_interventions: dict[tuple[str, ...], list[Claim]] = {}
    for claim in scenario.claim:
        by_interventions.setdefault(claim.given, []).append(claim)
    found = []
    for given, claims in by_interventions.items():
        transcript = run(name, scenario, given=given, claims=claims)
        found += [judge(claim, transcript) for claim in claims]
    return found


def steps_needed(scenario: Scenario, given: Sequence[str], claims: Sequence[Claim]) -> int:
    """The number of updates after which the claims can be judged.

    All of them if a claim is about the end of the run, or if the learning rate depends on how many there are.
    """
    turns = (*given, *(planned.turn for planned in scenario.plan))
    varying = scenario.schedule.name != "constant" or any("schedule" in turn for turn in turns)
    last = [scenario.run.steps if varying or claim.at is None else claim.at + 1 for claim in claims]
    return min(scenario.run.steps, max(last))


def run(name: str, scenario: Scenario, *, given: Sequence[str], claims: Sequence[Claim]) -> Transcript:
    """Run headless with the interventions `given`, and take readings at the steps that the claims refer to."""
    transcript = Transcript()
    steps = steps_needed(scenario, given, claims)
    scenario = msgspec.structs.replace(scenario, run=msgspec.structs.replace(scenario.run, steps=steps))
    run_id, folder = paths.new_run(name)
    launch = Launch(
        run=run_id,
        name=name,
        folder=str(folder),
        socket=None,
        scenario=to_table(scenario),
        plan=tuple((at, knobs.text_of(command)) for at, command in map(knobs.parse_at, given)),
        watch_budget=0.0,
        watch_at=tuple(c.at for c in claims if c.at is not None and c.metric in NEEDS_READING),
        curvature_at=tuple(scenario.run.steps if c.at is None else c.at for c in claims if c.metric in NEEDS_CURVATURE),
    )
    launch.write()
    code = headless.run(launch, listen=transcript.add)
    if code > 128:
        raise SystemExit(code)  # a signal ends the whole verification
    return transcript
