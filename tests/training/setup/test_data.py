"""Training data: the shipped digits, the generated toy data, and the order of the batches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from own_data_files import idx, write_images
from small_scenario import TEXT, make

from tui_descent.scenario.spec import (
    CirclesData,
    DigitsData,
    ModularAdditionData,
    MoonsData,
    OwnImagesData,
    OwnPointsData,
    OwnTextData,
    RareClassesData,
    SpiralsData,
    ToyData,
    XorData,
)
from tui_descent.training.setup.build import build
from tui_descent.training.setup.data import digits, generated, own_images, own_points, text, toys
from tui_descent.training.setup.data.batches import Batches, DataSet

TOYS = [MoonsData, CirclesData, XorData, SpiralsData]


def numbered(n: int) -> DataSet:
    x = torch.arange(n, dtype=torch.float32)[:, None]
    return DataSet(x=x, y=torch.arange(n) % 3, held_out_x=x[:0], held_out_y=torch.arange(0), classes=3)


def test_digits_have_1437_training_and_360_held_out_samples() -> None:
    data = digits.load(DigitsData())
    assert data.x.shape == (1437, 64)
    assert data.held_out_x.shape == (360, 64)
    assert data.y.shape == (1437,)
    assert data.held_out_y.shape == (360,)
    assert (data.x.dtype, data.y.dtype) == (torch.float32, torch.int64)
    assert (data.classes, data.features) == (10, 64)


def test_digits_have_the_class_counts_of_the_source() -> None:
    data = digits.load(DigitsData())
    counts = Counter([*data.y.tolist(), *data.held_out_y.tolist()])
    assert [counts[n] for n in range(10)] == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    held_out = Counter(data.held_out_y.tolist())
    assert min(held_out.values()) > 20, "every class is held out in part"


def test_digits_are_centred_per_pixel_and_scaled_as_a_whole_by_the_training_part() -> None:
    data = digits.load(DigitsData())
    assert data.x.mean(dim=0).abs().max() < 1e-5
    assert data.x.std().item() == pytest.approx(1.0, abs=1e-3)
    assert 0.9 < data.held_out_x.std().item() < 1.1
    assert data.held_out_x.mean(dim=0).abs().max() > 1e-3, "the held-out part must not be centred by itself"
    spread = data.x.std(dim=0)
    assert spread.max() > 1.5, "one scale for all pixels, not one per pixel"


def test_pixels_were_integers_from_0_to_16() -> None:
    data = digits.load(DigitsData())
    both = torch.cat([data.x, data.held_out_x]).double()
    smallest = both.min(dim=0).values
    steps = both - smallest
    unit = steps[steps > 1e-6].min()
    levels = steps / unit
    assert (levels - levels.round()).abs().max() < 1e-3
    assert levels.max().round() == 16


def test_subset_is_the_first_samples_and_keeps_the_held_out_ones() -> None:
    whole, part = digits.load(DigitsData()), digits.load(DigitsData(subset=300))
    assert torch.equal(part.x, whole.x[:300])
    assert torch.equal(part.held_out_x, whole.held_out_x)


@pytest.mark.parametrize("kind", TOYS)
def test_toy_data_depend_only_on_the_seed(kind: type[ToyData]) -> None:
    torch.manual_seed(1)
    a = toys.load(kind(), seed=3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    b, c = toys.load(kind(), seed=3), toys.load(kind(), seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.y, b.y)
    assert not torch.equal(a.x, c.x)


@pytest.mark.parametrize("kind", TOYS)
def test_toy_data_have_two_balanced_classes_and_a_fifth_held_out(kind: type[ToyData]) -> None:
    data = toys.load(kind(points=501), seed=0)
    assert data.x.shape == (401, 2)
    assert data.held_out_x.shape == (100, 2)
    assert data.classes == 2
    both = torch.cat([data.y, data.held_out_y])
    assert both.sum().item() == 250
    points = torch.cat([data.x, data.held_out_x])
    assert points.isfinite().all()
    assert points.mean(dim=0).abs().max() < 1e-5


def test_toy_classes_have_the_expected_shapes() -> None:
    circles = toys.load(CirclesData(noise=0.0), seed=0)
    radius = circles.x.norm(dim=1)
    assert radius[circles.y == 0].min() > radius[circles.y == 1].max()
    xor = toys.load(XorData(noise=0.0), seed=0)
    assert ((xor.x[:, 0] * xor.x[:, 1] > 0) == (xor.y == 0)).all()
    spirals = toys.load(SpiralsData(noise=0.0, points=4000), seed=0)
    zero, one = spirals.x[spirals.y == 0], spirals.x[spirals.y == 1]
    assert torch.cdist(zero, -one).min(dim=1).values.max() < 0.1, "the same curve, half a turn apart"
    assert torch.cdist(zero, one).min(dim=1).values.mean() > 0.3


def test_modular_addition_has_every_pair_once() -> None:
    data = generated.modular_addition(ModularAdditionData(modulus=7, share=0.6), seed=3)
    assert (len(data.x), len(data.held_out_x)) == (29, 20)
    x, y = torch.cat([data.x, data.held_out_x]), torch.cat([data.y, data.held_out_y])
    assert (x.sum(dim=1) == 2).all()
    pairs = [(a, b - 7) for a, b in x.nonzero()[:, 1].view(-1, 2).tolist()]
    assert sorted(pairs) == [(a, b) for a in range(7) for b in range(7)]
    assert y.tolist() == [(a + b) % 7 for a, b in pairs]
    again = generated.modular_addition(ModularAdditionData(modulus=7, share=0.6), seed=4)
    assert not torch.equal(again.x, data.x)


@pytest.mark.parametrize("balanced", [False, True])
def test_rare_classes_have_their_sizes_and_centres(balanced: bool) -> None:
    spec = RareClassesData(groups=4, inputs=64, noise=0.1, balanced=balanced)
    data = generated.rare_classes(spec, seed=0)
    counts = torch.bincount(data.y).tolist()
    assert counts == ([2] * 15 if balanced else [8, 4, 4, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1])
    assert counts == spec.class_sizes()
    assert torch.bincount(data.held_out_y).tolist() == [2] * 15
    distances = torch.cdist(data.held_out_x, data.x)
    assert (data.y[distances.argmin(dim=1)] == data.held_out_y).all(), "a sample is next to those of its class"


def test_own_images_are_centred_and_a_fifth_is_held_out(home: Path) -> None:
    path = write_images(home, count=100, height=3, width=5)
    spec = OwnImagesData(path=str(path))
    data = own_images.load(spec, seed=1)
    assert (data.x.shape, data.held_out_x.shape, data.image, data.classes) == ((80, 15), (20, 15), (3, 5), 3)
    assert data.x.mean(dim=0).abs().max() < 1e-5
    assert data.x.std().item() == pytest.approx(1.0, abs=1e-3)
    pixels = own_images.held_out_pixels(spec, seed=1, count=20)
    # The first pixel of image n is 15 n mod 256, its class n mod 3.
    numbers = [next(n for n in range(100) if 15 * n % 256 == first) for first in pixels[:, 0].tolist()]
    assert data.held_out_y.tolist() == [n % 3 for n in numbers]
    values = data.held_out_x[:, 0] - data.held_out_x[0, 0]
    raw = pixels[:, 0].float() - pixels[0, 0]
    assert torch.allclose(values * (raw[1] / values[1]), raw, atol=1e-2)
    part = own_images.load(OwnImagesData(path=str(path), subset=30), seed=1)
    assert len(part.x) == 30
    assert torch.equal(part.y, data.y[:30])
    assert torch.equal(part.held_out_y, data.held_out_y)
    assert not torch.equal(own_images.load(spec, seed=2).y, data.y)


def test_equal_images_are_no_division_by_zero(home: Path) -> None:
    path = write_images(home)
    path.write_bytes(idx((40, 4, 4), bytes([7]) * 640))
    assert own_images.load(OwnImagesData(path=str(path)), seed=0).x.isfinite().all()


def test_own_points_are_scaled_in_each_coordinate(home: Path) -> None:
    path = home / "p.csv"
    path.write_text("\n".join(f"{n},{n * n * 1e6},{'ab'[n % 2]}" for n in range(30)), "utf-8")
    data = own_points.load(OwnPointsData(path=str(path)), seed=0)
    assert (data.x.shape, data.held_out_x.shape, data.classes) == ((24, 2), (6, 2), 2)
    x = torch.cat([data.x, data.held_out_x])
    assert x.mean(dim=0).abs().max() < 1e-5
    assert x.std(dim=0).tolist() == pytest.approx([1.0, 1.0])
    order = x[:, 0].argsort()
    assert torch.cat([data.y, data.held_out_y])[order].tolist() == [0, 1] * 15


def test_own_text_keeps_its_characters(home: Path) -> None:
    path = home / "t.txt"
    path.write_text("Äpfel und Birnen\n" * 60, "utf-8")
    data = text.load_own(OwnTextData(path=str(path)), 8)
    assert (data.classes, len(data.symbols)) == (96, len(set("Äpfel und Birnen\n")))
    assert "".join(data.symbols[n] for n in data.x[:17].tolist()) == "Äpfel und Birnen\n"
    assert torch.equal(data.y, data.x[1:])
    assert len(data.x) == round(0.9 * 17 * 60)
    assert data.held_out_x.shape == (128, 8)


@pytest.mark.parametrize(("context", "windows"), [(8, 32), (32, 8), (64, 5), (300, 5)])
def test_the_probe_batch_of_a_text_has_256_characters_or_as_many_as_a_batch(context: int, windows: int) -> None:
    overrides = ("data.batch_size=5", "model.depth=1", "model.width=4", f"model.context={context}")
    setup = build(make(TEXT, *overrides), on=torch.device("cpu"))
    outputs, loss = setup.probe_outputs_and_loss()
    assert outputs.shape == (windows, context, 96)
    assert loss.isfinite()


@pytest.mark.parametrize("seed", [0, 7])
def test_every_epoch_uses_every_sample_once_in_a_new_order(seed: int) -> None:
    batches = Batches(numbered(96), batch_size=32, full=False, seed=seed)
    orders = []
    for _ in range(5):
        epoch = torch.cat([batches.next()[0].flatten() for _ in range(3)])
        assert sorted(epoch.tolist()) == list(range(96))
        orders.append(tuple(epoch.tolist()))
    assert len(set(orders)) == 5, "every epoch has its own order"


def test_incomplete_last_batch_is_dropped_and_no_sample_repeats() -> None:
    batches = Batches(numbered(1437), batch_size=64, full=False, seed=0)
    seen: Counter[float] = Counter()
    for _ in range(3):
        epoch = [batches.next()[0].flatten() for _ in range(1437 // 64)]
        assert {len(batch) for batch in epoch} == {64}
        values = torch.cat(epoch).tolist()
        assert len(set(values)) == len(values)
        seen.update(values)
    assert len(seen) > 1437 * 0.99, "each epoch drops other samples"


def test_inputs_keep_their_classes() -> None:
    batches = Batches(numbered(100), batch_size=7, full=False, seed=0)
    for _ in range(50):
        x, y = batches.next()
        assert torch.equal(x.flatten().long() % 3, y)


def test_batch_order_depends_only_on_the_seed() -> None:
    a = Batches(numbered(100), batch_size=10, full=False, seed=1)
    torch.manual_seed(99)
    b = Batches(numbered(100), batch_size=10, full=False, seed=1)
    c = Batches(numbered(100), batch_size=10, full=False, seed=2)
    first = [batch.next()[0].flatten().tolist() for batch in (a, b, c)]
    assert first[0] == first[1] != first[2]


def test_full_batch_is_the_whole_data_set_in_order() -> None:
    batches = Batches(numbered(50), batch_size=8, full=True, seed=0)
    for _ in range(3):
        assert batches.next()[0].flatten().tolist() == list(range(50))


def test_batch_size_is_limited_to_the_data_set() -> None:
    batches = Batches(numbered(20), batch_size=64, full=False, seed=0)
    for _ in range(3):
        assert sorted(batches.next()[0].flatten().tolist()) == list(range(20))
