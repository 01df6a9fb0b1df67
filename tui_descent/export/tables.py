"""A record as a table of its steps (CSV), or as the lines that `--json` prints."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from tui_descent.protocol.events import (
    AnyEvent,
    Evaluated,
    LaneSteps,
    MetricLogged,
    RunStarted,
    StepsCompleted,
)
from tui_descent.telemetry.jsonl import JsonLines
from tui_descent.telemetry.record import Record

STEP_COLUMNS = ("segment", "step", "loss", "lr", "time_s", "skipped")
Values = dict[str, float]

if TYPE_CHECKING:
    from _csv import Writer as CsvWriter


def write_jsonl(record: Record, out: TextIO) -> None:
    """Write every event as a line of JSON."""
    lines = JsonLines()
    for event in record.events():
        out.writelines(f"{line}\n" for line in lines.lines(event))


def write_csv(record: Record, out: TextIO) -> None:
    """Write one line per step, in the order in which the steps were made.

    Further columns have the evaluations and what the user's loop logged. Such a value has a line of its own if no step
    with its number follows, as after the last step. A race has one line per step of a lane, with the lane's name.
    """
    lanes: tuple[str, ...] = ()
    metrics: dict[str, None] = {}
    for event in record.events():
        metrics |= dict.fromkeys(values_of(event))
        if isinstance(event, RunStarted) and event.lanes:
            lanes = tuple(lane.name for lane in event.lanes)
    if lanes:
        _write_lanes(record, lanes, csv.writer(out, lineterminator="\n"))
        return
    table = csv.DictWriter(out, (*STEP_COLUMNS, *metrics), lineterminator="\n")
    table.writeheader()
    waiting: dict[tuple[int, int], Values] = {}  # what was measured before steps that are not written yet
    for event in record.events():
        if isinstance(event, StepsCompleted):
            for row in _rows(event):
                table.writerow(row | waiting.pop((event.segment, row["step"]), {}))
        elif values := values_of(event):
            assert isinstance(event, Evaluated | MetricLogged)
            if (event.segment, event.step) not in waiting:
                _write_waiting(table, waiting)
                waiting[event.segment, event.step] = {}
            waiting[event.segment, event.step].update(values)
    _write_waiting(table, waiting)


def values_of(event: AnyEvent) -> Values:
    """What was evaluated or logged at a step, by name."""
    if isinstance(event, MetricLogged):
        return {event.name: event.value}
    if isinstance(event, Evaluated):
        return {"evaluated_loss": event.loss} | (
            {} if event.accuracy is None else {"evaluated_accuracy": event.accuracy}
        )
    return {}


def _rows(event: StepsCompleted) -> Iterator[dict[str, Any]]:
    skipped = set(event.skipped)
    for n, loss in enumerate(event.losses):
        step = event.first + n
        yield {
            "segment": event.segment,
            "step": step,
            "loss": loss,
            "lr": event.lrs[n],
            "time_s": round(event.times_s[n], 4),
            "skipped": int(step in skipped),
        }


def _write_waiting(table: csv.DictWriter[str], waiting: dict[tuple[int, int], Values]) -> None:
    for (segment, step), values in waiting.items():
        table.writerow({"segment": segment, "step": step, **values})
    waiting.clear()


def _write_lanes(record: Record, lanes: tuple[str, ...], table: CsvWriter) -> None:
    table.writerow(("lane", "step", "loss"))
    for event in record.events():
        if isinstance(event, LaneSteps):
            table.writerows((lanes[event.lane], event.first + n, loss) for n, loss in enumerate(event.losses))
