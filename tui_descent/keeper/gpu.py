"""What NVIDIA's driver tells of the GPU that is trained on. Never a reason to fail: what is missing is a value.

`pynvml` (extra `gpu`) is imported when the first GPU is asked for, and never where there is none.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tui_descent.protocol.events import DeviceTaken, Gpu

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
_NUMBER = re.compile(r"\s*[+-]?\d+")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why there are no readings of a GPU, in words for a person."""

    reason: str


def _pynvml() -> Any:
    return importlib.import_module("pynvml")


class Gpus:
    """The machine's NVIDIA GPUs. `nvml` gives the module, `env` is the trainer's environment as far as it is known."""

    def __init__(self, nvml: Callable[[], Any] = _pynvml, env: Mapping[str, str] = os.environ) -> None:
        self._import = nvml
        self._env = env
        self._nvml: Any = None
        self._handles: dict[tuple[str, str | None], Any] = {}

    def read(self, taken: DeviceTaken) -> Gpu | Unreadable:
        """The driver's readings of the GPU an event of the trainer is about; None in each that it does not give."""
        key = taken.device, taken.uuid
        if key not in self._handles:
            self._handles[key] = self._find(taken)
        handle = self._handles[key]
        if isinstance(handle, Unreadable):
            return handle
        nvml = self._nvml
        memory = self._asked(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._asked(nvml.nvmlDeviceGetUtilizationRates, handle)
        power = self._asked(nvml.nvmlDeviceGetPowerUsage, handle)
        warm = self._asked(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        return Gpu(
            name=_text(self._asked(nvml.nvmlDeviceGetName, handle) or "GPU"),
            utilisation=None if rates is None else rates.gpu / 100,
            used_bytes=None if memory is None else int(memory.used),
            total_bytes=None if memory is None else int(memory.total),
            power_w=None if power is None else power / 1000,
            temperature_c=None if warm is None else float(warm),
        )

    def _asked(self, question: Callable[..., Any], *args: Any) -> Any:
        """The driver's answer; None where this GPU has none, as a part of a divided GPU has no utilisation."""
        try:
            return question(*args)
        except self._nvml.NVMLError:
            return None

    def _find(self, taken: DeviceTaken) -> Any:
        """The driver's handle of a device, or why there is none."""
        if self._nvml is None:
            try:
                nvml = self._import()
            except ImportError:
                return Unreadable("nvidia-ml-py is not installed: pip install 'tui-descent[gpu]'")
            try:
                nvml.nvmlInit()
            except nvml.NVMLError as error:
                return Unreadable(f"NVIDIA's driver does not answer: {error}")
            self._nvml = nvml
        try:
            return self._by_uuid(taken.uuid) if taken.uuid is not None else self._by_place(taken.device)
        except self._nvml.NVMLError as error:
            return Unreadable(f"{taken.device}: {error}")

    def _by_uuid(self, uuid: str) -> Any:
        # torch tells it bare; a part of a divided GPU goes by another prefix than a whole one.
        names = [uuid] if uuid.startswith(("GPU-", "MIG-")) else [f"GPU-{uuid}", f"MIG-{uuid}"]
        for name in names[:-1]:
            handle = self._asked(self._nvml.nvmlDeviceGetHandleByUUID, name)
            if handle is not None:
                return handle
        return self._nvml.nvmlDeviceGetHandleByUUID(names[-1])

    def _by_place(self, device: str) -> Any:
        nvml = self._nvml
        handles = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        listed = self._env.get(VISIBLE)
        shown = visible(listed, [_text(nvml.nvmlDeviceGetUUID(h)) for h in handles])
        _, _, number = device.partition(":")
        place = int(number or 0)
        if place >= len(shown):
            said = f"{VISIBLE}={listed}" if listed is not None else f"{len(handles)} GPUs"
            return Unreadable(f"{device} is not among the GPUs that the driver shows ({said})")
        by_number = listed is None or not listed.startswith(("GPU-", "MIG-"))
        kinds = {_text(nvml.nvmlDeviceGetName(h)) for h in handles}
        if by_number and len(kinds) > 1 and self._env.get(ORDER) != "PCI_BUS_ID":
            # CUDA numbers the fastest first, the driver by place on the bus; only among equals both are one.
            return Unreadable(
                f"which of {len(handles)} unlike GPUs {device} is, CUDA tells with {ORDER}=PCI_BUS_ID only"
            )
        return nvml.nvmlDeviceGetHandleByUUID(shown[place])


def visible(listed: str | None, uuids: Sequence[str]) -> list[str]:
    """The UUIDs of the GPUs that CUDA shows to a process, as `cuda:0`, `cuda:1`, …

    `listed` is CUDA_VISIBLE_DEVICES, `uuids` are all GPUs by place. As CUDA reads it: the first entry that names no GPU
    ends the list; one that comes twice empties it; a UUID may be cut as long as it is one GPU's alone.
    """
    if listed is None:
        return list(uuids)
    prefix = next((p for p in ("GPU-", "MIG-") if listed.startswith(p)), "")
    shown: list[str] = []
    for entry in listed.split(","):
        found = _named(entry.strip(), prefix, uuids)
        if found is None:
            break
        if found in shown:
            return []
        shown.append(found)
    return shown


def _named(entry: str, prefix: str, uuids: Sequence[str]) -> str | None:
    if not prefix:
        number = _NUMBER.match(entry)
        place = int(number.group()) if number else -1
        return uuids[place] if 0 <= place < len(uuids) else None
    if not entry.startswith(prefix):
        return None
    if prefix == "MIG-":
        return entry  # a part's own name; the list above names whole GPUs
    alike = [uuid for uuid in uuids if uuid.startswith(entry)]
    return alike[0] if len(alike) == 1 else None


def _text(value: str | bytes) -> str:
    """Older releases of the module answer in bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
