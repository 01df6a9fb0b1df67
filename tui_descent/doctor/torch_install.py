"""Checks Python, the packages, torch and its devices. torch is imported by a child process."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tui_descent import free_memory
from tui_descent.doctor.checks import Check
from tui_descent.protocol.launch import module_environment

WITHIN_S = 120.0
SLOW_S = 15.0
LEAST_MEMORY = 500_000_000  # torch alone takes 220 MB
IMPORT = f"{sys.executable} -c 'import torch'"
# Prints one line of JSON. Each device is used once, because a driver may fail only then.
PROBE = """
import json, os, time
begun = time.monotonic()
import torch
took_s = time.monotonic() - begun
devices = {}
def use(name, about):
    try:
        assert float((torch.ones(2, device=name) + 1).sum()) == 4.0
        devices[name] = [True, about]
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        devices[name] = [False, f"{type(error).__name__}: {lines[0]}"]
use("cpu", torch.backends.cpu.get_cpu_capability())
for n in range(torch.cuda.device_count()):
    try:
        about = f"{torch.cuda.get_device_name(n)}, {torch.cuda.get_device_properties(n).total_memory / 1e9:.0f} GB"
    except Exception as error:
        about = type(error).__name__
    use(f"cuda:{n}", about)
if torch.backends.mps.is_available():
    use("mps", "")
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
print("\\n" + json.dumps({
    "version": torch.__version__, "took_s": took_s, "threads": torch.get_num_threads(), "cores": cores,
    "devices": devices, "cuda_build": torch.version.cuda,
}))
"""


def checks() -> Iterator[Check]:
    """All checks of what is installed."""
    yield Check("Python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield packages()
    yield memory(free_memory.free_bytes())
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=WITHIN_S,
            check=False,
            env=module_environment(),
        )
    except subprocess.TimeoutExpired:
        yield Check("torch", "bad", f"import torch has not ended within {WITHIN_S:.0f} s", "try:", IMPORT)
        return
    yield from of_torch(done.returncode, done.stdout, done.stderr)


def packages() -> Check:
    """Whether the packages for the dashboard are there."""
    found, missing = [], []
    for name in ("textual", "plotext", "msgspec", "platformdirs"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        command = f"{sys.executable} -m pip install --upgrade tui-descent"
        return Check("packages", "bad", f"missing: {', '.join(missing)}", "install them:", command)
    return Check("packages", "ok", ", ".join(found))


def memory(free: int | None) -> Check:
    """Whether there is memory for a small run."""
    if free is None:
        return Check("memory", "ok", "not reported by this system")
    text = f"{free / 1e9:.1f} GB free"
    if free < LEAST_MEMORY:
        return Check("memory", "note", text, "a run takes at least 0.5 GB; close other programs")
    return Check("memory", "ok", text)


def of_torch(code: int, stdout: str, stderr: str) -> Iterator[Check]:
    """The checks from the exit code and the output of `PROBE`."""
    lines = stdout.strip().splitlines()
    report: Mapping[str, Any] | None = None
    if code == 0 and lines:
        report = json.loads(lines[-1])
    if report is None:
        why = (stderr.strip().splitlines() or [f"exit code {code}"])[-1][:200]
        yield Check("torch", "bad", f"cannot be imported: {why}", "try:", IMPORT)
        return
    found = f"{report['version']}, imported in {report['took_s']:.1f} s"
    slow = "a run begins only after that; is Python on a network drive?" if report["took_s"] > SLOW_S else ""
    yield Check("torch", "note" if slow else "ok", found, slow)
    cores = report["cores"]
    yield Check("threads", "ok", f"{max(1, cores - 1)} of {cores} core{'s' * (cores != 1)} by default")
    for name, (works, about) in report["devices"].items():
        if works:
            yield Check(name, "ok", about)
        else:
            advice = "torch does not work" if name == "cpu" else "use --device cpu, or repair its driver"
            yield Check(name, "bad" if name == "cpu" else "note", about, advice)
    if report["cuda_build"] and not any(name.startswith("cuda") for name in report["devices"]):
        yield Check("cuda", "ok", f"torch is built for CUDA {report['cuda_build']}, and finds no such device")
