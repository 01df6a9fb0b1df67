"""The whole state of a run as plain values, for a snapshot on disk, and back into a run.

An undo with a snapshot in memory uses `Snapshot` instead, which keeps the objects themselves.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

import msgspec
import torch

from tui_descent.scenario.spec import ScheduleSpec
from tui_descent.training.optim.schedules import make_schedule
from tui_descent.training.setup.build import Setup
from tui_descent.training.setup.data.batches import Batches
from tui_descent.training.steering import surgery
from tui_descent.training.steering.knobs.context import RECENT_LOSSES, RESTORED_FIELDS, KnobContext
from tui_descent.training.undo.plain_values import plain
from tui_descent.training.undo.random_state import RandomState
from tui_descent.training.undo.saved_net import load_net, save_net
from tui_descent.training.undo.saved_optimizer import (
    build_optimizer,
    check_optimizer,
    load_optimizer,
    parameter_names,
    save_optimizer,
)
from tui_descent.training.undo.snapshot_file import SnapshotError

State = dict[str, Any]


def save_run(context: KnobContext) -> State:
    """Net, optimizers, knobs, random numbers and, of a scenario run, its schedule and batches.

    Raises `SnapshotError` if something cannot be saved.
    """
    optimizers = [one.optimizer for one in context.optimizers]
    names = {id(p): name for name, p in parameter_names(context.model, optimizers).items()}
    return {
        "net": save_net(context.model, context.blocks, context.user_blocks),
        "other_parameters": _save_other_parameters(context, optimizers),
        "optimizers": [
            {
                "name": one.name,
                "clip": one.clip,
                "multiplier": one.rate.multiplier,
                **save_optimizer(one.optimizer, names),
            }
            for one in context.optimizers
        ],
        "setup": None if context.setup is None else _save_setup(context.setup),
        "knobs": _save_knobs(context),
        "random": _save_random(),
    }


def load_run(context: KnobContext, saved: State) -> None:
    """Give a run the state that `save_run` returned. Call `Steering.after_restore` next.

    A scenario run may have been trained and changed since. The objects of a user loop have to be new ones. Raises
    `SnapshotError` if the run does not fit. The objects of a user loop are then unchanged; a scenario run has to be
    built again, or rolled back.
    """
    if (context.setup is None) != (saved["setup"] is None):
        raise SnapshotError("it belongs to a run of another kind")
    try:
        _load(context, saved)
    except (KeyError, TypeError, IndexError, AttributeError, msgspec.ValidationError) as error:
        raise SnapshotError(f"its content is not complete: {type(error).__name__}: {error}"[:200]) from error


def _load(context: KnobContext, saved: State) -> None:
    setup = context.setup
    if [one.name for one in context.optimizers] != [one["name"] for one in saved["optimizers"]]:
        raise SnapshotError(f"it has {len(saved['optimizers'])} optimizers, the run has {len(context.optimizers)}")
    optimizers = [one.optimizer for one in context.optimizers]
    if setup is None:
        names = {id(p): name for name, p in parameter_names(context.model, optimizers).items()}
        for one, optimizer in zip(saved["optimizers"], optimizers, strict=True):
            check_optimizer(optimizer, one, names)
    context.user_blocks |= load_net(context.model, context.blocks, saved["net"])
    parameters = parameter_names(context.model, [] if setup is not None else optimizers)
    for name, tensor in saved["other_parameters"].items():
        parameters[name].detach().copy_(tensor)
    if setup is not None:
        _load_setup(context, setup, saved, parameters)
    else:
        for one, optimizer in zip(saved["optimizers"], optimizers, strict=True):
            load_optimizer(optimizer, one, parameters)
    for steered, one in zip(context.optimizers, saved["optimizers"], strict=True):
        steered.clip, steered.rate.multiplier = one["clip"], one["multiplier"]
    _load_knobs(context, saved["knobs"])
    _load_random(saved["random"])


def _save_other_parameters(context: KnobContext, optimizers: list[torch.optim.Optimizer]) -> State:
    """The parameters that an optimizer of a user loop holds and that are not in its net."""
    if context.setup is not None:
        return {}
    of_net = {name for name, _ in context.model.named_parameters()}
    found = parameter_names(context.model, optimizers).items()
    return {name: plain(p, what="an optimizer") for name, p in found if name not in of_net}


def _save_setup(setup: Setup) -> State:
    schedule, batches = setup.schedule, setup.batches
    return {
        "schedule": None
        if schedule is None
        else {
            "spec": plain(msgspec.to_builtins(schedule.spec)),
            "from_step": schedule.from_step,
            "total_steps": schedule.total_steps,
            "state": plain(schedule.state()),
        },
        "batches": None if batches is None else plain(batches.state()),
        "path": None if setup.path is None else plain(setup.path.state()),
    }


def _load_setup(context: KnobContext, setup: Setup, saved: State, parameters: dict[str, Any]) -> None:
    state = saved["setup"]
    replaced, optimizer = context.optimizer, build_optimizer(saved["optimizers"][0], parameters)
    context.change_optimizer(optimizer)
    replaced.state.clear()  # the hooks still refer to this object, so this frees its memory
    schedule = state["schedule"]
    if schedule is None:
        setup.schedule = None
    else:
        spec = msgspec.convert(schedule["spec"], ScheduleSpec)
        made = make_schedule(spec, optimizer, total_steps=schedule["total_steps"], from_step=schedule["from_step"])
        made.restore(schedule["state"])
        setup.schedule = made
    if setup.batches is not None:
        batches = state["batches"]
        if isinstance(setup.batches, Batches):
            generator, order, cursor, size = batches
            setup.batches.restore((generator, order.to(setup.batches.data.x.device), cursor, size))
        else:
            setup.batches.restore(batches)
    if setup.path is not None:
        setup.path.restore([(step, tuple(position)) for step, position in state["path"]])


def _save_knobs(context: KnobContext) -> State:
    return {
        "fields": {name: plain(getattr(context, name)) for name in RESTORED_FIELDS},
        "pace": context.pace,
        "losses": [float(loss) for loss in context.losses],
        "transitions": [
            {"knob": knob, "target": target, "steps": t.steps, "steps_done": t.steps_done, "terms": plain(t.terms)}
            for (knob, target), t in context.transitions.items()
        ],
        "pending_values": [[*key, value] for key, value in context.pending_values.items()],
    }


def _load_knobs(context: KnobContext, saved: State) -> None:
    for name in RESTORED_FIELDS:
        setattr(context, name, saved["fields"][name])
    context.losses = deque(saved["losses"], maxlen=RECENT_LOSSES)
    context.transitions = {}
    for one in saved["transitions"]:
        transition = _transition(context, one)
        transition.restore(one["steps_done"])
        context.transitions[one["knob"], one["target"]] = transition
    context.pending_values = {(knob, target): value for knob, target, value in saved["pending_values"]}


def _transition(context: KnobContext, saved: State) -> surgery.Transition:
    target, steps = saved["target"], saved["steps"]
    if saved["knob"] == "residual":
        block = context.blocks[target] if context.blocks else context.user_blocks[target]
        return surgery.continue_skip(block, saved["terms"], steps=steps)
    if context.blocks:
        return surgery.continue_activation(context.blocks[target], steps=steps)
    return surgery.continue_module(context.model, target, steps=steps)


def _save_random() -> State:
    saved = RandomState().state()
    if "numpy" in saved:
        name, keys, *rest = saved["numpy"]
        saved["numpy"] = (name, [int(key) for key in keys], *rest)
    return {name: plain(state) for name, state in saved.items()}


def _load_random(saved: State) -> None:
    """Set the generators that this process has, too. The state of a GPU that is not there is left out."""
    random_state = RandomState()
    here = random_state.state()
    chosen = {name: state for name, state in saved.items() if name in here}
    if "python" in chosen:
        version, words, gauss = chosen["python"]
        chosen["python"] = (version, tuple(words), gauss)
    if "numpy" in chosen:
        numpy = sys.modules["numpy"]
        name, keys, *rest = chosen["numpy"]
        chosen["numpy"] = (name, numpy.array(keys, dtype="uint32"), *rest)
    if "cuda" in chosen and len(chosen["cuda"]) != len(here["cuda"]):
        del chosen["cuda"]
    random_state.restore(chosen)
