"""An error of ours inside the user's step: it is reported once, and training goes on bitwise as without us."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from torch import Tensor, nn

from tui_descent.instruments.instrument_set import InstrumentSet
from tui_descent.instruments.instrument_sets import InstrumentSets
from tui_descent.instruments.net_ends import NetEnds
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import Stop, TurnKnob
from tui_descent.protocol.events import CommandRejected, KnobTurned, Noted, RunEnded
from tui_descent.protocol.ring import Ring
from tui_descent.scenario.knobs import parse
from tui_descent.training.optim import clipping
from tui_descent.training.progress import Progress
from tui_descent.training.steering.control import Control
from tui_descent.training.steering.knobs.learning_rate import RateMultiplier
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch import loss_facts
from tui_descent.training.watch.layer_list import LayerList
from tui_descent.training.watch.misuse import Misuse
from tui_descent.training.watch.nan_guard import NanGuard
from tui_descent.training.watch.optimizer_facts import OptimizerFacts
from tui_descent.training.watch.optimizer_hooks import OptimizerHooks
from tui_descent.training.watch.reading_facts import ReadingFacts
from tui_descent.training.watch.results import Results
from tui_descent.training.watch.step_timer import StepTimer
from tui_descent.training.watch.uncleared_gradients import UnclearedGradients
from tui_descent.training.watch.watch import Watch
from tui_descent.training.watch.wiring import Wiring

STEPS = 28
# What fails, and the message about it; None if more than one part is switched off.
INJECTIONS: dict[str, tuple[Any, str, str | None]] = {
    "gradient check": (NanGuard, "gradient_is_finite", "the gradient check"),
    "input-most layer": (NanGuard, "find_input_most", "the gradient check"),
    "plan": (Sampler, "due", "the readings"),
    "cost": (Sampler, "spent", "the readings"),
    "steps to a reading": (Sampler, "steps_to_reading", "watching this loop"),
    "instruments": (LayerList, "instruments", "the readings"),
    "attach": (InstrumentSets, "attach", "the readings"),
    "detach": (InstrumentSet, "detach", "the readings"),
    "before update": (InstrumentSets, "before_update", "the readings"),
    "after update": (InstrumentSets, "after_update", "the readings"),
    "remember": (InstrumentSets, "remember", "the readings"),
    "list of layers": (LayerList, "report", "the readings"),
    "reading": (Results, "add_reading", "the readings"),
    "rate on": (RateMultiplier, "apply", "the optimizer hooks"),
    "rate off": (RateMultiplier, "remove", None),
    "hook": (OptimizerHooks, "_before_step", "the optimizer hooks"),
    "updates": (OptimizerHooks, "take_updates", "watching this loop"),
    "plan as a whole": (OptimizerHooks, "plan", None),
    "fast loss": (Results, "report_fast", "watching this loop"),
    "loss": (Results, "add_step", "watching this loop"),
    "report": (Results, "report", None),
    "ring": (Ring, "write_step", None),
    "reading in the ring": (Ring, "write_reading", None),
    "flag": (Ring, "flagged", "watching this loop"),
    "commands": (Control, "before_update", "watching this loop"),
    "count": (Control, "count_update", "watching this loop"),
    "schedule": (Steering, "after_update", "watching this loop"),
    "transitions": (Steering, "advance", "watching this loop"),
    "timer": (StepTimer, "report", "watching this loop"),
    "timer of a step": (StepTimer, "count_step", "watching this loop"),
    "memory": (Progress, "report_memory", "watching this loop"),
    "slips": (Misuse, "step", "watching this loop"),
    "wiring": (Wiring, "_step", "the checks of the wiring"),
    "wiring before an update": (OptimizerFacts, "before_update", "the checks of the wiring"),
    "wiring at a reading": (ReadingFacts, "check_ends", "the checks of the wiring"),
    "inputs and outputs": (NetEnds, "attach", None),
    "loss graph": (loss_facts, "read_loss_graph", "the checks of the wiring"),
    "gradients that stay": (UnclearedGradients, "before_update", "the checks of the wiring"),
}


class Boom(Exception):
    pass


def boom(*args: object, **kwargs: object) -> Any:
    raise Boom("on purpose")


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, each: Callable[[int, Tensor], object]) -> list[float]:
    generator, losses = torch.Generator().manual_seed(3), []
    for n in range(STEPS):
        loss = (net(torch.randn(8, 4, generator=generator)) - 1).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        each(n, loss)
        losses.append(loss.item())
    return losses


def made() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    return net, torch.optim.Adam(net.parameters(), lr=0.01)


def weights(net: nn.Module) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in net.parameters()]


def notes(keeper: FakeKeeper) -> list[str]:
    return [event.text for event in keeper.events(Noted)]


@pytest.mark.parametrize("when", ["from the start", "later"])
@pytest.mark.parametrize("name", INJECTIONS)
def test_training_goes_on_and_one_note_says_what_failed(
    name: str, when: str, monkeypatch: pytest.MonkeyPatch, keeper: FakeKeeper
) -> None:
    owner, method, part = INJECTIONS[name]
    net, optimizer = made()
    losses = steps(net, optimizer, lambda n, loss: None)
    watched, its_optimizer = made()
    random = torch.get_rng_state()

    def each(n: int, loss: Tensor) -> None:
        run.step(loss)
        if n == 5 and when == "later":
            monkeypatch.setattr(owner, method, boom)

    with Watch(watched, its_optimizer, link=keeper.link, sampler=Sampler(every=5)) as run:
        if when == "from the start":
            monkeypatch.setattr(owner, method, boom)
        assert steps(watched, its_optimizer, each) == losses
        monkeypatch.undo()
    assert weights(watched) == weights(net)
    assert torch.equal(random, torch.get_rng_state())
    assert not its_optimizer._optimizer_step_pre_hooks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in watched.modules())
    events = keeper.events()
    said = [event.text for event in events if isinstance(event, Noted)]
    assert isinstance(events[-1], RunEnded)
    assert events[-1].status == "finished"
    if (name, when) == ("loss graph", "later"):
        return  # it is read only at the start
    if part is not None and (name, when) != ("instruments", "from the start"):
        assert said == [f"switched off: {part} (Boom: on purpose); training goes on"]
    assert said
    assert len(set(said)) == len(said)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_interrupt_is_not_kept_back(error: BaseException, monkeypatch: pytest.MonkeyPatch, keeper: FakeKeeper) -> None:
    def interrupt(*args: object) -> None:
        raise error

    net, optimizer = made()
    run = Watch(net, optimizer, link=keeper.link)
    monkeypatch.setattr(NanGuard, "find_input_most", interrupt)
    with pytest.raises(type(error)), run:
        steps(net, optimizer, lambda n, loss: run.step(loss))


@pytest.mark.parametrize("after", [0, 3, 7])
def test_run_that_is_not_watched_any_more_still_stops(
    after: int, monkeypatch: pytest.MonkeyPatch, keeper: FakeKeeper
) -> None:
    net, optimizer = made()
    stepped = []

    def each(n: int, loss: Tensor) -> None:
        run.step(loss)
        stepped.append(n)
        if n == after:
            monkeypatch.setattr(Results, "report", boom)
        if n == after + 2:
            monkeypatch.undo()
            keeper.send(Stop())

    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)) as run:
        steps(net, optimizer, each)
    assert stepped[-1] == after + 2
    assert run.outcome == ("stopped", "stop requested")


@pytest.mark.parametrize("limit", ["1", "0.01", "100"])
def test_clipping_that_raises_is_taken_back(limit: str, monkeypatch: pytest.MonkeyPatch, keeper: FakeKeeper) -> None:
    net, optimizer = made()
    losses = steps(net, optimizer, lambda n, loss: None)
    watched, its_optimizer = made()

    def each(n: int, loss: Tensor) -> None:
        run.step(loss)
        if n == 2:
            monkeypatch.setattr(clipping, "clip", boom)
            keeper.send(TurnKnob(knob="clip", value=limit))

    with Watch(watched, its_optimizer, link=keeper.link, sampler=Sampler(every=3)) as run:
        assert steps(watched, its_optimizer, each) == losses
    turned = keeper.events(KnobTurned)
    assert [(event.old, event.new) for event in turned] == [("off", limit), (limit, "off")]
    assert turned[1].note == "clipping was switched off again: it raised Boom: on purpose"


@pytest.mark.parametrize("knob", ["momentum=0.5", "weight_decay=0.1", "freeze@0=on"])
def test_command_that_raises_is_rejected_and_taken_back(
    knob: str, monkeypatch: pytest.MonkeyPatch, keeper: FakeKeeper
) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def each(n: int, loss: Tensor) -> None:
        run.step(loss)
        if n == 2:
            monkeypatch.setattr("tui_descent.training.steering.steering.fill_momentum_buffers", boom)
            keeper.send(parse(knob))

    with Watch(net, optimizer, link=keeper.link) as run:
        steps(net, optimizer, each)
    (rejected,) = keeper.events(CommandRejected)
    assert "Boom: on purpose" in rejected.reason
    assert optimizer.param_groups[0]["momentum"] == optimizer.param_groups[0]["weight_decay"] == 0
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("loss", "shown", "said"),
    [
        (lambda loss: torch.stack([loss, 3 * loss]), 2.0, "a float32 tensor of shape (2,): its mean is shown"),
        (lambda loss: torch.complex(loss, loss), 1.0, "a complex64 tensor of shape (): its mean is shown"),
        (lambda loss: "high", None, "str"),
        (lambda loss: None, None, "NoneType"),
        (lambda loss: torch.empty(0), None, "a float32 tensor of shape (0,)"),
    ],
)
def test_loss_that_is_not_a_number_is_said_and_the_run_goes_on(
    loss: Callable[[Tensor], Any], shown: float | None, said: str, keeper: FakeKeeper
) -> None:
    net, optimizer = made()
    with Watch(net, optimizer, link=keeper.link, on_fault="end") as run:
        losses = steps(net, optimizer, lambda n, value: run.step(loss(value.detach())))
    records = keeper.steps()
    assert len(records) == STEPS
    if shown is not None:
        assert [r.loss for r in records] == pytest.approx([shown * value for value in losses])
    else:
        assert all(r.loss != r.loss for r in records)
    assert notes(keeper) == [f"run.step() takes the loss, one number; found {said}"]


def test_pause_is_obeyed_between_two_micro_batches(keeper: FakeKeeper) -> None:
    net, optimizer = made()
    seen = []
    with Watch(net, optimizer, link=keeper.link) as run:
        for n in range(6):
            loss = net(torch.ones(2, 4)).mean()
            loss.backward()
            if n == 2:
                keeper.send(Stop())
            seen.append(n)
            run.step(loss)
    assert seen == [0, 1, 2]
    assert run.outcome == ("stopped", "stop requested")
