"""Nets drawn from a seed, and an oracle that knows nothing of readings: it tries changes out and sees what trains.

The oracle's only measure is `gain`: 1 − (mean loss of a trial's last steps) / ln C, so 0 is guessing and 1 is perfect.
"""

from __future__ import annotations

import copy
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tui_descent.instruments.measuring import Measuring
from tui_descent.instruments.structure import structure
from tui_descent.protocol.events import Layer, ReadingsTaken
from tui_descent.protocol.readings import unpack
from tui_descent.protocol.ring import ReadingRecord
from tui_descent.scenario.spec import DigitsData, InitSpec, MlpModel, Scenario
from tui_descent.scenario.toml import to_table
from tui_descent.scenario.validate import convert
from tui_descent.telemetry.diagnosis import Situation
from tui_descent.training import surgery
from tui_descent.training.build import Setup, build
from tui_descent.training.nets import parts
from tui_descent.training.nets.block import Block

WINDOW = 60
TRIAL = 150
TAIL = 20
CPU = torch.device("cpu")

GOOD_RATES = {"sgd": 0.1, "momentum": 0.02, "adam": 3e-3, "adamw": 3e-3, "rmsprop": 1e-3}


def draw(seed: int) -> Scenario:
    """A net of this seed: most combinations are ordinary, some are ill in one or another way."""
    r = random.Random(f"net {seed}")
    data: dict[str, Any] = r.choice(
        [
            {"name": "digits"},
            {"name": "digits"},
            {"name": "moons"},
            {"name": "circles"},
            {"name": "spirals", "noise": 0.02},
        ]
    ) | {"batch_size": r.choice([32, 64, 128])}
    activation = r.choice(["relu", "relu", "relu", "leaky_relu", "gelu", "silu", "tanh", "tanh", "sigmoid", "elu"])
    depth = r.choice([1, 2, 3, 4, 6, 8, 12, 16, 20])
    model: dict[str, Any] = {
        "name": "mlp",
        "depth": depth,
        "width": r.choice([16, 24, 32, 48, 64]),
        "activation": {"name": activation},
        "init": _init(r, activation),
    }
    if r.random() < 0.2:
        model["residual"] = {"name": "on"}
    if r.random() < 0.2:
        model["norm"] = {"name": r.choice(["layer", "rms"]), "where": r.choice(["pre", "mid", "post"])}
    optimizer = r.choice(list(GOOD_RATES))
    off = r.choice([0, 0, 0, 0, r.uniform(-3.5, -1.5), r.uniform(0.5, 2.0)]) + r.uniform(-0.4, 0.4)
    table = {
        "title": f"net {seed}",
        "data": data,
        "model": model,
        "optimizer": {"name": optimizer, "lr": GOOD_RATES[optimizer] * 10**off},
        "run": {"seed": seed, "device": "cpu", "threads": 1},
    }
    return scenario_of(table)


def _init(r: random.Random, activation: str) -> dict[str, Any]:
    kind = r.choice(["good", "good", "good", "large", "tiny", "small", "bias"])
    if kind == "large":
        return {"name": "he", "gain": r.uniform(1.6, 4.0)}
    if kind == "tiny":
        return {"name": "normal", "std": 10 ** r.uniform(-2.3, -1.5)}
    if kind == "small":
        return {"name": r.choice(["lecun", "xavier"]), "gain": r.uniform(0.3, 0.8)}
    if kind == "bias" and activation == "relu":
        return {"name": "he", "bias": -r.uniform(1.5, 5.0)}
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


def situation_of(scenario: Scenario) -> Situation:
    model = scenario.model
    if not isinstance(model, MlpModel):
        return Situation(optimizer=scenario.optimizer.name)
    return Situation(
        classes=10 if isinstance(scenario.data, DigitsData) else 2,
        optimizer=scenario.optimizer.name,
        activation=model.activation.name,
        residual=model.residual.name == "on",
        norm=model.norm.name != "none",
    )


# --- what the diagnosis is shown ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Seen:
    """A stretch of a run as an observer gets it, its readings by step. It ends before a loss that is no number."""

    layers: tuple[Layer, ...]
    losses: list[float] = field(default_factory=list)
    readings: dict[int, ReadingsTaken] = field(default_factory=dict)


class Observed:
    """A scenario trained in this process under the real instruments."""

    def __init__(self, scenario: Scenario) -> None:
        self.setup = build(scenario, on=CPU)
        self.net = structure(self.setup.model)
        self.parameters = list(self.setup.model.parameters())
        self.measuring = Measuring(self.net, self.parameters)
        self.seen = Seen(tuple(w.layer for w in self.net.layers))
        self.step = 0
        self._under_way: list[surgery.Transition] = []

    def run(self, steps: int, *, every: int) -> Seen:
        for _ in range(steps):
            self._under_way = [t for t in self._under_way if not t.advance()]
            if not self._one(every):
                break
        return self.seen

    def turn_residual_on(self) -> None:
        """As the knob does it: the branch at 1/√depth, over 20 steps."""
        blocks = _blocks(self.setup)
        self._under_way = [surgery.open_skip(block, len(blocks) ** -0.5, steps=20) for block in blocks]

    def _one(self, every: int) -> bool:
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
        if any(p.grad is not None and not p.grad.isfinite().all() for p in self.parameters):
            measuring.detach()
            seen.losses.append(math.nan)  # the guard holds a run here
            return False
        if due:
            measuring.before_update()
        self.setup.optimizer.step()
        if due:
            sample = measuring.after_update().now()
            record = ReadingRecord(
                step=step,
                segment=0,
                global_grad_norm=sample.global_grad_norm,
                watch_cost=0.0,
                global_cosine=math.nan if sample.global_cosine is None else sample.global_cosine,
                rows=[tuple(row) for row in sample.rows],
            )
            seen.readings[step] = unpack(record)
        elif (step + 1) % every == 0:
            measuring.remember()
        self.step += 1
        return True


# --- the oracle -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What trying out established. `gains` by change; `findings` is empty where nothing was established."""

    findings: frozenset[str]
    cures: frozenset[str]
    gains: dict[str, float]
    rose: bool

    @property
    def ill(self) -> bool:
        return bool(self.findings) and "healthy" not in self.findings


HEALTHY = 0.6  # of the best change's gain: as good as it gets
ILL = 0.4  # under this part of it something is clearly wrong; in between both words are right
ESTABLISHED = 0.3  # a best gain under this says nothing
CLEARLY = 0.6  # a change cures with this part of the best gain


class Oracle:
    """Tries changes on one net, from where its window ended or, where that is spoilt, from its beginning."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.classes = situation_of(scenario).classes or 0
        self.start = build(scenario, on=CPU)
        self.end = copy.deepcopy(self.start)
        losses = _train(self.end, WINDOW)
        first, last = sum(losses[:3]) / 3, sum(losses[-10:]) / 10
        guess = math.log(self.classes)
        self.broke = not math.isfinite(losses[-1]) or len(losses) < WINDOW
        self.rose = self.broke or last > 1.25 * max(first, guess)
        self.falls = not self.broke and last < first

    def gain(self, setup: Setup, transitions: Sequence[surgery.Transition] = ()) -> float:
        losses = _train(setup, TRIAL, transitions)
        if len(losses) < TRIAL or not math.isfinite(losses[-1]):
            return -math.inf
        return 1 - sum(losses[-TAIL:]) / TAIL / math.log(self.classes)

    def verdict(self) -> Verdict:
        gains = {"as is": -math.inf if self.broke else self.gain(copy.deepcopy(self.end))}
        if gains["as is"] > 0.85:
            return Verdict(frozenset({"healthy"}), frozenset(), gains, self.rose)
        for name, change in CHANGES.items():
            made = change(self)
            if made is not None:
                gains[name] = self.gain(*made)
        return judge(gains, scenario=self.scenario, broke=self.broke, rose=self.rose)

    def state(self) -> Setup:
        """Where a knob would act: the window's end, or the beginning after an undo."""
        return copy.deepcopy(self.start if self.rose else self.end)


def judge(gains: dict[str, float], *, scenario: Scenario, broke: bool, rose: bool) -> Verdict:
    """Which findings a pattern of cures means."""
    as_is = gains["as is"]
    best = max(gains.values())
    if best < ESTABLISHED:
        known = frozenset({"diverged", "diverging"}) if broke else frozenset[str]()
        return Verdict(known, frozenset(), gains, rose)
    if as_is >= HEALTHY * best:
        return Verdict(frozenset({"healthy"}), frozenset(), gains, rose)
    cures = frozenset(n for n, g in gains.items() if n != "as is" and g >= CLEARLY * best and g > as_is + 0.1)
    findings = {"healthy"} if as_is >= ILL * best else set[str]()
    findings |= {"diverged", "diverging"} if broke else set()
    return Verdict(frozenset(findings | _meant(cures, scenario, rose)), cures, gains, rose)


def _meant(cures: frozenset[str], scenario: Scenario, rose: bool) -> set[str]:
    """What is wrong where just these changes cure."""
    assert isinstance(scenario.model, MlpModel)
    activation, optimizer = scenario.model.activation.name, scenario.optimizer
    faster = bool(cures & {"lr*10", "lr*100", "lr*1000"})
    if "adam" in cures and optimizer.name in ("adam", "adamw", "rmsprop") and optimizer.lr < 6e-4:
        faster = True  # the same family at another rate
    slower = bool(cures & {"lr/10", "lr/100", "undo lr/10"})
    smaller, larger = bool(cures & {"init/2", "init/4"}), bool(cures & {"init*2", "init*4"})
    redrawn = bool(cures & {"init he", "init xavier", "unbounded"})
    built = bool(cures & {"residual", "norm pre", "norm mid"})
    findings = set[str]()
    if slower:
        findings |= {"diverging", "rate at the edge"}
    if faster:
        findings |= {"rate too small", "plateau"}
    if smaller and not larger:
        findings |= {"exploding"}
    if activation in ("tanh", "sigmoid") and cures & {"init/2", "init/4", "unbounded"}:
        findings |= {"saturated"}
    if activation == "relu" and cures & {"leaky_relu", "bias 0"}:
        findings |= {"dead units"}
    if not faster and not smaller and (larger or redrawn or built):
        findings |= {"vanishing"}
    if built and not redrawn and not larger and not slower and not smaller:
        findings |= {"plateau"}  # a way around cures, and nothing says that the way through was lost
    if "adam" in cures and not slower and not smaller and not rose:
        findings |= {"plateau"}
    return findings


def _train(setup: Setup, steps: int, transitions: Sequence[surgery.Transition] = ()) -> list[float]:
    under_way, losses = list(transitions), []
    for _ in range(steps):
        under_way = [t for t in under_way if not t.advance()]
        loss = setup.loss()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]) or losses[-1] > 1e12:
            losses[-1] = math.nan
            break
        setup.optimizer.zero_grad()
        loss.backward()
        setup.optimizer.step()
    return losses


Made = tuple[Setup, Sequence[surgery.Transition]] | tuple[Setup] | None


def _rate(factor: float) -> Callable[[Oracle], Made]:
    def change(oracle: Oracle) -> Made:
        setup = oracle.state()
        for group in setup.optimizer.param_groups:
            group["lr"] *= factor
        return (setup,)

    return change


def _undone(oracle: Oracle) -> Made:
    setup = copy.deepcopy(oracle.start)
    for group in setup.optimizer.param_groups:
        group["lr"] /= 10
    return (setup,)


def _scaled(factor: float) -> Callable[[Oracle], Made]:
    def change(oracle: Oracle) -> Made:
        setup = copy.deepcopy(oracle.start)
        with torch.no_grad():
            for block in _blocks(setup):
                block.linear.weight.mul_(factor)
        return (setup,)

    return change


def _redrawn(name: str) -> Callable[[Oracle], Made]:
    def change(oracle: Oracle) -> Made:
        setup = copy.deepcopy(oracle.start)
        generator = torch.Generator().manual_seed(oracle.scenario.run.seed + 1)
        for module in setup.model.modules():
            if isinstance(module, nn.Linear):
                parts.draw(module.weight, convert(InitSpec, {"name": name}, "", []), generator)  # type: ignore[arg-type]
                nn.init.zeros_(module.bias)
        return (setup,)

    return change


def _residual(oracle: Oracle) -> Made:
    setup = oracle.state()
    blocks = _blocks(setup)
    if any(block.skip is not None for block in blocks):
        return None
    return setup, [surgery.open_skip(block, len(blocks) ** -0.5, steps=20) for block in blocks]


def _leaky(oracle: Oracle) -> Made:
    setup = oracle.state()
    if not any(isinstance(block.activation, nn.ReLU) for block in _blocks(setup)):
        return None
    for block in _blocks(setup):
        block.activation = nn.LeakyReLU(0.2)
    return (setup,)


def _unbounded(oracle: Oracle) -> Made:
    setup = oracle.state()
    if not any(isinstance(block.activation, nn.Tanh | nn.Sigmoid) for block in _blocks(setup)):
        return None
    for block in _blocks(setup):
        block.activation = nn.LeakyReLU(0.01)
    return (setup,)


def _unbiased(oracle: Oracle) -> Made:
    setup = oracle.state()
    if not any(bool(block.linear.bias.abs().max() > 0.5) for block in _blocks(setup)):
        return None
    for block in _blocks(setup):
        nn.init.zeros_(block.linear.bias)
    return (setup,)


def _normed(where: str) -> Callable[[Oracle], Made]:
    def change(oracle: Oracle) -> Made:
        state = oracle.state()
        if any(block.norm is not None for block in _blocks(state)):
            return None
        setup = build(changed(oracle.scenario, model={"norm": {"name": "layer", "where": where}}), on=CPU)
        missing, _ = setup.model.load_state_dict(state.model.state_dict(), strict=False)
        assert all("norm" in name for name in missing)
        setup.batches = state.batches
        return (setup,)

    return change


def _adam(oracle: Oracle) -> Made:
    setup = oracle.state()
    setup.optimizer = torch.optim.Adam(setup.model.parameters(), lr=3e-3)
    return (setup,)


CHANGES: dict[str, Callable[[Oracle], Made]] = {
    "lr*10": _rate(10.0),
    "lr*100": _rate(100.0),
    "lr*1000": _rate(1000.0),
    "lr/10": _rate(0.1),
    "lr/100": _rate(0.01),
    "undo lr/10": _undone,
    "residual": _residual,
    "init he": _redrawn("he"),
    "init xavier": _redrawn("xavier"),
    "init/2": _scaled(0.5),
    "init/4": _scaled(0.25),
    "init*2": _scaled(2.0),
    "init*4": _scaled(4.0),
    "leaky_relu": _leaky,
    "unbounded": _unbounded,
    "bias 0": _unbiased,
    "norm pre": _normed("pre"),
    "norm mid": _normed("mid"),
    "adam": _adam,
}


def _blocks(setup: Setup) -> list[Block]:
    return [m for m in setup.model.modules() if isinstance(m, Block)]


def _keep(first: int, end: int) -> str:
    """The oracle's gains of these seeds as JSON, a line a net."""
    lines = []
    for seed in range(first, end):
        oracle = Oracle(draw(seed))
        verdict = oracle.verdict()
        gains = {name: round(gain, 4) if math.isfinite(gain) else None for name, gain in verdict.gains.items()}
        lines.append(f'  "{seed}": {json.dumps({"broke": oracle.broke, "rose": verdict.rose, "gains": gains})}')
    return "{\n" + ",\n".join(lines) + "\n}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(_keep(int(sys.argv[1]), int(sys.argv[2])))
