"""The list of runs, and finding one of them by what a person types."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from factories import started, steps
from scripted_trainer import ScriptedTrainer

from tui_descent import paths
from tui_descent.protocol.events import StepsCompleted
from tui_descent.protocol.launch import NAME_FILE, Launch
from tui_descent.protocol.run_lock import keep_folder
from tui_descent.run_list import RunNotFoundError, find_run, list_runs
from tui_descent.telemetry.history import History
from tui_descent.telemetry.record import RecordWriter


def make(name: str, *, began_s: int, ended: bool = True, recorded: bool = True) -> str:
    """A run with three steps, which began at this time."""
    run, folder = paths.new_run(name)
    launch = Launch(run=run, name=name, folder=str(folder), socket=None)
    launch.write()
    if recorded:
        writer = RecordWriter.open(launch, History().send)
        for event in (started(2), steps(0, [1.0, 0.5, 0.25])):
            writer.add(event)
        writer.close()
    if ended:
        keep_folder(folder)
    os.utime(folder / "launch.json", (began_s, began_s))
    return run


@pytest.fixture
def three(home: Path) -> tuple[str, str, str]:
    return make("healthy", began_s=100), make("vanishing", began_s=300), make("vanishing", began_s=200, ended=False)


def test_runs_are_listed_newest_first_with_those_that_live(three: tuple[str, str, str]) -> None:
    healthy, newest, live = three
    assert [(run.run, run.live) for run in list_runs()] == [(newest, False), (live, True), (healthy, False)]
    assert find_run(None).run == newest
    assert find_run(None, live=True).run == live


def test_a_run_is_found_by_the_beginning_of_its_id_or_name(three: tuple[str, str, str]) -> None:
    healthy, newest, live = three
    for text in (healthy, "healthy", "heal", healthy[:-1]):
        assert find_run(text).run == healthy
    assert find_run(newest).run == newest
    assert find_run("vanishing", live=True).run == live
    assert find_run("van", live=False).run == newest


@pytest.mark.parametrize(("given", "shown"), [("my run", "my run"), ("run", "scripted"), ("scripted", "scripted")])
def test_a_run_of_exec_is_found_by_the_name_that_its_script_gives_it(given: str, shown: str) -> None:
    trainer = ScriptedTrainer(script=True)

    def play() -> None:
        trainer.peer.send(started(run=trainer.launch.run, name=given, scenario=None, layers=(), knobs=()))
        trainer.steps(3)
        trainer.until(lambda event: isinstance(event, StepsCompleted))
        trainer.ended()

    trainer.run_while(play)
    keep_folder(trainer.launch.path)
    make("other", began_s=1)
    for text in (shown, shown[:3], "scripted", "script", trainer.launch.run):
        found = find_run(text)
        assert (found.run, found.name) == (trainer.launch.run, shown)
    assert (trainer.launch.path / NAME_FILE).exists() == (shown == "my run")


def test_the_message_names_the_runs_there_are(three: tuple[str, str, str], home: Path) -> None:
    _, newest, live = three
    with pytest.raises(RunNotFoundError, match=f"'van': 2 runs begin so: {newest}, {live}$"):
        find_run("van")
    with pytest.raises(RunNotFoundError, match=f"'x': no such live run; there are: {live}$"):
        find_run("x", live=True)
    with pytest.raises(RunNotFoundError, match=r"^there is no run$"):
        find_run(None, str(home / "elsewhere"))


def test_only_folders_of_runs_count(home: Path) -> None:
    make("a", began_s=1, recorded=False)
    live = make("b", began_s=1, recorded=False, ended=False)
    runs = home / "runs"
    (runs / "file").write_text("")
    (runs / "empty").mkdir()
    (runs / "broken").mkdir(mode=0o700)
    (runs / "broken" / "launch.json").write_text("{")
    (runs / "link").symlink_to(runs / live)
    assert [run.run for run in list_runs()] == [live]


@pytest.mark.parametrize("text", ["", "../..", "/", "*", "a\x1b[31m", "\udcff"])
def test_any_text_is_only_a_name(text: str, three: tuple[str, str, str]) -> None:
    with pytest.raises(RunNotFoundError) as raised:
        find_run(text)
    assert str(raised.value).isprintable()


def test_newest_run_of_a_name_is_meant_where_that_is_asked_for(three: tuple[str, str, str]) -> None:
    _, newest, live = three
    assert find_run("vanishing", newest=True).run == newest
    assert find_run(live, newest=True).run == live
    with pytest.raises(RunNotFoundError, match="2 runs begin so"):
        find_run("van", newest=True)
