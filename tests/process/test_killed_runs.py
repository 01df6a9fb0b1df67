"""What a killed headless run leaves behind is removed at the next start, but not while its trainer is alive."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import tiny_trainer
from runs import TUI, WITHIN_S, Live, children, recorded, run, wait_for_end, wait_until_free

from tui_descent.paths import new_run


def test_a_killed_run_leaves_its_record(home: Path) -> None:
    with Live("exec", "--json", "--", TUI[0], tiny_trainer.__file__) as live:
        live.until(lambda line: line["event"] == "step" and line["step"] == 10)  # steps are recorded within 0.1 s
        (trainer,) = children(live.process.pid)
        live.process.kill()
        wait_for_end(trainer)
    (folder,) = (home / "runs").iterdir()
    wait_until_free(folder)
    assert run("exec", "--headless", "--", TUI[0], tiny_trainer.__file__, "3").code == 0
    (killed, steps), ended = recorded(home)
    assert (killed, steps > 0, ended) == ("stopped", True, ("finished", 3))


def test_folder_of_a_run_that_was_killed_before_its_first_step_is_removed(home: Path) -> None:
    with Live("exec", "--json", "--", TUI[0], "-c", "import time; time.sleep(600)") as live:
        live.until(lambda line: line["event"] == "state")
        while not (script := children(live.process.pid)):
            assert live.process.poll() is None
        live.process.kill()
        live.process.wait(WITHIN_S)
        os.kill(script[0], signal.SIGKILL)
        wait_for_end(script[0])
    assert len(list((home / "runs").iterdir())) == 1
    assert run("exec", "--headless", "--", TUI[0], tiny_trainer.__file__, "3").code == 0
    assert recorded(home) == [("finished", 3)]


def test_the_folder_of_a_script_that_is_still_running_is_kept(home: Path) -> None:
    with Live("exec", "--json", "--", TUI[0], "-c", "import time; time.sleep(600)") as live:
        live.until(lambda line: line["event"] == "state")
        while not (script := children(live.process.pid)):
            assert live.process.poll() is None
        (folder,) = (home / "runs").iterdir()
        live.process.kill()
        live.process.wait(WITHIN_S)
        new_run("x", str(home / "runs"))
        assert folder.exists()
        os.kill(script[0], signal.SIGKILL)
        wait_for_end(script[0])
        new_run("x", str(home / "runs"))
        assert not folder.exists()
