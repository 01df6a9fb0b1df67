"""The loop of a race: its lanes make their steps by turns, and between two laps commands are carried out."""

from __future__ import annotations

import math
import time
import traceback

import msgspec
import torch

from tui_descent.protocol.channel import ChannelError
from tui_descent.protocol.commands import (
    ClientRequest,
    Mark,
    Pause,
    Resume,
    RunSteps,
    Stop,
    TurnKnob,
    WatchTask,
)
from tui_descent.protocol.events import KnobState, KnobTurned, LaneEnded, LaneSteps, Marked, Noted, RunEnded, Status
from tui_descent.scenario import knobs
from tui_descent.scenario.race import lanes_of
from tui_descent.scenario.spec import Scenario
from tui_descent.training.keeper_link import KeeperLink
from tui_descent.training.progress import Progress, reply_to
from tui_descent.training.race.lane import Lane
from tui_descent.training.race.pictures import RacePictures
from tui_descent.training.steering.pace import PaceTimer, RunMode
from tui_descent.training.stop_run import COMMAND_KILLED, StopRun

LAP_S = 0.03  # an unpaced lap takes about this long, so that it is on the screen at once
MOST_STEPS = 1000  # of one lap
NO_STEERING = "not in a race: its lanes may differ by nothing but their optimizer"
OVER = "the race is over; R starts it again, p chooses another preset"


class Race:
    """A race in its process. It replaces the watched run: it sends the events and carries out the commands."""

    def __init__(self, link: KeeperLink, scenario: Scenario, device: torch.device) -> None:
        launch = link.launch
        self._link, self._attended = link, launch.attended
        self._pace = launch.pace
        self.mode = RunMode()
        self.lanes = [
            Lane(number, info, scenario, device, launch)
            for number, info in enumerate(lanes_of(scenario.optimizer, launch.race))
        ]
        self._target = scenario.race.target
        if self._target is None:
            start = self.lanes[0].setup.probe().item()
            self._target = start / 2 if math.isfinite(start) and start > 0 else None
        self._progress = Progress(link)
        self._timer, self._lap = PaceTimer(), 1
        self._pictures = RacePictures(self.lanes)

    def run(self) -> int:
        """Run the race until all lanes have ended and, with a dashboard, until somebody ends it. Returns the exit
        code.
        """
        status: Status = "finished"
        reason = ""
        try:
            self._start()
            while True:
                self._obey()
                if not self._racing:
                    if not self._attended:
                        break
                    self._wait_at_end()
                    continue
                self._make_lap()
        except StopRun as ending:
            status, reason = ending.status, ending.reason
        except ChannelError:
            return 1
        except Exception as error:  # noqa: BLE001 - last handler of the process
            traceback.print_exc()
            status, reason = "failed", f"{type(error).__name__}: {error}"
        return self._finish(status, reason)

    @property
    def _racing(self) -> list[Lane]:
        return [lane for lane in self.lanes if lane.ended is None]

    def _start(self) -> None:
        progress, first = self._progress, self.lanes[0]
        progress.create_ring(first.setup.model, layers=1)
        progress.emit(
            msgspec.structs.replace(
                first.about,
                parameters=sum(p.numel() for p in first.setup.model.parameters()),
                knobs=self._knobs(),
                lanes=tuple(lane.info for lane in self.lanes),
                target=self._target,
            )
        )
        progress.set_state("running")

    def _knobs(self) -> tuple[KnobState, ...]:
        pace = "max" if self._pace is None else f"{self._pace:g}"
        return tuple(
            KnobState(name=name, value=pace) if name == "pace" else KnobState(name=name, unavailable=NO_STEERING)
            for name in knobs.KNOBS
        )

    def _make_lap(self) -> None:
        """Each lane makes the same number of steps; one step in a paced race."""
        mode, start_s = self.mode, time.perf_counter()
        steps = 1 if self._pace is not None else self._lap
        steps = steps if mode.steps_left is None else min(steps, mode.steps_left)
        racing = self._racing
        for lane in racing:
            if self._progress.ring is not None:
                self._progress.ring.beat(time.monotonic())
            first = lane.steps
            losses = lane.advance(steps, self._target)
            if losses:
                self._progress.emit(LaneSteps(lane=lane.number, first=first, losses=losses, reached=lane.reached))
            if lane.ended is not None:
                self._report_end(lane.ended)
        self._progress.step = max(lane.steps for lane in self.lanes)
        for _ in range(steps):
            mode.count_update(self._progress.step)
        elapsed_s = time.perf_counter() - start_s
        self._lap = min(max(1, int(steps * min(2.0, LAP_S / max(elapsed_s, 1e-9)))), MOST_STEPS)

    def _report_end(self, ended: LaneEnded) -> None:
        if ended.status in ("diverged", "failed"):
            text = f"{ended.name} {ended.status}: {ended.reason}"
            self._progress.emit(Noted(step=ended.step, text=text, level="warning"))
        self._progress.emit(ended)

    def _obey(self) -> None:
        """Carry out the commands that have arrived. Wait while the race is paused, or until the pace allows a lap.

        Raises `StopRun` if the race has to end.
        """
        link, mode, ring = self._link, self.mode, self._progress.ring
        while True:
            if ring is not None:
                ring.beat(time.monotonic())
            for request in link.commands():
                self._carry_out(request)
            self._progress.report_memory()
            self._picture()
            if link.keep_connected() and not link.launch.attended:
                mode.stop_reason = mode.stop_reason or COMMAND_KILLED
            if mode.stop_reason is not None and not self._racing:
                raise StopRun("finished", "")
            if mode.stop_reason is not None or link.lost:
                raise StopRun("stopped", mode.stop_reason or "the keeper has exited")
            if not self._racing:
                return
            if mode.paused:
                self._progress.set_state("paused")
                link.wait(None)
                continue
            self._progress.set_state("running")
            wait_s = self._timer.wait_s(None if mode.steps_left is not None else self._pace)
            if wait_s <= 0:
                return
            link.wait(wait_s)

    def _wait_at_end(self) -> None:
        self._progress.set_state("waiting", "the race is over; R: start it again, p: other presets, q: leave")
        self._link.wait(None)

    def _picture(self) -> None:
        if self._pictures.due(self._progress.step, paused=self.mode.paused or not self._racing):
            self._progress.emit(self._pictures.take(self._progress.step))

    def _carry_out(self, request: ClientRequest) -> None:
        """Carry out one command, and reply."""
        progress, command = self._progress, request.command
        try:
            if isinstance(command, TurnKnob):
                self._turn(request, command)
                return
            progress.done(request, self._execute(command, request.client))
        except ValueError as error:
            progress.reject(request, str(error))

    def _execute(self, command: object, client: int) -> str:
        """Carry out a command other than `TurnKnob`; returns what was done. Raises `ValueError` with the reason."""
        mode, step = self.mode, self._progress.step
        match command:
            case Stop():
                self._progress.set_state("stopping")
                mode.stop_reason = "stop requested"
                return "stopping"
            case WatchTask():
                return self._pictures.set_watching(client, on=command.on, columns=command.columns, rows=command.rows)
            case Mark():
                self._progress.emit(Marked(text=command.text[:80], **self._progress.place))
                return "marked"
            case Pause() | Resume() | RunSteps() if not self._racing:
                raise ValueError(OVER)
            case Pause():
                mode.pause()
                return "paused"
            case Resume():
                mode.resume(step)
                return "resumed"
            case RunSteps():
                mode.resume(step, command.steps)
                return f"{command.steps} step{'s' * (command.steps > 1)}, then a pause"
            case _:
                raise ValueError(NO_STEERING)

    def _turn(self, request: ClientRequest, turn: TurnKnob) -> None:
        if knobs.check(turn).knob != "pace":
            raise ValueError(NO_STEERING)
        old = "max" if self._pace is None else f"{self._pace:g}"
        self._pace = None if turn.value == "max" else float(turn.value)
        new = "max" if self._pace is None else f"{self._pace:g}"
        progress = self._progress
        progress.interventions += 1
        progress.emit(
            KnobTurned(
                id=progress.interventions,
                source=request.source,
                knob="pace",
                target="all",
                old=old,
                new=new,
                value=turn.value,
                **reply_to(request),
                **progress.place,
            )
        )

    def _finish(self, status: Status, reason: str) -> int:
        progress = self._progress
        for lane in self._racing:
            progress.emit(lane.end(StopRun("failed" if status == "failed" else "stopped", reason)))
        ended = [lane.ended for lane in self.lanes if lane.ended is not None]
        if status == "finished":
            failed = all(end.status in ("diverged", "failed") for end in ended)
            status, reason = (ended[0].status, ended[0].reason) if failed else (status, reason)
        progress.emit(RunEnded(status=status, step=progress.step, reason=reason))
        progress.close()
        return 0 if status in ("finished", "stopped", "diverged") else 1
