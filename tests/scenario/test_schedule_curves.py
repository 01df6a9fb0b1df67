"""The closed forms of the schedules against points computed by hand, and errors in a schedule's table."""

from __future__ import annotations

import math

import pytest

from tui_descent.scenario.schedules import FIELDS, about, curve, factor, problems, resolve_schedule
from tui_descent.scenario.spec import ScheduleSpec
from tui_descent.scenario.toml import ScenarioError, from_text

SMALL = 'title = "t"\ndata = "digits"\nmodel = "mlp"\n[run]\nsteps = 100\n[schedule]\n'
WITH_CURVE = [name for name in FIELDS if name != "plateau"]

POINTS = [
    (ScheduleSpec(name="constant"), {0: 1.0, 50: 1.0, 100: 1.0}),
    (ScheduleSpec(name="step"), {0: 1.0, 29: 1.0, 30: 0.1, 59: 0.1, 60: 0.01, 90: 0.001, 500: 0.001}),
    (ScheduleSpec(name="step", every=25, gamma=0.5, floor=0.2), {24: 1.0, 25: 0.5, 50: 0.25, 75: 0.2, 99: 0.2}),
    (ScheduleSpec(name="cosine"), {0: 1.0, 25: (1 + math.sqrt(0.5)) / 2, 50: 0.5, 100: 0.0, 150: 0.0}),
    (ScheduleSpec(name="cosine", floor=0.1), {0: 1.0, 50: 0.55, 100: 0.1, 10_000: 0.1}),
    (ScheduleSpec(name="warmup_cosine", warmup=20, start=0.2), {0: 0.2, 10: 0.6, 20: 1.0, 60: 0.5, 100: 0.0}),
    (ScheduleSpec(name="one_cycle", warmup=0.41, start=0.2, floor=0.1), {0: 0.2, 20: 0.6, 40: 1.0, 99: 0.1, 100: 0.1}),
    (ScheduleSpec(name="wsd", start=0.5), {0: 0.5, 5: 0.75, 10: 1.0, 45: 1.0, 80: 1.0, 90: 0.5, 100: 0.0}),
    (ScheduleSpec(name="wsd", warmup=0, decay=50, floor=0.5), {0: 1.0, 50: 1.0, 75: 0.75, 100: 0.5, 101: 0.5}),
]


@pytest.mark.parametrize(("spec", "points"), POINTS, ids=lambda v: v.name if isinstance(v, ScheduleSpec) else "")
def test_the_curves_match_points_computed_by_hand(spec: ScheduleSpec, points: dict[int, float]) -> None:
    for step, value in points.items():
        assert factor(spec, step, 100) == pytest.approx(value, abs=1e-14), step


@pytest.mark.parametrize("name", WITH_CURVE)
@pytest.mark.parametrize("total", [-3, 0, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("length", [0, 1, 60, 0.99])
def test_the_factor_stays_between_0_and_1_for_any_number_of_updates(name: str, total: int, length: float) -> None:
    fields = {f: length for f in ("warmup", "decay") if f in FIELDS[name]}
    spec = ScheduleSpec(name=name, **fields)  # type: ignore[arg-type]
    values = [factor(spec, k, total) for k in range(-1, 110)]
    assert all(0 <= v <= 1 for v in values)
    assert len(set(values[max(1, total) + 1 :])) == 1  # the last value is kept


@pytest.mark.parametrize("name", WITH_CURVE)
def test_a_curve_includes_both_ends_and_matches_factor(name: str) -> None:
    spec = ScheduleSpec(name=name)  # type: ignore[arg-type]
    drawn = curve(spec, 1000, points=37)
    assert (drawn[0][0], drawn[-1][0], len(drawn)) == (0, 1000, 37)
    assert all(value == factor(spec, k, 1000) for k, value in drawn)
    assert [k for k, _ in curve(spec, 5)] == [0, 1, 2, 3, 4, 5]


def test_plateau_has_no_curve() -> None:
    for ask in (lambda s: factor(s, 3, 100), lambda s: curve(s, 100)):
        with pytest.raises(
            ValueError, match="plateau: the curve cannot be predicted, because it depends on future losses"
        ):
            ask(ScheduleSpec(name="plateau"))


def test_lengths_are_shares_or_updates_and_are_cut_to_fit() -> None:
    assert resolve_schedule(ScheduleSpec(name="wsd", warmup=0.25, decay=30), 200).warmup == 50
    cut = resolve_schedule(ScheduleSpec(name="wsd", warmup=60, decay=30), 70)
    assert (cut.warmup, cut.decay) == (60, 10)
    assert resolve_schedule(ScheduleSpec(name="warmup_cosine", warmup=60), 20).warmup == 20
    assert resolve_schedule(ScheduleSpec(name="step", every=0.001), 20).every == 1


@pytest.mark.parametrize("name", FIELDS)
def test_every_schedule_is_described_in_one_phrase(name: str) -> None:
    text = about(ScheduleSpec(name=name), 1000)  # type: ignore[arg-type]
    assert 10 < len(text) < 160
    assert ("1,000" in text) == (name == "cosine")


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ('name = "cosin"', "schedule.name", 'did you mean "cosine"?'),
        (
            'name = "cosine"\nwarmup = 5',
            "schedule.warmup",
            "cosine does not accept warmup; leave it out, or use a schedule with warmup: warmup_cosine, one_cycle, wsd",
        ),
        (
            "gamma = 0.5",
            "schedule.gamma",
            "constant does not accept gamma; leave it out, or use a schedule with gamma: step,",
        ),
        ('name = "wsd"\nwarmup = 101', "schedule.warmup", "found 101 updates; allowed: at most run.steps = 100"),
        (
            'name = "wsd"\nwarmup = 50\ndecay = 60',
            "schedule.decay",
            "of warmup and 60 of decay; allowed: together",
        ),
        ('name = "wsd"\nwarmup = 1.5', "schedule.warmup", "found 1.5; allowed: a number ≥ 0 and < 1 or a whole number"),
        ('name = "step"\ngamma = 1', "schedule.gamma", "found 1; allowed: a number > 0 and < 1"),
        ('name = "cosine"\nfloor = 1', "schedule.floor", "found 1; allowed: a number ≥ 0 and < 1"),
        ('name = "one_cycle"\nstart = 0', "schedule.start", "found 0; allowed: a number > 0 and ≤ 1"),
    ],
)
def test_an_invalid_schedule_table_names_place_and_allowed_values(text: str, place: str, said: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        from_text(SMALL + text, source="my.toml")
    (problem,) = caught.value.problems
    assert problem.place == place
    assert said in problem.text


def test_in_a_run_shortened_by_an_override_lengths_are_cut_without_an_error() -> None:
    text = SMALL + 'name = "wsd"\nwarmup = 50\ndecay = 50'
    assert from_text(text, source="x", overrides=["run.steps=60"]).run.steps == 60
    assert problems(ScheduleSpec(name="wsd", gamma=0.5), None)
    assert from_text(
        SMALL.replace("[schedule]\n", 'schedule = "cosine"\n').replace("[run]\nsteps = 100\n", ""), source="x"
    )
