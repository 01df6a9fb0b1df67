"""Builds everything that a scenario describes: device, data, net, loss function and optimizer.

The seed determines all random numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.scenario.spec import (
    ConvModel,
    DigitsData,
    MlpModel,
    ModularAdditionData,
    OwnImagesData,
    OwnPointsData,
    OwnTextData,
    RareClassesData,
    Scenario,
    SurfaceModel,
    TextData,
    TransformerModel,
    TwoLayerModel,
)
from tui_descent.training.optim.optimizers import make_optimizer
from tui_descent.training.optim.schedules import Schedule, make_schedule
from tui_descent.training.setup.data import digits, generated, own_images, own_points, text, toys
from tui_descent.training.setup.data.batches import Batches, DataSet
from tui_descent.training.setup.data.text import Windows
from tui_descent.training.setup.nets.conv import ConvNet
from tui_descent.training.setup.nets.mlp import Mlp
from tui_descent.training.setup.nets.surface import Surface
from tui_descent.training.setup.nets.transformer import Transformer
from tui_descent.training.setup.nets.two_layer import TwoLayerNet
from tui_descent.training.setup.path import Path

# Curvature is measured on at least this many samples; with fewer, single samples would dominate it.
PROBE_SAMPLES = 256
LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(slots=True, kw_only=True)
class Setup:
    """The objects of a scenario run.

    Surfaces and linear nets have no batches and no loss function, since their output is the loss. Only they have a
    `path`.
    """

    scenario: Scenario
    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    batches: Batches | Windows | None
    loss_function: LossFunction | None
    schedule: Schedule | None = None  # None for a constant learning rate
    path: Path | None = None
    _batch: tuple[Tensor, Tensor] | None = None  # inputs and targets of the last batch

    def state(self) -> dict[str, Any]:
        """The optimizer and schedule in use, the schedule's own state, and the states of the batches and the path."""
        return {
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "schedule_state": None if self.schedule is None else self.schedule.state(),
            "batches": None if self.batches is None else self.batches.state(),
            "path": None if self.path is None else self.path.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Return to `state`. Restore the contents of the optimizer separately, and before this call."""
        self.optimizer, self.schedule = state["optimizer"], state["schedule"]
        if self.schedule is not None:
            self.schedule.restore(state["schedule_state"])
        if self.batches is not None:
            self.batches.restore(state["batches"])
        if self.path is not None:
            self.path.restore(state["path"])

    def loss(self) -> Tensor:
        """The loss of the next batch, a scalar with a graph for `backward()`."""
        if self.batches is not None:
            self._batch = self.batches.next()
        return self.replay_forward()

    def replay_forward(self) -> Tensor:
        """The loss of the same batch, computed again."""
        if self._batch is None or self.loss_function is None:
            return self.model()  # type: ignore[no-any-return]
        x, y = self._batch
        return self.loss_function(self.model(x), y)

    def loss_of_part(self, where: slice) -> Tensor | None:
        """The mean loss of the samples `where` of the same batch; None for a surface."""
        if self._batch is None or self.loss_function is None:
            return None
        x, y = self._batch
        return self.loss_function(self.model(x[where]), y[where])

    def probe(self) -> Tensor:
        """The loss of the probe batch in eval mode.

        The probe batch always consists of the first training samples: as many as a batch has, but at least
        `PROBE_SAMPLES`. Each character of a text is one.
        """
        return self.probe_outputs_and_loss()[1]

    def curvature_probe(self) -> Tensor:
        """The loss whose curvature is measured: that of the probe batch.

        A text is cut to as many sequences as a batch has, or to `PROBE_SAMPLES` positions if that is more: each sample
        has a loss at many positions, and a Hessian-vector product costs many times a training step.
        """
        if self.batches is None or self.loss_function is None:
            return self.probe()
        x, y = self._probe_batch()
        count = max(self.batches.size, PROBE_SAMPLES // max(1, y[0].numel()))
        with evaluating(self.model):
            return self.loss_function(self.model(x[:count]), y[:count])

    def probe_outputs_and_loss(self) -> tuple[Tensor, Tensor]:
        """The net's outputs for the probe batch, and their loss, in eval mode. A surface's output is its loss."""
        if self.batches is None or self.loss_function is None:
            loss: Tensor = self.model()
            return loss, loss
        x, y = self._probe_batch()
        with evaluating(self.model):
            outputs = self.model(x)
            return outputs, self.loss_function(outputs, y)

    def evaluate_few(self) -> None:
        """Run the net in eval mode on the first `PROBE_SAMPLES` training samples; each symbol of a text counts."""
        assert self.batches is not None
        x, _ = self.batches.first(PROBE_SAMPLES)
        per_row = 1 if x.is_floating_point() else x[0].numel()
        self.outputs(x[: -(-PROBE_SAMPLES // per_row)])

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        """The net's outputs for any inputs, in eval mode and without a graph."""
        with evaluating(self.model):
            outputs: Tensor = self.model(x)
            return outputs

    def _probe_batch(self) -> tuple[Tensor, Tensor]:
        assert self.batches is not None
        return self.batches.first(max(self.batches.size, math.ceil(PROBE_SAMPLES / self.batches.samples_each)))

    def loss_of_zero_outputs(self) -> Tensor:
        """The loss of the probe batch if all outputs were 0. With cross-entropy it is ln(classes), as for guessing."""
        assert self.batches is not None
        assert self.loss_function is not None
        outputs, _ = self.probe_outputs_and_loss()
        _, y = self._probe_batch()
        return self.loss_function(torch.zeros_like(outputs), y)

    def size(self) -> int:
        """The number of samples in the last batch; 0 for a surface."""
        return 0 if self._batch is None else len(self._batch[0])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts the model into eval mode, and afterwards each of its modules into the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def thread_count(requested: int) -> int:
    """The requested number of threads. For 0 it is the number of cores minus one, which is left to the dashboard."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return requested or max(1, cores - 1)


def select_device(name: str, *, dtype: str) -> torch.device:
    """The device called `name`; `auto` prefers CUDA, then MPS, then the CPU. Raises `ValueError` if unavailable."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() and dtype == "float32" else "cpu")
    chosen = torch.device(name)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"{name} is not available: torch finds {count} CUDA devices; try --device cpu")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("MPS is not available; try --device cpu")
    return chosen


def build(scenario: Scenario, *, on: torch.device) -> Setup:
    """Build the scenario on the device `on`, in its dtype. The same seed gives the same weights and batches."""
    run = scenario.run
    dtype = torch.float64 if run.dtype == "float64" else torch.float32
    torch.manual_seed(run.seed)
    model: nn.Module
    if isinstance(scenario.model, SurfaceModel):
        surface = Surface(scenario.model).to(on, dtype)
        return _without_data(scenario, surface, Path(surface.w), on)
    if isinstance(scenario.model, TwoLayerModel):
        linear = TwoLayerNet(scenario.model, torch.Generator().manual_seed(run.seed)).to(on, dtype)
        return _without_data(scenario, linear, Path(linear.first.weight, linear.strengths), on)
    data = load(scenario).to(on, dtype)
    model = _network(scenario, data).to(on, dtype)
    optimizer = make_optimizer(scenario.optimizer, model)
    return Setup(
        model=model,
        optimizer=optimizer,
        device=on,
        batches=_batches(scenario, data),
        loss_function=_loss_function(scenario, data),
        schedule=_schedule(scenario, optimizer),
        scenario=scenario,
    )


def _network(scenario: Scenario, data: DataSet) -> nn.Module:
    generator = torch.Generator().manual_seed(scenario.run.seed)
    match scenario.model:
        case MlpModel() as spec:
            return Mlp(spec, features=data.features, classes=data.classes, generator=generator)
        case ConvModel() as spec:
            assert data.image is not None
            return ConvNet(spec, image=data.image, classes=data.classes, generator=generator)
        case TransformerModel() as spec:
            return Transformer(spec, symbols=data.classes, generator=generator)
        case SurfaceModel() | TwoLayerModel():
            raise AssertionError("it has no data")


def _batches(scenario: Scenario, data: DataSet) -> Batches | Windows:
    spec, seed = scenario.data, scenario.run.seed
    assert spec is not None
    if isinstance(spec, TextData):
        assert isinstance(scenario.model, TransformerModel)
        return Windows(data, batch_size=spec.batch_size, context=scenario.model.context, seed=seed)
    return Batches(data, batch_size=spec.batch_size, full=spec.full, seed=seed)


def load(scenario: Scenario) -> DataSet:
    """Load the scenario's data, on the CPU. Raises `ValueError` if it is not available."""
    spec, seed = scenario.data, scenario.run.seed
    assert spec is not None
    if isinstance(spec, TextData):
        assert isinstance(scenario.model, TransformerModel)
        context = scenario.model.context
        return text.load_own(spec, context) if isinstance(spec, OwnTextData) else text.load(context)
    match spec:
        case DigitsData():
            return digits.load(spec)
        case ModularAdditionData():
            return generated.modular_addition(spec, seed=seed)
        case RareClassesData():
            return generated.rare_classes(spec, seed=seed)
        case OwnImagesData():
            return own_images.load(spec, seed=seed)
        case OwnPointsData():
            return own_points.load(spec, seed=seed)
        case _:
            return toys.load(spec, seed=seed)


def _without_data(scenario: Scenario, model: nn.Module, path: Path, on: torch.device) -> Setup:
    """The set-up of a model whose loss is a function of its parameters alone."""
    optimizer = make_optimizer(scenario.optimizer, model)
    return Setup(
        model=model,
        optimizer=optimizer,
        device=on,
        batches=None,
        loss_function=None,
        schedule=_schedule(scenario, optimizer),
        path=path,
        scenario=scenario,
    )


def _schedule(scenario: Scenario, optimizer: torch.optim.Optimizer) -> Schedule | None:
    if scenario.schedule.name == "constant":
        return None
    return make_schedule(scenario.schedule, optimizer, total_steps=scenario.run.steps, from_step=0)


def _loss_function(scenario: Scenario, data: DataSet) -> LossFunction:
    if scenario.loss is None or scenario.loss.name == "cross_entropy":
        return _cross_entropy_over_positions if isinstance(scenario.data, TextData) else F.cross_entropy
    classes = data.classes

    def mse(outputs: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(outputs, F.one_hot(y, classes).to(outputs.dtype))

    return mse


def _cross_entropy_over_positions(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, averaged over all positions of all sequences: logits (B, T, V), targets (B, T)."""
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())
