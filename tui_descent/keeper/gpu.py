"""Readings of the GPU from NVIDIA's driver: utilisation, memory, power, temperature. A run works without them.

`pynvml` (extra `gpu`) is imported at the first event about a GPU, so it is never imported on a machine without one.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tui_descent.protocol.events import AnyEvent, DeviceTaken, Gpu, Noted

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
_NUMBER = re.compile(r"\s*[+-]?\d+")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why there are no readings of a GPU. The user reads this text."""

    reason: str


def _pynvml() -> Any:
    return importlib.import_module("pynvml")


class Gpus:
    """The machine's NVIDIA GPUs. `nvml` imports the `pynvml` module. `env` stands for the trainer's environment."""

    def __init__(self, nvml: Callable[[], Any] = _pynvml, env: Mapping[str, str] = os.environ) -> None:
        self._import = nvml
        self._env = env
        self._nvml: Any = None
        self._handles: dict[tuple[str, str | None], Any] = {}
        self._reported_reason = ""

    def complete(self, event: DeviceTaken) -> Iterator[AnyEvent]:
        """Yield the event with the driver's readings added.

        If there are no readings, yield a note first that says why, but only once.
        """
        if not event.device.startswith("cuda"):
            yield event
            return
        gpu = self.read(event)
        if not isinstance(gpu, Unreadable):
            yield msgspec.structs.replace(event, gpu=gpu)
            return
        if gpu.reason != self._reported_reason:
            self._reported_reason = gpu.reason
            yield Noted(step=event.step, text=f"no GPU readings: {gpu.reason}")
        yield event

    def read(self, taken: DeviceTaken) -> Gpu | Unreadable:
        """The driver's readings of the event's GPU. A value that the driver does not give is None."""
        key = taken.device, taken.uuid
        if key not in self._handles:
            self._handles[key] = self._find(taken)
        handle = self._handles[key]
        if isinstance(handle, Unreadable):
            return handle
        nvml = self._nvml
        memory = self._query(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._query(nvml.nvmlDeviceGetUtilizationRates, handle)
        power = self._query(nvml.nvmlDeviceGetPowerUsage, handle)
        temperature = self._query(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        return Gpu(
            name=_text(self._query(nvml.nvmlDeviceGetName, handle) or "GPU"),
            utilisation=None if rates is None else rates.gpu / 100,
            used_bytes=None if memory is None else int(memory.used),
            total_bytes=None if memory is None else int(memory.total),
            power_w=None if power is None else power / 1000,
            temperature_c=None if temperature is None else float(temperature),
        )

    def _query(self, query: Callable[..., Any], *args: Any) -> Any:
        """The driver's answer, or None if it has no answer. For example, a MIG instance has no utilisation."""
        try:
            return query(*args)
        except self._nvml.NVMLError:
            return None

    def _find(self, taken: DeviceTaken) -> Any:
        """The driver's handle of a device, or `Unreadable`."""
        if self._nvml is None:
            try:
                nvml = self._import()
            except ImportError:
                return Unreadable("nvidia-ml-py is not installed: pip install 'tui-descent[gpu]'")
            try:
                nvml.nvmlInit()
            except nvml.NVMLError as error:
                return Unreadable(f"NVIDIA's driver does not respond: {error}")
            self._nvml = nvml
        try:
            return self._by_uuid(taken.uuid) if taken.uuid is not None else self._by_index(taken.device)
        except self._nvml.NVMLError as error:
            return Unreadable(f"{taken.device}: {error}")

    def _by_uuid(self, uuid: str) -> Any:
        # torch gives the UUID without its prefix. The prefix is different for a whole GPU and for a MIG instance.
        names = [uuid] if uuid.startswith(("GPU-", "MIG-")) else [f"GPU-{uuid}", f"MIG-{uuid}"]
        for name in names[:-1]:
            handle = self._query(self._nvml.nvmlDeviceGetHandleByUUID, name)
            if handle is not None:
                return handle
        return self._nvml.nvmlDeviceGetHandleByUUID(names[-1])

    def _by_index(self, device: str) -> Any:
        nvml = self._nvml
        handles = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        listed = self._env.get(VISIBLE)
        shown = visible(listed, [_text(nvml.nvmlDeviceGetUUID(h)) for h in handles])
        _, _, number = device.partition(":")
        index = int(number or 0)
        if index >= len(shown):
            seen = f"{VISIBLE}={listed}" if listed is not None else f"{len(handles)} GPUs"
            return Unreadable(f"{device} is not among the GPUs that the driver lists ({seen})")
        by_number = listed is None or not listed.startswith(("GPU-", "MIG-"))
        kinds = {_text(nvml.nvmlDeviceGetName(h)) for h in handles}
        if by_number and len(kinds) > 1 and self._env.get(ORDER) != "PCI_BUS_ID":
            # CUDA numbers GPUs from the fastest, the driver in bus order. The two numberings agree only if all GPUs are
            # of the same kind.
            return Unreadable(f"cannot tell which of {len(handles)} different GPUs is {device}; set {ORDER}=PCI_BUS_ID")
        return nvml.nvmlDeviceGetHandleByUUID(shown[index])


def visible(listed: str | None, uuids: Sequence[str]) -> list[str]:
    """The UUIDs of the GPUs that a process sees as `cuda:0`, `cuda:1`, …

    `listed` is CUDA_VISIBLE_DEVICES, `uuids` are all GPUs in the driver's order. The list is read as CUDA reads it: the
    first invalid entry ends it, a repeated GPU empties it, and a UUID may be shortened as long as it is unambiguous.
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
        index = int(number.group()) if number else -1
        return uuids[index] if 0 <= index < len(uuids) else None
    if not entry.startswith(prefix):
        return None
    if prefix == "MIG-":
        return entry  # cannot be looked up, because `uuids` has only whole GPUs
    alike = [uuid for uuid in uuids if uuid.startswith(entry)]
    return alike[0] if len(alike) == 1 else None


def _text(value: str | bytes) -> str:
    """The value as text; older releases of pynvml return bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
