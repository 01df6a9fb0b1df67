"""Layers that surgery, undo and redo add and remove: their rows in the readings, checked against twins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from fake_keeper import FakeKeeper
from float64_twins import WITHIN, Array, array, check_row, close, l2, own_weight
from knob_turns import steering_of
from net_families import setup as family
from played_run import ABOUT
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.instruments import deferred
from tui_descent.instruments.net_structure import structure
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import AnyCommand, Redo, Undo
from tui_descent.protocol.events import (
    AnyEvent,
    CommandRejected,
    KnobTurned,
    LayersChanged,
    Noted,
    NotFinite,
    ReadingsTaken,
    Rewound,
    RunStarted,
)
from tui_descent.scenario.knobs import parse
from tui_descent.training.setup.build import Setup
from tui_descent.training.watch.watch import Watch

Row = tuple[Array, Array, Array]  # gradient, weight before, weight after


class Run:
    """A scenario run, made step by step, that records every layer's numbers a second time."""

    def __init__(
        self, keeper: FakeKeeper | None, made: Setup, plan: dict[int, str] | None = None, sampler: Sampler | None = None
    ) -> None:
        if keeper is not None:
            keeper.link.launch = msgspec.structs.replace(keeper.link.launch, socket="there", undo_budget=10**9)
        self.made, self.keeper, self.plan = made, keeper, plan or {}
        self.ran: list[list[str]] = []  # for each update, the layers in the order in which they ran
        self.rows: list[dict[str, Row]] = []
        self.events: list[AnyEvent] = []
        self.losses: list[float] = []
        self.watch = Watch(
            made.model,
            made.optimizer,
            link=None if keeper is None else keeper.link,
            steering=steering_of(made),
            plan=[(at, parse(turn)) for at, turn in self.plan.items()],
            about=ABOUT,
            is_scenario=True,
            replay=made,
            state=(made,),
            sampler=sampler or Sampler(every=1),
        )
        self.watch.__enter__()
        self.watch.begin_step()

    def step(self, *asked: AnyCommand) -> None:
        made, model = self.made, self.made.model
        named = {n: m for n, m in model.named_modules() if list(m.parameters(recurse=False))}
        ran: list[str] = []
        handles = [
            m.register_forward_pre_hook(lambda *_, n=n: ran.append(n))  # type: ignore[misc]
            for n, m in named.items()
        ]
        loss = made.loss()
        for handle in handles:
            handle.remove()
        made.optimizer.zero_grad()
        self.watch.loss(loss)
        loss.backward()
        weights = {n: own_weight(m) for n, m in named.items()}
        before = {n: (array(w.grad).copy(), array(w).copy()) for n, w in weights.items() if w.grad is not None}
        made.optimizer.step()
        self.rows.append({n: (*before[n], array(weights[n]).copy()) for n in before})
        self.ran.append(ran)
        self.losses.append(float(loss.detach()))
        for command in asked:
            assert self.keeper is not None
            self.keeper.send(command)
        self.watch.step(loss)

    def go(self, count: int, *asked: AnyCommand) -> None:
        """Make `count` updates; the commands act after the last one."""
        for n in range(count):
            self.step(*(asked if n == count - 1 else ()))

    def events_of(self, kind: type[Any]) -> list[Any]:
        assert self.keeper is not None
        self.events += self.keeper.events()
        return [event for event in self.events if isinstance(event, kind)]

    def layers(self) -> dict[int, list[str]]:
        """The layer names of every list that was reported, by its number."""
        (start,) = self.events_of(RunStarted)
        lists = {0: start.layers} | {event.structure: event.layers for event in self.events_of(LayersChanged)}
        return {number: [layer.name for layer in layers] for number, layers in lists.items()}


@pytest.fixture
def play(keeper: FakeKeeper) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(*args: Any, **how: Any) -> Run:
        runs.append(Run(keeper, *args, **how))
        return runs[-1]

    yield start
    for run in runs:
        run.watch.__exit__(None, None, None)


PLANS = {
    "mlp pre": ("mlp", {3: "norm=layer,where=pre,way=instant", 7: "norm=none"}),
    "mlp mid calibrated": ("mlp", {3: "norm=layer,where=mid,way=calibrated", 7: "norm=rms,where=post,way=instant"}),
    "conv": ("conv", {3: "norm=layer,where=mid,way=instant", 7: "norm@blocks.1=none"}),
    "transformer": ("transformer", {3: "norm=rms,where=pre", 7: "norm=layer,where=post,way=instant"}),
}


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [
        ("sgd", "float32"),
        ("adamw", "float64"),
        pytest.param("sgd", "float64", marks=pytest.mark.heavy),
        pytest.param("adamw", "float32", marks=pytest.mark.heavy),
    ],
)
@pytest.mark.parametrize("plan", PLANS)
def test_every_row_belongs_to_its_layer_before_and_after_each_surgery(
    plan: str, optimizer: str, dtype: str, play: Callable[..., Run]
) -> None:
    kind, turns = PLANS[plan]
    run = play(family(kind, optimizer={"name": optimizer, "lr": 0.01}, dtype=dtype), turns)
    run.go(11)
    assert run.keeper is not None
    readings, layers = run.keeper.readings(), run.layers()
    assert [reading.step for reading in readings] == list(range(11))
    assert [reading.structure for reading in readings] == [0] * 3 + [1] * 4 + [2] * 4
    assert [(event.segment, event.step) for event in run.events_of(LayersChanged)] == [(0, 3), (0, 7)]
    assert not run.events_of(CommandRejected)
    within = WITHIN[torch.float64 if dtype == "float64" else torch.float32]
    for reading, ran, rows in zip(readings, run.ran, run.rows, strict=True):
        names = layers[reading.structure]
        assert names == ran
        assert len(reading.ages) == len(names) == len(reading.statuses)
        for n, name in enumerate(names):
            check_row(reading, n, *rows[name], within)
        check_places(reading, names)
    norms = {name for name in layers[1] if name.endswith("norm")}
    assert len(norms) == len([name for name in layers[1] if "blocks" in name and name not in layers[0]])


def check_places(reading: ReadingsTaken, names: list[str]) -> None:
    """Values of a block or of an activation are in the row of its matrix, wherever its norm is."""
    factors = [names[n] for n, v in enumerate(reading.values.get("backprop_factor", [])) if v is not None]
    assert len({name.split(".")[1] for name in factors}) == len(factors)
    means = [names[n] for n, v in enumerate(reading.values.get("activation_mean", [])) if v is not None]
    for name in factors + means:
        assert not name.endswith("norm"), name
    if reading.step:
        assert factors
        assert means


def test_rows_of_a_norm_equal_those_of_a_net_written_by_hand(play: Callable[..., Run]) -> None:
    """The twin is an MLP with LayerNorm written as a formula; autograd gives its gradients, γ and β included."""
    run = play(family("mlp", optimizer={"name": "sgd", "lr": 0.05}, dtype="float64", activation="tanh"), {2: TURN})
    turned: list[tuple[int, dict[str, tuple[Tensor, float]]]] = []
    for step in range(6):
        weights = {name: p.detach().clone().requires_grad_() for name, p in run.made.model.named_parameters()}
        assert run.made.batches is not None
        state = run.made.batches.state()
        x, y = run.made.batches.next()
        run.made.batches.restore(state)
        loss = F.cross_entropy(by_hand(weights, x, depth=3), y)
        loss.backward()
        run.step()
        assert run.losses[-1] == pytest.approx(float(loss.detach()), rel=1e-12)
        turned.append((step, {name: (w, l2(array(w.grad))) for name, w in weights.items() if w.grad is not None}))
    assert run.keeper is not None
    layers = run.layers()
    for reading, (step, wanted) in zip(run.keeper.readings(), turned, strict=True):
        names = layers[reading.structure]
        assert (sum(name.endswith("norm") for name in names)) == (3 if step >= 2 else 0)
        for n, name in enumerate(names):
            weight, norm = wanted[f"{name}.weight"]
            found = {metric: column[n] for metric, column in reading.values.items()}
            assert close(found["grad_norm"], norm, 1e-11)
            assert close(found["grad_rms"], norm / math.sqrt(weight.numel()), 1e-11)
            assert close(found["weight_norm"], l2(array(weight)), 1e-12)
            assert close(found["update_norm"], 0.05 * norm, 1e-9)


TURN = "norm=layer,where=pre,way=instant"


def by_hand(weights: dict[str, Tensor], x: Tensor, *, depth: int) -> Tensor:
    h = x @ weights["stem.weight"].T + weights["stem.bias"]
    for n in range(depth):
        if f"blocks.{n}.norm.weight" in weights:
            centred = h - h.mean(dim=1, keepdim=True)
            h = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
            h = h * weights[f"blocks.{n}.norm.weight"] + weights[f"blocks.{n}.norm.bias"]
        h = torch.tanh(h @ weights[f"blocks.{n}.linear.weight"].T + weights[f"blocks.{n}.linear.bias"])
    return h @ weights["head.weight"].T + weights["head.bias"]


def test_undo_removes_the_rows_and_redo_restores_them(play: Callable[..., Run]) -> None:
    how: dict[str, Any] = {"optimizer": {"name": "adam", "lr": 3e-3}, "dropout": 0.1}
    torch.manual_seed(4)
    plain = Run(None, family("mlp", **how), sampler=Sampler(budget=0.0))
    plain.go(7)
    plain.watch.__exit__(None, None, None)
    torch.manual_seed(4)
    run = play(family("mlp", **how), {4: TURN})
    run.go(9)
    assert run.keeper is not None
    run.keeper.send(Undo())
    run.go(1)
    assert run.watch.next_step == 4
    assert run.events_of(LayersChanged)[-1].segment == 1, "at once, without waiting for the next reading"
    run.go(3, Redo())
    assert run.watch.next_step == 10
    run.go(2)
    changes = [(e.segment, e.step, e.structure, len(e.layers)) for e in run.events_of(LayersChanged)]
    assert changes == [(0, 4, 1, 8), (1, 4, 2, 5), (2, 10, 3, 8)]
    assert [e.parameters for e in run.events_of(LayersChanged)] == [
        e + 3 * 32 * k for e, k in ((PLAIN, 1), (PLAIN, 0), (PLAIN, 1))
    ]
    order = [type(e) for e in run.events if isinstance(e, KnobTurned | Rewound | LayersChanged)]
    assert order == [KnobTurned, LayersChanged, Rewound, LayersChanged, Rewound, LayersChanged]
    readings = run.keeper.readings()
    assert [(r.segment, r.step, r.structure) for r in readings] == [
        *((0, n, 0) for n in range(4)),
        *((0, n, 1) for n in range(4, 10)),
        *((1, n, 2) for n in range(4, 7)),
        *((2, n, 3) for n in range(10, 12)),
    ]
    layers = run.layers()
    assert layers[0] == layers[2]
    assert layers[1] == layers[3]
    for reading, ran, rows in zip(readings, run.ran, run.rows, strict=True):
        assert layers[reading.structure] == ran
        for n, name in enumerate(ran):
            check_row(reading, n, *rows[name], 1e-5)


PLAIN = 64 * 16 + 16 + 3 * (16 * 16 + 16) + 16 * 10 + 10


@pytest.mark.parametrize("where", ["pre", "mid"])
def test_reading_added_layers_leaves_losses_bitwise_equal(where: str, home: Path) -> None:
    plan = {3: f"norm=layer,where={where}", 8: "norm=none"}

    def losses(name: str, sampler: Sampler | None) -> list[float]:
        made = family("mlp", optimizer={"name": "adam", "lr": 3e-3}, dropout=0.1)
        torch.manual_seed(4)
        if sampler is None:
            run = Run(None, made, plan, Sampler(budget=0.0))
            run.go(14)
            run.watch.__exit__(None, None, None)
            return run.losses
        (home / name).mkdir()
        keeper = FakeKeeper(home / name)
        run = Run(keeper, made, plan, sampler)
        run.go(14)
        run.watch.__exit__(None, None, None)
        keeper.close()
        return run.losses

    plain = losses("none", None)
    assert losses("every", Sampler(every=1)) == plain
    assert losses("some", Sampler(every=5)) == plain


def test_interventions_that_change_no_layer_or_fail_report_no_layers(play: Callable[..., Run]) -> None:
    turns = {1: "activation=tanh,way=blend", 2: "residual=on", 3: "dropout=0.1", 4: "lr=*2", 5: "init=xavier"}
    run = play(family("mlp"), turns | {6: "norm@blocks.9=layer"})
    run.go(60)
    assert not run.events_of(LayersChanged)
    assert len(run.events_of(KnobTurned)) == 5
    assert len(run.events_of(CommandRejected)) == 1


def test_deferred_reading_has_the_rows_of_its_own_step(
    monkeypatch: pytest.MonkeyPatch, play: Callable[..., Run]
) -> None:
    """As on a GPU, where a reading arrives some steps after its update."""
    monkeypatch.setattr(deferred, "ASYNCHRONOUS", {"cuda", "cpu"})
    run = play(family("mlp"), {3: TURN, 6: "norm=none"})
    run.go(9)
    run.watch.control.report_all()
    layers = run.layers()
    readings = run.keeper.readings()  # type: ignore[union-attr]
    assert [r.structure for r in readings] == [0] * 3 + [1] * 3 + [2] * 3
    for reading, ran, rows in zip(readings, run.ran, run.rows, strict=True):
        assert layers[reading.structure] == ran
        for n, name in enumerate(ran):
            check_row(reading, n, *rows[name], 1e-5)


def test_added_norm_can_be_frozen_and_is_shown_as_frozen(play: Callable[..., Run]) -> None:
    run = play(family("mlp"), {2: TURN, 4: "freeze@blocks.1.norm=on", 6: "freeze=off"})
    run.go(8)
    assert not run.events_of(CommandRejected)
    place = run.layers()[1].index("blocks.1.norm")
    readings = run.keeper.readings()[2:]  # type: ignore[union-attr]
    assert [r.statuses[place] for r in readings] == ["used"] * 2 + ["frozen"] * 2 + ["used"] * 2
    assert [r.values["grad_norm"][place] is None for r in readings] == [False] * 2 + [True] * 2 + [False] * 2
    for reading in readings:
        assert reading.statuses.count("frozen") == (reading.step in (4, 5))


def test_layer_change_is_never_dropped_for_a_keeper_that_does_not_read(keeper: FakeKeeper) -> None:
    """Other events are dropped; without this one, later readings would be assigned to the wrong layers."""
    filler = Noted(step=0, text="x" * 1_000_000)
    for _ in range(30):
        keeper.link.emit(filler)
    keeper.link.emit(LayersChanged(segment=0, step=7, structure=1, parameters=0, layers=()))
    received: list[AnyEvent] = []
    for _ in range(10_000):
        received += keeper.events()
        keeper.link.commands()  # this also sends what is queued
    assert isinstance(received[-1], LayersChanged)
    assert 1 < len(received) < 30


def test_fault_names_an_added_norm(play: Callable[..., Run]) -> None:
    run = play(family("mlp"), {2: TURN})
    run.go(4)
    with torch.no_grad():
        run.made.model.get_parameter("blocks.1.norm.weight").fill_(math.inf)
    run.go(1)
    found = run.events_of(NotFinite)[0]
    assert (found.layer, found.cause, found.where) == ("blocks.1.norm", "weights", "the weight of blocks.1.norm is inf")


def test_dead_units_of_a_conv_net_are_channels_also_with_a_norm_before_the_activation() -> None:
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10))
    found = structure(net)
    assert [(a.row, found.layers[a.row].layer.kind) for a in found.activations] == [(0, "Conv2d")]
    assert np.array_equal([u.row for u in found.units], [0, 1, 2])
