"""Norms, weights, dropout and the activations of user nets changed during a run."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from net_families import setup, train
from nets import copy_of, same
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from unusual_nets import UNUSUAL

from tui_descent.instruments.net_structure import structure
from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario.spec import InitSpec, NormSpec
from tui_descent.training.setup.nets import parts
from tui_descent.training.steering.steering import Steering, surgery
from tui_descent.training.steering.surgery import Blend

FAMILIES = ["mlp", "conv", "transformer"]


def blocks_of(made: Any) -> dict[str, Any]:
    return {f"blocks.{n}": block for n, block in enumerate(made.model.blocks)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PLACES = [(f, k, w) for f in FAMILIES for k in ("layer", "rms") for w in ("pre", "mid", "post")]
PLACES = [p for p in PLACES if p[0] != "transformer" or p[2] != "mid"]


@pytest.mark.parametrize(("family", "kind", "where"), PLACES)
def test_an_added_norm_equals_a_built_in_one_and_can_be_removed(family: str, kind: Any, where: Any) -> None:
    made, twin = setup(family), setup(family, norm={"name": kind, "where": where})
    x, _ = made.batches.next()  # type: ignore[union-attr]
    before, tree = made.model(x), repr(made.model)
    changed = surgery.set_norm(made.model, blocks_of(made), NormSpec(name=kind, where=where))
    assert repr(made.model) == repr(twin.model)
    assert torch.equal(made.model(x), twin.model(x))
    assert [n for n, _ in made.model.named_parameters()] == [n for n, _ in twin.model.named_parameters()]
    assert list(changed.added) == [n for n, _ in twin.model.named_parameters() if ".norm." in n]
    assert changed.removed == {}
    assert surgery.set_norm(made.model, blocks_of(made), NormSpec(name=kind, where=where)).added == {}
    back = surgery.set_norm(made.model, blocks_of(made), NormSpec())
    assert list(back.removed) == list(changed.added)
    assert {id(p) for p in back.removed.values()} == {id(p) for p in changed.added.values()}
    assert repr(made.model) == tree
    assert torch.equal(made.model(x), before)


def jump_of(made: Any, kind: Any, where: Any, way: str) -> float:
    """By how much the loss on the probe batch rises when norms are added; the net itself is not changed."""
    net = copy.deepcopy(made)
    before = net.probe().item()
    probe = net.probe_outputs_and_loss if way == "calibrated" else None
    surgery.set_norm(net.model, blocks_of(net), NormSpec(name=kind, where=where), probe=probe)
    assert all(p.grad is None for n, p in net.model.named_parameters() if ".norm." in n)
    return float(net.probe().item()) - float(before)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.heavy) for n in (1, 2, 3, 4, 5))])
def test_a_calibrated_norm_hardly_changes_the_loss_of_a_working_relu_net(seed: int) -> None:
    made = setup("mlp", seed=seed, depth=8, width=48)
    train(made, 250)
    assert made.probe().item() < 0.1
    # A norm removes each sample's scale, which only all norms together can compensate.
    for kind in ("layer", "rms"):
        for where in ("pre", "mid", "post"):
            assert jump_of(made, kind, where, "calibrated") <= 0.1, (kind, where)
            assert jump_of(made, kind, where, "instant") > 0.2, (kind, where)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.heavy) for n in (1, 2))])
@pytest.mark.parametrize(
    ("family", "model"),
    [
        ("mlp", {"depth": 8, "width": 48, "residual": "on"}),
        pytest.param("conv", {"depth": 4}, marks=pytest.mark.heavy),
        ("conv", {"depth": 4, "residual": "on"}),
        ("transformer", {"depth": 4, "width": 32, "residual": "on"}),
    ],
    ids=["residual mlp", "conv", "residual conv", "transformer"],
)
def test_a_calibrated_norm_hardly_changes_the_loss_where_an_instant_one_does(
    family: str, model: Any, seed: int
) -> None:
    made = setup(family, seed=seed, optimizer={"name": "adam", "lr": 3e-3}, **model)
    train(made, 200)
    random, before = torch.get_rng_state(), copy_of(made.model)
    instant = []
    for _, kind, where in (place for place in PLACES if place[0] == family):
        assert jump_of(made, kind, where, "calibrated") <= 0.1, (kind, where)
        instant.append(jump_of(made, kind, where, "instant"))
    assert sum(instant) / len(instant) > 0.15
    assert torch.equal(torch.get_rng_state(), random)
    assert same(copy_of(made.model), before)


def test_calibration_fits_only_the_norms_and_is_deterministic() -> None:
    made = setup("mlp", depth=8, width=48)
    train(made, 100)
    nets = [copy.deepcopy(made) for _ in range(2)]
    for net in nets:
        surgery.set_norm(
            net.model, blocks_of(net), NormSpec(name="layer", where="pre"), probe=net.probe_outputs_and_loss
        )
    assert same(*(copy_of(net.model) for net in nets))
    keeper = dict(nets[0].model.named_parameters())
    assert all(torch.equal(p, keeper[n]) for n, p in made.model.named_parameters())


@pytest.mark.parametrize(("steps", "way"), [(250, "calibrated"), (0, "instant")])
def test_the_default_way_of_a_norm_depends_on_what_the_net_has_learned(steps: int, way: str) -> None:
    made = setup("mlp", depth=8, width=48)
    train(made, steps)
    turned = Steering(made.model, made.optimizer, setup=made).turn(TurnKnob(knob="norm", value="layer"))
    assert (turned.way, turned.where) == (way, "pre")
    if way == "calibrated":
        assert turned.loss_before is not None
        assert turned.loss_after is not None
        assert turned.loss_after - turned.loss_before <= 0.1
        assert turned.loss_after == pytest.approx(made.probe().item(), rel=1e-6)


def test_norm_way_calibrates_only_a_net_that_has_learned_something() -> None:
    assert surgery.norm_way(0.9, 2.3) == surgery.norm_way(2.05, 2.3) == "calibrated"
    assert surgery.norm_way(2.3, 2.3) == surgery.norm_way(1e6, 2.3) == surgery.norm_way(math.nan, 2.3) == "instant"
    made = setup("mlp")
    assert made.loss_of_zero_outputs().item() == pytest.approx(math.log(10), rel=1e-6)


def test_calibrating_one_norm_is_least_squares() -> None:
    made = setup("mlp", depth=1, dtype="float64", activation="tanh")
    x, _ = made.batches.next()  # type: ignore[union-attr]
    h = made.model.stem(x)  # type: ignore[operator]

    def probe() -> tuple[Tensor, Tensor]:
        outputs = made.model(x)
        return outputs, outputs.new_zeros(())  # a loss that never rises: L-BFGS has nothing to do

    surgery.set_norm(made.model, blocks_of(made), NormSpec(name="layer", where="pre"), probe=probe)
    norm = blocks_of(made)["blocks.0"].norm
    hat = nn.functional.layer_norm(h, (16,))
    for unit in range(16):
        table = torch.stack([hat[:, unit], torch.ones(len(h), dtype=torch.float64)], dim=1)
        wanted = torch.linalg.lstsq(table, h[:, unit : unit + 1]).solution.flatten()
        assert norm.weight[unit].item() == pytest.approx(wanted[0].item(), rel=1e-6)
        assert norm.bias[unit].item() == pytest.approx(wanted[1].item(), rel=1e-6, abs=1e-9)


def test_replacing_a_norm_reports_both_and_an_impossible_place_is_rejected() -> None:
    made = setup("mlp", norm="layer")
    changed = surgery.set_norm(made.model, blocks_of(made), NormSpec(name="rms", where="mid"))
    assert list(changed.removed) == [f"blocks.{n}.norm.{p}" for n in range(3) for p in ("weight", "bias")]
    assert list(changed.added) == [f"blocks.{n}.norm.weight" for n in range(3)]
    made = setup("transformer")
    with pytest.raises(ValueError, match=r'where = "mid" is not possible in blocks\.0; allowed: pre, post'):
        surgery.set_norm(made.model, blocks_of(made), NormSpec(name="layer", where="mid"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["he", "xavier", "lecun", "orthogonal", "normal"])
def test_reinitialized_weights_are_the_same_parameters_with_the_spread_of_the_formula(family: str, kind: Any) -> None:
    made = setup(family, width=64, norm="layer")
    ids = {n: id(p) for n, p in made.model.named_parameters()}
    train(made, 3)
    drawn = surgery.reinitialize(made.model, InitSpec(name=kind, bias=-2.0), generator())
    assert set(drawn) == set(ids)
    assert {n: id(p) for n, p in made.model.named_parameters()} == ids
    for name, p in made.model.named_parameters():
        if ".norm." in name:
            assert torch.equal(p, torch.full_like(p, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            inner = name.startswith("blocks") and name.split(".")[2] in ("linear", "conv", "up")
            assert torch.equal(p, torch.full_like(p, -2.0 if inner else 0.0)), name
        elif kind == "he" and p.numel() > 2000:
            fan_in = 1 if name.split(".")[0] in ("tokens", "places") else p[0].numel()
            assert p.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.06), name
        elif kind == "orthogonal" and name.endswith("qkv.weight"):
            for part in p.chunk(3):
                torch.testing.assert_close(part @ part.T, torch.eye(64), atol=1e-5, rtol=0)
    again = setup(family, width=64, norm="layer")
    surgery.reinitialize(again.model, InitSpec(name=kind, bias=-2.0), generator())
    assert all(torch.equal(p, q) for p, q in zip(made.model.parameters(), again.model.parameters(), strict=True))


def test_one_layer_is_reinitialized_and_one_without_weights_is_rejected() -> None:
    made = setup("mlp")
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    drawn = surgery.reinitialize(made.model, InitSpec(), generator(5), layer="blocks.1")
    assert drawn == ["blocks.1.linear.weight", "blocks.1.linear.bias"]
    moved = [n for n, p in made.model.named_parameters() if not torch.equal(p, before[n])]
    assert moved == ["blocks.1.linear.weight"]
    with pytest.raises(ValueError, match=r"blocks.1.activation has no weights"):
        surgery.reinitialize(made.model, InitSpec(), generator(), layer="blocks.1.activation")
    with pytest.raises(ValueError, match=r'no module "blocks\.9"'):
        surgery.reinitialize(made.model, InitSpec(), generator(), layer="blocks.9")


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_added_and_removed_at_its_place(family: str) -> None:
    made, twin = setup(family), setup(family, dropout=0.3)
    tree = repr(made.model)
    names = surgery.set_dropout(made.model, 0.3)
    assert repr(made.model) == repr(twin.model)
    assert names == [f"blocks.{n}.dropout" for n in range(len(made.model.blocks))]  # type: ignore[arg-type]
    torch.manual_seed(4)
    first = train(made, 3)
    torch.manual_seed(4)
    assert first == train(twin, 3)
    assert surgery.set_dropout(made.model, 0.0) == []
    assert repr(made.model) == tree


def test_only_existing_dropout_modules_of_a_user_net_are_set() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Dropout1d(0.1))
    assert surgery.set_dropout(net, 0.2) == ["1", "2"]
    assert (net[1].p, net[2].p) == (0.2, 0.2)
    with pytest.raises(ValueError, match=r"Sequential has no nn\.Dropout"):
        surgery.set_dropout(nn.Sequential(nn.Linear(4, 4)), 0.2)
    with pytest.raises(ValueError, match="dropout = 1; allowed"):
        surgery.set_dropout(net, 1.0)


def test_a_frozen_layer_stays_unchanged_and_trains_again_once_unfrozen() -> None:
    made = setup("mlp", optimizer={"name": "adamw", "lr": 1e-2, "weight_decay": 0.1})
    train(made, 3)
    held = surgery.freeze(made.model, "blocks.1")
    assert held == ["blocks.1.linear.weight", "blocks.1.linear.bias"]
    assert surgery.freeze(made.model, "blocks.1") == []
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    train(made, 3)
    same = [n for n, p in made.model.named_parameters() if torch.equal(p, before[n])]
    assert same == held
    assert surgery.unfreeze(made.model, "blocks.1") == held
    train(made, 1)
    assert not any(torch.equal(p, before[n]) for n, p in made.model.named_parameters() if n in held)


def test_the_last_trainable_layer_cannot_be_frozen() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    surgery.freeze(net, "0")
    with pytest.raises(ValueError, match="2 is the last layer that is not frozen"):
        surgery.freeze(net, "2")
    assert net[2].weight.requires_grad
    with pytest.raises(ValueError, match="1 has no weights"):
        surgery.freeze(net, "1")


def test_a_kick_has_the_documented_length_and_repeats() -> None:
    nets = [setup("mlp", width=64).model for _ in range(2)]
    before = {n: p.detach().clone() for n, p in nets[0].named_parameters()}
    for net in nets:
        moved = surgery.kick(net, generator(7))
    assert set(moved) == {n for n, p in before.items() if p.dim() >= 2}
    for (name, p), q in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(p, q)
        if name in moved:
            assert (p - before[name]).norm().item() == pytest.approx(0.01 * before[name].norm().item(), rel=0.1)
            assert moved[name] == pytest.approx((p - before[name]).norm().item(), rel=1e-3)


def test_a_kick_along_a_direction_moves_all_parameters_together() -> None:
    net = setup("mlp", dtype="float64").model
    before = [p.detach().clone() for p in net.parameters()]
    direction = [torch.randn(p.shape, dtype=p.dtype, generator=generator(1)) for p in before]
    surgery.kick(net, generator(), size=0.1, direction=direction)
    move = torch.cat([(p - b).flatten() for p, b in zip(net.parameters(), before, strict=True)])
    whole, along = (torch.cat([t.flatten() for t in ts]) for ts in (before, direction))
    assert move.norm().item() == pytest.approx(0.1 * whole.norm().item())
    assert abs(torch.dot(move, along).item()) == pytest.approx((move.norm() * along.norm()).item())
    with pytest.raises(ValueError, match="length is zero or not finite"):
        surgery.kick(net, generator(), direction=[torch.zeros_like(p) for p in before])


class Shared(nn.Module):
    """One activation object under two paths, called three times."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.act = nn.ReLU(inplace=inplace)
        self.tail = nn.Sequential(nn.Linear(6, 6), self.act)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.act(self.b(self.act(self.a(x)))))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_shared_activation_is_replaced_everywhere_and_no_blend_is_left(inplace: bool) -> None:
    net, twin = Shared(inplace=inplace).double(), Shared().double()
    twin.load_state_dict(net.state_dict())
    x = torch.randn(9, 6, dtype=torch.float64)
    before = net(x)
    transition = surgery.swap_module(net, "act", nn.Tanh(), steps=50)
    assert torch.equal(net(x), before)
    for _ in range(25):
        transition.advance()
    with torch.no_grad():
        twin.act = twin.tail[1] = Halfway()
        torch.testing.assert_close(net(x), twin(x))
    transition.finish()
    twin.act = twin.tail[1] = nn.Tanh()
    assert torch.equal(net(x), twin(x))
    assert repr(net) == repr(twin)
    assert net.act is net.tail[1]


class Halfway(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return 0.5 * z.relu() + 0.5 * z.tanh()


def test_only_activations_are_replaced() -> None:
    net = Shared()
    assert surgery.replace_module(net, "tail.1", nn.GELU()) == ["act", "tail.1"]
    with pytest.raises(ValueError, match="a is a Linear; only an activation"):
        surgery.replace_module(net, "a", nn.GELU())
    with pytest.raises(ValueError, match='no module "c"'):
        surgery.replace_module(net, "c", nn.GELU())


def test_a_blend_during_a_blend_starts_at_its_current_state_and_leaves_none() -> None:
    made = setup("mlp", dtype="float64")
    x, _ = made.batches.next()  # type: ignore[union-attr]
    blocks = blocks_of(made).values()
    first = [surgery.swap_activation(b, nn.Sigmoid(), steps=50) for b in blocks]
    for t in first:
        for _ in range(20):
            t.advance()
    midway = made.model(x)
    second = [surgery.swap_activation(b, nn.SiLU(), steps=50) for b in blocks]
    assert torch.equal(made.model(x), midway)
    for t in second:
        t.finish()
    assert not any(isinstance(m, Blend) for m in made.model.modules())
    assert torch.equal(made.model(x), setup("mlp", dtype="float64", activation="silu").model(x))


def test_attention_has_no_activation_to_swap() -> None:
    made = setup("transformer")
    with pytest.raises(ValueError, match="a block of attention has no activation"):
        surgery.swap_activation(blocks_of(made)["blocks.0"], nn.ReLU(), steps=1)
    surgery.swap_activation(blocks_of(made)["blocks.1"], nn.ReLU(), steps=1).finish()
    assert isinstance(blocks_of(made)["blocks.1"].activation, nn.ReLU)


def test_init_uses_the_fans_of_convolution_and_embedding() -> None:
    conv, table = torch.empty(64, 32, 3, 3), torch.empty(300, 64)
    parts.init_weight(conv, InitSpec(name="xavier"), generator())
    assert conv.std().item() == pytest.approx((2 / (32 * 9 + 64 * 9)) ** 0.5, rel=0.03)
    parts.init_weight(table, InitSpec(name="xavier"), generator(), embedding=True)
    assert table.std().item() == pytest.approx((2 / 65) ** 0.5, rel=0.03)


def lstm() -> nn.Module:
    return UNUSUAL["lstm"]()


def attention() -> nn.Module:
    return UNUSUAL["attention with other keys and values"]()


def parameter_list() -> nn.Module:
    return UNUSUAL["parameter list and dict"]()


ONE_OF_SEVERAL = [
    (lstm, "rnn.weight_hh_l0"), (attention, "attention.k_proj_weight"), (parameter_list, "matrices.1"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "weight"), ONE_OF_SEVERAL)
def test_one_weight_of_a_module_is_frozen_and_initialized_alone(build: Any, weight: str) -> None:
    net = build()
    assert weight in [watched.layer.name for watched in structure(net).layers]
    assert surgery.freeze(net, weight) == [weight]
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == [weight]
    assert surgery.unfreeze(net, weight) == [weight]
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    assert surgery.reinitialize(net, InitSpec(), generator(), layer=weight) == [weight]
    assert [n for n, p in net.named_parameters() if not torch.equal(p, before[n])] == [weight]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:Initializing zero-element")
@pytest.mark.parametrize("name", ["int8", "quantized", "sparse weight", "meta", "lazy", "strides", "empty"])
def test_weights_without_numbers_to_change_are_left_out(name: str) -> None:
    net = UNUSUAL[name]()
    fixed = {n: p.detach().clone() for n, p in net.named_parameters() if not is_lazy(p) and not p.requires_grad}
    drawn = surgery.reinitialize(net, InitSpec(), generator())
    kicked = surgery.kick(net, generator())
    assert "head.weight" in drawn
    assert "head.weight" in kicked
    for n, p in net.named_parameters():
        if n in fixed:
            assert n not in drawn
            assert torch.equal(p.to_dense() if p.is_sparse else p, fixed[n].to_dense() if p.is_sparse else fixed[n])
    for layer in ("codes", "weight", "unused"):
        if layer in dict(net.named_parameters()):
            assert surgery.unfreeze(net, layer) in ([], [layer])
