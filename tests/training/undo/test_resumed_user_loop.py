"""A user loop that calls `run.resume()` goes on from its newest snapshot, in a new process with new objects."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from knob_turns import UserNet
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from tui_descent.protocol.commands import Mark, Undo
from tui_descent.protocol.events import CommandDone, KnobTurned, Noted, Rewound, RunEnded, SnapshotSaved
from tui_descent.protocol.launch import Launch
from tui_descent.protocol.resume import Replayed, Resume
from tui_descent.scenario.knobs import parse
from tui_descent.training.undo import disk_snapshots, snapshot_file
from tui_descent.training.watch.watch import Watch

STEPS, SAVED_AT = 40, 20


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_snapshots, "SHARE", 1e12)


class Counter:
    """A user's own object with a state_dict."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


class Loop:
    """A user's training script. Its data depends on the step alone."""

    def __init__(
        self,
        folder: Path,
        *,
        plan: dict[int, str] | None = None,
        resume: bool = False,
        calls_resume: bool = True,
        net: type[nn.Module] = UserNet,
        state: dict[str, Any] | None = None,
        replay: tuple[Replayed, ...] = (),
        every_s: float = 0.01,
    ) -> None:
        torch.manual_seed(3)
        self.model = net()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.scheduler = OneCycleLR(self.optimizer, max_lr=0.01, total_steps=100)
        self.counter, self.averages = Counter(), {"mean": torch.zeros(10), "seen": deque([0])}
        self.mean = self.averages["mean"]
        named = {"scheduler": self.scheduler, "counter": self.counter, "averages": self.averages}
        self.keeper = FakeKeeper(folder)
        self.keeper.link.launch = Launch(
            run="r",
            name="r",
            folder=str(folder),
            socket="there",
            snapshot_every_s=every_s,
            resume=Resume(segment=1, interventions=9, replay=replay) if resume else None,
        )
        self.run = Watch(
            self.model,
            self.optimizer,
            link=self.keeper.link,
            state=named if state is None else state,
            plan=[(at, parse(turn)) for at, turn in (plan or {}).items()],
        )
        self.run.__enter__()
        try:
            self.start = self.run.resume() if calls_resume else 0
        except ValueError:
            self.end()
            raise
        self.losses: dict[int, float] = {}

    def go(self, until: int = STEPS) -> dict[int, float]:
        for step in range(self.start, until):
            made = torch.Generator().manual_seed(step)
            x, y = torch.randn(16, 64, generator=made), torch.randint(10, (16,), generator=made)
            outputs: Tensor = self.model(x)
            loss = nn.functional.cross_entropy(outputs, y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.counter.count += 1
            self.averages["mean"].mul_(0.9).add_(outputs.detach().mean(dim=0))
            self.averages["seen"].append(step)
            self.losses[step] = loss.item()
            if step == SAVED_AT - 1:
                self.save()
            self.run.step(loss)
        return self.losses

    def save(self) -> None:
        """Let the run save its state before the next step, whatever the time."""
        disk = self.run.control._disk
        if disk is not None:
            disk.wait()
            disk._due_s = 0.0
            self.keeper.send(Mark())

    def end(self, *, killed: bool = False) -> Loop:
        """End the script. One that was killed leaves what is on the disk, and nothing else."""
        disk = self.run.control._disk
        if killed and disk is not None:
            disk.wait()
            self.run.control._disk = None
        self.run.__exit__(None, None, None)
        self.events = self.keeper.events()
        self.keeper.close()
        return self

    def all(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


PLANS = {
    "nothing": {},
    "activation": {5: "activation=tanh,way=instant"},
    "activation in transition": {15: "activation=silu"},
    "residual": {5: "residual=on,way=instant"},
    "residual in transition": {15: "residual=on,way=gentle"},
    "dropout and freeze": {5: "dropout=0.3", 6: "freeze@head=on"},
    "optimizer settings": {4: "lr=*0.5", 5: "betas=0.8/0.99", 6: "weight_decay=0.1", 7: "clip=0.5"},
}
FURTHER = ("nothing", "activation", "residual")


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[pytest.mark.heavy] if what in FURTHER else []) for what in PLANS]
)
def test_loop_goes_on_bitwise(what: str, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "twin").mkdir()
    twin = Loop(tmp_path / "twin", plan=PLANS[what])
    expected = twin.go()
    twin.end()
    first = Loop(folder, plan=PLANS[what])
    assert first.start == 0
    losses = first.go(25)
    first.end(killed=True)
    second = Loop(folder, resume=True)
    assert SAVED_AT <= second.start <= 25
    assert {**losses, **second.go()} == expected
    second.end()
    assert second.counter.count == STEPS
    assert second.averages["mean"] is second.mean
    assert torch.equal(second.mean, twin.mean)
    assert list(second.averages["seen"]) == list(twin.averages["seen"])
    values = [{s.name: s.value for s in loop.run.steering.states()} for loop in (second, twin)]
    assert values[0] == values[1]
    (rewound,) = second.all(Rewound)
    assert (rewound.to_step, rewound.segment, rewound.resumed) == (second.start, 1, True)
    assert second.all(KnobTurned) == []


def test_interventions_after_the_snapshot_are_made_again(tmp_path: Path, folder: Path) -> None:
    plan = {5: "lr=*0.5", 30: "activation=tanh", 34: "dropout=0.3"}
    (tmp_path / "twin").mkdir()
    twin = Loop(tmp_path / "twin", plan=plan)
    expected = twin.go()
    twin.end()
    first = Loop(folder, plan=plan)
    losses = first.go(25)
    first.end(killed=True)
    turned = [(2, 30, "activation=tanh"), (3, 34, "dropout=0.3")]
    replay = tuple(Replayed(id=n, step=at, source="key", command=parse(turn)) for n, at, turn in turned)
    second = Loop(folder, resume=True, replay=replay)
    assert {**losses, **second.go()} == expected
    second.end()
    assert [(event.step, event.knob, event.source) for event in second.all(KnobTurned)] == [
        (30, "activation", "key"),
        (34, "dropout", "key"),
    ]


def test_intervention_is_in_the_snapshot_that_it_causes(folder: Path) -> None:
    loop = Loop(folder, plan={12: "lr=*0.5"}, every_s=3600.0)
    loop.go(14)
    loop.end(killed=True)
    reasons = {event.step: event.reason for event in loop.all(SnapshotSaved)}
    saved = snapshot_file.read(next(f.path for f in snapshot_file.files(folder / "snapshots") if f.step == 12))
    assert reasons[12] == "after intervention 1"
    assert saved["state"]["optimizers"][0]["multiplier"] == 0.5


def test_intervention_from_before_a_resumption_is_undone_by_value(folder: Path) -> None:
    first = Loop(folder, plan={5: "lr=*0.5"})
    first.go(10)
    first.end()
    second = Loop(folder, resume=True)
    second.go(12)
    second.keeper.send(Undo())
    second.start = 12
    second.go(14)
    second.end()
    (done,) = second.all(CommandDone)
    assert (
        done.what == "undone: lr 0.001087 → 0.0005435; only the value was restored: no snapshot from before it is left"
    )
    (back,) = second.all(KnobTurned)
    assert (back.knob, back.new) == ("lr", first.all(KnobTurned)[0].old)
    assert not [event for event in second.all(Rewound) if not event.resumed]


def test_finished_loop_has_nothing_left_to_do(folder: Path) -> None:
    first = Loop(folder)
    first.go()
    first.end()
    second = Loop(folder, resume=True)
    assert second.start == STEPS
    assert second.go(STEPS + 5).keys() == {40, 41, 42, 43, 44}
    second.end()


def test_loop_that_does_not_call_resume_saves_nothing(folder: Path) -> None:
    loop = Loop(folder, calls_resume=False)
    loop.go(10)
    loop.end()
    assert not (folder / "snapshots").exists()


def test_resumed_script_without_a_call_of_resume_is_told(folder: Path) -> None:
    first = Loop(folder)
    first.go(10)
    first.end()
    second = Loop(folder, resume=True, calls_resume=False)
    second.go(5)
    second.end()
    (rewound,) = second.all(Rewound)
    assert rewound.what == "the script did not call run.resume(): it started again from step 0"
    assert (rewound.to_step, rewound.step, rewound.segment) == (0, 0, 1)


class Wider(UserNet):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 12)


def test_changed_net_is_refused_and_left_alone(folder: Path) -> None:
    first = Loop(folder)
    first.go(10)
    first.end()
    with pytest.raises(ValueError, match=r"its head.weight is \(10, 16\) float32, the net's is \(12, 16\) float32"):
        Loop(folder, resume=True, net=Wider)


def test_what_cannot_be_saved_or_restored_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Bad(Counter):
        def state_dict(self) -> Any:
            return {"made of": object()}

    first = Loop(folder, state={"bad": Bad()})
    first.go(10)
    first.end()
    (text,) = [note.text for note in first.all(Noted) if "not saved" in note.text]
    assert text == 'state["bad"] is not saved on disk: it holds an object of class object'
    second = Loop(folder, resume=True, state={"bad": Bad(), "new": Counter()})
    assert second.start == 10
    said = capsys.readouterr().err
    assert 'tui-descent: not restored: state["bad"] (it was not saved), state["new"] (it was not saved)' in said
    assert "tui-descent: resumed from the snapshot of step 10" in said
    second.end()


def test_resume_without_a_snapshot_begins_at_step_0(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = Loop(folder, resume=True)
    assert loop.start == 0
    loop.go(3)
    loop.end()
    assert "there is no snapshot to resume from: started again from step 0" in capsys.readouterr().err


def test_snapshot_has_no_object_of_the_user(folder: Path) -> None:
    loop = Loop(folder)
    loop.go(10)
    loop.end()
    content = torch.load(snapshot_file.files(folder / "snapshots")[-1].path, weights_only=True)
    assert content["user_state"]["counter"] == {"count": 10}


def test_resume_without_a_keeper_is_step_0() -> None:
    model = UserNet()
    with Watch(model, torch.optim.SGD(model.parameters(), lr=0.1), link=None) as run:
        assert run.resume() == 0


@pytest.mark.parametrize("fails", [False, True], ids=["its end", "an exception"])
def test_no_thread_writes_when_the_run_has_ended(fails: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the thread were still in torch when Python exits, the script would end by SIGABRT."""

    class Slow(Future[Any]):
        """The thread goes on for a moment after its result is known."""

        def set_result(self, result: Any) -> None:
            super().set_result(result)
            time.sleep(0.2)

    monkeypatch.setattr(disk_snapshots, "Future", Slow)
    loop = Loop(folder)
    loop.go(SAVED_AT + 2)
    error = RuntimeError("from the user's loop") if fails else None
    loop.run.__exit__(None if error is None else RuntimeError, error, None)
    assert snapshot_file.files(folder / "snapshots"), "it was saved"
    assert not [thread.name for thread in threading.enumerate() if "snapshot" in thread.name]
    loop.keeper.close()


def test_a_loop_without_with_that_has_no_step_left_reports_its_end(folder: Path) -> None:
    Loop(folder).end()
    loop = Loop(folder, resume=True)
    loop.run.__exit__(None, None, None)
    model = UserNet()
    keeper = FakeKeeper(folder)
    keeper.link.launch = loop.keeper.link.launch
    run = Watch(model, torch.optim.AdamW(model.parameters()), link=keeper.link)
    run.resume()
    run._end_at_exit(os.getpid())
    assert [event.status for event in keeper.events() if isinstance(event, RunEnded)] == ["finished"]
    keeper.close()
    loop.keeper.close()
