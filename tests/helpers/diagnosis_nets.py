"""Nets drawn at random from a seed, and their losses and readings when they train."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import torch

from tui_descent.instruments.instrument_set import InstrumentSet
from tui_descent.instruments.net_structure import structure
from tui_descent.protocol.events import Layer, ReadingsTaken
from tui_descent.protocol.readings import unpack
from tui_descent.protocol.ring import ReadingRecord
from tui_descent.scenario.spec import Scenario
from tui_descent.scenario.toml import to_table
from tui_descent.scenario.validate import convert
from tui_descent.telemetry.diagnosis import RunContext
from tui_descent.telemetry.diagnosis.situation import context_of
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.setup.nets.block import Block
from tui_descent.training.steering import surgery

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What nets are drawn from. `cold` and `hot`: by how many decades a bad rate is too small or too large."""

    data: tuple[dict[str, Any], ...]
    batch_sizes: tuple[int, ...]
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    rates: dict[str, float]
    cold: tuple[float, float]
    hot: tuple[float, float]
    large: tuple[float, float]  # He's gain
    tiny: tuple[float, float]  # log10 of a normal's std
    small: tuple[float, float]  # LeCun's and Xavier's gain
    bias: tuple[float, float]


_DIGITS, _MOONS, _CIRCLES = {"name": "digits"}, {"name": "moons"}, {"name": "circles"}
TUNING = Pool(
    data=(_DIGITS, _DIGITS, _MOONS, _CIRCLES, {"name": "spirals", "noise": 0.02}),
    batch_sizes=(32, 64, 128),
    depths=(1, 2, 4, 6, 8, 12, 16, 20),
    widths=(16, 32, 64),
    rates={"sgd": 0.1, "momentum": 0.02, "adam": 3e-3, "adamw": 3e-3, "rmsprop": 1e-3},
    cold=(-3.5, -1.5),
    hot=(0.5, 2.0),
    large=(1.6, 4.0),
    tiny=(-2.3, -1.5),
    small=(0.3, 0.8),
    bias=(1.5, 5.0),
)
# No depth, width, batch size or rate of the tuning pool; one more data set; weights of other sizes.
HELD_OUT = Pool(
    data=(_DIGITS, _DIGITS, _MOONS, _CIRCLES, {"name": "spirals", "noise": 0.05}, {"name": "xor"}),
    batch_sizes=(36, 72),
    depths=(3, 5, 7, 9, 11, 13, 15, 17),
    widths=(22, 30, 44, 60),
    rates={"sgd": 0.09, "momentum": 0.014, "adam": 2.2e-3, "adamw": 2.2e-3, "rmsprop": 8e-4},
    cold=(-3.1, -1.4),
    hot=(0.55, 1.9),
    large=(1.65, 3.7),
    tiny=(-2.25, -1.55),
    small=(0.33, 0.77),
    bias=(1.8, 4.8),
)
TUNED_FROM = 100_000  # seeds from here on belong to the tuning pool


def draw(seed: int) -> Scenario:
    """The net of this seed. Most combinations are ordinary, some have a problem."""
    r, pool = random.Random(f"net {seed}"), TUNING if seed >= TUNED_FROM else HELD_OUT
    activation = r.choice(["relu", "relu", "relu", "leaky_relu", "gelu", "silu", "tanh", "tanh", "sigmoid", "elu"])
    model: dict[str, Any] = {
        "name": "mlp",
        "depth": r.choice(pool.depths),
        "width": r.choice(pool.widths),
        "activation": {"name": activation},
        "init": _init(r, activation, pool),
    }
    if r.random() < 0.2:
        model["residual"] = {"name": "on"}
    if r.random() < 0.2:
        model["norm"] = {"name": r.choice(["layer", "rms"]), "where": r.choice(["pre", "mid", "post"])}
    optimizer = r.choice(list(pool.rates))
    off = r.choice([0, 0, 0, 0, r.uniform(*pool.cold), r.uniform(*pool.hot)]) + r.uniform(-0.4, 0.4)
    table = {
        "title": f"net {seed}",
        "data": r.choice(pool.data) | {"batch_size": r.choice(pool.batch_sizes)},
        "model": model,
        "optimizer": {"name": optimizer, "lr": pool.rates[optimizer] * 10**off},
        "run": {"seed": seed, "device": "cpu", "threads": 1},
    }
    return scenario_of(table)


def _init(r: random.Random, activation: str, pool: Pool) -> dict[str, Any]:
    kind = r.choice(["good", "good", "good", "large", "tiny", "small", "bias"])
    if kind == "large":
        return {"name": "he", "gain": r.uniform(*pool.large)}
    if kind == "tiny":
        return {"name": "normal", "std": 10 ** r.uniform(*pool.tiny)}
    if kind == "small":
        return {"name": r.choice(["lecun", "xavier"]), "gain": r.uniform(*pool.small)}
    if kind == "bias" and activation == "relu":
        return {"name": "he", "bias": -r.uniform(*pool.bias)}
    return {"name": r.choice(["he", "he", "xavier", "orthogonal"])}


def scenario_of(table: dict[str, Any]) -> Scenario:
    problems: list[Any] = []
    made = convert(Scenario, table, "", problems)
    assert not problems, problems
    assert made is not None
    return made


def changed(scenario: Scenario, **sections: dict[str, Any]) -> Scenario:
    table = to_table(scenario)
    for section, values in sections.items():
        table[section] = table.get(section, {}) | values
    return scenario_of(table)


def context_of_scenario(scenario: Scenario) -> RunContext:
    return context_of(to_table(scenario))


# --- what the diagnosis is given


@dataclass(slots=True)
class RunData:
    """The losses of a run and its readings by step."""

    layers: tuple[Layer, ...]
    losses: list[float] = field(default_factory=list)
    readings: dict[int, ReadingsTaken] = field(default_factory=dict)


class Observed:
    """A scenario trained in this process under the real instruments."""

    def __init__(self, scenario: Scenario) -> None:
        self.setup = build(scenario, on=CPU)
        self._clip = scenario.optimizer.clip
        self.net = structure(self.setup.model)
        self.parameters = list(self.setup.model.parameters())
        self.measuring = InstrumentSet(self.net, self.parameters)
        self.seen = RunData(tuple(w.layer for w in self.net.layers))
        self.step = 0
        self._transitions: list[surgery.Transition] = []

    def run(self, steps: int, *, every: int) -> RunData:
        for _ in range(steps):
            self._transitions = [t for t in self._transitions if not t.advance()]
            if not self._train_step(every):
                break
        return self.seen

    def turn_residual_on(self) -> None:
        """As the knob does it: the branch scaled by 1/√depth, over 20 steps."""
        blocks = blocks_of(self.setup)
        self._transitions = [surgery.open_skip(block, len(blocks) ** -0.5, steps=20) for block in blocks]

    def _train_step(self, every: int) -> bool:
        step, seen, measuring = self.step, self.seen, self.measuring
        due = step % every == 0
        if due:
            measuring.attach(slow=True)
        loss = self.setup.loss()
        seen.losses.append(loss.item())
        if not math.isfinite(seen.losses[-1]):
            measuring.detach()
            return False
        self.setup.optimizer.zero_grad()
        loss.backward()
        grads = [p.grad for p in self.parameters if p.grad is not None]
        # A sum is cheaper than a look at every entry, and finite only if all of them are.
        if not torch.stack([g.sum() for g in grads]).isfinite().all() and not all(g.isfinite().all() for g in grads):
            measuring.detach()
            seen.losses.append(math.nan)  # the guard would hold the run here
            return False
        preclip = math.nan
        if self._clip is not None:
            preclip = torch.nn.utils.clip_grad_norm_(self.parameters, self._clip).item()
        if due:
            measuring.before_update()
        self.setup.optimizer.step()
        if due:
            sample = measuring.after_update().result()
            record = ReadingRecord(
                step=step,
                segment=0,
                global_grad_norm=sample.global_grad_norm,
                grad_norm_preclip=preclip,
                watch_cost=0.0,
                global_cosine=math.nan if sample.global_cosine is None else sample.global_cosine,
                rows=[tuple(row) for row in sample.rows],
            )
            seen.readings[step] = unpack(record)
        elif (step + 1) % every == 0:
            measuring.remember()
        self.step += 1
        return True


def blocks_of(setup: Setup) -> list[Block]:
    """A net's blocks, in forward order."""
    return [m for m in setup.model.modules() if isinstance(m, Block)]
