"""The rates of several optimizers and parameter groups on screen."""

from __future__ import annotations

import pytest
from factories import started, steps

from tui_descent.dashboard.dialogs.number import _scaled_rates
from tui_descent.dashboard.panels.knob_line import knob_line
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import KnobState, RatesChanged, StateChanged
from tui_descent.scenario.optimizers import all_rates_text
from tui_descent.telemetry.history import History

CASES = {
    "two groups": ({"": [0.003, 0.001]}, "2 groups 0.003 / 0.001", "0.003/0.001"),
    "equal groups": ({"": [0.1, 0.1]}, "0.1", "0.1"),
    "three groups": ({"": [0.01, 0.001, 0.0001]}, "3 groups 0.01 / 0.001 / 0.0001", "0.01 +2"),
    "many groups": ({"": [0.01 * 0.5**n for n in range(12)]}, "12 groups 0.01 (4.88e-06 to 0.01)", "0.01 +11"),
    "two optimizers": ({"g": [2e-4], "d": [4e-4]}, "g 0.0002, d 0.0004", "0.0002/0.0004"),
    "one without a rate": ({"g": [2e-4], "d": []}, "g 0.0002, d its own", "0.0002"),
    "two optimizers with groups": ({"0": [1.0, 0.5], "1": [0.1]}, "0 1 / 0.5, 1 0.1", "1/0.5/0.1"),
}


def history_with(rates: dict[str, list[float]]) -> History:
    history = History()
    knobs = (KnobState(name="lr", value="0.1"), KnobState(name="pace", value="max"))
    for event in (started(knobs=knobs), StateChanged(state="running"), steps(0, [1.0] * 5)):
        history.apply(event)
    history.apply(RatesChanged(segment=0, step=5, rates=rates))
    return history


@pytest.mark.parametrize("name", CASES)
def test_footer_shows_all_rates_or_the_first_and_how_many_others(name: str) -> None:
    rates, text, short = CASES[name]
    view = View(history=history_with(rates), connected=True)
    assert all_rates_text(rates) == text
    assert f" rate {text}  " in knob_line(view, 200).to_strip(200).text
    narrow = knob_line(view, 60).to_strip(60).text
    assert f" {short}  " in narrow or f" {text}  " in narrow


@pytest.mark.parametrize("name", CASES)
def test_viewer_that_comes_later_knows_the_rates(name: str) -> None:
    rates, _, _ = CASES[name]
    sent = history_with(rates).send()
    assert History.receive(sent).rates == RatesChanged(segment=0, step=5, rates=rates)


@pytest.mark.parametrize(
    ("rates", "text", "result"),
    [
        ({"": [0.003, 0.001]}, "0.01", "sets 2 groups 0.01 / 0.00333"),
        ({"": [0.0, 0.001]}, "*3", "sets 2 groups 0 / 0.003"),
        ({"g": [2e-4], "d": [4e-4]}, "/2", "sets g 0.0001, d 0.0002"),
    ],
)
def test_dialog_says_what_a_typed_rate_sets(rates: dict[str, list[float]], text: str, result: str) -> None:
    assert _scaled_rates(rates, text) == result


@pytest.mark.parametrize("width", [60, 80, 120])
def test_optimizer_without_a_rate_has_its_own(width: int) -> None:
    history = History()
    reason = "Adafactor has no lr in its groups: it sets its own rate"
    history.apply(started(knobs=(KnobState(name="lr", unavailable=reason),)))
    assert " rate its own  " in knob_line(View(history=history, connected=True), width).to_strip(width).text
