"""Users' scripts that call watch(): short ones that succeed, fail, exit or die in many ways."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_trainer
from runs import WITHIN_S, Live, Outcome, children, recorded, run, temporary_home, together

SCRIPT = """\
import torch
from torch import nn
from tui_descent import watch

torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
with watch(model, optimizer, name="my run") as run:
    for step in range({steps}):
        x = torch.randn(32, 4)
        loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        run.step(loss)
        {then}
print("the script goes on")
"""
BLIND = (
    SCRIPT.replace("from tui_descent import watch\n", "")
    .replace('with watch(model, optimizer, name="my run") as run:', "if True:")
    .replace("run.step(loss)", "print(repr(loss.item()))")
)
ENDS = {
    "good": "pass",
    "raising": 'if step == 7: raise ValueError("boom \\x1b[31m red")',
    "exiting with 7": "if step == 7: __import__('sys').exit(7)",
    "interrupted": "if step == 7: __import__('signal').raise_signal(2)",
    "closing files": "if step == 7: __import__('os').closerange(3, 1024)",
    "forking and logging too much": """
        if step == 7 and not __import__('os').fork(): __import__('sys').exit(0)
        if step == 39: [run.log(f'metric {k:0100}', k) for k in range(30_000)]""",
}
NAN = "if step == 7: model[0].weight.data.fill_(float('nan'))"

# Other scripts: without `with`, and with a framework that catches the exception that ends the loop.
OTHER = {
    "without with": SCRIPT.replace(
        'with watch(model, optimizer, name="my run") as run:', 'run = watch(model, optimizer, name="my run")\nif True:'
    ),
    "in a child": """\
import subprocess, sys
if len(sys.argv) == 1:
    sys.exit(subprocess.call([sys.executable, __file__, "child"]))
"""
    + SCRIPT
    + "raise SystemExit(6)\n",
    "in a framework": SCRIPT.replace(
        'with watch(model, optimizer, name="my run") as run:',
        'run = watch(model, optimizer, name="my run").__enter__()\ntry:\n  if True:',
    ).replace(
        'print("the script',
        'except BaseException as error:\n    print("saving after", type(error).__name__)\nprint("the script',
    ),
}

# Scripts without torch: the steps they make, the end they report, and what they do then.
WITHOUT_TORCH = {
    "silent": ("8", "finished", ""),
    "leaving": ("8", "untold", "import os; os._exit(0)"),
    "crashing": ("8", "untold", "import os; os.kill(os.getpid(), 11)"),
    "raising late": ("40", "finished", 'raise RuntimeError("no room for the plots")'),
    "exiting late": ("40", "finished", 'print("the script goes on"); sys.exit(5)'),
    "killed late": ("40", "finished", 'print("the script goes on"); import os; os.kill(os.getpid(), 9)'),
    "failing": ("8", "failed", 'raise ValueError("boom \x1b[31m red")'),
    "interrupted late": ("8", "stopped", "import signal; signal.raise_signal(2)"),
}
# Each of these takes seconds to import torch. What the loop does is tested in one process: test_run_end.py,
# test_without_with.py and test_keeper_link.py; what `exec` makes of it is tested on the scripts without torch, here and
# in test_script_terminal.py.
HEAVY = {
    "raising", "exiting with 7", "interrupted", "closing files", "forking and logging too much", "without with",
    "in a child",
}  # fmt: skip


def write(folder: Path, name: str, *, steps: int = 40, then: str = "pass", text: str = SCRIPT) -> Path:
    path = folder / f"{name.replace(' ', '_')}.py"
    path.write_text(text.format(steps=steps, then=then))
    return path


@pytest.fixture(scope="module")
def executed(request: pytest.FixtureRequest) -> Iterator[dict[str, Outcome]]:
    """All scripts, or without the heavy ones if no heavy test of this file is run."""
    heavy = any(item.path == request.path and item.get_closest_marker("heavy") for item in request.session.items)
    with temporary_home() as home:
        scripts: dict[str, tuple[str, ...]] = {
            name: (str(write(home, name, then=then)),) for name, then in ENDS.items()
        }
        scripts |= {name: (str(write(home, name, text=text, then=NAN)),) for name, text in OTHER.items()}
        scripts |= {name: (tiny_trainer.__file__, *words) for name, words in WITHOUT_TORCH.items()}
        scripts = {name: words for name, words in scripts.items() if heavy or name not in HEAVY}
        options = ("exec", "--headless", "--json", "--watch-every", "10", "--", sys.executable)
        yield dict(zip(scripts, together(*((*options, *words) for words in scripts.values()), home=home), strict=True))


def test_a_script_is_watched_until_it_ends(executed: dict[str, Outcome]) -> None:
    outcome = executed["good"]
    assert outcome.code == 0
    assert (outcome.ended["status"], outcome.ended["step"], outcome.ended["exit_code"]) == ("finished", 40, 0)
    assert len(outcome.losses) == 40
    assert [line["step"] for line in outcome.events("reading")] == [0, 10, 20, 30]
    (started,) = outcome.events("run_started")
    assert started["name"] == "my run"
    assert [layer["name"] for layer in started["layers"]] == ["0", "2"]
    assert started["parameters"] == 97
    assert "the script goes on" not in outcome.stdout, "its output is no line of ours"


def test_watching_a_script_does_not_change_its_losses(executed: dict[str, Outcome], tmp_path: Path) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(write(tmp_path, "blind", text=BLIND)))
    assert [float(line) for line in printed.getvalue().splitlines()[:-1]] == executed["good"].losses


@pytest.mark.parametrize("name", ["failing", pytest.param("raising", marks=pytest.mark.heavy)])
def test_a_script_that_raises_has_failed_and_its_error_is_shown(name: str, executed: dict[str, Outcome]) -> None:
    outcome = executed[name]
    assert outcome.code == 1
    assert (outcome.ended["status"], outcome.ended["step"]) == ("failed", 8)
    assert outcome.ended["reason"].startswith("ValueError: boom" if name == "raising" else "it → failed")
    assert outcome.ended["log_tail"][-1].startswith("ValueError: boom")
    script = "raising.py" if name == "raising" else "tiny_trainer.py"
    assert any(script in line for line in outcome.ended["log_tail"])
    assert "ValueError: boom" in outcome.stderr
    assert "\x1b" not in outcome.stderr, "nothing of a script's words steers the terminal"
    assert len(outcome.losses) == 8


@pytest.mark.parametrize(
    ("name", "why"), [("leaving", "exit code 0"), ("crashing", "signal 11")], ids=["os._exit", "segfault"]
)
def test_a_script_that_dies_is_lost_and_not_finished(name: str, why: str, executed: dict[str, Outcome]) -> None:
    outcome = executed[name]
    assert outcome.code == 4
    assert outcome.ended["status"] == "lost"
    assert outcome.ended["reason"] == f"trainer lost ({why}) at step 8"
    assert len(outcome.losses) == 8, "every completed step is reported"


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["closing files", "forking and logging too much"])
def test_a_script_that_makes_it_hard_to_send_is_watched_until_it_ends(name: str, executed: dict[str, Outcome]) -> None:
    outcome = executed[name]
    assert (outcome.code, outcome.ended["status"], outcome.ended["step"]) == (0, "finished", 40)
    assert outcome.losses == executed["good"].losses
    notes = [note["text"] for note in outcome.events("note")]
    if name == "closing files":
        assert notes == ["the script has closed the connection: losses are shown, keys have no effect"]
    else:
        dropped = int(notes[-1].split()[0].replace(",", "")) if notes else 0
        assert len(outcome.events("metric")) + dropped == 30_000


@pytest.mark.heavy
def test_the_exit_code_of_a_script_decides_how_its_run_ended(executed: dict[str, Outcome]) -> None:
    outcome = executed["exiting with 7"]  # other codes: test_run_end.py
    assert (outcome.code, outcome.ended["status"], outcome.ended["reason"]) == (7, "failed", "SystemExit: 7")
    assert len(outcome.losses) == 8


@pytest.mark.parametrize("name", ["interrupted late", pytest.param("interrupted", marks=pytest.mark.heavy)])
def test_a_script_interrupted_by_a_signal_has_not_succeeded(name: str, executed: dict[str, Outcome]) -> None:
    outcome = executed[name]
    assert outcome.code == 130
    assert (outcome.ended["status"], outcome.ended["exit_code"]) == ("stopped", -signal.SIGINT)
    why = "interrupted" if name == "interrupted" else "it → failed"
    assert outcome.ended["reason"] == f"{why}; the script was then ended by signal 2"
    assert outcome.ended["log_tail"][-1] == "KeyboardInterrupt"


@pytest.mark.parametrize(
    ("name", "code", "how", "word"),
    [
        ("raising late", 1, "then failed with exit code 1", "RuntimeError: no room for the plots"),
        ("exiting late", 5, "then failed with exit code 5", "the script goes on"),
        ("killed late", 137, "was then ended by signal 9", "the script goes on"),
    ],
    ids=["raise", "exit", "kill"],
)
def test_a_script_that_fails_after_its_run_has_failed(
    name: str, code: int, how: str, word: str, executed: dict[str, Outcome]
) -> None:
    outcome = executed[name]
    assert outcome.code == code
    assert (outcome.ended["status"], outcome.ended["step"]) == ("finished", 40)
    assert outcome.ended["reason"] == f"the script {how}"
    assert outcome.ended["log_tail"][-1] == word
    assert word in Path(outcome.ended["log_path"]).read_text()
    assert word in outcome.stderr
    assert f"tui-descent: the trainer's output is in {outcome.ended['log_path']}" in outcome.stderr


def test_the_output_of_a_successful_script_is_shown_at_the_end_and_kept(executed: dict[str, Outcome]) -> None:
    good = executed["good"]
    assert "log_path" not in good.ended
    last, where = good.stderr.splitlines()
    assert last == "  | the script goes on"
    assert where.startswith("tui-descent: the trainer's output is in ")
    assert Path(where.rpartition(" in ")[2]).read_text() == "the script goes on\n"


def test_record_of_a_script_that_printed_nothing_is_kept(executed: dict[str, Outcome]) -> None:
    assert "log_path" not in executed["silent"].ended
    home = Path(executed["exiting late"].ended["log_path"]).parents[2]
    assert ("finished", 8) in recorded(home)


@pytest.mark.heavy
def test_a_run_without_with_ends_with_its_script(executed: dict[str, Outcome]) -> None:
    outcome = executed["without with"]
    assert (outcome.code, outcome.ended["status"], outcome.ended["step"]) == (3, "diverged", 8)
    assert outcome.ended["reason"] == "loss is nan at step 8: the weight of layer 0 is nan, before the update"
    assert len(outcome.losses) == 8
    assert outcome.losses == executed["good"].losses[:8]


@pytest.mark.heavy  # usual: test_joining.py, without torch
def test_a_watch_in_a_child_process_is_shown(executed: dict[str, Outcome]) -> None:
    outcome = executed["in a child"]
    assert (outcome.code, outcome.ended["status"], outcome.ended["step"]) == (6, "diverged", 8)
    assert outcome.losses == executed["good"].losses[:8]
    assert "unwatched" not in outcome.stderr


RANKS = SCRIPT.replace(
    'print("the script goes on")', "import os; print('rank', os.environ.get('RANK', __name__), len(model))"
)
SPAWNED = (
    "import torch.multiprocessing as mp\ndef work(rank):\n    "
    + "\n    ".join(SCRIPT.format(steps=40, then="pass").splitlines())
    + "\nif __name__ == '__main__':\n    mp.spawn(work, nprocs=2)\n"
)


@pytest.mark.heavy
@pytest.mark.parametrize("launcher", ["torchrun", "spawn"])
def test_a_launcher_with_two_processes_shows_one_of_them(
    launcher: str, executed: dict[str, Outcome], tmp_path: Path
) -> None:
    path = write(tmp_path, launcher, text=RANKS)
    command: tuple[str, ...] = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(path))
    if launcher == "spawn":
        path.write_text(SPAWNED)
        command = (sys.executable, str(path))
    outcome = run("exec", "--json", "--headless", "--", *command)
    assert (outcome.code, outcome.ended["status"], outcome.ended["step"]) == (0, "finished", 40), outcome.stderr
    assert outcome.losses == executed["good"].losses
    assert len(outcome.events("run_started")) == 1


def test_a_framework_that_catches_the_stop_has_obeyed(executed: dict[str, Outcome]) -> None:
    outcome = executed["in a framework"]
    assert (outcome.code, outcome.ended["status"], outcome.ended["step"]) == (3, "diverged", 8)
    assert outcome.ended["reason"] == "loss is nan at step 8: the weight of layer 0 is nan, before the update"
    assert outcome.losses == executed["good"].losses[:8]
    assert outcome.stderr.splitlines()[:2] == ["  | saving after StopRun", "  | the script goes on"]


def test_a_script_that_never_calls_watch_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "idle.py"
    path.write_text('print("nothing to see")\n')
    outcome = run("exec", "--json", "--headless", "--", sys.executable, "-u", str(path), "--epochs", "3")
    assert (outcome.code, outcome.ended["status"]) == (0, "finished")
    assert outcome.ended["reason"].startswith("this script never called watch(): see ")
    assert "  | nothing to see" in outcome.stderr
    assert "this script never called watch(): see " in outcome.stderr


@pytest.mark.parametrize("over", [False, True], ids=["while the first goes on", "when it is over"])
@pytest.mark.heavy  # usual: test_second_watch.py
def test_a_second_watch_is_not_shown_and_a_warning_says_so_once(over: bool, tmp_path: Path) -> None:
    second = """with watch(nn.Linear(1, 1), torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)): pass"""
    again = f"for _ in range(2):\n    {second}\nraise SystemExit(3)\n"  # its log is kept
    within = f"if step in (7, 8):\n            {second}"
    path = write(
        tmp_path, "two", then="pass" if over else within, text=SCRIPT + (again if over else "raise SystemExit(3)\n")
    )
    outcome = run("exec", "--json", "--headless", "--", sys.executable, str(path))
    assert (outcome.code, outcome.ended["status"], len(outcome.losses)) == (3, "finished", 40)
    words = "this process already has a watched run: a second watch() trains normally but is not shown"
    assert Path(outcome.ended["log_path"]).read_text().count(f"tui-descent: {words}\n") == 1
    notes = [(line["step"], line["level"], line["text"]) for line in outcome.events("note")]
    assert [note for note in notes if note[2] == words] == ([] if over else [(8, "warning", words)])


def test_an_unknown_command_is_a_clear_error() -> None:
    outcome = run("exec", "--headless", "--", "no-such-command-here")
    assert outcome.code in (1, 2)
    assert "no-such-command-here" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("kind", [pytest.param("with", marks=pytest.mark.heavy), "framework"])
def test_stop_ends_the_loop_but_not_the_script(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, "long", steps=10_000_000, text=SCRIPT if kind == "with" else OTHER["in a framework"])
    done = tmp_path / "done"
    path.write_text(path.read_text() + f"open({str(done)!r}, 'w').write(str(step))\n")
    with Live("exec", "--json", "--headless", "--", sys.executable, str(path)) as live:
        live.until(lambda line: line["event"] == "step" and line["step"] == 20)
        live.process.send_signal(signal.SIGTERM)
        code, last = live.end(within_s=30)
    assert code == 143
    assert last["status"] == "stopped"
    assert int(done.read_text()) + 1 == last["step"]


def test_without_exec_a_loop_starts_its_own_keeper_and_leaves_only_its_record(home: Path, tmp_path: Path) -> None:
    outcome = run(command=[sys.executable, str(write(tmp_path, "alone"))])
    assert (outcome.code, outcome.stdout) == (0, "the script goes on\n")
    assert re.fullmatch(r"tui-descent: watching: tui-descent attach my-run-\S+\n", outcome.stderr)
    assert [status for status, _ in recorded(home)] == ["finished"]
    assert list((home / "sockets").iterdir()) == []


def test_without_a_writable_folder_a_loop_trains_without_being_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUI_DESCENT_HOME", str(tmp_path / "file" / "x"))
    runpy.run_path(str(write(tmp_path, "alone")))
    out, err = capfd.readouterr()
    assert out == "the script goes on\n"
    assert err.startswith("tui-descent: training continues unwatched: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("number", [pytest.param(signal.SIGKILL, marks=pytest.mark.heavy), signal.SIGTERM])
def test_a_loop_whose_keeper_is_ended_continues_training(number: signal.Signals, tmp_path: Path) -> None:
    path = write(tmp_path, "alone", steps=300, then="if step == 50: print(step, flush=True); input()")
    with subprocess.Popen(
        [sys.executable, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as loop:
        assert loop.stdout is not None
        assert loop.stdout.readline() == "50\n"
        (keeper,) = children(loop.pid)
        ended = os.pidfd_open(keeper)
        os.kill(keeper, number)
        assert select.select([ended], [], [], WITHIN_S)[0]
        os.close(ended)
        out, errors = loop.communicate("go on\n", timeout=WITHIN_S)
    assert (loop.returncode, out) == (0, "the script goes on\n")
    assert "Traceback" not in errors
