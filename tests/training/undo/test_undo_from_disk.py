"""An undo whose snapshot is not in memory restores the exact state from the disk, also after the run was resumed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from killed_run import Killer, Run, launch_of

from tui_descent.protocol.commands import AnyCommand, Redo, TurnKnob, Undo
from tui_descent.protocol.commands import Resume as Continue
from tui_descent.protocol.events import CommandDone, CommandRejected, KnobTurned, Rewound, SnapshotSaved
from tui_descent.protocol.resume import Replayed, Resume
from tui_descent.scenario.knobs import parse
from tui_descent.training.setup import build
from tui_descent.training.undo import disk_snapshots, snapshot_file
from tui_descent.training.undo.disk_snapshots import DiskSnapshots

FROM_DISK = " (from disk)"
Sent = dict[int, list[AnyCommand]]


@pytest.fixture(autouse=True)
def each_intervention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save before each intervention, whatever it costs, and wait until it is on the disk."""
    save = DiskSnapshots.save

    def save_and_wait(disk: DiskSnapshots, reason: str) -> None:
        disk.wait()
        save(disk, reason)
        disk.wait()

    monkeypatch.setattr(disk_snapshots, "SHARE", 1e12)
    monkeypatch.setattr(DiskSnapshots, "save", save_and_wait)


def part(folder: Path, sent: Sent, *, until: int, budget: int | None = 0, **settings: Any) -> Run:
    """A run with a dashboard that dies when it has computed `until` losses, with the given undo budget in bytes."""
    folder.mkdir(exist_ok=True)
    settings = {"plan": (), "snapshot_every_s": 3600.0, "attended": True, "undo_budget": budget, **settings}
    launch = msgspec.structs.replace(launch_of(folder), **settings)
    return Run(folder, launch, kill_at=until, sent=sent)


def resumed(first: Run, folder: Path, sent: Sent, *, past: tuple[tuple[int, int], ...], until: int, **how: Any) -> Run:
    """The same run, resumed from its snapshots."""
    turned = first.all(KnobTurned)
    segment, step = max(first.losses)
    in_force = {event.id for event in turned}
    for event in first.all(Rewound):
        in_force = set(event.in_force)
    resume = Resume(
        segment=segment + 1,
        from_segment=segment,
        from_step=step + 1,
        past=past,
        replay=tuple(
            Replayed(id=e.id, step=e.step, source=e.source, command=e.again) for e in turned if e.id in in_force
        ),
        interventions=max(event.id for event in turned),
        planned=step + 1,
    )
    return part(folder, sent, until=until, resume=resume, **how)


def losses(run: Run, segment: int) -> dict[int, float]:
    return {step: loss for (at, step), loss in run.losses.items() if at == segment}


def names(folder: Path) -> list[str]:
    return [file.path.name for file in snapshot_file.files(folder / "snapshots")]


def done(run: Run) -> list[str]:
    return [event.what for event in run.all(CommandDone)]


TURNS: Sent = {20: [parse("lr=*2")], 40: [parse("residual=on")], 50: [parse("activation=gelu")]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of a run without interventions."""
    return losses(part(tmp_path_factory.mktemp("plain"), {}, until=100), 0)


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of a run with only the first intervention."""
    return losses(part(tmp_path_factory.mktemp("doubled"), {20: TURNS[20]}, until=100), 0)


@pytest.mark.parametrize("budget", [0, None], ids=["from the disk", "from memory"])
def test_undo_leaves_no_trace(budget: int | None, plain: Any, doubled: Any, tmp_path: Path) -> None:
    sent: Sent = {**TURNS, 70: [Undo(), Undo()], 90: [Undo()]}
    run = part(tmp_path, sent, until=120, budget=budget)
    assert [(event.to_segment, event.to_step) for event in run.all(Rewound)] == [(0, 50), (0, 40), (0, 20)]
    assert losses(run, 2) == {step: doubled[step] for step in range(40, 60)}
    assert losses(run, 3) == {step: plain[step] for step in range(20, 50)}
    came_from = FROM_DISK if budget == 0 else ""
    assert done(run) == [
        f"undone: activation tanh → gelu{came_from}",
        f"undone: residual off → on{came_from}",
        f"undone: lr 0.001866 → 0.003732{came_from}",
    ]
    assert [event.in_force for event in run.all(Rewound)] == [(1, 2), (1,), ()]
    assert all(turned.note is None or "undo" not in turned.note for turned in run.all(KnobTurned))


KNOBS = [
    "activation@blocks.1=silu,way=instant", "residual=on,way=rezero", "norm=none", "norm=rms,where=post",
    "dropout=0", "init=orthogonal", "freeze@head=on", "kick=0.1", "optimizer=muon", "schedule=plateau",
    "betas=0.8/0.99", "weight_decay=0.1", "clip=0.01", "batch_size=16",
]  # fmt: skip
OFTEN = ("norm=none", "optimizer=muon", "batch_size=16")


@pytest.mark.parametrize(
    "turn", [turn if turn in OFTEN else pytest.param(turn, marks=pytest.mark.heavy) for turn in KNOBS]
)
def test_each_knob_is_undone_in_a_watched_run(turn: str, plain: Any, tmp_path: Path) -> None:
    run = part(tmp_path, {10: [parse(turn)], 23: [Undo()]}, until=40, watch_every=3)
    assert done(run)[0].endswith(FROM_DISK)
    assert losses(run, 1) == {step: plain[step] for step in range(10, 27)}
    assert losses(run, 0).keys() == set(range(23))


@pytest.mark.parametrize("turn", ["optimizer=momentum", "norm=none"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_undo_while_held_at_a_nan(
    what: str, turn: str, plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bad gradient, the run is held inside the step of the optimizer, which the undo replaces."""
    loss_of = Killer.loss

    def spoilt(killer: Killer, setup: build.Setup) -> torch.Tensor:
        loss = loss_of(killer, setup)
        if killer.calls == 25 and what == "loss":
            return loss * math.nan
        if killer.calls == 25:
            loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    monkeypatch.setattr(Killer, "loss", spoilt)
    run = part(tmp_path, {10: [parse(turn)], 25: [Undo(), Continue()]}, until=40)
    assert done(run)[0].endswith(FROM_DISK)
    assert losses(run, 1) == {step: plain[step] for step in range(10, 25)}


def test_two_interventions_before_the_same_step_have_a_file_each(plain: Any, doubled: Any, tmp_path: Path) -> None:
    sent: Sent = {20: [parse("lr=*2"), parse("norm=none")], 30: [Undo()], 50: [Undo()]}
    run = part(tmp_path, sent, until=60)
    assert losses(run, 1) == {step: doubled[step] for step in range(20, 40)}
    assert losses(run, 2) == {step: plain[step] for step in range(20, 30)}
    assert [text.endswith(FROM_DISK) for text in done(run)] == [True, True]
    assert names(tmp_path) == ["2-20-2.pt"]  # the one that was saved after the last undo


@pytest.mark.parametrize("budget", [0, 1_000_000], ids=["by value", "from memory"])
def test_redo_after_an_undo_from_the_disk(budget: int, plain: Any, doubled: Any, tmp_path: Path) -> None:
    """In a run that was resumed, the first intervention is not in memory. What is redone is there, if it fits."""
    first = part(tmp_path, {20: [parse("lr=*2")], 30: [parse("clip=0.01")]}, until=35)
    sent: Sent = {10: [Undo(), Undo()], 15: [Redo()], 20: [Undo()]}
    run = resumed(first, tmp_path, sent, past=((0, 1000),), until=25, budget=budget)
    *_, back, forth, again = done(run)
    label = "lr 0.001866 → 0.003732"
    assert back == f"undone: {label}{FROM_DISK}"
    undone = losses(run, 3)
    assert {step: undone[step] for step in range(20, 25)} == {step: plain[step] for step in range(20, 25)}
    if not budget:
        assert forth == f"redone: {label}; only the value was restored"
        assert again == f"undone: {label}; only the value was restored: no snapshot from before it is left"
        return
    assert forth == f"redone: {label}"
    assert losses(run, 4) == {step: doubled[step] for step in range(30, 35)}
    assert again == f"undone: {label}"
    assert losses(run, 5) == {step: plain[step] for step in range(20, 25)}


def damaged(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = snapshot_file.read(path)
    change(content)
    path.unlink()
    snapshot_file.write(path.parent, 0, 20, content).path.rename(path)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        r"its snapshot on disk cannot be used: it is damaged: .+",
    ),
    "no snapshot": (
        lambda path: path.write_bytes(b"x"),
        r"its snapshot on disk cannot be used: it is damaged: ValueError: it is not a file of torch.save",
    ),
    "removed": (lambda path: path.unlink(), r"the exact state takes 0 MB, the undo budget is 0 MB"),
    "another run": (
        lambda path: damaged(path, lambda content: content.update(run="other")),
        r"its snapshot on disk cannot be used: it belongs to another run",
    ),
    "of a later state": (
        lambda path: damaged(path, lambda content: content.update(interventions=1)),
        r"its snapshot on disk cannot be used: it was not saved just before the intervention",
    ),
    "incomplete": (
        lambda path: damaged(path, lambda content: content["state"]["knobs"].pop("losses")),
        r"its snapshot on disk cannot be used: its content is not complete: KeyError: 'losses'",
    ),
    "other shapes": (
        lambda path: damaged(
            path, lambda content: content["state"]["net"]["tensors"].update({"head.weight": torch.ones(3, 3)})
        ),
        r"its snapshot on disk cannot be used: its head\.weight is \(3, 3\) float32, the net's is \(10, 16\) float32",
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_file_that_cannot_be_used_leaves_an_undo_by_value(
    how: str, doubled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, reason = DAMAGE[how]
    read = DiskSnapshots.read

    def read_damaged(disk: DiskSnapshots, place: snapshot_file.Place) -> Any:
        damage(disk.folder / "0-20.pt")
        return read(disk, place)

    monkeypatch.setattr(DiskSnapshots, "read", read_damaged)
    run = part(tmp_path, {20: [parse("lr=*2")], 30: [Undo()], 40: [Redo()]}, until=50)
    back, forth = done(run)
    assert re.fullmatch(rf"undone: lr 0\.001866 → 0\.003732; only the value was restored: {reason}", back)
    assert forth == "redone: lr 0.001866 → 0.003732; only the value was restored"
    assert run.all(Rewound) == []
    turned, turned_back, turned_again = run.all(KnobTurned)
    assert (turned_back.new, turned_again.new) == (turned.old, turned.new)
    assert losses(run, 0).keys() == set(range(50))
    assert {step: loss for step, loss in losses(run, 0).items() if step < 30} == {
        step: doubled[step] for step in range(30)
    }


def test_intervention_whose_state_is_not_on_disk_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_snapshots, "SHARE", 0.0)
    run = part(tmp_path, {20: [parse("lr=*2")], 30: [Undo()]}, until=40)
    assert run.all(KnobTurned)[0].note == (
        "an undo will restore only the value: the exact state takes 0 MB, the undo budget is 0 MB"
    )
    assert done(run)[0].endswith("only the value was restored: the exact state takes 0 MB, the undo budget is 0 MB")


def test_states_before_interventions_are_kept_longest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_snapshots, "KEEP_FOR_UNDO", 3)
    turns: Sent = {step: [parse("lr=*1.1")] for step in range(10, 80, 10)}
    part(tmp_path / "few", turns, until=75)
    # The newest, two before it for a resumption, and three further ones for an undo.
    assert names(tmp_path / "few") == ["0-20-1.pt", "0-30-2.pt", "0-40-3.pt", "0-50-4.pt", "0-60-5.pt", "0-70-6.pt"]
    size = snapshot_file.files(tmp_path / "few" / "snapshots")[-1].nbytes
    part(tmp_path / "small", turns, until=75, snapshot_bytes=int(2.5 * size))
    assert names(tmp_path / "small") == ["0-60-5.pt", "0-70-6.pt"]


def test_periodic_snapshots_do_not_push_out_those_of_interventions(tmp_path: Path) -> None:
    run = part(tmp_path, TURNS, until=100, snapshot_every_s=0.0)
    *needed, _, _, _ = names(tmp_path)
    assert needed == ["0-20.pt", "0-40-1.pt", "0-50-2.pt"]
    assert len(run.all(SnapshotSaved)) > 6


RESUMED = pytest.mark.parametrize("budget", [0, None], ids=["no memory", "memory"])


@RESUMED
def test_interventions_are_undone_after_a_resumption(
    budget: int | None, plain: Any, doubled: Any, tmp_path: Path
) -> None:
    first = part(tmp_path, {**TURNS, 60: [parse("pace=5000")]}, until=70, budget=budget)
    # It goes on from the state before step 50, makes the last intervention again, and 20 steps.
    sent: Sent = {20: [Undo()], 30: [Undo()], 50: [Undo(), Undo()]}
    run = resumed(first, tmp_path, sent, past=((0, 1000),), until=60, budget=budget)
    begun, *undone = run.all(Rewound)
    assert (begun.resumed, begun.to_step, begun.in_force) == (True, 50, (1, 2))
    assert losses(run, 1) == {step: losses(first, 0)[step] for step in range(50, 70)}
    assert [(event.to_segment, event.to_step, event.in_force) for event in undone] == [
        (0 if budget == 0 else 1, 50, (1, 2)),
        (0, 40, (1,)),
        (0, 20, ()),
    ]
    assert losses(run, 3) == {step: doubled[step] for step in range(40, 60)}
    assert losses(run, 4) == {step: plain[step] for step in range(20, 30)}
    again = "" if budget is None else FROM_DISK  # it was made again in this process
    assert done(run) == [
        f"undone: activation tanh → gelu{again}",
        f"undone: residual off → on{FROM_DISK}",
        f"undone: lr 0.001866 → 0.003732{FROM_DISK}",
    ]
    assert [event.reason for event in run.all(CommandRejected)] == ["nothing to undo: no intervention is in effect"]


def test_resumed_run_is_resumed_and_undone_again(plain: Any, doubled: Any, tmp_path: Path) -> None:
    first = part(tmp_path, TURNS, until=70)
    second = resumed(first, tmp_path, {15: [Undo()]}, past=((0, 1000),), until=25)
    assert losses(second, 2) == {step: losses(first, 0)[step] for step in range(50, 60)} | losses(second, 2)
    record = {**first.losses, **second.losses}
    second.losses, second.events = record, [*first.events, *second.events]
    third = resumed(second, tmp_path, {10: [Undo()], 30: [Undo()]}, past=((2, 1000), (1, 50), (0, 51)), until=40)
    assert [(event.to_segment, event.to_step) for event in third.all(Rewound)] == [(2, 50), (0, 40), (0, 20)]
    assert losses(third, 4) == {step: doubled[step] for step in range(40, 60)}
    assert losses(third, 5) == {step: plain[step] for step in range(20, 30)}


@pytest.mark.parametrize("listed", [True, False], ids=["this version", "an older version"])
def test_resumption_without_the_files_of_interventions(listed: bool, tmp_path: Path) -> None:
    first = part(tmp_path, TURNS, until=70)
    *older, newest = snapshot_file.files(tmp_path / "snapshots")
    for file in older:
        file.path.unlink()
    if not listed:
        content = snapshot_file.read(newest.path)
        del content["undo"]
        snapshot_file.write(newest.path.parent, 0, 50, content)
    run = resumed(first, tmp_path, {10: [Undo(), Undo()]}, past=((0, 1000),), until=40)
    texts = [*done(run), *(event.reason for event in run.all(CommandRejected))]
    assert texts[0] == f"undone: activation tanh → gelu{FROM_DISK}"
    assert texts[1:] == (
        ["undone: residual off → on; only the value was restored: no snapshot from before it is left"]
        if listed
        else ["nothing to undo: the interventions were made before the run was resumed"]
    )
    if listed:
        (back,) = [event for event in run.all(KnobTurned) if event.knob == "residual"]
        assert (back.old, back.new) == ("on", "off")


def test_file_name_of_an_older_version_is_found(plain: Any, tmp_path: Path) -> None:
    first = part(tmp_path, {10: [TurnKnob(knob="pace", value="5000")], 20: [parse("lr=*2")]}, until=30)
    (file,) = snapshot_file.files(tmp_path / "snapshots")
    assert file.path.name == "0-20-1.pt"
    file.path.rename(file.path.with_name("0-20.pt"))
    run = resumed(first, tmp_path, {5: [Undo()]}, past=((0, 1000),), until=15)
    assert done(run) == [f"undone: lr 0.001866 → 0.003732{FROM_DISK}"]
    assert losses(run, 2) == {step: plain[step] for step in range(20, 30)}
