"""The answers of docs/lessons.md: the numbers in them are those of runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tui_descent.scenario import presets
from tui_descent.scenario.spec import Claim
from tui_descent.verify import verdicts

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "lessons.md").read_text(encoding="utf-8")
ANSWERS = re.sub(r"\s+", " ", TEXT.partition("\n## Answers\n")[2])


class Answer(NamedTuple):
    """A phrase of the answers, and what it says as claims about a preset."""

    phrase: str
    preset: str
    claims: tuple[Claim, ...]


def loss(at: int | None, value: float, within: float, *given: str, mean: bool = False, **more: object) -> Claim:
    metric = "loss_mean" if mean else "loss"
    return Claim(metric=metric, at=at, equals=value, within=within, given=given, **more)  # type: ignore[arg-type]


def accuracy(value: float, *given: str, at: int | None = None, overrides: tuple[str, ...] = ()) -> Claim:
    return Claim(metric="accuracy", at=at, equals=value, within=0.04, given=given, overrides=overrides)


STUCK = ("model.start=[1.0, 0.0]",)
WIDE = "model.width=128"

CHEAP = (
    Answer(
        "after ten steps both are at 0.0000366",
        "first-descent",
        (loss(None, 3.66e-5, 1e-7, "0:lr=0.05"), loss(None, 3.66e-5, 1e-7, "0:lr=0.2")),
    ),
    Answer("1 / curvature = 0.125", "rate-at-the-limit", (loss(21, 0.0, 1e-12, "20:lr=0.125"),)),
    Answer(
        "7.4 at step 300",
        "narrow-valley",
        (loss(300, 7.4, 0.05, "200:lr=0.0201"),),
    ),
    Answer(
        "the loss is 48 at step 400, 351 at step 500, and about 19,000 at the end",
        "narrow-valley",
        (
            loss(400, 48, 0.5, "200:lr=0.0201"),
            loss(500, 351, 1.0, "200:lr=0.0201"),
            loss(None, 19000, 500, "200:lr=0.0201"),
        ),
    ),
    Answer(
        "The loss grows from 0.001 to 4.3 in seven steps",
        "catapult",
        (
            loss(0, 0.001, 1e-5),
            Claim(metric="loss_max", at=10, equals=4.3, within=0.05),
            Claim(metric="sharpness", at=0, equals=10.3, within=0.05),
            Claim(metric="sharpness", at=50, equals=0.42, within=0.02),
            Claim(metric="sharpness", at=50, equals=10.3, within=0.05, overrides=("optimizer.lr=0.17",)),
            Claim(metric="status", equals="diverged", overrides=("optimizer.lr=0.44",)),
            Claim(metric="steps", equals=11, within=0.1, overrides=("optimizer.lr=0.44",)),
        ),
    ),
    Answer(
        "measured are 0.00006",
        "chain-rule",
        (
            Claim(metric="chain_product", at=0, equals=0.00006, within=5e-6, overrides=("model.depth=8",)),
            Claim(metric="chain_product", at=0, equals=0.006, within=5e-4),
        ),
    ),
    Answer(
        "Neither SGD nor Adam",
        "saddle",
        (
            loss(None, 0.0, 1e-9, overrides=STUCK),
            loss(None, 0.0, 1e-9, overrides=(*STUCK, "optimizer.name=adam")),
        ),
    ),
    Answer(
        "half way down at step 228",
        "saddle",
        (
            Claim(metric="loss", at=227, above=-0.5, given=("0:kick=0.01",), overrides=STUCK),
            Claim(metric="loss", at=228, below=-0.5, given=("0:kick=0.01",), overrides=STUCK),
        ),
    ),
)
LONG = (
    Answer("at the end 97 % of the held-out digits are right, as with ReLU", "healthy", (
        accuracy(0.97, "250:activation=tanh"), accuracy(0.97),
        loss(350, 0.2, 0.1, "250:activation=tanh", mean=True),
    )),
    Answer("only 8 % of the held-out digits are right", "rate-too-small", (accuracy(0.08, "100:lr=*10000"),)),
    Answer(
        "With five, η = 10: at step 104 the loss is NaN",
        "rate-too-small",
        (Claim(metric="status", equals="diverged", given=("100:lr=*100000",)),),
    ),
    Answer("With `]` three times 97 % are right", "too-cold", (accuracy(0.97, "100:lr=*1000"),)),
    Answer("After 160 steps the curvature is about 0.1", "warmup", (
        Claim(metric="sharpness", at=0, above=90),
        Claim(metric="sharpness", at=160, equals=0.12, within=0.05, given=("0:schedule=warmup_cosine",)),
    )),
    Answer("19,000 and 9,500", "adam-edge", (
        Claim(metric="stability_limit", at=800, equals=19000, within=1),
        Claim(metric="stability_limit", at=1200, equals=9500, within=1, given=("900:lr=0.004",)),
        Claim(metric="edge", at=1200, equals=1, within=0.05, given=("900:lr=0.004",)),
    )),
    Answer("65.6 %", "cross-entropy", (
        accuracy(0.656, at=100, overrides=("loss.name=mse",)), accuracy(0.96, at=100),
    )),
    Answer("the loss stays at 2.31", "vanishing", (loss(None, 2.31, 0.03, "150:optimizer=adam", mean=True),)),
    Answer("0.55 at step 300, and 97 % of the held-out digits", "vanishing", (
        loss(300, 0.55, 0.1, "150:norm=layer", mean=True), accuracy(0.97, "150:norm=layer"),
    )),
    Answer("the loss is 0.09 after 200 steps. With 0.25 it is in the thousands", "careful-init", (
        loss(200, 0.09, 0.04, mean=True, overrides=(WIDE, "model.init={ name = 'normal', std = 0.125 }")),
        Claim(metric="loss_mean", at=200, above=1000, overrides=(WIDE, "model.init={ name = 'normal', std = 0.25 }")),
    )),
    Answer("The loss at step 250 is 290", "layer-norm", (
        loss(250, 290, 60, "100:norm=layer,where=mid,way=calibrated", mean=True),
        loss(250, 0.8, 0.2, "100:norm=layer,where=mid,way=instant", mean=True),
    )),
    Answer("0.44 and 92 % of the held-out digits", "hundred-layers", (
        loss(120, 0.44, 0.15, "20:residual=on", mean=True),
        accuracy(0.92, "20:residual=on", overrides=("run.steps=120",)),
        loss(120, 3.0, 0.3, "20:norm=layer,where=pre,way=instant", mean=True),
        loss(120, 0.17, 0.08, "20:residual=on", "50:norm=layer,where=pre,way=instant", mean=True),
        accuracy(0.97, "20:residual=on", "50:norm=layer,where=pre,way=instant", overrides=("run.steps=120",)),
    )),
    Answer("at the end 95 % of the held-out digits are right", "activations", (
        accuracy(0.95, "200:activation=sigmoid", "350:residual=on"),
    )),
    Answer("At step 150 the loss is 0.12", "dead-relu", (
        loss(150, 0.12, 0.05, "100:init=he", mean=True),
        Claim(metric="loss_mean", at=400, above=2.29, given=("100:lr=*10",)),
    )),
    Answer("At step 250 the loss is 0.0005 instead of 0.09", "saddles-not-minima", (
        loss(250, 0.0005, 0.00005, "0:lr=*2"), loss(250, 0.09, 0.005),
    )),
    Answer("at the end the loss is 3.25, and 24 % of the next characters are right", "transformer", (
        loss(None, 3.25, 0.05, "150:norm=layer", mean=True), accuracy(0.24, "150:norm=layer"), accuracy(0.24),
        loss(None, 2.67, 0.1, "150:residual=on", mean=True), accuracy(0.38, "150:residual=on"),
    )),
)  # fmt: skip


@pytest.mark.parametrize("answer", CHEAP, ids=lambda answer: answer.phrase)
def test_numbers_that_are_cheap(answer: Answer) -> None:
    _check(answer)


@pytest.mark.heavy
@pytest.mark.parametrize("answer", LONG, ids=lambda answer: answer.phrase)
def test_numbers_of_longer_runs(answer: Answer) -> None:
    _check(answer)


def _check(answer: Answer) -> None:
    assert answer.phrase in ANSWERS
    _, scenario = presets.find(answer.preset)
    assert [str(verdict) for verdict in verdicts(answer.preset, scenario, answer.claims) if not verdict.holds] == []


def test_every_phrase_is_in_the_answers() -> None:
    assert [answer.phrase for answer in CHEAP + LONG if answer.phrase not in ANSWERS] == []
