"""A fake run: builders of events, and a keeper without a trainer in the test's event loop."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterable
from pathlib import Path

from tui_descent.dashboard.view import View
from tui_descent.protocol import codec
from tui_descent.protocol.commands import (
    AnyCommand,
    Evaluate,
    Hello,
    Mark,
    Pause,
    Request,
    Resume,
    RunSteps,
    Stop,
    TurnKnob,
    WatchCurvature,
)
from tui_descent.protocol.curvature import CurvatureReading, Limit
from tui_descent.protocol.events import (
    AnyEvent,
    CommandDone,
    CommandRejected,
    CurvatureTaken,
    Evaluated,
    KnobState,
    KnobTurned,
    Layer,
    LedgerEntry,
    LedgerTaken,
    Marked,
    Noted,
    ReadingsTaken,
    RunEnded,
    RunStarted,
    StateChanged,
    StepsCompleted,
    ToViewer,
    Welcome,
)
from tui_descent.telemetry.history import History

CLIENT = 7


def layers(depth: int = 20, width: int = 32) -> tuple[Layer, ...]:
    """Linear(64, width), the blocks, Linear(width, 10)."""
    inner = tuple(Layer(name=f"blocks.{n}.linear", kind="Linear", params=width * width, block=n) for n in range(depth))
    first = Layer(name="inlet", kind="Linear", params=64 * width)
    return (first, *inner, Layer(name="outlet", kind="Linear", params=width * 10))


def started(depth: int = 20, **changed: object) -> RunStarted:
    """The first event of the vanishing run."""
    fields: dict[str, object] = {
        "run": "r1",
        "title": "Vanishing gradients",
        "name": "vanishing",
        "scenario": {"title": "Vanishing gradients", "story": "Twenty sigmoid layers. Press r at any time.\n\nWatch."},
        "device": "cpu",
        "threads": 1,
        "parameters": 22026,
        "layers": layers(depth),
        "knobs": (
            KnobState(name="lr", value="0.1"),
            KnobState(name="activation", value="sigmoid"),
            KnobState(name="residual", value="off"),
            KnobState(name="pace", value="30"),
        ),
        "about": f"digits · mlp 64→32×{depth}→10",
        "steps": 2000,
        "versions": {"torch": "2.13.0"},
    }
    return RunStarted(**{**fields, **changed})  # type: ignore[arg-type]


def steps(first: int, losses: Iterable[float], *, per_s: float = 30.0, segment: int = 0) -> StepsCompleted:
    """Steps with these losses, `per_s` per second."""
    values = list(losses)
    times = [(first + n) / per_s for n in range(len(values))]
    return StepsCompleted(segment=segment, first=first, losses=values, lrs=[0.1] * len(values), times_s=times)


def reading(step: int, fall: float, depth: int = 20, *, top: float = 2e-2) -> ReadingsTaken:
    """Gradients that shrink by a factor of `fall` per layer from the output down."""
    count = depth + 2
    rms = [top / 10 * fall ** (count - 1 - n) for n in range(count)]
    return ReadingsTaken(
        segment=0,
        step=step,
        values={
            "grad_norm": [v * 10 for v in rms],
            "grad_rms": list(rms),
            "weight_norm": [5.7] * count,
            "update_norm": list(rms),
            "update_ratio": [v * 10 / 5.7 for v in rms],
            "backprop_factor": [fall] * (count - 1) + [None],
            "saturated_fraction": [None] + [0.02] * depth + [None],
        },
        ages=[0] * count,
        global_grad_norm=top,
        watch_cost=0.006,
    )


def ledger(step: int, factor: float, depth: int = 20, *, off: float = 1e-7) -> LedgerTaken:
    """A chain-rule reading with the same factor for every block."""
    entries = [
        LedgerEntry(block=f"blocks.{n}", factor=factor, autograd=factor, discrepancy=off, product=factor ** (depth - n))
        for n in range(depth)
    ]
    return LedgerTaken(segment=0, step=step, entries=entries)


def eigenvalues(high: float, low: float, **changed: object) -> CurvatureReading:
    """A converged Lanczos reading."""
    fields: dict[str, object] = {
        "lambda_max": high,
        "lambda_min": low,
        "residual_max": 1e-6,
        "residual_min": 4e-3,
        "products": 14,
        "negative_fraction": None,
        "negative_below": 1e-2,
        "how": "Lanczos",
        "converged": True,
        "parameters": 22026,
    }
    return CurvatureReading(**{**fields, **changed})  # type: ignore[arg-type]


def curved(step: int, high: float, low: float, limit: float | None = 2.0, **changed: object) -> CurvatureTaken:
    """A curvature reading with the limit of gradient descent."""
    return CurvatureTaken(
        segment=0,
        step=step,
        hessian=eigenvalues(high, low, **changed),
        limit=None if limit is None else Limit(lambda_max=limit, formula="2/η", preconditioned=False),
        seconds=0.05,
    )


def turned(step: int, old: str, new: str, *, knob: str = "residual", request: int = 0, client: int = 0) -> KnobTurned:
    """An applied intervention."""
    return KnobTurned(
        id=1,
        client=client,
        request=request,
        source="key",
        segment=0,
        step=step,
        knob=knob,
        target="all",
        old=old,
        new=new,
        way="ramp" if knob == "residual" else None,
        function_change=2.1e-7 if knob == "residual" else None,
    )


def loss_at(step: int, residual_at: int, noise: random.Random) -> float:
    """Constant at ln 10 until `residual_at`, then falling to 0.06."""
    since = max(0, step - residual_at - 20)
    fall = math.exp(-since / 45)
    return max(0.01, (2.303 * fall + 0.06) * (1 + noise.uniform(-0.25, 0.25) * (1 - 0.9 * fall)))


def vanishing(last: int, residual_at: int = 150, depth: int = 20) -> list[AnyEvent]:
    """A run that learns nothing until residual connections are switched on at step `residual_at`."""
    noise = random.Random(3)
    events: list[AnyEvent] = [StateChanged(state="importing torch"), StateChanged(state="building"), started(depth)]
    events.append(StateChanged(state="running"))
    for step in range(last):
        if step == residual_at:
            events.append(turned(step, "off", "on"))
        events.append(reading(step, fall_at(step, residual_at), depth))
        events.append(steps(step, [loss_at(step, residual_at, noise)]))
        if step % 50 == 0:
            events.append(Evaluated(segment=0, step=step, loss=loss_at(step, residual_at, noise), accuracy=0.1))
    return events


def fall_at(step: int, residual_at: int) -> float:
    """The factor per layer: 0.35 before `residual_at`, 0.97 twenty steps after it."""
    open_ = min(1.0, max(0.0, (step - residual_at) / 20))
    return 0.35 ** (1 - open_) * 0.97**open_


class FakeKeeper:
    """`publish` sends events, `received` holds the commands. With `replies` it answers as a trainer would."""

    def __init__(self, socket: Path, *, before: Iterable[AnyEvent] = (), replies: bool = True) -> None:
        self.socket = socket
        self.history = History()
        self.replies = replies
        self.reject: str | None = None
        self.received: list[AnyCommand] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        for event in before:
            self.history.apply(event)

    async def __aenter__(self) -> FakeKeeper:
        self._server = await asyncio.start_unix_server(self._serve, self.socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections, as a killed keeper would."""
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.close()
            await self._server.wait_closed()
            self._server = None

    def publish(self, *events: AnyEvent) -> None:
        """Send events to the viewers."""
        for event in events:
            self.history.apply(event)
            for writer in self._writers:
                writer.write(codec.frame(event))

    @property
    def has_viewer(self) -> bool:
        """Whether a viewer has connected."""
        return bool(self._writers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = codec.FrameReader(codec.MAX_FROM_VIEWER)
        try:
            while data := await reader.read(65536):
                for body in frames.feed(data):
                    message = codec.decode(codec.from_viewer, body)
                    if isinstance(message, Hello):
                        self._greet(writer)
                    else:
                        self._answer(message)
        except ConnectionError:
            pass
        finally:
            writer.close()

    def _greet(self, writer: asyncio.StreamWriter) -> None:
        greeting: list[ToViewer] = [Welcome(version=codec.VERSION, client=CLIENT, run="r1"), self.history.send()]
        for message in greeting:
            writer.write(codec.frame(message))
        self._writers.append(writer)

    def _answer(self, request: Request) -> None:
        command = request.command
        self.received.append(command)
        if not self.replies:
            return
        step, number = self.history.steps, request.request
        if self.reject is not None:
            knob = command.knob if isinstance(command, TurnKnob) else ""
            self.publish(
                CommandRejected(
                    client=CLIENT, request=number, source="key", segment=0, step=step, knob=knob, reason=self.reject
                )
            )
            return
        match command:
            case TurnKnob():
                old = self.history.knobs.get(command.knob, "")
                self.publish(turned(step, old, command.value, knob=command.knob, request=number, client=CLIENT))
                return
            case Pause():
                self.publish(StateChanged(state="paused"))
            case Resume():
                self.publish(StateChanged(state="running"))
            case Mark():
                self.publish(Marked(segment=0, step=step, text=command.text))
            case Evaluate():
                self.publish(Evaluated(segment=0, step=step, loss=2.3, accuracy=0.1))
            case RunSteps():
                self.publish(Noted(step=step, text=f"{command.steps} steps"))
            case WatchCurvature():
                pass
            case Stop():
                self.publish(
                    StateChanged(state="stopping"), RunEnded(status="stopped", step=step, loss=2.3, accuracy=0.1)
                )
        self.publish(
            CommandDone(client=CLIENT, request=number, segment=0, step=step, what=type(command).__name__.lower())
        )


def history(events: list[AnyEvent]) -> History:
    made = History()
    for event in events:
        made.apply(event)
    return made


def view(events: list[AnyEvent], **look: object) -> View:
    return View(history=history(events), **look)  # type: ignore[arg-type]
