"""An oracle that uses no readings: it tries changes out on a net in its current state and sees which ones train.

Its only measure is the gain, 1 − (mean loss of a trial's last steps) / ln C: 0 is guessing, 1 is perfect. The result
depends a little on the batches and on the redrawn weights, so everything is tried three times.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diagnosis_nets import CPU, blocks_of, changed, context_of_scenario, draw
from diagnosis_trials import LOST, Trial, train_all
from torch import nn

from tui_descent.scenario.optimizers import map_rate
from tui_descent.scenario.spec import InitSpec, MlpModel, Scenario
from tui_descent.scenario.validate import convert
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.setup.data.batches import Batches
from tui_descent.training.setup.nets import parts
from tui_descent.training.steering import surgery

AT = 240  # steps after which the oracle and the diagnosis judge a net
TRIAL = 240  # steps of a trial
TAIL = 20
REDRAWN = 1_000_003  # between the seeds of redrawn weights
ADAMS = 3e-3  # a good learning rate for Adam


REPEATS = 3  # how often everything is tried, with other batches and other redrawn weights


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the trials show. `findings` is empty if they show nothing."""

    findings: frozenset[str]
    cures: frozenset[str]

    @property
    def ill(self) -> bool:
        return bool(self.findings) and "healthy" not in self.findings


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialGains:
    """Whether the loss of a net diverged or rose without any change, and the gains by change, for each repetition."""

    diverged: bool
    rose: bool
    gains: Sequence[dict[str, float]]

    def verdicts(self, scenario: Scenario) -> list[Verdict]:
        return [judge(gains, scenario=scenario, diverged=self.diverged, rose=self.rose) for gains in self.gains]


def settled(verdicts: Sequence[Verdict]) -> Verdict:
    """What most of the repetitions agree on: a finding or cure that depends on the batches does not count."""

    def most(sets: Sequence[frozenset[str]]) -> frozenset[str]:
        return frozenset(name for name in frozenset().union(*sets) if 2 * sum(name in s for s in sets) > len(sets))

    return Verdict(most([v.findings for v in verdicts]), most([v.cures for v in verdicts]))


HEALTHY = 0.6  # with this part of the best gain nothing is wrong
ILL = 0.4  # below this part of it something is clearly wrong; in between both answers are right
ESTABLISHED = 0.3  # a best gain below this shows nothing
CLEARLY = 0.6  # a change with this part of the best gain is a cure
SURELY = 0.85  # above this gain nothing else needs to be tried


class Oracle:
    """Tries changes on one net, from its state after some steps or, if that is unusable, from its start."""

    def __init__(self, scenario: Scenario, *, after: int = AT) -> None:
        self.scenario = scenario
        self.repetition = 0  # the current one
        self.classes = context_of_scenario(scenario).classes or 0
        self.start = build(scenario, on=CPU)
        self.end = copy.deepcopy(self.start)
        losses = train(self.end, after)
        first, last = sum(losses[:3]) / 3, sum(losses[-10:]) / 10
        guess = math.log(self.classes)
        self.diverged = not math.isfinite(losses[-1]) or len(losses) < after
        self.rose = self.diverged or last > 1.25 * max(first, guess)

    def try_all(self, *, repeats: int = REPEATS) -> TrialGains:
        """Try everything, as one batch."""
        gains: list[dict[str, float]] = [{} for _ in range(repeats)]
        if self.diverged:
            for repetition in gains:
                repetition["as is"] = -math.inf
        else:
            self._try({"as is": lambda oracle: (copy.deepcopy(oracle.end),)}, gains)
        if not all(repetition["as is"] > SURELY for repetition in gains):
            self._try(CHANGES, gains)
        return TrialGains(diverged=self.diverged, rose=self.rose, gains=gains)

    def verdict(self) -> Verdict:
        return settled(self.try_all().verdicts(self.scenario))

    def state(self) -> Setup:
        """The state that a knob would change: the current one, or the start after an undo."""
        return copy.deepcopy(self.start if self.rose else self.end)

    def trial(self, made: tuple[Setup, Sequence[surgery.Transition]] | tuple[Setup]) -> Trial:
        """The first repetition goes on with the run's own batches, the others start a new epoch in another order."""
        setup, transitions = (made[0], made[1] if len(made) == 2 else ())
        assert isinstance(setup.batches, Batches)
        if self.repetition:
            _, order, _, size = setup.batches.state()
            shuffled = torch.Generator().manual_seed(self.repetition).get_state()
            setup.batches.restore((shuffled, order, len(order), size))
        return Trial(setup=setup, transitions=transitions)

    def _try(self, changes: dict[str, Callable[[Oracle], Made]], gains: list[dict[str, float]]) -> None:
        names: list[tuple[int, str]] = []
        trials: list[Trial] = []
        for self.repetition in range(len(gains)):
            for name, change in changes.items():
                if (made := change(self)) is not None:
                    names.append((self.repetition, name))
                    trials.append(self.trial(made))
        for (repetition, name), losses in zip(names, train_all(trials, TRIAL), strict=True):
            gains[repetition][name] = self._gain(losses)

    def _gain(self, losses: Sequence[float]) -> float:
        if len(losses) < TRIAL or not math.isfinite(losses[-1]):
            return -math.inf
        return 1 - sum(losses[-TAIL:]) / TAIL / math.log(self.classes)


def judge(gains: dict[str, float], *, scenario: Scenario, diverged: bool, rose: bool) -> Verdict:
    """Which findings follow from the gains."""
    as_is = gains["as is"]
    best = max(gains.values())
    if best < ESTABLISHED:
        known = frozenset({"diverged", "diverging"}) if diverged else frozenset[str]()
        return Verdict(known, frozenset())
    if as_is >= HEALTHY * best:
        return Verdict(frozenset({"healthy"}), frozenset())
    cures = frozenset(n for n, g in gains.items() if n != "as is" and g >= CLEARLY * best and g > as_is + 0.1)
    findings = {"healthy"} if as_is >= ILL * best else set[str]()
    findings |= {"diverged", "diverging"} if diverged else set()
    return Verdict(frozenset(findings | _findings_of(cures | _best_scale(gains, cures), scenario, rose)), cures)


def _best_scale(gains: dict[str, float], cures: frozenset[str]) -> frozenset[str]:
    """If redrawn weights are a cure and scaled ones are not: the scale that trains best, if any trains."""
    scales = {name: gains.get(name, -math.inf) for name in ("init/2", "init/4", "init*2", "init*4")}
    best = max(scales, key=scales.__getitem__)
    unscaled = cures & {"init he", "init xavier"} and not cures & set(scales)
    return frozenset({best} if unscaled and scales[best] > max(ESTABLISHED, gains["as is"] + 0.1) else ())


def _findings_of(cures: frozenset[str], scenario: Scenario, rose: bool) -> set[str]:
    """The findings that follow from these cures."""
    assert isinstance(scenario.model, MlpModel)
    activation, optimizer = scenario.model.activation.name, scenario.optimizer
    faster = bool(cures & {"lr*10", "lr*100", "lr*1000"})
    # Adam is a cure, but not with the converted rate: then the rate was too small.
    rated = "adam" in cures and "adam mapped" not in cures and map_rate(optimizer.name, "adam", optimizer.lr).lr < ADAMS
    slower = bool(cures & {"lr/10", "lr/100", "undo lr/10"})
    smaller, larger = bool(cures & {"init/2", "init/4"}), bool(cures & {"init*2", "init*4"})
    redrawn = bool(cures & {"init he", "init xavier", "unbounded"})
    built = bool(cures & {"residual", "norm pre", "norm mid"})
    findings = set[str]()
    if slower:
        findings |= {"diverging", "rate too large", "rate at the edge"}
    if faster or rated:
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
        findings |= {"plateau"}  # a bypass is a cure, and nothing shows that the gradient had vanished
    if "adam" in cures and not slower and not smaller and not rose:
        findings |= {"plateau"}
    return findings


def train(setup: Setup, steps: int, transitions: Sequence[surgery.Transition] = ()) -> list[float]:
    """Train one net. Returns its losses; the last one is NaN if it diverged."""
    under_way, losses = list(transitions), []
    for _ in range(steps):
        under_way = [t for t in under_way if not t.advance()]
        loss = setup.loss()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]) or losses[-1] > LOST:
            losses[-1] = math.nan
            break
        setup.optimizer.zero_grad()
        loss.backward()
        setup.optimizer.step()
    return losses


Made = tuple[Setup, Sequence[surgery.Transition]] | tuple[Setup] | None


def _scale_rate(factor: float) -> Callable[[Oracle], Made]:
    def change(oracle: Oracle) -> Made:
        setup = oracle.state()
        for group in setup.optimizer.param_groups:
            group["lr"] *= factor
        return (setup,)

    return change


def _undo(oracle: Oracle) -> Made:
    setup = copy.deepcopy(oracle.start)
    for group in setup.optimizer.param_groups:
        group["lr"] /= 10
    return (setup,)


def _scale_weights(factor: float) -> Callable[[Oracle], Made]:
    def change(oracle: Oracle) -> Made:
        setup = copy.deepcopy(oracle.start)
        with torch.no_grad():
            for block in blocks_of(setup):
                block.linear.weight.mul_(factor)
        return (setup,)

    return change


def _redraw_weights(name: str) -> Callable[[Oracle], Made]:
    def change(oracle: Oracle) -> Made:
        setup = copy.deepcopy(oracle.start)
        generator = torch.Generator().manual_seed(oracle.scenario.run.seed + 1 + REDRAWN * oracle.repetition)
        for module in setup.model.modules():
            if isinstance(module, nn.Linear):
                parts.init_weight(module.weight, convert(InitSpec, {"name": name}, "", []), generator)  # type: ignore[arg-type]
                nn.init.zeros_(module.bias)
        return (setup,)

    return change


def _add_residual(oracle: Oracle) -> Made:
    setup = oracle.state()
    blocks = blocks_of(setup)
    if any(block.skip is not None for block in blocks):
        return None
    return setup, [surgery.open_skip(block, len(blocks) ** -0.5, steps=20) for block in blocks]


def _use_leaky_relu(oracle: Oracle) -> Made:
    setup = oracle.state()
    if not any(isinstance(block.activation, nn.ReLU) for block in blocks_of(setup)):
        return None
    for block in blocks_of(setup):
        block.activation = nn.LeakyReLU(0.2)
    return (setup,)


def _use_unbounded(oracle: Oracle) -> Made:
    setup = oracle.state()
    if not any(isinstance(block.activation, nn.Tanh | nn.Sigmoid) for block in blocks_of(setup)):
        return None
    for block in blocks_of(setup):
        block.activation = nn.LeakyReLU(0.01)
    return (setup,)


def _zero_bias(oracle: Oracle) -> Made:
    setup = oracle.state()
    if not any(bool(block.linear.bias.abs().max() > 0.5) for block in blocks_of(setup)):
        return None
    for block in blocks_of(setup):
        nn.init.zeros_(block.linear.bias)
    return (setup,)


def _add_norm(where: str) -> Callable[[Oracle], Made]:
    def change(oracle: Oracle) -> Made:
        state = oracle.state()
        if any(block.norm is not None for block in blocks_of(state)):
            return None
        setup = build(changed(oracle.scenario, model={"norm": {"name": "layer", "where": where}}), on=CPU)
        missing, _ = setup.model.load_state_dict(state.model.state_dict(), strict=False)
        assert all("norm" in name for name in missing)
        setup.batches = state.batches
        return (setup,)

    return change


def _use_adam(oracle: Oracle) -> Made:
    setup = oracle.state()
    setup.optimizer = torch.optim.Adam(setup.model.parameters(), lr=ADAMS)
    return (setup,)


def _use_adam_mapped(oracle: Oracle) -> Made:
    """As the knob does it, with the converted rate."""
    setup, optimizer = oracle.state(), oracle.scenario.optimizer
    rate = map_rate(optimizer.name, "adam", optimizer.lr).lr
    setup.optimizer = torch.optim.Adam(setup.model.parameters(), lr=rate)
    return (setup,)


CHANGES: dict[str, Callable[[Oracle], Made]] = {
    "lr*10": _scale_rate(10.0),
    "lr*100": _scale_rate(100.0),
    "lr*1000": _scale_rate(1000.0),
    "lr/10": _scale_rate(0.1),
    "lr/100": _scale_rate(0.01),
    "undo lr/10": _undo,
    "residual": _add_residual,
    "init he": _redraw_weights("he"),
    "init xavier": _redraw_weights("xavier"),
    "init/2": _scale_weights(0.5),
    "init/4": _scale_weights(0.25),
    "init*2": _scale_weights(2.0),
    "init*4": _scale_weights(4.0),
    "leaky_relu": _use_leaky_relu,
    "unbounded": _use_unbounded,
    "bias 0": _zero_bias,
    "norm pre": _add_norm("pre"),
    "norm mid": _add_norm("mid"),
    "adam": _use_adam,
    "adam mapped": _use_adam_mapped,
}


def _as_json(first: int, end: int) -> str:
    """The oracle's gains for the nets of these seeds as JSON, one net a line."""
    lines = []
    for seed in range(first, end):
        tried = Oracle(draw(seed)).try_all()
        gains = [{n: round(g, 4) if math.isfinite(g) else None for n, g in one.items()} for one in tried.gains]
        lines.append(f'  "{seed}": {json.dumps({"diverged": tried.diverged, "rose": tried.rose, "gains": gains})}')
    return "{\n" + ",\n".join(lines) + "\n}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(_as_json(int(sys.argv[1]), int(sys.argv[2])))
