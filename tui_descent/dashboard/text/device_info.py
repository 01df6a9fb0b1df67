"""The training device's memory and GPU load, as text for the status line and the scenario panel."""

from __future__ import annotations

import math

from tui_descent.dashboard.text.numbers import byte_size
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.telemetry.history import History

_EIGHTHS = "▁▂▃▄▅▆▇█"
MEMORY, BUSY = 0, 1


def status_texts(history: History) -> tuple[str, str, str]:
    """`mem 1.2 GB`, `GPU 87 %` and `61 °C 240 W`; a text is empty if its values are not known."""
    taken = history.device
    if taken is None:
        return "", "", ""
    memory = f"mem {byte_size(taken.allocated_bytes)}" if taken.allocated_bytes is not None else ""
    gpu = taken.gpu
    if gpu is None:
        return memory, "", ""
    figures = [
        f"{gpu.temperature_c:.0f} °C" if gpu.temperature_c is not None else "",
        f"{gpu.power_w:.0f} W" if gpu.power_w is not None else "",
    ]
    busy = f"GPU {100 * gpu.utilisation:.0f} %" if gpu.utilisation is not None else ""
    return memory, busy, " ".join(filter(None, figures))


def detail_lines(history: History, width: int) -> list[str]:
    """Current and peak memory, the GPU's memory, and sparklines of memory and GPU load over the run."""
    taken = history.device
    if taken is None:
        return []
    kind = "resident memory" if taken.device == "cpu" else f"memory on {safe(taken.device, 20)}"
    sizes = [byte_size(taken.allocated_bytes)] if taken.allocated_bytes is not None else []
    sizes += [f"peak {byte_size(taken.peak_bytes)}"] if taken.peak_bytes is not None else []
    lines = [f"{kind} {', '.join(sizes)}"] if sizes else []
    gpu = taken.gpu
    if gpu is not None and gpu.used_bytes is not None and gpu.total_bytes is not None:
        lines.append(
            f"{safe(gpu.name, 40)}, {byte_size(gpu.used_bytes)} of {byte_size(gpu.total_bytes)} used by all processes"
        )
    for title, channel in (("memory", MEMORY), ("GPU", BUSY)):
        top = "100 %" if channel == BUSY else byte_size(round(largest(history, channel)))
        scale = f"{title} 0 … {top} "
        curve = sparkline(history, channel, max(8, width - len(scale)))
        if curve.strip():
            lines.append(f"{scale}{curve}")
    return lines


def largest(history: History, channel: int) -> float:
    """The upper end of a sparkline's scale: 1 for GPU load, otherwise the largest value of the segment. 0 if there are
    no values.
    """
    pyramid = history.devices.get(history.segment)
    if not pyramid:
        return 0.0
    known = [v[channel] for _, v in pyramid.window(1, 0, max(0, history.steps)) if not math.isnan(v[channel])]
    return 1.0 if channel == BUSY and known else max(known, default=0.0)


def sparkline(history: History, channel: int, columns: int) -> str:
    """One row of bars over the segment's steps, on a scale from 0 to `largest`."""
    pyramid = history.devices.get(history.segment)
    if not pyramid:
        return ""
    width = 1
    while history.steps / width > columns:
        width *= 2
    known = {n: v[channel] for n, v in pyramid.window(width, 0, max(0, history.steps)) if not math.isnan(v[channel])}
    top = largest(history, channel)
    if not known or top <= 0:
        return ""
    drawn, last = "", " "
    for n in range(max(known) + 1):
        # Readings come once a second. A column without a reading repeats the last one.
        last = _EIGHTHS[min(7, int(known[n] / top * 8))] if n in known else last
        drawn += last
    return drawn
