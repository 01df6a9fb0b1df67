"""One lane of a race: a scenario run without a keeper, which makes its steps a few at a time."""

from __future__ import annotations

import torch

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import LaneEnded, RunStarted
from tui_descent.protocol.launch import Launch
from tui_descent.protocol.race import Lane as LaneInfo
from tui_descent.scenario.race import scenario_of
from tui_descent.scenario.spec import Scenario
from tui_descent.training.probes.evaluation import evaluate
from tui_descent.training.scenario_parts import about_run, plan_of, steering_of
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.stop_run import StopRun, outcome
from tui_descent.training.undo.random_state import RandomState
from tui_descent.training.watch.watch import Watch


class Lane:
    """Trains the scenario with one optimizer. Its losses are bitwise those of the same run alone.

    The global random numbers belong to the lane while it makes its steps: each lane goes on where it has stopped.
    """

    def __init__(self, number: int, info: LaneInfo, scenario: Scenario, device: torch.device, launch: Launch) -> None:
        self.number, self.info = number, info
        self.ended: LaneEnded | None = None
        self.reached: int | None = None
        self._goal = scenario.run.steps
        self._random = RandomState()
        self.setup: Setup = build(scenario_of(scenario, info), on=device)
        self.about: RunStarted = about_run(scenario, launch, self.setup)
        self.run = Watch(
            self.setup.model,
            self.setup.optimizer,
            link=None,
            sampler=Sampler(budget=0.0),
            on_fault="end",
            steering=steering_of(self.setup, pace=None),
            plan=plan_of(scenario, launch),
            about=self.about,
            replay=self.setup,
            is_scenario=True,
        )
        self.run.__enter__()
        self._drawn = self._random.state()

    @property
    def steps(self) -> int:
        """The number of updates made."""
        return self.run.next_step

    def advance(self, most: int, target: float | None) -> list[float]:
        """Make up to `most` updates. Returns their losses; fewer than `most` if the lane has ended."""
        losses: list[float] = []
        error: BaseException | None = None
        self._random.restore(self._drawn)
        try:
            if self.steps == 0:
                self.run.begin_step()
            while len(losses) < most and self.steps < self._goal:
                losses.append(self._update())
                if self.reached is None and target is not None and losses[-1] <= target:
                    self.reached = self.steps - 1
        except (StopRun, RuntimeError, ValueError, ArithmeticError) as ending:
            error = ending
        if error is not None or self.steps >= self._goal:
            self.end(error)
        self._drawn = self._random.state()
        return losses

    def _update(self) -> float:
        """Make one update, as `training/loop.py` does. Raises `StopRun` if its loss or gradient is not finite."""
        run, setup = self.run, self.setup
        optimizer = setup.optimizer  # a planned command may have replaced it
        if setup.path is not None:
            setup.path.add(run.next_step)
        loss = setup.loss()
        run.loss(loss)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        run.step(loss)
        return loss.item()

    def end(self, error: BaseException | None) -> LaneEnded:
        """End the lane, because its steps are done or because of an error. Returns the event to send."""
        status, reason = outcome(error)
        assert status != "lost"
        loss, accuracy = evaluate(self.setup) if status in ("finished", "stopped") else (None, None)
        self.run.__exit__(None, StopRun(status, reason), None)
        self.ended = LaneEnded(
            lane=self.number,
            name=self.info.name,
            status=status,
            step=self.steps,
            loss=loss,
            accuracy=accuracy,
            reached=self.reached,
            reason=reason,
        )
        return self.ended
