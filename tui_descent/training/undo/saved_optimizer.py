"""An optimizer as plain values: its class, its groups with their options, and its state such as Adam's averages.

`load_state_dict` is not used, because it converts the state of a bfloat16 weight to bfloat16.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tui_descent.training.optim.muon import Muon
from tui_descent.training.undo.plain_values import plain
from tui_descent.training.undo.snapshot_file import SnapshotError

_CLASSES: dict[str, Any] = {
    kind.__name__: kind for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, Muon)
}


def parameter_names(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, nn.Parameter]:
    """The parameters of the net and of the optimizers by name. Those that are not in the net are named by their place
    in the optimizer.
    """
    names = dict(model.named_parameters())
    known = {id(parameter) for parameter in names.values()}
    for number, optimizer in enumerate(optimizers):
        for group_number, group in enumerate(optimizer.param_groups):
            for place, parameter in enumerate(group["params"]):
                if id(parameter) not in known:
                    known.add(id(parameter))
                    names[f"optimizer {number}, group {group_number}, parameter {place}"] = parameter
    return names


def save_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    """The optimizer as plain values; `names` has the names of its parameters by their ids.

    Options that are not plain values, such as functions, are left out: the script sets them. Raises `SnapshotError` for
    a state of another kind.
    """
    kind = type(optimizer).__name__
    on_host: set[str] = set()
    state: dict[str, Any] = {}
    for parameter, values in optimizer.state.items():
        if id(parameter) not in names or not isinstance(values, dict):
            continue
        state[names[id(parameter)]] = plain(values, what=f"the state of {kind}")
        on_host |= {
            key for key, value in values.items() if isinstance(value, Tensor) and value.device != parameter.device
        }
    options = [_plain_options(group) for group in optimizer.param_groups]
    saved = {
        "class": kind,
        "groups": options,
        "parameters": [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups],
        "state": state,
        "on_host": sorted(map(str, on_host)),
    }
    if _CLASSES.get(kind) is type(optimizer):
        saved["defaults"] = plain(optimizer.defaults)
    if isinstance(optimizer, Muon):
        saved["hidden"] = [names[id(p)] for p in optimizer.hidden if id(p) in names]
    return saved


def _plain_options(group: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key, value in group.items():
        if key != "params":
            with contextlib.suppress(SnapshotError):
                options[key] = plain(value)
    return options


def build_optimizer(saved: dict[str, Any], parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """A new optimizer of the same class for the same parameters, with the same state. Raises `SnapshotError`."""
    kind = _CLASSES.get(saved["class"])
    if kind is None:
        raise SnapshotError(f"its optimizer {saved['class'][:40]} is not known")
    allowed = inspect.signature(kind).parameters
    defaults = {key: value for key, value in saved["defaults"].items() if key in allowed}
    if "hidden" in saved:
        defaults["hidden"] = [_found(parameters, name) for name in saved["hidden"]]
    groups = [
        {"params": [_found(parameters, name) for name in names], **options}
        for options, names in zip(saved["groups"], saved["parameters"], strict=True)
    ]
    try:
        optimizer: torch.optim.Optimizer = kind(groups, **defaults)
    except (ValueError, TypeError, RuntimeError) as error:
        raise SnapshotError(f"its optimizer cannot be created: {error}") from error
    load_optimizer(optimizer, saved, parameters)
    return optimizer


def check_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any], names: Mapping[int, str]) -> None:
    """Raises `SnapshotError` unless the optimizer has the class and the parameters of the saved one."""
    if type(optimizer).__name__ != saved["class"]:
        raise SnapshotError(f"its optimizer is {saved['class'][:40]}, this one is {type(optimizer).__name__}")
    if [[names.get(id(p)) for p in group["params"]] for group in optimizer.param_groups] != saved["parameters"]:
        raise SnapshotError("its optimizer has other parameters")


def load_optimizer(
    optimizer: torch.optim.Optimizer, saved: dict[str, Any], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Set the options and the state of an optimizer that has the same parameters."""
    for group, options in zip(optimizer.param_groups, saved["groups"], strict=True):
        for key, value in options.items():
            if isinstance(group.get(key), Tensor) and isinstance(value, Tensor):
                with torch.no_grad():  # a compiled optimizer keeps reading the same tensor
                    group[key].copy_(value)
            else:
                group[key] = value
    on_host = set(saved["on_host"])
    optimizer.state.clear()
    for name, values in saved["state"].items():
        parameter = _found(parameters, name)
        optimizer.state[parameter] = {
            key: _placed(value, torch.device("cpu") if key in on_host else parameter.device)
            for key, value in values.items()
        }


def _placed(value: Any, device: torch.device) -> Any:
    """A copy of a value of the state, with its tensors on `device`."""
    match value:
        case Tensor():
            return value.to(device, copy=True)
        case dict():
            return {key: _placed(one, device) for key, one in value.items()}
        case list() | tuple():
            return type(value)(_placed(one, device) for one in value)
    return value


def _found(parameters: Mapping[str, nn.Parameter], name: str) -> nn.Parameter:
    if name not in parameters:
        raise SnapshotError(f"its optimizer has {name[:60]}, which the net has not")
    return parameters[name]
