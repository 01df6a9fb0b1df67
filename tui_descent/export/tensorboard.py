"""A record as an event file of TensorBoard. Needs the package `tensorboard`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tui_descent.export.tables import values_of
from tui_descent.protocol.events import LayersChanged, ReadingsTaken, RunStarted, StepsCompleted
from tui_descent.telemetry.record import Record

MISSING = "tensorboard is not installed; run: pip install 'tui-descent[tensorboard]'"
LAYER_METRICS = ("grad_norm", "update_ratio")  # the curves that each layer gets
MOST_POINTS = 20_000  # of the loss: every second, third, … step of longer runs is written


def write_tensorboard(record: Record, folder: Path) -> None:
    """Write the curves into an event file in `folder`: loss, rate, evaluations, metrics, and two for each layer.

    The curves of a segment after an undo begin where it began, so TensorBoard shows the abandoned steps too. Raises
    `ImportError` if the package is missing, and `OSError`.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder.mkdir(parents=True, exist_ok=True)
    began = record.about.started
    writer = EventFileWriter(str(folder))
    try:
        for tag, step, value, time_s in _scalars(record):
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Event(wall_time=began + time_s, step=step, summary=summary))
    finally:
        writer.close()


def _scalars(record: Record) -> Iterator[tuple[str, int, float, float]]:
    """The tag, step, value and time of each point."""
    total = record.about.step
    width = max(1, -(-total // MOST_POINTS))
    names: tuple[str, ...] = ()
    structure, time_s = 0, 0.0
    for event in record.events():
        place = getattr(event, "step", 0)
        match event:
            case RunStarted():
                names = tuple(layer.name for layer in event.layers)
            case LayersChanged():
                names, structure = tuple(layer.name for layer in event.layers), event.structure
            case StepsCompleted():
                time_s = event.times_s[-1]
                for n in range(-event.first % width, len(event.losses), width):
                    yield "loss", event.first + n, event.losses[n], event.times_s[n]
                    yield "lr", event.first + n, event.lrs[n], event.times_s[n]
            case ReadingsTaken() if event.structure == structure:
                yield "gradient norm", place, event.global_grad_norm, time_s
                for metric in LAYER_METRICS:
                    for name, value in zip(names, event.values.get(metric, ()), strict=False):
                        if value is not None:
                            yield f"{metric}/{name}", place, value, time_s
            case _:
                for name, value in values_of(event).items():
                    yield name.replace("evaluated_", "evaluated/"), place, value, time_s
