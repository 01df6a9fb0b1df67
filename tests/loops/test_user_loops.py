"""Forty user loops in the style of public training code: watching them changes nothing, and reads what happened."""

from __future__ import annotations

import functools
import io
import pickle
import pickletools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import msgspec
import pytest
import torch
from fake_keeper import FakeKeeper
from float64_twins import close
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer
from user_loops import LOOPS

from tui_descent.protocol.commands import TurnKnob, Undo
from tui_descent.protocol.events import (
    CommandDone,
    CommandRejected,
    KnobTurned,
    LayersChanged,
    RunEnded,
    RunStarted,
    WiringFound,
)
from tui_descent.training.keeper_link import KeeperLink
from tui_descent.training.watch.user_loop import watch

WITHIN = 1e-5
# The facts about the wiring that are true of these loops.
FACTS = {
    "lora_adapters": [("frozen layers", "wte", True)],
    "frozen_backbone_then_unfrozen": [("frozen layers", "stem.0", True), ("frozen layers", "stem.0", True)],
}
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)
GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
    torch_optimizer._global_optimizer_pre_hooks,
    torch_optimizer._global_optimizer_post_hooks,
)


class Pickler(pickle.Pickler):
    """Pickles classes that are local to a function, which pickle itself cannot do."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type) and "<locals>" in value.__qualname__:
            return type, (value.__name__, (), {})
        return NotImplemented


def saved(model: nn.Module) -> bytes:
    """The model as a file; if it cannot be saved, the reason."""
    file = io.BytesIO()
    try:
        Pickler(file).dump(model)
    except Exception as error:  # noqa: BLE001 - some nets cannot be pickled, watched or not
        return f"{type(error).__name__}: {error}".encode()
    return file.getvalue()


def operations(file: bytes) -> int:
    """How many operations the pickle has. Their bytes differ, since storages are named by their addresses."""
    return sum(1 for _ in pickletools.genops(file)) if file.startswith(b"\x80") else len(file)


def unwrapped(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)


def as_list(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


def named_parameters(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters by name; those of several nets have the net's name in front."""
    if isinstance(model, nn.Module):
        yield from model.named_parameters()
        return
    for name, net in model.items() if isinstance(model, Mapping) else enumerate(model):
        yield from ((f"{name}.{path}", parameter) for path, parameter in net.named_parameters())


def hooks_on(model: nn.Module, optimizers: Iterable[Any]) -> list[int]:
    """How many hooks there are on modules, parameters, optimizers, and on all of torch."""
    modules = [sum(len(getattr(module, name)) for name in HOOKS) for module in model.modules()]
    parameters = [len(p._backward_hooks or ()) for p in model.parameters()]
    steps = [len(o._optimizer_step_pre_hooks) + len(o._optimizer_step_post_hooks) for o in optimizers]
    return [sum(modules), sum(parameters), sum(steps), *(len(hooks) for hooks in GLOBAL_HOOKS)]


class Trained:
    """What a loop did: losses, files of the model after each step, the net, and float64 copies of every update."""

    def __init__(self, *, keeps_files: bool) -> None:
        self.keeps_files = keeps_files
        self.losses: list[float] = []
        self.files: list[bytes] = []
        self.optimizers: list[Any] = []
        self.model: Any = None
        self.net: nn.Module = nn.Module()
        self.numbers = torch.empty(0)
        # By step: name -> (gradient, weights before, weights after), of the parameters whose optimizer made a step.
        self.updates: list[dict[str, tuple[Tensor | None, Tensor, Tensor]]] = []
        self.made = 0


class Unwatched:
    """A stand-in for a run, with which the loop trains unwatched."""

    def __init__(self, trained: Trained, model: Any, optimizer: Any, **_: Any) -> None:
        self.trained = trained
        trained.model, trained.optimizers = model, [unwrapped(one) for one in as_list(optimizer)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def log(self, name: str, value: Any) -> None:
        pass

    def step(self, loss: Any) -> None:
        self.trained.losses.append(float(loss))
        if self.trained.keeps_files:
            self.trained.files.append(b"\n".join(saved(net) for net in as_list(self.trained.model)))


class Watched(Unwatched):
    """A watched run. Between the steps it keeps float64 copies of what the optimizers did."""

    def __init__(self, trained: Trained, model: Any, optimizer: Any, **how: Any) -> None:
        super().__init__(trained, model, optimizer)
        self.run = watch(model, optimizer, watch_every=1, **how)
        self.now: dict[str, tuple[Tensor | None, Tensor, Tensor]] = {}
        self.handles: list[Any] = []

    def __enter__(self) -> Self:
        self.run.__enter__()
        self.handles = [
            torch_optimizer.register_optimizer_step_pre_hook(self.before),
            torch_optimizer.register_optimizer_step_post_hook(self.after),
        ]
        return self

    def __exit__(self, *error: Any) -> Any:
        for handle in self.handles:
            handle.remove()
        return self.run.__exit__(*(error or (None, None, None)))

    def log(self, name: str, value: Any) -> None:
        self.run.log(name, value)

    def of(self, optimizer: Any) -> Iterator[tuple[str, nn.Parameter]]:
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        yield from ((name, p) for name, p in named_parameters(self.trained.model) if id(p) in mine)

    def before(self, optimizer: Any, *_: Any) -> None:
        for name, p in self.of(optimizer):
            if name not in self.now and not isinstance(p, nn.parameter.UninitializedParameter):
                weights = wide(p)
                self.now[name] = (None, weights, weights)

    def after(self, optimizer: Any, *_: Any) -> None:
        for name, p in self.of(optimizer):
            if name in self.now:
                self.now[name] = (None if p.grad is None else wide(p.grad), self.now[name][1], wide(p))

    def step(self, loss: Any) -> None:
        if self.now:
            self.trained.updates.append(self.now)
            self.now = {}
        self.trained.made += bool(self.run.step(loss))
        super().step(loss)


class Steered(Unwatched):
    """A watched run to which `commands` sends commands. It keeps nothing."""

    def __init__(self, trained: Trained, model: Any, optimizer: Any, commands: Any, **how: Any) -> None:
        super().__init__(trained, model, optimizer)
        self.run = watch(model, optimizer, watch_every=1, **how)
        self.commands = commands
        self.steps = 0

    def __enter__(self) -> Self:
        self.run.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self.run.__exit__(*(error or (None, None, None)))

    def log(self, name: str, value: Any) -> None:
        self.run.log(name, value)

    def step(self, loss: Any) -> None:
        self.run.step(loss)
        self.steps += 1
        self.commands(self.steps)


def wide(tensor: Tensor) -> Tensor:
    """A copy in float64, or complex128."""
    dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    return dense.to(torch.complex128 if dense.is_complex() else torch.float64, copy=True)


def norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about lazy modules, nested tensors and scripts
        yield


def train(name: str, kind: type[Unwatched], *, keeps_files: bool = True, **how: Any) -> Trained:
    trained = Trained(keeps_files=keeps_files)
    torch.manual_seed(7)
    with quiet():
        trained.net = LOOPS[name](lambda model, optimizer, **more: kind(trained, model, optimizer, **how, **more))
    trained.numbers = torch.get_rng_state()
    return trained


@functools.cache
def unwatched(name: str) -> Trained:
    # Twice: the first time, TorchScript profiles, and Python interns names, which changes losses and files.
    for keeps_files in (False, True):
        torch._dynamo.reset()
        trained = train(name, Unwatched, keeps_files=keeps_files)
    return trained


@pytest.fixture
def keeper_of_watch(keeper: FakeKeeper, monkeypatch: pytest.MonkeyPatch) -> FakeKeeper:
    """`watch()` connects to this keeper instead of starting one. It keeps snapshots, so undo works."""
    keeper.link.launch = msgspec.structs.replace(keeper.link.launch, socket="not used")
    monkeypatch.setattr(KeeperLink, "with_own_keeper", classmethod(lambda cls, name: keeper.link))
    return keeper


@pytest.mark.parametrize("name", LOOPS)
def test_a_watched_loop_trains_as_an_unwatched_one_and_is_read_rightly(name: str, keeper_of_watch: FakeKeeper) -> None:
    plain = unwatched(name)
    torch._dynamo.reset()
    hooks_before = [len(hooks) for hooks in GLOBAL_HOOKS]
    found = train(name, Watched)
    assert [loss.hex() for loss in found.losses] == [loss.hex() for loss in plain.losses]
    for (path, weights), wanted in zip(found.net.named_parameters(), plain.net.parameters(), strict=True):
        assert torch.equal(weights, wanted), path
    assert torch.equal(found.numbers, plain.numbers)
    assert len(found.files) == len(plain.files)
    assert not any(b"tui_descent" in file for file in found.files)
    for n in {0, len(plain.files) // 2, len(plain.files) - 1}:  # counting takes long
        assert operations(found.files[n]) == operations(plain.files[n]), n
    assert hooks_on(found.net, found.optimizers) == hooks_on(plain.net, plain.optimizers)
    assert [len(hooks) for hooks in GLOBAL_HOOKS] == hooks_before
    events = keeper_of_watch.events()
    ended = [event for event in events if isinstance(event, RunEnded)]
    assert [event.status for event in ended] == ["finished"]
    assert sum(not step.skipped for step in keeper_of_watch.steps()) == len(found.updates)
    assert ended[0].step == (len(found.losses) if name == "scaler_that_skips_updates" else len(found.updates))
    facts = [(e.fault, e.layer, e.present) for e in events if isinstance(e, WiringFound)]
    assert facts == FACTS.get(name, []), "the loops are healthy"
    check_readings(found, events, keeper_of_watch.readings())


def check_readings(found: Trained, events: list[Any], readings: list[Any]) -> None:
    """Compare every reading with the float64 copies of what the optimizers did."""
    lists = {0: next(e.layers for e in events if isinstance(e, RunStarted))}
    lists |= {e.structure: e.layers for e in events if isinstance(e, LayersChanged)}
    parameters = dict(named_parameters(found.model))
    compared = 0
    for reading in readings:
        update = found.updates[reading.step]
        for n, layer in enumerate(lists[reading.structure]):
            path = layer.name if layer.name in update else f"{layer.name}.weight"
            if path not in update or path not in parameters or reading.statuses[n] != "used":
                continue
            grad, before, after = update[path]
            values = {column: rows[n] for column, rows in reading.values.items()}
            where = f"step {reading.step}, {path}: {values}"
            assert grad is not None, where
            assert close(values["grad_norm"], norm(grad), WITHIN), f"{where}, not {norm(grad)}"
            if reading.ages[n] == 0:
                assert close(values["weight_norm"], norm(before), WITHIN), f"{where}, not {norm(before)}"
                wanted = norm(after - before)
                # float32 weights minus float32 weights: exact to one part in 2^24 of the weights.
                assert values["update_norm"] is not None
                assert abs(values["update_norm"] - wanted) <= WITHIN * wanted + 1e-9 * norm(before), (
                    f"{where}: {wanted}"
                )
            compared += 1
    assert compared >= len(found.updates), "at least one layer at each step"


@pytest.mark.parametrize("name", LOOPS)
def test_keys_are_applied_or_refused_with_a_reason(name: str, keeper_of_watch: FakeKeeper) -> None:
    sent = {
        2: TurnKnob(knob="lr", value="*1.25"),
        3: TurnKnob(knob="activation", value="tanh"),
        5: Undo(),
    }
    requests: list[int] = []

    def commands(step: int) -> None:
        if step in sent:
            requests.append(keeper_of_watch.send(sent[step]))

    train(name, Steered, keeps_files=False, commands=commands)
    events = keeper_of_watch.events()
    replies = [e for e in events if isinstance(e, CommandDone | CommandRejected | KnobTurned)]
    assert sorted(reply.request for reply in replies) == sorted(requests)
    assert all(reply.reason for reply in replies if isinstance(reply, CommandRejected))
    assert [e.status for e in events if isinstance(e, RunEnded)] == ["finished"]
