"""The record: what is written comes back, in its order, while it is written and after a killed writer."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from factories import layers, ledger, logged, reading, rewound, started, steps, turned, vanishing

from tui_descent.protocol.codec import encode
from tui_descent.protocol.events import (
    AnyEvent,
    CommandRejected,
    Evaluated,
    KnobTurned,
    LayersChanged,
    LedgerTaken,
    Marked,
    MetricLogged,
    Noted,
    NotFinite,
    ReadingsTaken,
    RunEnded,
    StateChanged,
    StepsCompleted,
    StepsMissed,
)
from tui_descent.protocol.launch import Launch
from tui_descent.telemetry.history import History
from tui_descent.telemetry.record import RECORD_FILE, Record, RecordError, RecordWriter, has_steps, writer
from tui_descent.telemetry.record.event_rows import _rounded
from tui_descent.telemetry.record.schema import is_on_network


class Recording:
    """A keeper's part: a history, and the record of the same events."""

    def __init__(self, folder: Path, history: History | None = None) -> None:
        self.history = history or History()
        launch = Launch(run="r1", name="vanishing", folder=str(folder), socket=None)
        self.writer = RecordWriter.open(launch, lambda: self.history.send())

    def add(self, *events: AnyEvent) -> None:
        for event in events:
            self.history.apply(event)
            self.writer.add(event)


def recorded(folder: Path, events: list[AnyEvent], *, batch: int = 7) -> History:
    """Record the events in batches."""
    made = Recording(folder)
    for n, event in enumerate(events):
        made.add(event)
        if n % batch == 0:
            made.writer.commit()
    made.writer.close()
    return made.history


def same(events: list[AnyEvent]) -> list[AnyEvent]:
    """The events with neighbouring steps joined, readings rounded as in a record, and times left out."""
    joined: list[AnyEvent] = []
    for event in events:
        if isinstance(event, ReadingsTaken):
            event = _rounded(event)
        if isinstance(event, StepsCompleted):
            event = msgspec.structs.replace(event, times_s=[])
            before = joined[-1] if joined else None
            if isinstance(before, StepsCompleted) and (before.segment, before.first + len(before.losses)) == (
                event.segment,
                event.first,
            ):
                event = msgspec.structs.replace(
                    before,
                    losses=before.losses + event.losses,
                    lrs=before.lrs + event.lrs,
                    skipped=before.skipped + event.skipped,
                )
                joined.pop()
        joined.append(event)
    return joined


def sent(history: History) -> bytes:
    """All that a viewer is sent, as bytes, so that NaN equals NaN.

    It is without the speed, which depends on exact times, and without the gradients' past, which a checkpoint rounds.
    """
    return encode(msgspec.structs.replace(history.send(), steps_per_s=0.0, grads={}))


ENDED = RunEnded(status="finished", step=400, loss=0.25, accuracy=0.9)


def test_events_come_back_in_their_order(tmp_path: Path) -> None:
    events = [*vanishing(400), *logged(40), ledger(399, 0.3), Marked(segment=0, step=400, text="here"), ENDED]
    history = recorded(tmp_path, events)
    with Record.open(tmp_path) as record:
        assert list(map(encode, same(list(record.events())))) == list(map(encode, same(events)))
        assert sent(record.history()) == sent(history)
        assert record.damage == ""
        about = record.about
    assert (about.run, about.name, about.status, about.step, about.loss) == ("r1", "vanishing", "finished", 400, 0.25)
    assert about.title == "Vanishing gradients"
    assert about.scenario == started().scenario
    assert about.size == (tmp_path / RECORD_FILE).stat().st_size


def test_events_between_two_steps_stay_there(tmp_path: Path) -> None:
    events: list[AnyEvent] = [started(2)]
    for step in range(30):
        events += [Evaluated(segment=0, step=step, loss=1.0), steps(step, [1.0]), reading(step, 0.5, 2)]
    recorded(tmp_path, events, batch=1)
    with Record.open(tmp_path) as record:
        assert same(list(record.events())) == same(events)
        rows = record._connection.execute("SELECT count(*) FROM steps").fetchone()[0]
    assert rows == 1, "events do not divide the rows of steps"


def test_segments_gaps_and_repeated_steps(tmp_path: Path) -> None:
    events = [
        started(2),
        steps(0, [3.0, 2.0, 1.0]),
        turned(3, "0.1", "0.2", knob="lr"),
        steps(3, [0.5, 0.25]),
        rewound((0, 5), (0, 3), 1, back=True),
        LayersChanged(segment=1, step=3, structure=1, parameters=9, layers=layers(2)),
        steps(3, [0.75], segment=1),
        StepsMissed(segment=1, step=90, count=86),
        steps(90, [0.5] * 3, segment=1),
        steps(2, [0.125], segment=1),  # a loop that counts from the start again
        RunEnded(status="stopped", step=3),
    ]
    history = recorded(tmp_path, events, batch=1)
    with Record.open(tmp_path) as record:
        assert same(list(record.events())) == same(events)
        assert sent(record.history()) == sent(history)
        assert record.position() == (1, 3)


def test_every_loss_rate_and_non_finite_value_is_exact(tmp_path: Path) -> None:
    events = [
        started(2),
        steps(0, [math.nan, math.inf, 0.1, -0.0], lr=math.nan),
        MetricLogged(segment=0, step=4, name="kl", value=math.nan),
        MetricLogged(segment=0, step=4, name="kl", value=-math.inf),
        Evaluated(segment=0, step=4, loss=math.inf, accuracy=None),
        NotFinite(segment=0, step=4, what="loss", layer=None, text="NaN", loss=math.nan),
        Noted(step=4, text="a name that is not UTF-8: \udcff"),
    ]
    recorded(tmp_path, events)
    with Record.open(tmp_path) as record:
        assert list(map(encode, same(list(record.events())))) == list(map(encode, same(events)))


def test_reader_beside_the_writer_sees_each_commit(tmp_path: Path) -> None:
    made = Recording(tmp_path)
    made.add(started(2), steps(0, [1.0, 0.5]))
    made.writer.commit()
    with Record.open(tmp_path) as record:
        assert (record.about.status, record.about.step) == ("running", 2)
        made.add(steps(2, [0.25]))
        assert record.position() == (0, 2), "not written yet"
        made.writer.commit()
        assert record.position() == (0, 3)
        assert record.history().loss == 0.25
        made.writer.close()


def test_intervention_is_written_at_once(tmp_path: Path) -> None:
    made = Recording(tmp_path)
    made.add(started(2), steps(0, [1.0, 0.5]), turned(2, "off", "on"))
    with Record.open(tmp_path) as record:
        assert [event.step for event in record.interventions()] == [2]
        assert record.position() == (0, 2), "with the steps before it"
    made.writer.close()


def test_many_steps_at_once_are_written_at_once(tmp_path: Path) -> None:
    """A keeper that prints JSON may need seconds for them, and be killed meanwhile."""
    made = Recording(tmp_path)
    made.add(started(2), steps(0, [1.0] * 100_000))
    with Record.open(tmp_path) as record:
        assert record.position() == (0, 100_000)
    made.writer.close()


def test_batches_are_written_after_a_tenth_of_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(writer.time, "monotonic", lambda: now_s)
    made = Recording(tmp_path)
    made.add(started(2), steps(0, [1.0]))
    made.writer.maintain()
    with Record.open(tmp_path) as record:
        assert record.position() == (0, 0)
        now_s += 0.101
        made.writer.maintain()
        assert record.position() == (0, 1)
    made.writer.close()


def test_record_is_continued(tmp_path: Path) -> None:
    first = vanishing(300)
    history = recorded(tmp_path, first)
    with Record.open(tmp_path) as record:
        again = Recording(tmp_path, record.history())
    more = [StateChanged(state="running"), *(steps(n, [0.5]) for n in range(300, 310)), ENDED]
    again.add(*more)
    again.writer.close()
    for event in more:
        history.apply(event)
    with Record.open(tmp_path) as record:
        assert same(list(record.events())) == same([*first, *more])
        assert sent(record.history()) == sent(history)
        assert record.about.status == "finished"


def test_killed_writer_leaves_all_that_was_committed(tmp_path: Path) -> None:
    made = Recording(tmp_path)
    made.add(*vanishing(100))
    made.writer.commit()
    copy = tmp_path / "killed"
    copy.mkdir()
    for end in ("", "-wal", "-shm"):
        copy.joinpath(RECORD_FILE + end).write_bytes(tmp_path.joinpath(RECORD_FILE + end).read_bytes())
    made.writer.close()
    with Record.open(copy) as record:
        assert record.position() == (0, 100)
        assert record._connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    again = Recording(copy)
    again.add(steps(100, [1.0]))
    again.writer.close()
    with Record.open(copy) as record:
        assert sum(len(e.losses) for e in record.events() if isinstance(e, StepsCompleted)) == 101


def test_closed_record_is_one_file(tmp_path: Path) -> None:
    recorded(tmp_path, vanishing(50))
    assert [path.name for path in tmp_path.iterdir()] == [RECORD_FILE]
    assert (tmp_path / RECORD_FILE).stat().st_mode & 0o777 == 0o600


def test_closed_record_can_be_read_from_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    recorded(tmp_path, vanishing(50))
    (tmp_path / RECORD_FILE).chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        with Record.open(tmp_path) as record:
            assert record.history().steps == 50
    finally:
        tmp_path.chmod(0o700)


def played(events: list[AnyEvent], until: Callable[[StepsCompleted], bool]) -> History:
    """The history of the events before the first steps that are `until`."""
    history = History()
    for event in events:
        if isinstance(event, StepsCompleted) and until(event):
            break
        history.apply(event)
    return history


def undone_and_redone() -> list[AnyEvent]:
    events: list[AnyEvent] = [started(2), *(steps(n, [4.0 - n / 100]) for n in range(200))]
    events += [turned(200, "off", "on"), *(steps(n, [1.0]) for n in range(200, 260))]
    events += [rewound((0, 260), (0, 200), 1, back=True), *(steps(n, [2.0], segment=1) for n in range(200, 230))]
    events += [rewound((1, 230), (0, 260), 2, back=False, in_force=(1,))]
    events += [*(steps(n, [0.5], segment=2) for n in range(260, 300)), RunEnded(status="finished", step=300)]
    return events


@pytest.mark.parametrize(
    "place", [(0, 0), (0, 1), (0, 150), (0, 200), (0, 259), (1, 200), (1, 215), (2, 260), (2, 299)]
)
@pytest.mark.parametrize("spacing", [100, 1 << 30], ids=["checkpoints", "none"])
def test_history_at_every_place_is_that_of_the_events_before_it(
    tmp_path: Path, place: tuple[int, int], spacing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FIRST_SPACING", spacing)
    events = undone_and_redone()
    recorded(tmp_path, events)
    expected = played(events, lambda e: (e.segment, e.first) == place)
    with Record.open(tmp_path) as record:
        if spacing < 1000:
            assert record._connection.execute("SELECT count(*) FROM checkpoints").fetchone()[0] > 3
        assert sent(record.history_at(*place)) == sent(expected)


def test_history_at_the_end_of_a_segment_is_that_before_the_undo(tmp_path: Path) -> None:
    events = undone_and_redone()
    history = recorded(tmp_path, events)
    with Record.open(tmp_path) as record:
        left = record.history_at(0, 260)
        assert (left.segment, left.steps, left.ghosts) == (0, 260, ())
        assert (record.history_at(1, 9999).segment, record.history_at(1, 9999).steps) == (1, 230)
        assert sent(record.history_at(2, 300)) == sent(history)


def test_interventions_of_the_final_state_are_in_their_order_without_those_undone(tmp_path: Path) -> None:
    def change(step: int, id_: int, segment: int = 0, knob: str = "lr") -> KnobTurned:
        return turned(step, "1", str(id_), knob=knob, id=id_, segment=segment)

    events: list[AnyEvent] = [
        started(2),
        change(10, 1),
        change(20, 2),
        change(20, 3),
        rewound((0, 30), (0, 20), 1, back=True, in_force=(1, 2)),  # 3 is undone: both are at step 20
        change(25, 4, 1, "pace"),
        rewound((1, 40), (0, 30), 2, back=False, in_force=(1, 2, 3)),
        change(50, 5, 2),
        rewound((2, 60), (0, 10), 3, back=True, in_force=()),
        change(12, 6, 3),
    ]
    for count, wanted in ((4, [1, 2, 3]), (5, [1, 2]), (6, [1, 2, 4]), (7, [1, 2, 3]), (8, [1, 2, 3, 5]), (10, [6])):
        folder = tmp_path / str(count)
        folder.mkdir()
        recorded(folder, events[:count])
        with Record.open(folder) as record:
            assert [made.id for made in record.interventions()] == wanted, count


def test_gradients_in_a_checkpoint_are_nearly_those_of_the_run(tmp_path: Path) -> None:
    history = recorded(tmp_path, [*vanishing(300), RunEnded(status="finished", step=300)])
    with Record.open(tmp_path) as record:
        found = record.history().grads[0]
    wanted = history.grads[0]
    assert found.names == wanted.names
    for width in (1, 4, 64):
        pairs = list(zip(found.window(width, 0, 300), wanted.window(width, 0, 300), strict=True))
        assert len(pairs) > 4
        for (bin_, values), (wanted_bin, wanted_values) in pairs:
            assert bin_ == wanted_bin
            assert values == pytest.approx(wanted_values, rel=1 / 128)


def test_checkpoints_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FIRST_SPACING", 1)
    monkeypatch.setattr(writer, "MAX_CHECKPOINTS", 8)
    recorded(tmp_path, [started(2), *(steps(n, [1.0]) for n in range(200))], batch=1)
    with Record.open(tmp_path) as record:
        places = [row[0] for row in record._connection.execute("SELECT step FROM checkpoints ORDER BY seq")]
    assert 4 <= len(places) <= 8
    assert places[0] < 60
    assert places[-1] == 200, "one of the end"


def test_readings_are_thinned_to_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(writer.time, "monotonic", lambda: now_s)
    made = Recording(tmp_path)
    made.writer._readings = writer.ByteRate(5_000, 20_000, lambda: now_s)
    for step in range(1500):
        made.add(steps(step, [1.0]), reading(step, 0.5 + step * 1e-5, 60))
        now_s += 0.1
    made.writer.close()
    with Record.open(tmp_path) as record:
        size = record._connection.execute("SELECT sum(length(body)) FROM events WHERE kind = 'reading'").fetchone()[0]
        kept = [event.step for event in record.events() if isinstance(event, ReadingsTaken)]
    assert 0.8 * 5_000 * 150 < size < 1.2 * 5_000 * 150
    assert kept[:5] == [0, 1, 2, 3, 4]
    gaps = [b - a for a, b in pairwise(kept[100:])]
    assert max(gaps) <= 3 * min(gaps) + 2, "evenly"


def test_readings_of_a_usual_net_are_all_kept_at_first(tmp_path: Path) -> None:
    events = [started(20), *(reading(n, 0.9) for n in range(100)), *(ledger(n, 0.9) for n in range(100))]
    recorded(tmp_path, events)
    with Record.open(tmp_path) as record:
        kept = list(record.events())
    assert sum(isinstance(event, ReadingsTaken) for event in kept) == 100
    assert sum(isinstance(event, LedgerTaken) for event in kept) == 100


def test_sqlite_alone_can_read_curve_and_interventions(tmp_path: Path) -> None:
    rejected = CommandRejected(client=1, request=2, source="send", segment=0, step=3, knob="lr", reason="≤ 0")
    recorded(tmp_path, [started(2), steps(0, [3.0, 2.0, math.nan]), turned(3, "off", "on"), rejected, ENDED])
    with sqlite3.connect(tmp_path / RECORD_FILE) as connection:
        curve = connection.execute("SELECT segment, step, loss FROM loss_curve").fetchall()
        knob = connection.execute(
            "SELECT step, body ->> 'knob', body ->> 'new' FROM events WHERE kind = 'intervention'"
        ).fetchall()
        reason = connection.execute("SELECT body ->> 'reason' FROM events WHERE kind = 'rejected'").fetchall()
        about = dict(connection.execute("SELECT key, value FROM about").fetchall())
    connection.close()
    assert curve == [(0, 0, 3.0), (0, 1, 2.0), (0, 2, None)]
    assert knob == [(3, "residual", "on")]
    assert reason == [("≤ 0",)]
    assert (about["status"], about["accuracy"]) == ("finished", 0.9)


def changed_version(folder: Path) -> None:
    with sqlite3.connect(folder / RECORD_FILE) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()


def cut(folder: Path) -> None:
    (folder / RECORD_FILE).write_bytes((folder / RECORD_FILE).read_bytes()[:50])


def other_file(folder: Path) -> None:
    (folder / RECORD_FILE).write_bytes(b"\x89PNG" * 500)


def other_database(folder: Path) -> None:
    (folder / RECORD_FILE).unlink()
    with sqlite3.connect(folder / RECORD_FILE) as connection:
        connection.executescript("CREATE TABLE cars (wheels); PRAGMA user_version = 1;")
    connection.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_version, "schema 9, from a newer version of tui-descent; this one reads schema 1"),
        (cut, "not a record"),
        (other_file, "not a record"),
        (other_database, "not a record"),
        (lambda folder: (folder / RECORD_FILE).unlink(), "nothing was recorded"),
        (lambda folder: (folder / RECORD_FILE).write_bytes(b""), "not a record"),
    ],
    ids=["newer", "cut", "other file", "other database", "missing", "empty"],
)
def test_what_is_no_record_is_refused(tmp_path: Path, change: Callable[[Path], Any], message: str) -> None:
    recorded(tmp_path, vanishing(20))
    change(tmp_path)
    with pytest.raises(RecordError, match=message):
        Record.open(tmp_path)


def test_record_of_a_newer_version_is_not_written_to(tmp_path: Path) -> None:
    recorded(tmp_path, vanishing(20))
    changed_version(tmp_path)
    before = (tmp_path / RECORD_FILE).read_bytes()
    with pytest.raises(RecordError, match="schema 9"):
        Recording(tmp_path)
    assert (tmp_path / RECORD_FILE).read_bytes() == before


def test_damaged_record_is_set_aside_by_the_writer(tmp_path: Path) -> None:
    recorded(tmp_path, vanishing(20))
    other_file(tmp_path)
    made = Recording(tmp_path)
    made.add(started(2), steps(20, [1.0]))
    made.writer.close()
    assert (tmp_path / "record-damaged.sqlite").read_bytes().startswith(b"\x89PNG")
    with Record.open(tmp_path) as record:
        assert record.position() == (0, 21)


def test_network_file_systems_are_known(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    folder = tmp_path / "a b"
    folder.mkdir()
    point = str(folder).replace(" ", r"\040")
    for kind, wanted in (("nfs4", True), ("lustre", True), ("fuse.sshfs", True), ("ext4", False), ("fuseblk", False)):
        mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {point} {kind} rw 0 0\n")
        assert is_on_network(folder, str(mounts)) is wanted, kind
        assert not is_on_network(tmp_path, str(mounts))
    assert not is_on_network(folder, str(tmp_path / "missing"))


def test_record_on_a_network_file_system_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui_descent.telemetry.record.schema.is_on_network", lambda _: True)
    made = Recording(tmp_path)
    made.add(*vanishing(30))
    made.writer.commit()
    assert not (tmp_path / f"{RECORD_FILE}-shm").exists()
    with Record.open(tmp_path) as record:
        assert record.position() == (0, 30)
    made.writer.close()


def test_only_records_with_steps_count(tmp_path: Path) -> None:
    assert not has_steps(tmp_path)
    made = Recording(tmp_path)
    made.add(started(2))
    made.writer.commit()
    assert not has_steps(tmp_path)
    made.add(steps(0, [1.0]))
    made.writer.commit()
    assert has_steps(tmp_path)
    made.writer.close()
    other_file(tmp_path)
    assert has_steps(tmp_path), "a damaged record is not thrown away"


def test_code_in_the_documentation_reads_the_record(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "record.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def rates" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    cosine = [0.05 * (1 + math.cos(n / 100)) for n in range(1500)]
    made: list[AnyEvent] = [started(2), steps(0, [0.5] * 9), steps(9, [0.1] * 1491, lr=0.3)]
    made += [steps(1500 + n, [1.0], lr=rate) for n, rate in enumerate(cosine)]
    recorded(tmp_path, made)
    connection = sqlite3.connect(f"file:{tmp_path / RECORD_FILE}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    rows = connection.execute("SELECT * FROM steps ORDER BY seq").fetchall()
    assert [loss for row in rows for loss in names["losses"](row)] == [0.5] * 9 + [0.1] * 1491 + [1.0] * 1500
    assert [rate for row in rows for rate in names["rates"](row)] == [0.1] * 9 + [0.3] * 1491 + cosine
    for query in re.findall(r'sqlite3 record\.sqlite "(SELECT.*)"', text):
        assert connection.execute(query).fetchall() is not None
    connection.close()
