"""The keeper's loop: publishes the trainer's events, passes viewers' requests on, and notices how the run ends.

The loop runs in the foreground for a headless run, and in a separate process for a dashboard. It uses one thread and
one selector.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from tui_descent.keeper.diagnosis import DiagnosisEvents
from tui_descent.keeper.ending import Ending
from tui_descent.keeper.event_stream import EventStream
from tui_descent.keeper.gpu import Gpus
from tui_descent.keeper.notifier import Notifier
from tui_descent.keeper.past import Past
from tui_descent.keeper.requests import Requests
from tui_descent.keeper.trainer import Trainer
from tui_descent.keeper.viewers import Viewers
from tui_descent.protocol.channel import ChannelError, listen
from tui_descent.protocol.codec import FrameError
from tui_descent.protocol.commands import ClientRequest, ResizeTerminal, Stop
from tui_descent.protocol.events import (
    AnyEvent,
    DeviceTaken,
    Noted,
    RecordingChanged,
    RunEnded,
    RunStarted,
    StateChanged,
    StepsCompleted,
)
from tui_descent.protocol.joining import is_ours
from tui_descent.protocol.launch import Launch, keep_name, unreachable
from tui_descent.protocol.run_lock import hold_keeper_lock
from tui_descent.telemetry.record import RecordError, RecordWriter

TICK_S = 1 / 30
SILENT_AFTER_S = 3.5
STARTS_WITHIN_S = 4.5  # the same limit before the first step, while torch is imported and the network is built
SILENT_AFTER_STEPS = 3.0  # a run with slow steps counts as silent only after the time of this many steps
FIRST_VIEWER_WITHIN_S = 30.0
CLOSED_AFTER_S = 1.0  # how long a script may run without its connection before this is reported
LOOK_EVERY_S = 0.5  # how often to look for a `watch()` in a process that cannot be reached
STOPPED_BY_VIEWER = "stopped by a viewer"
READ_ONLY = "this viewer is read-only"
ANOTHER_IS_SHOWN = "another process of this script is shown already"
NOT_KILLED = "tui-descent has not started this process, so it does not kill it; stop asks it to end"
NO_VIEWER_AT_END = "all steps done; no viewer is attached"
GOES_ON = "the loop has ended; its script is still running"
SOCKET_CHECKED_EVERY_S = 1.0
LAST_EVENT_WITHIN_S = 2.0  # how long the keeper waits for viewers to read the last event


class Keeper:
    """One run's keeper. It calls `on_event`, if given, with every event; a headless run prints them that way.

    `listener` is the socket for viewers, if the caller has opened it; else `run` opens the one at `launch.socket`. With
    `record`, the run is recorded in its folder. With `takes_over`, the run's last keeper has died.
    """

    def __init__(
        self,
        launch: Launch,
        *,
        on_event: Callable[[AnyEvent], None] | None = None,
        listener: socket.socket | None = None,
        record: bool = True,
        takes_over: bool = False,
    ) -> None:
        self.launch = launch
        self._recorded = record
        self._record: RecordWriter | None = None
        self._listener = listener
        self._past = Past.of(launch, takes_over=takes_over)
        self.history = self._past.history
        self.ended: RunEnded | None = None
        self._stream = EventStream(self.history)
        self._requests = Requests(self.history)
        self._ending = Ending(launch)
        self._diagnosis = DiagnosisEvents()
        self._gpus = Gpus()
        self._on_event = on_event
        self._notifier = Notifier.of(launch, self.history)
        self._selector = selectors.DefaultSelector()
        self._viewers: Viewers | None = None
        self._socket_file: tuple[int, int] | None = None  # device and inode of the file at `launch.socket`
        self._socket_checked_s = 0.0
        self._lock: int | None = None
        self._trainer: Trainer | None = None
        # Set by signal handlers: why the run must stop or be killed, or why the keeper must leave it.
        self._stop_reason = self._kill_reason = self._leave_reason = ""
        self._looked_s = 0.0
        self._closed_s: float | None = None  # when the trainer's connection was closed
        self._is_unreachable = False  # `watch()` was called in a process that cannot be reached
        self._step_times_s: deque[float] = deque(maxlen=4)
        self._before_silence: StateChanged | None = None  # the state from before, while the trainer is silent
        self._started_s = self._heard_s = time.monotonic()

    def run(self, start_trainer: Callable[[], Trainer], *, sent_before: int = 0) -> RunEnded:
        """Run until the trainer has exited and every viewer has received the last event.

        If this keeper takes over, `sent_before` is how many events the trainer has sent before and will not send again.
        Raises `ChannelError` if the socket cannot be opened, or if the run has another keeper.
        """
        self._lock = hold_keeper_lock(self.launch.path)
        try:
            return self._run(start_trainer, sent_before)
        finally:
            if self._lock is not None:
                os.close(self._lock)

    def _run(self, start_trainer: Callable[[], Trainer], sent_before: int) -> RunEnded:
        if self.launch.socket is not None:
            listener = self._listener or listen(Path(self.launch.socket))
            self._socket_file = _file_at(self.launch.socket)
            self._viewers = Viewers(
                listener,
                self._selector,
                run=self.launch.run,
                history=self.history.send,
                on_request=self.order,
                on_refused=lambda order: self._publish(self._requests.reject(order, READ_ONLY)),
                on_leave=self._viewer_left,
                on_join=self._join,
                numbers=self._past.clients,
            )
        try:
            self._open_record()
            if not self._past.position.events:
                self._publish(StateChanged(state="importing torch"))
            try:
                self._trainer = start_trainer()
                if self._past.position.events:
                    self._take_over(self._trainer, sent_before)
                ended = self._serve(self._trainer)
            except (ChannelError, OSError) as error:
                what = "cannot be started" if self._trainer is None else "cannot be reached"
                reason = f"the trainer {what}: {getattr(error, 'strerror', None) or error}"
                self._publish(ended := RunEnded(status="failed", step=self.history.steps, reason=reason))
            self._flush_viewers()
            return ended
        finally:
            self._close()

    def _open_record(self) -> None:
        if self._recorded:
            try:
                self._record = RecordWriter.open(self.launch, self.history.send, self._position)
            except (RecordError, OSError) as error:
                self._publish(RecordingChanged(step=self.history.steps, trouble="see the events"))
                text = f"this run is not recorded: {error}"
                self._publish(Noted(step=self.history.steps, text=text, level="warning"))

    def _position(self) -> dict[str, int]:
        """What another keeper needs to know to go on from this moment, for the record."""
        clients = 0 if self._viewers is None else self._viewers.numbers
        return {**self._stream.position.values(), "clients": clients}

    def _take_over(self, trainer: Trainer, sent_before: int) -> None:
        """Go on in place of a keeper that has died, where its record ends. Raises `ChannelError`."""
        self._stream.resume(trainer, self._past.position, sent_before=sent_before)
        for event in (self.history.started, self.history.layers_changed):
            if event is not None:
                for _ in self._diagnosis.after(event):
                    pass
        text = "the run's keeper died; another one goes on"
        self._publish(Noted(step=self.history.steps, text=text, level="warning"))

    def _serve(self, trainer: Trainer) -> RunEnded:
        """Publish events and pass requests on until the trainer has exited."""
        self._selector.register(trainer.link.socket, selectors.EVENT_READ, lambda: None)
        if trainer.exit_fd is not None:
            self._selector.register(trainer.exit_fd, selectors.EVENT_READ, lambda: None)
        while self.ended is None:
            self._wait(TICK_S)
            self._tick(trainer)
        if trainer.exit_fd is not None:  # still readable after the exit: the selector would not wait
            self._selector.unregister(trainer.exit_fd)
        return self.ended

    def stop(self, reason: str) -> None:
        """Ask the trainer to stop after the current step. A trainer that does not obey is killed.

        It can be called in a signal handler, because the next tick does the work.
        """
        self._stop_reason = self._stop_reason or reason

    def kill(self, reason: str) -> None:
        """End the trainer at once, by signals. It can be called in a signal handler."""
        self._kill_reason = self._kill_reason or reason

    def leave(self, reason: str) -> None:
        """End the keeper but not the trainer, which goes on unwatched. It can be called in a signal handler."""
        self._leave_reason = self._leave_reason or reason

    def resize_terminal(self, columns: int, rows: int) -> None:
        """Give the terminal of a user's script another size."""
        if self._trainer is not None and self._trainer.script is not None:
            self._trainer.script.set_size(columns, rows)

    def order(self, order: ClientRequest) -> None:
        """Pass a viewer's request on to the trainer, or carry it out or reject it here."""
        match order.command:
            case ResizeTerminal(columns=columns, rows=rows):
                self.resize_terminal(columns, rows)
                self._publish(self._requests.done(order, f"terminal of {columns}×{rows}"))
                return
            case Stop(kill=True) if self.launch.scenario is None and self.launch.command is None:
                self._publish(self._requests.reject(order, NOT_KILLED))
                return
            case Stop(kill=kill) if self.ended is None and (kill or self._ending.script_goes_on):
                (self._ending.request_kill if kill else self._ending.request_stop)(STOPPED_BY_VIEWER)
                self._publish(self._requests.done(order, "kill" if kill else "stop"))
                return
        if self._trainer is None or self.ended is not None:
            rejected: AnyEvent | None = self._requests.reject(order, "the run has ended")
        else:
            rejected = self._requests.pass_on(order, self._trainer.link)
        if rejected is not None:
            self._publish(rejected)
        elif isinstance(order.command, Stop):
            self._ending.request_stop(STOPPED_BY_VIEWER)

    def _join(self, sock: socket.socket) -> None:
        """Connect a process that the script has started, such as a process of torchrun. Raises `FrameError` to refuse
        it.
        """
        trainer = self._trainer
        if trainer is None or self.launch.command is None or not is_ours(sock):
            raise FrameError("this run has no script")
        if self._stream.ring is not None or self.ended is not None:
            raise FrameError(ANOTHER_IS_SHOWN)
        if trainer.link.socket in self._selector.get_map():
            self._selector.unregister(trainer.link.socket)
        try:
            trainer.connect_again(sock)
        except OSError as error:
            raise FrameError(f"cannot send the connection: {error.strerror}") from None
        finally:
            self._selector.register(trainer.link.socket, selectors.EVENT_READ, lambda: None)
        self._closed_s = None

    def _viewer_left(self, client: int) -> None:
        for order in self._requests.cleanup_after(client) if self.ended is None else ():
            self.order(order)

    def _wait(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def _tick(self, trainer: Trainer) -> None:
        if self._stop_reason and not self._ending.stop_requested:
            self._ending.request_stop(self._stop_reason)
            self._publish(StateChanged(state="stopping", reason=self._stop_reason))
            trainer.link.queue(ClientRequest(client=0, request=0, source="send", command=Stop()))
        if self._kill_reason:
            self._ending.request_kill(self._kill_reason)
        exited = trainer.exited()  # checked before reading, so everything that was written before the exit is read
        if trainer.link.waiting:
            trainer.link.flush()
            if self._stream.ring is not None:
                self._stream.ring.raise_flag()
        self._publish_new_events(trainer)
        self._report_silence(trainer)
        self._report_unreachable()
        if not exited:
            self._report_closed()
        if exited:
            self._end(trainer)
        elif self._leave_reason:
            if self._stream.ring is not None:
                self._stream.ring.leave()
            text = f"the keeper was ended by {self._leave_reason}; training goes on unwatched"
            self._reject_unanswered()
            self._publish(RunEnded(status="lost", step=self.history.steps, reason=text))
        elif self._ending.stop_requested:
            attached = 0 if self._viewers is None else self._viewers.attached
            self._ending.enforce_stop(trainer, attached=attached, started=self.history.started is not None)
        elif self.launch.attended and self.history.state.state == "waiting":
            self._end_without_viewers()
        if self._viewers is not None:
            self._keep_socket(self._viewers)
            self._viewers.maintain()
        if self._record is not None:
            for event in self._record.maintain():
                self._publish(event)
        if self._stream.ring is not None:
            recorded = self._stream.events if self._record is None else self._record.position.get("link_events", 0)
            if self._record is not None or not self._recorded:
                self._stream.ring.set_recorded(recorded)
        if self._notifier is not None and (trouble := self._notifier.trouble()):
            self._publish(Noted(step=self.history.steps, text=trouble, level="warning"))

    def _keep_socket(self, viewers: Viewers) -> None:
        """Create the socket's file again if it is gone. At a logout, for example, the runtime folder is deleted."""
        now_s = time.monotonic()
        if self.launch.socket is None or now_s < self._socket_checked_s + SOCKET_CHECKED_EVERY_S:
            return
        self._socket_checked_s = now_s
        if _file_at(self.launch.socket) != self._socket_file:
            with contextlib.suppress(ChannelError):  # tried again later: its folder may come back at the next login
                viewers.listen_on(listen(Path(self.launch.socket)))
                self._socket_file = _file_at(self.launch.socket)

    def _publish_new_events(self, trainer: Trainer) -> None:
        for event in self._stream.new_events(trainer):
            self._heard_s = time.monotonic()
            if isinstance(event, StepsCompleted):
                self._step_times_s.extend(event.times_s[-4:])
            if isinstance(event, RunEnded):
                self._ending.reported = event
            elif isinstance(event, StateChanged) and event.state == "stopping" and self.launch.command is not None:
                self._ending.obeyed = True
                self._publish_goes_on()
            elif isinstance(event, DeviceTaken):
                for completed in self._gpus.complete(event):
                    self._publish(completed)
            else:
                self._publish(event)
        if trainer.link.closed and trainer.link.socket in self._selector.get_map():
            self._selector.unregister(trainer.link.socket)
            self._closed_s = time.monotonic()
            if self._ending.script_goes_on and not trainer.exited():
                self._publish_goes_on()

    def _report_closed(self) -> None:
        """Report a script that has closed its connection and goes on. A script that has died is reported as dead
        instead.
        """
        waited_s = 0.0 if self._closed_s is None else time.monotonic() - self._closed_s
        is_watched = self._stream.ring is not None and not self._ending.script_goes_on
        if waited_s > CLOSED_AFTER_S and self.launch.command is not None and is_watched:
            self._closed_s = None
            text = "the script has closed the connection: losses are shown, keys have no effect"
            self._publish(Noted(step=self.history.steps, text=text, level="warning"))

    def _publish_goes_on(self) -> None:
        if self.history.state.reason != GOES_ON:
            self._publish(StateChanged(state="stopping", reason=GOES_ON))

    def _report_unreachable(self) -> None:
        """Report a `watch()` in a process that has no connection to this keeper, or that has closed it."""
        now_s = time.monotonic()
        if (
            self.launch.command is None
            or self._is_unreachable
            or self._stream.ring is not None
            or now_s < self._looked_s + LOOK_EVERY_S
        ):
            return
        self._looked_s = now_s
        if why := unreachable(self.launch.path):
            self._is_unreachable = True
            self._publish(Noted(step=0, text=why, level="warning"))
            self._publish(StateChanged(state="running", reason=why))

    def _report_silence(self, trainer: Trainer) -> None:
        """Report when the trainer sends neither events nor heartbeats any more, and when it responds again."""
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
            if state.silent_s:  # the trainer has not reported a new state since
                self._publish(before if before.state == state.state else StateChanged(state=state.state))
            # These take seconds and send nothing.
            if before.state not in ("importing torch", "building"):
                self._publish(Noted(step=self.history.steps, text="the trainer responds again"))

    def _step_s(self) -> float:
        """The current duration of a step: the median of the last three steps; 0 while there are fewer."""
        times = [b - a for a, b in pairwise(self._step_times_s)]
        return sorted(times)[1] if len(times) == 3 else 0.0

    def _end_without_viewers(self) -> None:
        """End a run that waits at its end for nobody: all viewers have left, or none has connected in time."""
        viewers = self._viewers
        if viewers is None or viewers.attached:
            return
        if viewers.seen or time.monotonic() - self._started_s > FIRST_VIEWER_WITHIN_S:
            self.stop(NO_VIEWER_AT_END)

    def _end(self, trainer: Trainer) -> None:
        self._publish_new_events(trainer)
        for event in self._stream.last_events():
            if isinstance(event, RunEnded):
                self._ending.reported = self._ending.reported or event
            else:
                self._publish(event)
        self._reject_unanswered()
        self._publish(self._ending.event(trainer, self.history.steps, started=self.history.started is not None))

    def _reject_unanswered(self) -> None:
        for rejected in self._requests.reject_unanswered("the run ended before this request was carried out"):
            self._publish(rejected)

    def _publish(self, event: AnyEvent) -> None:
        if isinstance(event, RunEnded):
            for diagnosis in self._diagnosis.newest():
                self._send(diagnosis)
        self._send(event)
        for diagnosis in self._diagnosis.after(event):
            self._send(diagnosis)

    def _send(self, event: AnyEvent) -> None:
        if isinstance(event, RunStarted):
            keep_name(self.launch, event.name)
        self._requests.note_reply(event)
        self.history.apply(event)
        if self._record is not None:
            self._record.add(event)  # an intervention is written before viewers learn of it
        if self._viewers is not None:
            self._viewers.publish(event)
        if self._notifier is not None:
            self._notifier.add(event)
        if isinstance(event, RunEnded):
            self.ended = event
        if self._on_event is not None:
            self._on_event(event)

    def _flush_viewers(self) -> None:
        """Wait until every viewer has received the last event, for at most LAST_EVENT_WITHIN_S.

        If an attended run has ended before its first viewer has connected, it waits for that viewer first.
        """
        viewers = self._viewers
        if viewers is None:
            return
        first_until_s = self._started_s + FIRST_VIEWER_WITHIN_S
        awaited = self.launch.attended and not self._ending.stop_requested
        while awaited and not viewers.seen and not self._stop_reason and time.monotonic() < first_until_s:
            viewers.maintain()
            self._wait(TICK_S)
        until_s = time.monotonic() + LAST_EVENT_WITHIN_S
        while viewers.waiting and time.monotonic() < until_s:
            viewers.maintain()
            self._wait(TICK_S)

    def _close(self) -> None:
        if self._notifier is not None:
            self._notifier.close()
        if self._record is not None:
            self._record.close()
        if self._viewers is not None:
            self._viewers.close()
            assert self.launch.socket is not None
            if _file_at(self.launch.socket) == self._socket_file:
                Path(self.launch.socket).unlink(missing_ok=True)
        if self._trainer is not None:
            if self._trainer.process is not None:
                self._trainer.signal(signal.SIGKILL)
                with contextlib.suppress(Exception):
                    self._trainer.process.wait(5)
            self._trainer.close()
        if self._stream.ring is not None:
            self._stream.ring.close()
        self._selector.close()


def _file_at(path: str) -> tuple[int, int] | None:
    """Device and inode of a file; None if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
