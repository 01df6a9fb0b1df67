"""Several optimizers: readings of each one's own layers, a target for each, and a step that is one `run.step`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from fake_keeper import FakeKeeper
from torch import Tensor, nn

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import TurnKnob, Undo
from tui_descent.protocol.events import CommandRejected, KnobTurned, NotFinite, RatesChanged, Rewound, RunStarted
from tui_descent.scenario.knobs import parse
from tui_descent.training.watch.watch import Watch

STEPS = 6


class Gan:
    """Generator and discriminator, each with its optimizer. `critics` updates of the discriminator in each step."""

    def __init__(self, *, critics: int = 1) -> None:
        torch.manual_seed(0)
        self.g = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
        self.d = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(), nn.Linear(8, 1))
        self.opt_g = torch.optim.Adam(self.g.parameters(), lr=2e-3, betas=(0.5, 0.9))
        self.opt_d = torch.optim.SGD(self.d.parameters(), lr=1e-2, momentum=0.5, weight_decay=0.01)
        self.critics = critics
        self.grads: dict[str, Tensor] = {}  # as each optimizer received them at its last update
        self.before: dict[str, Tensor] = {}
        self.spoil: set[str] = set()  # the optimizers whose gradient becomes NaN

    def named(self) -> dict[str, nn.Parameter]:
        both = (("g", self.g), ("d", self.d))
        return {f"{net}.{name}": p for net, module in both for name, p in module.named_parameters()}

    def step(self) -> Tensor:
        self.before = {name: p.detach().double() for name, p in self.named().items()}
        bce = nn.functional.binary_cross_entropy_with_logits
        for _ in range(self.critics):
            real, fake = self.d(torch.randn(16, 4) + 2), self.d(self.g(torch.randn(16, 3)).detach())
            d_loss = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
            self._update("d", self.d, self.opt_d, d_loss)
        fake = self.d(self.g(torch.randn(16, 3)))
        g_loss = bce(fake, torch.ones_like(fake))
        self._update("g", self.g, self.opt_g, g_loss)  # also leaves a gradient in the discriminator
        return d_loss.detach() + g_loss.detach()

    def _update(self, name: str, net: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        if name in self.spoil:
            next(net.parameters()).grad[0, 0] = float("nan")
        for key, p in net.named_parameters():
            self.grads[f"{name}.{key}"] = p.grad.double().clone()
        optimizer.step()

    def weights(self) -> list[bytes]:
        return [p.detach().numpy().tobytes() for p in self.named().values()]


def watched(gan: Gan, keeper: FakeKeeper, **how: Any) -> Watch:
    nets, optimizers = {"g": gan.g, "d": gan.d}, {"g": gan.opt_g, "d": gan.opt_d}
    return Watch(nets, optimizers, link=keeper.link, **{"sampler": Sampler(every=1), **how})


WAYS: dict[str, tuple[Callable[[Gan], tuple[object, object]], tuple[str, str], str]] = {
    "dicts": (lambda gan: ({"g": gan.g, "d": gan.d}, {"g": gan.opt_g, "d": gan.opt_d}), ("g", "d"), "g.0"),
    "lists": (lambda gan: ([gan.g, gan.d], [gan.opt_g, gan.opt_d]), ("0", "1"), "0.0"),
    "one module": (
        lambda gan: (nn.ModuleDict({"gen": gan.g, "dis": gan.d}), (gan.opt_g, gan.opt_d)),
        ("0", "1"),
        "gen.0",
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("critics", [1, 3])
def test_training_is_unchanged_and_both_optimizers_are_named(way: str, critics: int, keeper: FakeKeeper) -> None:
    alone, gan = Gan(critics=critics), Gan(critics=critics)
    torch.manual_seed(7)
    losses = [alone.step().item() for _ in range(STEPS)]
    made, names, first_layer = WAYS[way]
    torch.manual_seed(7)
    with Watch(*made(gan), link=keeper.link, sampler=Sampler(every=2)) as run:
        for loss in losses:
            value = gan.step()
            assert value.item() == loss
            assert run.step(value)
    assert gan.weights() == alone.weights()
    assert [r.step for r in keeper.steps()] == list(range(STEPS))
    events = keeper.events()
    started = next(event for event in events if isinstance(event, RunStarted))
    assert first_layer in [layer.name for layer in started.layers]
    assert len(started.layers) == 4
    (rates,) = (event for event in events if isinstance(event, RatesChanged))
    assert rates.rates == {names[0]: [2e-3], names[1]: [1e-2]}


@pytest.mark.parametrize("critics", [1, 2, 4])
def test_readings_are_those_of_each_optimizers_own_gradient_and_span_the_step(critics: int, keeper: FakeKeeper) -> None:
    gan, expected = Gan(critics=critics), []
    with watched(gan, keeper) as run:
        for n in range(STEPS):
            loss = gan.step()
            after = gan.named()
            if n:  # at the first step the layers are not known yet
                rows = {}
                for layer in ("g.0", "g.2", "d.0", "d.2"):
                    name = f"{layer}.weight"
                    change = after[name].detach().double() - gan.before[name]
                    rows[layer] = (
                        gan.grads[name].norm().item(), gan.before[name].norm().item(), change.norm().item()
                    )  # fmt: skip
                total = torch.stack([g.norm() for g in gan.grads.values()]).norm().item()
                expected.append((n, rows, total))
            run.step(loss)
    started = keeper.events(RunStarted)[0]
    readings = keeper.readings()
    assert [r.step for r in readings] == [n for n, _, _ in expected]
    for reading, (_, rows, total) in zip(readings, expected, strict=True):
        assert reading.global_grad_norm == pytest.approx(total, rel=1e-5)
        for row, layer in enumerate(started.layers):
            read = [reading.values[m][row] for m in ("grad_norm", "weight_norm", "update_norm")]
            assert read == pytest.approx(rows[layer.name], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("idle", ["g", "d"])
def test_optimizer_that_is_not_stepped_has_no_values_in_that_step(idle: str, keeper: FakeKeeper) -> None:
    gan = Gan()
    with watched(gan, keeper) as run:
        for n in range(STEPS):
            optimizer = gan.opt_g if idle == "g" else gan.opt_d
            optimizer.step, own = (lambda: None) if n % 2 else optimizer.step, optimizer.step
            run.step(gan.step())
            optimizer.step = own
    started, readings = keeper.events(RunStarted)[0], keeper.readings()
    assert [r.step for r in readings] == [1, 2, 3, 4, 5]
    for reading in readings:
        for row, layer in enumerate(started.layers):
            absent = reading.step % 2 == 1 and layer.name.startswith(idle)
            assert (reading.values["update_norm"][row] is None) == absent


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("lr@optimizer.g=*0.5", {"g": 1e-3, "d": 1e-2}),
        ("lr@optimizer.d=0.05", {"g": 2e-3, "d": 5e-2}),
        ("lr=*2", {"g": 4e-3, "d": 2e-2}),
        ("lr=0.001", {"g": 1e-3, "d": 5e-3}),  # the first one gets this rate, both the same factor
    ],
)
def test_rate_of_one_or_all_optimizers(command: str, expected: dict[str, float], keeper: FakeKeeper) -> None:
    gan, during = Gan(), dict[str, float]()
    gan.opt_g.register_step_post_hook(lambda o, *_: None)
    with watched(gan, keeper) as run:
        for n in range(STEPS):
            if n == 2:
                keeper.send(parse(command))
                gan.opt_g.register_step_pre_hook(lambda o, *_: during.update(g=o.param_groups[0]["lr"]))
                gan.opt_d.register_step_pre_hook(lambda o, *_: during.update(d=o.param_groups[0]["lr"]))
            run.step(gan.step())
            assert (gan.opt_g.param_groups[0]["lr"], gan.opt_d.param_groups[0]["lr"]) == (2e-3, 1e-2)
    assert during == pytest.approx(expected)
    events = keeper.events()
    last = [event for event in events if isinstance(event, RatesChanged)][-1]
    assert {name: rate for name, (rate,) in last.rates.items()} == pytest.approx(expected)
    (turned,) = (event for event in events if isinstance(event, KnobTurned))
    which = turned.target.removeprefix("optimizer.") if turned.target != "all" else "g"
    assert float(turned.new) == pytest.approx(expected[which])


@pytest.mark.parametrize(
    ("command", "read"),
    [
        ("momentum@optimizer.d=0.9", lambda gan: (gan.opt_d.param_groups[0]["momentum"], 0.9)),
        ("momentum=0.8", lambda gan: (gan.opt_d.param_groups[0]["momentum"], 0.8)),
        ("betas@optimizer.g=0.8/0.95", lambda gan: (gan.opt_g.param_groups[0]["betas"], (0.8, 0.95))),
        ("weight_decay@optimizer.g=0.3", lambda gan: (gan.opt_g.param_groups[0]["weight_decay"], 0.3)),
        ("weight_decay=*3", lambda gan: (gan.opt_d.param_groups[0]["weight_decay"], 0.03)),
    ],
)
def test_options_of_one_optimizer(command: str, read: Callable[[Gan], tuple[Any, Any]], keeper: FakeKeeper) -> None:
    gan = Gan()
    with watched(gan, keeper) as run:
        for n in range(4):
            if n == 1:
                keeper.send(parse(command))
            run.step(gan.step())
    found, expected = read(gan)
    assert found == pytest.approx(expected)
    assert len(keeper.events(KnobTurned)) == 1


@pytest.mark.parametrize("limits", [{"g": 1e-3}, {"d": 1e-3}, {"g": 1e-3, "d": 2e-3}])
def test_clip_limits_each_optimizers_own_norm(limits: dict[str, float], keeper: FakeKeeper) -> None:
    gan, norms = Gan(), dict[str, float]()

    def measure(name: str) -> Callable[..., None]:
        def hook(optimizer: torch.optim.Optimizer, *_: object) -> None:
            grads = [p.grad.double() for group in optimizer.param_groups for p in group["params"]]
            norms[name] = torch.stack([g.norm() for g in grads]).norm().item()

        return hook

    with watched(gan, keeper) as run:
        gan.opt_g.register_step_pre_hook(measure("g"))
        gan.opt_d.register_step_pre_hook(measure("d"))
        for n in range(STEPS):
            if n == 1:
                for name, limit in limits.items():
                    keeper.send(TurnKnob(knob="clip", value=str(limit), target=f"optimizer.{name}"))
            run.step(gan.step())
    for name, norm in norms.items():
        if name in limits:
            assert norm == pytest.approx(limits[name], rel=1e-5)
        else:
            assert norm > 1e-2
    reading = keeper.readings()[-1]
    assert reading.grad_norm_preclip > reading.global_grad_norm
    assert reading.global_grad_norm == pytest.approx(sum(n * n for n in norms.values()) ** 0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("lr@optimizer.x=*2", 'no optimizer "optimizer.x"; allowed: optimizer.g, optimizer.d'),
        ("momentum@optimizer.g=0.5", "adam has betas instead of momentum; try betas=…"),
        ("betas@optimizer.d=0.9/0.99", "momentum has momentum instead of betas; try momentum=…"),
        ("clip@optimizer.d=*2", "clip is off, so *2 has nothing to scale; allowed: a number > 0"),
    ],
)
def test_refusals_name_the_reason(command: str, reason: str, keeper: FakeKeeper) -> None:
    gan = Gan()
    with watched(gan, keeper) as run:
        for n in range(4):
            if n == 1:
                keeper.send(parse(command))
            run.step(gan.step())
    (rejected,) = keeper.events(CommandRejected)
    assert rejected.reason == reason


@pytest.mark.parametrize("bad", ["g", "d"])
def test_non_finite_gradient_drops_only_that_optimizers_update(
    bad: str, keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    gan = Gan()
    with watched(gan, keeper, on_fault="hold") as run:
        monkeypatch.setattr(run.control, "hold", lambda *args, **kwargs: None)
        for n in range(4):
            gan.spoil = {bad} if n == 2 else set()
            loss = gan.step()
            if n == 2:
                moved = {
                    name.partition(".")[0]
                    for name, p in gan.named().items()
                    if not torch.equal(p.detach().double(), gan.before[name])
                }
                assert moved == {"g", "d"} - {bad}
            assert run.step(loss)
    (fault,) = keeper.events(NotFinite)
    assert (fault.step, fault.what, fault.layer) == (2, "gradient", f"{bad}.0")
    assert all(bool(p.isfinite().all()) for p in gan.named().values())
    assert [r.step for r in keeper.steps()] == [0, 1, 2, 3]


@pytest.mark.parametrize("command", ["lr@optimizer.d=*3", "momentum@optimizer.d=0.9", "clip=0.01"])
def test_undo_restores_both_optimizers(command: str, keeper: FakeKeeper) -> None:
    keeper.link.launch = msgspec.structs.replace(keeper.link.launch, socket="x")
    gan, states = Gan(), dict[int, Any]()

    def state() -> Any:
        return copy.deepcopy((gan.g.state_dict(), gan.d.state_dict(), gan.opt_g.state_dict(), gan.opt_d.state_dict()))

    with watched(gan, keeper) as run:
        for n in range(8):
            loss = gan.step()
            states[n + 1] = state()
            if n == 2:
                keeper.send(parse(command))
            if n == 5:
                keeper.send(Undo())
            run.step(loss)
            if n == 5:
                restored = state()
    assert len(keeper.events(Rewound)) == 1
    assert str(restored) == str(states[3])
    assert [one.clip for one in run.steering.optimizers] == [None, None]
    assert [one.rate.multiplier for one in run.steering.optimizers] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("optimizers", "reason"),
    [
        (lambda o: {"a b": o}, 'an optimizer cannot be called "a b"'),
        (lambda o: [o, o], "the same SGD twice"),
        (lambda o: [], "no optimizer"),
    ],
)
def test_optimizers_that_cannot_be_named(optimizers: Callable[[Any], object], reason: str) -> None:
    net = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=reason):
        Watch(net, optimizers(torch.optim.SGD(net.parameters(), lr=0.1)), link=None)


@pytest.mark.parametrize("nets", [{"a.b": nn.Linear(2, 1)}, {"training": nn.Linear(2, 1)}, [3], {}, "net"])
def test_nets_that_cannot_be_watched(nets: object) -> None:
    with pytest.raises(ValueError, match=r"watch\(\)"):
        Watch(nets, torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1), link=None)


def test_matrices_and_vectors_of_one_net_with_different_optimizers(keeper: FakeKeeper) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2))
    matrices, vectors = ([p for p in net.parameters() if (p.dim() > 1) == wide] for wide in (True, False))
    optimizers = {"muon": torch.optim.Muon(matrices, lr=0.01), "adam": torch.optim.AdamW(vectors, lr=1e-3)}
    with Watch(net, optimizers, link=keeper.link, sampler=Sampler(every=1)) as run:
        for _ in range(4):
            loss = net(torch.randn(8, 4)).pow(2).mean()
            net.zero_grad()
            loss.backward()
            norms = [net[n].weight.grad.double().norm().item() for n in (0, 1, 3)]
            for optimizer in optimizers.values():
                optimizer.step()
            run.step(loss)
    reading = keeper.readings()[-1]
    assert reading.values["grad_norm"] == pytest.approx(norms, rel=1e-5)
    assert None not in reading.values["update_norm"]
