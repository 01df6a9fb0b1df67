"""The keeper's loop: what the trainer wrote becomes events, in order; what viewers ask becomes orders; an end is told.

Runs in the foreground for a headless run and as a process of its own behind a dashboard. One thread, one selector.
"""

from __future__ import annotations

import contextlib
import selectors
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tui_descent.keeper.diagnosing import Diagnosing
from tui_descent.keeper.gpu import Gpus, Unreadable
from tui_descent.keeper.trainer import Trainer, log_tail
from tui_descent.keeper.viewers import Viewers
from tui_descent.protocol.channel import listen
from tui_descent.protocol.codec import FrameError, decode, from_trainer
from tui_descent.protocol.commands import Order, Stop, TurnKnob, WatchCurvature
from tui_descent.protocol.ending import how_it_ended, how_it_failed
from tui_descent.protocol.events import (
    AnyEvent,
    CommandDone,
    CommandRejected,
    DeviceTaken,
    KnobTurned,
    Noted,
    RunEnded,
    RunStarted,
    StateChanged,
    StepsCompleted,
    StepsMissed,
)
from tui_descent.protocol.launch import LOG_FILE, UNDO_FOLDER, Launch
from tui_descent.protocol.readings import unpack
from tui_descent.protocol.ring import ReadingRecord, Ring, StepRecord
from tui_descent.telemetry.history import History

TICK_S = 1 / 30
SILENT_AFTER_S = 5.0
STOP_GRACE_S = 10.0
KILL_AFTER_S = 3.0
FIRST_VIEWER_WITHIN_S = 30.0
GOODBYE_S = 2.0
MAX_ORDERS_WAITING = 1 << 20


class Keeper:
    """One run's keeper. `on_event` sees every event too: the headless printer's ear."""

    def __init__(self, launch: Launch, *, on_event: Callable[[AnyEvent], None] | None = None) -> None:
        self.launch = launch
        self.history = History()
        self._diagnosing = Diagnosing()
        self._gpus = Gpus()
        self._no_gpu = ""
        self.ended: RunEnded | None = None
        self._on_event = on_event
        self._selector = selectors.DefaultSelector()
        self._viewers: Viewers | None = None
        self._trainer: Trainer | None = None
        self._ring: Ring | None = None
        self._unanswered: dict[tuple[int, int], Order] = {}  # passed on, by client and request
        self._curious: set[int] = set()  # viewers that asked for the curvature
        self._steps: list[StepRecord] = []
        self._readings: list[ReadingRecord] = []
        self._looked = 0
        self._told = (-1, -1)
        self._said: RunEnded | None = None
        self._missed = 0
        self._too_fast = False  # told that readings are missing
        self._stop_asked_s: float | None = None
        self._stop_reason = ""
        self._stop_wanted = ""
        self._insisted = False
        self._silent = False
        self._started_s = time.monotonic()

    def run(self, trainer: Callable[[], Trainer]) -> RunEnded:
        """Serve until the run has ended and everybody was told.

        Raises `ChannelError` when the socket cannot be had and `OSError` when the trainer cannot be started.
        """
        if self.launch.socket is not None:
            self._viewers = Viewers(
                listen(Path(self.launch.socket)),
                self._selector,
                run=self.launch.run,
                history=self.history.send,
                ask=self.order,
                gone=self._left,
            )
        try:
            self._publish(StateChanged(state="importing torch"))
            self._trainer = trainer()
            self._selector.register(self._trainer.link.socket, selectors.EVENT_READ, lambda: None)
            if self._trainer.wakes is not None:
                self._selector.register(self._trainer.wakes, selectors.EVENT_READ, lambda: None)
            while self.ended is None:
                self._wait(TICK_S)
                self._tick()
            self._say_goodbye()
            return self.ended
        finally:
            self._close()

    def stop(self, reason: str) -> None:
        """Ask the trainer to end after the step in progress; it is made to when it does not answer.

        Only noted here, since a signal may come in the middle of anything; the next look does it.
        """
        self._stop_wanted = self._stop_wanted or reason

    def _ask_to_stop(self, reason: str) -> None:
        self._stop_asked_s = time.monotonic()
        self._stop_reason = reason
        self._publish(StateChanged(state="stopping", reason=reason))
        self._send(Order(client=0, request=0, source="send", command=Stop()))

    def order(self, order: Order) -> None:
        """Pass a viewer's request on, or answer it here when there is nobody to do it."""
        trainer = self._trainer
        if trainer is None or self.ended is not None or trainer.link.closed:
            return self._reject(order, "the run has ended")
        if trainer.link.waiting > MAX_ORDERS_WAITING:
            return self._reject(order, "the trainer has not taken the commands before this one")
        if isinstance(order.command, Stop) and self._stop_asked_s is None:
            self._stop_asked_s = time.monotonic()
            self._stop_reason = "stopped by a viewer"
        if isinstance(order.command, WatchCurvature):
            (self._curious.add if order.command.on else self._curious.discard)(order.client)
        if order.request:
            self._unanswered[order.client, order.request] = order
        return self._send(order)

    def _left(self, client: int) -> None:
        """What only a viewer that is gone wanted to see is measured no longer."""
        if client in self._curious and self.ended is None:
            self.order(Order(client=client, request=0, source="send", command=WatchCurvature(on=False)))

    def _reject(self, order: Order, reason: str) -> None:
        knob = order.command.knob[:60] if isinstance(order.command, TurnKnob) else ""
        self._publish(
            CommandRejected(
                client=order.client,
                request=order.request,
                source=order.source,
                segment=self.history.segment,
                step=self.history.steps,
                knob=knob,
                reason=reason,
            )
        )

    def _send(self, order: Order) -> None:
        assert self._trainer is not None
        self._trainer.link.queue(order)  # what was asked in one write is at the trainer's hand together

    def _wait(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def _tick(self) -> None:
        assert self._trainer is not None
        trainer = self._trainer
        if self._stop_wanted and self._stop_asked_s is None:
            self._ask_to_stop(self._stop_wanted)
        gone = trainer.ended()  # asked before the last look, so that nothing written before the end is missed
        if trainer.link.waiting:
            trainer.link.flush()
            if self._ring is not None:
                self._ring.raise_flag()
        self._hear(trainer)
        self._watch_silence(trainer)
        if gone:
            self._end(trainer)
        elif self._stop_asked_s is not None:
            self._insist(trainer)
        elif self.launch.attended:
            self._mind_the_viewers()
        if self._viewers is not None:
            self._viewers.tend()

    def _hear(self, trainer: Trainer) -> None:
        """Publish what came over both ways in the order of the steps.

        The ring is looked at first: an event sent before an update that was seen there is at hand by now.
        """
        looked = self._look()
        events: list[AnyEvent] = []
        try:
            for body in trainer.link.receive():
                events.append(decode(from_trainer, body))
        except FrameError as error:
            trainer.link.closed = str(error)
        for n, event in enumerate(events):
            placed = next((e for e in events[n:] if hasattr(e, "step")), None)
            if placed is None:
                self._tell(looked)
            else:
                self._look()
                newest = self._steps[-1].segment if self._steps else self.history.segment
                before = (getattr(placed, "segment", newest), placed.step)
                self._tell(self._looked - sum((r.segment, r.step) >= before for r in self._steps))
            self._from_trainer(event)
        self._tell(looked)
        if trainer.link.closed and trainer.link.socket in self._selector.get_map():
            self._selector.unregister(trainer.link.socket)
            if self._said is not None and self.launch.command is not None and not trainer.ended():
                self._publish(StateChanged(state="stopping", reason="the loop has ended, its script goes on"))

    def _from_trainer(self, event: AnyEvent) -> None:
        if isinstance(event, RunStarted):
            assert self._trainer is not None
            self._ring = self._trainer.ring()
            self._ring.raise_flag()  # for orders sent while there was no flag to raise
        if isinstance(event, DeviceTaken) and event.device.startswith("cuda"):
            event = self._with_gpu(event)
        if isinstance(event, RunEnded):
            self._said = event  # told once the process is gone and all its steps are out
        else:
            self._publish(event)

    def _with_gpu(self, event: DeviceTaken) -> DeviceTaken:
        """With the driver's readings; why there are none is told once."""
        gpu = self._gpus.read(event)
        if not isinstance(gpu, Unreadable):
            return msgspec.structs.replace(event, gpu=gpu)
        if gpu.reason != self._no_gpu:
            self._no_gpu = gpu.reason
            self._publish(Noted(step=event.step, text=f"no readings of the GPU: {gpu.reason}"))
        return event

    def _look(self) -> int:
        """Take what the ring holds now; the number of updates taken so far."""
        ring = self._ring
        if ring is None:
            return 0
        while chunk := ring.read_steps():
            if ring.missed > self._missed:
                self._tell(self._looked)
                count, self._missed = ring.missed - self._missed, ring.missed
                self._publish(StepsMissed(segment=self.history.segment, step=chunk[0].step, count=count))
            self._steps += chunk
            self._looked += len(chunk)
        self._readings += ring.read_readings()
        if ring.missed_readings and not self._too_fast:
            self._too_fast = True
            text = "readings come faster than they can be told; some are missing. Fewer: --watch-every with a larger N"
            self._publish(Noted(step=self.history.steps, text=text, level="warning"))
        return self._looked

    def _tell(self, taken: int) -> None:
        """Publish the updates up to the `taken`-th that was taken from the ring, and the readings that are theirs."""
        count = max(0, taken - (self._looked - len(self._steps)))
        steps, self._steps = self._steps[:count], self._steps[count:]
        for stretch in _stretches(steps):
            self._publish(stretch)
        if steps:
            self._told = (steps[-1].segment, steps[-1].step)
        readings = [r for r in self._readings if (r.segment, r.step) <= self._told]
        self._readings = self._readings[len(readings) :]
        for reading in readings:
            self._publish(unpack(reading))

    def _watch_silence(self, trainer: Trainer) -> None:
        if self._ring is None or self._said is not None or trainer.link.closed:
            return
        quiet_s = time.monotonic() - self._ring.heartbeat()
        if quiet_s >= SILENT_AFTER_S:
            reason = f"no word from the trainer for {int(quiet_s)} s"
            if self.history.state.reason != reason:
                self._publish(StateChanged(state=self.history.state.state, reason=reason))
            self._silent = True
        elif self._silent:
            self._silent = False
            self._publish(StateChanged(state=self.history.state.state))
            self._publish(Noted(step=self.history.steps, text="the trainer answers again"))

    def _insist(self, trainer: Trainer) -> None:
        assert self._stop_asked_s is not None
        if self._said is not None and self.launch.command is not None:
            return  # the loop has obeyed; what its script does afterwards is its own affair
        late_s = time.monotonic() - self._stop_asked_s - STOP_GRACE_S
        self._insisted = late_s > 0
        if late_s > KILL_AFTER_S:
            trainer.signal(signal.SIGKILL)
        elif late_s > 0:
            trainer.signal(signal.SIGTERM)

    def _mind_the_viewers(self) -> None:
        viewers = self._viewers
        if viewers is None or viewers.attached:
            return
        if viewers.seen:
            self.stop("the last viewer left")
        elif time.monotonic() - self._started_s > FIRST_VIEWER_WITHIN_S:
            self.stop("no viewer came")

    def _end(self, trainer: Trainer) -> None:
        self._hear(trainer)
        self._tell(self._look())
        for order in list(self._unanswered.values()):
            self._reject(order, "the run ended before this could be done")
        code = trainer.exit_code()
        step = self.history.steps
        where = str(self.launch.path / LOG_FILE)
        if self._said is not None:
            ended = msgspec.structs.replace(self._said, exit_code=code)
            failed = ended.status == "failed"
            if code and not failed and self.launch.command is not None and not self._insisted:
                failed, reasons = True, filter(None, [ended.reason, how_it_failed(code)])
                ended = msgspec.structs.replace(ended, reason="; ".join(reasons))
            if failed:
                ended = msgspec.structs.replace(ended, log_tail=log_tail(self.launch.path), log_path=where)
            self._publish(ended)
        elif self._stop_asked_s is not None:
            reason = f"{self._stop_reason}; the trainer had to be killed" if code else self._stop_reason
            self._publish(RunEnded(status="stopped", step=step, reason=reason, exit_code=code))
        else:
            self._publish(
                RunEnded(
                    status="lost",
                    step=step,
                    reason=f"trainer lost ({how_it_ended(code)}) at step {step}",
                    exit_code=code,
                    log_tail=log_tail(self.launch.path),
                    log_path=where,
                )
            )

    def _publish(self, event: AnyEvent) -> None:
        self._send_out(event)
        for said in self._diagnosing.hear(event):
            self._send_out(said)

    def _send_out(self, event: AnyEvent) -> None:
        if isinstance(event, KnobTurned | CommandDone | CommandRejected):
            self._unanswered.pop((event.client, event.request), None)
        self.history.apply(event)
        if self._viewers is not None:
            self._viewers.publish(event)
        if isinstance(event, RunEnded):
            self.ended = event
        if self._on_event is not None:
            self._on_event(event)

    def _say_goodbye(self) -> None:
        """Until every viewer has the last event, within bounds."""
        until_s = time.monotonic() + GOODBYE_S
        if self._trainer is not None and self._trainer.wakes is not None:
            self._selector.unregister(self._trainer.wakes)  # readable for ever now
        while self._viewers is not None and self._viewers.waiting and time.monotonic() < until_s:
            self._viewers.tend()
            self._wait(TICK_S)

    def _close(self) -> None:
        if self._viewers is not None:
            self._viewers.close()
            assert self.launch.socket is not None
            Path(self.launch.socket).unlink(missing_ok=True)
        if self._trainer is not None:
            self._trainer.signal(signal.SIGKILL)
            if self._trainer.process is not None:
                with contextlib.suppress(Exception):
                    self._trainer.process.wait(5)
            self._trainer.close()
        if self._ring is not None:
            self._ring.close()
        shutil.rmtree(self.launch.path / UNDO_FOLDER, ignore_errors=True)  # left by a trainer that was killed
        self._selector.close()


def _stretches(records: list[StepRecord]) -> list[StepsCompleted]:
    """Consecutive updates of one segment as one event each."""
    stretches, start = [], 0
    for n in range(1, len(records) + 1):
        if n < len(records):
            a, b = records[n - 1], records[n]
            if (b.segment, b.step) == (a.segment, a.step + 1):
                continue
        part = records[start:n]
        start = n
        stretches.append(
            StepsCompleted(
                segment=part[0].segment,
                first=part[0].step,
                losses=[r.loss for r in part],
                lrs=[r.lr for r in part],
                times_s=[r.time_s for r in part],
                skipped=tuple(r.step for r in part if r.skipped),
            )
        )
    return stretches
