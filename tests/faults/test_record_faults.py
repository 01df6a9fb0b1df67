"""A record on a full disk, a folder that is removed, damaged files: training goes on, and what is good is kept."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from factories import reading, started, steps, turned, vanishing
from scripted_trainer import WITHIN_S, ScriptedTrainer

from tui_descent import cli
from tui_descent.protocol.events import (
    AnyEvent,
    Evaluated,
    KnobTurned,
    Noted,
    RecordingChanged,
    RunEnded,
    StepsCompleted,
)
from tui_descent.protocol.launch import Launch
from tui_descent.telemetry.history import History
from tui_descent.telemetry.record import RECORD_FILE, Record, RecordError, RecordWriter, writer

FULL = "disk full"


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = home / "disk"
    folder.mkdir(mode=0o700)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("only root can mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


class Recording:
    """A record that is written without a keeper."""

    def __init__(self, folder: Path) -> None:
        self.history = History()
        launch = Launch(run="r1", name="x", folder=str(folder), socket=None)
        self.writer = RecordWriter.open(launch, self.history.send)

    def add(self, *events: AnyEvent) -> None:
        for event in events:
            self.history.apply(event)
            self.writer.add(event)

    def allow_pages(self, count: int) -> None:
        """Act as a disk with room for so many pages of the record."""
        assert self.writer._connection is not None
        self.writer._connection.execute(f"PRAGMA max_page_count = {count}")


def recorded_losses(folder: Path) -> list[float]:
    with Record.open(folder) as record:
        return [loss for event in record.events() if isinstance(event, StepsCompleted) for loss in event.losses]


def test_what_a_full_disk_holds_up_is_written_later(tmp_path: Path) -> None:
    made = Recording(tmp_path)
    made.add(started(2), steps(0, [1.0] * 100))
    made.writer.commit()
    made.allow_pages(1)
    for step in range(100, 3100):
        made.add(steps(step, [float(step)]))
    made.add(turned(3100, "off", "on"))
    made.writer.commit()
    assert made.writer.trouble == FULL
    with Record.open(tmp_path) as record:
        assert record.position() == (0, 100)
    made.allow_pages(1 << 20)
    made.writer.commit()
    assert made.writer.trouble == ""
    made.writer.close()
    assert recorded_losses(tmp_path) == [1.0] * 100 + [float(n) for n in range(100, 3100)]
    with Record.open(tmp_path) as record:
        assert [made.step for made in record.interventions()] == [3100]


def test_memory_is_bounded_and_the_gap_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_WAITING", 400_000)
    monkeypatch.setattr(writer, "WELL_AFTER_S", 0.0)
    monkeypatch.setattr(writer, "LOOK_S", 0.0)
    made = Recording(tmp_path)
    made.add(started(2))
    made.writer.commit()
    made.allow_pages(1)
    made.add(*[Evaluated(segment=0, step=0, loss=1.0)] * 300)
    made.writer.commit()
    change, note = made.writer.maintain()
    assert change == RecordingChanged(step=0, trouble=FULL)
    assert isinstance(note, Noted)
    assert note.text == f"recording has stopped: {FULL}; training goes on"
    made.add(change, note)
    for first in range(0, 200_000, 100):
        made.add(steps(first, [0.5] * 100), Evaluated(segment=0, step=first + 100, loss=1.0))
    assert made.writer._waiting_bytes < 1.1 * 400_000
    assert made.writer.maintain() == []
    made.allow_pages(1 << 20)
    back, note = made.writer.maintain()
    assert back == RecordingChanged(step=200_000, trouble="")
    made.add(back, note, steps(200_000, [0.25]))
    made.writer.close()
    with Record.open(tmp_path) as record:
        events = list(record.events())
    kept = [loss for event in events if isinstance(event, StepsCompleted) for loss in event.losses]
    missing = 200_001 - len(kept)
    assert 0 < missing < 200_000
    assert isinstance(note, Noted)
    assert note.text.startswith(f"recording goes on; {missing:,} steps and ")
    assert note in events
    assert kept[-1] == 0.25


def play_on_full_disk(
    trainer: ScriptedTrainer, fill: Callable[[], None], free: Callable[[], None]
) -> tuple[float, list[RecordingChanged]]:
    """The trainer makes steps while the disk is full; returns how long it took until that was reported."""
    took_s = 0.0

    def changed(trouble: str) -> Callable[[AnyEvent], bool]:
        return lambda event: isinstance(event, RecordingChanged) and event.trouble == trouble

    def play() -> None:
        nonlocal took_s
        trainer.start()
        trainer.steps(50)
        trainer.until(lambda event: isinstance(event, StepsCompleted))
        fill()
        filled_s = time.monotonic()
        until_s = filled_s + WITHIN_S
        while not any(map(changed(FULL), trainer.events)) and time.monotonic() < until_s:
            trainer.steps(40, reading_every=10)
            time.sleep(0.02)
        took_s = time.monotonic() - filled_s
        trainer.steps(500)
        free()
        trainer.until(changed(""))
        trainer.steps(7)
        trainer.ended()

    assert trainer.run_while(play).status == "finished"
    return took_s, [event for event in trainer.events if isinstance(event, RecordingChanged)]


def test_run_on_a_full_disk_goes_on_and_its_record_catches_up(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUI_DESCENT_RUNS_DIR", str(small_disk / "runs"))
    monkeypatch.setattr(writer, "WELL_AFTER_S", 0.2)
    trainer = ScriptedTrainer(ring_steps=1 << 15)
    filler = small_disk / "filler"

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    took_s, changes = play_on_full_disk(trainer, fill, filler.unlink)
    assert [change.trouble for change in changes] == [FULL, ""]
    assert took_s < WITHIN_S / 2
    assert trainer.published_steps() == list(range(trainer.step)), "the curve on the screen has no hole"
    assert recorded_losses(trainer.launch.path) == [n * 0.5 for n in range(trainer.step)]
    with Record.open(trainer.launch.path) as record:
        assert record.about.status == "finished"
        assert record._connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_without_room_for_a_run_it_is_refused_before_training(
    how: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "full":
        with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    else:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    monkeypatch.setenv("TUI_DESCENT_HOME", str(small_disk))
    assert cli.main(["run", "healthy", "--headless", "--steps", "5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tui-descent: cannot ")
    assert {"full": "No space left on device", "read-only": "Read-only file system"}[how] in line


def test_run_whose_folder_is_removed_goes_on(home: Path) -> None:
    trainer = ScriptedTrainer()

    def play() -> None:
        trainer.start()
        trainer.steps(50)
        trainer.until(lambda event: isinstance(event, StepsCompleted))
        shutil.rmtree(trainer.launch.path)
        trainer.steps(50)
        trainer.until(lambda event: isinstance(event, RecordingChanged))
        trainer.steps(50)
        trainer.ended()

    assert trainer.run_while(play).status == "finished"
    (change,) = [event for event in trainer.events if isinstance(event, RecordingChanged)]
    assert change.trouble == "its file was removed"
    assert trainer.published_steps() == list(range(150))
    assert list((home / "runs").iterdir()) == [], "it is not created again"


def test_new_viewer_learns_that_nothing_is_recorded() -> None:
    history = History()
    for event in (started(2), RecordingChanged(step=0, trouble=FULL)):
        history.apply(event)
    received = History.receive(history.send())
    assert received.recording == RecordingChanged(step=0, trouble=FULL)


def test_record_that_is_replaced_by_another_file_is_not_written_to(tmp_path: Path) -> None:
    made = Recording(tmp_path)
    made.add(started(2), steps(0, [1.0]))
    made.writer.commit()
    os.rename(tmp_path / RECORD_FILE, tmp_path / "moved")
    (tmp_path / RECORD_FILE).write_text("mine")
    made.writer._looked_s = 0.0
    made.writer.maintain()
    made.add(steps(1, [1.0]), turned(2, "off", "on"))
    made.writer.close()
    assert made.writer.trouble == "its file was removed"
    assert (tmp_path / RECORD_FILE).read_text() == "mine"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record with some of everything."""
    folder = tmp_path_factory.mktemp("good")
    made = Recording(folder)
    events = [*vanishing(300), *(steps(n, [n / 7, n / 3], lr=n) for n in range(300, 4000, 2))]
    for n, event in enumerate(events):
        made.add(event)
        if n % 50 == 0:
            made.writer.commit()
    made.add(turned(4000, "off", "on"), reading(3999, 0.5), RunEnded(status="finished", step=4000))
    made.writer.close()
    return folder


def read_all(folder: Path) -> tuple[list[AnyEvent], str] | None:
    """What can be read of a record, and the damage; None if it is refused."""
    try:
        with Record.open(folder) as record:
            events = list(record.events())
            assert record.history().steps >= 0
            record.history_at(0, 1000)
            record.interventions()
            assert record.about.run
            return events, record.damage
    except RecordError:
        return None


def losses_by_step(events: list[AnyEvent]) -> dict[int, float]:
    return {
        event.first + n: loss
        for event in events
        if isinstance(event, StepsCompleted)
        for n, loss in enumerate(event.losses)
    }


@pytest.mark.heavy
def test_many_records_with_flipped_bytes(good: Path, tmp_path: Path) -> None:
    for seed in range(12, 300):
        test_flipped_bytes_leave_the_rest_readable_and_nothing_wrong(seed, good, tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bytes_leave_the_rest_readable_and_nothing_wrong(seed: int, good: Path, tmp_path: Path) -> None:
    noise = random.Random(seed)
    data = bytearray((good / RECORD_FILE).read_bytes())
    wanted = read_all(good)
    assert wanted is not None
    true_losses = losses_by_step(wanted[0])
    # The first page is the table of contents: what is behind it stays readable.
    for _ in range(noise.choice([1, 1, 3, 40])):
        data[noise.randrange(1024 * (seed % 2), len(data))] ^= 1 << noise.randrange(8)
    (tmp_path / RECORD_FILE).write_bytes(data)
    found = read_all(tmp_path)
    if found is None:
        return
    events, damage = found
    losses = losses_by_step(events)
    assert all(true_losses[step] == loss for step, loss in losses.items())
    assert damage or losses == true_losses, "what is missing is said"


def test_damaged_list_of_tables_whose_name_is_no_text(good: Path, tmp_path: Path) -> None:
    """The message of SQLite's error is then no text either."""
    data = (good / RECORD_FILE).read_bytes()
    assert data.count(b"CREATE INDEX steps_by_step ON steps (") == 1
    broken = data.replace(b"CREATE INDEX steps_by_step ON steps (", b"CREATE INDEX steps_by_step ON st\xc5ps (")
    (tmp_path / RECORD_FILE).write_bytes(broken)
    found = read_all(tmp_path)
    assert found is None or "damaged" in found[1]
    made = Recording(tmp_path)
    made.add(started(2), steps(0, [1.0]))
    made.writer.close()
    assert (tmp_path / "record-damaged.sqlite").read_bytes() == broken
    assert read_all(tmp_path) is not None


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.99])
def test_record_that_was_cut_off_is_read_as_far_as_it_goes(share: float, good: Path, tmp_path: Path) -> None:
    data = (good / RECORD_FILE).read_bytes()
    (tmp_path / RECORD_FILE).write_bytes(data[: int(len(data) * share)])
    found = read_all(tmp_path)
    assert found is not None
    events, damage = found
    assert damage.startswith("the record is damaged: the end of its file is missing")
    if share >= 0.5:
        assert sum(isinstance(event, StepsCompleted | KnobTurned | Evaluated) for event in events) > 3


def test_damaged_page_costs_only_its_rows(good: Path, tmp_path: Path) -> None:
    data = bytearray((good / RECORD_FILE).read_bytes())
    with sqlite3.connect(good / RECORD_FILE) as connection:
        try:
            pages = connection.execute(
                "SELECT pageno FROM dbstat WHERE name = 'events' AND pagetype = 'leaf' ORDER BY pageno"
            ).fetchall()
        except sqlite3.OperationalError:
            pytest.skip("this SQLite cannot tell which pages a table has")
    connection.close()
    page = pages[len(pages) // 2][0] - 1
    data[page * 1024 : (page + 1) * 1024] = os.urandom(1024)
    (tmp_path / RECORD_FILE).write_bytes(data)
    found = read_all(tmp_path)
    assert found is not None
    events, damage = found
    assert len(losses_by_step(events)) == 4000, "the steps are elsewhere"
    assert re.fullmatch(r"the record is damaged: \d+ of \d+ rows cannot be read", damage)
    assert isinstance(events[-1], RunEnded)
