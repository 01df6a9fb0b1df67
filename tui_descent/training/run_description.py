"""Describes, for events, a user loop, the final position on a test surface, or an exception."""

from __future__ import annotations

import platform

import msgspec
import torch
from torch import nn

from tui_descent.instruments.not_measured import count_numbers, why_not_measured
from tui_descent.protocol.events import KnobState, Layer, RunStarted
from tui_descent.training.several_nets import describe_net, whole_nets

OUR_NOTE = "tui-descent: "  # the beginning of the notes that this package adds to a user's exception


def describe(error: BaseException) -> str:
    """An exception as one line, with the notes that this package has added to it."""
    lines = str(error).strip().splitlines()
    notes = [f"; {note.removeprefix(OUR_NOTE)}" for note in getattr(error, "__notes__", ()) if OUR_NOTE in note[:20]]
    return f"{type(error).__name__}{f': {lines[0][:300]}' if lines else ''}{''.join(notes)}"


def about_user_loop(name: str, model: nn.Module, *optimizers: torch.optim.Optimizer) -> RunStarted:
    """The `RunStarted` event of a user loop. `started` fills in the run id, the layers and the knobs."""
    return RunStarted(
        run="",
        name=name,
        title=name,
        about=f"your own loop · {describe_net(model)} · {', '.join(type(one).__name__ for one in optimizers)}",
        scenario=None,
        device=next((str(p.device) for p in model.parameters()), "cpu"),
        threads=torch.get_num_threads(),
        parameters=0,
        layers=(),
        knobs=(),
        versions={"torch": str(torch.__version__), "python": platform.python_version()},
        nets=tuple(filter(None, whole_nets(model))),
    )


def position(model: nn.Module) -> tuple[float, ...] | None:
    """The values of the parameters, if they are at most two real numbers; otherwise None."""
    parameters = list(model.parameters())
    if count_numbers(parameters) > 2 or any(p.is_complex() or why_not_measured(p) for p in parameters):
        return None
    return tuple(v for p in parameters for v in p.detach().flatten().tolist())


def describe_wrong_optimizer(optimizer: object) -> str:
    """Describe an object that was passed instead of an optimizer, for an error message."""
    found = type(optimizer).__name__
    if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
        return f"the class {optimizer.__name__}; create the optimizer first"
    return found


def started(
    about: RunStarted, run: str, model: nn.Module, layers: tuple[Layer, ...], knobs: tuple[KnobState, ...]
) -> RunStarted:
    """Complete the event `about` with the run's id, layers and knobs."""
    parameters = count_numbers(model.parameters())
    return msgspec.structs.replace(about, run=run, parameters=parameters, layers=layers, knobs=knobs)
