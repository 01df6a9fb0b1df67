"""Readings of the GPU, with a fake NVIDIA driver: no driver, several GPUs, every way to name one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from tui_descent.keeper.gpu import Gpus, Unreadable, visible
from tui_descent.protocol.events import DeviceTaken, Gpu

A, B, C = "GPU-aaaa1111", "GPU-aaaa2222", "GPU-cccc3333"
MIG = "MIG-dddd4444"


class Driver:
    """The part of `pynvml` that is used. A handle is a GPU's UUID."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, gpus: Mapping[str, str], *, there: bool = True, has_utilisation: bool = True) -> None:
        self.gpus, self.there, self.has_utilisation = gpus, there, has_utilisation
        self.inits = 0

    def nvmlInit(self) -> None:
        self.inits += 1
        if not self.there:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len([uuid for uuid in self.gpus if uuid.startswith("GPU-")])

    def nvmlDeviceGetHandleByIndex(self, n: int) -> str:
        return list(self.gpus)[n]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in self.gpus:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetName(self, handle: str) -> bytes:
        return self.gpus[handle].encode()

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(used=3_000, total=80_000)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        if not self.has_utilisation:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=87, memory=20)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 240_500

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return 61


def taken(device: str = "cuda:0", uuid: str | None = None) -> DeviceTaken:
    return DeviceTaken(segment=0, step=3, device=device, allocated_bytes=5, uuid=uuid)


def importing(driver: Driver) -> Callable[[], Any]:
    return lambda: driver


ORDERED = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
ALIKE = {A: "H200", B: "H200", C: "H200"}


def test_all_readings_of_the_driver_are_returned() -> None:
    found = Gpus(importing(Driver({A: "H200"})), {}).read(taken())
    assert found == Gpu(
        name="H200", utilisation=0.87, used_bytes=3_000, total_bytes=80_000, power_w=240.5, temperature_c=61.0
    )


def test_reading_that_a_gpu_lacks_is_none() -> None:
    found = Gpus(importing(Driver({A: "H200"}, has_utilisation=False)), {}).read(taken())
    assert isinstance(found, Gpu)
    assert found.utilisation is None
    assert found.power_w == 240.5


def test_missing_module_or_driver_is_reported_and_tried_once() -> None:
    imports = []

    def missing() -> Any:
        imports.append(1)
        raise ModuleNotFoundError("No module named 'pynvml'")

    gpus = Gpus(missing, {})
    for _ in range(3):
        found = gpus.read(taken())
        assert isinstance(found, Unreadable)
        assert "nvidia-ml-py is not installed" in found.reason
    driver = Driver({}, there=False)
    gpus = Gpus(importing(driver), {})
    for _ in range(3):
        found = gpus.read(taken())
        assert isinstance(found, Unreadable)
        assert "Driver Not Loaded" in found.reason
    assert (len(imports), driver.inits) == (1, 1)


@pytest.mark.parametrize(
    ("listed", "shown"),
    [
        (None, [A, B, C]),
        ("", []),
        ("-1", []),
        ("2,0", [C, A]),
        ("1, 2", [B, C]),
        ("0,-1,2", [A]),
        ("0,9,2", [A]),
        ("0,x,2", [A]),
        ("1gpu,2", [B, C]),
        ("0,0", []),
        ("NoDevFiles", []),
        (C, [C]),
        ("GPU-c", [C]),
        ("GPU-aaaa2,GPU-aaaa1", [B, A]),
        ("GPU-aaaa", []),  # ambiguous
        ("GPU-c,GPU-ffff,GPU-aaaa1", [C]),
        ("GPU-c,0", [C]),
        ("GPU-c,GPU-cccc", []),
        (f"{MIG},GPU-c", [MIG]),
    ],
)
def test_cuda_visible_devices_is_parsed_as_cuda_does(listed: str | None, shown: list[str]) -> None:
    assert visible(listed, [A, B, C]) == shown


def name_of(env: dict[str, str], device: str, uuid: str | None = None) -> str:
    found = Gpus(importing(Driver({name: name for name in (A, B, C, MIG)})), env | ORDERED).read(taken(device, uuid))
    assert isinstance(found, Gpu), found
    return found.name


@pytest.mark.parametrize(
    ("listed", "device", "wanted"),
    [("2,0", "cuda:0", C), ("2,0", "cuda:1", A), ("GPU-aaaa2", "cuda:0", B), (MIG, "cuda:0", MIG), ("1", "cuda", B)],
)
def test_gpu_is_found_by_its_index_in_the_list(listed: str, device: str, wanted: str) -> None:
    assert name_of({"CUDA_VISIBLE_DEVICES": listed}, device) == wanted


@pytest.mark.parametrize(("uuid", "wanted"), [("aaaa2222", B), (B, B), ("dddd4444", MIG)])
def test_uuid_from_the_trainer_takes_precedence_over_the_list(uuid: str, wanted: str) -> None:
    assert name_of({"CUDA_VISIBLE_DEVICES": "0"}, "cuda:0", uuid) == wanted


def test_missing_gpu_is_reported_not_raised() -> None:
    gpus = Gpus(importing(Driver(ALIKE)), {"CUDA_VISIBLE_DEVICES": "1"})
    beyond, unknown = gpus.read(taken("cuda:1")), gpus.read(taken("cuda:0", "ffff"))
    assert isinstance(beyond, Unreadable)
    assert "CUDA_VISIBLE_DEVICES=1" in beyond.reason
    assert isinstance(unknown, Unreadable)
    assert "Not Found" in unknown.reason


def test_among_different_gpus_an_index_needs_bus_order() -> None:
    different = {A: "T4", B: "H200"}
    guess = Gpus(importing(Driver(different)), {}).read(taken("cuda:0"))
    assert isinstance(guess, Unreadable)
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in guess.reason
    sure = Gpus(importing(Driver(different)), {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}).read(taken("cuda:1"))
    assert isinstance(sure, Gpu)
    assert sure.name == "H200"
    by_uuid = Gpus(importing(Driver(different)), {"CUDA_VISIBLE_DEVICES": "GPU-aaaa1"}).read(taken("cuda:0"))
    assert isinstance(by_uuid, Gpu)
    assert by_uuid.name == "T4"
