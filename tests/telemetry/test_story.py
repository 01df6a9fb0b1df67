"""Hints of a story, and the claims as one run shows them, against the claims as they are verified."""

from __future__ import annotations

import msgspec
import pytest
from factories import curved, history_of, received, started, steps, turned, vanishing

from tui_descent.dashboard.prediction import Prediction, reveal, what_happened
from tui_descent.protocol.events import AnyEvent, Diagnosed, EndReached, KnobState, RunEnded, StateChanged
from tui_descent.scenario import presets
from tui_descent.scenario.claims import Measure, judge
from tui_descent.scenario.key_words import how_to_press
from tui_descent.scenario.metrics import Transcript
from tui_descent.scenario.spec import Claim
from tui_descent.telemetry.history import History
from tui_descent.telemetry.story import end_card, loss_change, next_hint

SCENARIO = presets.find("vanishing")[1]


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ("residual=on", "press r"),
        ("residual@blocks.3=on", "select blocks.3, then press r"),
        ("lr=*10", "press ]"),
        ("lr=/10", "press ["),
        ("lr=0.3", "press l and type 0.3"),
        ("activation=leaky_relu", "press a and choose leaky_relu"),
        ("norm=layer,where=mid,way=instant", "press n and choose layer, where mid, way instant"),
        ("optimizer=adam", "press o and choose adam"),
        ("kick=0.01", "press k"),
        ("undo", "press u"),
    ],
)
def test_an_intervention_as_keys(turn: str, words: str) -> None:
    assert how_to_press(turn) == words


def test_every_preset_has_a_hint_from_its_start_to_its_end() -> None:
    for name in presets.names():
        scenario = presets.find(name)[1]
        history = history_of(vanishing(30))
        assert next_hint(scenario, history), name
        history.apply(StateChanged(state="held"))
        assert "press" in next_hint(scenario, history), name


def test_the_key_comes_too_late_once_the_loss_has_fallen_without_it() -> None:
    scenario = presets.find("saddle")[1]
    (at,) = [entry.at for entry in scenario.plan if entry.turn]
    on_saddle = [1.0 * 0.96**n for n in range(at + 100)]
    history = history_of([started(), steps(0, on_saddle), diagnosed("not clear", at + 100)])
    assert next_hint(scenario, history) == "press ]"
    left = [-1.0 + 0.9**n for n in range(100)]
    for event in (steps(at + 100, left), diagnosed("healthy", at + 200)):
        history.apply(event)
    assert next_hint(scenario, history) == "the loss fell without it; restart (R), then press ]"
    history.apply(diagnosed("saddle", at + 200))
    assert next_hint(scenario, history) == "press ]"
    history.apply(diagnosed("healthy", at + 200))
    history.apply(turned(at + 150, "sgd", "momentum", knob="optimizer"))
    assert next_hint(scenario, history) == "press ]"


def test_the_key_is_still_named_in_a_healthy_run_whose_loss_has_hardly_fallen() -> None:
    scenario = presets.find("narrow-valley")[1]
    (at,) = [entry.at for entry in scenario.plan if entry.turn]
    losses = [48.0 - 0.01 * n if n else 100.0 for n in range(at + 300)]
    history = history_of([started(), steps(0, losses), diagnosed("healthy", at + 300)])
    assert next_hint(scenario, history) == "press o and choose momentum"


def diagnosed(finding: str, step: int) -> Diagnosed:
    return Diagnosed(segment=0, step=step, finding=finding, sure=0.9)


def measure_in(transcript: Transcript) -> Measure:
    return lambda sample: transcript.metric(sample.metric, sample.at)


def test_the_claims_that_a_run_shows_are_judged_as_by_verify() -> None:
    for given, cure in (((), 10_000), (("150:residual=on",), 150)):
        events: list[AnyEvent] = [
            *vanishing(600, cure),
            RunEnded(status="finished", step=600, loss=0.06, accuracy=0.95),
        ]
        transcript, card = Transcript(events), end_card(SCENARIO, history_of(events), "vanishing")
        judged = [claim for claim in SCENARIO.claim if claim.given == given]
        shown = [r for claim, r in zip(SCENARIO.claim, card.claims, strict=True) if claim.given == given]
        assert len(judged) == len(shown) == 2
        for claim, result in zip(judged, shown, strict=True):
            verdict = judge(claim, measure_in(transcript))
            assert result.outcome == ("held" if verdict.holds else "not held")
            assert isinstance(verdict.found, float)
            assert float(result.found.split()[0]) == pytest.approx(verdict.found, rel=1e-3)


def test_a_key_pressed_later_moves_the_claim_to_the_same_distance() -> None:
    card = end_card(SCENARIO, history_of(vanishing(600, 170)), "vanishing")
    ratio = next(r for claim, r in zip(SCENARIO.claim, card.claims, strict=True) if claim.metric == "loss_ratio")
    assert ratio.outcome == "held"
    assert ratio.found.endswith("at step 250")


def test_claims_about_other_changes_are_not_judged() -> None:
    history = history_of(vanishing(200, 10_000))
    history.apply(turned(100, "sigmoid", "relu", knob="activation"))
    card = end_card(SCENARIO, history, "vanishing")
    assert {r.outcome for r in card.claims} == {"not tested"}
    assert any("Restart (R), then press r" in text for text in card.next)


def test_a_claim_that_does_not_hold_is_said() -> None:
    claim = msgspec.structs.replace(SCENARIO.claim[1], above=9.0)
    scenario = msgspec.structs.replace(SCENARIO, claim=(claim,))
    (result,) = end_card(scenario, history_of(vanishing(600, 10_000)), "vanishing").claims
    assert result.outcome == "not held"


def test_the_mean_of_the_edge_is_judged_by_what_was_measured_in_the_last_two_hundred_updates() -> None:
    claim = Claim(metric="edge_mean", at=500, equals=1.0, within=0.08)
    scenario = msgspec.structs.replace(SCENARIO, claim=(claim,))
    measured = [curved(step, high, -0.1) for step, high in ((290, 9.0), (330, 1.8), (460, 2.4), (490, 2.0), (510, 9.0))]
    events = [*vanishing(600, 10_000), *measured]
    (result,) = end_card(scenario, history_of(events), "vanishing").claims
    assert (result.outcome, result.found) == ("held", "1.033 at step 490")
    (result,) = end_card(scenario, history_of(vanishing(600, 10_000)), "vanishing").claims
    assert (result.outcome, result.found) == ("not tested", "press 5 to measure the curvature")


def test_an_empty_run_has_a_card() -> None:
    card = end_card(SCENARIO, History(), "vanishing")
    assert card.happened == ("Nothing was changed.",)


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (2.3, 0.5, "falls"),
        (0.5, 2.3, "rises"),
        (2.3, 2.25, "stays about the same"),
        (0.0, 0.0, "stays about the same"),
        (-0.1, -1.0, "falls"),
        (-1.0, -0.5, "rises"),
    ],
)
def test_what_the_loss_did(before: float, after: float, found: str) -> None:
    assert what_happened(before, after) == found


def test_a_prediction_is_revealed_after_fifty_steps() -> None:
    prediction = Prediction(client=1, request=5, guess="falls")
    events = vanishing(250, 10_000)
    history = history_of([event for event in events if getattr(event, "first", 0) < 199])
    assert reveal(prediction, history) == ("You predicted: the loss falls.", None)
    history = history_of(vanishing(201, 150))
    history.interventions[0] = msgspec.structs.replace(history.interventions[0], client=1, request=5)
    text, right = reveal(prediction, history)
    change = loss_change(history, 150, 50)
    assert change is not None
    assert right is True
    assert (
        text == f"You predicted: the loss falls. Right! It fell: from {change[0]:.3g} to {change[1]:.3g} in 50 steps."
    )
    undone = msgspec.structs.replace(history.interventions[0], segment=7)
    history.interventions[0] = undone
    assert reveal(prediction, history) == ("", None)


def test_a_change_before_the_first_step_is_compared_with_the_initial_loss() -> None:
    history = history_of([started(), steps(0, [4.0] + 60 * [1.0])])
    history.interventions.append(turned(0, "1", "0.1", knob="lr", client=1, request=5))
    text, right = reveal(Prediction(client=1, request=5, guess="rises"), history)
    assert text.startswith("You predicted: the loss rises. It fell: from 4 to 1")
    assert right is False


def test_the_hint_of_a_paused_run_says_how_to_go_on() -> None:
    history = history_of(vanishing(100, 10_000))
    history.apply(StateChanged(state="paused"))
    assert next_hint(SCENARIO, history) == "press space, then watch until about step 150, then press r"
    history = history_of(vanishing(200, 10_000))
    history.apply(StateChanged(state="paused"))
    assert next_hint(SCENARIO, history) == "press r, then space"
    history.apply(turned(200, "off", "on"))
    assert next_hint(SCENARIO, history).startswith("press space, then watch what the loss does")


def test_the_hint_at_the_end_names_what_was_not_tried() -> None:
    history = history_of(vanishing(600, 10_000))
    history.apply(StateChanged(state="waiting"))
    assert next_hint(SCENARIO, history) == "restart (R), then press r"
    history.apply(turned(600, "30", "60", knob="pace"))
    assert next_hint(SCENARIO, history) == "restart (R), then press r"
    history.apply(turned(600, "off", "on"))
    assert next_hint(SCENARIO, history) == "press space to see what the change does"
    history.apply(steps(600, [2.0]))
    assert next_hint(SCENARIO, history) == "restart (R), or choose another preset (p)"


def test_a_change_at_the_end_does_not_matter_for_claims_about_the_end() -> None:
    history = history_of(vanishing(600, 10_000))
    history.apply(turned(600, "off", "on"))
    claim = msgspec.structs.replace(SCENARIO.claim[1], at=None)
    (result,) = end_card(msgspec.structs.replace(SCENARIO, claim=(claim,)), history, "vanishing").claims
    assert result.outcome == "held"


def test_the_value_that_a_run_starts_with_is_not_proposed() -> None:
    scenario = presets.find("healthy")[1]
    history = history_of(vanishing(600, 10_000))
    assert any("choose relu" in text for text in end_card(scenario, history, "healthy").next)
    history = history_of([started(scenario={}, knobs=(KnobState(name="activation", value="relu"),)), steps(0, [2.0])])
    assert not any("choose relu" in text for text in end_card(scenario, history, "healthy").next)


def test_what_was_evaluated_at_the_end_belongs_to_that_end() -> None:
    history = history_of(vanishing(60))
    history.apply(EndReached(segment=0, step=60, loss=0.25, accuracy=0.75, position=(1.5,)))
    assert history.end == EndReached(segment=0, step=60, loss=0.25, accuracy=0.75, position=(1.5,))
    assert received(history).end == history.end, "a viewer that joins late"
    card = end_card(SCENARIO, history, "vanishing")
    assert "to 0.25 in 60 steps" in card.happened[0]
    assert card.happened[1] == "On held-out data 75.0% are right."
    history.apply(steps(60, [2.0]))
    assert history.end is None, "the run went on"
