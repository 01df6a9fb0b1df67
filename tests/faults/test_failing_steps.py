"""A step of a scenario that raises: it is not counted, its tensors are dropped, and the next step works."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from attended import losses
from same_process import AttendedHere, run

from tui_descent.protocol.commands import Resume
from tui_descent.protocol.events import StateChanged
from tui_descent.training.setup import build

OPTIONS = ("run.steps=20", "run.threads=1", "run.evaluate_every=0")
AT = 5
ERRORS: dict[str, tuple[type[Exception], str, str]] = {
    "out of memory": (torch.OutOfMemoryError, "9 GiB", "Free memory, or press q and use a smaller batch"),
    "another error": (ValueError, "boom", "the step raised ValueError: boom; this step was not counted. space tries"),
}
Kept = list["weakref.ref[torch.Tensor]"]


@pytest.fixture(params=ERRORS, ids=str)
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Kept]:
    """The loss of one batch raises after its forward pass. Returns what the run says, and the tensors of that step."""
    error, text, said = ERRORS[request.param]
    original, kept, calls = build.Setup.loss, Kept(), []

    def loss(setup: build.Setup) -> Any:
        computed = original(setup)
        calls.append(1)
        if len(calls) == AT + 1:
            kept.append(weakref.ref(computed))
            raise error(text)
        return computed

    monkeypatch.setattr(build.Setup, "loss", loss)
    return said, kept


def test_attended_run_is_held_and_goes_on_with_the_next_batch(failing: tuple[str, Kept]) -> None:
    said, kept = failing
    live = AttendedHere("healthy", *OPTIONS, pace=200.0)
    try:
        viewer = live.viewer()
        held = viewer.until_event(StateChanged, state="held")
        assert said in held.reason
        assert "this step was not counted" in held.reason
        assert max(losses(viewer)) == AT - 1
        assert [reference() for reference in kept] == [None], "its tensors are freed while the run is held"
        viewer.do(Resume())
        viewer.until_step(19)
        assert sorted(losses(viewer)) == list(range(20))
    finally:
        live.close()


def test_headless_run_fails_with_the_error(failing: tuple[str, Kept]) -> None:
    outcome = run("run", "healthy", "--json", *(word for option in OPTIONS for word in ("--set", option)))
    assert outcome.code == 1
    assert (outcome.ended["status"], outcome.ended["step"]) == ("failed", AT)
    assert len(outcome.losses) == AT
