"""Several nets that are watched as one, such as the generator and the discriminator of a GAN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn


class SeveralNets(nn.Module):
    """Holds the nets under their names. The name of each module thus begins with the name of its net."""

    def __init__(self, nets: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, net in nets.items():
            try:
                self.add_module(name, net)
            except (KeyError, TypeError) as error:
                raise ValueError(f"watch() cannot use {name!r} as the name of a net: {error.args[0]}") from None


def as_one_net(model: object) -> nn.Module:
    """The net that was passed to `watch()`, or several nets combined into one. A dict gives their names; in a list the
    names are `0`, `1`, …. Raises `ValueError` for anything else.
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, Mapping):
        nets = dict(model)
    elif isinstance(model, Sequence) and not isinstance(model, str):
        nets = {str(n): net for n, net in enumerate(model)}
    else:
        raise ValueError(f"watch() takes a torch.nn.Module, or a dict or list of them; found {type(model).__name__}")
    wrong = next((net for net in nets.values() if not isinstance(net, nn.Module)), None)
    if wrong is not None or not nets:
        found = "none" if wrong is None else f"a {type(wrong).__name__} among them"
        raise ValueError(f"watch() takes a torch.nn.Module, or a dict or list of them; found {found}")
    return SeveralNets(nets)


def whole_nets(model: nn.Module) -> dict[str, nn.Module]:
    """The nets that a loop calls as a whole, by the names of their modules: `model`, or each of several nets."""
    several = isinstance(model, SeveralNets | nn.ModuleDict | nn.ModuleList)
    return dict(model.named_children()) if several else {"": model}


def describe_net(model: nn.Module) -> str:
    """The class of a net, or the classes of several nets that are watched as one."""
    if isinstance(model, SeveralNets):
        return ", ".join(type(net).__name__ for net in model.children())
    return type(model).__name__
