"""What the presets' stories promise besides their claims: keys that help, and keys that do not."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tui_descent import verify
from tui_descent.scenario import presets
from tui_descent.scenario.spec import Claim

# Preset, the interventions, and what has to hold then.
PROMISES: list[tuple[str, tuple[str, ...], Claim]] = [
    ("first-descent", ("3:lr=0.125",), Claim(metric="loss", at=4, equals=0.0)),
    ("first-descent", ("3:lr=0.2",), Claim(metric="loss", at=9, below=1e-6)),
    ("first-descent", ("3:lr=0.25",), Claim(metric="loss", equals=6.4e-5, within=1e-12)),
    ("first-descent", ("3:lr=0.3",), Claim(metric="loss", above=6.4e-5 * 100)),
    ("healthy", ("200:activation=sigmoid",), Claim(metric="loss_mean", at=310, above=1.9)),
    ("healthy", ("200:lr=0.1",), Claim(metric="loss_mean", at=220, above=2.3)),
    ("vanishing", ("150:norm=layer",), Claim(metric="accuracy", above=0.9)),
    ("vanishing", ("150:optimizer=adam",), Claim(metric="loss_mean", at=600, above=2.25)),
    ("vanishing", ("150:init=xavier",), Claim(metric="loss_mean", at=600, above=2.25)),
    ("exploding", ("150:norm=layer,where=mid,way=calibrated",), Claim(metric="loss_mean", at=600, above=500)),
    ("dead-relu", ("100:activation=silu",), Claim(metric="loss_ratio", at=170, below=0.5)),
    ("dead-relu", ("100:activation=gelu",), Claim(metric="loss_ratio", at=280, below=0.5)),
    ("plateau", ("150:init=xavier",), Claim(metric="loss_mean", at=180, below=1.8)),
    ("too-hot", ("0:lr=/10",), Claim(metric="accuracy", above=0.93)),
]


def check(name: str, given: tuple[str, ...], claim: Claim) -> None:
    claim = msgspec.structs.replace(claim, given=given)
    (verdict,) = verify.verdicts(name, presets.find(name)[1], [claim])
    assert verdict.holds, str(verdict)


def test_the_first_story_is_true(home: Path) -> None:
    check(*PROMISES[0])


@pytest.mark.heavy
@pytest.mark.parametrize(("name", "given", "claim"), PROMISES[1:], ids=lambda value: str(value)[:40])
def test_a_story_is_true(home: Path, name: str, given: tuple[str, ...], claim: Claim) -> None:
    check(name, given, claim)


@pytest.mark.heavy
def test_a_transformer_without_residual_connections_is_not_cured_by_a_norm(home: Path) -> None:
    check("transformer", ("150:norm=layer",), Claim(metric="loss_mean", at=400, above=3.15))
