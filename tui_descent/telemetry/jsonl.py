"""Events as lines of JSON, for scripts: one object per line. NaN and infinities are strings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import msgspec

from tui_descent.protocol.events import (
    AnyEvent,
    CommandDone,
    CurvatureTaken,
    LaneEnded,
    LaneSteps,
    Layer,
    LayersChanged,
    LedgerTaken,
    LensTaken,
    ReadingsTaken,
    Rewound,
    RunStarted,
    SnapshotTaken,
    StepsCompleted,
    TaskTaken,
)
from tui_descent.protocol.layer_names import of_one_net
from tui_descent.scenario.metrics import first_to_last_grad

VERSION = 1


class JsonLines:
    """Turns a run's events into lines. It remembers the net's layers, because readings are written by layer name.

    Control characters are written by number. With `only_ascii`, so is every character that is not ASCII. With
    `replies`, every reply to a command has a line.
    """

    def __init__(self, *, only_ascii: bool = False, replies: bool = False) -> None:
        self._only_ascii, self._replies = only_ascii, replies
        self._layers: tuple[Layer, ...] = ()
        self._structure = 0
        self._nets: tuple[str, ...] = ()
        self._lanes: tuple[str, ...] = ()
        self._first = True

    def lines(self, event: AnyEvent) -> Iterator[str]:
        """The lines of one event: one per step for a `StepsCompleted` or a `LaneSteps`, one for most others.

        There is none for a `TaskTaken` or a `LensTaken`, which are for screens only, nor, without `replies`, for a
        `CommandDone`.
        """
        for table in self._tables(event):
            if self._first:
                table = {"v": VERSION, **table}
                self._first = False
            line = json.dumps(_plain(table), ensure_ascii=self._only_ascii, separators=(",", ":"))
            yield line if line.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)

    def _tables(self, event: AnyEvent) -> Iterator[dict[str, Any]]:
        match event:
            case CommandDone() if self._replies:
                yield _table(event)
            case CommandDone() | TaskTaken() | LensTaken() | LedgerTaken(entries=[]):
                return
            case StepsCompleted():
                yield from _steps(event)
            case LaneSteps():
                for step, loss in enumerate(event.losses, event.first):
                    yield {"event": "lane_step", "lane": self._lanes[event.lane], "step": step, "loss": loss}
            case LaneEnded():
                yield _lane_ended(event)
            case ReadingsTaken():
                yield self._reading(event)
            case RunStarted():
                self._layers, self._nets = event.layers, event.nets
                self._lanes = tuple(lane.name for lane in event.lanes)
                yield _table(event)
            case LayersChanged():
                self._layers, self._structure = event.layers, event.structure
                yield _table(event)
            case CurvatureTaken():
                yield _curvature(event)
            case SnapshotTaken():
                place = {"segment": event.segment, "step": event.step}
                yield {"event": "snapshot", **place, "reason": event.reason}
            case Rewound():
                yield _rewound(event)
            case _:
                yield _table(event)

    def _reading(self, event: ReadingsTaken) -> dict[str, Any]:
        layers = self._layers if event.structure == self._structure else ()
        rows = [
            {"name": layer.name}
            | ({} if layer.not_measured is None else {"not_measured": layer.not_measured})
            | {metric: values[n] for metric, values in event.values.items() if values[n] is not None}
            | {"age": event.ages[n]}
            for n, layer in enumerate(layers)
        ]
        table: dict[str, Any] = {"event": "reading", "segment": event.segment, "step": event.step, "layers": rows}
        table["global_grad_norm"] = event.global_grad_norm
        if event.grad_norm_preclip is not None:
            table["grad_norm_preclip"] = event.grad_norm_preclip
        if (ratio := first_to_last_grad(of_one_net(layers, self._nets), event)) is not None:
            table["first_to_last_grad"] = ratio
        table["watch_cost"] = round(event.watch_cost, 6)
        return table


def _steps(event: StepsCompleted) -> Iterator[dict[str, Any]]:
    for n, loss in enumerate(event.losses):
        step = event.first + n
        table = {
            "event": "step",
            "segment": event.segment,
            "step": step,
            "loss": loss,
            "lr": event.lrs[n],
            "time_s": round(event.times_s[n], 6),
        }
        if math.isnan(event.lrs[n]):
            del table["lr"]  # the optimizer sets its own rate
        yield table | {"skipped": True} if step in event.skipped else table


def _lane_ended(event: LaneEnded) -> dict[str, Any]:
    table = _table(event) | {"lane": event.name, "reached": event.reached}
    del table["name"]
    return table


def _curvature(event: CurvatureTaken) -> dict[str, Any]:
    read, limit, scaled = event.hessian, event.limit, event.scaled
    table = {
        "event": "curvature",
        "segment": event.segment,
        "step": event.step,
        "sharpness": read.lambda_max,
        "lambda_min": read.lambda_min,
        "negative_fraction": read.negative_fraction,
        "how": read.how,
        "converged": read.converged,
        "residuals": [read.residual_max, read.residual_min],
        "parameters": read.parameters,
        "stability_limit": None if limit is None else limit.lambda_max,
        "limit": None if limit is None else limit.formula,
        "preconditioned_sharpness": None if scaled is None else scaled.lambda_max,
        "edge": event.edge,
        "products": read.products + (0 if scaled is None else scaled.products),
        "seconds": round(event.seconds, 6),
    }
    return {key: value for key, value in table.items() if value is not None}


def _rewound(event: Rewound) -> dict[str, Any]:
    change = "resumed" if event.resumed else "undone" if event.back else "redone"
    return {
        "event": "rewound",
        "from": {"segment": event.from_segment, "step": event.from_step},
        "to": {"segment": event.to_segment, "step": event.to_step},
        "segment": event.segment,
        "step": event.step,
        change: event.what,
    }


def _table(event: AnyEvent) -> dict[str, Any]:
    table: dict[str, Any] = msgspec.to_builtins(event)
    for private in ("client", "request"):
        table.pop(private, None)
    for layer in table.get("layers", ()):
        if layer["not_measured"] is None:
            del layer["not_measured"]
    for name, usual in (("turns", 1), ("silent_s", 0)):
        if table.get(name) == usual:
            del table[name]
    return {key: value for key, value in table.items() if value not in (None, [], ()) or key == "layers"}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
