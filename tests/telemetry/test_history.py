"""The history: exact, bounded, and the same at a viewer that received it."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from factories import curved, history_of, reading_of, received, sent, started, steps, turned
from task_pictures import surface_picture, taken

from tui_descent.protocol.codec import encode, frame
from tui_descent.protocol.events import (
    AnyEvent,
    CommandDone,
    CommandRejected,
    DeviceTaken,
    Diagnosed,
    Evaluated,
    Gpu,
    KnobState,
    Layer,
    Marked,
    MetricLogged,
    Noted,
    ReadingsTaken,
    RunEnded,
    State,
    StateChanged,
    StepsMissed,
    WiringFound,
)
from tui_descent.telemetry.gradient_history import LOG_FLOOR, log_magnitude
from tui_descent.telemetry.history import MAX_CURVATURES, MAX_ENTRIES, History
from tui_descent.telemetry.smoothing import WINDOW

LAYERS = 3
STARTED = started(
    layers=tuple(Layer(name=f"blocks.{n}", kind="Linear", params=3, block=n) for n in range(LAYERS)),
    knobs=(KnobState(name="lr", value="0.1"), KnobState(name="residual", value="off")),
)


def reading(step: int, rms: Sequence[float | None]) -> ReadingsTaken:
    return reading_of(step, {"grad_rms": rms})


def random_run(random_: random.Random, count: int) -> list[AnyEvent]:
    """Events of every kind, with NaN and infinities among the numbers."""
    events: list[AnyEvent] = [StateChanged(state="building"), STARTED, StateChanged(state="running")]
    step = 0
    states: list[State] = ["running", "paused", "held", "waiting"]
    for _ in range(count):
        kind = random_.randrange(12)
        if kind < 4:
            losses = [
                random_.choice((random_.expovariate(1), math.nan, math.inf)) for _ in range(random_.randrange(1, 40))
            ]
            events.append(steps(step, losses, lr=random_.random()))
            step += len(losses)
        elif kind == 4:
            events.append(
                reading(step, [random_.choice((None, math.nan, 0.0, random_.random())) for _ in range(LAYERS)])
            )
        elif kind == 5:
            events.append(Evaluated(segment=0, step=step, loss=random_.random(), accuracy=random_.random()))
        elif kind == 6:
            events.append(turned(step, "", str(random_.random()), knob=random_.choice(("lr", "residual"))))
        elif kind == 7:
            events.append(StateChanged(state=random_.choice(states), reason=random_.choice(("", "why"))))
        elif kind == 8:
            events.append(Marked(segment=0, step=step, text="m"))
        elif kind == 9:
            events.append(Noted(step=step, text="n", level="warning"))
        elif kind == 10:
            events.append(StepsMissed(segment=0, step=step, count=3))
        else:
            events.append(
                CommandRejected(client=1, request=1, source="key", segment=0, step=step, knob="lr", reason="no")
            )
    return events


def contents(history: History) -> dict[str, Any]:
    """Everything that a panel reads, in a form where NaN equals NaN."""
    plain = {
        name: repr(getattr(history, name))
        for name in (
            *("started", "state", "ended", "knobs", "unavailable", "segment", "steps", "loss", "lr", "smooth_loss"),
            *("steps_per_s", "readings", "evaluations", "interventions", "marks", "log", "live"),
        )
    }
    for name in ("losses", "grads"):
        pyramids = getattr(history, name)
        plain[name] = {segment: msgspec.msgpack.encode(pyramid.send()) for segment, pyramid in pyramids.items()}
    return plain


@pytest.mark.parametrize("seed", range(30))
def test_received_history_equals_the_sent_one_now_and_later(seed: int) -> None:
    random_ = random.Random(seed)
    events = random_run(random_, random_.randrange(0, 300))
    if seed % 5 == 0:
        events.append(RunEnded(status="lost", step=7, reason="signal 9"))
    cut = random_.randrange(len(events) + 1)
    history = history_of(events[:cut])
    viewer = received(history)
    assert contents(viewer) == contents(history)
    for event in events[cut:]:
        history.apply(event)
        viewer.apply(event)
    for name, value in contents(history).items():
        if name != "steps_per_s":  # a new viewer measures the speed from its start
            assert contents(viewer)[name] == value, name


def test_viewer_that_attaches_during_a_jump_smooths_the_loss_alike() -> None:
    history = history_of([STARTED, steps(0, [1.0] * 300), steps(300, [1e-4] * 3)])
    viewer = received(history)
    for more in (steps(303, [1e-4] * 2), steps(305, [1e-4, 3e-4] * 20)):
        history.apply(more)
        viewer.apply(more)
        assert viewer.smooth_loss == history.smooth_loss < 1e-3


def test_empty_history_can_be_sent() -> None:
    assert contents(received(History())) == contents(History())


def test_hold_is_received_once_in_its_place_in_the_log() -> None:
    events: list[AnyEvent] = [STARTED, steps(0, [1.0] * 5), turned(5, "", "1", knob="lr")]
    events += [StateChanged(state="held", reason="nan"), StateChanged(state="running"), turned(9, "", "2", knob="lr")]
    events += [StateChanged(state="held", reason="nan")]
    viewer = received(history_of(events))
    assert list(viewer.log) == [events[2], events[3], events[5], events[6]]
    assert viewer.state == events[6]


def test_late_viewer_knows_the_newest_diagnosis_or_that_there_is_none() -> None:
    def healthy(step: int) -> Diagnosed:
        return Diagnosed(segment=0, step=step, finding="healthy", sure=1.0, sentence=f"at {step}")

    history = history_of([STARTED, steps(0, [1.0] * 300), healthy(100), healthy(200)])
    assert received(history).diagnosis == healthy(200)
    assert list(received(history).log) == [healthy(100)]
    wiring = Diagnosed(segment=0, step=250, kind="wiring", finding="frozen", sure=1.0)
    for event in (wiring, WiringFound(segment=0, step=260, fault="frozen", present=False)):
        history.apply(event)
    assert received(history).diagnosis is None


def test_late_viewer_knows_a_knob_turned_long_ago() -> None:
    history = history_of([STARTED, turned(1, "", "on", knob="residual")])
    for step in range(MAX_ENTRIES + 50):
        history.apply(turned(step, "", str(step), knob="lr"))
    assert received(history).knobs == {"lr": str(MAX_ENTRIES + 49), "residual": "on"}


def test_smoothed_loss_is_a_moving_average_over_twenty_steps() -> None:
    history = history_of([steps(0, [1.0] * 500), steps(500, [0.5] * 60)])
    assert math.isclose(history.smooth_loss, 0.5 + 0.5 * (1 - 1 / WINDOW) ** 60, rel_tol=1e-9)
    one_by_one = history_of([*(steps(n, [1.0]) for n in range(500)), *(steps(n, [0.5]) for n in range(500, 560))])
    assert one_by_one.smooth_loss == history.smooth_loss


def test_smoothed_loss_of_a_young_run_does_not_lag() -> None:
    history = history_of([steps(0, [100.0]), steps(1, [1.0] * 10)])
    assert math.isclose(history.smooth_loss, 1.0, abs_tol=0.5)


def test_loss_without_batches_is_not_smoothed() -> None:
    surface = msgspec.structs.replace(STARTED, scenario={"model": {"name": "surface"}})
    history = history_of([surface, steps(0, [1.0, 0.04, 0.0016])])
    assert math.isclose(history.smooth_loss, 0.0016)


@pytest.mark.parametrize("seed", range(10))
def test_loss_bins_have_the_smallest_largest_and_mean_loss(seed: int) -> None:
    random_ = random.Random(seed)
    losses = [random_.choice((random_.expovariate(1), random_.expovariate(1), math.nan, math.inf)) for _ in range(3000)]
    history, at = History(), 0
    while at < len(losses):
        size = random_.randrange(1, 90)
        history.apply(steps(at, losses[at : at + size]))
        at += size
    for width in (4, 64, 1024):
        for bin_, (low, high, mean, _) in history.losses[0].window(width, 0, 2999):
            known = [x for x in losses[bin_ * width : (bin_ + 1) * width] if math.isfinite(x)]
            assert (low, high) == (min(known), max(known))
            assert math.isclose(mean, math.fsum(known) / len(known), rel_tol=1e-9)


def test_run_of_only_nan_and_infinities_is_valid() -> None:
    history = history_of([STARTED, steps(0, [math.nan] * 50), steps(50, [math.inf, -math.inf] * 50)])
    assert history.steps == 150
    assert history.loss == -math.inf
    assert math.isnan(history.smooth_loss)
    assert history.losses[0].window(1, 0, 200) == []
    assert contents(received(history)) == contents(history)


def test_memory_is_bounded_for_events_of_every_kind() -> None:
    history = history_of([STARTED])
    for n in range(3000):
        for event in (
            steps(n * 100, [1.0] * 100),
            reading(n * 100, [1.0] * LAYERS),
            turned(n, "", "1", knob="lr"),
            Evaluated(segment=0, step=n, loss=1.0),
            Marked(segment=0, step=n, text="m"),
            Noted(step=n, text="n"),
            MetricLogged(segment=0, step=n, name="x", value=1.0),
            CommandDone(client=1, request=1, segment=0, step=n, what="x"),
        ):
            history.apply(event)
    assert history.steps == 300_000
    for facts in (history.interventions, history.marks, history.log):
        assert len(facts) == MAX_ENTRIES
    assert MAX_ENTRIES // 3 < len(history.evaluations) <= MAX_ENTRIES
    assert history.losses[0].nbytes() < 2_000_000
    assert history.grads[0].nbytes() < 500_000
    assert len(frame(history.send())) < 2_500_000


def test_readings_become_log_magnitudes_of_each_layer() -> None:
    history = history_of([STARTED, reading(0, [1e-9, None, 100.0]), reading(1, [1e-11, math.nan, 1.0])])
    (bin_, row) = history.grads[0].window(2, 0, 1)[0]
    assert bin_ == 0
    assert math.isclose(row[0], -10.0)
    assert math.isnan(row[1])
    assert math.isclose(row[2], 1.0)
    assert history.readings == reading(1, [1e-11, math.nan, 1.0]) or history.readings.step == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, 0.0),
        (1e-30, -30.0),
        (0.0, LOG_FLOOR),
        (5e-324, LOG_FLOOR),
        (1e300, 40.0),
        (math.inf, 40.0),
        (1e-39, -39.0),
    ],
)
def test_log_magnitude_of_a_norm(value: float, expected: float) -> None:
    assert math.isclose(log_magnitude(value), expected)


@pytest.mark.parametrize("value", [None, math.nan])
def test_log_magnitude_of_a_missing_value_is_nan(value: float | None) -> None:
    assert math.isnan(log_magnitude(value))


def test_speed_is_measured_by_the_trainers_clock() -> None:
    history = history_of([steps(n * 10, [1.0] * 10, per_s=100.0) for n in range(50)])
    assert math.isclose(history.steps_per_s, 100.0, rel_tol=1e-6)
    history.apply(StateChanged(state="paused"))
    assert history.steps_per_s == 0.0


def test_knob_values_follow_the_interventions() -> None:
    history = history_of([STARTED, turned(3, "", "0.5", knob="lr"), turned(4, "", "on", knob="residual")])
    assert history.knobs == {"lr": "0.5", "residual": "on"}
    unavailable = msgspec.structs.replace(STARTED, knobs=(KnobState(name="residual", unavailable="no blocks"),))
    assert history_of([unavailable]).unavailable == {"residual": "no blocks"}


def test_every_event_increases_the_revision() -> None:
    history = History()
    for event in random_run(random.Random(0), 100):
        before = history.revision
        history.apply(event)
        assert history.revision > before


def test_curvature_readings_are_bounded_span_the_run_and_are_sent() -> None:
    history = history_of([STARTED])
    for step in range(5 * MAX_CURVATURES):
        history.apply(curved(step, float(step), math.nan, limit=None))
        assert len(history.curvatures) <= MAX_CURVATURES
    found = [taken.step for taken in history.curvatures]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, 5 * MAX_CURVATURES - 1)
    assert max(b - a for a, b in itertools.pairwise(found)) <= 16
    assert [taken.step for taken in received(history).curvatures] == found


def test_device_readings_are_bounded_and_sent() -> None:
    history = History()
    history.apply(STARTED)
    for step in range(3000):
        gpu = Gpu(name="G", utilisation=0.5) if step % 2 else None
        history.apply(
            DeviceTaken(segment=0, step=step, device="cuda:0", allocated_bytes=step, peak_bytes=step, gpu=gpu)
        )
    copy = History.receive(sent(history))
    for side in (history, copy):
        assert side.device is not None
        assert side.device.allocated_bytes == 2999
        assert side.device.gpu == Gpu(name="G", utilisation=0.5)
        (newest,) = side.devices[0].window(4096, 0, 3000)
        assert newest[1] == pytest.approx([2999.0, 0.5])
        assert side.devices[0].nbytes() < 64 * 1024


def test_learning_rate_is_that_of_the_last_update_whatever_changed_it() -> None:
    history = History()
    for event in (STARTED, steps(0, [1.0, 0.9]), steps(2, [0.8], lr=0.05)):
        history.apply(event)
    assert history.knobs["lr"] == "0.05", "a schedule"
    history.apply(steps(3, [0.7], lr=math.nan))  # a skipped update has none
    assert history.knobs["lr"] == "0.05"
    history.apply(steps(4, [0.7], lr=0.05 / 1500**0.5))
    assert history.knobs["lr"] == "0.00129099", "another optimizer with a converted rate"


def test_knobs_that_change_with_another_one_are_known_and_sent() -> None:
    history = History()
    history.apply(STARTED)
    known = (KnobState(name="lr", value="0.01"), KnobState(name="momentum", unavailable="adam has none"))
    history.apply(msgspec.structs.replace(turned(3, "", "adam", knob="optimizer"), knobs=known))
    one = msgspec.structs.replace(turned(4, "", "on", knob="residual"), target="blocks.1")
    history.apply(msgspec.structs.replace(one, knobs=(KnobState(name="residual", value="mixed"),)))
    for side in (history, History.receive(history.send())):
        assert side.knobs == {"lr": "0.01", "residual": "mixed", "optimizer": "adam"}
        assert side.unavailable == {"momentum": "adam has none"}
    back = (KnobState(name="momentum", value="0.9"),)
    history.apply(msgspec.structs.replace(turned(5, "", "momentum", knob="optimizer"), knobs=back))
    assert history.knobs["momentum"] == "0.9"
    assert history.unavailable == {}


def test_shown_learning_rate_follows_the_schedule_after_an_intervention() -> None:
    history = History()
    history.apply(STARTED)
    history.apply(steps(0, [1.0] * 3))
    history.apply(turned(3, "", "0.2", knob="lr"))
    assert history.knobs["lr"] == "0.2"
    history.apply(steps(3, [1.0], lr=0.2))
    assert history.knobs["lr"] == "0.2"
    history.apply(steps(4, [1.0], lr=0.15))
    assert history.knobs["lr"] == "0.15"


def test_only_the_newest_picture_of_the_task_is_kept_and_none_is_sent() -> None:
    history = History()
    history.apply(STARTED)
    empty = len(encode(history.send()))
    for step in range(5):
        history.apply(taken(surface_picture(), step=step))
    assert history.task is not None
    assert history.task.step == 4
    assert len(encode(history.send())) == empty
    assert History.receive(history.send()).task is None
