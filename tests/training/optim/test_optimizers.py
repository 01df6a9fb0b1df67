"""Optimizers compared with torch's own bit for bit; options changed during a run; swaps with their state transfer."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from nets import OptimizerFactory, copy_of, digit_batches, loss_of, mlp, same, state_of
from torch import Tensor, nn

from tui_descent.protocol.events import CommandRejected
from tui_descent.scenario.knobs import parse
from tui_descent.scenario.optimizers import NAMES, OPTIMIZERS, map_rate
from tui_descent.scenario.spec import OptimizerSpec
from tui_descent.scenario.toml import from_text
from tui_descent.training.optim.optimizers import (
    betas_of,
    make_optimizer,
    momentum_of,
    name_of,
    set_betas,
    set_momentum,
    set_weight_decay,
    swap,
    weight_decay_of,
)
from tui_descent.training.setup.build import build
from tui_descent.training.watch.watch import Watch

RATES = {"sgd": 0.05, "momentum": 0.02, "nesterov": 0.02, "rmsprop": 1e-3, "adam": 1e-3, "adamw": 1e-3, "muon": 1e-3}
TWINS: dict[str, OptimizerFactory] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.8, 0.99), weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(0.8, 0.99), weight_decay=0.01),
}


def made(name: str, net: nn.Module, **fields: Any) -> torch.optim.Optimizer:
    return make_optimizer(OptimizerSpec(name=name, **({"lr": RATES[name]} | fields)), net)  # type: ignore[arg-type]


def conv() -> nn.Module:
    torch.manual_seed(3)
    layers = (
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2),
    )
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))


class Rows(nn.Module):
    """A transformer over the eight rows of a digit."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Linear(8, 16)
        self.layers = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(self.stem(x.view(-1, 8, 8))).mean(dim=1))
        return logits


NETS = {"mlp": lambda: mlp(depth=3), "conv": conv, "transformer": Rows}


def run(net: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[Tensor, Tensor]]) -> list[float]:
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_of(net, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", TWINS)
def test_named_optimizer_trains_as_torch_bit_for_bit(name: str) -> None:
    net, other = mlp(), mlp()
    ours, theirs = made(name, net, betas=(0.8, 0.99), weight_decay=0.01), TWINS[name](other.parameters())
    assert name_of(ours) == name_of(theirs) == name
    for batch in digit_batches(10):
        assert run(net, ours, [batch]) == run(other, theirs, [batch])
        assert same(copy_of(net), copy_of(other))


def test_default_momentum_per_optimizer() -> None:
    usual = {"sgd": 0.0, "momentum": 0.9, "nesterov": 0.9, "muon": 0.95}
    assert {name: momentum_of(made(name, mlp())) for name in usual} == usual
    assert momentum_of(made("muon", mlp(), momentum=0.8)) == 0.8


@pytest.mark.parametrize("name", NAMES)
def test_scenario_builds_its_optimizer_and_schedule(name: str) -> None:
    text = f'title = "t"\ndata = "digits"\nmodel = "mlp"\n[optimizer]\nname = "{name}"\nlr = 0.001\nclip = 1.0\n'
    setup = build(from_text(text + '[schedule]\nname = "cosine"\n', source="x"), on=torch.device("cpu"))
    assert name_of(setup.optimizer) == name
    assert setup.schedule is not None
    assert setup.schedule.factor_at(500) == pytest.approx(0.5)
    assert build(from_text(text, source="x"), on=torch.device("cpu")).schedule is None


def grouped(net: nn.Module, name: str) -> torch.optim.Optimizer:
    """An optimizer with two groups at rates 2 : 1, each with an additional key `part` as a user may set it."""
    parameters = list(net.parameters())
    optimizer = made(name, net)
    whole = optimizer.param_groups.pop()
    for some, rate in ((parameters[:3], 1.0), (parameters[3:], 0.5)):
        options = {k: v for k, v in whole.items() if k != "params"}
        optimizer.add_param_group(options | {"params": some, "lr": RATES[name] * rate, "part": str(rate)})
    return optimizer


@pytest.mark.parametrize("shape", NETS)
@pytest.mark.parametrize("old_name", NAMES)
@pytest.mark.parametrize("new_name", NAMES)
def test_every_swap_keeps_parameters_groups_and_rate_ratios_and_trains(
    shape: str, old_name: str, new_name: str
) -> None:
    net, batches = NETS[shape](), digit_batches(16)
    old = grouped(net, old_name)
    before = run(net, old, batches[:10])
    weights, state = copy_of(net), state_of(old)
    swapped = swap(old, new_name, model=net)
    new = swapped.optimizer
    assert (swapped.old_name, swapped.new_name, name_of(new)) == (old_name, new_name, new_name)
    assert [[id(p) for p in g["params"]] for g in new.param_groups] == [
        [id(p) for p in g["params"]] for g in old.param_groups
    ]
    assert [g["part"] for g in new.param_groups] == ["1.0", "0.5"]
    mapping = map_rate(old_name, new_name, RATES[old_name])
    assert swapped.rate == mapping
    assert [g["lr"] for g in new.param_groups] == [mapping.lr, mapping.lr * 0.5]
    assert same(copy_of(net), weights)
    assert all(torch.equal(a[2], b[2]) for a, b in zip(state_of(old), state, strict=True))
    if old_name == new_name:
        for parameter, kept in old.state.items():
            assert set(new.state[parameter]) == set(kept)
            for key, value in kept.items():
                assert torch.equal(new.state[parameter][key], value)
                assert new.state[parameter][key] is not value
    losses = run(net, new, batches[10:])
    assert all(map(math.isfinite, losses))
    assert all(bool(w.isfinite().all()) for w in copy_of(net))
    # RMSprop without state makes first steps up to 1/√(1−α) = 10 times its rate, with or without a swap.
    assert losses[-1] < max(before) * (3 if new_name == "rmsprop" else 1.2)


def trained(name: str, **fields: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    net = mlp()
    optimizer = made(name, net, **fields)
    run(net, optimizer, digit_batches(7))
    return net, optimizer


@pytest.mark.parametrize(("old_name", "new_name"), [("adam", "adamw"), ("adamw", "adam"), ("momentum", "nesterov")])
def test_related_optimizers_transfer_state_bit_for_bit(old_name: str, new_name: str) -> None:
    net, old = trained(old_name, betas=(0.8, 0.99))
    swapped = swap(old, new_name)
    for parameter in net.parameters():
        before, after = old.state[parameter], swapped.optimizer.state[parameter]
        assert set(after) == set(before)
        assert all(torch.equal(after[key], before[key]) for key in before)
    twin_net = mlp()
    twin_net.load_state_dict(net.state_dict())
    twin = TWINS[new_name](twin_net.parameters())
    twin.load_state_dict(copy.deepcopy(swapped.optimizer.state_dict()))  # torch would share the tensors
    batches = digit_batches(12)[7:]
    assert run(net, swapped.optimizer, batches) == run(twin_net, twin, batches)


def numbers(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    return {key: value.double() for key, value in optimizer.state[parameter].items()}


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=1e-5, atol=0)


def test_momentum_to_adam_gives_the_state_of_equal_gradients() -> None:
    gradient = torch.tensor([1.0, -3.0, 0.0, 1e-4])
    weight = nn.Parameter(torch.zeros(4))
    old = torch.optim.SGD([weight], lr=1e-3, momentum=0.9)
    for _ in range(400):
        weight.grad = gradient.clone()
        old.step()
    new = swap(old, "adam").optimizer
    twin_weight = nn.Parameter(torch.zeros(4))
    twin = torch.optim.Adam([twin_weight])
    for _ in range(10):  # 1/(1 − 0.9)
        twin_weight.grad = gradient.clone()
        twin.step()
    found, expected = numbers(new, weight), numbers(twin, twin_weight)
    assert set(found) == set(expected)
    assert found["step"] == 10
    assert all(torch.allclose(found[k], expected[k], rtol=1e-4, atol=0) for k in expected)


@pytest.mark.parametrize("name", ["momentum", "nesterov", "muon"])
def test_first_adam_step_after_a_swap_is_at_most_about_its_rate(name: str) -> None:
    net, old = trained(name)
    new = swap(old, "adam", lr=1e-3).optimizer
    before = copy_of(net)
    run(net, new, digit_batches(8)[7:])
    moved = max(float((a - b).abs().max()) for a, b in zip(copy_of(net), before, strict=True))
    assert 0.5e-3 < moved < 1.2e-3


def test_adam_transfers_bias_corrected_averages() -> None:
    net, old = trained("adam")
    momentum, rmsprop, muon = (swap(old, n, model=net).optimizer for n in ("momentum", "rmsprop", "muon"))
    hidden = 0
    for parameter in net.parameters():
        was = numbers(old, parameter)
        mean, square = was["exp_avg"] / (1 - 0.9**7), was["exp_avg_sq"] / (1 - 0.999**7)
        assert close(numbers(momentum, parameter)["momentum_buffer"], mean * 10)
        assert close(numbers(rmsprop, parameter)["square_avg"], square)
        assert numbers(rmsprop, parameter)["step"] == 7
        found = numbers(muon, parameter)
        if set(found) == {"momentum_buffer"}:
            hidden += 1
            assert close(found["momentum_buffer"], mean)
        else:
            assert all(torch.equal(found[key], was[key]) for key in was)
    assert hidden == 3


def test_momentum_to_rmsprop_is_the_squared_mean_with_a_floor() -> None:
    net, old = trained("momentum")
    new = swap(old, "rmsprop").optimizer
    for parameter in net.parameters():
        mean = numbers(old, parameter)["momentum_buffer"] / 10
        assert close(numbers(new, parameter)["square_avg"], mean**2 + (mean**2).mean())


def test_rmsprop_to_adam_keeps_the_mean_square_and_starts_the_mean_at_zero() -> None:
    net, old = trained("rmsprop")
    new = swap(old, "adam").optimizer
    for parameter in net.parameters():
        found = numbers(new, parameter)
        assert close(found["exp_avg_sq"] / (1 - 0.999**7), numbers(old, parameter)["square_avg"])
        assert (found["step"], bool(found["exp_avg"].any())) == (7, False)


def test_swap_reports_when_no_state_is_transferred() -> None:
    for old_name, new_name in (("sgd", "adam"), ("sgd", "momentum"), ("rmsprop", "nesterov"), ("adam", "sgd")):
        _, old = trained(old_name)
        swapped = swap(old, new_name)
        assert not swapped.optimizer.state
        assert swapped.transferred == "no optimizer state transferred"
    said = "no optimizer state transferred: the first steps are up to ten times the learning rate"
    assert swap(trained("sgd")[1], "rmsprop").transferred == said
    assert swap(trained("adam")[1], "adamw").transferred == "keeps step, exp_avg, exp_avg_sq"


def test_swap_keeps_common_options_unless_others_are_requested() -> None:
    net = mlp()
    old = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.02, amsgrad=True)
    run(net, old, digit_batches(3))
    kept = swap(old, "adamw", lr=0.5).optimizer
    group = kept.param_groups[0]
    assert [group[k] for k in ("lr", "betas", "eps", "weight_decay", "amsgrad")] == [0.5, (0.8, 0.95), 1e-6, 0.02, True]
    first = next(net.parameters())
    assert torch.equal(kept.state[first]["max_exp_avg_sq"], old.state[first]["max_exp_avg_sq"])
    asked = swap(old, "nesterov", momentum=0.7, weight_decay=0.0).optimizer.param_groups[0]
    assert (asked["momentum"], asked["weight_decay"], asked["nesterov"]) == (0.7, 0.0, True)
    assert swap(old, "muon", betas=(0.5, 0.6), model=net).optimizer.param_groups[0]["betas"] == (0.5, 0.6)
    decayed = torch.optim.SGD([{"params": [first], "weight_decay": 0.0}], lr=0.1, maximize=True)
    assert swap(decayed, "adam").optimizer.param_groups[0]["maximize"]


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("adagrad", {}, 'no rate is known for the optimizer "adagrad"'),
        ("adam", {"momentum": 0.9}, "adam has betas instead of momentum; try betas="),
        ("momentum", {"betas": (0.9, 0.9)}, "momentum has momentum instead of betas"),
        ("momentum", {"momentum": 1.0}, "momentum = 1; allowed: a number ≥ 0 and < 1"),
        ("nesterov", {"momentum": 0.0}, "momentum = 0; nesterov needs a momentum > 0"),
        ("sgd", {"momentum": 0.5}, "momentum = 0.5; sgd has no momentum"),
        ("adam", {"betas": (0.9, 1.0)}, "betas = 1; allowed"),
        ("adam", {"lr": 0.0}, "lr = 0; allowed: a number > 0"),
        ("adam", {"lr": math.nan}, "lr = nan; allowed"),
        ("adam", {"weight_decay": -1.0}, "weight_decay = -1; allowed"),
        ("muon", {}, "muon needs the model"),
    ],
)
def test_impossible_swap_is_refused_with_a_reason(name: str, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        swap(trained("momentum")[1], name, **fields)


def test_unknown_optimizer_can_be_swapped_if_a_rate_is_given() -> None:
    net = mlp()
    old = torch.optim.Adagrad(net.parameters(), lr=0.01)
    run(net, old, digit_batches(2))
    with pytest.raises(ValueError, match='no rate is known for the optimizer "adagrad"'):
        swap(old, "adam")
    swapped = swap(old, "adam", lr=1e-3)
    assert swapped.rate.text == "0.01 → 0.001, as requested"
    assert not swapped.optimizer.state
    with pytest.raises(ValueError, match="the learning rate is 0 in every group"):
        swap(torch.optim.SGD(net.parameters(), lr=0.0), "adam")


def test_setting_momentum_turns_sgd_into_momentum_and_back() -> None:
    net, other = mlp(), mlp()
    ours, theirs = made("sgd", net), torch.optim.SGD(other.parameters(), lr=0.05)
    batches = digit_batches(12)
    run(net, ours, batches[:4])
    run(other, theirs, batches[:4])
    assert set_momentum(ours, 0.8) == momentum_of(ours) == 0.8
    assert name_of(ours) == "momentum"
    fresh = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.8)
    assert run(net, ours, batches[4:8]) == run(other, fresh, batches[4:8])
    assert set_momentum(ours, 0.0) == 0.0
    assert name_of(ours) == "sgd"
    assert not any(ours.state[p] for p in net.parameters())
    assert run(net, ours, batches[8:10]) == run(other, theirs, batches[8:10])
    set_momentum(ours, 0.8)
    fresh = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.8)
    assert run(net, ours, batches[10:]) == run(other, fresh, batches[10:])


@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_set_betas_keeps_the_bias_corrected_averages(name: str) -> None:
    net, optimizer = trained(name)
    before = {p: numbers(optimizer, p) for p in net.parameters()}
    assert set_betas(optimizer, (0.9, 0.999)) == (0.9, 0.999)
    assert all(torch.equal(v, numbers(optimizer, p)[k]) for p, was in before.items() for k, v in was.items())
    assert set_betas(optimizer, (0.5, 0.9999)) == betas_of(optimizer) == (0.5, 0.9999)
    compared = 0
    for parameter, was in before.items():
        now = numbers(optimizer, parameter)
        if "exp_avg" in was:
            compared += 1
            assert close(now["exp_avg"] / (1 - 0.5**7), was["exp_avg"] / (1 - 0.9**7))
            assert close(now["exp_avg_sq"] / (1 - 0.9999**7), was["exp_avg_sq"] / (1 - 0.999**7))
    assert compared == (7 if name == "muon" else 10)


def test_weight_decay_is_set_in_groups_that_have_it_or_in_all() -> None:
    net = mlp()
    optimizer = torch.optim.AdamW(
        [{"params": net.stem.parameters(), "weight_decay": 0.0}, {"params": net.head.parameters()}], weight_decay=0.1
    )
    assert weight_decay_of(optimizer) == 0.1
    assert set_weight_decay(optimizer, 0.3) == 0.3
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0, 0.3]
    set_weight_decay(optimizer, 0.0)
    assert weight_decay_of(optimizer) == 0.0
    set_weight_decay(optimizer, 0.2)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.2, 0.2]


def test_refused_option_gives_a_reason_and_changes_nothing() -> None:
    adam, sgd = made("adam", mlp()), made("momentum", mlp())
    for call, reason in (
        (lambda: set_momentum(adam, 0.5), "adam has betas instead of momentum; try betas=…"),
        (lambda: momentum_of(made("rmsprop", mlp())), "rmsprop has no momentum to set; try optimizer=momentum"),
        (lambda: set_betas(sgd, (0.5, 0.5)), "momentum has momentum instead of betas; try momentum=…"),
        (lambda: betas_of(torch.optim.Muon([nn.Parameter(torch.ones(2, 2))])), "this muon has no betas"),
        (lambda: set_momentum(sgd, 1.0), "momentum = 1; allowed: a number ≥ 0 and < 1"),
        (lambda: set_betas(adam, (0.5, -0.1)), "betas = -0.1; allowed"),
        (lambda: set_weight_decay(adam, 11.0), "weight_decay = 11; allowed: a number ≥ 0 and ≤ 10"),
        (lambda: weight_decay_of(torch.optim.Rprop(mlp().parameters())), "rprop has no weight_decay"),
    ):
        with pytest.raises(ValueError, match=reason):
            call()
    assert (betas_of(adam), momentum_of(sgd), weight_decay_of(adam)) == ((0.9, 0.999), 0.9, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_user_loop_keeps_its_optimizer_class_and_its_fields_can_be_set(name: str, keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = made(name, net)
    other = "sgd" if name == "adam" else "adam"
    fields = {"weight_decay": weight_decay_of}
    wanted: dict[str, Any] = {"weight_decay": 0.25}
    if OPTIMIZERS[name].momentum is not None:
        fields["momentum"], wanted["momentum"] = momentum_of, 0.5
    if OPTIMIZERS[name].betas:
        fields["betas"], wanted["betas"] = betas_of, (0.8, 0.99)  # type: ignore[assignment]
    with Watch(net, optimizer, link=keeper.link) as run:
        for n, batch in enumerate(digit_batches(4)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if n == 1:
                for text in (f"optimizer={other}", f"optimizer={name}", "lr=*2", "weight_decay=0.25"):
                    keeper.send(parse(text))
                if "momentum" in fields:
                    keeper.send(parse("momentum=0.5"))
                if "betas" in fields:
                    keeper.send(parse("betas=0.8/0.99"))
            run.step(loss)
        assert run.optimizer is optimizer
        assert run.steering.rate.value == 2 * RATES[name]
    reason = (
        "your loop owns its optimizer, so its class cannot be changed from here; "
        "its learning rate, momentum, betas and weight decay can"
    )
    assert [event.reason for event in keeper.events(CommandRejected)] == [reason] * 2
    states = {state.name: state for state in run.steering.states()}
    assert states["optimizer"].unavailable == reason
    assert {field: read(optimizer) for field, read in fields.items()} == wanted
