"""Estimates the memory that a scenario needs, from its sizes alone: nothing is built."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tui_descent.scenario.own_data import images, points
from tui_descent.scenario.spec import (
    SYMBOLS,
    ConvModel,
    Data,
    DigitsData,
    MlpModel,
    ModularAdditionData,
    OwnImagesData,
    OwnPointsData,
    RareClassesData,
    Scenario,
    SurfaceModel,
    TextData,
    TransformerModel,
    TwoLayerModel,
    WithoutData,
    ends,
)

DIGIT_SAMPLES = 1437
# How many numbers an optimizer keeps per parameter. Muon keeps two for parameters that are not hidden matrices, but
# those are few in a large net.
STATE_PER_PARAMETER = {"sgd": 0, "momentum": 1, "nesterov": 1, "rmsprop": 1, "adam": 2, "adamw": 2, "muon": 1}


class MemoryNeed(msgspec.Struct, frozen=True, kw_only=True):
    """A lower bound of the bytes that a run needs, by purpose."""

    weights: int
    gradients: int
    optimizer: int
    snapshots: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all purposes."""
        return self.weights + self.gradients + self.optimizer + self.snapshots + self.activations

    def of_weights(self) -> MemoryNeed:
        """The bytes of the weights alone."""
        return MemoryNeed(weights=self.weights, gradients=0, optimizer=0, snapshots=0, activations=0)


def memory_needed(scenario: Scenario, *, undo_budget: int = 0) -> MemoryNeed:
    """A lower bound of the memory for training.

    A snapshot holds the weights and the optimizer's state. None is taken if it is larger than `undo_budget` bytes.
    """
    item = 8 if scenario.run.dtype == "float64" else 4
    weights = parameter_count(scenario) * item
    optimizer = weights * STATE_PER_PARAMETER[scenario.optimizer.name]
    snapshot = weights + optimizer
    return MemoryNeed(
        weights=weights,
        gradients=weights,
        optimizer=optimizer,
        snapshots=snapshot if snapshot <= undo_budget else 0,
        activations=_activation_count(scenario) * item,
    )


def memory_needed_by(lanes: Sequence[Scenario]) -> MemoryNeed:
    """A lower bound of the memory for a race. Its lanes make their steps by turns, so activations are needed once."""
    needs = [memory_needed(lane) for lane in lanes]
    return MemoryNeed(
        weights=sum(need.weights for need in needs),
        gradients=sum(need.gradients for need in needs),
        optimizer=sum(need.optimizer for need in needs),
        snapshots=0,
        activations=max(need.activations for need in needs),
    )


def refusal(need: MemoryNeed, free: int | None, where: str = "memory") -> str | None:
    """Why a run does not fit into the free memory, in bytes; None if it fits, or if the free memory is not known."""
    if free is None or need.total <= free:
        return None
    fields = sorted(msgspec.structs.asdict(need).items(), key=lambda field: -field[1])
    parts = ", ".join(f"{name} {_size(size)}" for name, size in fields if size * 20 >= need.total)
    return f"needs at least {_size(need.total)} of {where} ({parts}); {_size(free)} is free"


def parameter_count(scenario: Scenario) -> int:
    """The number of parameters of the scenario's net."""
    model, (inputs, classes) = scenario.model, _ends(scenario)
    if isinstance(model, SurfaceModel):
        return len(model.start)
    if isinstance(model, TwoLayerModel):
        return 2 * model.width * model.ends
    width = model.width
    norm = {"none": 0, "layer": 2 * width, "rms": width}[model.norm.name]
    head = classes * (width + 1)
    match model:
        case MlpModel():
            return width * (inputs + 1) + model.depth * (width * (width + 1) + norm) + head
        case ConvModel():
            return width * (9 + 1) + model.depth * (width * (9 * width + 1) + norm) + head
        case TransformerModel():
            attention = 4 * width * (width + 1)
            mlp = 4 * width * (width + 1) + width * (4 * width + 1)
            return width * (SYMBOLS + model.context) + model.depth * (attention + mlp + 2 * norm) + head


def _ends(scenario: Scenario) -> tuple[int, int]:
    """How many inputs and classes the net has. Those of own images are read from the files."""
    if isinstance(scenario.data, OwnImagesData):
        found = images.sizes(scenario.data)
        return found.pixels, found.classes
    return ends(scenario.data)


def _activation_count(scenario: Scenario) -> int:
    """A lower bound of how many numbers autograd keeps of one forward pass: the inputs of all layers."""
    model, data = scenario.model, scenario.data
    if isinstance(model, WithoutData) or data is None:
        return 0
    match model:
        case MlpModel():
            per_sample = model.width
        case ConvModel():
            per_sample = model.width * _ends(scenario)[0]
        case TransformerModel():  # attention keeps input, queries, keys, values, output; the MLP input, 4 hidden
            per_sample = 10 * model.width * model.context
    return _samples_of_batch(data) * per_sample * model.depth


def _samples_of_batch(data: Data) -> int:
    if isinstance(data, TextData):
        return data.batch_size
    match data:
        case DigitsData():
            count = data.subset or DIGIT_SAMPLES
        case ModularAdditionData():
            count = int(data.modulus**2 * data.share)
        case RareClassesData():
            count = sum(data.class_sizes())
        case OwnImagesData():
            count = images.sizes(data).training
        case OwnPointsData():
            count = points.training_count(data)
        case _:
            count = data.points * 4 // 5
    return count if data.full else min(data.batch_size, count)


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
