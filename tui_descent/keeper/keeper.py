"""The keeper's loop: publishes the trainer's events, passes viewers' requests on, and notices how the run ends.

The loop runs in the foreground for a headless run, and in a separate process for a dashboard. It uses one thread and
one selector.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from tui_descent.keeper.diagnosis import DiagnosisEvents
from tui_descent.keeper.ending import Ending
from tui_descent.keeper.event_stream import EventStream
from tui_descent.keeper.gpu import Gpus
from tui_descent.keeper.requests import Requests
from tui_descent.keeper.trainer import Trainer
from tui_descent.keeper.viewers import Viewers
from tui_descent.protocol.channel import listen
from tui_descent.protocol.commands import ClientRequest, Stop
from tui_descent.protocol.events import AnyEvent, DeviceTaken, Noted, RunEnded, StateChanged, StepsCompleted
from tui_descent.protocol.launch import Launch
from tui_descent.telemetry.history import History

TICK_S = 1 / 30
SILENT_AFTER_S = 3.5
STARTS_WITHIN_S = 4.5  # the same before the first step, while torch is imported and the network is built
SILENT_AFTER_STEPS = 3.0  # a run of slow steps is silent only after the time of this many steps
FIRST_VIEWER_WITHIN_S = 30.0
LAST_EVENT_WITHIN_S = 2.0  # how long the keeper waits for viewers to read the last event


class Keeper:
    """One run's keeper. It calls `on_event`, if given, with every event; a headless run prints them that way."""

    def __init__(self, launch: Launch, *, on_event: Callable[[AnyEvent], None] | None = None) -> None:
        self.launch = launch
        self.history = History()
        self.ended: RunEnded | None = None
        self._stream = EventStream(self.history)
        self._requests = Requests(self.history)
        self._ending = Ending(launch)
        self._diagnosis = DiagnosisEvents()
        self._gpus = Gpus()
        self._on_event = on_event
        self._selector = selectors.DefaultSelector()
        self._viewers: Viewers | None = None
        self._trainer: Trainer | None = None
        self._stop_reason = ""  # why the run must stop; may be set by a signal handler
        self._step_times_s: deque[float] = deque(maxlen=4)
        self._before_silence: StateChanged | None = None  # the state from before, while the trainer is silent
        self._started_s = self._heard_s = time.monotonic()

    def run(self, start_trainer: Callable[[], Trainer]) -> RunEnded:
        """Run until the trainer has exited and every viewer has received the last event.

        Raises `ChannelError` if the socket cannot be opened and `OSError` if the trainer cannot be started.
        """
        if self.launch.socket is not None:
            self._viewers = Viewers(
                listen(Path(self.launch.socket)),
                self._selector,
                run=self.launch.run,
                history=self.history.send,
                on_request=self.order,
                on_leave=self._viewer_left,
            )
        try:
            self._publish(StateChanged(state="importing torch"))
            self._trainer = trainer = start_trainer()
            self._selector.register(trainer.link.socket, selectors.EVENT_READ, lambda: None)
            if trainer.exit_fd is not None:
                self._selector.register(trainer.exit_fd, selectors.EVENT_READ, lambda: None)
            while self.ended is None:
                self._wait(TICK_S)
                self._tick(trainer)
            self._flush_viewers(trainer)
            return self.ended
        finally:
            self._close()

    def stop(self, reason: str) -> None:
        """Ask the trainer to stop after the current step. A trainer that does not obey is killed.

        It can be called in a signal handler, because the next tick does the work.
        """
        self._stop_reason = self._stop_reason or reason

    def order(self, order: ClientRequest) -> None:
        """Pass a viewer's request on to the trainer, or reject it."""
        if self._trainer is None or self.ended is not None:
            rejected: AnyEvent | None = self._requests.reject(order, "the run has ended")
        else:
            rejected = self._requests.pass_on(order, self._trainer.link)
        if rejected is not None:
            self._publish(rejected)
        elif isinstance(order.command, Stop):
            self._ending.request_stop("stopped by a viewer")

    def _viewer_left(self, client: int) -> None:
        order = self._requests.cleanup_after(client)
        if order is not None and self.ended is None:
            self.order(order)

    def _wait(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def _tick(self, trainer: Trainer) -> None:
        if self._stop_reason and not self._ending.stop_requested:
            self._ending.request_stop(self._stop_reason)
            self._publish(StateChanged(state="stopping", reason=self._stop_reason))
            trainer.link.queue(ClientRequest(client=0, request=0, source="send", command=Stop()))
        exited = trainer.exited()  # checked before reading, so that what was written before the exit is read
        if trainer.link.waiting:
            trainer.link.flush()
            if self._stream.ring is not None:
                self._stream.ring.raise_flag()
        self._publish_new_events(trainer)
        self._report_silence(trainer)
        if exited:
            self._end(trainer)
        elif self._ending.stop_requested:
            self._ending.enforce_stop(trainer)
        elif self.launch.attended:
            self._stop_without_viewers()
        if self._viewers is not None:
            self._viewers.maintain()

    def _publish_new_events(self, trainer: Trainer) -> None:
        for event in self._stream.new_events(trainer):
            self._heard_s = time.monotonic()
            if isinstance(event, StepsCompleted):
                self._step_times_s.extend(event.times_s[-4:])
            if isinstance(event, RunEnded):
                self._ending.reported = event
            elif isinstance(event, DeviceTaken):
                for completed in self._gpus.complete(event):
                    self._publish(completed)
            else:
                self._publish(event)
        if trainer.link.closed and trainer.link.socket in self._selector.get_map():
            self._selector.unregister(trainer.link.socket)
            if self._ending.script_goes_on and not trainer.exited():
                self._publish(StateChanged(state="stopping", reason="the loop has ended; its script is still running"))
            elif self._ending.reported is None and self.launch.command is not None and not trainer.exited():
                text = "the script has closed the connection: losses are shown, keys have no effect"
                self._publish(Noted(step=self.history.steps, text=text, level="warning"))

    def _report_silence(self, trainer: Trainer) -> None:
        """Report when nothing more comes from the trainer, neither events nor its heartbeat, and when it returns."""
        if self._ending.reported is not None or trainer.link.closed:
            return
        ring, state, now_s, silent_after_s = self._stream.ring, self.history.state, time.monotonic(), STARTS_WITHIN_S
        if ring is not None:
            self._heard_s = max(self._heard_s, ring.heartbeat())
            silent_after_s = max(SILENT_AFTER_S, SILENT_AFTER_STEPS * self._step_s())
        elif not self.launch.attended or self.launch.command is not None:
            return  # a script may take its time before it calls `watch()`
        silent_s = now_s - self._heard_s
        if silent_s >= (SILENT_AFTER_S if self._before_silence is not None else silent_after_s):
            self._before_silence = self._before_silence or state
            if state.silent_s != int(silent_s):
                reason = f"the trainer has not responded for {int(silent_s)} s"
                self._publish(StateChanged(state=state.state, reason=reason, silent_s=int(silent_s)))
        elif self._before_silence is not None:
            before, self._before_silence = self._before_silence, None
            if state.silent_s:  # it has not reported a new state since
                self._publish(before if before.state == state.state else StateChanged(state=state.state))
            if before.state not in ("importing torch", "building"):  # these take seconds without a word
                self._publish(Noted(step=self.history.steps, text="the trainer responds again"))

    def _step_s(self) -> float:
        """How long a step takes at present: the median of the last three, 0 before that."""
        times = [b - a for a, b in pairwise(self._step_times_s)]
        return sorted(times)[1] if len(times) == 3 else 0.0

    def _stop_without_viewers(self) -> None:
        """Stop a run if its last viewer has left or if no viewer has connected in time."""
        viewers = self._viewers
        if viewers is None or viewers.attached:
            return
        if viewers.seen:
            self.stop("the last viewer left")
        elif time.monotonic() - self._started_s > FIRST_VIEWER_WITHIN_S:
            self.stop("no viewer connected")

    def _end(self, trainer: Trainer) -> None:
        self._publish_new_events(trainer)
        for event in self._stream.last_events():
            if isinstance(event, RunEnded):
                self._ending.reported = self._ending.reported or event
            else:
                self._publish(event)
        for rejected in self._requests.reject_unanswered("the run ended before this request was carried out"):
            self._publish(rejected)
        self._publish(self._ending.event(trainer, self.history.steps))

    def _publish(self, event: AnyEvent) -> None:
        self._send(event)
        for diagnosis in self._diagnosis.after(event):
            self._send(diagnosis)

    def _send(self, event: AnyEvent) -> None:
        self._requests.note_reply(event)
        self.history.apply(event)
        if self._viewers is not None:
            self._viewers.publish(event)
        if isinstance(event, RunEnded):
            self.ended = event
        if self._on_event is not None:
            self._on_event(event)

    def _flush_viewers(self, trainer: Trainer) -> None:
        """Wait until every viewer has received the last event, for at most LAST_EVENT_WITHIN_S."""
        until_s = time.monotonic() + LAST_EVENT_WITHIN_S
        if trainer.exit_fd is not None:
            self._selector.unregister(
                trainer.exit_fd
            )  # it stays readable after the exit, so the selector would not wait
        while self._viewers is not None and self._viewers.waiting and time.monotonic() < until_s:
            self._viewers.maintain()
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
        if self._stream.ring is not None:
            self._stream.ring.close()
        self._selector.close()
