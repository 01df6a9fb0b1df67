"""A scenario run in its process: it builds the network and trains it. `process.py` starts it."""

from __future__ import annotations

import platform
import signal
import sys
import traceback
from types import FrameType

import torch

from tui_descent import free_memory
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.channel import ChannelError
from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import RunEnded, RunStarted, StateChanged
from tui_descent.scenario import knobs
from tui_descent.scenario.memory import memory_needed, refusal
from tui_descent.scenario.spec import Scenario, SurfaceModel, about
from tui_descent.scenario.toml import from_table
from tui_descent.training.keeper_link import KeeperLink
from tui_descent.training.loop import train
from tui_descent.training.probes.curvature_probe import CurvatureProbe
from tui_descent.training.probes.evaluation import evaluate
from tui_descent.training.probes.task_probe import TaskProbe
from tui_descent.training.run_description import describe
from tui_descent.training.setup import build
from tui_descent.training.steering.steering import Steering
from tui_descent.training.task_pictures.painters import painter_of
from tui_descent.training.undo import memory_budget
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
            _check_memory(scenario, device, undo_budget=link.launch.undo_budget, undo=link.launch.socket is not None)
    except ValueError as error:  # its message is for the user: no traceback
        return _failed(link, str(error))
    try:
        torch.set_num_threads(build.thread_count(scenario.run.threads))
        setup = build.build(scenario, on=device)
        run = _watch(link, scenario, setup)
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
                steps=scenario.run.steps,
                evaluate_every=scenario.run.evaluate_every,
                attended=link.launch.attended,
            )
    except ChannelError:
        pass  # the reason has been reported to the keeper
    except Exception:  # noqa: BLE001 - last handler of the process: the keeper knows the reason, the log gets the traceback
        traceback.print_exc()
    return 0 if run.outcome is not None and run.outcome[0] in ("finished", "stopped", "diverged") else 1


def _failed(link: KeeperLink, reason: str) -> int:
    """Report that the run could not start; returns the exit code."""
    link.emit(RunEnded(status="failed", step=0, reason=reason))
    link.close()
    return 1


def _check_memory(scenario: Scenario, device: torch.device, *, undo: bool, undo_budget: int | None) -> None:
    """Raises `ValueError` if the run does not fit into the device's free memory."""
    free = memory_budget.free_bytes(device) if device.type != "cpu" else free_memory.free_bytes()
    budget = 0 if not undo else memory_budget.default_budget(device) if undo_budget is None else undo_budget
    where = "memory" if device.type == "cpu" else f"{device.type.upper()} memory"
    reason = refusal(memory_needed(scenario, undo_budget=budget), free, where)
    if reason is not None:
        raise ValueError(f"the run {reason}; make the net or the batches smaller, or use --force")


def _watch(link: KeeperLink, scenario: Scenario, setup: build.Setup) -> Watch:
    launch = link.launch
    sampler = Sampler(every=launch.watch_every, budget=launch.watch_budget, at=launch.watch_at)
    steering = Steering(
        setup.model,
        setup.optimizer,
        pace=launch.pace,
        setup=setup,
        seed=scenario.run.seed,
        steps=scenario.run.steps,
        clip=scenario.optimizer.clip,
        init="" if isinstance(scenario.model, SurfaceModel) else scenario.model.init.name,
    )
    plan: list[tuple[int, TurnKnob | str]] = []
    for entry in scenario.plan:
        if launch.demo or not entry.demo:
            plan += [(entry.at, knobs.parse(entry.turn))] if entry.turn else []
            plan += [(entry.at, entry.say)] if entry.say else []
    plan += [(at, knobs.parse(turn)) for at, turn in launch.plan]
    return Watch(
        setup.model,
        setup.optimizer,
        link=link,
        name=launch.name,
        sampler=sampler,
        on_fault="hold" if launch.attended else "end",
        steering=steering,
        plan=plan,
        about=RunStarted(
            run=launch.run,
            name=launch.name,
            title=scenario.title,
            about=about(scenario),
            scenario=launch.scenario,
            device=str(setup.device),
            threads=torch.get_num_threads(),
            parameters=0,
            layers=(),
            knobs=(),
            steps=scenario.run.steps,
            versions={"torch": str(torch.__version__), "python": platform.python_version()},
        ),
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


class StopOnSignal:
    """On SIGTERM or SIGHUP, end the run after the current step. User loops keep their own signal handlers."""

    def __init__(self) -> None:
        self._caught = ""
        self._run: Watch | None = None
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # SIGHUP is ignored under nohup
                signal.signal(number, self._stop)

    def watch(self, run: Watch) -> None:
        """Stop `run` at the next signal, or at once if one came while it was built."""
        self._run = run
        if self._caught:
            run.control.mode.stop_reason = self._caught

    def _stop(self, number: int, _: FrameType | None) -> None:
        self._caught = signal.Signals(number).name
        if self._run is not None:
            self._run.control.mode.stop_reason = self._caught
