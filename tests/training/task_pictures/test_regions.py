"""The picture of data in the plane: predictions at each cell, and which points are right."""

from __future__ import annotations

from array import array

import pytest
import torch

from tui_descent.protocol import codec
from tui_descent.protocol.task_pictures import MAX_NET_CELLS, MAX_SAMPLES
from tui_descent.scenario import presets
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.task_pictures.regions import RegionsPainter


def made(*overrides: str) -> Setup:
    _, scenario = presets.find("healthy", overrides=["data.name=moons", "data.batch_size=32", *overrides])
    return build(scenario, on=torch.device("cpu"))


def trained(setup: Setup, steps: int = 30) -> None:
    for _ in range(steps):
        loss = setup.loss()
        setup.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        setup.optimizer.step()


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_cell_has_the_class_that_the_net_predicts_at_its_centre(loss: str, dtype: str) -> None:
    setup = made(f"loss.name={loss}", f"run.dtype={dtype}", "model.dropout=0.2")
    trained(setup)
    picture = RegionsPainter(setup).picture(30, 10)
    assert (picture.columns, picture.rows, len(picture.predictions)) == (30, 20, 600)
    (x0, y0), (x1, y1) = picture.low, picture.high
    centres = [(x0 + (x1 - x0) * (c + 0.5) / 30, y1 - (y1 - y0) * (r + 0.5) / 20) for r in range(20) for c in range(30)]
    setup.model.eval()
    with torch.no_grad():
        outputs = setup.model(torch.tensor(centres, dtype=torch.float64 if dtype == "float64" else torch.float32))
    wrong = [n for n, byte in enumerate(picture.predictions) if (byte >= 128) != bool(outputs[n].argmax())]
    assert len(wrong) <= 6, "at least 99 %: the centres are rounded"
    assert len(set(picture.predictions)) > 20
    if loss == "cross_entropy":
        p = outputs.softmax(dim=1)[:, 1].tolist()
        assert max(abs(p[n] - (byte - 1) / 254) for n, byte in enumerate(picture.predictions)) < 0.01


def test_an_undecided_net_is_shown_on_the_side_that_it_prefers() -> None:
    setup = made()
    painter = RegionsPainter(setup)
    bytes_ = painter._bytes(torch.tensor([[0.0, 1e-9], [1e-9, 0.0], [-50.0, 50.0], [50.0, -50.0]], dtype=torch.double))
    assert bytes_.tolist() == [128, 127, 255, 1]


def test_the_picture_has_the_labels_of_the_file() -> None:
    _, scenario = presets.find("own-points")
    picture = RegionsPainter(build(scenario, on=torch.device("cpu"))).picture(30, 10)
    assert picture.names == ("dark", "light")
    assert RegionsPainter(made()).picture(30, 10).names == ()


def test_points_classes_and_hits_are_those_of_the_training_data() -> None:
    setup = made()
    trained(setup)
    picture = RegionsPainter(setup).picture(30, 10)
    assert setup.batches is not None
    x, y = setup.batches.data.x, setup.batches.data.y
    assert len(picture.classes) == len(y) == 400
    assert torch.equal(torch.tensor(array("f", picture.points)).view(-1, 2), x)
    assert list(picture.classes) == y.tolist()
    setup.model.eval()
    assert list(picture.right) == (setup.model(x).argmax(dim=1) == y).int().tolist()
    assert all(
        lo < v < hi for lo, v, hi in zip(picture.low * 400, x.flatten().tolist(), picture.high * 400, strict=True)
    )


def test_a_net_with_nan_weights_predicts_nothing() -> None:
    setup = made()
    with torch.no_grad():
        next(setup.model.parameters()).fill_(torch.nan)
    picture = RegionsPainter(setup).picture(30, 10)
    assert set(picture.predictions) == set(picture.right) == {0}


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (10**9, 1), (1, 10**9), (10**6, 10**6), (300, 100)])
def test_picture_of_any_size_is_bounded(size: tuple[int, int]) -> None:
    picture = RegionsPainter(made("data.points=3000")).picture(*size)
    assert 2 <= picture.columns * picture.rows == len(picture.predictions) <= MAX_NET_CELLS
    assert len(picture.classes) == MAX_SAMPLES
    assert len(codec.encode(picture)) < 16 * 1024
