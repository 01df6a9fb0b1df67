"""The shipped scenarios are valid, have a story, and are found by name."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from small_scenario import SMALL, make

from tui_descent.scenario import presets
from tui_descent.scenario.toml import ScenarioError, from_table, to_table
from tui_descent.telemetry.diagnosis.situation import remedies_of


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_valid_and_survives_a_round_trip(name: str) -> None:
    found, scenario = presets.find(name)
    assert found == name
    table = to_table(scenario)
    assert from_table(table, source="x") == scenario
    assert to_table(from_table(table, source="x")) == table


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_has_a_story_and_a_claim(name: str) -> None:
    _, scenario = presets.find(name)
    assert scenario.theme
    assert len(scenario.story.strip()) > 100
    assert scenario.claim
    assert len(scenario.title) <= 78


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_has_a_source_a_demonstration_and_a_cause_that_can_be_removed(name: str) -> None:
    _, scenario = presets.find(name)
    assert all(re.search(r" \d{4}(,|$)", source) for source in scenario.sources), "author and year"
    assert scenario.sources
    assert scenario.cause_off
    assert any(entry.demo for entry in scenario.plan)
    assert presets.still(name)


def test_remedies_of_presets_are_in_their_stories() -> None:
    for name in presets.names():
        _, scenario = presets.find(name)
        for remedy in scenario.remedy:
            advice = remedies_of([remedy])
            assert advice, remedy
            assert re.search(rf"(?<!\w){re.escape(advice[0].key)}(?!\w)", scenario.story), (name, remedy)


def test_presets_with_something_wrong_have_a_remedy() -> None:
    fine = {"first-descent", "healthy", "edge-of-stability", "cross-entropy", "chain-rule", "activations", "break-it"}
    fine |= {"adam-edge", "catapult", "digits", "own-points", "own-images", "own-text", "grokking", "rare-classes"}
    assert {name for name in presets.names() if not presets.find(name)[1].remedy} == fine


@pytest.mark.parametrize("remedy", ["residual=maybe", "residul=on", "", "undo=1"])
def test_remedy_that_no_knob_accepts_is_reported_with_its_place(remedy: str) -> None:
    with pytest.raises(ScenarioError, match=r'remedy\[1\]: .*"undo" is allowed, too'):
        make(SMALL, f'remedy=["undo", "{remedy}"]')


def test_random_scenarios_survive_a_round_trip() -> None:
    random_ = random.Random(1)
    for _ in range(100):
        choice = random_.choice
        overrides = [
            f"model.activation={choice(('relu', 'gelu', 'tanh'))}",
            f"model.init={{ name = 'normal', std = {random_.uniform(0.001, 3)!r}, bias = {random_.gauss(0, 1)!r} }}",
            f"model.residual={{ name = '{choice(('on', 'off'))}', scale = {random_.uniform(0.01, 9)!r} }}",
            f"model.norm={{ name = '{choice(('none', 'rms'))}', where = '{choice(('pre', 'mid', 'post'))}' }}",
            f"optimizer.lr={random_.expovariate(1)!r}",
            f"optimizer.betas=[{random_.random()!r}, {random_.random()!r}]",
            f"run.seed={random_.randrange(2**62)}",
            f"run.pace={choice(('max', repr(random_.uniform(1, 99))))}",
            f"data={{ name = '{choice(('moons', 'xor'))}', noise = {random_.random()!r} }}",
        ]
        scenario = make(SMALL, *overrides)
        assert from_table(to_table(scenario), source="x") == scenario


def test_presets_are_listed_in_teaching_order() -> None:
    assert presets.names()[:3] == ["first-descent", "healthy", "rate-too-small"]
    assert set(presets.names()) == {path.stem for path in presets.folder().glob("*.toml")}


@pytest.mark.parametrize(("name", "meant"), [("vanish", "vanishing"), ("helthy", "healthy"), ("to-hot", "too-hot")])
def test_an_unknown_preset_name_suggests_the_closest(name: str, meant: str) -> None:
    with pytest.raises(ScenarioError, match=f'did you mean "{meant}"'):
        presets.find(name)


def test_control_characters_in_an_unknown_name_are_escaped() -> None:
    with pytest.raises(ScenarioError) as caught:
        presets.find("\x1b[2J")
    assert str(caught.value).isprintable()


def test_a_file_is_found_by_its_path(home: Path) -> None:
    path = home / "mine.toml"
    path.write_text(SMALL)
    assert presets.find(str(path)) == ("mine", make(SMALL))
