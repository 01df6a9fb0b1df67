"""The memory that training takes: torch's own account on a GPU, the process's resident memory on a CPU."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from tui_descent.protocol.events import DeviceTaken

EVERY_S = 2.0
STATM = Path("/proc/self/statm")  # a tenth of what /proc/self/status takes to read


class DeviceMemory:
    """Of one device, the one the model's first parameter lies on. `due_s` is when the next look is due.

    No look waits for the device: torch keeps these figures on the host.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.due_s = 0.0
        # Told where torch knows it: it names the GPU whatever CUDA_VISIBLE_DEVICES was when torch was imported.
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None) if device.type == "cuda" else None
        self._uuid = None if uuid is None else str(uuid)

    def taken(self, segment: int, step: int, now_s: float) -> DeviceTaken:
        """Bytes in use now and at most so far; None where the system does not tell."""
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
    """The resident memory of this process, now and at most. Without Linux' /proc only the second is known."""
    greatest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform != "darwin":  # bytes on macOS, kibibytes elsewhere
        greatest *= 1024
    try:
        now = int(STATM.read_bytes().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return None, greatest
    return now, max(now, greatest)  # the system counts the two at different moments
