"""Readings where a run pauses: after single steps, at its end and after a fault, with the real training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from fake_keeper import FakeKeeper
from nets import digit_batches, loss_of, mlp
from played_run import ABOUT, SCENARIO
from torch import nn
from torch.nn.modules import module as torch_module

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import AnyCommand, Redo, Resume, RunSteps, Stop, TurnKnob, Undo
from tui_descent.protocol.events import CommandDone, ReadingsTaken
from tui_descent.scenario.toml import from_text
from tui_descent.training.loop import train
from tui_descent.training.probes.evaluation import evaluate
from tui_descent.training.setup.build import build
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.watch import Watch

NONE = frozenset[int]()


def hooks(net: nn.Module) -> int:
    """The number of hooks on the net's modules and of global module hooks."""
    own = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())
    return own + len(torch_module._global_forward_hooks) + len(torch_module._global_forward_pre_hooks)


class PlayedRun:
    """A scenario run. At every pause it gets the next command; when none is left, it is stopped."""

    def __init__(
        self,
        keeper: FakeKeeper,
        commands: Sequence[AnyCommand] = (),
        *,
        steps: int,
        evaluate_every: int = 0,
        spoilt: frozenset[int] = NONE,
        at: dict[int, AnyCommand] | None = None,
        sampler: Sampler | None = None,
        attended: bool = True,
    ) -> None:
        keeper.link.launch = msgspec.structs.replace(keeper.link.launch, socket="there")
        setup = build(from_text(SCENARIO, source="test"), on=torch.device("cpu"))
        left, wait = list(commands), keeper.link.wait
        self.readings: list[ReadingsTaken] = []
        self.over = False
        self.paused_at: list[int] = []
        self.hooks: list[int] = []  # at each pause

        def waited(timeout_s: float | None) -> None:
            if timeout_s is None and not self.over:
                self.readings += keeper.readings()
                self.paused_at.append(run.next_step)
                self.hooks.append(hooks(setup.model))
                self.over = not left
                keeper.send(left.pop(0) if left else Stop())
            wait(timeout_s)

        keeper.link.wait = waited  # type: ignore[method-assign]
        run = Watch(
            setup.model,
            setup.optimizer,
            link=keeper.link,
            about=ABOUT,
            is_scenario=True,
            state=(setup,),
            sampler=sampler or Sampler(),
            on_fault="hold",
            steering=Steering(setup.model, setup.optimizer, setup=setup, steps=500),
            evaluate=lambda: evaluate(setup),
        )
        self.run = run
        bad, asked, check_loss = set(spoilt), dict(at or {}), run.loss

        def loss(value: torch.Tensor | float) -> bool:
            if run.next_step in asked:
                keeper.send(asked.pop(run.next_step))
            if run.next_step in bad:
                bad.remove(run.next_step)
                value = float("nan")
            return check_loss(value)

        run.loss = loss  # type: ignore[method-assign]
        with run:
            train(run, setup, steps=steps, evaluate_every=evaluate_every, attended=attended)
        self.readings += keeper.readings()
        self.done = keeper.events(CommandDone)

    def is_complete(self, step: int) -> bool:
        """Whether the last reading of a step has signals, activations, and the weights of all layers at that step."""
        reading = [r for r in self.readings if r.step == step][-1]
        signals = any(factor is not None for factor in reading.values["backprop_factor"])
        return signals and "activation_std" in reading.values and not any(reading.ages)


STEP, SEVEN = RunSteps(steps=1), RunSteps(steps=7)


@pytest.mark.parametrize("evaluate_every", [0, 1])
def test_single_steps_at_the_end_are_each_made_and_read_completely(evaluate_every: int, keeper: FakeKeeper) -> None:
    played = PlayedRun(keeper, [STEP, STEP, SEVEN, STEP], steps=20, evaluate_every=evaluate_every)
    assert played.paused_at == [20, 21, 22, 29, 30]
    cosines = {r.step: r.global_cosine for r in played.readings}
    assert {19, 20, 21, 28, 29} <= set(cosines)
    assert all(cosines[step] is not None for step in (20, 21, 28, 29)), "with the gradient of the step before"
    assert all(played.is_complete(step) for step in (19, 20, 21, 28, 29))
    assert not any(played.hooks)


def test_steps_asked_for_beyond_the_end_are_made_without_a_pause_at_the_end(
    keeper: FakeKeeper,
) -> None:
    played = PlayedRun(keeper, [STEP], steps=20, at={15: SEVEN})
    assert played.paused_at == [23, 24], "the command comes during update 15, so that 16 is the first of seven"
    assert {22, 23} <= {r.step for r in played.readings}
    assert 19 not in {r.step for r in played.readings}


def test_run_resumes_from_its_end_and_undo_goes_back_to_it(keeper: FakeKeeper) -> None:
    played = PlayedRun(keeper, [Resume(), Undo(), STEP, Resume()], steps=20)
    assert played.paused_at[0] == 20
    assert played.paused_at[1] == 40
    assert {19, 39} <= {r.step for r in played.readings}
    assert all(played.is_complete(step) for step in (19, 39))


def test_redo_to_the_end_resumes_at_once(keeper: FakeKeeper) -> None:
    turn = TurnKnob(knob="lr", value="*2")
    played = PlayedRun(keeper, [turn, SEVEN, Undo(), STEP, Redo(), Resume()], steps=20)
    assert played.paused_at == [20, 20, 27, 20, 21, 27, 47]


def test_step_repeated_after_a_non_finite_loss_is_read_completely(keeper: FakeKeeper) -> None:
    at_the_end = PlayedRun(keeper, [Resume()], steps=20, spoilt=frozenset({19}))
    assert at_the_end.paused_at == [19, 20]
    assert at_the_end.is_complete(19)


@pytest.mark.parametrize("spoilt", [7, 13])
def test_single_steps_continue_after_a_hold(spoilt: int, keeper: FakeKeeper) -> None:
    played = PlayedRun(keeper, [STEP, STEP], steps=40, spoilt=frozenset({spoilt}), at={6: SEVEN})
    assert played.paused_at[:3] == [spoilt, spoilt + 1, spoilt + 2]
    assert played.is_complete(spoilt)
    assert played.is_complete(spoilt + 1)
    assert not any(played.hooks[1:])


def test_last_step_of_an_unattended_run_is_read_only_with_a_budget(
    tmp_path: Path,
) -> None:
    def read(name: str, sampler: Sampler) -> list[int]:
        folder = tmp_path / name
        folder.mkdir()
        keeper = FakeKeeper(folder)
        try:
            return [r.step for r in PlayedRun(keeper, steps=200, sampler=sampler, attended=False).readings]
        finally:
            keeper.close()

    assert read("budget", Sampler())[-1] == 199
    assert read("named besides", Sampler(at=(3,)))[-1] == 199
    assert read("every", Sampler(every=50)) == [0, 50, 100, 150]
    assert read("none", Sampler(budget=0.0, at=(3,))) == [3]


def test_user_loop_that_drops_the_step_before_a_pause_keeps_no_hooks(keeper: FakeKeeper) -> None:
    net = mlp(depth=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    wait: Callable[[float | None], None] = keeper.link.wait

    def waited(timeout_s: float | None) -> None:
        if timeout_s is None:
            keeper.send(Resume())
        wait(timeout_s)

    keeper.link.wait = waited  # type: ignore[method-assign]
    found = []
    with Watch(net, optimizer, link=keeper.link, on_fault="hold") as run:
        for n, batch in enumerate(digit_batches(60)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            if n == 20:
                keeper.send(RunSteps(steps=3))
            if n == 23:
                for parameter in net.parameters():
                    assert parameter.grad is not None
                    parameter.grad.fill_(float("nan"))
            optimizer.step()
            run.step(loss)
            found.append(hooks(net))
    assert found[22] > 0, "the last of the three is to be read"
    assert [s.step for s in keeper.steps() if s.skipped] == [23]
    assert not any(found[24:30])


def test_readings_at_pauses_do_not_count_as_cost_of_watching(keeper: FakeKeeper) -> None:
    played = PlayedRun(keeper, [*[STEP] * 60], steps=300)
    shares = [r.watch_cost for r in played.readings if r.step >= 300]
    assert len(shares) == 60
    assert max(shares) <= 0.3
    assert shares[-1] <= shares[0]
