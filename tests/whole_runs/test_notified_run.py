"""`--notify` on the command line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from same_process import run

WITHIN_S = 60
OPTIONS = ("run", "vanishing", "--headless", "--steps", "60", "--threads", "1")


def test_command_is_run_for_the_finding_and_at_the_end(tmp_path: Path) -> None:
    script = tmp_path / "notify me.sh"
    script.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$TUI_DESCENT_NOTIFY_EVENT: $*\" >> '{tmp_path}/written'\n")
    script.chmod(0o700)
    done = run(*OPTIONS, "--notify", f"'{script}' --to me")
    assert done.code == 0
    end_s = time.monotonic() + WITHIN_S
    while (text := (tmp_path / "written").read_text() if (tmp_path / "written").exists() else "").count("\n") < 2:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    first, last = text.splitlines()
    assert first.startswith("finding: --to me vanishing: step 50: vanishing. blocks.0 gets ")
    assert last.startswith("end: --to me vanishing: finished at step 60, held-out loss 2.3")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-command now", "--notify no-such-command: command not found"),
        ("a 'b", '--notify "a \'b": no closing quotation'),
        ("", "--notify: no command; for example --notify 'notify-send tui-descent'"),
    ],
)
def test_wrong_command_is_refused_before_the_run(home: Path, command: str, message: str) -> None:
    done = run(*OPTIONS, "--notify", command)
    assert (done.code, done.stdout, done.stderr) == (2, "", f"tui-descent: {message}\n")
    assert not (home / "runs").exists()
