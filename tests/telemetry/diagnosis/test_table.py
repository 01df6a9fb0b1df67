"""The table of findings, the page made from it, and the sentences on one line of the screen."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import get_args

import pytest

from tui_descent.telemetry.diagnosis import ALL_RULES, Advice, Finding, sentence
from tui_descent.telemetry.diagnosis.dynamics import RULES
from tui_descent.telemetry.diagnosis.findings import Name

DOCS = Path(__file__).parents[3] / "docs"


def test_page_is_what_its_script_prints() -> None:
    """`python docs/diagnosis.py > docs/diagnosis.md` regenerates it."""
    assert (DOCS / "diagnosis.md").read_text() == runpy.run_path(str(DOCS / "diagnosis.py"))["page"]()


def test_every_finding_has_one_row() -> None:
    assert [rule.finding for rule in RULES] == list(get_args(Name)) or {r.finding for r in RULES} == {*get_args(Name)}
    assert len({rule.finding for rule in ALL_RULES}) == len(ALL_RULES)
    for rule in ALL_RULES:
        assert all((rule.condition, rule.threshold, rule.sentence, rule.check, rule.helps)), rule.finding


NUMBERS: dict[str, float | str] = {
    "loss": 1234.5678,
    "run_first": 2.302585,
    "first": 2.302585,
    "product": 1.23e-12,
    "first_to_last_grad": 1.23e-12,
    "last": "blocks.19.linear",
    "share": 1.0,
    "kept": 0.123,
    "edge": 1.0,
    "update": 1.23e-7,
    "momentum": 0.9995,
    "memory": 2000.0,
    "arrives": 1.0,
    "largest": "374%",
    "trend": "down 12% in 1,234 steps, now 1.23e+03",
    "gradients": "backprop ×1.2e-02",
}
LONGEST = {
    "vanishing": Advice("residual", "on", "r"),
    "exploding": Advice("norm", "layer,where=mid,way=instant", "n"),
    "dead units": Advice("activation", "leaky_relu", "a"),
    "saturated": Advice("init", "xavier", "i"),
    "weights decaying": Advice("weight_decay", "0", "w"),
    "plateau": Advice("optimizer", "adam", "o"),
    "saddle": Advice("lr", "*10", "]"),
    "diverging": Advice("undo", "1", "u"),
    "rate too large": Advice("lr", "/10", "["),
    "rate too small": Advice("lr", "*1000", "]"),
    "large momentum": Advice("momentum", "0.9", "o"),
}
# Evidence that changes the sentence, and whether it comes with advice.
VARIANTS: dict[str, tuple[dict[str, float | str], bool]] = {
    "rate too large, spoilt": ({"restart": 1.0}, False),
    "rate too large, spoilt by far": ({"restart": 1.0, "largest": "5870%"}, False),
    "rate too large, after a better loss": ({"best": 0.123456}, True),
    "diverging, spoilt": ({"restart": 1.0}, False),
    "weights decaying, in balance": ({"decay": 2.26}, True),
    "rate too small, by schedule": ({"rate": 1.8e-18}, False),
    "saturated, by large weights": ({"why": "large inputs or biases"}, False),
    "vanishing, tried": ({"tried": "r"}, True),
    "not clear, risen": ({"before": 1.23e-7}, False),
}


@pytest.mark.parametrize(
    ("loss", "text"), [(5854.3, "5850"), (998765.0, "999000"), (2.5e6, "2.5e+06"), (541.2, "541"), (2e-7, "2e-07")]
)
def test_thousands_are_written_in_full(loss: float, text: str) -> None:
    said = Finding(finding="diverging", sure=0.9, evidence={"first": 2.6, "loss": loss})
    assert sentence(said) == f"Loss rose from 2.6 to {text}."


@pytest.mark.parametrize("name", get_args(Name))
def test_sentence_has_its_numbers_and_fits_in_eighty_columns(name: str) -> None:
    advice = (LONGEST[name],) if name in LONGEST else ()
    for layer in ("blocks.7.linear", None):
        for left_out in ((), ("first_to_last_grad",), ("largest",), ("arrives",)):
            evidence = {key: value for key, value in NUMBERS.items() if key not in left_out}
            text = sentence(Finding(finding=name, sure=0.5, layer=layer, evidence=evidence, advice=advice))
            assert "nan" not in text
            assert "{" not in text
            assert text.endswith(".")
            assert len(f" {name}{'' if name == 'not clear' else '?'}  {text}") <= 80, text


@pytest.mark.parametrize("case", VARIANTS)
def test_other_sentences_of_a_finding_fit_in_eighty_columns(case: str) -> None:
    name, (evidence, with_advice) = case.partition(",")[0], VARIANTS[case]
    advice = (LONGEST[name],) if with_advice else ()
    text = sentence(Finding(finding=name, sure=0.5, layer="blocks.7", evidence=NUMBERS | evidence, advice=advice))
    assert text != sentence(Finding(finding=name, sure=0.5, layer="blocks.7", evidence=NUMBERS, advice=advice))
    assert "nan" not in text
    assert len(f" {name}{'' if name == 'not clear' else '?'}  {text}") <= 80, text
