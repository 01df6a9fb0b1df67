"""With `--rollback`, a run whose loss is not finite or far too high goes back and on with half of the rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from killed_run import Run, launch_of, losses_of
from knob_turns import UserNet
from torch import nn

from tui_descent.protocol.events import KnobTurned, Noted, Rewound, RunEnded
from tui_descent.protocol.launch import Launch
from tui_descent.training.undo import disk_snapshots, state_on_disk
from tui_descent.training.undo.disk_snapshots import DiskSnapshots
from tui_descent.training.undo.snapshot_file import SnapshotError
from tui_descent.training.watch.watch import Watch


def hot(folder: Path, *, lr: float, depth: int = 3, optimizer: str = "sgd", **settings: Any) -> Launch:
    folder.mkdir(exist_ok=True)
    launch = launch_of(folder, **{"plan": (), "snapshot_every_s": None, **settings})
    assert launch.scenario is not None
    table = dict(launch.scenario)
    table["model"] = {**table["model"], "activation": {"name": "relu"}, "norm": {"name": "none"}, "depth": depth}
    table["schedule"] = {"name": "constant"}
    table["optimizer"] = {"name": optimizer, "lr": lr}
    table["run"] = {**table["run"], "steps": 40}
    return type(launch)(**{name: getattr(launch, name) for name in launch.__struct_fields__} | {"scenario": table})


def test_run_goes_back_with_half_of_the_rate_until_it_is_stable(tmp_path: Path) -> None:
    run = Run(tmp_path, hot(tmp_path, lr=1000.0, rollback=20))
    (ended,) = run.all(RunEnded)
    assert ended.status == "finished"
    turned = run.all(KnobTurned)
    assert len(turned) > 2
    assert {(event.source, event.knob) for event in turned} == {("rollback", "lr")}
    rates = [float(event.new) for event in turned]
    assert rates == pytest.approx([1000 * 0.5**n for n in range(1, len(rates) + 1)], rel=1e-4)
    assert len(run.all(Rewound)) == len(turned)
    texts = [note.text for note in run.all(Noted)]
    assert [text[:15] for text in texts if "rollback" in text] == [
        f"rollback {n} of 20"[:15] for n in range(1, len(turned) + 1)
    ]
    # Afterwards it is the run that had the last rate from the start.
    last = max(segment for segment, _ in run.losses)
    plain = Run(tmp_path / "plain", hot(tmp_path / "plain", lr=1000 * 0.5 ** len(rates)))
    assert {step: loss for (segment, step), loss in run.losses.items() if segment == last} == losses_of(plain)


def test_run_ends_as_diverged_after_the_last_rollback(tmp_path: Path) -> None:
    run = Run(tmp_path, hot(tmp_path, lr=1e5, rollback=2))
    (ended,) = run.all(RunEnded)
    assert ended.status == "diverged"
    assert len(run.all(KnobTurned)) == 2


def test_intervention_is_rolled_back_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_snapshots, "SHARE", 1e12)
    without_memory = {"undo_budget": 0, "snapshot_every_s": 3600.0}
    launch = hot(tmp_path / "run", lr=0.01, plan=((10, "lr=1e6"),), rollback=3, **without_memory)
    run = Run(tmp_path / "run", launch)
    assert run.all(RunEnded)[0].status == "finished"
    assert [(event.to_step, event.what) for event in run.all(Rewound)] == [(10, "lr 0.01 → 1e+06 (from disk)")]
    assert [(event.source, event.new) for event in run.all(KnobTurned)] == [("plan", "1e+06"), ("rollback", "0.005")]
    plain = Run(tmp_path / "plain", hot(tmp_path / "plain", lr=0.01, plan=((10, "lr=*0.5"),)))
    assert {**losses_of(run)} == losses_of(plain)


def save_first(disk: DiskSnapshots) -> None:
    """Takes the place of `save_if_due`: only the state before step 0 is on the disk."""
    if disk._progress.step == 0 and disk.place is None:
        disk.save("periodic")


def test_run_goes_back_to_the_last_good_state_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiskSnapshots, "save_if_due", save_first)
    settings = {"lr": 1000.0, "rollback": 20}
    run = Run(tmp_path / "run", hot(tmp_path / "run", **settings, undo_budget=0, snapshot_every_s=3600.0))
    in_memory = Run(tmp_path / "other", hot(tmp_path / "other", **settings))
    assert run.all(RunEnded)[0].status == "finished"
    assert len(run.all(Rewound)) > 2
    assert run.all(Rewound)[0].what == "the steps since step 0 (from disk)"
    assert losses_of(run) == losses_of(in_memory)


def test_run_whose_last_good_state_on_disk_does_not_fit_ends_as_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise SnapshotError("it has 3 blocks, the net has 2")

    monkeypatch.setattr(DiskSnapshots, "save_if_due", save_first)
    monkeypatch.setattr(state_on_disk, "load_run", refuse)
    run = Run(tmp_path, hot(tmp_path, lr=1000.0, rollback=20, undo_budget=0, snapshot_every_s=3600.0))
    assert run.all(RunEnded)[0].status == "diverged"
    assert run.all(Rewound) == []


def test_no_rollback_without_the_option(tmp_path: Path) -> None:
    run = Run(tmp_path, hot(tmp_path, lr=1e5))
    assert run.all(RunEnded)[0].status == "diverged"
    assert run.all(KnobTurned) == run.all(Rewound) == []


def test_finite_but_diverged_run_goes_back(tmp_path: Path) -> None:
    run = Run(tmp_path, hot(tmp_path, lr=3.0, optimizer="adam", rollback=3))
    (note, *_) = [note.text for note in run.all(Noted) if "rollback" in note.text]
    assert note.startswith("rollback 1 of 3: the loss has risen to ")
    assert run.all(KnobTurned)[0].source == "rollback"


def test_user_loop_goes_back_and_counts_on(tmp_path: Path) -> None:
    keeper = FakeKeeper(tmp_path)
    keeper.link.launch = Launch(run="r", name="r", folder=str(tmp_path), socket="there", rollback=30)
    torch.manual_seed(0)
    model = UserNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(16, 64), torch.randint(10, (16,))
    saved: list[torch.Tensor] = []
    with Watch(model, optimizer, link=keeper.link, on_fault="end") as run:
        for step in range(7):
            loss = nn.functional.cross_entropy(model(x), y) * (float("nan") if step == 6 else 1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step == 0:
                saved = [p.detach().clone() for p in model.parameters()]
            run.step(loss)
        rewound = keeper.events(Rewound)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), saved, strict=True))
    assert run.steering.rate.value == 0.05
    assert (rewound[0].to_step, rewound[0].step) == (1, 6)
    keeper.close()
