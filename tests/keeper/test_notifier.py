"""`--notify`: when the command is run, what it gets, and that nothing waits for it or breaks because of it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from factories import steps

from tui_descent.keeper import notifier
from tui_descent.keeper.notifier import Notifier, words_of
from tui_descent.protocol.events import AnyEvent, Diagnosed, EndReached, NotFinite, RunEnded, StateChanged
from tui_descent.protocol.launch import ENV_FOLDER, KEEPER_LOG_FILE, Launch
from tui_descent.telemetry.history import History

WITHIN_S = 60
# Appends its arguments and the facts in its environment to a file.
WRITER = """
import json, os, sys
facts = {k.removeprefix("TUI_DESCENT_NOTIFY_"): v for k, v in os.environ.items() if k.startswith("TUI_DESCENT_NOTIFY_")}
with open(sys.argv[1], "a") as file:
    file.write(json.dumps([sys.argv[2:], facts, "TUI_DESCENT_RUN" in os.environ]) + "\\n")
"""
LOSS_NAN = NotFinite(segment=0, step=7, what="loss", layer=None, text="loss is nan at step 7", loss=float("nan"))


def launch_in(folder: Path, *command: str) -> Launch:
    return Launch(run="r-1", name="my run", folder=str(folder), socket=None, notify=command)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return tmp_path / "written"


@pytest.fixture
def told(tmp_path: Path, written: Path) -> Notifier:
    history = History()
    history.apply(steps(0, [2.0, 1.5, 0.25]))
    return Notifier((sys.executable, "-S", "-c", WRITER, str(written), "a b"), launch_in(tmp_path, "x"), history)


def until(reached: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WITHIN_S
    while not reached():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def lines(told: Notifier, written: Path) -> list[tuple[list[str], dict[str, str], bool]]:
    until(lambda: not told.trouble() and not told._running)
    return [tuple(json.loads(line)) for line in written.read_text().splitlines()] if written.exists() else []


def diagnosed(finding: str, step: int = 50, kind: str = "dynamics") -> Diagnosed:
    return Diagnosed(segment=0, step=step, finding=finding, kind=kind, sure=0.9, sentence="Press r.")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("event", "occasion", "text"),
    [
        (RunEnded(status="finished", step=3, loss=0.5), "end", "my run: finished at step 3, loss 0.5"),
        (RunEnded(status="finished", step=3, loss=0.5, accuracy=0.8), "end",
         "my run: finished at step 3, held-out loss 0.5"),
        (RunEnded(status="lost", step=3, reason="killed by SIGKILL"), "end",
         "my run: lost at step 3: killed by SIGKILL, training loss 0.25"),
        (RunEnded(status="diverged", step=3, reason="loss is nan"), "divergence",
         "my run: diverged at step 3: loss is nan"),
        (EndReached(segment=0, step=1200, loss=0.5), "end", "my run: has made all 1,200 steps, loss 0.5"),
        (StateChanged(state="held", reason="loss is nan; u goes back"), "hold",
         "my run: held at step 3: loss is nan; u goes back"),
        (LOSS_NAN, "divergence", "my run: loss is nan at step 7"),
        (diagnosed("vanishing"), "finding", "my run: step 50: vanishing. Press r."),
    ],
)  # fmt: skip
def test_command_gets_a_sentence_and_the_facts(
    event: AnyEvent, occasion: str, text: str, told: Notifier, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_FOLDER, "the folder of this run")
    told.add(event)
    ((arguments, facts, is_this_run),) = lines(told, written)
    assert arguments == ["a b", text]
    assert (facts["EVENT"], facts["RUN"], facts["TEXT"]) == (occasion, "r-1", text)
    assert float(facts["LOSS"]) == float(facts["LOSS"]) or occasion == "divergence"
    assert int(facts["STEP"]) > 0
    assert not is_this_run


@pytest.mark.parametrize(
    "event",
    [
        diagnosed("healthy"), diagnosed("converged"), diagnosed("not clear"), diagnosed("diverged", kind="numerics"),
        StateChanged(state="paused"), StateChanged(state="waiting"), steps(3, [1.0]),
        NotFinite(segment=0, step=7, what="loss", layer=None, text="t", then="hold"),  # `held` follows
        NotFinite(segment=0, step=7, what="loss", layer=None, text="t", then="end"),  # `RunEnded` follows
    ],
)  # fmt: skip
def test_other_events_are_no_occasion(event: AnyEvent, told: Notifier, written: Path) -> None:
    told.add(event)
    assert lines(told, written) == []


def test_each_kind_has_a_bounded_rate(told: Notifier, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(notifier.time, "monotonic", lambda: now_s)
    for n in range(50):
        told.add(diagnosed(f"finding {n}"))
        told.add(StateChanged(state="held", reason="r"))
    assert len(told._running) == 2
    now_s += notifier.LEAST_S
    told.add(diagnosed("finding 0"))  # the same again
    told.add(diagnosed("finding 1"))
    assert len(told._running) == 3
    now_s += notifier.SAME_AFTER_S
    told.add(diagnosed("finding 0"))
    monkeypatch.undo()
    found = [facts["TEXT"] for _, facts, _ in lines(told, written)]
    assert sorted(found) == sorted(
        ["my run: step 50: finding 0. Press r."] * 2
        + ["my run: step 50: finding 1. Press r.", "my run: held at step 3: r"]
    )


def test_loss_that_stays_nan_is_notified_once(told: Notifier, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(notifier.time, "monotonic", lambda: now_s)
    for _ in range(60):  # such a loop reports it every thousand steps
        told.add(LOSS_NAN)
        now_s += 9.0
    monkeypatch.undo()
    assert len(lines(told, written)) == 1


def test_the_end_is_notified_once_even_if_much_was_notified_before(told: Notifier, written: Path) -> None:
    told.add(EndReached(segment=0, step=3, loss=0.5))
    told.add(RunEnded(status="finished", step=3))
    told.add(EndReached(segment=0, step=6, loss=0.5))  # more steps were asked for
    told.add(RunEnded(status="stopped", step=6))
    assert len(lines(told, written)) == 3


def test_slow_commands_are_bounded_and_nothing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "LEAST_S", 0.0)
    told = Notifier((sys.executable, "-S", "-c", "import time; time.sleep(60)"), launch_in(tmp_path), History())
    begun_s = time.monotonic()
    for n in range(20):
        told.add(diagnosed(f"finding {n}"))
    assert time.monotonic() - begun_s < 30
    assert len(told._running) == notifier.MOST_AT_ONCE
    for process in told._running:
        process.kill()
    until(lambda: [told.trouble(), told._running][1] == [])


def test_command_runs_in_a_session_of_its_own(told: Notifier) -> None:
    told._command = (sys.executable, "-S", "-c", "import time; time.sleep(60)")
    told.add(EndReached(segment=0, step=3))
    (process,) = told._running
    assert os.getsid(process.pid) == process.pid
    process.kill()
    process.wait()


def test_commands_go_on_after_the_keeper(told: Notifier, written: Path) -> None:
    told.add(EndReached(segment=0, step=3))
    told.close()
    until(lambda: written.exists() and written.read_text().endswith("\n"))


def test_failing_command_is_one_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "LEAST_S", 0.0)
    told = Notifier((sys.executable, "-S", "-c", "raise SystemExit('no network')"), launch_in(tmp_path), History())
    notes: list[str] = []
    for n in range(3):
        told.add(diagnosed(f"finding {n}"))
        until(lambda: bool(notes.append(told.trouble()) or not told._running))
    assert [note for note in notes if note] == [
        f"--notify: {Path(sys.executable).name} ended with exit code 1; see keeper.log"
    ]
    assert (tmp_path / KEEPER_LOG_FILE).read_text() == "no network\n" * 3


@pytest.mark.parametrize("what", ["command", "folder"])
def test_command_that_cannot_start_is_one_note(what: str, tmp_path: Path) -> None:
    folder = tmp_path if what == "command" else tmp_path / "removed"
    told = Notifier(("./no-such-command",), launch_in(folder), History())
    told.add(EndReached(segment=0, step=3))
    told.add(EndReached(segment=0, step=6))
    assert told.trouble() == "--notify: cannot run no-such-command: No such file or directory"
    assert told.trouble() == ""


def test_words_are_split_as_by_a_shell_but_none_runs() -> None:
    assert words_of("ntfy publish 'my topic' $(x) > y") == ("ntfy", "publish", "my topic", "$(x)", ">", "y")
    for text, why in (("a 'b", "no closing quotation"), ("  ", "no command"), ("a\0b", "null character")):
        with pytest.raises(ValueError, match=f"--notify.*{why}"):
            words_of(text)


def test_control_characters_do_not_reach_the_command(told: Notifier, written: Path) -> None:
    told.add(StateChanged(state="held", reason="a\x1b[31m\nb" + "c" * 1000))
    ((arguments, _, _),) = lines(told, written)
    assert arguments[1].startswith("my run: held at step 3: a [31m bccc")
    assert len(arguments[1]) == notifier.MOST_TEXT


def test_command_comes_from_the_option_or_the_environment(tmp_path: Path) -> None:
    def of(launch: Launch, **environment: str) -> Notifier | None:
        return Notifier.of(launch, History(), environment)

    assert of(launch_in(tmp_path)) is None
    assert of(launch_in(tmp_path), TUI_DESCENT_NOTIFY=" ") is None
    by_option = of(launch_in(tmp_path, "a", "b"), TUI_DESCENT_NOTIFY="c")
    assert by_option is not None
    assert by_option._command == ("a", "b")
    by_environment = of(launch_in(tmp_path), TUI_DESCENT_NOTIFY="c 'd e'")
    assert by_environment is not None
    assert by_environment._command == ("c", "d e")
    wrong = of(launch_in(tmp_path), TUI_DESCENT_NOTIFY="c 'd")
    assert wrong is not None
    wrong.add(EndReached(segment=0, step=3))
    assert wrong.trouble() == 'TUI_DESCENT_NOTIFY "c \'d": no closing quotation'
