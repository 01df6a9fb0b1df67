"""A net as plain values: its numbers, and what the knobs have changed in its structure.

The structure is saved as it is, not as the list of interventions that made it: `load_net` gives a net that was
just built the same blocks, and then the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from tui_descent.instruments.net_structure import is_activation
from tui_descent.scenario.spec import Activation, ActivationSpec, NormSpec
from tui_descent.training.setup.nets import parts
from tui_descent.training.setup.nets.block import Block, Skip, rezero
from tui_descent.training.steering import surgery
from tui_descent.training.undo.plain_values import plain
from tui_descent.training.undo.snapshot_file import SnapshotError

_ACTIVATIONS: dict[type[nn.Module], str] = {
    type(parts.activation(ActivationSpec(name=name))): name for name in get_args(Activation)
}


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer of a net by name, also those that are not in its `state_dict`."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def save_net(
    model: nn.Module, blocks: Mapping[str, Block], user_blocks: Mapping[str, surgery.UserBlock]
) -> dict[str, Any]:
    """The net as plain values. `blocks` are those of a built-in net, `user_blocks` those of a user's net.

    Raises `SnapshotError` for a net with tensors that cannot be saved.
    """
    return {
        "tensors": {name: plain(tensor, what=f"the net's {name}") for name, tensor in named_tensors(model)},
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "blocks": {name: _save_block(block) for name, block in blocks.items()},
        "skips": {name: _save_skip(block.skip) for name, block in user_blocks.items() if block.skip is not None},
        "activations": {} if blocks else _save_activations(model),
        "dropout": {} if blocks else {name: float(m.p) for name, m in _dropouts(model)},
    }


@torch.no_grad()
def load_net(model: nn.Module, blocks: Mapping[str, Block], saved: dict[str, Any]) -> dict[str, surgery.UserBlock]:
    """Give a net the structure and the numbers that `save_net` returned. Returns the blocks of a user's net that have a
    skip.

    Raises `SnapshotError` if the net does not fit. A built-in net may then have been changed; a user's net has not.
    """
    if blocks:
        if blocks.keys() != saved["blocks"].keys():
            raise SnapshotError(f"it has {len(saved['blocks'])} blocks, the net has {len(blocks)}")
        for name, block in blocks.items():
            _load_block(block, saved["blocks"][name])
    tensors = dict(named_tensors(model))
    _check_tensors(tensors, saved["tensors"])
    skips = {} if blocks else _load_user_structure(model, saved)
    for name, tensor in tensors.items():
        if tensor.is_leaf and tensor.requires_grad:
            tensor.detach().copy_(saved["tensors"][name])
        else:
            tensor.copy_(saved["tensors"][name])
    frozen = set(saved["frozen"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
        parameter.grad = None
    return skips


def _check_tensors(found: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    for name in saved.keys() - found.keys():
        raise SnapshotError(f"it has {name[:60]}, which the net has not")
    for name, tensor in found.items():
        if name not in saved:
            raise SnapshotError(f"the net has {name[:60]}, which it has not")
        one = saved[name]
        if one.shape != tensor.shape or one.dtype != tensor.dtype:
            ours, theirs = (f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in (one, tensor))
            raise SnapshotError(f"its {name[:60]} is {ours}, the net's is {theirs}")


def _save_block(block: Block) -> dict[str, Any]:
    norm = block.norm
    return {
        "activation": None if block.activation is None else _save_activation(block.activation),
        "norm": "none" if norm is None else "rms" if isinstance(norm, nn.RMSNorm) else "layer",
        "where": block.where,
        "skip": None if block.skip is None else _save_skip(block.skip),
        "dropout": 0.0 if block.dropout is None else float(getattr(block.dropout, "p", 0.0)),
    }


def _load_block(block: Block, saved: dict[str, Any]) -> None:
    surgery.set_norm(block, {"": block}, NormSpec(name=saved["norm"], where=saved["where"]))
    block.where = saved["where"]
    skip = saved["skip"]
    if skip is None or skip["branch"] is not None:
        block.put_skip(None if skip is None else Skip(skip["branch"], gate=skip["gate"]))
    elif not surgery.is_learnt(block):
        block.put_skip(rezero(next(block.core.parameters())))
    block.put_dropout(saved["dropout"])
    if saved["activation"] is not None and _spec_of(block.activation) != saved["activation"]:
        block.activation = _load_activation(saved["activation"]).train(block.training)


def _save_skip(skip: Skip) -> dict[str, Any]:
    """A learnt branch is one of the net's parameters, so its value is with the net's tensors."""
    return {"gate": skip.gate, "branch": None if isinstance(skip.branch, nn.Parameter) else float(skip.branch)}


def _save_activation(module: nn.Module) -> dict[str, Any]:
    spec = _spec_of(module)
    if spec is None:
        raise SnapshotError(f"the activation {type(module).__name__} cannot be saved")
    return spec


def _spec_of(module: nn.Module | None) -> dict[str, Any] | None:
    """The activation as plain values; None if it is none of those that a knob sets."""
    if isinstance(module, surgery.Blend):
        old, new = _spec_of(module.old), _spec_of(module.new)
        return None if old is None or new is None else {"old": old, "new": new, "t": float(module.t)}
    name = _ACTIVATIONS.get(type(module)) if module is not None else None
    if name is None:
        return None
    slope = getattr(module, "negative_slope", None)
    return {"name": name} if slope is None else {"name": name, "slope": float(slope)}


def _load_activation(saved: dict[str, Any], keep: nn.Module | None = None) -> nn.Module:
    """A new activation module; its blend contains `keep` as the old activation, if that is the one that was saved."""
    if "new" not in saved:
        return keep if keep is not None and _spec_of(keep) == saved else parts.activation(_activation_spec(saved))
    blend = surgery.Blend(_load_activation(saved["old"], keep), _load_activation(saved["new"]))
    blend.t = saved["t"]
    return blend


def _activation_spec(saved: dict[str, Any]) -> ActivationSpec:
    return msgspec.convert(saved, ActivationSpec)


def _save_activations(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The activations of a user's net that a knob may have set. Those inside a blend belong to the blend."""
    found: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found if "new" in found[other])
        if name and not inside and (is_activation(module) or isinstance(module, surgery.Blend)):
            spec = _spec_of(module)
            if spec is not None:
                found[name] = spec
    return found


def _dropouts(model: nn.Module) -> Iterator[tuple[str, _DropoutNd]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, _DropoutNd))


def _load_user_structure(model: nn.Module, saved: dict[str, Any]) -> dict[str, surgery.UserBlock]:
    modules = dict(model.named_modules())
    named = [*saved["activations"], *saved["dropout"], *saved["skips"]]
    if missing := next((name for name in named if name not in modules), None):
        raise SnapshotError(f"it has the module {missing[:60]}, which the net has not")
    try:
        skips = {name: surgery.UserBlock(modules[name]) for name in saved["skips"]}
    except ValueError as error:
        raise SnapshotError(str(error)) from None
    for name, spec in saved["activations"].items():
        if _spec_of(modules[name]) != spec:
            new = _load_activation(spec, modules[name]).train(modules[name].training)
            surgery.replace_module(model, name, new)
    for name, p in saved["dropout"].items():
        module = modules[name]
        if isinstance(module, _DropoutNd):
            module.p = p
    for name, block in skips.items():
        block.skip = Skip(saved["skips"][name]["branch"], gate=saved["skips"][name]["gate"])
    return skips
