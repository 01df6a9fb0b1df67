"""What is known of the device that is trained on, in phrases and as a curve: shared by status and story."""

from __future__ import annotations

import math

from tui_descent.dashboard.text.numbers import size
from tui_descent.dashboard.text.safe_text import plain
from tui_descent.telemetry.history import History

_EIGHTHS = "▁▂▃▄▅▆▇█"
MEMORY, BUSY = 0, 1


def phrases(history: History) -> tuple[str, str, str]:
    """`mem 1.2 GB`, `GPU 87 %`, `61 °C 240 W`; empty what is not known."""
    taken = history.device
    if taken is None:
        return "", "", ""
    memory = f"mem {size(taken.allocated_bytes)}" if taken.allocated_bytes is not None else ""
    gpu = taken.gpu
    if gpu is None:
        return memory, "", ""
    figures = [
        f"{gpu.temperature_c:.0f} °C" if gpu.temperature_c is not None else "",
        f"{gpu.power_w:.0f} W" if gpu.power_w is not None else "",
    ]
    busy = f"GPU {100 * gpu.utilisation:.0f} %" if gpu.utilisation is not None else ""
    return memory, busy, " ".join(filter(None, figures))


def facts(history: History, width: int) -> list[str]:
    """Lines for where there is room: memory now and at most, the GPU, and each one's course over the run."""
    taken = history.device
    if taken is None:
        return []
    kind = "resident memory" if taken.device == "cpu" else f"memory on {plain(taken.device, 20)}"
    told = [size(taken.allocated_bytes)] if taken.allocated_bytes is not None else []
    told += [f"at most {size(taken.peak_bytes)}"] if taken.peak_bytes is not None else []
    lines = [f"{kind} {', '.join(told)}"] if told else []
    gpu = taken.gpu
    if gpu is not None and gpu.used_bytes is not None and gpu.total_bytes is not None:
        lines.append(f"{plain(gpu.name, 40)}, {size(gpu.used_bytes)} of {size(gpu.total_bytes)} taken by all")
    for title, channel in (("memory", MEMORY), ("GPU", BUSY)):
        curve = course(history, channel, max(8, width - 8))
        if curve.strip():
            lines.append(f"{title:<7}{curve}")
    return lines


def course(history: History, channel: int, columns: int) -> str:
    """A curve of one row over the segment's steps, from 0 up to the greatest value, or to 1 for a share."""
    pyramid = history.devices.get(history.segment)
    if not pyramid:
        return ""
    width = 1
    while history.steps / width > columns:
        width *= 2
    known = {n: v[channel] for n, v in pyramid.window(width, 0, max(0, history.steps)) if not math.isnan(v[channel])}
    top = 1.0 if channel == BUSY else max(known.values(), default=0.0)
    if not known or top <= 0:
        return ""
    drawn, last = "", " "
    for n in range(max(known) + 1):
        # A reading comes once a second, a column may be less: the one before stands until the next.
        last = _EIGHTHS[min(7, int(known[n] / top * 8))] if n in known else last
        drawn += last
    return drawn
