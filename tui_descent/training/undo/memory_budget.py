"""The default memory budget for a run's snapshots: a tenth of the free memory of their device, at most 2 GB."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

BUDGET_SHARE = 0.1  # of the free memory
MAX_BUDGET_BYTES = 2_000_000_000
MEMINFO = Path("/proc/meminfo")
FALLBACK_FREE_BYTES = 2_560_000_000  # if the system does not report its free memory


def default_budget(device: torch.device) -> int:
    """The budget in bytes for all snapshots together, from the memory that is free on `device` now."""
    return min(MAX_BUDGET_BYTES, int(BUDGET_SHARE * free_bytes(device)))


def free_bytes(device: torch.device) -> int:
    """Free memory of a CUDA GPU, of Metal, or else of the system."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return _available_bytes()


def bytes_needed(model: nn.Module, *optimizers: torch.optim.Optimizer) -> int:
    """The size in bytes of a snapshot of model and optimizers. No snapshot is taken."""
    tensors = [*model.parameters(), *model.buffers()]
    states = (state for optimizer in optimizers for state in optimizer.state.values() if isinstance(state, dict))
    tensors += [t for state in states for t in state.values() if isinstance(t, Tensor)]
    return sum(t.nbytes for t in tensors)


def _available_bytes() -> int:
    """Linux's `MemAvailable`: the memory that programs can get without swapping."""
    try:
        lines = MEMINFO.read_text().splitlines()
        kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(kibibytes) * 1024
    except (OSError, StopIteration, IndexError, ValueError):
        return FALLBACK_FREE_BYTES
