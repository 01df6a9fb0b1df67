"""A scenario file repeats a run: headless, it gives bit for bit the same losses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from attended import Viewer
from exported_runs import MadeRun, lineage, make_run
from factories import turned
from same_process import AttendedHere

from tui_descent.export.errors import ExportError
from tui_descent.export.recorded_run import dropped_batches, read
from tui_descent.export.scenario_file import scenario_file, to_toml
from tui_descent.protocol.commands import Pause, Redo, RunSteps, Undo
from tui_descent.protocol.events import AnyEvent, Rewound, StateChanged, StepsCompleted
from tui_descent.scenario import presets
from tui_descent.scenario.knobs import parse
from tui_descent.scenario.spec import Scenario
from tui_descent.scenario.toml import from_text
from tui_descent.telemetry.record import Record

SMALL = """
title = "t"
[data]
name = "digits"
batch_size = 32
subset = 200
[model]
name = "mlp"
depth = 3
width = 10
activation = "tanh"
norm = "layer"
[optimizer]
name = "adam"
lr = 0.004
[run]
steps = 70
seed = 3
threads = 1
device = "cpu"
evaluate_every = 0
"""


def small(*overrides: str, more: str = "") -> Scenario:
    return from_text(SMALL + more, source="t", overrides=overrides)


def again(text: str) -> MadeRun:
    return make_run(from_text(text, source="exported"))


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_written_and_read_back(name: str) -> None:
    _, scenario = presets.find(name)
    assert from_text(to_toml(scenario), source=name) == scenario


@pytest.mark.parametrize("text", ['a "b" \\ c', "tab\tbell\x07del\x7f", 'three\n"""quotes"""\\\n', "é 漢 \u2028 end"])
def test_every_text_is_written_and_read_back(text: str) -> None:
    scenario = from_text(to_toml(small()).replace('"t"', '"x"', 1), source="t")
    changed = type(scenario)(title=text, story=text, model=scenario.model, data=scenario.data)
    assert from_text(to_toml(changed), source="t") == changed


def test_only_what_is_not_a_default_is_written() -> None:
    text = to_toml(from_text('title = "t"\n[model]\nname = "surface"\n', source="t"))
    assert text == (
        'title = "t"\n\n[model]\nname = "surface"\n\n[optimizer]\nname = "sgd"\nlr = 0.1\n\n'
        '[run]\nsteps = 1000\nseed = 0\nthreads = 0\ndevice = "auto"\n'
    )


def test_all_kinds_of_interventions_are_repeated_exactly() -> None:
    planned = '[[plan]]\nat = 2\nturn = "lr=*1.3"\n[[plan]]\nat = 4\nsay = "a caption"\n'
    planned += '[[plan]]\nat = 5\nturn = "lr=*100"\nsay = "only a demonstration"\ndemo = true\n'
    given = [
        "3:residual=on", "6:activation=gelu", "8:residual@blocks.1=off", "10:norm=rms,where=post", "12:dropout=0.2",
        "14:init@head=xavier", "16:kick=0.02", "18:kick=0.01,way=curvature", "20:freeze@stem=on", "22:freeze=off",
        "24:optimizer=muon", "26:betas=0.8/0.95", "28:momentum=0.9", "30:weight_decay=0.02", "32:clip=0.5",
        "34:batch_size=*1.5", "36:schedule=warmup_cosine,warmup=5,floor=0.1", "40:lr=/2", "40:lr=*3", "44:norm=none",
        "46:residual=on,way=rezero", "50:activation@blocks.0=leaky_relu,way=instant", "60:pace=9000",
    ]  # fmt: skip
    run = make_run(small(more=planned), given)
    assert run.rejected == []
    file = run.file()
    assert file.notes == ()
    repeated = again(file.text)
    assert repeated.losses == run.losses
    assert [t.again for t in repeated.interventions] == [t.again for t in run.interventions if t.knob != "pace"]
    assert {t.source for t in repeated.interventions} == {"plan"}
    assert "auto" not in file.text
    assert 'say = "a caption"' in file.text
    assert "demonstration" not in file.text


def test_order_of_interventions_at_one_step_stays() -> None:
    run = make_run(small("run.steps=12"), ["4:lr=0.01", "4:lr=*2", "4:optimizer=sgd", "4:lr=*2"])
    file = run.file()
    assert file.text.index('"lr=0.01"') < file.text.index('"lr=*2"') < file.text.index('"optimizer=sgd"')
    assert again(file.text).losses == run.losses


def test_claims_are_left_out_because_other_things_are_done_now() -> None:
    _, scenario = presets.find("vanishing")
    file = scenario_file(scenario, [], run="r", steps=10)
    assert scenario.claim
    assert "claim" not in file.text
    assert "cause_off" not in file.text


def test_run_that_went_on_is_repeated_to_its_end() -> None:
    turns = [turned(20, "0.1", "0.2", knob="lr", value="*2"), turned(30, "0.2", "0.1", knob="lr", value="/2")]
    file = scenario_file(small("run.steps=10"), turns, run="r", steps=30)
    assert from_text(file.text, source="t").run.steps == 30
    assert [entry.at for entry in from_text(file.text, source="t").plan] == [20]  # no update follows the other one
    assert file.notes == ()


def test_schedule_is_not_stretched() -> None:
    turns = [turned(20, "0.1", "0.2", knob="lr", value="*2")]
    for more, goes_on in (
        ('[schedule]\nname = "cosine"', False),
        ('[schedule]\nname = "plateau"', True),
        ('[schedule]\nname = "step"\nevery = 7', False),
    ):
        file = scenario_file(small("run.steps=10", more=more), turns, run="r", steps=30)
        assert from_text(file.text, source="t").run.steps == (30 if goes_on else 10)
        said = "the run went on to step 30, but its schedule ends at step 10, and so does this scenario"
        assert file.notes == (() if goes_on else (said,))


def test_schedule_that_starts_after_the_planned_end_is_not_stretched() -> None:
    turns = [turned(20, "constant", "cosine", knob="schedule", value="cosine")]
    file = scenario_file(small("run.steps=10"), turns, run="r", steps=30)
    assert from_text(file.text, source="t").run.steps == 10
    assert len(file.notes) == 1
    constant = [turned(20, "cosine", "constant", knob="schedule", value="constant")]
    assert scenario_file(small("run.steps=10"), constant, run="r", steps=30).notes == ()


def test_lengths_of_a_shortened_run_are_cut() -> None:
    scenario = small("run.steps=10", more='[schedule]\nname = "wsd"\nwarmup = 40\ndecay = 20')
    run = make_run(scenario)
    assert again(run.file().text).losses == run.losses


def test_too_many_interventions_are_an_error() -> None:
    turns = [turned(n, "0.1", "0.1", knob="lr", value="*1.0") for n in range(1001)]
    with pytest.raises(ExportError, match=r"the run does not fit into a scenario: .*plan"):
        scenario_file(small("run.steps=2000"), turns, run="r", steps=2000)


@pytest.fixture
def attended() -> Iterator[AttendedHere]:
    run = AttendedHere("healthy", "run.steps=400", "run.threads=1", "data.batch_size=32", undo_budget=50_000_000)
    yield run
    run.close()


def paused_after(viewer: Viewer, steps: int) -> None:
    viewer.do(RunSteps(steps=steps))
    viewer.until_event(StateChanged, state="paused")


def test_undone_interventions_are_not_in_the_file(attended: AttendedHere) -> None:
    viewer = attended.viewer()
    viewer.ask(Pause())
    viewer.until_event(StateChanged, state="paused")
    paused_after(viewer, 4)
    viewer.do(parse("residual=on"))  # a transition over 20 steps
    paused_after(viewer, 6)
    viewer.do(parse("optimizer=sgd"))  # in the middle of it
    viewer.do(parse("lr=*3"))
    paused_after(viewer, 5)
    viewer.do(Undo())  # lr
    viewer.do(Undo())  # optimizer
    paused_after(viewer, 3)
    viewer.do(Redo())  # optimizer, in the state in which it was undone
    viewer.do(parse("activation=silu"))
    paused_after(viewer, 4)
    viewer.do(Undo())
    viewer.do(parse("lr=*0.5"))
    paused_after(viewer, 40)
    attended.served_by.stop("the test ends")
    attended.wait()
    with Record.open(Path(attended.launch.folder)) as record:
        run = read(record)
        losses = lineage(record.events())
    assert [(t.knob, t.value) for t in run.interventions] == [("residual", "on"), ("optimizer", "sgd"), ("lr", "*0.5")]
    made = run.as_scenario()
    assert made.notes == ()
    repeated = again(made.text).losses
    assert len(losses) >= 50
    assert repeated[: len(losses)] == losses


def steps(segment: int, first: int, count: int) -> StepsCompleted:
    return StepsCompleted(segment=segment, first=first, losses=[1.0] * count, lrs=[0.1] * count, times_s=[0.0] * count)


def rewound(segment: int, to_segment: int, to_step: int) -> Rewound:
    return Rewound(
        from_segment=segment - 1, from_step=0, to_segment=to_segment, to_step=to_step, segment=segment, step=to_step,
        what="",
    )  # fmt: skip


def test_batches_that_were_dropped_are_found() -> None:
    held, running = StateChanged(state="held"), StateChanged(state="running")
    events: list[AnyEvent] = [steps(0, 0, 5), held, running, steps(0, 5, 3)]
    assert dropped_batches(events) == [5]
    assert dropped_batches([*events, held, rewound(1, 0, 6), steps(1, 6, 2)]) == [5]
    assert dropped_batches([*events, rewound(1, 0, 4), steps(1, 4, 9)]) == []
    assert dropped_batches([steps(0, 0, 5), held]) == []
    assert dropped_batches([steps(0, 0, 2), StateChanged(state="paused"), steps(0, 2, 2)]) == []
