"""The pictures of a modular addition and of rare classes agree with the net's own outputs on the data."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from own_data_files import idx, write_images
from small_scenario import SMALL, make

from tui_descent.protocol.task_pictures import AdditionPicture, ClassesPicture, DigitsPicture
from tui_descent.training.probes.evaluation import evaluate
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.task_pictures.digits import shrunk
from tui_descent.training.task_pictures.painters import painter_of


def trained(text: str, *overrides: str, steps: int = 60) -> Setup:
    overrides = ("model.depth=1", "optimizer.name=adam", "optimizer.lr=0.01", "data.full=true", *overrides)
    setup = build(make(text, *overrides), on=torch.device("cpu"))
    for _ in range(steps):
        setup.optimizer.zero_grad()
        setup.loss().backward()  # type: ignore[no-untyped-call]
        setup.optimizer.step()
    return setup


def test_the_table_says_for_each_pair_whether_the_net_is_right() -> None:
    setup = trained(SMALL.replace("digits", "modular-addition"), "data.modulus=7", "model.dropout=0.2")
    picture = painter_of(setup).picture(70, 16)
    assert isinstance(picture, AdditionPicture)
    assert (picture.modulus, picture.trained, picture.held_out) == (7, 24, 25)
    assert picture.trained_right > 20
    assert picture.held_out_right / picture.held_out == pytest.approx(evaluate(setup)[1])
    assert setup.batches is not None
    held_out = {tuple(row.nonzero().flatten().tolist()) for row in setup.batches.data.held_out_x}
    setup.model.eval()
    for a in range(7):
        for b in range(7):
            x = torch.zeros(1, 14)
            x[0, a] = x[0, 7 + b] = 1
            right = setup.model(x).argmax().item() == (a + b) % 7
            assert picture.cells[7 * a + b] == ((a, 7 + b) in held_out) + 2 * right


def test_loss_and_accuracy_of_each_size_of_class_make_up_the_whole() -> None:
    setup = trained(SMALL.replace("digits", "rare-classes"), "data.groups=4", steps=12)
    picture = painter_of(setup).picture(70, 16)
    assert isinstance(picture, ClassesPicture)
    assert [(g.classes, g.samples) for g in picture.groups] == [(1, 8), (2, 4), (4, 2), (8, 1)]
    assert picture.guess == pytest.approx(math.log(15))
    mean = sum(g.classes * g.samples * g.loss for g in picture.groups) / 32
    assert mean == pytest.approx(setup.loss().item(), rel=1e-5)
    assert picture.groups[0].loss < picture.groups[-1].loss
    right = sum(g.classes * g.right for g in picture.groups) / 15
    assert right == pytest.approx(evaluate(setup)[1])


def test_balanced_classes_are_one_group() -> None:
    setup = trained(SMALL.replace("digits", "rare-classes"), "data.groups=4", "data.balanced=true", steps=1)
    picture = painter_of(setup).picture(70, 16)
    assert isinstance(picture, ClassesPicture)
    assert [(g.classes, g.samples) for g in picture.groups] == [(15, 2)]


def test_outputs_that_are_not_finite_are_not_right() -> None:
    for data in ("modular-addition", "rare-classes"):
        setup = trained(SMALL.replace("digits", data), steps=1)
        with torch.no_grad():
            next(setup.model.parameters()).fill_(math.nan)
        picture = painter_of(setup).picture(70, 16)
        if isinstance(picture, AdditionPicture):
            assert picture.trained_right == picture.held_out_right == 0
        else:
            assert isinstance(picture, ClassesPicture)
            assert {g.right for g in picture.groups} == {0.0}
            assert math.isnan(picture.groups[0].loss)


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_own_images_are_pictured_as_they_are_in_the_file(net: str, home: Path) -> None:
    pixels = bytes(min(255, 16 * (k % 16)) for n in range(50) for k in range(n, n + 24 * 40))
    path = write_images(home, count=50, height=24, width=40, classes=5)
    path.write_bytes(idx((50, 24, 40), pixels))
    overrides = (f"data.path={path}", f"model.name={net}", "model.width=4")
    setup = trained(SMALL.replace("digits", "own-images"), *overrides, steps=1)
    picture = painter_of(setup).picture(70, 16)
    assert isinstance(picture, DigitsPicture)
    assert (picture.height, picture.width, picture.count) == (8, 14, 10)
    assert len(picture.pixels) == 10 * 8 * 14
    assert picture.right / picture.count == pytest.approx(evaluate(setup)[1])


def test_shrinking_keeps_small_images_and_averages_large_ones() -> None:
    image = torch.arange(0, 256, 17, dtype=torch.uint8).view(1, 4, 4)
    assert shrunk(image).flatten().tolist() == [round(n * 17 / 255 * 16) for n in range(16)]
    large = torch.zeros(1, 32, 20, dtype=torch.uint8)
    large[0, :2, :2] = 255
    small = shrunk(large)
    assert small.shape == (1, 16, 10)
    assert (small[0, 0, 0].item(), small.sum().item()) == (16, 16)
    assert shrunk(torch.full((1, 64, 3), 255, dtype=torch.uint8)).shape == (1, 16, 1)
