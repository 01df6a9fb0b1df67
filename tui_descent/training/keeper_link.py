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
import sys
import threading
import time
import weakref
from collections import deque
from pathlib import Path

from msgspec.structs import replace

from tui_descent import paths
from tui_descent.protocol.channel import ChannelError, Peer
from tui_descent.protocol.codec import MAX_TO_VIEWER, FrameError, decode, encode, from_trainer, to_trainer
from tui_descent.protocol.commands import ClientRequest
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
from tui_descent.protocol.inherited_fds import close_fd, describe_fd, find_fd
from tui_descent.protocol.launch import (
    CLOSED,
    CLOSED_FILE,
    CONNECTED_FILE,
    ENV_FOLDER,
    ENV_LINK,
    ENV_RESUME,
    ENV_RING,
    LAUNCHED,
    LAUNCHED_FILE,
    Launch,
    open_connection,
    snapshot_bytes,
    snapshot_every_s,
    start_keeper,
    undo_budget,
)
from tui_descent.protocol.readings import COLUMNS
from tui_descent.protocol.ring import MOST_LAST_BYTES, Ring
from tui_descent.protocol.run_lock import hold_lock, release_lock

MAX_QUEUED_BYTES = 8 << 20
# Events that are never dropped: the start and the end, replies to commands, and what later events refer to.
KEPT = (RunStarted, RunEnded, CommandDone, CommandRejected, KnobTurned, LayersChanged, Rewound, StateChanged)
# Metrics wait in a queue of their own, so other events are sent first. They are sent together.
MAX_METRICS = 20_000
MAX_METRIC_BYTES = 64 << 10
METRICS_AT_ONCE = 5_000
METRICS_EVERY_S = 0.03
HEARTBEAT_S = 0.5
CLOSE_WITHIN_S = 2.0  # how long the end of a run waits for a slow keeper


class KeeperLink:
    """The connection of one run. `ring_fd` is the descriptor of the shared memory.

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
    def with_own_keeper(cls, name: str) -> KeeperLink:
        """Start a keeper for this process: for a new run, or for the one that `TUI_DESCENT_RESUME` names.

        Raises `ChannelError` or `OSError` if that fails, and `ValueError` if the named run cannot be resumed.
        """
        launch = _resumed_launch() or _new_launch(name)
        with open_connection(launch) as (ours, theirs, ring_fd):
            keeper = start_keeper(launch, trainer=(theirs, ring_fd))
        return cls(ours, ring_fd, launch, keeper)

    @property
    def lost(self) -> bool:
        """Whether the connection to the keeper is lost."""
        return self._peer.closed is not None

    @property
    def connected(self) -> bool:
        """Whether the socket can be used. If the descriptor's number refers to another file now, it is never used
        again.
        """
        if not self.lost and find_fd(self._socket) is None:
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
        if not self.lost:
            self._events.append(event)
            if not more:
                self.send()

    def log(self, metric: MetricLogged) -> None:
        """Queue a metric, and send the queue if that was not done in the last `METRICS_EVERY_S`. May be called from any
        thread. If too many metrics wait, the oldest one is dropped.
        """
        if self.lost:
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
            again = bool(self._events)  # added by a thread that found the lock held

    def _send(self) -> None:
        peer, events, metrics = self._peer, self._events, self._metrics
        if not self.connected:
            events.clear()
            metrics.clear()
            return
        self._queue_metrics()
        while events:
            event = events.popleft()
            if isinstance(event, RunEnded):
                self._report_dropped(at_end=True)
            if peer.waiting < MAX_QUEUED_BYTES or isinstance(event, KEPT):
                peer.queue(event)
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
                peer.queue(metrics.popleft())
            except IndexError:  # another thread dropped the oldest ones
                break

    def _report_dropped(self, *, at_end: bool = False) -> None:
        """Report how many metrics were dropped so far: at the first one, whenever their number has grown tenfold, and
        at the end.
        """
        if self._dropped > self._dropped_reported and (at_end or self._dropped >= 10 * self._dropped_reported):
            self._dropped_reported = self._dropped
            self._peer.queue(self._dropped_note())

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
        try:
            return [decode(to_trainer, body) for body in self._peer.receive()] if self.connected else []
        except FrameError as error:
            self._peer.closed = str(error)
            return []

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
        if self._keeper is not None and not self._forked:
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


def is_launched_under_exec() -> bool:
    """Whether `exec` has started this process or its launcher, but the process has no connection to the keeper. If so,
    the loop trains unwatched. A file in the run's folder tells the keeper, a message tells the user.
    """
    folder = os.environ.get(ENV_FOLDER)
    if not folder or not Path(folder).is_dir() or find_fd(os.environ.get(ENV_LINK, "")) is not None:
        return False
    # The script that has inherited the connection is a child of its session's leader, unless it has become a daemon.
    is_closed = os.getppid() in (os.getsid(0), 1)
    file, why = (CLOSED_FILE, CLOSED) if is_closed else (LAUNCHED_FILE, LAUNCHED)
    with contextlib.suppress(OSError):  # only the first of several processes prints it
        os.close(os.open(Path(folder) / file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        print(f"tui-descent: training continues unwatched: {why}", file=sys.stderr)
    return True
