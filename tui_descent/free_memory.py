"""How much memory this process can still get: what the system has left, limited by the process's cgroup and by `ulimit
-v`.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

MEMINFO, STATM = Path("/proc/meminfo"), Path("/proc/self/statm")
CGROUPS, CGROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def free_bytes() -> int | None:
    """Bytes that can still be allocated without swapping; None if the system does not report this."""
    return min((size for size in (_available(), _address_space(), *_cgroup_rooms()) if size is not None), default=None)


def _available() -> int | None:
    """Linux's `MemAvailable`; elsewhere all memory of the machine."""
    found = _numbers(MEMINFO).get("MemAvailable:")
    if found is not None:
        return found * 1024
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _address_space() -> int | None:
    """Bytes that `ulimit -v` still allows."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    used = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        used = int(STATM.read_text().split()[0]) * resource.getpagesize()
    return max(0, limit - used)


def _cgroup_rooms() -> Iterator[int]:
    """Bytes that the limits of this process's cgroup and its parents still allow. File caches count as free."""
    for folder, limit, used, cache in _cgroup_folders():
        try:
            most, now = int((folder / limit).read_text()), int((folder / used).read_text())
        except (OSError, ValueError):  # no such file, or `max`
            continue
        stat = _numbers(folder / "memory.stat")
        yield max(0, most - now + sum(stat.get(name, 0) for name in cache))


def _cgroup_folders() -> Iterator[tuple[Path, str, str, tuple[str, str]]]:
    """Folders of cgroups of version 2 and 1, each with the names of its files for limit and use, and with the names of
    the caches in `memory.stat`.
    """
    second = "memory.max", "memory.current", ("inactive_file", "active_file")
    first = "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
    try:
        lines = CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            root, names = (CGROUP_ROOT, second) if controllers == "" else (CGROUP_ROOT / "memory", first)
            # In a container, the path may be the host's, and the root is the container's own cgroup.
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for count in range(len(parts), -1, -1):
                yield (root.joinpath(*parts[:count]), *names)


def _numbers(path: Path) -> dict[str, int]:
    """The lines `name number …` of a file; empty if it cannot be read."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            words = line.split()
            if len(words) >= 2 and words[1].isdecimal():
                found[words[0]] = int(words[1])
    return found
