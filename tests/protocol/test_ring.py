"""The shared memory: records are read in order, losses are counted, and a killed writer loses nothing."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ring_writer import PACKED, rows, values

from tui_descent.protocol import ring as module
from tui_descent.protocol.ring import FEWEST_READINGS, LAYOUT, MOST_READINGS, Ring, StepRecord, ring_file

WRITER = Path(__file__).parents[1] / "helpers" / "ring_writer.py"


@pytest.fixture
def rings(home: Path) -> Iterator[tuple[Ring, Ring]]:
    """A small ring: the writer's view and the reader's view."""
    file = ring_file(home)
    writer = Ring.create(file, layers=3, columns=2, steps=8)
    reader = Ring.open(file)
    yield writer, reader
    reader.close()
    writer.close()
    os.close(file)


def write(ring: Ring, first: int, count: int) -> None:
    for step in range(first, first + count):
        ring.write_step(step, *values(step), 0, False)


def record(step: int, *, segment: int = 0, skipped: bool = False) -> StepRecord:
    loss, lr, time_s = values(step)
    return StepRecord(step, loss, lr, time_s, segment, skipped)


def test_steps_are_read_once_and_in_order(rings: tuple[Ring, Ring]) -> None:
    writer, reader = rings
    assert reader.read_steps() == []
    write(writer, 0, 5)
    assert reader.read_steps() == [record(n) for n in range(5)]
    assert reader.read_steps() == []
    write(writer, 5, 7)  # over the ring's end
    assert reader.read_steps() == [record(n) for n in range(5, 12)]
    assert reader.missed == 0


def test_segment_and_skipped_are_transferred(rings: tuple[Ring, Ring]) -> None:
    writer, reader = rings
    writer.write_step(7, *values(7), 3, True)
    assert reader.read_steps() == [record(7, segment=3, skipped=True)]


def test_non_finite_losses_are_transferred(rings: tuple[Ring, Ring]) -> None:
    writer, reader = rings
    for loss in (float("nan"), float("inf"), float("-inf"), 1e-320):
        writer.write_step(0, loss, 0.1, 0.0, 0, False)
    assert [repr(found.loss) for found in reader.read_steps()] == ["nan", "inf", "-inf", "1e-320"]


def test_a_full_ring_is_read_completely(rings: tuple[Ring, Ring]) -> None:
    writer, reader = rings
    write(writer, 0, 8)
    assert [found.step for found in reader.read_steps()] == list(range(8))
    assert reader.missed == 0


@pytest.mark.parametrize("written", [9, 12, 16, 17, 1000])
def test_overwritten_steps_are_counted_as_missed(rings: tuple[Ring, Ring], written: int) -> None:
    writer, reader = rings
    write(writer, 0, written)
    found = [read.step for read in reader.read_steps()]
    assert found == list(range(written - len(found), written)), "the newest, without a gap"
    assert len(found) >= 4, "half a ring at least"
    assert reader.missed == written - len(found) > 0
    write(writer, written, 3)
    assert [read.step for read in reader.read_steps()] == [written, written + 1, written + 2]


def test_an_impossible_record_number_does_not_block_the_reader(rings: tuple[Ring, Ring]) -> None:
    writer, reader = rings
    write(writer, 0, 6)
    struct.pack_into("<Q", writer._memory, module.HEADER_BYTES + 6 * module.STEP.size + module.NUMBER_AT, 9)
    assert [found.step for found in reader.read_steps(limit=100)] == list(range(6))


def test_steps_beyond_the_limit_are_read_by_the_next_call(rings: tuple[Ring, Ring]) -> None:
    writer, reader = rings
    write(writer, 0, 8)
    assert [found.step for found in reader.read_steps(limit=3)] == [0, 1, 2]
    assert [found.step for found in reader.read_steps(limit=30)] == [3, 4, 5, 6, 7]


def test_readings_are_read_once_in_order(rings: tuple[Ring, Ring]) -> None:
    writer, reader = rings
    for step in range(5):
        writer.write_reading(step, 1, step * 2.0, 0.01, [[3.0, step, n] for n in range(3)])
    found = list(reader.read_readings())
    assert [(read.step, read.segment, read.global_grad_norm, read.watch_cost) for read in found] == [
        (step, 1, step * 2.0, 0.01) for step in range(5)
    ]
    assert found[4].rows == [(3.0, 4.0, 0.0), (3.0, 4.0, 1.0), (3.0, 4.0, 2.0)]
    assert list(reader.read_readings()) == []


def test_a_reading_keeps_its_rows_and_the_number_of_its_layer_list(rings: tuple[Ring, Ring]) -> None:
    writer, reader = rings
    counts = [3, 0, 1, 2, 3, 1] * 200
    for step, count in enumerate(counts):
        writer.write_reading(step, 0, 0.0, 0.0, [[1.0, step, n] for n in range(count)], structure=step % 7)
    found = list(reader.read_readings())
    assert len(found) == MOST_READINGS
    for read in found:
        assert read.rows == [(1.0, float(read.step), float(n)) for n in range(counts[read.step])]
        assert read.structure == read.step % 7


def test_a_reading_with_too_many_rows_is_not_written(rings: tuple[Ring, Ring]) -> None:
    writer, reader = rings
    with pytest.raises(AssertionError):
        writer.write_reading(0, 0, 0.0, 0.0, [[0.0, 0.0, 0.0]] * 4)
    assert list(reader.read_readings()) == []


def test_the_newest_readings_survive_when_there_are_too_many(rings: tuple[Ring, Ring]) -> None:
    writer, reader = rings
    for step in range(MOST_READINGS * 3 + 5):
        writer.write_reading(step, 0, 0.0, 0.0, [[0.0, 0.0, 0.0]] * 3)
    steps = [found.step for found in reader.read_readings()]
    assert steps == list(range(MOST_READINGS * 2 + 5, MOST_READINGS * 3 + 5))
    assert reader.missed_readings == MOST_READINGS * 2 + 5
    writer.write_reading(7, 0, 0.0, 0.0, [[0.0, 0.0, 0.0]] * 3)
    assert [found.step for found in reader.read_readings()] == [7]
    assert reader.missed_readings == MOST_READINGS * 2 + 5


def test_the_number_of_readings_depends_on_the_number_of_layers(home: Path) -> None:
    for layers, readings in ((30, MOST_READINGS), (1000, 43), (10_000, FEWEST_READINGS)):
        file = ring_file(home)
        ring = Ring.create(file, layers=layers, columns=11, steps=4)
        size = os.fstat(file).st_size - module.HEADER_BYTES - 4 * module.STEP.size
        assert size == readings * (module.READING_HEAD.size + layers * 12 * 8)
        ring.close()


def test_a_net_without_layers_has_a_ring(home: Path) -> None:
    file = ring_file(home)
    writer = Ring.create(file, layers=0, columns=5, steps=4)
    reader = Ring.open(file)
    writer.write_reading(3, 0, 1.5, 0.0, [])
    assert [found.step for found in reader.read_readings()] == [3]
    reader.close()
    writer.close()


def test_the_reader_sets_a_flag_that_the_writer_sees(rings: tuple[Ring, Ring]) -> None:
    trainer, keeper = rings
    assert not trainer.flagged()
    keeper.raise_flag()
    assert trainer.flagged()
    trainer.lower_flag()
    assert not trainer.flagged()


def test_the_reader_sees_the_heartbeat_of_the_writer(rings: tuple[Ring, Ring]) -> None:
    trainer, keeper = rings
    now_s = time.monotonic()
    trainer.beat(now_s)
    assert keeper.heartbeat() == now_s


@pytest.fixture(params=["memory", "disk"])
def file(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The file for a ring, in memory or on disk."""
    if request.param == "disk":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif not hasattr(os, "memfd_create"):
        pytest.skip("this system has no unnamed files in memory")
    return ring_file(home)


def test_the_file_is_fully_allocated_and_has_no_name(file: int, home: Path) -> None:
    ring = Ring.create(file, layers=10, columns=5)
    found = os.fstat(file)
    assert found.st_size > 1 << 20
    assert found.st_blocks * 512 >= found.st_size, "a hole on a full disk would kill the trainer at a later step"
    assert found.st_nlink == 0
    assert os.listdir(home) == [], "nothing is left once both processes have ended"
    ring.close()


def test_without_memory_files_the_ring_is_in_the_runs_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(name: str, flags: int) -> int:
        raise PermissionError(name, flags)

    monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)
    file = ring_file(home)
    assert os.fstat(file).st_dev == home.stat().st_dev
    assert os.fstat(file).st_mode & 0o777 == 0o600
    os.close(file)


def test_creating_a_ring_without_enough_space_raises(home: Path) -> None:
    code = (
        "import resource, sys, pathlib\n"
        "from tui_descent.protocol.ring import Ring, ring_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try: Ring.create(ring_file(pathlib.Path(sys.argv[1])), layers=10, columns=5)\n"
        "except OSError as error: print('OSError')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(home)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "OSError\n", "")
    assert os.listdir(home) == []


def test_a_second_ring_in_the_same_file_is_refused(file: int) -> None:
    writer = Ring.create(file, layers=3, columns=2, steps=8)
    write(writer, 0, 3)
    with pytest.raises(FileExistsError):
        Ring.create(file, layers=3, columns=2)
    reader = Ring.open(file)
    assert [found.step for found in reader.read_steps()] == [0, 1, 2]
    reader.close()
    writer.close()


def test_a_file_of_another_layout_is_refused(home: Path) -> None:
    file = ring_file(home)
    Ring.create(file, layers=1, columns=1, steps=4).close()
    os.pwrite(file, bytes([os.pread(file, 1, 4)[0] + 1]), 4)
    with pytest.raises(ValueError, match=f"not a ring of layout {LAYOUT}$"):
        Ring.open(file)
    os.pwrite(file, b"\0" * 8192, 0)
    with pytest.raises(ValueError, match="not a ring"):
        Ring.open(file)
    os.close(file)


def test_the_ring_can_be_read_after_the_writer_has_closed_it(home: Path) -> None:
    file = ring_file(home)
    writer = Ring.create(file, layers=1, columns=1, steps=8)
    write(writer, 0, 3)
    writer.close()
    reader = Ring.open(file)
    assert [found.step for found in reader.read_steps()] == [0, 1, 2]
    reader.close()


def start(file: int, ring_steps: int, *count: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, str(WRITER), str(file), str(ring_steps), *map(str, count)],
        stdout=subprocess.PIPE,
        pass_fds=[file],
    )
    assert process.stdout is not None
    process.stdout.read(PACKED.size)  # the ring exists now
    return process


@pytest.mark.parametrize("bytes_until_the_kill", [8, 800, 80_000, 160_008, 400_000])
def test_a_killed_writer_loses_no_completed_step(home: Path, bytes_until_the_kill: int) -> None:
    file = ring_file(home)
    process = start(file, 1 << 17)
    assert process.stdout is not None
    heard = bytearray(process.stdout.read(bytes_until_the_kill))
    process.send_signal(signal.SIGKILL)
    heard += process.stdout.read()
    process.stdout.close()
    assert process.wait(30) == -signal.SIGKILL
    acknowledged = PACKED.unpack_from(heard, len(heard) // PACKED.size * PACKED.size - PACKED.size)[0]

    reader = Ring.open(file)
    found = []
    while chunk := reader.read_steps():
        found += chunk
    readings = list(reader.read_readings())
    reader.close()
    assert bytes_until_the_kill // PACKED.size <= acknowledged < 1 << 17
    assert acknowledged <= len(found) <= acknowledged + 1
    assert found == [record(n, segment=n // 1000, skipped=n % 7 == 0) for n in range(len(found))]
    assert reader.missed == 0
    for reading in readings:
        assert reading.rows == [tuple(row) for row in rows(reading.step)]


def test_a_reader_that_is_overtaken_never_sees_a_torn_record(home: Path) -> None:
    total = 300_000
    file = ring_file(home)
    process = start(file, 64, total)
    reader = Ring.open(file)
    seen = torn = readings_seen = 0
    last = last_reading = -1
    gone = False
    while not gone:
        gone = process.poll() is not None  # before the last read
        while chunk := reader.read_steps(limit=40):
            for found in chunk:
                torn += found != record(found.step, segment=found.step // 1000, skipped=found.step % 7 == 0)
                assert found.step > last
                last = found.step
            seen += len(chunk)
        for reading in reader.read_readings():
            torn += reading.rows != [tuple(row) for row in rows(reading.step)]
            torn += reading.global_grad_norm != reading.step * 2.0
            assert reading.step > last_reading
            last_reading = reading.step
            readings_seen += 1
    assert process.stdout is not None
    process.stdout.close()
    reader.close()
    assert process.returncode == 0
    assert torn == 0
    assert seen + reader.missed == total
    assert reader.missed > 0, "the writer must be faster than the reader in this test"
    assert last == total - 1
    assert readings_seen > 0


def test_steps_and_readings_of_a_ring_do_not_overlap(home: Path) -> None:
    file = ring_file(home)
    ring = Ring.create(file, layers=2, columns=2, steps=8)
    reader = Ring.open(file)
    for n in range(8):
        ring.write_step(n, *values(n), 0, False)
    for n in range(MOST_READINGS):
        ring.write_reading(n, 0, 0.0, 0.0, [[-1.0, -1.0, -1.0]] * 2)
    ring.beat(5.0)
    reader.raise_flag()
    assert [found.step for found in reader.read_steps()] == list(range(8))
    assert len(list(reader.read_readings())) == MOST_READINGS
    expected = module.HEADER_BYTES + 8 * module.STEP.size + MOST_READINGS * (module.READING_HEAD.size + 2 * 3 * 8)
    assert os.fstat(file).st_size == expected
    reader.close()
    ring.close()
