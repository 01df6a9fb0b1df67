"""A state too large for the memory budget goes onto the disk and comes back to the last bit, or says why it cannot."""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from kept import Kept
from nets import copy_of, digit_batches, loss_of, mlp, same, same_state, state_of
from played import TURNS, Played, untouched

from tui_descent.protocol.commands import Redo, TurnKnob, Undo
from tui_descent.protocol.events import CommandDone, CommandRejected, Rewound, SnapshotTaken
from tui_descent.protocol.launch import UNDO_FOLDER
from tui_descent.scenario.knobs import parse
from tui_descent.training.disk import Disk
from tui_descent.training.watch import Watch

ROOM = 10**9


@pytest.fixture
def play(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Played]]:
    """Runs whose every state is too large for memory."""
    monkeypatch.setattr(Disk.__init__, "__kwdefaults__", {"budget": ROOM, "spared": 0})
    monkeypatch.setattr("tui_descent.training.past.DISK_SHARE", math.inf)
    runs: list[Played] = []

    def start(plan: dict[int, str] | None = None, *, disk: int = ROOM) -> Played:
        runs.append(Played(kept, plan or {}, budget=1000, disk=disk))
        return runs[-1]

    yield start
    for run in runs:
        run.watch.__exit__(None, None, None)
        assert not folder_of(run).exists()


def folder_of(run: Played) -> Path:
    return run.kept.link.launch.path / UNDO_FOLDER


def files(run: Played) -> list[Path]:
    folder = folder_of(run)
    return sorted(folder.iterdir(), key=lambda path: int(path.stem)) if folder.exists() else []


def done(run: Played) -> list[str]:
    return [event.what for event in run.kept.events(CommandDone)]


def test_interventions_undone_and_redone_in_our_own_loop(play: Any, home: Path) -> None:
    plain, through = untouched(home / "plain", 330), untouched(home / "through", 340, TURNS)
    run = play(TURNS)
    run.go(330)
    assert len(files(run)) == 3
    assert run.past.nbytes == 0
    assert run.past.disk_bytes == sum(path.stat().st_size for path in files(run))
    run.go(331, Undo(), Undo(), Undo())
    assert run.watch.next_step == 100
    run.go(110, Redo(), Redo(), Redo())
    assert run.watch.next_step == 331
    assert run.go(340) == through[331:]
    run.go(341, Undo(), Undo(), Undo())
    assert run.go(330) == plain[100:]
    events = run.kept.events()
    assert len([e for e in events if isinstance(e, Rewound)]) == 9
    assert all("value only" not in e.what for e in events if isinstance(e, CommandDone))
    taken = [e for e in events if isinstance(e, SnapshotTaken)]
    assert [e.used_bytes for e in taken] == [0] * 3
    assert taken[-1].disk_bytes > taken[0].disk_bytes > 0


def test_a_foreign_loop_undone_and_redone(kept: Kept) -> None:
    kept.link.launch = msgspec.structs.replace(kept.link.launch, socket="there", undo_budget=1000)
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    seen: dict[int, Any] = {}
    asked = {4: parse("activation=tanh"), 8: Undo(), 10: Redo()}
    with Watch(net, optimizer, link=kept.link) as run:
        for n, batch in enumerate(digit_batches(12), start=1):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen[n] = copy_of(net), state_of(run.optimizer)
            if n in asked:
                kept.order(asked[n])
            run.step(loss)
            if n in (8, 10):
                there = seen[4 if n == 8 else 8]
                assert same(copy_of(net), there[0])
                assert same_state(state_of(run.optimizer), there[1])
        assert len(list((kept.link.launch.path / UNDO_FOLDER).iterdir())) == 1
    assert len(kept.events(Rewound)) == 2
    assert not (kept.link.launch.path / UNDO_FOLDER).exists()


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped": (flipped, "is damaged: its checksum is another"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), " bytes"),
    "empty": (lambda path: path.write_bytes(b""), "has 0 of"),
    "gone": (lambda path: path.unlink(), "cannot be read: No such file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_one_is_found_and_told_and_the_one_before_it_still_serves(name: str, play: Any, home: Path) -> None:
    spoil, reason = DAMAGE[name]
    plain = untouched(home / "plain", 40)
    run = play({10: "weight_decay=0.1", 20: "lr=*2"})
    run.go(30)
    spoil(files(run)[-1])
    rate = run.watch.steering.rate.value
    run.go(31, Undo())
    assert run.watch.next_step == 31
    assert run.watch.steering.rate.value == pytest.approx(rate / 2, rel=0.2)
    run.go(32, Undo())
    assert run.watch.next_step == 10
    assert run.go(40) == plain[10:]
    first, second = done(run)
    assert "; by value only: 2.pt " in first
    assert reason in first
    assert second == "undone: weight_decay 0 → 0.1"


def test_a_damaged_one_on_the_way_forth_is_told_too(play: Any) -> None:
    run = play({10: "lr=*2"})
    run.go(20, Undo())
    flipped(files(run)[-1])
    run.go(15, Redo())
    assert run.watch.next_step == 15
    assert done(run)[-1].endswith("; by value only: 2.pt is damaged: its checksum is another")


class Bomb:
    """Writes a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/td-bomb-was-run"),))


def test_a_pickle_that_would_run_code_is_not_run_even_with_its_checksum_right(play: Any) -> None:
    run = play({10: "lr=*2"})
    run.go(12)
    (path,) = files(run)
    torch.save([Bomb()], path, pickle_module=pickle)
    stored = run.past._turns[0].before._stored
    stored._digest, stored.nbytes = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
    before = run.digest()
    run.watch.progress.step = 12
    run.kept.order(Undo())
    run.watch.control.between()
    assert not Path("/tmp/td-bomb-was-run").exists()
    assert run.digest() == before
    (rejected,) = run.kept.events(CommandRejected)
    assert "1.pt cannot be read: UnpicklingError" in rejected.reason


def test_the_disks_budget_is_kept_and_the_oldest_go_first(play: Any) -> None:
    run = play()
    run.go(3, parse("lr=*1.1"))
    one = run.past.disk_bytes
    run.past.disk.budget = 3 * one + one // 2
    for step in range(5, 30, 5):
        run.go(step, parse("lr=*1.1"))
        assert sum(path.stat().st_size for path in files(run)) == run.past.disk_bytes <= run.past.disk.budget
    assert [t.before is None for t in run.past._turns] == [True, True, True, False, False, False]
    run.go(40, Undo(), Undo(), Undo(), Undo())
    assert run.watch.next_step == 15
    assert ["by value only" in what for what in done(run)] == [False, False, False, True]


@pytest.mark.parametrize("spared", [10**18, 950_000], ids=["none", "too little"])
def test_a_disk_without_room_is_left_alone(spared: int, play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Disk, "_free", lambda _: 1_000_000)
    run = play()
    run.past.disk.spared = spared
    run.go(10, parse("lr=*2"))
    run.go(12, Undo())
    assert run.watch.next_step == 12
    assert not files(run)
    (what,) = done(run)
    assert "by value only: the exact state takes" in what
    assert "; the disk has 1 MB left, and" in what


def test_a_disk_that_fills_up_while_it_is_written_leaves_nothing(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Disk, "_free", lambda _: 50_000)
    monkeypatch.setattr(Disk, "refusal", lambda *_, **__: "")
    run = play()
    run.go(10, parse("lr=*2"))
    assert folder_of(run).exists()
    assert not files(run)
    run.go(12, Undo())
    assert "; the disk: No space left on device" in done(run)[0]


def test_a_number_pressed_time_and_again_gets_one_exact_way_back(
    play: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = untouched(home / "plain", 50)
    monkeypatch.setattr("tui_descent.training.past.DISK_SHARE", 1e-6)
    run = play({10: "lr=*2", 12: "lr=*2", 14: "weight_decay=0.1", 16: "kick=0.1"})
    run.go(20)
    assert len(files(run)) == 2, "before the first number, and before the kick, which no value takes back"
    run.go(21, Undo(), Undo(), Undo(), Undo())
    assert run.watch.next_step == 10
    assert run.go(50) == plain[10:]
    kick, decay, second, first = done(run)
    assert "value" not in kick + first
    for what in (decay, second):
        assert "by value only: the exact state takes" in what
        assert "one was written just now" in what


def test_what_is_refused_at_sight_writes_nothing(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr(Disk, "store", lambda _, tensors: written.append(len(tensors)))
    run = play()
    run.go(5, TurnKnob(knob="lr", value="-1"), TurnKnob(knob="batch_size", value="no"), TurnKnob(knob="x", value="1"))
    assert len(run.kept.events(CommandRejected)) == 3
    assert not written


def test_with_no_budget_at_all_nothing_is_kept_anywhere(play: Any) -> None:
    run = play()
    run.past.budget = 0
    run.go(10, parse("lr=*2"))
    run.go(12, Undo())
    assert not files(run)
    assert "by value only" in done(run)[0]


def test_a_turn_that_fails_half_way_is_put_back_from_the_disk(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = play()
    run.go(10)
    before = run.digest()

    def fails(*_: Any, **__: Any) -> Any:
        with torch.no_grad():
            next(run.setup.model.parameters()).add_(1)
        run.setup.optimizer.state.clear()
        raise RuntimeError("injected")

    monkeypatch.setattr("tui_descent.training.surgery.kick", fails)
    run.kept.order(parse("kick=0.1"))
    run.watch.control.between()
    (rejected,) = run.kept.events(CommandRejected)
    assert "injected" in rejected.reason
    assert run.digest() == before
    assert not files(run), "nothing goes back to it"
