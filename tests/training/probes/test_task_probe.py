"""Pictures of the task during a run: while a client watches, at most five a second, without changing the run."""

from __future__ import annotations

import pytest
import torch
from fake_keeper import FakeKeeper
from nets import digit_batches, loss_of, mlp
from probed_runs import assert_same_run, made, outcome, train

from tui_descent.dashboard.pictures.draw import Drawings, grid
from tui_descent.instruments.sampler import Sampler
from tui_descent.instruments.tiers import TASK_EVERY_S, TASK_SHARE, TaskSchedule
from tui_descent.protocol.commands import TurnKnob, WatchTask
from tui_descent.protocol.events import CommandDone, CommandRejected, Noted, TaskTaken
from tui_descent.scenario import presets
from tui_descent.training.probes.task_probe import TaskProbe
from tui_descent.training.progress import Progress
from tui_descent.training.setup.build import Setup
from tui_descent.training.steering.steering import Steering
from tui_descent.training.task_pictures.painters import painter_of
from tui_descent.training.watch.watch import Watch

CASES = {
    "surface": ("saddle",),
    "curve": ("first-descent",),
    "regions": ("healthy", "data.name=spirals", "model.dropout=0.3", "model.norm=layer"),
    "digits": ("healthy", "model.dropout=0.3"),
    "images": ("healthy", "model.name=conv", "model.depth=1", "model.width=4"),
    "text": ("transformer", "model.depth=1", "model.context=8", "model.dropout=0.3"),
}


def probe_of(setup: Setup, sampler: Sampler) -> TaskProbe:
    return TaskProbe(setup.model, lambda: painter_of(setup), sampler)


def eager(sampler: Sampler) -> Sampler:
    """Every step is due."""
    sampler.task.every_s, sampler.task.share = 0.0, 1e9
    return sampler


def watched(setup: Setup, keeper: FakeKeeper | None, *, watch: bool) -> Watch:
    sampler = eager(Sampler(every=1))
    task = probe_of(setup, sampler)
    if watch:
        task.set_watching(1, on=True, columns=20, rows=10)
    return Watch(
        setup.model,
        setup.optimizer,
        link=keeper.link if keeper else None,
        sampler=sampler,
        steering=Steering(setup.model, setup.optimizer),
        plan=[] if setup.path is not None else [(4, TurnKnob(knob="residual", value="on"))],
        replay=setup,
        task=task,
    )


@pytest.mark.parametrize("kind", CASES)
def test_pictures_do_not_change_the_run(kind: str, keeper: FakeKeeper) -> None:
    plain, pictured = made(*CASES[kind]), made(*CASES[kind])
    without = outcome(watched(plain, None, watch=False), plain, 9)
    assert_same_run(without, outcome(watched(pictured, keeper, watch=True), pictured, 9))
    assert [event.step for event in keeper.events(TaskTaken)] == list(range(10)), "before every update"


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_has_a_picture_that_can_be_drawn(name: str) -> None:
    setup = made(name)
    picture = painter_of(setup).picture(*grid(78, 18))
    rows = Drawings().draw(TaskTaken(segment=0, step=0, picture=picture, seconds=0.0), 78, 18, "truecolor")
    assert 10 <= len(rows) <= 18
    assert {row.cell_length for row in rows} == {78}


def test_nothing_is_pictured_until_asked(keeper: FakeKeeper) -> None:
    setup = made("saddle")
    train(watched(setup, keeper, watch=False), setup, 9)
    assert keeper.events(TaskTaken) == []


def test_pictures_are_made_while_any_client_watches_in_the_largest_size() -> None:
    task, progress = probe_of(made("saddle"), eager(Sampler())), Progress(None)
    assert not task.due(progress, paused=False)
    assert task.set_watching(1, on=True, columns=30, rows=10) == "pictures of the task are made"
    task.set_watching(2, on=True, columns=20, rows=15)
    assert task.due(progress, paused=False)
    taken = task.picture(progress, paid=True)
    assert isinstance(taken, TaskTaken)
    assert (taken.picture.columns, taken.picture.rows) == (30, 15)
    task.set_watching(1, on=False)
    assert task.set_watching(2, on=False) == "pictures of the task are no longer made"
    progress.step += 1
    assert not task.due(progress, paused=True)
    assert task.set_watching(3, on=False) == "pictures of the task are no longer made", "a client that did not watch"


def test_a_paused_run_is_pictured_again_only_after_a_change() -> None:
    task, progress = probe_of(made("saddle"), Sampler()), Progress(None)
    task.set_watching(1, on=True, columns=30, rows=10)
    assert task.due(progress, paused=True)
    task.picture(progress, paid=False)
    assert not task.due(progress, paused=True)
    progress.interventions += 1
    assert task.due(progress, paused=True), "a knob may have changed the weights"
    task.picture(progress, paid=False)
    task.set_watching(1, on=True, columns=40, rows=10)
    assert task.due(progress, paused=True), "another size"


def test_schedule_keeps_its_share_and_uses_waits() -> None:
    schedule, now_s, wait_s = TaskSchedule(), 100.0, 0.03
    assert schedule.due(now_s, wait_s=0.0)
    schedule.took(0.02, now_s, paid=True)
    schedule.took(0.02, now_s, paid=True)
    assert not schedule.due(now_s + TASK_EVERY_S, wait_s=0.0)
    assert schedule.due(now_s + 0.02 / TASK_SHARE + 1e-6, wait_s=0.0)
    assert not schedule.due(now_s + TASK_EVERY_S, wait_s=wait_s), "longer than half the wait"
    assert schedule.due(now_s + TASK_EVERY_S, wait_s=2 * wait_s)
    assert not schedule.due(now_s + TASK_EVERY_S / 2, wait_s=1.0), "five times a second"
    schedule.took(0.0, now_s, paid=False)
    assert schedule.took_s == 0.04


def test_pictures_are_part_of_the_declared_cost() -> None:
    sampler = Sampler()
    sampler.stepped(1.0, steps=10)
    before = sampler.cost
    sampler.task.took(0.25, 1.0, paid=True)
    assert before == 0.0
    assert sampler.cost == pytest.approx(0.2)


def test_a_failing_picture_warns_once_and_is_not_retried_until_asked() -> None:
    class Failing:
        def picture(self, columns: int, rows: int) -> None:
            raise RuntimeError("out of memory\nby far")

    task, progress = probe_of(made("saddle"), eager(Sampler())), Progress(None)
    task._painter = Failing()  # type: ignore[assignment]
    task.set_watching(1, on=True, columns=30, rows=10)
    assert task.picture(progress, paid=True) == Noted(
        step=0, text="the task could not be pictured: out of memory", level="warning"
    )
    progress.step += 1
    assert not task.due(progress, paused=True)
    task.set_watching(1, on=True, columns=30, rows=10)
    assert task.due(progress, paused=True)


def test_the_task_of_a_user_loop_is_rejected_with_the_reason(keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=keeper.link) as run:
        for n, batch in enumerate(digit_batches(3)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if n == 1:
                request = keeper.send(WatchTask(on=True, columns=10, rows=10))
            run.step(loss)
    events = keeper.events()
    (reply,) = [e for e in events if isinstance(e, CommandRejected | CommandDone)]
    assert isinstance(reply, CommandRejected)
    assert reply.request == request
    assert "your own loop" in reply.reason
    assert not [e for e in events if isinstance(e, TaskTaken)]
