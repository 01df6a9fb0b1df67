"""Conv net, transformer and text data compared with independent formulas; every net family with all instruments."""

from __future__ import annotations

import math

import pytest
import torch
from net_families import setup, train
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.instruments.instrument_set import InstrumentSet
from tui_descent.instruments.net_structure import structure
from tui_descent.protocol.readings import unpack
from tui_descent.protocol.ring import ReadingRecord
from tui_descent.scenario.spec import SYMBOLS as COUNT
from tui_descent.training.probes.evaluation import evaluate
from tui_descent.training.setup.data import text
from tui_descent.training.setup.data.text import SYMBOLS, Windows
from tui_descent.training.setup.nets.parts import ChannelNorm, ChannelRMSNorm

FAMILIES = ["mlp", "conv", "transformer"]


def test_symbols_are_printable_ascii_and_line_feed() -> None:
    assert sorted(SYMBOLS) == ["\n", *(chr(n) for n in range(32, 127))]
    assert len(SYMBOLS) == COUNT


def test_text_is_the_help_pages_and_its_end_is_held_out() -> None:
    data = text.load(32)
    keeper = [c for c in text.pages() if c in SYMBOLS]
    start = "".join(SYMBOLS[n] for n in data.x[:2000].tolist())
    assert start == "".join(keeper[:2000])
    assert 100_000 < len(data.x) == round(0.9 * len(keeper))
    tail = "".join(keeper[len(data.x) :])
    for x, y in zip(data.held_out_x, data.held_out_y, strict=True):
        assert torch.equal(x[1:], y[:-1])
        assert "".join(SYMBOLS[n] for n in x.tolist()) in tail
    assert data.held_out_x.shape == (128, 32)


def test_windows_are_parts_of_the_text_and_depend_only_on_the_seed() -> None:
    data = text.load(16)
    a, b, c = (Windows(data, batch_size=4, context=16, seed=seed) for seed in (1, 1, 2))
    x, y = a.next()
    assert x.shape == y.shape == (4, 16)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert torch.equal(x, b.next()[0])
    assert not torch.equal(x, c.next()[0])
    state = a.state()
    later = a.next()[0]
    a.restore(state)
    assert torch.equal(a.next()[0], later)


def test_transformer_positions_do_not_see_later_tokens() -> None:
    net = setup("transformer", residual="on").model
    x = torch.randint(COUNT, (2, 12))
    changed = x.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % COUNT
    before, after = net(x), net(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


def attention_by_hand(w: dict[str, Tensor], n: int, h: Tensor, heads: int) -> Tensor:
    _b, t, width = h.shape
    q, k, v = (h @ w[f"blocks.{n}.attention.qkv.weight"].T + w[f"blocks.{n}.attention.qkv.bias"]).chunk(3, dim=-1)
    out = torch.zeros_like(h)
    size = width // heads
    for head in range(heads):
        s = slice(head * size, (head + 1) * size)
        for position in range(t):
            scores = (k[:, : position + 1, s] * q[:, position : position + 1, s]).sum(-1) / math.sqrt(size)
            out[:, position, s] = (scores.softmax(-1)[..., None] * v[:, : position + 1, s]).sum(1)
    return out @ w[f"blocks.{n}.attention.out.weight"].T + w[f"blocks.{n}.attention.out.bias"]


@pytest.mark.parametrize("where", ["none", "pre", "post"])
@pytest.mark.parametrize("residual", ["off", "on"])
def test_transformer_equals_the_formula(where: str, residual: str) -> None:
    norm = "none" if where == "none" else {"name": "layer", "where": where}
    net = setup("transformer", dtype="float64", residual=residual, norm=norm).model
    w = {name: p.detach() for name, p in net.named_parameters()}
    x = torch.randint(COUNT, (3, 12))
    h = w["tokens.weight"][x] + w["places.weight"][:12]
    for n in range(4):
        f = F.layer_norm(h, (16,)) if where == "pre" else h
        if n % 2 == 0:
            f = attention_by_hand(w, n, f, 2)
        else:
            f = F.gelu(f @ w[f"blocks.{n}.up.weight"].T + w[f"blocks.{n}.up.bias"])
            f = f @ w[f"blocks.{n}.out.weight"].T + w[f"blocks.{n}.out.bias"]
        h = h + 0.5 * f if residual == "on" else f
        h = F.layer_norm(h, (16,)) if where == "post" else h
    torch.testing.assert_close(net(x), h @ w["head.weight"].T + w["head.bias"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("where", ["pre", "mid", "post"])
def test_conv_net_equals_the_formula(where: str) -> None:
    net = setup("conv", dtype="float64", residual="on", norm={"name": "layer", "where": where}).model
    w = {name: p.detach() for name, p in net.named_parameters()}
    x = torch.randn(5, 64, dtype=torch.float64)

    def normed(h: Tensor, here: str) -> Tensor:
        return F.layer_norm(h, h.shape[1:]) if here == where else h

    h = F.conv2d(x.view(5, 1, 8, 8), w["stem.weight"], w["stem.bias"], padding=1)
    for n in range(3):
        f = F.conv2d(normed(h, "pre"), w[f"blocks.{n}.conv.weight"], w[f"blocks.{n}.conv.bias"], padding=1)
        h = h + 3**-0.5 * normed(F.relu(normed(f, "mid")), "post")
    torch.testing.assert_close(net(x), h.mean(dim=(2, 3)) @ w["head.weight"].T + w["head.bias"])


def test_image_norms_are_over_channels_and_positions() -> None:
    x = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    layer, rms = ChannelNorm(6).double()(x), ChannelRMSNorm(6).double()(x)
    torch.testing.assert_close(layer, F.layer_norm(x, (6, 4, 4)))
    size = (x.square().mean(dim=(1, 2, 3), keepdim=True) + torch.finfo(torch.float64).eps).sqrt()
    torch.testing.assert_close(rms, x / size)
    gained = ChannelRMSNorm(6).double()
    with torch.no_grad():
        gained.weight.copy_(torch.arange(6))
    torch.testing.assert_close(gained(x), x / size * torch.arange(6)[:, None, None])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_net_family_learns_and_is_evaluated(family: str) -> None:
    made = setup(family, residual="on", optimizer={"name": "adam", "lr": 1e-2})
    losses = train(made, 120)
    assert sum(losses[-20:]) / 20 < 0.75 * losses[0]
    loss, accuracy = evaluate(made)
    data = made.batches.data  # type: ignore[union-attr]
    out = made.model(data.held_out_x)
    wanted = F.cross_entropy(out.reshape(-1, out.shape[-1]), data.held_out_y.reshape(-1))
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    assert accuracy is not None
    assert 0.15 < accuracy <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_loss_is_the_mean_of_the_losses_of_its_halves(family: str) -> None:
    made = setup(family, dtype="float64")
    whole, size = made.loss(), made.size()
    first, second = made.loss_of_part(slice(0, size // 2)), made.loss_of_part(slice(size // 2, size))
    assert first is not None
    assert second is not None
    assert ((first + second) / 2).item() == pytest.approx(whole.item(), rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_instruments_measure_every_net_family_without_changing_losses(family: str) -> None:
    watched, plain = (setup(family, residual="on", norm="layer") for _ in range(2))
    net = structure(watched.model)
    instruments = InstrumentSet(net, list(watched.model.parameters()))
    losses = []
    for _ in range(4):
        instruments.attach(slow=True)
        loss = watched.loss()
        losses.append(loss.item())
        watched.optimizer.zero_grad()
        loss.backward()
        instruments.before_update()
        watched.optimizer.step()
        sample = instruments.after_update().result()
        assert len(sample.rows) == len(net.layers)
        assert len(sample.ledger) == (3 if family == "mlp" else 0)
    assert losses == train(plain, 4)
    assert len(net.units) == (4 if family == "transformer" else 3)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("signals", [False, True])
def test_each_choice_of_instruments_measures_its_own_columns_and_no_others(signals: bool, slow: bool) -> None:
    made = setup("mlp", activation="tanh")
    instruments = InstrumentSet(structure(made.model), list(made.model.parameters()))
    for step in range(3):
        instruments.attach(signals=signals, slow=slow)
        loss = made.loss()
        made.optimizer.zero_grad()
        loss.backward()
        instruments.before_update(step=step, partial=True)
        instruments.remember(step)
        made.optimizer.step()
        sample = instruments.after_update().result()
        record = ReadingRecord(step, 0, sample.global_grad_norm, 0.0, math.nan, sample.rows)
        found = set(unpack(record).values)
        always = {"grad_norm", "grad_rms", "weight_norm", "update_norm", "update_ratio"}
        cosines = {"backprop_factor"} | ({"grad_cosine"} if step else set())
        slow_columns = {"saturated_fraction", "activation_mean", "activation_std"}
        assert always <= found
        assert found - {"dead_fraction"} == always | (cosines if signals else set()) | (slow_columns if slow else set())
        assert bool(sample.ledger) == slow == (sample.ledger is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_gives_the_same_net_and_training(family: str) -> None:
    a, b = setup(family, seed=3), setup(family, seed=3)
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))
    assert train(a, 3) == train(b, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_has_dropout_and_it_acts_only_in_training(family: str) -> None:
    made, without = setup(family, dropout=0.5), setup(family)
    assert not any(isinstance(m, nn.Dropout) for m in without.model.modules())
    assert sum(isinstance(m, nn.Dropout) for m in made.model.modules()) == len(made.model.blocks)  # type: ignore[arg-type]
    x, _ = made.batches.next()  # type: ignore[union-attr]
    assert not torch.equal(made.model(x), made.model(x))
    assert torch.equal(made.model.eval()(x), without.model.eval()(x))
