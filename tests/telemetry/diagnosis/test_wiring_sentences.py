"""Each fact about the wiring has a sentence that is true, complete and short, and advice that a run would accept."""

from __future__ import annotations

import re

import pytest

from tui_descent.protocol.events import Advice, WiringFound
from tui_descent.scenario.knob_table import KNOBS
from tui_descent.telemetry.diagnosis.table import sentence
from tui_descent.telemetry.diagnosis.wiring import QUESTION_SURE, RULES, wiring_finding, words

ALL_KNOBS = frozenset(KNOBS)
LONG = "model.encoder.layers.11.self_attention.out_proj"

CASES: list[tuple[WiringFound, str]] = []


def case(text: str, fault: str, layer: str | None = None, **evidence: float | str) -> None:
    CASES.append((WiringFound(segment=0, step=3, fault=fault, layer=layer, evidence=evidence), text))


case("20 losses; the watched Adam made no step.", "no optimizer step", losses=20.0, optimizer="Adam")
case(
    "40 losses; the watched SGD made no step, another Adam did.",
    "no optimizer step", losses=40.0, optimizer="SGD", other="Adam", shares=1.0,
)  # fmt: skip
case("The gradients of the last 20 steps were not finite.", "every update skipped", steps=20.0)
case(
    "Optimizer lacks all 3 layers; has another net's tensors.",
    "foreign parameters", "0", absent=3.0, layers=3.0, foreign=6.0,
)  # fmt: skip
case(
    "Optimizer lacks head; has another net's tensors.",
    "foreign parameters", "head", absent=1.0, layers=3.0, foreign=1.0,
)  # fmt: skip
case(
    "Optimizer lacks 12 of 24 layers; has another net's tensors.",
    "foreign parameters", "0", absent=12.0, layers=24.0, foreign=24.0,
)  # fmt: skip
case("Optimizer lacks …ention.out_proj.", "foreign parameters", LONG, absent=1.0, layers=3.0, foreign=2.0)
case(
    "No watched optimizer holds layer 4: no updates.",
    "untrained parameters", "4", absent=1.0, layers=3.0, foreign=0.0,
)  # fmt: skip
case(
    "No watched optimizer holds 2 of 3 layers: no updates.",
    "untrained parameters", "4", absent=2.0, layers=3.0, foreign=0.0,
)  # fmt: skip
case("nll_loss gives -0.629: pass it log-probabilities.", "no log-softmax", loss=-0.629)
case("No weight of optimizer g gets a gradient: is it detached?", "no gradient", updates=5.0, optimizer="g")
case(
    "The loss has no graph: argmax, item() or detach() before it?", "no gradient", updates=1.0, no_graph=1.0,
)  # fmt: skip
case("The loss's graph does not reach the net: detach() or item()?", "no gradient", updates=3.0, not_reached=1.0)
case(
    "hidden is a plain list of 6 layers: use nn.ModuleList.",
    "unregistered", "hidden", container="list", count=6.0, layers=1.0,
)  # fmt: skip
case(
    "…coder.layers.11 is a plain list: use nn.ParameterList.",
    "unregistered", "model.encoder.layers.11", container="list", count=12.0, layers=0.0,
)  # fmt: skip
case(
    "w is a plain tuple of 1 parameter: use nn.ParameterList.",
    "unregistered", "w", container="tuple", count=1.0, layers=0.0,
)  # fmt: skip
case("The last relu gives 0 for all samples: targets below 0? Drop it.", "zero output", gets="relu")
case("The last clamp gives 0 for all samples: targets below 0? Drop it.", "zero output", gets="clamp")
case("No parameter has a gradient when the optimizer makes its step.", "no gradient", updates=3.0)
case("Weights of fc1 start at 0: its units learn the same.", "equal weights", "fc1", start="at 0", layers=2.0)
case("Weights of fc1 start equal: its units learn the same.", "equal weights", "fc1", start="equal", layers=1.0)
case("No gradient in a; b gets one. Intended?", "gradient cut", "a", after="b", without=1.0)
case("No gradient in b and before; c gets one. Intended?", "gradient cut", "b", after="c", without=2.0)
case(
    "No gradient up to …coder.layers.11; …coder.layers.12 gets one.",
    "gradient cut", LONG, after=LONG.replace("11", "12"), without=10.0,
)  # fmt: skip
case(
    "The learning rate has been 0 for 10 updates: set it in the script.",
    "rate zero", updates=10.0, layers=3.0, of=3.0,
)  # fmt: skip
case(
    "The learning rate of 1 of 3 layers has been 0 for 10 updates.", "rate zero", "0", updates=10.0, layers=1.0, of=3.0
)
case(
    "Gradients arrive, but updates change nothing: lr 1e-20 in bfloat16.",
    "no update", rate=1e-20, dtype="bfloat16", gradient=0.3,
)  # fmt: skip
case(
    "The rate fell from 0.00025 to 4.7e-13: updates change nothing.",
    "no update", rate=4.7e-13, dtype="float32", gradient=0.3, fell_from=2.5e-4,
)  # fmt: skip
case("Nothing changes at lr 2e-12 in bfloat16.", "no update", rate=2.04e-12, dtype="bfloat16", gradient=0.3)
case("Each update of layer 0 is taken back before the next one.", "no update", "0", left=0.001)
case("Gradients add up over the steps: is zero_grad() called?", "gradients not cleared", "4", updates=3.0)
case(
    "cross_entropy gets softmax outputs; it applies softmax itself.",
    "softmax twice", takes="cross_entropy", gets="softmax",
)  # fmt: skip
case("cross_entropy gets sigmoid outputs; it takes logits.", "softmax twice", takes="cross_entropy", gets="sigmoid")
case(
    "bce_with_logits gets sigmoid outputs; it applies sigmoid itself.",
    "softmax twice", takes="bce_with_logits", gets="sigmoid",
)  # fmt: skip
case("bce_with_logits gets softmax outputs; it takes logits.", "softmax twice", takes="bce_with_logits", gets="softmax")
case("nll_loss gets softmax outputs; it takes log-probabilities.", "softmax twice", takes="nll_loss", gets="softmax")
case(
    "The net ends in a softmax. Does the loss apply it too?",
    "softmax twice", gets="softmax", loss=2.3, lowest=1.46, question=1.0,
)  # fmt: skip
case("Layer 1, a batch norm, gets a batch of one sample.", "batch norm of one sample", "1", norms=1.0)
case("The inputs of conv1 have rms 147: normalise them.", "input scale", "conv1", rms=146.66)
case("The inputs of …ention.out_proj have rms 7.07e-07: normalise them.", "input scale", LONG, rms=7.07e-7)
case(
    "Outputs (64, 1) and targets (64) are broadcast: reshape one.",
    "all pairs", samples=64.0, loss="mse", outputs="(64, 1)", targets="(64)",
)  # fmt: skip
case("The targets have an rms of about 2.4e+05: normalise them.", "target scale", rms=243981.6, outputs=0.7)
case("The targets have an rms below 0.01: normalise them?", "target scale", rms=1e-3, outputs=1e-3, question=1.0)
case("enc trains in eval mode: call train() after validation.", "eval mode", "enc", dropouts=0.0, norms=5.0)
case("The net trains in eval mode: call train() after validation.", "eval mode", dropouts=2.0, norms=0.0)
case("The net trains in eval mode. Is that meant?", "eval mode", dropouts=0.0, norms=5.0, question=1.0)
case("Gradients are cut to 2e-04 of their size: clip limit too low?", "gradients cut", left=0.000155)
case("All inputs of layer 0 are 0: check the data and masks.", "input scale", "0", rms=0.0)
case("The net's output is the same for all 16 samples.", "constant output", std=0.0, rms=0.1, samples=16.0)
case(
    "14 of 14 layers are frozen, biases train.",
    "frozen layers", "0", frozen=14.0, layers=14.0, in_optimizer=14.0, biases=1.0,
)  # fmt: skip
case("1 of 3 layers is frozen.", "frozen layers", "0", frozen=1.0, layers=3.0, in_optimizer=0.0)
case("2 of 3 layers are frozen.", "frozen layers", "0", frozen=2.0, layers=3.0, in_optimizer=2.0)


@pytest.mark.parametrize(("event", "text"), CASES, ids=[text[:30] for _, text in CASES])
def test_sentence_of_a_fact(event: WiringFound, text: str) -> None:
    finding = wiring_finding(event, ALL_KNOBS, True)
    assert words(finding) == text
    assert len(f" {finding.finding}  {sentence(finding)}") <= 80
    assert (finding.finding, finding.kind, finding.layer) == (event.fault, "wiring", event.layer)
    assert finding.evidence == event.evidence
    assert finding.sure == (QUESTION_SURE if "question" in event.evidence else 1.0)


def test_every_row_has_a_case_and_all_its_texts() -> None:
    assert {event.fault for event, _ in CASES} == {rule.finding for rule in RULES}
    for rule in RULES:
        assert rule.kind == "wiring"
        texts = (rule.condition, rule.threshold, rule.sentence, rule.check, rule.helps)
        assert all(texts), rule.finding
        assert re.search(r"[.:?]", rule.sentence), rule.finding


ADVICE: dict[str, tuple[bool, WiringFound, tuple[Advice, ...]]] = {
    "frozen layers that are in the optimizer": (True, CASES[-1][0], (Advice("freeze", "off", "x"),)),
    "frozen layers that are not": (
        True,
        WiringFound(
            segment=0, step=0, fault="frozen layers", evidence={"frozen": 1.0, "layers": 2.0, "in_optimizer": 0.0}
        ),
        (),
    ),
    "a rate of 0 in a user's loop": (True, next(e for e, _ in CASES if e.fault == "rate zero"), ()),
    "a rate of 0 in a scenario run": (
        False,
        next(e for e, _ in CASES if e.fault == "rate zero"),
        (Advice("schedule", "constant", "s"),),
    ),
    "a rate of 0 in one group": (False, next(e for e, _ in CASES if e.fault == "rate zero" and e.layer), ()),
    "a schedule that made the rate tiny, in a user's loop": (
        True,
        next(e for e, _ in CASES if "fell_from" in e.evidence),
        (),
    ),
    "a schedule that made the rate tiny, in a scenario run": (
        False,
        next(e for e, _ in CASES if "fell_from" in e.evidence),
        (Advice("schedule", "constant", "s"),),
    ),
    "updates rounded away": (
        True,
        next(e for e, text in CASES if text.startswith("Nothing changes")),
        (Advice("lr", "*1000", "]"),),
    ),
}


@pytest.mark.parametrize("name", ADVICE)
def test_advice_is_what_the_run_would_accept(name: str) -> None:
    user_loop, event, advice = ADVICE[name]
    assert wiring_finding(event, ALL_KNOBS, user_loop).advice == advice
    assert wiring_finding(event, frozenset(), user_loop).advice == ()


@pytest.mark.parametrize(("event", "text"), CASES, ids=[text[:30] for _, text in CASES])
def test_no_advice_where_only_the_script_can_help(event: WiringFound, text: str) -> None:
    advised = {a.knob for a in wiring_finding(event, ALL_KNOBS, True).advice}
    if event.evidence.get("in_optimizer"):
        assert advised == {"freeze"}
    else:
        assert advised == ({"lr"} if text.startswith("Nothing changes") else set())
