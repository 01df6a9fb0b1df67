"""Free memory: what the system has, its control groups, `ulimit -v`; and the command line refuses what does not fit."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tui_descent import cli, free_memory
from tui_descent.free_memory import free_bytes

GB = 10**9


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with 64 GB of available memory and no limits."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {64 * GB // 1024} kB\n")
    (tmp_path / "cgroups").write_text("")
    for name, file in (("MEMINFO", "meminfo"), ("CGROUPS", "cgroups"), ("STATM", "statm"), ("CGROUP_ROOT", "sys")):
        monkeypatch.setattr(free_memory, name, tmp_path / file)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return tmp_path


def group(folder: Path, *, first: bool = False, limit: str, used: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(limit + "\n")
    (folder / ("memory.usage_in_bytes" if first else "memory.current")).write_text(f"{used}\n")
    name = "total_inactive_file" if first else "inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{name} {cache}\n")


def test_without_limits_it_is_what_the_system_has(system: Path) -> None:
    assert free_bytes() == 64 * GB // 1024 * 1024


@pytest.mark.parametrize("path", ["/", "/user/run", "/user/run/deeper", "/../elsewhere"])
def test_limit_of_a_control_group_counts(system: Path, path: str) -> None:
    (system / "cgroups").write_text(f"0::{path}\n")
    group(system / "sys", limit=str(4 * GB), used=3 * GB, cache=GB)
    assert free_bytes() == 2 * GB


def test_smallest_limit_of_the_parents_counts(system: Path) -> None:
    (system / "cgroups").write_text("0::/a/b\n")
    group(system / "sys" / "a" / "b", limit="max", used=0)
    group(system / "sys" / "a", limit=str(8 * GB), used=7 * GB)
    group(system / "sys", limit=str(32 * GB), used=8 * GB)
    assert free_bytes() == GB


def test_limit_of_a_version_1_group_counts(system: Path) -> None:
    (system / "cgroups").write_text("5:cpu:/x\n4:memory:/box\n0::/\n")
    group(system / "sys" / "memory" / "box", first=True, limit=str(6 * GB), used=2 * GB, cache=GB // 2)
    assert free_bytes() == 4 * GB + GB // 2


@pytest.mark.parametrize("text", ["", "nonsense", "max"])
def test_unreadable_limit_is_no_limit(system: Path, text: str) -> None:
    (system / "cgroups").write_text("0::/\n")
    group(system / "sys", limit=text, used=1)
    assert free_bytes() == 64 * GB // 1024 * 1024


@pytest.mark.parametrize(("limit", "used", "left"), [(6 * GB, 0, 6 * GB), (6 * GB, GB, 5 * GB), (GB, 2 * GB, 0)])
def test_address_space_limit_counts(
    system: Path, monkeypatch: pytest.MonkeyPatch, limit: int, used: int, left: int
) -> None:
    page = resource.getpagesize()
    (system / "statm").write_text(f"{used // page} 1 1 1 0 1 0\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert abs(free_bytes() - left) < page


def test_used_up_group_leaves_nothing(system: Path) -> None:
    (system / "cgroups").write_text("0::/\n")
    group(system / "sys", limit=str(GB), used=2 * GB)
    assert free_bytes() == 0


@pytest.mark.parametrize(
    "sizes",
    [
        ("model.depth=2000", "model.width=8192"),
        ("model.depth=40", "model.width=8192", 'optimizer.name="adam"'),
        ("model.depth=2000", "model.width=2048"),
    ],
)
def test_run_that_does_not_fit_is_refused_in_one_line(
    system: Path, sizes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (system / "meminfo").write_text("MemAvailable: 5000000 kB\n")
    launched: list[object] = []
    monkeypatch.setattr(cli, "_launch", lambda args, **settings: launched.append(settings["force"]) or 0)
    command = ["run", "healthy", "--headless", *(word for size in sizes for word in ("--set", size)), "--device", "cpu"]
    assert cli.main(command) == cli.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tui-descent: healthy needs at least ")
    assert "; 5.1 GB is free; " in line
    assert not launched
    assert cli.main([*command, "--force"]) == 0
    assert launched == [True]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_presets_fit_into_a_small_machine(system: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tui_descent.scenario import presets

    (system / "meminfo").write_text("MemAvailable: 300000 kB\n")
    monkeypatch.setattr(cli, "_launch", lambda args, **settings: 0)
    for name in presets.names():
        assert cli.main(["run", name, "--headless", "--device", device]) == 0
