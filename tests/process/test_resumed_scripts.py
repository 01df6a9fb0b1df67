"""A user's script that was killed is started again: by `resume`, or by the user with an environment variable."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import WITHIN_S, environment, recorded, run
from torch import nn

from tui_descent import watch
from tui_descent.run_list import list_runs

SCRIPT = """\
import os, sys
import torch
from torch import nn
from tui_descent import watch

torch.manual_seed(0)
torch.set_num_threads(1)
x = torch.randn(400, 4)
model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.1), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
dies_at = 60 if not os.path.exists("died") and len(sys.argv) > 1 else -1
with watch(model, optimizer, name="script", state={"scheduler": scheduler}) as run:
    for step in range(run.resume(), 120):
        batch = x[step % 10 * 40:][:40]
        loss = (model(batch) - batch.sum(dim=1, keepdim=True)).square().mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step(); scheduler.step()
        with open("losses", "a") as file:
            file.write(f"{step} {loss.item().hex()}\\n")
        if step == 40:
            run.control._disk._due_s = 0.0
            run.progress.fast_steps = 0
        if step == dies_at:
            run.control._disk.wait()
            open("died", "w").close()
            os.kill(os.getpid(), 9)
        run.step(loss)
"""


BLIND = {
    "from tui_descent import watch\n": "",
    'with watch(model, optimizer, name="script", state={"scheduler": scheduler}) as run:': "if True:",
    "run.resume()": "0",
    "run.control._disk._due_s = 0.0": "pass",
    "run.progress.fast_steps = 0": "pass",
    "run.step(loss)": "pass",
}


def losses(folder: Path) -> dict[str, str]:
    return dict(line.split() for line in (folder / "losses").read_text().splitlines())


@pytest.fixture
def folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the script."""
    folder = home / "project"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    monkeypatch.chdir(folder)
    return folder


def expected(folder: Path) -> dict[str, str]:
    """The losses of the same loop without us."""
    (folder / "losses").unlink()
    script = SCRIPT
    for ours, plain in BLIND.items():
        script = script.replace(ours, plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train.py"])
        exec(script, {})
    return losses(folder)


def test_script_of_exec_is_started_again_in_its_folder(folder: Path, home: Path, tmp_path: Path) -> None:
    first = run("exec", "--json", "--", sys.executable, "train.py", "mortal")
    assert first.code == 4
    name = str(first.events("run_started")[0]["run"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        second = run("resume", name, "--json")
    assert second.code == 0, second.stderr
    (rewound,) = second.events("rewound")
    assert rewound["resumed"] == "resumed from the snapshot of step 41"
    made = losses(folder)
    assert made == expected(folder)
    assert recorded(home) == [("finished", 120)]


@pytest.mark.heavy
def test_script_of_its_own_is_resumed_by_name(folder: Path, home: Path) -> None:
    killed = subprocess.run([sys.executable, "train.py", "mortal"], timeout=WITHIN_S, env=environment(), check=False)
    assert killed.returncode == -9
    run_folder = list_runs()[0]
    end_s = time.monotonic() + WITHIN_S
    while list_runs()[0].live and time.monotonic() < end_s:
        time.sleep(0.05)  # until its keeper has ended
    advice = run("resume", run_folder.run, "--json")
    assert f"when its script is started again: TUI_DESCENT_RESUME={run_folder.run} python" in advice.stderr
    again = [sys.executable, "train.py"]
    resumed = environment() | {"TUI_DESCENT_RESUME": run_folder.run}
    done = subprocess.run(again, timeout=WITHIN_S, env=resumed, check=True, capture_output=True, text=True)
    assert "tui-descent: resumed from the snapshot of step 41" in done.stderr
    made = losses(folder)
    assert made == expected(folder)


def test_unknown_run_is_refused_before_training(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUI_DESCENT_RESUME", "nobody")
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="TUI_DESCENT_RESUME: there is no run"):
        watch(model, torch.optim.SGD(model.parameters(), lr=0.1))
