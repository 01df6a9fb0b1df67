"""NaN and infinity as findings: the name, the sentence, and advice that the run would accept now."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tui_descent.protocol.events import NotFinite
from tui_descent.telemetry.diagnosis import sentence
from tui_descent.telemetry.diagnosis.numerics import DROP, SLOWER, UNDO, numerics_finding

ALL = frozenset({"undo", "lr"})


def event(**changed: Any) -> NotFinite:
    values: dict[str, Any] = {
        "segment": 0,
        "step": 200,
        "what": "gradient",
        "layer": None,
        "text": "",
        "value": "nan",
        "loss": 0.067,
        "weights_finite": True,
        "then": "hold",
    }
    return NotFinite(**values | changed)


SQRT = {"cause": "loss function", "operation": "sqrt", "where": "sqrt at 0 in the loss function?"}
BATCH = {"cause": "batch", "where": "the batch has nan in sample 3"}
OVERFLOW = {"cause": "forward", "operation": "matmul", "where": "matmul overflows in blocks.3", "layer": "blocks.3"}
WEIGHT = {"cause": "weights", "where": "the weight of layer 0 is nan", "weights_finite": False}


@pytest.mark.parametrize("rising", [False, True])
@pytest.mark.parametrize(
    ("changed", "can_diverge"),
    [(SQRT, False), (BATCH, False), (OVERFLOW, True), (WEIGHT, True), ({}, True)],
    ids=["sqrt", "batch", "overflow", "weight", "unknown"],
)
def test_only_numbers_that_grew_too_large_have_diverged(changed: Any, can_diverge: bool, rising: bool) -> None:
    found = numerics_finding(event(**changed), available=ALL, user_loop=True, rising=rising)
    assert found.finding == ("diverged" if rising and can_diverge else "non-finite")
    assert (found.kind, found.sure) == ("numerics", 1.0)


def test_an_update_larger_than_the_weights_has_diverged_too() -> None:
    found = numerics_finding(event(), available=ALL, large_updates=True)
    assert found.finding == "diverged"
    assert "after too large an update" in sentence(found)


def test_first_advice_loses_least() -> None:
    assert numerics_finding(event(**SQRT), available=ALL).advice == (DROP, UNDO)
    assert numerics_finding(event(**BATCH), available=frozenset()).advice == (DROP,)
    assert numerics_finding(event(**WEIGHT), available=ALL).advice == (UNDO,), "a dropped batch does not help weights"
    assert numerics_finding(event(**OVERFLOW), available=ALL, rising=True).advice == (UNDO, SLOWER)
    assert numerics_finding(event(**OVERFLOW), available=ALL).advice == (UNDO,), "the next batch overflows too"
    half = OVERFLOW | {"where": "matmul overflows in float16 in blocks.3"}
    assert numerics_finding(event(**half), available=ALL).advice == (DROP, UNDO)


@pytest.mark.parametrize("changed", [SQRT, BATCH, OVERFLOW, WEIGHT], ids=["sqrt", "batch", "overflow", "weight"])
@pytest.mark.parametrize("rising", [False, True])
def test_only_keys_that_act_now_are_advised(changed: Any, rising: bool) -> None:
    ended = numerics_finding(event(**changed, then="end"), available=ALL, rising=rising)
    assert ended.advice == (), "the run is over"
    without = numerics_finding(event(**changed), available=frozenset({"lr"}), rising=rising)
    assert all(advice == DROP for advice in without.advice), "a smaller rate does not mend what is already too large"
    goes_on = numerics_finding(event(**changed, then="note"), available=ALL, rising=rising)
    assert DROP not in goes_on.advice, "its update has been made"
    assert (UNDO in goes_on.advice) == (changed is WEIGHT)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (SQRT, "Gradient nan: sqrt at 0 in the loss function? (step 200)."),
        ({"what": "loss", "loss": float("inf"), "value": "inf"}, "Loss inf (step 200)."),
        (BATCH, "Gradient nan: the batch has nan in sample 3 (step 200)."),
        (WEIGHT, "Gradient nan: the weight of layer 0 is nan (step 200)."),
    ],
    ids=["sqrt", "unknown", "batch", "weight"],
)
def test_sentence_says_what_came_first_and_from_where(changed: Any, text: str) -> None:
    found = numerics_finding(event(**changed), available=ALL)
    assert sentence(msgspec.structs.replace(found, advice=())) == text
    assert len(f" non-finite  {text}") <= 80


def test_evidence_has_the_numbers_of_the_event() -> None:
    evidence = numerics_finding(event(**SQRT), available=ALL).evidence
    expected = {"step": 200.0, "what": "gradient", "value": "nan", "loss": 0.067, "weights": "finite"}
    assert {key: evidence[key] for key in expected} == expected
    assert (evidence["cause"], evidence["operation"]) == ("loss function", "sqrt")
