"""The picture of the digits: images, guesses and confusions are those of the held-out data."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tui_descent.protocol import codec
from tui_descent.protocol.task_pictures import MAX_CONFUSIONS, MAX_DIGITS, NO_GUESS, Confusion
from tui_descent.scenario import presets
from tui_descent.training.probes.evaluation import evaluate
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.task_pictures.digits import DigitsPainter, confusions


def made(*overrides: str) -> Setup:
    _, scenario = presets.find("healthy", overrides=["model.depth=1", "model.width=12", *overrides])
    return build(scenario, on=torch.device("cpu"))


def trained(setup: Setup, steps: int = 20) -> Setup:
    for _ in range(steps):
        loss = setup.loss()
        setup.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        setup.optimizer.step()
    return setup


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_guesses_are_those_of_the_net(loss: str) -> None:
    setup = trained(made(f"loss.name={loss}", "model.dropout=0.3"))
    assert setup.batches is not None
    data = setup.batches.data
    picture = DigitsPainter(setup).picture(70, 16)
    assert setup.model.training
    assert picture.right / picture.count == pytest.approx(evaluate(setup)[1])
    setup.model.eval()
    with torch.no_grad():
        outputs = setup.model(data.held_out_x)
    guesses = outputs.argmax(dim=1)
    assert list(picture.guesses) == guesses[:MAX_DIGITS].tolist()
    assert list(picture.digits) == data.held_out_y[:MAX_DIGITS].tolist()
    chances = outputs.softmax(dim=1) if loss == "cross_entropy" else outputs.clamp(0, 1)
    assert list(picture.sureness) == pytest.approx((255 * chances.amax(dim=1)[:MAX_DIGITS]).tolist(), abs=0.51)
    wrong = Counter(zip(data.held_out_y.tolist(), guesses.tolist(), strict=True))
    counts = sorted((n for (true, guess), n in wrong.items() if true != guess), reverse=True)
    assert [pair.count for pair in picture.confusions] == counts[:MAX_CONFUSIONS]
    assert all(wrong[pair.true, pair.guess] == pair.count for pair in picture.confusions)


def test_pixels_are_those_of_the_images() -> None:
    setup = made()
    assert setup.batches is not None
    pixels = torch.tensor(list(DigitsPainter(setup).picture(70, 16).pixels)).view(MAX_DIGITS, 64).double()
    assert 0 == pixels.min() < pixels.max() == 16
    x = setup.batches.data.held_out_x[:MAX_DIGITS].double()
    # Normalised, each pixel is a linear function of its value.
    for n in range(64):
        if pixels[:, n].unique().numel() > 2:
            assert torch.corrcoef(torch.stack([pixels[:, n], x[:, n]]))[0, 1] > 1 - 1e-9


def test_confusions_are_ordered_and_without_the_right_ones() -> None:
    true = torch.tensor([1, 1, 1, 2, 2, 3, 3, 3, 3])
    guesses = torch.tensor([7, 7, 1, 3, 3, 8, 8, 8, 3])
    assert confusions(true, guesses) == (Confusion(3, 8, 3), Confusion(1, 7, 2), Confusion(2, 3, 2))
    assert confusions(true, true) == ()
    assert confusions(true[:0], true[:0]) == ()


def test_a_net_with_nan_weights_guesses_nothing() -> None:
    setup = made()
    with torch.no_grad():
        next(setup.model.parameters()).fill_(torch.nan)
    picture = DigitsPainter(setup).picture(70, 16)
    assert set(picture.guesses) == {NO_GUESS}
    assert (picture.right, picture.confusions, set(picture.sureness)) == (0, (), {0})


def test_the_picture_is_small() -> None:
    assert len(codec.encode(DigitsPainter(made()).picture(10**9, 10**9))) < 8 * 1024
