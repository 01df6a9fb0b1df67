"""User loops with unusual parts: wrapped optimizers, closures, callbacks, transforms, lazy and quantised parameters."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from user_loops.table import STEPS, Watching, user_loop


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def batch(count: int = 16) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 8), torch.randint(0, 3, (count,))


def train_step(model: nn.Module, optimizer: Any) -> Tensor:
    x, y = batch()
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


@user_loop
def ema_copied_at_every_step(watch: Watching) -> nn.Module:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    best = model
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            run.step(train_step(model, optimizer))
            best = copy.deepcopy(model)
    return nn.ModuleList([model, best])


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation: two forward and backward passes, and an optimizer inside."""

    def __init__(self, params: Any, base: type[torch.optim.Optimizer], rho: float = 0.05, **how: Any) -> None:
        super().__init__(params, {"rho": rho, **how})
        self.base_optimizer = base(self.param_groups, **how)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        closure = torch.enable_grad()(closure)
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        moves = [p.grad * (0.05 / (norm + 1e-12)) for p in parameters]
        for p, move in zip(parameters, moves, strict=True):
            p.add_(move)
        self.zero_grad()
        closure()
        for p, move in zip(parameters, moves, strict=True):
            p.sub_(move)
        self.base_optimizer.step()


@user_loop
def sam_with_a_closure(watch: Watching) -> nn.Module:
    model = mlp()
    optimizer = Sam(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            x, y = batch()

            def closure() -> Tensor:
                loss = F.cross_entropy(model(x), y)  # noqa: B023 - called in this iteration only
                loss.backward()
                return loss

            loss = closure()
            optimizer.step(closure)
            optimizer.zero_grad()
            run.step(loss)
    return model


@user_loop
def lazy_modules(watch: Watching) -> nn.Module:
    model = nn.Sequential(nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            run.step(train_step(model, optimizer))
    return model


@user_loop
def int8_frozen_weights(watch: Watching) -> nn.Module:
    class Int8Linear(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            scale = base.weight.detach().abs().amax(1, keepdim=True) / 127
            self.weight = nn.Parameter((base.weight / scale).round().to(torch.int8), requires_grad=False)
            self.register_buffer("scale", scale)

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.weight.float() * self.scale).T

    model = nn.Sequential(Int8Linear(nn.Linear(8, 16)), nn.GELU(), nn.Linear(16, 3))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            run.step(train_step(model, optimizer))
    return model


@user_loop
def per_sample_gradients_by_vmap(watch: Watching) -> nn.Module:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def sample_loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, (x[None],)), y[None])

    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            x, y = batch()
            weights = {name: p.detach() for name, p in model.named_parameters()}
            grads = torch.func.vmap(torch.func.grad(sample_loss), in_dims=(None, 0, 0))(weights, x, y)
            for name, p in model.named_parameters():  # clipped and noisy, as in private training
                size = grads[name].flatten(1).norm(dim=1).clamp(min=1)
                clipped = (grads[name] / size.view(-1, *[1] * p.dim())).mean(0)
                p.grad = clipped + 0.01 * torch.randn_like(p)
            optimizer.step()
            with torch.no_grad():
                loss = F.cross_entropy(model(x), y)
            run.step(loss)
    return model


@user_loop
def shared_modules_and_weight_norm(watch: Watching) -> nn.Module:
    class Universal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
            self.out = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):  # the same layer three times
                x = torch.tanh(self.inner(x))
            return self.out(x)

    model = Universal()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            run.step(train_step(model, optimizer))
    return model


class AcceleratedOptimizer(torch.optim.Optimizer):
    """Delegates to an optimizer inside; torch's own `__init__` was never called."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)  # type: ignore[assignment]
    state = property(lambda self: self.optimizer.state)  # type: ignore[assignment]
    defaults = property(lambda self: self.optimizer.defaults)  # type: ignore[assignment]

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


@user_loop
def optimizer_wrapped_as_by_accelerate(watch: Watching) -> nn.Module:
    model = mlp()
    optimizer = AcceleratedOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-2))
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            run.step(train_step(model, optimizer))
    return model


class FabricOptimizer:
    """Shares the attributes of an optimizer and is a subclass of its class."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.__dict__ = {name: value for name, value in vars(optimizer).items() if name != "step"}
        self.__class__ = type("Fabric" + type(optimizer).__name__, (FabricOptimizer, type(optimizer)), {})
        self._optimizer = optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure)


@user_loop
def optimizer_wrapped_as_by_fabric(watch: Watching) -> nn.Module:
    model = mlp()
    optimizer: Any = FabricOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-2))
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            run.step(train_step(model, optimizer))
    return model


@user_loop
def lightning_by_a_callback(watch: Watching) -> nn.Module:
    class Callback:
        def on_train_start(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
            self.run = watch(model, optimizer)
            self.run.__enter__()

        def on_train_batch_end(self, loss: Tensor) -> None:
            self.run.step(loss.detach())

        def on_train_end(self) -> None:
            self.run.__exit__(None, None, None)

    class Trainer:
        """Calls `training_step` in a closure of the optimizer, as Lightning's automatic optimisation does."""

        def fit(self, model: nn.Module, callback: Callback) -> None:
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
            callback.on_train_start(model, optimizer)
            for _ in range(STEPS):
                x, y = batch()
                losses: list[Tensor] = []

                def closure() -> Tensor:
                    loss = F.cross_entropy(model(x), y)  # noqa: B023 - called in this iteration only
                    optimizer.zero_grad()
                    loss.backward()
                    losses.append(loss)  # noqa: B023
                    return loss

                optimizer.step(closure)
                callback.on_train_batch_end(losses[0])
            callback.on_train_end()

    model = mlp()
    Trainer().fit(model, Callback())
    return model


@user_loop
def hf_trainer_by_a_callback(watch: Watching) -> nn.Module:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    run = watch(model, optimizer)
    run.__enter__()
    for step in range(2 * STEPS):
        model.train()
        x, y = batch()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        (loss / 2).backward()
        if (step + 1) % 2 == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            model.zero_grad()
        run.step(loss.detach())
    run.__exit__(None, None, None)
    return model


@user_loop
def scripted_submodule_and_float64_midrun(watch: Watching) -> nn.Module:
    inner = torch.jit.script(nn.Sequential(nn.Linear(16, 16), nn.Tanh()))
    model = nn.Sequential(nn.Linear(8, 16), inner, nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with watch(model, optimizer) as run:
        for step in range(STEPS):
            if step == STEPS // 2:
                model.double()
                for state in optimizer.state.values():
                    state["momentum_buffer"] = state["momentum_buffer"].double()
            x, y = batch()
            loss = F.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    return model


@user_loop
def net_that_grows(watch: Watching) -> nn.Module:
    model = nn.ModuleList([nn.Linear(8, 8)])
    head = nn.Linear(8, 3)
    net = nn.ModuleDict({"body": model, "head": head})
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    with watch(net, optimizer) as run:
        for step in range(STEPS):
            if step == STEPS // 2:
                layer = nn.Linear(8, 8)
                model.append(layer)
                optimizer.add_param_group({"params": layer.parameters()})
            x, y = batch()
            for layer in model:
                x = torch.relu(layer(x))
            loss = F.cross_entropy(head(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    return net


class OwnRateOptimizer(torch.optim.Optimizer):
    """Has no learning rate in its groups."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=-0.05)


@user_loop
def optimizer_without_a_rate(watch: Watching) -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 16), nn.PReLU(), nn.Linear(16, 3))
    optimizer = OwnRateOptimizer(model.parameters())
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            run.step(train_step(model, optimizer))
    return model


@user_loop
def empty_and_unused_parameters(watch: Watching) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.condition, self.head = nn.Linear(8, 16), nn.Linear(0, 16), nn.Linear(16, 3)
            self.unused, self.temperature = nn.Linear(4, 4), nn.Parameter(torch.tensor(1.0))

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.body(x) + self.condition(x[:, :0]))
            return self.head(h) * self.temperature

    model = Net()
    optimizer = torch.optim.Adamax(model.parameters(), lr=1e-2)
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            run.step(train_step(model, optimizer))
    return model


@user_loop
def scaler_that_skips_updates(watch: Watching) -> nn.Module:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with watch(model, optimizer) as run:
        for _ in range(STEPS):
            x, y = batch()
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss * 100).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            run.step(loss)
    return model
