"""Which package may import which: the contracts, and the modules actually imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 120
HEAVY = {"torch", "textual", "rich", "plotext", "numpy"}
# Imports every module of the packages, then prints all imported modules: others in the first line, ours in the second.
LOAD = """
import importlib, pkgutil, sys
for name in sys.argv[1].split(","):
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
        importlib.import_module(found.name)
print(*sorted(n for n in sys.modules if n.partition(".")[0] != "tui_descent" and "." not in n))
print(*sorted(n for n in sys.modules if n.partition(".")[0] == "tui_descent"))
"""


def loaded(packages: str) -> tuple[set[str], set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", LOAD, packages], capture_output=True, text=True, timeout=WITHIN_S, check=True, cwd=ROOT
    )
    others, ours = done.stdout.splitlines()
    return set(others.split()), set(ours.split())


def test_the_import_contracts_hold() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(command)], capture_output=True, text=True, timeout=WITHIN_S, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("packages", "never"),
    [
        ("tui_descent.keeper", HEAVY),
        ("tui_descent.protocol,tui_descent.scenario,tui_descent.telemetry", HEAVY),
        ("tui_descent.cli,tui_descent.headless,tui_descent.verify,tui_descent.paths", HEAVY),
        ("tui_descent.doctor,tui_descent.export", HEAVY),
        ("tui_descent", HEAVY),
        ("tui_descent.dashboard", {"torch"}),
        ("tui_descent.training,tui_descent.instruments", {"textual", "rich", "plotext"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_heavy_modules_are_not_imported(packages: str, never: set[str]) -> None:
    if packages == "tui_descent":
        done = subprocess.run(
            [sys.executable, "-c", "import sys, tui_descent; print(*sys.modules)"],
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=True,
        )
        assert not never & set(done.stdout.split())
        return
    others, _ = loaded(packages)
    assert not others & never


def test_the_keeper_imports_only_protocol_scenario_and_telemetry() -> None:
    _, ours = loaded("tui_descent.keeper")
    packages = {name.split(".")[1] for name in ours if "." in name}
    assert packages <= {"keeper", "protocol", "scenario", "telemetry"}


def test_torch_is_imported_only_when_watch_is_used() -> None:
    code = (
        "import sys, tui_descent; assert 'torch' not in sys.modules; "
        "from tui_descent import watch, Watch, StopRun; assert 'torch' in sys.modules; "
        "assert 'textual' not in sys.modules; print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_plotext_is_imported_in_one_place() -> None:
    importers = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tui_descent").rglob("*.py")
        if any(line.strip().startswith(("import plotext", "from plotext")) for line in path.read_text().splitlines())
    ]
    assert importers == ["tui_descent/dashboard/charts/braille.py"]
