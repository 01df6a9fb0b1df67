"""Skips whose branch is learnt and starts at 0 (ReZero): what they compute, and what changes with them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from knob_turns import steering_of
from net_families import setup, train
from small_scenario import SMALL, problems

from tui_descent.instruments.chain_rule_ledger import ChainRuleLedger
from tui_descent.instruments.net_structure import structure
from tui_descent.scenario.knobs import parse

REZERO = {"name": "on", "way": "rezero"}


@pytest.mark.parametrize("family", ["mlp", "conv", "transformer"])
def test_a_block_starts_as_the_identity_and_its_branch_is_learnt(family: str) -> None:
    made = setup(family, residual=REZERO)
    seen: list[Any] = []
    hooks = [
        block.register_forward_hook(lambda _, args, out: seen.append((args[0], out))) for block in made.model.blocks
    ]  # type: ignore[union-attr]
    made.loss()
    assert len(seen) == len(hooks)
    assert all(torch.equal(x, y) for x, y in seen)
    for hook in hooks:
        hook.remove()
    train(made, 20)
    assert all(block.alpha.item() != 0.0 for block in made.model.blocks)  # type: ignore[union-attr]


def test_gates_are_counted_as_parameters_but_are_no_layers() -> None:
    plain, gated = (setup("mlp", residual=residual).model for residual in ("off", REZERO))
    count = [sum(p.numel() for p in net.parameters()) for net in (plain, gated)]
    assert count[1] == count[0] + 3
    assert [w.layer.name for w in structure(gated).layers] == [w.layer.name for w in structure(plain).layers]
    assert [w.layer.params for w in structure(gated).layers] == [w.layer.params for w in structure(plain).layers]


def test_a_copy_has_gates_of_its_own() -> None:
    net = setup("mlp", residual=REZERO).model
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.blocks[0].alpha.fill_(0.5)  # type: ignore[index, union-attr]
    assert twin.blocks[0].skip.branch is twin.blocks[0].alpha  # type: ignore[index, union-attr]
    assert net.blocks[0].alpha.item() == 0.0  # type: ignore[index, union-attr]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "muon"])
def test_gates_join_and_leave_the_optimizer(optimizer: str) -> None:
    made = setup("mlp", optimizer={"name": optimizer, "lr": 0.01})
    steering = steering_of(made)
    train(made, 3)

    def in_optimizer() -> set[int]:
        return {id(p) for group in made.optimizer.param_groups for p in group["params"]}

    without = in_optimizer()
    change = steering.turn(parse("residual=on,way=rezero"), step=3)
    assert (change.new, change.way, change.scale, change.note) == ("on", "rezero", None, "3 parameters added")
    assert in_optimizer() == {id(p) for p in made.model.parameters()} > without
    train(made, 5)
    alphas = [block.alpha.item() for block in made.model.blocks]  # type: ignore[union-attr]
    again = steering.turn(parse("residual@blocks.1=on,way=rezero"), step=8)
    assert again.note is None
    assert [block.alpha.item() for block in made.model.blocks] == alphas, "a gate that is there keeps its value"  # type: ignore[union-attr]
    steering.turn(parse("residual=off,way=instant"), step=8)
    assert in_optimizer() == {id(p) for p in made.model.parameters()} == without


def test_another_way_starts_from_the_learnt_values() -> None:
    made = setup("mlp", residual=REZERO)
    steering = steering_of(made)
    train(made, 10)
    x, _ = made.batches.next()  # type: ignore[union-attr]
    before = made.model(x)
    steering.turn(parse("residual=on,way=ramp"), step=10)
    assert torch.equal(made.model(x), before)
    assert not any("alpha" in name for name, _ in made.model.named_parameters())


def test_the_ledger_agrees_with_autograd_through_a_gate() -> None:
    made = setup("mlp", residual=REZERO, activation="tanh")
    train(made, 20)
    ledger = ChainRuleLedger([(unit.name, unit.module) for unit in structure(made.model).units])
    ledger.attach()
    made.loss().backward()  # type: ignore[no-untyped-call]
    ledger.detach()
    found = [entry.discrepancy for entry in ledger.entries().result()]
    assert len(found) == 3
    assert all(off is not None and off < 1e-5 for off in found)


def test_rezero_has_no_scale_to_choose() -> None:
    steering = steering_of(setup("mlp"))
    with pytest.raises(ValueError, match="with rezero the scale is learnt and starts at 0; leave it out"):
        steering.turn(parse("residual=on,way=rezero,scale=0.5"), step=0)
    text = SMALL.replace("[model]\n", '[model]\nresidual = { name = "on", way = "rezero", scale = 0.5 }\n')
    assert problems(text) == {
        "model.residual.scale": "found 0.5; with rezero the scale is learnt and starts at 0; remove it"
    }
