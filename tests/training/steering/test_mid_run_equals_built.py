"""Once its changes are complete, a net equals one that was built that way, module by module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from net_families import setup as make_setup
from torch import nn

from tui_descent.scenario.knobs import parse
from tui_descent.training.setup.build import Setup
from tui_descent.training.steering.steering import Steering

UPDATES_AFTER = 60  # the last intervention; more than a blend or a rotation takes
Turns = tuple[tuple[int, str], ...]

CASES: dict[str, tuple[dict[str, Any], Turns, dict[str, Any]]] = {
    "residual by ramp": ({}, ((2, "residual=on,way=ramp"),), {"residual": "on"}),
    "residual closed": ({"residual": "on"}, ((2, "residual=off,way=ramp"),), {"residual": "off"}),
    "activation by blend": ({}, ((2, "activation=tanh"),), {"activation": "tanh"}),
    "norm in": ({}, ((2, "norm=layer"),), {"norm": "layer"}),
    "norm out": ({"norm": "rms"}, ((2, "norm=none"),), {"norm": "none"}),
    "dropout": ({}, ((2, "dropout=0.1"),), {"dropout": 0.1}),
    "no dropout": ({"dropout": 0.1}, ((2, "dropout=0"),), {"dropout": 0.0}),
    "optimizer": ({}, ((2, "optimizer=sgd"), (4, "optimizer=adam")), {}),
    # A second change before the first is complete.
    "a blend within a blend": (
        {},
        ((2, "activation=tanh"), (10, "activation=gelu"), (13, "activation=silu")),
        {"activation": "silu"},
    ),
    "there and back": ({"activation": "relu"}, ((2, "activation=tanh"), (10, "activation=relu")), {}),
    "a rotation reversed by a ramp": ({}, ((2, "residual=on,way=rotation"), (9, "residual=off,way=ramp")), {}),
    "a rotation continued by a ramp": (
        {},
        ((2, "residual=on,way=rotation"), (9, "residual=on,way=ramp")),
        {"residual": "on"},
    ),
    "rezero": ({}, ((2, "residual=on,way=rezero"),), {"residual": {"name": "on", "way": "rezero"}}),
    "rezero within a ramp": (
        {},
        ((2, "residual=on,way=ramp"), (9, "residual=on,way=rezero")),
        {"residual": {"name": "on", "way": "rezero"}},
    ),
    "rezero closed": (
        {"residual": {"name": "on", "way": "rezero"}},
        ((2, "residual=off,way=ramp"),),
        {"residual": "off"},
    ),
    "rezero, then a fixed branch": (
        {},
        ((2, "residual=on,way=rezero"), (9, "residual=on,way=ramp")),
        {"residual": "on"},
    ),
    "all at once": (
        {},
        (
            (2, "activation=tanh"),
            (3, "residual=on,way=ramp"),
            (5, "norm=layer"),
            (7, "activation=silu"),
            (9, "optimizer=sgd"),
            (12, "norm=none"),
            (14, "dropout=0.2"),
            (15, "optimizer=adam"),
        ),
        {"activation": "silu", "residual": "on", "dropout": 0.2},
    ),
}


def train(made: Setup, turns: Turns, steps: int) -> tuple[Steering, list[float]]:
    steering = Steering(made.model, made.optimizer, setup=made, seed=3, steps=500)
    losses = []
    for step in range(steps):
        for at, text in turns:
            if at == step:
                steering.turn(parse(text), step=step)
        steering.advance()
        loss = made.loss()
        made.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        made.optimizer.step()
        steering.after_update()
        steering.add_loss(loss.item())
        losses.append(loss.item())
    return steering, losses


def tree(model: nn.Module) -> list[Any]:
    """Names, types, settings and hooks of every module, in order."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        (
            name,
            type(module).__name__,
            module.extra_repr(),
            module.training,
            sum(len(getattr(module, kind)) for kind in hooks),
            {key: repr(value) for key, value in vars(module).items() if not key.startswith("_")},
            [(key, tuple(p.shape), p.dtype, p.requires_grad) for key, p in module.named_parameters(recurse=False)],
        )
        for name, module in model.named_modules()
    ]


def optimizer_groups(made: Setup) -> list[Any]:
    """Each group's parameters by name, and its settings without the learning rate."""
    names = {id(p): name for name, p in made.model.named_parameters()}
    return [
        ([names[id(p)] for p in group["params"]], {k: v for k, v in group.items() if k not in ("params", "lr")})
        for group in made.optimizer.param_groups
    ]


# What these cases change differs between the families; the others change modules that all families share.
OF_EVERY_FAMILY = ("residual by ramp", "residual closed", "norm in", "norm out", "all at once")


@pytest.mark.parametrize(
    ("case", "family"),
    [
        pytest.param(case, family, marks=() if family == "mlp" or case in OF_EVERY_FAMILY else pytest.mark.heavy)
        for case in CASES
        for family in ("mlp", "conv", "transformer")
    ],
)
def test_a_changed_net_equals_one_built_that_way(case: str, family: str) -> None:
    start, turns, end = CASES[case]
    if family == "transformer":  # its blocks have a norm by default
        start, end = {"norm": "none"} | start, {"norm": "none"} | end
    made, built = make_setup(family, **start), make_setup(family, **(start | end))
    steering, losses = train(made, turns, turns[-1][0] + UPDATES_AFTER)
    assert not steering.context.transitions
    assert tree(made.model) == tree(built.model)
    assert type(made.optimizer) is type(built.optimizer)
    if "optimizer" not in str(turns):  # a new optimizer may have other settings
        assert optimizer_groups(made) == optimizer_groups(built)
    assert {id(p) for p in made.optimizer.state} <= {id(p) for p in made.model.parameters()}
    assert all(map(torch.isfinite, map(torch.tensor, losses)))


def test_interrupted_transitions_replay_bit_for_bit() -> None:
    _, turns, _ = CASES["all at once"]
    first, again = (train(make_setup("mlp"), turns, 40)[1] for _ in range(2))
    assert first == again
    without = train(make_setup("mlp"), turns[1:], 40)[1]
    assert without[:2] == first[:2]
    assert without != first
