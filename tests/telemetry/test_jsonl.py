"""Events as JSON lines: the documented fields, one object a line, strictly valid JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from factories import ledger, started
from task_pictures import surface_picture, taken

from tui_descent.protocol.events import (
    AnyEvent,
    CommandDone,
    CommandRejected,
    DeviceTaken,
    Evaluated,
    Gpu,
    KnobTurned,
    Layer,
    Marked,
    MetricLogged,
    Noted,
    PartFactor,
    RangeTestCompleted,
    ReadingsTaken,
    RunEnded,
    StateChanged,
    StepsCompleted,
)
from tui_descent.telemetry.jsonl import JsonLines

STARTED = started(
    run="vanishing-1",
    scenario={"title": "t", "run": {"steps": 3}},
    parameters=21386,
    layers=(
        Layer(name="stem", kind="Linear", params=2080),
        Layer(name="blocks.0.linear", kind="Linear", params=4160, block=0),
        Layer(name="blocks.1.linear", kind="Linear", params=4160, block=1),
    ),
    knobs=(),
)
READING = ReadingsTaken(
    segment=0,
    step=40,
    values={"grad_rms": [1.0, 2.0, 4.0], "update_ratio": [0.5, None, math.nan]},
    ages=[0, 0, 3],
    global_grad_norm=math.inf,
    watch_cost=0.00712345678,
)


def strictly(text: str) -> Any:
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    return json.loads(text, parse_constant=refuse)


def lines(*events: AnyEvent) -> list[dict[str, Any]]:
    printer = JsonLines()
    return [strictly(line) for event in events for line in printer.lines(event)]


def test_only_the_first_line_has_the_version() -> None:
    found = lines(
        CommandDone(client=1, request=1, segment=0, step=0, what="x"), StateChanged(state="building"), STARTED
    )
    assert [line.get("v") for line in found] == [1, None]
    first = next(iter(JsonLines().lines(STARTED)))
    assert first.startswith('{"v":1,"event":"run_started"')


def test_line_breaks_in_a_text_are_escaped() -> None:
    (line,) = JsonLines().lines(Noted(step=0, text="a\nb\r\x1b[31m\u2028 ß"))
    assert len(line.splitlines()) == 1 or "\u2028" in line
    assert "\n" not in line
    assert "\x1b" not in line
    assert strictly(line)["text"] == "a\nb\r\x1b[31m\u2028 ß"


def test_run_started_has_scenario_and_layers() -> None:
    (line,) = lines(STARTED)
    assert line["run"] == "vanishing-1"
    assert line["scenario"] == {"title": "t", "run": {"steps": 3}}
    assert (line["device"], line["threads"], line["parameters"]) == ("cpu", 1, 21386)
    assert line["layers"][1] == {"name": "blocks.0.linear", "kind": "Linear", "params": 4160, "block": 0}


def test_every_step_is_a_line() -> None:
    event = StepsCompleted(
        segment=0, first=5, losses=[2.0, math.nan, 1.0], lrs=[0.1, 0.1, 0.2], times_s=[0.5, 0.6, 0.7], skipped=(6,)
    )
    found = lines(STARTED, event)[1:]
    assert found[0] == {"event": "step", "segment": 0, "step": 5, "loss": 2.0, "lr": 0.1, "time_s": 0.5}
    assert [line["step"] for line in found] == [5, 6, 7]
    assert found[1]["loss"] == "nan"
    assert [line.get("skipped") for line in found] == [None, True, None]


def test_losses_keep_all_digits() -> None:
    losses = [0.1 + 0.2, 1e-300, 2 / 3, 5e-324]
    event = StepsCompleted(segment=0, first=0, losses=losses, lrs=[0.1] * 4, times_s=[0.0] * 4)
    assert [line["loss"] for line in lines(event)] == losses


def test_reading_is_grouped_by_layer_and_omits_missing_values() -> None:
    line = lines(STARTED, READING)[1]
    assert (line["event"], line["segment"], line["step"]) == ("reading", 0, 40)
    assert line["layers"] == [
        {"name": "stem", "grad_rms": 1.0, "update_ratio": 0.5, "age": 0},
        {"name": "blocks.0.linear", "grad_rms": 2.0, "age": 0},
        {"name": "blocks.1.linear", "grad_rms": 4.0, "update_ratio": "nan", "age": 3},
    ]
    assert line["global_grad_norm"] == "inf"
    assert line["first_to_last_grad"] == 0.5
    assert math.isclose(line["watch_cost"], 0.007123, rel_tol=1e-6)


def test_norm_before_clipping_is_only_there_with_clipping() -> None:
    clipped = msgspec.structs.replace(READING, global_grad_norm=1.0, grad_norm_preclip=340.5)
    first, second = lines(STARTED, READING, clipped)[1:]
    assert "grad_norm_preclip" not in first
    assert (second["grad_norm_preclip"], second["global_grad_norm"]) == (340.5, 1.0)


@pytest.mark.parametrize(
    ("value", "text"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")], ids=["nan", "inf", "-inf"]
)
def test_nan_and_infinities_are_strings(value: float, text: str) -> None:
    events: list[AnyEvent] = [
        Evaluated(segment=0, step=1, loss=value, accuracy=0.5),
        MetricLogged(segment=0, step=1, name="m", value=value),
        RunEnded(status="diverged", step=1, loss=value, position=(value, 1.0)),
    ]
    evaluated, metric, ended = lines(*events)
    assert evaluated == {"v": 1, "event": "evaluated", "segment": 0, "step": 1, "loss": text, "accuracy": 0.5}
    assert metric["value"] == text
    assert (ended["loss"], ended["position"]) == (text, [text, 1.0])


def test_intervention_has_the_documented_fields() -> None:
    turned = KnobTurned(
        id=3,
        client=1,
        request=9,
        source="plan",
        segment=0,
        step=150,
        knob="residual",
        target="all",
        old="off",
        new="on",
        way="ramp",
        scale=0.25,
    )
    assert lines(STARTED, turned)[1] == {
        "event": "intervention",
        "id": 3,
        "segment": 0,
        "step": 150,
        "knob": "residual",
        "target": "all",
        "old": "off",
        "new": "on",
        "way": "ramp",
        "scale": 0.25,
        "source": "plan",
    }


def test_rejection_mark_and_end_are_lines() -> None:
    rejected = CommandRejected(client=1, request=1, source="key", segment=0, step=3, knob="lr", reason="lr = -1")
    found = lines(
        STARTED,
        rejected,
        Marked(segment=0, step=3, text="m"),
        RunEnded(status="lost", step=4, reason="signal 9", exit_code=-9, log_tail=("a",), log_path="/x"),
    )[1:]
    assert found[0] == {
        "event": "rejected",
        "source": "key",
        "segment": 0,
        "step": 3,
        "knob": "lr",
        "reason": "lr = -1",
    }
    assert found[1] == {"event": "mark", "segment": 0, "step": 3, "text": "m"}
    assert found[2]["status"] == "lost"
    assert (found[2]["step"], found[2]["exit_code"], found[2]["log_tail"]) == (4, -9, ["a"])


def test_reply_that_changes_nothing_has_no_line() -> None:
    assert lines(CommandDone(client=1, request=1, segment=0, step=0, what="paused")) == []


def test_device_is_one_line_without_unknown_values() -> None:
    gpu = Gpu(name="H200", utilisation=0.87)
    (line,) = lines(DeviceTaken(segment=0, step=4, device="cuda:0", allocated_bytes=5, gpu=gpu))
    assert line == {
        "v": 1,
        "event": "device",
        "segment": 0,
        "step": 4,
        "device": "cuda:0",
        "allocated_bytes": 5,
        "gpu": {"name": "H200", "utilisation": 0.87},
    }


def test_range_test_is_one_line_with_its_curves() -> None:
    swept = RangeTestCompleted(
        segment=0,
        step=20,
        rate=0.1,
        level=2.3,
        rates=[0.01, 0.1],
        losses=[2.2, 2.0],
        still=[2.3, 2.3],
        smooth=[2.2, 2.1],
        words="flat",
        scales=[0.0, 1.0],
        ahead=[2.3, math.inf],
        seconds=0.5,
    )
    (line,) = lines(swept)
    assert line["event"] == "range_test"
    assert (line["rates"], line["losses"], line["ahead"]) == ([0.01, 0.1], [2.2, 2.0], [2.3, "inf"])
    assert line["words"] == "flat"
    assert "suggestion" not in line


def test_layer_that_is_not_measured_says_why() -> None:
    why = "its weights are integers (int8)"
    layers = (STARTED.layers[0], msgspec.structs.replace(STARTED.layers[1], not_measured=why), *STARTED.layers[2:])
    started, reading = lines(msgspec.structs.replace(STARTED, layers=layers), READING)
    assert [layer.get("not_measured") for layer in started["layers"]] == [None, why, None]
    assert [layer.get("not_measured") for layer in reading["layers"]] == [None, why, None]


def test_picture_of_the_task_has_no_line() -> None:
    assert lines(taken(surface_picture())) == []


def test_the_parts_of_a_block_are_written_only_if_they_were_measured() -> None:
    reading = ledger(5, 0.5, depth=1)
    entry = msgspec.structs.replace(reading.entries[0], parts=(PartFactor("weights", 0.5),))
    usual, measured = (
        json.loads(next(iter(JsonLines().lines(msgspec.structs.replace(reading, entries=[one])))))["entries"][0]
        for one in (reading.entries[0], entry)
    )
    assert "parts" not in usual
    assert measured["parts"] == [{"part": "weights", "factor": 0.5}]
