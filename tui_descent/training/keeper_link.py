"""The trainer's connection to its keeper: events and commands over a socket, steps and readings in shared memory.

Sending never blocks the training loop: what the socket does not accept waits in a bounded queue. The end of the run is
also written into the shared memory, so it arrives even if the socket does not work.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import subprocess
import threading
import time
import weakref
from collections import deque
from pathlib import Path

from msgspec.structs import replace

from tui_descent import paths
from tui_descent.protocol.channel import ChannelError, Peer
from tui_descent.protocol.codec import MAX_TO_VIEWER, FrameError, decode, encode, from_trainer, to_trainer
from tui_descent.protocol.commands import ClientRequest, WatchCurvature, WatchLens, WatchTask
from tui_descent.protocol.events import (
    AnyEvent,
    CommandDone,
    CommandRejected,
    KnobTurned,
    LayersChanged,
    MetricLogged,
    Noted,
    Rewound,
    RunEnded,
    RunStarted,
    StateChanged,
)
from tui_descent.protocol.inherited_fds import close_fd, describe_fd, find_fd, socket_pair
from tui_descent.protocol.joining import join
from tui_descent.protocol.launch import (
    CLOSED_FILE,
    CONNECTED_FILE,
    ENV_FOLDER,
    ENV_LINK,
    ENV_RESUME,
    ENV_RING,
    Launch,
    open_connection,
    snapshot_bytes,
    snapshot_every_s,
    start_keeper,
    undo_budget,
)
from tui_descent.protocol.readings import COLUMNS
from tui_descent.protocol.ring import MOST_LAST_BYTES, Ring
from tui_descent.protocol.run_lock import has_keeper, hold_lock, release_lock

MAX_QUEUED_BYTES = 8 << 20
MAX_UNRECORDED = 50_000  # events that are sent again if the keeper dies before it has recorded them
# A keeper that has died is replaced, but not more often than this.
CHECK_EVERY_S = 0.5
MAX_REPLACED, REPLACED_WITHIN_S = 5, 60.0
# Events that are never dropped: the start and the end, replies to commands, and what later events refer to.
KEPT = (RunStarted, RunEnded, CommandDone, CommandRejected, KnobTurned, LayersChanged, Rewound, StateChanged)
# Metrics wait in a queue of their own, so other events are sent first. They are sent together.
MAX_METRICS = 20_000
MAX_METRIC_BYTES = 64 << 10
METRICS_AT_ONCE = 5_000
METRICS_EVERY_S = 0.03
HEARTBEAT_S = 0.5
CLOSE_WITHIN_S = 2.0  # how long the end of a run waits for a slow keeper


class ShownElsewhereError(Exception):
    """Another process of the script is connected to the keeper."""


class KeeperLink:
    """The connection of one run. `ring_fd` is the descriptor of the shared memory.

    If the keeper dies, `keep_connected` starts another one. It receives again what the dead one has not recorded.

    Events are sent by whichever thread holds `_sending`. A thread that finds the lock held puts its event into a queue,
    which the holder empties before it returns. So no thread waits for another, and even a signal handler may log.

    The user's script may close our descriptors. The link is then lost, and training goes on. A forked process has no
    link, because the link belongs to its parent.
    """

    def __init__(
        self, sock: socket.socket, ring_fd: int, launch: Launch, keeper: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.launch = launch
        self.ring: Ring | None = None
        self._peer = Peer(sock, limit=MAX_TO_VIEWER)
        self._socket, self._ring_fd = describe_fd(sock.fileno()), describe_fd(ring_fd)
        self._keeper, self._forked, self._closed = keeper, False, False
        self._sending = threading.Lock()
        self._events: deque[AnyEvent] = deque()  # events that are not encoded yet
        self._metrics: deque[MetricLogged] = deque()
        self._metrics_sent_s = -math.inf
        self._started = False  # metrics are sent after `RunStarted`
        self._dropped = self._dropped_reported = 0  # metrics
        self._step = 0  # the step of the newest metric
        self._ended: RunEnded | None = None
        # The events that were sent and may not be recorded yet, oldest first, and how many were sent before them.
        self._unrecorded: deque[AnyEvent] = deque()
        self._recorded = 0
        # Which clients watch something, and the requests that end this when their keeper has died.
        self._watching: set[tuple[int, type[WatchCurvature | WatchTask | WatchLens]]] = set()
        self._left: list[ClientRequest] = []
        self._abandoned = False  # whether the script has closed our descriptors
        self._checked_s = 0.0  # when `keep_connected` has last checked the connection
        self._replaced_s: deque[float] = deque(maxlen=MAX_REPLACED)  # when keepers were replaced
        _links.add(self)

    @classmethod
    def inherited(cls) -> KeeperLink | None:
        """The connection to the keeper that started this process.

        None if no keeper started it, or if the connection is already in use.
        """
        folder = os.environ.get(ENV_FOLDER)
        # A script that started this process may have closed the descriptors or reused their numbers.
        link_fd, ring_fd = (find_fd(os.environ.get(name, "")) for name in (ENV_LINK, ENV_RING))
        if not folder or link_fd is None or ring_fd is None:
            return None
        try:
            os.close(os.open(Path(folder) / CONNECTED_FILE, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            hold_lock(Path(folder))
            return cls(socket.socket(fileno=link_fd), ring_fd, Launch.read(Path(folder)))
        except OSError:
            return None

    @classmethod
    def joined(cls) -> KeeperLink | None:
        """The connection for a process that a launcher has started under `exec`, found through the run's folder.

        None if this process is not under `exec`, or if its run has ended. Raises `ChannelError` or `OSError` if there
        can be no connection, and `ShownElsewhereError` if another process of the script has it.
        """
        folder = Path(os.environ.get(ENV_FOLDER) or os.devnull)
        if not folder.is_dir() or not has_keeper(folder):
            return None
        claim = folder / CONNECTED_FILE
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            raise ShownElsewhereError from None
        try:
            launch = Launch.read(folder)
            if launch.socket is None:
                raise ChannelError("the run has no socket")
            sock, ring_fd = join(launch.socket)
        except (ChannelError, OSError):
            claim.unlink(missing_ok=True)
            raise
        hold_lock(folder)
        return cls(sock, ring_fd, launch)

    @classmethod
    def with_own_keeper(cls, name: str) -> KeeperLink:
        """Start a keeper for this process: for a new run, or for the one that `TUI_DESCENT_RESUME` names.

        Raises `ChannelError` or `OSError` if that fails, and `ValueError` if the named run cannot be resumed.
        """
        launch = _resumed_launch() or _new_launch(name)
        with open_connection(launch) as (ours, theirs, ring_fd):
            keeper = start_keeper(launch, trainer=(theirs, ring_fd, None))
        return cls(ours, ring_fd, launch, keeper)

    @property
    def lost(self) -> bool:
        """Whether the connection to the keeper is lost."""
        return self._peer.closed is not None

    def keep_connected(self) -> bool:
        """Start another keeper if the keeper has died. Returns whether one was started.

        It looks at most every `CHECK_EVERY_S`. It does nothing if the keeper has ended on request, and gives up when
        keepers die again and again.
        """
        now_s = time.monotonic()
        if now_s < self._checked_s + CHECK_EVERY_S and not self.lost:
            return False
        self._checked_s = now_s
        if self.connected:
            self._peer.check()
        ring_fd = find_fd(self._ring_fd)
        if not self.lost or not self._can_be_replaced or ring_fd is None or not self._sending.acquire(blocking=False):
            return False
        try:
            self._replaced_s.append(now_s)
            self._start_another(ring_fd)
        except (OSError, ChannelError):
            return False
        finally:
            self._sending.release()
        self.send()
        return True

    @property
    def _can_be_replaced(self) -> bool:
        """Whether another keeper may take the place of one that dies."""
        if self._forked or self._closed or self._abandoned or self.ring is None or self.ring.left():
            return False
        if self.launch.socket is None:  # the keeper is not a process of its own
            return False
        often = len(self._replaced_s) == MAX_REPLACED
        return not often or time.monotonic() > self._replaced_s[0] + REPLACED_WITHIN_S

    def _start_another(self, ring_fd: int) -> None:
        """Start another keeper, and queue the events that the last one has not recorded. Raises `OSError`."""
        self._forget_recorded()
        ours, theirs = socket_pair()
        with theirs:
            try:
                self._keeper = start_keeper(self.launch, trainer=(theirs, ring_fd, self._recorded))
            except OSError:
                ours.close()
                raise
        if find_fd(self._socket) is not None:
            self._peer.close()
        self._peer, self._socket = Peer(ours, limit=MAX_TO_VIEWER), describe_fd(ours.fileno())
        for event in self._unrecorded:
            self._peer.queue(event)
        # The dead keeper's viewers have new numbers when they come back.
        self._left += [
            ClientRequest(client=client, request=0, source="send", command=kind(on=False))
            for client, kind in self._watching
        ]
        self._watching.clear()

    def _forget_recorded(self) -> None:
        """Forget the events that are in the run's record by now."""
        recorded = self.ring.recorded() if self.ring is not None else 0
        while self._unrecorded and (self._recorded < recorded or len(self._unrecorded) > MAX_UNRECORDED):
            self._unrecorded.popleft()
            self._recorded += 1

    def _queue(self, event: AnyEvent) -> None:
        self._peer.queue(event)
        self._unrecorded.append(event)

    @property
    def connected(self) -> bool:
        """Whether the socket can be used. If the descriptor's number refers to another file now, it is never used
        again.
        """
        if not self.lost and find_fd(self._socket) is None:
            self._abandoned = True
            self._peer.abandon("the script has closed the connection")
            with contextlib.suppress(OSError):  # the keeper cannot tell this from the end of the process
                (self.launch.path / CLOSED_FILE).touch()
        return not self.lost

    def make_ring(self, layers: int) -> Ring:
        """Create the shared memory, with room for readings of `layers` layers.

        Raises `OSError` if there is not enough memory, or if the script has closed its descriptor.
        """
        file = find_fd(self._ring_fd)
        if file is None:
            raise OSError("its file descriptor has been closed")
        self.ring = Ring.create(file, layers=layers, columns=len(COLUMNS))
        self.ring.beat(time.monotonic())
        return self.ring

    def emit(self, event: AnyEvent, *, more: bool = False) -> None:
        """Send an event; with `more`, queue it and send it together with the next one.

        When too many bytes wait, events are dropped, except those in `KEPT`.
        """
        if isinstance(event, RunEnded):
            self._ended = event
            self._leave_last_events([event])
        if (not self.lost or self._can_be_replaced) and len(self._events) < MAX_UNRECORDED:
            self._events.append(event)
            if not more:
                self.send()

    def log(self, metric: MetricLogged) -> None:
        """Queue a metric, and send the queue if that was not done in the last `METRICS_EVERY_S`. May be called from any
        thread. If too many metrics wait, the oldest one is dropped.
        """
        if self.lost and not self._can_be_replaced:
            return
        self._step = metric.step
        self._metrics.append(metric)
        if len(self._metrics) > MAX_METRICS:
            with contextlib.suppress(IndexError):  # another thread may have sent them meanwhile
                self._metrics.popleft()
                self.drop_metric()
        if self.metrics_due:
            self.send()

    def drop_metric(self) -> None:
        """Count one more metric that is not sent."""
        self._dropped += 1

    @property
    def metrics_due(self) -> bool:
        """Whether metrics wait to be sent, and none were sent in the last `METRICS_EVERY_S`."""
        waiting = bool(self._metrics) and self._started
        return waiting and time.monotonic() - self._metrics_sent_s >= METRICS_EVERY_S

    def send(self) -> None:
        """Send what is queued, as far as the socket accepts it. Never waits. May be called from any thread."""
        again = True
        while again and self._sending.acquire(blocking=False):
            try:
                self._send()
            finally:
                self._sending.release()
            again = bool(self._events) and not self.lost  # added by a thread that found the lock held

    def _send(self) -> None:
        peer, events, metrics = self._peer, self._events, self._metrics
        if not self.connected:
            if not self._can_be_replaced:
                events.clear()
                metrics.clear()
            return
        self._forget_recorded()
        self._queue_metrics()
        while events:
            event = events.popleft()
            if isinstance(event, RunEnded):
                self._report_dropped(at_end=True)
            if peer.waiting < MAX_QUEUED_BYTES or isinstance(event, KEPT):
                self._queue(event)
            self._started = self._started or isinstance(event, RunStarted | RunEnded)
        self._queue_metrics()
        self._report_dropped()
        peer.flush()

    def _queue_metrics(self) -> None:
        """Pass metrics on to the socket, but only while few bytes wait there: other events must not wait long."""
        peer, metrics = self._peer, self._metrics
        if not self._started or not metrics:
            return
        self._metrics_sent_s = time.monotonic()
        for _ in range(min(METRICS_AT_ONCE, len(metrics))):
            if peer.waiting >= MAX_METRIC_BYTES:
                peer.flush()
                if peer.waiting >= MAX_METRIC_BYTES:
                    break
            try:
                self._queue(metrics.popleft())
            except IndexError:  # another thread dropped the oldest ones
                break

    def _report_dropped(self, *, at_end: bool = False) -> None:
        """Report how many metrics were dropped so far: at the first one, whenever their number has grown tenfold, and
        at the end.
        """
        if self._dropped > self._dropped_reported and (at_end or self._dropped >= 10 * self._dropped_reported):
            self._dropped_reported = self._dropped
            self._queue(self._dropped_note())

    def _dropped_note(self) -> Noted:
        step = self._ended.step if self._ended is not None else self._step
        what = "metric" if self._dropped == 1 else "metrics"
        text = f"{self._dropped:,} {what} dropped: run.log is called more often than metrics can be sent"
        return Noted(step=step, text=text, level="warning")

    def _leave_last_events(self, events: list[AnyEvent]) -> None:
        """Write events into the shared memory, for a keeper that the socket does not reach."""
        if self.ring is None:
            return
        body = encode(events)
        if len(body) > MOST_LAST_BYTES:
            body = encode(
                [replace(e, reason=e.reason[:400], position=None) if isinstance(e, RunEnded) else e for e in events]
            )
        if len(body) <= MOST_LAST_BYTES:
            self.ring.write_last_events(body)

    def commands(self) -> list[ClientRequest]:
        """The commands that have arrived since the last call."""
        if self.ring is not None:
            self.ring.lower_flag()
        self.send()
        arrived, self._left = self._left, []
        try:
            arrived += [decode(to_trainer, body) for body in self._peer.receive()] if self.connected else []
        except FrameError as error:
            self._peer.closed = str(error)
        for request in arrived:
            if isinstance(request.command, WatchCurvature | WatchTask | WatchLens):
                watching = request.client, type(request.command)
                (self._watching.add if request.command.on else self._watching.discard)(watching)
        return arrived

    def wait(self, timeout_s: float | None) -> None:
        """Sleep until a command arrives, the timeout expires or a heartbeat is due, whichever comes first."""
        if self.ring is not None:
            self.ring.beat(time.monotonic())
        sleep_s = HEARTBEAT_S if timeout_s is None else min(HEARTBEAT_S, timeout_s)
        self._poll(select.POLLIN, sleep_s)

    def close(self) -> None:
        """Send what is queued, for at most `CLOSE_WITHIN_S`, and close. The keeper still reads the rest of the ring."""
        if self._closed:
            return
        if self.lost:
            self.keep_connected()  # the end belongs in the record too
        self._closed = True
        _links.discard(self)
        end_s = time.monotonic() + CLOSE_WITHIN_S
        self.send()
        while (self._peer.waiting or self._metrics) and not self.lost and time.monotonic() < end_s:
            self._poll(select.POLLOUT, 0.1)
            self.send()
        if self._sending.acquire(timeout=1.0):  # and never released, so nothing is sent from here on
            self._report_unsent()
        if self.connected:
            self._peer.close()
        if self.ring is not None:
            self.ring.close()
        close_fd(self._ring_fd)
        is_foreign = self.launch.scenario is None and self.launch.command is None
        if self._keeper is not None and not self._forked and is_foreign:  # other keepers wait for this process
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(5.0)
        release_lock(self.launch.path)

    def _report_unsent(self) -> None:
        """Write into the shared memory how many metrics the keeper did not receive."""
        unsent = [decode(from_trainer, body) for body in self._peer.waiting_bodies()]
        self._dropped += len(self._metrics) + sum(isinstance(event, MetricLogged) for event in unsent)
        if self._dropped > self._dropped_reported and self._ended is not None:
            self._leave_last_events([self._dropped_note(), self._ended])

    def _poll(self, what: int, timeout_s: float) -> None:
        if not self.connected:
            time.sleep(timeout_s)
            return
        waiting = select.poll()
        waiting.register(self._peer.socket, what)
        waiting.poll(timeout_s * 1000)

    def detach(self) -> None:
        """In a forked child: stop using the connection, which belongs to the parent process."""
        self._forked, self._sending = True, threading.Lock()
        self._events.clear()
        self._metrics.clear()
        if self.connected:
            self._peer.socket.close()
        self._peer.closed = self._peer.closed or "this is a forked process"
        close_fd(self._ring_fd)
        if self.ring is not None:
            self.ring.detach()


def _new_launch(name: str) -> Launch:
    """The settings of a new run of a user loop. Raises `ChannelError` or `OSError`."""
    try:
        budget, every_s, size = undo_budget(None), snapshot_every_s(None), snapshot_bytes(None)
    except ValueError as error:
        raise ChannelError(str(error)) from None
    run, folder = paths.new_run(name)
    launch = Launch(
        run=run,
        name=name,
        folder=str(folder),
        socket=str(paths.socket_path(run)),
        undo_budget=budget,
        snapshot_every_s=every_s,
        snapshot_bytes=size,
    )
    launch.write()
    return launch


def _resumed_launch() -> Launch | None:
    """The settings of the run that the environment asks to resume; None for a new run. Only the first `watch()` of a
    process resumes it.
    """
    name = os.environ.pop(ENV_RESUME, "")
    if not name:
        return None
    from tui_descent import resume
    from tui_descent.run_list import RunNotFoundError

    try:
        launch = resume.recorded(name)
        if launch.scenario is not None or launch.command is not None:
            raise resume.CannotResumeError(f"{launch.run} was not started by its own script; use tui-descent resume")
        return resume.prepare(launch, attended=False)
    except (resume.CannotResumeError, RunNotFoundError) as error:
        raise ValueError(f"{ENV_RESUME}: {error}") from None


_links: weakref.WeakSet[KeeperLink] = weakref.WeakSet()


def _detach_all() -> None:
    for link in list(_links):
        with contextlib.suppress(OSError):
            link.detach()


os.register_at_fork(after_in_child=_detach_all)
