"""A run built from a snapshot on disk goes on bitwise as the one that was saved."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from knob_turns import VALUES, refusal, steering_of
from net_families import setup as make_setup

from tui_descent.scenario.knobs import parse
from tui_descent.scenario.toml import from_table
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.undo import snapshot_file
from tui_descent.training.undo.random_state import RandomState
from tui_descent.training.undo.saved_run import load_run, save_run
from tui_descent.training.undo.snapshot import Snapshot
from tui_descent.training.undo.snapshot_file import SnapshotError
from tui_descent.training.undo.state_on_disk import StateOnDisk, state_on_disk

ALL = [value for values in VALUES.values() for value in values]


class Run:
    """A scenario run without the parts that watch it."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.steering, self.step = setup, steering_of(setup), 0

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            setup = self.setup
            self.steering.advance()
            loss = setup.loss()
            setup.optimizer.zero_grad()
            loss.backward()
            for one in self.steering.optimizers:
                self.steering.clip(one)
                one.rate.apply()
            setup.optimizer.step()
            self.steering.remove_rate_multiplier()
            self.steering.after_update()
            self.steering.add_loss(loss.item())
            losses.append(loss.item())
            self.step += 1
        return losses

    def facts(self) -> dict[str, str]:
        """Everything that may influence the next steps, in an order that does not depend on the objects."""
        model, optimizer, setup = self.setup.model, self.setup.optimizer, self.setup
        names = {id(p): name for name, p in model.named_parameters()}
        context = self.steering.context
        return {
            "weights": shown({**dict(model.named_parameters()), **dict(model.named_buffers())}),
            "modules": repr(model) + repr([(n, m.training, getattr(m, "t", None)) for n, m in model.named_modules()]),
            "frozen": repr([(n, p.requires_grad) for n, p in model.named_parameters()]),
            "blocks": repr([(b.skip, b.where) for b in context.blocks.values()]),
            "groups": repr([sorted(g.items(), key=str) for g in groups_of(optimizer)]),
            "grouped": repr([[names[id(p)] for p in g["params"]] for g in optimizer.param_groups]),
            "state": shown({names[id(p)]: state for p, state in optimizer.state.items() if id(p) in names}),
            "optimizer": f"{type(optimizer).__name__} {sorted(optimizer.defaults.items(), key=str)}",
            "hidden": repr([names.get(id(p)) for p in getattr(optimizer, "hidden", ())]),
            "transitions": repr(sorted((key, t.steps, t.steps_done) for key, t in context.transitions.items())),
            "knobs": repr([(s.name, s.value, s.unavailable) for s in self.steering.states() if s.name != "pace"]),
            "rates": repr([(one.rate.multiplier, one.clip) for one in context.optimizers]),
            "schedule": repr(None if setup.schedule is None else (setup.schedule.spec, setup.schedule.state())),
            "batches": shown(None if setup.batches is None else setup.batches.state()),
            "path": repr(None if setup.path is None else setup.path.state()),
            "context": repr((context.step, context.init, context.first_loss, context.last_kick, context.losses)),
            "random": shown(RandomState().state()),
        }

    def again(self, fresh: Setup, folder: Path) -> Run:
        """The same run, through a file."""
        file = snapshot_file.write(folder, 0, self.step, {"run": save_run(self.steering.context)})
        random_state = RandomState()
        before = random_state.state()
        torch.manual_seed(99)
        random.seed(99)
        run = Run(fresh)
        load_run(run.steering.context, snapshot_file.read(file.path)["run"])
        run.steering.after_restore()
        run.step = self.step
        self.after, self.random = run.facts(), before
        random_state.restore(before)
        return run


def goes_on_the_same(run: Run, fresh: Setup, folder: Path, *, steps: int = 8) -> None:
    """The run and the one made from its snapshot: equal states, equal losses, and equal states again."""
    before = run.facts()
    other = run.again(fresh, folder)
    assert run.after == before
    losses, end = run.train(steps), run.facts()
    RandomState().restore(run.random)
    assert other.train(steps) == losses
    assert other.facts() == end


def groups_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def shown(value: Any) -> str:
    """Equal for values that are equal bit for bit."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{tuple(value.shape)}{value.detach().contiguous().numpy().tobytes()!r}"
    if isinstance(value, dict):
        return repr(sorted((key, shown(one)) for key, one in value.items()))
    if isinstance(value, list | tuple):
        return repr([shown(one) for one in value])
    return value.tobytes().hex() if hasattr(value, "tobytes") else repr(value)


# Further values of these knobs take the same way through the code.
USUAL = [values[0] for values in VALUES.values()] + [
    "activation@blocks.1=silu,way=instant", "residual=on,way=rotation", "residual=on,way=rezero",
    "norm=rms,where=post,way=instant", "optimizer=muon", "optimizer=rmsprop", "schedule=plateau", "freeze@head=on",
]  # fmt: skip
FIRST = {"residual=off": "residual=on", "norm=none": "norm=layer", "dropout=0": "dropout=0.2", "clip=off": "clip=0.1"}


@pytest.mark.parametrize(
    "turn", [turn if turn in USUAL else pytest.param(turn, marks=pytest.mark.heavy) for turn in ALL]
)
def test_run_with_one_intervention_goes_on_the_same(turn: str, tmp_path: Path) -> None:
    made, fresh = (make_setup("mlp", dropout=0.1, activation="relu") for _ in range(2))
    run = Run(made)
    run.train(3)
    for one in (FIRST[turn], turn) if turn in FIRST else (turn,):
        refusal(run.steering, parse(one), run.step)
        run.train(2)
    goes_on_the_same(run, fresh, tmp_path)


def goes_back_the_same(run: Run, turns: list[str], *, steps: int = 4) -> None:
    """A state that is loaded into the running, changed net, and a snapshot in memory: equal states, equal losses."""
    context = run.steering.context
    content = {"run": "r", "interventions": 0, "segment": 0, "step": run.step, "state": save_run(context)}
    on_disk = state_on_disk(context, content, run="r", interventions=0)
    in_memory = Snapshot([*context.holders(), RandomState()], segment=0, step=run.step)
    before, losses, ends = run.facts(), [], []
    for snapshot in (on_disk, in_memory, on_disk):
        for turn in turns:
            refusal(run.steering, parse(turn), run.step)
            run.train(2)
        assert run.facts() != before
        snapshot.restore()
        run.steering.after_restore()
        run.step = snapshot.step
        assert run.facts() == before
        assert {id(p) for p in run.setup.model.parameters()} >= {
            id(p) for group in run.setup.optimizer.param_groups for p in group["params"]
        }
        losses.append(run.train(steps))
        ends.append(run.facts())
    assert losses[0] == losses[1] == losses[2]
    assert ends[0] == ends[1] == ends[2]


@pytest.mark.parametrize(
    "turn", [turn if turn in USUAL else pytest.param(turn, marks=pytest.mark.heavy) for turn in ALL]
)
def test_intervention_is_undone_from_disk_as_from_memory(turn: str) -> None:
    run = Run(make_setup("mlp", dropout=0.1, activation="relu"))
    run.train(3)
    if turn in FIRST:
        refusal(run.steering, parse(FIRST[turn]), run.step)
        run.train(2)  # the skips are half open
    goes_back_the_same(run, [turn])


@pytest.mark.parametrize("family", ["mlp", "conv", "transformer"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.heavy) for n in range(1, 20))])
def test_random_interventions_are_undone_from_disk_as_from_memory(seed: int, family: str) -> None:
    run, _ = random_run(seed, family)
    chosen = random.Random(seed + 100)
    goes_back_the_same(run, [chosen.choice(ALL) for _ in range(chosen.randint(1, 4))])


def test_state_that_does_not_fit_changes_nothing() -> None:
    run = Run(make_setup("mlp", dropout=0.1))
    run.train(3)
    saved = save_run(run.steering.context)
    run.steering.turn(parse("norm=layer"), step=3)
    run.train(2)
    before = run.facts()
    for break_it in (
        lambda state: state["net"]["tensors"].pop("head.weight"),
        lambda state: state["knobs"].pop("losses"),
        lambda state: state["optimizers"][0].update({"class": "Unknown"}),
        lambda state: state["random"].update({"torch": torch.zeros(3)}),
    ):
        broken = copy.deepcopy(saved)
        break_it(broken)
        with pytest.raises(SnapshotError):
            StateOnDisk(0, 3, run.steering.context, broken).restore()
        run.steering.after_restore()
        assert run.facts() == before


def random_run(seed: int, family: str) -> tuple[Run, Setup]:
    """A run with random interventions at random steps, and a fresh one of the same scenario."""
    chosen = random.Random(seed)
    how: dict[str, Any] = {"dropout": chosen.choice((0.0, 0.1)), "norm": chosen.choice(("none", "layer", "rms"))}
    names = ("sgd", "momentum", "adam", "adamw", "rmsprop", *(("muon",) if family != "conv" else ()))
    optimizer = {"name": chosen.choice(names), "lr": 1e-3}
    fresh = make_setup(family, optimizer=optimizer, **how)
    run = Run(make_setup(family, optimizer=optimizer, **how))
    for _ in range(chosen.randint(1, 8)):
        run.train(chosen.randint(1, 9))
        refusal(run.steering, parse(chosen.choice(ALL)), run.step)
    run.train(chosen.randint(0, 3))
    return run, fresh


@pytest.mark.parametrize("family", ["mlp", "conv", "transformer"])
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.heavy) for n in range(2, 30))])
def test_run_with_random_interventions_goes_on_the_same(seed: int, family: str, tmp_path: Path) -> None:
    run, fresh = random_run(seed, family)
    goes_on_the_same(run, fresh, tmp_path, steps=4)


@pytest.mark.parametrize(
    "model",
    [{"name": "surface", "function": "rosenbrock", "start": [-1.0, 1.0]}, {"name": "two_layer"}],
    ids=lambda model: str(model["name"]),
)
def test_run_without_data_goes_on_the_same(model: dict[str, Any], tmp_path: Path) -> None:
    table = {"title": "t", "model": model, "optimizer": {"name": "momentum", "lr": 1e-3}, "run": {"device": "cpu"}}

    def fresh() -> Setup:
        return build(from_table(table, source="test"), on=torch.device("cpu"))

    run = Run(fresh())
    run.train(5)
    run.steering.turn(parse("lr=*0.5"), step=5)
    goes_on_the_same(run, fresh(), tmp_path)
    goes_back_the_same(run, ["optimizer=adam", "kick=0.1"])


@pytest.mark.parametrize("schedule", ["plateau", "one_cycle", "wsd"])
def test_schedule_goes_on_the_same(schedule: str, tmp_path: Path) -> None:
    table = {
        "title": "t",
        "data": {"name": "digits"},
        "model": {"name": "mlp", "depth": 2, "width": 8},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"name": schedule},
        "run": {"steps": 40, "device": "cpu", "dtype": "float64"},
    }

    def fresh() -> Setup:
        return build(from_table(table, source="test"), on=torch.device("cpu"))

    run = Run(fresh())
    run.train(7)
    goes_on_the_same(run, fresh(), tmp_path)
