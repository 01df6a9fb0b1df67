"""The factor of each part of a block, for those who step through the backward pass: right, and without a trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from nets import digit_batches, loss_of, mlp
from probed_runs import assert_same_run, made, outcome, train
from torch import Tensor, nn

from tui_descent.dashboard.panels.backward_pass import backward_steps
from tui_descent.instruments.chain_rule_ledger import ChainRuleLedger
from tui_descent.instruments.net_structure import structure
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import MeasureBackwardPass, TurnKnob
from tui_descent.protocol.events import CommandDone, CommandRejected, LedgerEntry, LedgerTaken
from tui_descent.telemetry.history import History
from tui_descent.training.probes import backward_pass as probe
from tui_descent.training.setup.build import Setup
from tui_descent.training.steering.command_handler import NO_REPLAY
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.watch import Watch

FORMS: dict[str, dict[str, Any]] = {
    "plain": {"activation": "sigmoid"},
    "pre": {"activation": "gelu", "norm": {"name": "layer", "where": "pre"}},
    "mid, skip": {"activation": "relu", "norm": {"name": "rms", "where": "mid"}, "residual": "on"},
    "post, skip": {
        "activation": "tanh",
        "norm": {"name": "layer", "where": "post"},
        "residual": {"name": "on", "scale": 0.3},
    },
}


def norms_by_autograd(net: nn.Module, loss: Callable[[], Tensor]) -> list[list[float]]:
    """‖∂L/∂·‖ before each part of each block and at its input, in the order of the backward pass, by autograd alone."""
    kept: list[list[Tensor]] = []

    def slowly(block: Any, x: Tensor) -> Tensor:
        # A copy of the input for the branch tells the gradient of the branch from that of the skip.
        x = x * 1.0
        at = x * 1.0
        tensors, children = [at], list(block.children())
        after = children.pop() if block.norm is not None and block.where == "post" and block.norm_after_skip else None
        for module in children:
            at = module(at)
            tensors.append(at)
        if block.skip is not None:
            at = block.skip.combine(x, at)
            tensors = [x, *tensors, at]
        if after is not None:
            at = after(at)
            tensors.append(at)
        kept.append(tensors)
        return at

    blocks = list(net.blocks)  # type: ignore[arg-type]
    for block in blocks:
        block.forward = partial(slowly, block)
    value = loss()
    for block in blocks:
        del block.forward
    return [[float(g.norm()) for g in torch.autograd.grad(value, t, retain_graph=True)][::-1] for t in kept]


def factors(norms: list[float]) -> list[float]:
    return [after / before for before, after in pairwise(norms)]


def measured(net: nn.Module, batch: tuple[Tensor, Tensor]) -> list[LedgerEntry]:
    ledger = ChainRuleLedger([(unit.name, unit.module) for unit in structure(net).units])
    ledger.attach()
    loss_of(net, batch).backward()  # type: ignore[no-untyped-call]
    ledger.detach()
    return ledger.entries(parts=True).result()


@pytest.mark.parametrize("form", FORMS)
def test_each_part_has_the_factor_that_autograd_gives(form: str) -> None:
    net = mlp(dtype=torch.float64, depth=4, **FORMS[form])
    batch = digit_batches(1, dtype=torch.float64)[0]
    entries = measured(net, batch)
    for entry, norms in zip(entries, norms_by_autograd(net, lambda: loss_of(net, batch)), strict=True):
        assert [one.factor for one in entry.parts] == pytest.approx(factors(norms), rel=1e-9)
        assert math.prod(one.factor or 0.0 for one in entry.parts) == pytest.approx(entry.factor, rel=1e-12)


OTHERS: dict[str, tuple[tuple[str, ...], list[list[str]]]] = {
    "transformer": (
        ("transformer", "model.depth=1", "model.context=8"),
        [["attention"], ["out", "activation", "weights"]],
    ),
    "transformer, pre, skip": (
        ("transformer", "model.depth=1", "model.context=8", "model.norm=layer", "model.residual=on"),
        [["scale", "attention", "norm", "skip"], ["scale", "out", "activation", "weights", "norm", "skip"]],
    ),
    "transformer, post, skip, dropout": (
        ("transformer", "model.depth=1", "model.context=8", "model.norm.name=rms", "model.norm.where=post",
         "model.residual=on", "model.dropout=0.2"),
        [["norm", "scale", "dropout", "attention", "skip"],
         ["norm", "scale", "dropout", "out", "activation", "weights", "skip"]],
    ),
    "conv": (
        ("healthy", "model.name=conv", "model.depth=2", "model.width=4", "model.norm.name=layer",
         "model.norm.where=post", "model.residual=on"),
        [["scale", "norm", "activation", "convolution", "skip"]] * 2,
    ),
    "linear, dropout": (
        ("healthy", "model.depth=2", "model.dropout=0.3"),
        [["dropout", "activation", "weights"]] * 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_blocks_without_formulas_have_the_factors_of_autograd(kind: str) -> None:
    overrides, parts = OTHERS[kind]
    setup = made(*overrides, "run.dtype=float64")
    setup.loss()
    torch.manual_seed(5)
    norms = norms_by_autograd(setup.model, setup.replay_forward)
    torch.manual_seed(5)  # the same dropout masks
    entries = probe.backward_pass(setup, structure(setup.model))
    assert [[one.part for one in entry.parts] for entry in entries] == parts
    product = 1.0
    for entry, wanted in zip(reversed(entries), reversed(norms), strict=True):
        assert [one.factor for one in entry.parts] == pytest.approx(factors(wanted), rel=1e-6)
        assert entry.factor == pytest.approx(wanted[-1] / wanted[0], rel=1e-9)
        product *= math.prod(one.factor or 0.0 for one in entry.parts)
        assert product == pytest.approx(entry.product, rel=1e-6)


def test_after_a_gradient_of_zero_the_factors_are_unknown() -> None:
    net = mlp(depth=2, activation="relu")
    with torch.no_grad():
        net.blocks[1].linear.bias.fill_(-1e3)  # type: ignore[union-attr, index, operator]
    first, last = measured(net, digit_batches(1)[0])
    assert (last.factor, [one.factor for one in last.parts]) == (0.0, [0.0, None])
    assert (first.factor, [one.factor for one in first.parts]) == (None, [None, None])


def test_a_usual_reading_has_no_parts() -> None:
    net = mlp(depth=2)
    ledger = ChainRuleLedger([(unit.name, unit.module) for unit in structure(net).units])
    ledger.attach()
    loss_of(net, digit_batches(1)[0]).backward()  # type: ignore[no-untyped-call]
    ledger.detach()
    assert all(entry.parts == () and entry.factor for entry in ledger.entries().result())


NETS = {
    "sigmoid": ("vanishing", "model.depth=4"),
    "dropout, skips": ("healthy", "model.dropout=0.3", "model.residual=on", "model.norm=layer"),
    "transformer": ("transformer", "model.depth=1", "model.context=8", "model.dropout=0.3"),
}


def watched(setup: Setup, keeper: FakeKeeper | None) -> Watch:
    return Watch(
        setup.model,
        setup.optimizer,
        link=keeper.link if keeper else None,
        sampler=Sampler(every=1),
        steering=Steering(setup.model, setup.optimizer, setup=setup),
        plan=[(3, TurnKnob(knob="activation", value="tanh")), (5, TurnKnob(knob="dropout", value="0"))],
        replay=setup,
        is_scenario=True,
    )


@pytest.mark.parametrize("kind", NETS)
def test_measuring_does_not_change_the_run(kind: str, keeper: FakeKeeper) -> None:
    plain, asked = made(*NETS[kind]), made(*NETS[kind])
    without = outcome(watched(plain, None), plain, 8)
    assert_same_run(without, outcome(watched(asked, keeper), asked, 8, lambda: keeper.send(MeasureBackwardPass())))
    events = keeper.events()
    found = [event for event in events if isinstance(event, LedgerTaken) and any(e.parts for e in event.entries)]
    assert [event.step for event in found] == [*range(1, 9)]
    assert len([e for e in events if isinstance(e, CommandDone) and e.client]) == 8


def test_the_parts_of_the_dashboard_are_those_of_the_trainer(keeper: FakeKeeper) -> None:
    """Through changes of each part; then the product over all parts is that of the ledger."""
    history, setup = History(), made("healthy", "model.depth=3", "model.norm=layer")
    run = watched(setup, keeper)
    run.control._plan = [
        (1, TurnKnob(knob="residual", value="on", way="instant")),
        (2, TurnKnob(knob="norm", value="rms", where="post")),
        (3, TurnKnob(knob="activation", value="gelu", way="instant")),
        (4, TurnKnob(knob="residual", value="off", way="ramp")),
        (5, TurnKnob(knob="norm", value="none")),
    ]
    train(run, setup, 7, lambda: keeper.send(MeasureBackwardPass()))
    passes = 0
    for event in keeper.events():
        history.apply(event)
        if event is not history.backward_pass:
            continue
        passes += 1
        steps = backward_steps(event, history)
        product = 1.0
        for step, entry in zip(steps, reversed(event.entries), strict=True):
            assert [part.part for part in step.parts.explanations()] == [one.part for one in entry.parts]
            product *= math.prod(factor or 0.0 for factor in step.factors.values())
            assert product == pytest.approx(entry.product, rel=1e-6)
            assert entry.discrepancy is not None
            assert entry.discrepancy < 1e-4
    assert passes == 7


def test_what_cannot_be_measured_is_rejected_with_the_reason(keeper: FakeKeeper) -> None:
    setup = made("saddle")
    run = watched(setup, keeper)
    run.control._plan = []
    train(run, setup, 2, lambda: keeper.send(MeasureBackwardPass()))
    assert {event.reason for event in keeper.events(CommandRejected)} == {probe.NO_BLOCKS}


def test_a_pass_that_raises_is_rejected_and_the_run_goes_on(
    keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("out of memory\nby far")

    monkeypatch.setattr(probe, "gradient", failing)
    setup = made("vanishing", "model.depth=2")
    assert len(train(watched(setup, keeper), setup, 2, lambda: keeper.send(MeasureBackwardPass()))) == 2
    reasons = {event.reason for event in keeper.events(CommandRejected)}
    assert reasons == {"the backward pass could not be measured: out of memory"}


def test_before_the_first_batch_nothing_can_be_measured() -> None:
    setup = made("vanishing", "model.depth=2")
    with pytest.raises(ValueError, match=probe.NO_BATCH):
        probe.backward_pass(setup, structure(setup.model))


def test_the_pass_of_a_user_loop_is_rejected(keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=keeper.link) as run:
        for batch in digit_batches(3):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            run.step(loss)
            keeper.send(MeasureBackwardPass())
    assert {event.reason for event in keeper.events(CommandRejected)} == {NO_REPLAY}
