"""The memory that training uses: torch's own figures on a GPU, the process's resident memory on a CPU."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from tui_descent.protocol.events import DeviceTaken

EVERY_S = 2.0
STATM = Path("/proc/self/statm")  # ten times faster to read than /proc/self/status


class DeviceMemory:
    """Memory in use on one device. `due_s` is the monotonic time at which the next measurement is due.

    Measuring never waits for the device: torch keeps these figures on the host.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.due_s = 0.0
        # The UUID identifies the GPU even when CUDA_VISIBLE_DEVICES renumbers the devices.
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None) if device.type == "cuda" else None
        self._uuid = None if uuid is None else str(uuid)

    def measure(self, segment: int, step: int, now_s: float) -> DeviceTaken:
        """Bytes in use now and at the peak; None where the system does not report them."""
        self.due_s = now_s + EVERY_S
        allocated: int | None
        peak: int | None
        if self.device.type == "cuda":
            allocated, peak = torch.cuda.memory_allocated(self.device), torch.cuda.max_memory_allocated(self.device)
        elif self.device.type == "mps":
            allocated, peak = torch.mps.current_allocated_memory(), None
        else:
            allocated, peak = resident_bytes()
        return DeviceTaken(
            segment=segment,
            step=step,
            device=str(self.device),
            allocated_bytes=allocated,
            peak_bytes=peak,
            uuid=self._uuid,
        )


def resident_bytes() -> tuple[int | None, int | None]:
    """Resident memory of this process in bytes, now and at its peak. Without Linux's /proc only the peak is known."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform != "darwin":  # bytes on macOS, kibibytes elsewhere
        peak *= 1024
    try:
        now = int(STATM.read_bytes().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return None, peak
    return now, max(now, peak)  # the system updates the two figures at different times
