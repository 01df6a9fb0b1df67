"""Events, layers and histories for the tests."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence

from tui_descent.protocol.codec import HEADER, decode, frame, to_viewer
from tui_descent.protocol.curvature_reading import CurvatureReading, StabilityLimit
from tui_descent.protocol.events import (
    AnyEvent,
    CurvatureTaken,
    Evaluated,
    HistorySent,
    KnobState,
    KnobTurned,
    Layer,
    LedgerEntry,
    LedgerTaken,
    MetricLogged,
    ReadingsTaken,
    Rewound,
    RunStarted,
    StateChanged,
    StepsCompleted,
)
from tui_descent.telemetry.history import History


def layers(depth: int = 20, width: int = 32) -> tuple[Layer, ...]:
    """Those of a net of `depth` blocks, Linear(64, width) before and Linear(width, 10) after them."""
    inner = tuple(Layer(name=f"blocks.{n}.linear", kind="Linear", params=width * width, block=n) for n in range(depth))
    first = Layer(name="inlet", kind="Linear", params=64 * width)
    return (first, *inner, Layer(name="outlet", kind="Linear", params=width * 10))


def started(depth: int = 20, **changed: object) -> RunStarted:
    """The start of a run of the vanishing preset; `changed` replaces fields."""
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


def steps(
    first: int, losses: Iterable[float], *, per_s: float = 30.0, lr: float = 0.1, segment: int = 0
) -> StepsCompleted:
    """Updates with these losses, `per_s` a second."""
    values = list(losses)
    times = [(first + n) / per_s for n in range(len(values))]
    return StepsCompleted(segment=segment, first=first, losses=values, lrs=[lr] * len(values), times_s=times)


def reading_of(
    step: int, values: Mapping[str, Sequence[float | None]], *, segment: int = 0, **changed: object
) -> ReadingsTaken:
    """A reading with these values by metric; `changed` replaces fields."""
    rows = max(map(len, values.values()), default=0)
    fields: dict[str, object] = {"ages": [0] * rows, "global_grad_norm": 1.0, "watch_cost": 0.0}
    columns = {metric: list(column) for metric, column in values.items()}
    return ReadingsTaken(segment=segment, step=step, values=columns, **{**fields, **changed})  # type: ignore[arg-type]


def reading(step: int, fall: float, depth: int = 20, *, top: float = 2e-2) -> ReadingsTaken:
    """Gradients that shrink by a factor of `fall` from each layer to the one below it."""
    count = depth + 2
    rms = [top / 10 * fall ** (count - 1 - n) for n in range(count)]
    values: dict[str, list[float | None]] = {
        "grad_norm": [v * 10 for v in rms],
        "grad_rms": [*rms],
        "weight_norm": [5.7] * count,
        "update_norm": [*rms],
        "update_ratio": [v * 10 / 5.7 for v in rms],
        "backprop_factor": [fall] * (count - 1) + [None],
        "saturated_fraction": [None] + [0.02] * depth + [None],
    }
    return reading_of(step, values, global_grad_norm=top, watch_cost=0.006)


def ledger(step: int, factor: float, depth: int = 20, *, off: float = 1e-7) -> LedgerTaken:
    """Every block has the same factor."""
    entries = [
        LedgerEntry(block=f"blocks.{n}", factor=factor, autograd=factor, discrepancy=off, product=factor ** (depth - n))
        for n in range(depth)
    ]
    return LedgerTaken(segment=0, step=step, entries=entries)


def eigenvalues(high: float, low: float, **changed: object) -> CurvatureReading:
    """The extreme eigenvalues by Lanczos, converged; `changed` replaces fields."""
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
    """A reading of the curvature, with the stability limit of SGD."""
    return CurvatureTaken(
        segment=0,
        step=step,
        hessian=eigenvalues(high, low, **changed),
        limit=None if limit is None else StabilityLimit(lambda_max=limit, formula="2/η", preconditioned=False),
        seconds=0.05,
    )


def turned(step: int, old: str, new: str, *, knob: str = "residual", **changed: object) -> KnobTurned:
    """An intervention that took effect; `changed` replaces fields."""
    fields: dict[str, object] = {
        "id": 1,
        "client": 0,
        "request": 0,
        "source": "key",
        "segment": 0,
        "target": "all",
        "way": "ramp" if knob == "residual" else None,
        "function_change": 2.1e-7 if knob == "residual" else None,
    }
    return KnobTurned(step=step, knob=knob, old=old, new=new, **{**fields, **changed})  # type: ignore[arg-type]


def rewound(
    start: tuple[int, int],
    to: tuple[int, int],
    segment: int,
    *,
    back: bool,
    what: str = "norm",
    in_force: tuple[int, ...] = (),
    knobs: tuple[KnobState, ...] = (),
) -> Rewound:
    """An undo (`back`) or redo from (segment, step) `start` to `to`, as a new segment."""
    return Rewound(
        from_segment=start[0],
        from_step=start[1],
        to_segment=to[0],
        to_step=to[1],
        segment=segment,
        step=to[1],
        what=what,
        back=back,
        in_force=in_force,
        knobs=knobs,
    )


def loss_at(step: int, cure: int, noise: random.Random) -> float:
    """Flat at ln 10 until the cure, then falling to 0.06."""
    since = max(0, step - cure - 20)
    fall = math.exp(-since / 45)
    return max(0.01, (2.303 * fall + 0.06) * (1 + noise.uniform(-0.25, 0.25) * (1 - 0.9 * fall)))


def vanishing(until: int, cure: int = 150, depth: int = 20) -> list[AnyEvent]:
    """A run of the vanishing preset: nothing is learnt until residual connections are turned on."""
    noise = random.Random(3)
    events: list[AnyEvent] = [StateChanged(state="importing torch"), StateChanged(state="building"), started(depth)]
    events.append(StateChanged(state="running"))
    for step in range(until):
        if step == cure:
            events.append(turned(step, "off", "on"))
        events.append(reading(step, fall_at(step, cure), depth))
        events.append(steps(step, [loss_at(step, cure, noise)]))
        if step % 50 == 0:
            events.append(Evaluated(segment=0, step=step, loss=loss_at(step, cure, noise), accuracy=0.1))
    return events


def fall_at(step: int, cure: int) -> float:
    """The factor of a layer: 0.35 before the cure, 0.97 twenty steps after it."""
    open_ = min(1.0, max(0.0, (step - cure) / 20))
    return 0.35 ** (1 - open_) * 0.97**open_


def logged(until: int) -> list[AnyEvent]:
    """What a user's loop might log: a loss, an accuracy, a rate, and a value that is NaN at the end."""
    found: list[AnyEvent] = []
    for step in range(0, until, 5):
        share = step / until
        found.append(MetricLogged(segment=0, step=step, name="train/accuracy", value=0.95 - 0.8 * math.exp(-4 * share)))
        found.append(MetricLogged(segment=0, step=step, name="grad scale", value=65536.0 / 2 ** (step // 100)))
        if step % 50 == 0:
            found.append(MetricLogged(segment=0, step=step, name="val_loss", value=2.4 - 1.5 * share))
        if step % 20 == 0:
            value = math.nan if step >= until - 60 else 10.0 ** (-4 * share)
            found.append(MetricLogged(segment=0, step=step, name="kl", value=value))
    return found


def history_of(events: Iterable[AnyEvent]) -> History:
    """The history of these events."""
    made = History()
    for event in events:
        made.apply(event)
    return made


def sent(history: History) -> HistorySent:
    """The message that a viewer gets."""
    found = decode(to_viewer, frame(history.send())[HEADER.size :])
    assert isinstance(found, HistorySent)
    return found


def received(history: History) -> History:
    """The history of a viewer that was sent this one."""
    return History.receive(sent(history))
