"""The wheel is complete: it contains the presets and the data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tui_descent import __version__
from tui_descent.scenario import presets

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 300


def call(command: Sequence[str | Path], *, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    call([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT], cwd=out)
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_contains_code_presets_data_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"tui_descent-{__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    for name in presets.names():
        assert f"tui_descent/presets/{name}.toml" in names
    for name in (
        "py.typed",
        "dashboard/dashboard.tcss",
        "training/setup/data/digits.xz",
        "training/setup/data/DIGITS.md",
        "scenario/own_data/samples/sonnets.txt",
        "scenario/own_data/samples/two-fields.csv",
        "scenario/own_data/samples/shapes-images-idx3-ubyte.gz",
        "scenario/own_data/samples/shapes-labels-idx1-ubyte.gz",
    ):
        assert f"tui_descent/{name}" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"tui_descent"}
    assert not [name for name in names if name.endswith(".pyc") or "conftest" in name]
    assert not [name for name in names if any(part.startswith(("test_", "tests")) for part in name.split("/"))]


def test_the_installed_wheel_runs_without_the_checkout(wheel: Path, home: Path) -> None:
    target = home / "installed"
    call([sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", target, wheel], cwd=home)
    env = {"PYTHONPATH": str(target)}
    where = call([sys.executable, "-c", "import tui_descent; print(tui_descent.__file__)"], cwd=home, **env)
    assert Path(where.strip()).is_relative_to(target)
    listed = call([sys.executable, "-m", "tui_descent", "presets"], cwd=home, **env)
    assert [line.split()[0] for line in listed.splitlines()] == presets.names()
    words = ("healthy", "--steps", "3", "--headless", "--json")  # it needs the digits
    out = call([sys.executable, "-m", "tui_descent", *words], cwd=home, **env)
    assert json.loads(out.splitlines()[-1])["status"] == "finished"


@pytest.mark.heavy
def test_a_fresh_environment_installs_and_runs_it(wheel: Path, home: Path) -> None:
    call([sys.executable, "-m", "venv", home / "venv"], cwd=home)
    python = home / "venv" / "bin" / "python"
    call([python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel], cwd=home)
    command = home / "venv" / "bin" / "tui-descent"
    assert call([command, "--version"], cwd=home).startswith(f"tui-descent {__version__}\n")
    out = call([command, "first-descent", "--headless", "--json"], cwd=home)
    ended = json.loads(out.splitlines()[-1])
    assert (ended["status"], ended["step"]) == ("finished", 10)
    assert abs(ended["position"][0] - 1.4999999488) < 1e-12
