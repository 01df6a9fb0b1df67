"""Values for every knob, and helpers of intervention tests: a step, a refusal, a fingerprint."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario.knobs import KNOBS
from tui_descent.scenario.optimizers import NAMES
from tui_descent.training.setup.build import Setup
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.watch import Watch

VALUES: dict[str, tuple[str, ...]] = {
    "lr": ("lr=*0.5", "lr=1e-4"),
    "activation": ("activation=tanh", "activation@blocks.1=silu,way=instant"),
    "residual": (
        "residual=on",
        "residual=on,way=rotation",
        "residual@blocks.1=on,way=instant",
        "residual=on,way=rezero",
        "residual=off",
    ),
    "norm": ("norm=layer", "norm=rms,where=post,way=instant", "norm=layer,where=mid", "norm=none"),
    "dropout": ("dropout=0.2", "dropout=0"),
    "init": ("init=orthogonal", "init@head=lecun"),
    "freeze": ("freeze@head=on", "freeze=off"),
    "kick": ("kick=0.01", "kick=0.01,way=curvature"),
    "optimizer": tuple(f"optimizer={name}" for name in NAMES),
    "schedule": (
        *(f"schedule={name}" for name in KNOBS["schedule"].choices),
        "schedule=wsd,warmup=3,decay=0.5,floor=0.1",
    ),
    "momentum": ("momentum=0.5", "momentum=0"),
    "betas": ("betas=0.8/0.99",),
    "weight_decay": ("weight_decay=0.01",),
    "clip": ("clip=0.1", "clip=off"),
    "batch_size": ("batch_size=16", "batch_size=*2"),
    "pace": ("pace=max", "pace=5000"),
}


class UserNet(nn.Module):
    """A net as a user may write it, with modules of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(64, 16)
        self.act = nn.ReLU()
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()) for _ in range(3))
        )
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 64) → (B, 10)."""
        out: Tensor = self.head(self.drop(self.blocks(self.act(self.stem(x)))))
        return out


def steering_of(made: Setup) -> Steering:
    return Steering(made.model, made.optimizer, setup=made, seed=3, steps=40, init="he")


def step(made: Setup, run: Watch) -> float:
    loss = made.loss()
    made.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    made.optimizer.step()
    run.step(loss)
    return loss.item()


def refusal(steering: Steering, turn: TurnKnob, at: int) -> str | None:
    """Turn the knob; returns the reason if it is refused, else None."""
    try:
        steering.turn(turn, step=at)
    except ValueError as error:
        return str(error)
    return None


def ids(model: nn.Module) -> set[int]:
    return {id(p) for p in model.parameters()}


def grouped(optimizer: torch.optim.Optimizer) -> list[int]:
    return [id(p) for group in optimizer.param_groups for p in group["params"]]


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer, steering: Steering) -> str:
    """SHA-256 over everything an intervention could change."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    digest.update(repr([(n, type(m).__name__, m.training) for n, m in model.named_modules()]).encode())
    digest.update(repr([(n, p.requires_grad) for n, p in model.named_parameters()]).encode())
    digest.update(repr([(b.skip, b.where) for b in steering.context.blocks.values()]).encode())
    digest.update(repr([(key, t.steps_done) for key, t in steering.context.transitions.items()]).encode())
    digest.update(repr([{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]).encode())
    digest.update(repr((id(optimizer), grouped(optimizer))).encode())
    for p in model.parameters():
        for key, value in optimizer.state.get(p, {}).items():
            digest.update(
                key.encode() + (value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
            )
    digest.update(torch.get_rng_state().numpy().tobytes())
    schedule = steering.context.setup.schedule if steering.context.setup else None
    digest.update(repr((id(schedule), schedule.state() if schedule else None, steering.states())).encode())
    return digest.hexdigest()
