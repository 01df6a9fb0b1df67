"""The file that keeps what a script prints is bounded: its head and tail are kept."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tui_descent.keeper.output_log import HEAD_BYTES, TAIL_BYTES, OutputLog

HEAD, TAIL = 1000, 4000


def written(path: Path, *chunks: bytes) -> str:
    log = OutputLog(path, head=HEAD, tail=TAIL)
    for chunk in chunks:
        log.write(chunk)
        assert path.stat().st_size <= HEAD + 2 * TAIL + 100
    log.close()
    return path.read_text()


def test_what_fits_is_kept_whole(tmp_path: Path) -> None:
    chunks = [f"line {n}\n".encode() for n in range(300)]
    assert written(tmp_path / "log", *chunks) == b"".join(chunks).decode()


@pytest.mark.parametrize("chunk", [1, 7, 300, 100_000], ids=lambda n: f"{n} lines at once")
def test_head_and_tail_of_endless_output_are_kept_in_order(chunk: int, tmp_path: Path) -> None:
    lines = [f"line {n}\n" for n in range(30_000)]
    chunks = ["".join(lines[n : n + chunk]).encode() for n in range(0, len(lines), chunk)]
    text = written(tmp_path / "log", *chunks)
    head, left_out, tail = re.split(r"\n\[… about ([\d,]+) bytes left out …\]\n", text)
    assert text.startswith("line 0\nline 1\n")
    assert head == "".join(lines)[: len(head)]
    assert "".join(lines).endswith(tail)
    assert len(head) > HEAD - 20
    assert len(tail) >= TAIL
    total = len("".join(lines))
    assert len(head) + int(left_out.replace(",", "")) + len(tail) == total


def test_a_progress_bar_does_not_push_the_lines_before_it_out(tmp_path: Path) -> None:
    bars = [f"\rstep {n} of 5000".encode() for n in range(5000)]
    epochs = "".join(f"epoch {n}: accuracy 0.9\n" for n in range(20)).encode()
    text = written(tmp_path / "log", epochs, *bars, b"\nend\n")
    assert "left out" not in text
    assert text.startswith("epoch 0: accuracy 0.9\nepoch 1")
    assert text.endswith("step 4999 of 5000\nend\n")


def test_an_endless_line_is_bounded(tmp_path: Path) -> None:
    text = written(tmp_path / "log", *[b"x" * 999] * 100, b"x" * 3_000_000)
    assert len(text) <= HEAD + 2 * TAIL + 100


def test_the_default_keeps_about_two_megabytes() -> None:
    assert HEAD_BYTES + 2 * TAIL_BYTES < 3_000_000


def test_a_full_disk_does_not_stop_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = OutputLog(tmp_path / "log", head=HEAD, tail=TAIL)
    log.write(b"before\n")
    write = os.pwrite

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    log.write(b"lost\n")
    monkeypatch.setattr(os, "pwrite", write)
    log.write(b"after\n")
    log.close()
    assert (tmp_path / "log").read_text() == "before\nafter\n"
