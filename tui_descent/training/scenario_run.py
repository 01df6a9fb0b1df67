"""A scenario run in its process: it builds the network and trains it. `process.py` starts it."""

from __future__ import annotations

import signal
import sys
import traceback
from types import FrameType
from typing import Any

import torch
from msgspec.structs import replace

from tui_descent import free_memory
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.channel import ChannelError
from tui_descent.protocol.events import RunEnded, StateChanged
from tui_descent.protocol.launch import Launch
from tui_descent.scenario.memory import memory_needed, memory_needed_by, refusal
from tui_descent.scenario.race import lanes_of, scenario_of
from tui_descent.scenario.spec import Scenario
from tui_descent.scenario.toml import from_table
from tui_descent.training.keeper_link import KeeperLink
from tui_descent.training.loop import train
from tui_descent.training.probes.curvature_probe import CurvatureProbe
from tui_descent.training.probes.evaluation import evaluate
from tui_descent.training.probes.task_probe import TaskProbe
from tui_descent.training.race.race import Race
from tui_descent.training.run_description import describe
from tui_descent.training.scenario_parts import about_run, plan_of, steering_of
from tui_descent.training.setup import build
from tui_descent.training.steering.steering import Steering
from tui_descent.training.task_pictures.painters import painter_of
from tui_descent.training.undo import memory_budget, resumption
from tui_descent.training.undo.resumption import Plan, Resumption, plan_after
from tui_descent.training.undo.saved_run import load_run
from tui_descent.training.undo.snapshot_file import SnapshotError
from tui_descent.training.watch.watch import Watch


def main() -> int:
    """Train the scenario received from the keeper. Errors are reported to the keeper; tracebacks go to the run's log.

    Returns the exit code.
    """
    link = KeeperLink.inherited()
    if link is None or link.launch.scenario is None:
        print("tui-descent: this process is started by a keeper; use `tui-descent run NAME`", file=sys.stderr)
        return 2
    return train_scenario(link, StopOnSignal())


def train_scenario(link: KeeperLink, stop: StopOnSignal | None = None) -> int:
    """Train the scenario of `link.launch` until it ends or `stop` has caught a signal. Returns the exit code."""
    assert link.launch.scenario is not None
    try:
        link.emit(StateChanged(state="building"))
        scenario = from_table(link.launch.scenario, source="launch", shortened=True)
        device = build.select_device(scenario.run.device, dtype=scenario.run.dtype)
        if not link.launch.force:
            undo = link.launch.keeps_undo and not link.launch.race
            budget, race = link.launch.undo_budget, link.launch.race
            _check_memory(scenario, device, undo_budget=budget, undo=undo, race=race)
    except ValueError as error:  # its message is for the user: no traceback
        return _failed(link, str(error))
    try:
        torch.set_num_threads(build.thread_count(scenario.run.threads))
        if link.launch.race:
            return _train_race(Race(link, scenario, device), stop)
        setup, steering, resumed = _start_or_resume(link, scenario, device)
        run = _watch(link, scenario, setup, steering, resumed)
    except (ValueError, RuntimeError, OSError) as error:
        traceback.print_exc()
        return _failed(link, describe(error))
    try:
        with run:
            if stop is not None:
                stop.watch(run)
            train(
                run,
                setup,
                steps=_steps(link.launch, scenario, resumed),
                evaluate_every=scenario.run.evaluate_every,
                attended=link.launch.attended,
            )
    except ChannelError:
        pass  # the reason has been reported to the keeper
    except Exception:  # noqa: BLE001 - last handler of the process: the keeper knows the reason, the log gets the traceback
        traceback.print_exc()
    return 0 if run.outcome is not None and run.outcome[0] in ("finished", "stopped", "diverged") else 1


def _train_race(race: Race, stop: StopOnSignal | None) -> int:
    """Run a race until it ends. Returns the exit code."""
    if stop is not None:
        stop.watch(race)
    return race.run()


def _failed(link: KeeperLink, reason: str) -> int:
    """Report that the run could not start; returns the exit code."""
    link.emit(RunEnded(status="failed", step=0, reason=reason))
    link.close()
    return 1


def _check_memory(
    scenario: Scenario, device: torch.device, *, undo: bool, undo_budget: int | None, race: tuple[str, ...] = ()
) -> None:
    """Raises `ValueError` if the run does not fit into the device's free memory."""
    free = memory_budget.free_bytes(device) if device.type != "cpu" else free_memory.free_bytes()
    budget = 0 if not undo else memory_budget.default_budget(device) if undo_budget is None else undo_budget
    where = "memory" if device.type == "cpu" else f"{device.type.upper()} memory"
    need = memory_needed(scenario, undo_budget=budget)
    if race:
        need = memory_needed_by([scenario_of(scenario, lane) for lane in lanes_of(scenario.optimizer, race)])
    reason = refusal(need, free, where)
    if reason is not None:
        raise ValueError(f"the run {reason}; make the net or the batches smaller, or use --force")


def _start_or_resume(
    link: KeeperLink, scenario: Scenario, device: torch.device
) -> tuple[build.Setup, Steering, Resumption | None]:
    """Build the run; if it is to be resumed, in the state of its newest good snapshot. If none can be used, it begins
    again from its start, which needs no snapshot.
    """
    launch = link.launch
    built: list[tuple[build.Setup, Steering]] = []

    def fresh() -> tuple[build.Setup, Steering]:
        setup = build.build(scenario, on=device)
        return setup, steering_of(setup, pace=launch.pace)

    def load(content: dict[str, Any]) -> None:
        made = fresh()
        load_run(made[1].context, content["state"])
        made[1].after_restore()
        if launch.attended:
            made[1].context.pace = content["state"]["knobs"]["pace"]
        built.append(made)

    if launch.resume is None:
        return *fresh(), None
    found, notes = None, ["started again from step 0"]
    try:
        found = resumption.resume(launch, load)
    except SnapshotError as error:
        notes.insert(0, str(error))
    return (*built[-1], found) if found is not None else (*fresh(), Resumption(notes=tuple(notes)))


def _steps(launch: Launch, scenario: Scenario, resumed: Resumption | None) -> int:
    """The number of steps to make."""
    asked = launch.resume.steps if launch.resume is not None else None
    goal = None if resumed is None else resumed.goal
    return asked or max(scenario.run.steps, goal or 0)


def _watch(
    link: KeeperLink, scenario: Scenario, setup: build.Setup, steering: Steering, resumed: Resumption | None
) -> Watch:
    launch = link.launch
    sampler = Sampler(every=launch.watch_every, budget=launch.watch_budget, at=launch.watch_at)
    plan: Plan = [*plan_of(scenario, launch)]
    if resumed is not None and launch.resume is not None:
        plan = plan_after(plan_of(scenario, launch), launch.resume, resumed)
    run = Watch(
        setup.model,
        setup.optimizer,
        link=link,
        name=launch.name,
        sampler=sampler,
        on_fault="hold" if launch.attended else "end",
        steering=steering,
        plan=plan,
        about=replace(about_run(scenario, launch, setup), steps=_steps(launch, scenario, resumed)),
        evaluate=lambda: evaluate(setup),
        replay=setup,
        curvature=CurvatureProbe(
            setup.curvature_probe,
            setup.model,
            setup.optimizer,
            sampler=sampler,
            rate=lambda: steering.rate.value,
            at_steps=launch.curvature_at,
            watched=launch.curvature,
        ),
        task=TaskProbe(setup.model, lambda: painter_of(setup), sampler),
        is_scenario=True,
    )
    run.save_on_disk(resumed)
    return run


class StopOnSignal:
    """On SIGTERM or SIGHUP, end the run after the current step. User loops keep their own signal handlers."""

    def __init__(self) -> None:
        self._caught = ""
        self._run: Watch | Race | None = None
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # SIGHUP is ignored under nohup
                signal.signal(number, self._stop)

    def watch(self, run: Watch | Race) -> None:
        """Stop `run` at the next signal, or at once if one came while it was built."""
        self._run = run
        if self._caught:
            self._stop_run(run)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self._caught = signal.Signals(number).name
        if self._run is not None:
            self._stop_run(self._run)

    def _stop_run(self, run: Watch | Race) -> None:
        mode = run.mode if isinstance(run, Race) else run.control.mode
        mode.stop_reason = self._caught
