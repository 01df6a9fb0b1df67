"""Inherited descriptors: they have high numbers, and a closed or reused one is detected."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tui_descent.protocol import inherited_fds
from tui_descent.protocol.ring import ring_file

SCRIPT = "import os; from tui_descent.protocol.inherited_fds import find_fd; print(find_fd(os.environ['FILE']))"


def test_a_descriptor_is_moved_to_a_high_number_and_the_old_one_closed(home: Path) -> None:
    low = os.open(home / "file", os.O_RDWR | os.O_CREAT)
    found = os.fstat(low)
    high = inherited_fds.move_to_high_fd(low)
    assert high >= inherited_fds.FIRST_FD
    assert os.path.samestat(os.fstat(high), found)
    assert not os.get_inheritable(high)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(low)
    os.close(high)


def test_socket_pairs_and_rings_have_high_descriptors(home: Path) -> None:
    ours, theirs = inherited_fds.socket_pair()
    file = ring_file(home)
    assert min(ours.fileno(), theirs.fileno(), file) >= inherited_fds.FIRST_FD
    ours.sendall(b"a word")
    assert theirs.recv(100) == b"a word"
    assert theirs.family == socket.AF_UNIX
    ours.close()
    theirs.close()
    os.close(file)


def test_a_low_file_limit_still_avoids_the_standard_streams(home: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = os.open(home / "file", os.O_RDWR | os.O_CREAT)
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
    try:
        file = inherited_fds.move_to_high_fd(low)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert 3 <= file < 60
    os.close(file)


@pytest.mark.parametrize(
    ("shell", "known"),
    [
        ("", True),
        ("exec {n}>&-;", False),
        ("exec {n}>&1;", False),
        ("exec {n}<&0;", False),
        ("exec {n}<>other;", False),
    ],
    ids=["unchanged", "closed", "output", "input", "another file"],
)
def test_a_descriptor_that_a_script_closed_or_reused_is_not_found(home: Path, shell: str, known: bool) -> None:
    file = ring_file(home)
    done = subprocess.run(
        ["bash", "-c", f'{shell.format(n=file)} exec {sys.executable} -c "{SCRIPT}"'],
        env=os.environ | {"FILE": inherited_fds.describe_fd(file)},
        pass_fds=[file],
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == (f"{file}\n" if known else "None\n")
    assert os.fstat(file).st_size == 0
    os.close(file)


@pytest.mark.parametrize("text", ["", "7", "x:y:z", "-1:0:0", "999999:1:1"])
def test_an_invalid_description_finds_nothing(text: str) -> None:
    assert inherited_fds.find_fd(text) is None
