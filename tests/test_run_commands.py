"""`runs` and `export`: what they print, what they remove, and what they refuse."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from pathlib import Path

import pytest
from factories import rewound, started, steps, turned
from msgspec.structs import replace
from test_run_list import make

from tui_descent import cli, paths, run_actions
from tui_descent.protocol.events import AnyEvent, EndReached, Evaluated, LaneSteps, MetricLogged, RunEnded
from tui_descent.protocol.launch import Launch
from tui_descent.protocol.race import Lane
from tui_descent.protocol.run_lock import keep_folder
from tui_descent.run_actions import duration, megabytes
from tui_descent.run_list import RunNotFoundError
from tui_descent.telemetry.history import History
from tui_descent.telemetry.jsonl import JsonLines
from tui_descent.telemetry.record import RECORD_FILE, RecordError, RecordWriter
from tui_descent.telemetry.smoothing import SmoothedLoss

SCENARIO = {"title": "t", "optimizer": {"name": "sgd", "lr": 0.1}, "run": {"steps": 3, "seed": 0}}
EVENTS: list[AnyEvent] = [
    started(2),
    Evaluated(segment=0, step=0, loss=4.0, accuracy=0.125),
    steps(0, [2.0, 1.0]),
    turned(2, "0.1", "0.2", knob="lr", value="0.2"),
    MetricLogged(segment=0, step=2, name="kl, mean", value=0.5),
    MetricLogged(segment=0, step=2, name="kl, mean", value=0.75),
    steps(2, [math.nan], lr=0.2),
    Evaluated(segment=0, step=3, loss=0.25, accuracy=0.5),
    RunEnded(status="finished", step=3, loss=0.25, accuracy=0.5),
]


def record(
    name: str, events: list[AnyEvent], *, scenario: dict[str, object] = SCENARIO, plan: tuple[tuple[int, str], ...] = ()
) -> str:
    """A recorded run that has ended."""
    run, folder = paths.new_run(name)
    launch = Launch(run=run, name=name, folder=str(folder), socket=None, scenario=scenario, plan=plan)
    launch.write()
    history = History()
    writer = RecordWriter.open(launch, history.send)
    for event in events:
        history.apply(event)
        writer.add(event)
    writer.close()
    keep_folder(folder)
    return run


def test_the_list_shows_each_run_with_its_end(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = record("healthy", EVENTS)
    surface = record("bowl", [started(2), steps(0, [2.0, 1.5]), RunEnded(status="finished", step=2, loss=1.25)])
    killed = make("vanishing", began_s=50)
    live = make("plateau", began_s=40, ended=False)
    (home / "runs" / record("broken", EVENTS) / RECORD_FILE).write_bytes(b"x" * 5000)
    assert cli.main(["runs"]) == 0
    heads, *rows, total = capsys.readouterr().out.splitlines()
    assert re.split(" {2,}", heads) == ["run", "scenario", "state", "step", "train loss", "held-out", "for", "size"]
    found = {row.split()[0]: row.split()[1:6] for row in rows}
    assert found[done] == ["healthy", "finished", "3", "nan", "0.25"]
    assert found[surface] == ["bowl", "finished", "2", "1.5", "–"]
    assert found[killed] == ["vanishing", "lost", "3", "0.25", "–"]
    assert found[live] == ["plateau", "starting", "3", "0.25", "–"]
    assert next(row for row in rows if "broken" in row).split()[2] == "unreadable"
    assert total.startswith("5 runs, 1 live, ")


def smoothed(*losses: float) -> float:
    average = SmoothedLoss()
    for step, loss in enumerate(losses):
        average.add(step, loss)
    return average.value


def test_the_losses_of_a_run_are_of_the_same_kind_before_and_after_its_end() -> None:
    name, folder = paths.new_run("healthy")
    launch = Launch(run=name, name="healthy", folder=str(folder), socket=None)
    launch.write()
    history = History()
    writer = RecordWriter.open(launch, history.send)

    def listed(*events: AnyEvent) -> tuple[float | None, float | None]:
        for event in events:
            history.apply(event)
            writer.add(event)
        writer.commit()
        (run,) = run_actions.list_runs()
        summary = run_actions.summary_of(run)
        return summary.train_loss, summary.held_out_loss

    assert listed(replace(started(2), scenario=None)) == (None, None)
    noisy = [1.0 + 0.3 * (step % 2) for step in range(1500)]
    assert listed(steps(0, noisy)) == (pytest.approx(history.shown_loss, rel=1e-6), None)
    assert listed(Evaluated(segment=0, step=1500, loss=4.0))[1] == 4.0
    logged = MetricLogged(segment=0, step=1500, name="val/loss", value=3.0)
    before = listed(logged)
    assert before[1] == 3.0
    after = listed(EndReached(segment=0, step=1500, loss=2.5, accuracy=0.5))
    assert after == (before[0], 2.5)
    assert listed(RunEnded(status="finished", step=1500, loss=2.25, accuracy=0.5)) == (before[0], 2.25)
    # An undo takes the evaluations of the undone steps with it, and the newest loss is that of the steps before.
    assert listed(rewound((0, 1500), (0, 3), 1, back=True)) == (pytest.approx(smoothed(*noisy[:3])), None)
    assert listed(replace(steps(3, [5.0]), segment=1))[0] == pytest.approx(smoothed(*noisy[:3], 5.0))
    assert listed(replace(steps(4, [math.inf]), segment=1))[0] == math.inf
    writer.close()


def test_the_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    run = record("healthy", [started(2), steps(0, [math.inf])])
    record("other", EVENTS)
    assert cli.main(["runs", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("v") for line in lines] == [1, None]
    (line,) = [line for line in lines if line["run"] == run]
    assert (line["state"], line["live"], line["step"], line["loss"]) == ("lost", False, 1, "inf")
    assert (line["train_loss"], line["held_out_loss"]) == ("inf", None)
    (line,) = [line for line in lines if line["run"] != run]
    assert (line["train_loss"], line["held_out_loss"], line["loss"]) == ("nan", 0.25, 0.25)
    assert line["size"] >= (Path(line["folder"]) / RECORD_FILE).stat().st_size


def test_loss_of_a_recorded_run_to_compare_with() -> None:
    run = record("healthy", EVENTS)
    found = run_actions.compared_run("heal", None)
    assert (found.label, found.steps) == (run, 3)
    assert [values[2] for _, values in found.losses.window(1, 0, 2)] == [2.0, 1.0]
    record("empty", [started(2)])
    with pytest.raises(RecordError, match="has no loss"):
        run_actions.compared_run("empty", None)
    with pytest.raises(RunNotFoundError, match="no such run"):
        run_actions.compared_run("x", None)


def test_no_runs_are_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs"]) == 0
    assert cli.main(["runs", "--json"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "there is no run yet" in err


def test_named_runs_are_removed_but_no_live_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, live = record("healthy", EVENTS), make("plateau", began_s=40, ended=False)
    assert cli.main(["runs", "rm", "healthy", "plateau"]) == 2
    assert f"{live} is live; stop it first: tui-descent stop {live}" in capsys.readouterr().err
    assert (home / "runs" / done).exists(), "all or none"
    assert cli.main(["runs", "rm", "heal"]) == 2
    assert f"rm takes a whole name, as in: tui-descent runs rm {done}" in capsys.readouterr().err
    assert cli.main(["runs", "rm", "healthy", done]) == 0
    assert [path.name for path in (home / "runs").iterdir()] == [live]
    assert capsys.readouterr().out.splitlines()[-1].startswith("removed 1 run, 0.")
    assert cli.main(["runs", "rm", "healthy"]) == 2


def test_prune_keeps_the_newest_and_the_live_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make("a", began_s=100 + n, ended=n != 0) for n in range(6)]
    assert cli.main(["runs", "prune", "--keep", "2"]) == 0
    assert {path.name for path in (home / "runs").iterdir()} == {runs[0], *runs[-2:]}
    assert capsys.readouterr().out.splitlines()[-1].startswith("removed 3 runs, ")
    for wrong in ("-1", "x", "1.5", ""):
        assert cli.main(["runs", "prune", f"--keep={wrong}"]) == 2
    assert cli.main(["runs", "prune", "--keep", "0"]) == 0
    assert [path.name for path in (home / "runs").iterdir()] == [runs[0]]


def test_only_parameters_that_differ_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    first = record("first", EVENTS)
    second = record(
        "second",
        [event for event in EVENTS if event.__class__.__name__ != "KnobTurned"],
        scenario={**SCENARIO, "title": "other", "optimizer": {"name": "adam", "lr": 0.1}, "model": {"depth": 3}},
        plan=((5, "residual=on"),),
    )
    assert cli.main(["runs", "compare", first, second]) == 0
    heads, *rows = capsys.readouterr().out.splitlines()
    assert heads.split() == [first, second]
    found = {row.split("  ")[0]: row.split()[-2:] for row in rows}
    assert [row.split()[-2:] for row in rows if row.startswith("optimizer.name")] == [["sgd", "adam"]]
    assert [row.split()[-2:] for row in rows if row.startswith("model.depth")] == [["–", "3"]]
    assert [row.split()[-2:] for row in rows if row.startswith("--at 5")] == [["–", "residual=on"]]
    assert [row.split()[-2:] for row in rows if row.startswith("step 2: lr")] == [["0.2", "–"]]
    assert not any(row.startswith(("title", "optimizer.lr", "run.")) for row in rows)
    assert found["steps made"] == ["3", "3"]
    assert found["training loss"] == ["nan", "nan"]
    assert found["held-out loss"] == ["0.25", "0.25"]


def exported(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["export", *words]) == 0
    return capsys.readouterr().out


def test_csv_has_a_line_per_step_with_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    run = record("healthy", EVENTS)
    rows = list(csv.DictReader(io.StringIO(exported(capsys, run, "--to", "csv"))))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["loss"] for row in rows] == ["2.0", "1.0", "nan", ""]
    assert [row["lr"] for row in rows] == ["0.1", "0.1", "0.2", ""]
    assert [row["kl, mean"] for row in rows] == ["", "", "0.75", ""]
    assert [row["evaluated_accuracy"] for row in rows] == ["0.125", "", "", "0.5"]


def test_losses_in_csv_are_exact(capsys: pytest.CaptureFixture[str]) -> None:
    losses = [0.1, 1 / 3, 1e-300, 2.0**-40]
    rows = csv.DictReader(io.StringIO(exported(capsys, record("x", [steps(0, losses)]), "--to", "csv")))
    assert [float(row["loss"]) for row in rows] == losses


def test_csv_of_a_race_has_its_lanes(capsys: pytest.CaptureFixture[str]) -> None:
    lanes = (Lane(name="sgd", optimizer="sgd", lr=0.1), Lane(name="adam", optimizer="adam", lr=0.01))
    events: list[AnyEvent] = [started(2, lanes=lanes)]
    events += [LaneSteps(lane=n, first=0, losses=[1.0 + n, 0.5]) for n in range(2)]
    text = exported(capsys, record("race", events), "--to", "csv")
    assert text == "lane,step,loss\nsgd,0,1.0\nsgd,1,0.5\nadam,0,2.0\nadam,1,0.5\n"


def test_jsonl_is_what_json_prints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = record("healthy", EVENTS)
    lines = JsonLines()
    wanted = [line for event in EVENTS for line in lines.lines(event)]
    text = exported(capsys, run, "--to", "jsonl")
    assert [json.loads(line) | {"time_s": 0} for line in text.splitlines()] == [
        json.loads(line) | {"time_s": 0} for line in wanted
    ]
    path = tmp_path / "out.jsonl"
    assert exported(capsys, run, "--to", "jsonl", "--out", str(path)) == ""
    assert path.read_text() == text


def test_without_tensorboard_one_line_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = record("healthy", EVENTS)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    folder = tmp_path / "logs"
    assert cli.main(["export", run, "--to", "tensorboard", "--out", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "tui-descent: tensorboard is not installed; run: pip install 'tui-descent[tensorboard]'"
    assert not folder.exists()


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert cli.main(["export", record("healthy", EVENTS), "--to", "tensorboard", "--out", str(tmp_path)]) == 0
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")][:2] == [(0, 2.0), (1, 1.0)]
    assert [(e.step, e.value) for e in found.Scalars("evaluated/accuracy")] == [(0, 0.125), (3, 0.5)]
    assert [e.value for e in found.Scalars("kl, mean")] == [0.5, 0.75]


@pytest.mark.parametrize("words", [["export", "x"], ["export", "x", "--to", "png"], ["export", "x", "--to", "csv"]])
def test_wrong_words_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_export_to_a_path_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    run = record("healthy", EVENTS)
    for to in ("csv", "jsonl"):
        assert cli.main(["export", run, "--to", to, "--out", str(home / "no" / "x")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "No such file or directory" in line


def test_a_damaged_record_is_exported_as_far_as_it_can_be_read(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    run = record("healthy", [started(2), *(steps(n, [1.0]) for n in range(5000)), EVENTS[-1]])
    path = home / "runs" / run / RECORD_FILE
    data = bytearray(path.read_bytes())
    at = data.index(b"\x00\x00\x80\x3f" * 100)  # losses of 1.0
    data[at + 100] ^= 1
    path.write_bytes(data)
    assert cli.main(["export", run, "--to", "csv"]) == 0
    out, err = capsys.readouterr()
    assert 3000 < len(out.splitlines()) < 5000
    assert "the record is damaged: 1 of " in err


def test_spans_and_sizes_are_short() -> None:
    spans = ["0.0 s", "4.1 s", "3 min 20 s", "5 h 2 min", "3 d 3 h"]
    assert [duration(seconds) for seconds in (0, 4.14, 200, 18_130, 270_000)] == spans
    assert [megabytes(n) for n in (0, 340_000, 12_400_000, 3_100_000_000)] == ["0.0 MB", "0.3 MB", "12 MB", "3.1 GB"]


def test_every_format_of_the_option_is_carried_out() -> None:
    from tui_descent.run_commands import FORMATS

    assert set(FORMATS) == set(run_actions.FORMATS)


def test_long_values_are_cut_in_a_comparison(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = record("healthy", EVENTS), record("healthy", EVENTS)
    for run, value in ((first, "a" * 200), (second, "b")):
        folder = home / "runs" / run
        launch = replace(Launch.read(folder), plan=((3, value),))
        launch.write()
    assert cli.main(["runs", "compare", first, second]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("--at 3"))
    assert row.split()[2:] == ["a" * 39 + "…", "b"]
