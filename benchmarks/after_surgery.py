"""Speed of a net that was changed during training, relative to one that was built that way.

Both run the same loop with a `Steering`, alternating in short slices of time, so that a machine that slows down
affects both. The ratio is that of their total times; its range is over ten parts of the run. A/A compares two equally
built nets and shows the noise. Times are CPU seconds of the thread.

    python benchmarks/after_surgery.py --seconds 4
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tui_descent.scenario.knobs import parse
from tui_descent.scenario.toml import from_table
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.steering.steering import Steering

SLICE_S = 0.04
PARTS = 10
WARM_UP = 80  # updates; longer than any blend except a gentle one
Step = Callable[[], None]
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "depth": 12, "width": 64, "activation": "relu"},
    "conv": {"name": "conv", "depth": 4, "width": 16, "activation": "relu"},
    "transformer": {"name": "transformer", "depth": 3, "width": 32, "context": 32},
}
# Title, family, the net before, the commands, and the changes with which an equal net is built.
CASES: tuple[tuple[str, str, dict[str, Any], tuple[str, ...], dict[str, Any]], ...] = (
    ("residual on, by ramp", "mlp", {}, ("residual=on,way=ramp",), {"residual": "on"}),
    ("residual off, by ramp", "mlp", {"residual": "on"}, ("residual=off,way=ramp",), {"residual": "off"}),
    ("activation, by blend", "mlp", {}, ("activation=tanh",), {"activation": "tanh"}),
    ("activation, twice", "mlp", {}, ("activation=gelu", "activation=silu"), {"activation": "silu"}),
    ("norm added", "mlp", {}, ("norm=layer",), {"norm": "layer"}),
    ("norm removed", "mlp", {"norm": "layer"}, ("norm=none",), {"norm": "none"}),
    ("dropout on", "mlp", {}, ("dropout=0.1",), {"dropout": 0.1}),
    ("dropout off", "mlp", {"dropout": 0.1}, ("dropout=0",), {"dropout": 0.0}),
    ("sgd to adam", "mlp", {"optimizer": "sgd"}, ("optimizer=adam",), {"optimizer": "adam"}),
    ("adam to sgd", "mlp", {"optimizer": "adam"}, ("optimizer=sgd",), {"optimizer": "sgd"}),
    ("adam to muon", "mlp", {"optimizer": "adam"}, ("optimizer=muon",), {"optimizer": "muon"}),
    ("frozen and unfrozen", "mlp", {}, ("freeze@stem=on", "freeze=off"), {}),
    (
        "all together",
        "mlp",
        {"optimizer": "sgd"},
        ("residual=on", "norm=rms", "activation=gelu", "dropout=0.1", "optimizer=adam"),
        {"optimizer": "adam", "residual": "on", "norm": "rms", "activation": "gelu", "dropout": 0.1},
    ),
    ("residual and norm", "conv", {}, ("residual=on", "norm=layer"), {"residual": "on", "norm": "layer"}),
    (
        "residual and norm",
        "transformer",
        {"norm": "none"},
        ("residual=on", "norm=rms"),
        {"residual": "on", "norm": "rms"},
    ),
)


def make(family: str, changed: dict[str, Any]) -> tuple[Setup, Steering]:
    """A scenario's net with these changes, and its `Steering`."""
    changed = dict(changed)
    optimizer = {"name": changed.pop("optimizer", "adam"), "lr": 1e-3}
    data = "text" if family == "transformer" else "digits"
    table = {
        "title": "t",
        "data": {"name": data, "batch_size": 8 if family == "transformer" else 64},
        "model": MODELS[family] | changed,
        "optimizer": optimizer,
    }
    setup = build(from_table(table, source="benchmark"), on=torch.device("cpu"))
    return setup, Steering(setup.model, setup.optimizer, setup=setup, steps=100_000)


def scenario_step(setup: Setup, steering: Steering) -> Step:
    """The function that makes one update of a scenario's net."""

    def step() -> None:
        steering.advance()
        loss = setup.loss()
        setup.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        setup.optimizer.step()
        steering.after_update()
        steering.add_loss(loss.item())

    return step


class UserNet(nn.Module):
    """A user's net of 12 blocks; with `skips` it has its own skip connections."""

    def __init__(self, activation: type[nn.Module], *, skips: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(64, 64)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), activation()) for _ in range(12)))
        self.head = nn.Linear(64, 10)
        self.skips = skips

    def forward(self, x: Tensor) -> Tensor:
        """(B, 64) → (B, 10)."""
        h = self.stem(x)
        for block in self.blocks:
            h = h + 12**-0.5 * block(h) if self.skips else block(h)
        logits: Tensor = self.head(h)
        return logits


def user_loop(activation: type[nn.Module], *, skips: bool) -> tuple[Step, Steering]:
    """The function that makes one update of a user loop, and its `Steering`."""
    model = UserNet(activation, skips=skips)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    steering = Steering(model, optimizer)
    x, y = torch.randn(64, 64), torch.randint(0, 10, (64,))
    steering.start_observing()
    model(x)
    steering.finish_observing()

    def step() -> None:
        steering.advance()
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        steering.after_update()
        steering.add_loss(loss.item())

    return step, steering


def run_slice(step: Step, count: int) -> float:
    """CPU seconds of `count` updates."""
    start_s = time.thread_time()
    for _ in range(count):
        step()
    return time.thread_time() - start_s


def ratio(base: list[float], other: list[float]) -> str:
    """The speed of `other` relative to `base`, with the third lowest and third highest of ten parts."""
    size = len(base) // PARTS
    parts = sorted(sum(base[k * size : (k + 1) * size]) / sum(other[k * size : (k + 1) * size]) for k in range(PARTS))
    return f"{sum(base) / sum(other):.3f} [{parts[2]:.3f} … {parts[-3]:.3f}]"


def compare(changed: Step, built: Step, again: Step, seconds: float) -> tuple[str, str, float]:
    """The A/A ratio, the ratio of the changed net to the built ones, and the built ones' milliseconds per step."""
    step_s = min(run_slice(step, 20) for step in (built, again)) / 20
    count = max(1, round(SLICE_S / step_s))
    times: dict[str, list[float]] = {"built": [], "again": [], "changed": []}
    variants = {"built": built, "again": again, "changed": changed}
    order = list(variants)
    for n in range(max(3 * PARTS, int(seconds / (count * step_s)))):
        for name in order[n % 3 :] + order[: n % 3]:
            times[name].append(run_slice(variants[name], count))
    both = [(a + b) / 2 for a, b in zip(times["built"], times["again"], strict=True)]
    ms = 1000 * sum(both) / len(both) / count
    return ratio(times["built"], times["again"]), ratio(both, times["changed"]), ms


def scenario_row(title: str, family: str, start: dict[str, Any], turns: tuple[str, ...], end: dict[str, Any]) -> tuple:  # type: ignore[type-arg]
    """The loops of one case: the changed net, and two that were built that way."""
    setup, steering = make(family, start)
    step = scenario_step(setup, steering)
    run_slice(step, 5)
    for n, text in enumerate(turns):
        steering.turn(parse(text), step=5 + n)
        step()
    run_slice(step, WARM_UP)
    assert not steering.context.transitions, title
    others = [scenario_step(*make(family, start | end)) for _ in range(2)]
    for other in others:
        run_slice(other, WARM_UP)
    return step, *others


def user_row(text: str, start: type[nn.Module], end: type[nn.Module], *, skips: bool) -> tuple[Step, Step, Step]:
    """The same for a user loop."""
    step, steering = user_loop(start, skips=False)
    steering.turn(parse(text), step=0)
    run_slice(step, WARM_UP)
    assert not steering.context.transitions, text
    others = [user_loop(end, skips=skips)[0] for _ in range(2)]
    for other in others:
        run_slice(other, WARM_UP)
    return step, others[0], others[1]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="for each of the three loops")
    parser.add_argument("--only", default="", help="only cases whose title contains this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| net | change | A/A | changed | ms per step |\n|---|---|---|---|---|")
    for case in CASES:
        if args.only in case[0]:
            aa, share, ms = compare(*scenario_row(*case), args.seconds)
            print(f"| {case[1]} | {case[0]} | {aa} | {share} | {ms:.2f} |", flush=True)
    for text, start, end, skips in (
        ("activation=tanh", nn.ReLU, nn.Tanh, False),
        ("residual=on", nn.ReLU, nn.ReLU, True),
    ):
        if args.only in text:
            aa, share, ms = compare(*user_row(text, start, end, skips=skips), args.seconds)
            print(f"| user's | {text} | {aa} | {share} | {ms:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
