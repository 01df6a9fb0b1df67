"""Measuring the curvature in a real run: by command, and by the flag of a headless run."""

from __future__ import annotations

import pytest
from same_process import AttendedHere, run

from tui_descent.protocol.commands import Pause, Stop, WatchCurvature
from tui_descent.protocol.events import CommandDone, CurvatureTaken, StateChanged


@pytest.mark.heavy
def test_curvature_is_measured_until_the_viewer_that_asked_disconnects() -> None:
    live = AttendedHere("saddle", "run.steps=1000000", pace=100.0)
    try:
        a, b = live.viewer(), live.viewer()
        a.until_step(5)
        assert a.events(CurvatureTaken) == [], "nobody has asked"
        done = a.do(WatchCurvature(on=True))
        assert isinstance(done, CommandDone)
        first = b.until_event(CurvatureTaken)
        assert first.step >= done.step
        assert (first.hessian.how, first.hessian.converged) == ("full Hessian", True)
        assert first.limit is not None
        assert first.limit.lambda_max == 200.0
        b.until_event(CurvatureTaken)
        a.close()
        gone = b.until_event(CommandDone, what="curvature is no longer measured")
        assert gone.client == a.client
        b.until_step(gone.step + 150)
        assert b.events(CurvatureTaken)[-1].step <= gone.step
        b.do(Pause())
        still = b.until_event(StateChanged, state="paused")
        assert still
        asked = b.do(WatchCurvature(on=True))
        assert b.until_event(CurvatureTaken).step == asked.step, "also while the run is paused"
        b.do(Stop())
        b.until_closed()
    finally:
        live.close()


def test_the_curvature_flag_prints_events_and_changes_no_loss() -> None:
    options = ("edge-of-stability", "--json", "--steps", "30")
    plain, read = run("run", *options), run("run", *options, "--curvature")
    assert read.losses == plain.losses
    assert plain.events("curvature") == []
    taken = read.events("curvature")
    assert (taken[0]["step"], taken[-1]["step"]) == (0, 30)
    for line in taken:
        assert line["limit"] == "2/η"
        assert abs(line["edge"] - line["sharpness"] * 1.5 / 2) < 1e-9
        assert line["how"] == "Lanczos"
        assert line["products"] > 0
    assert 0 < taken[0]["negative_fraction"] < 1
    assert {line["name"] for line in read.events("measured")} >= {"sharpness", "lambda_min", "stability_limit"}
