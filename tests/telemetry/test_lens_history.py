"""The counts for the activation lens in the history: the newest for each asked layer, of a few layers."""

from __future__ import annotations

from factories import history_of

from tui_descent.protocol.events import LensTaken
from tui_descent.telemetry.history import MAX_LENSES


def taken(asked: str, step: int) -> LensTaken:
    return LensTaken(segment=0, step=step, asked=asked, layer=asked, kind="ReLU", parts=(), histogram=None)


def test_the_newest_counts_of_a_few_layers_are_kept() -> None:
    events = [taken("", 0), *(taken(f"layer{n}", 1) for n in range(MAX_LENSES - 1)), taken("", 2)]
    history = history_of(events)
    assert history.lens[""].step == 2
    assert len(history.lens) == MAX_LENSES
    history.apply(taken("another", 3))
    assert len(history.lens) == MAX_LENSES
    assert "layer0" not in history.lens, "its counts are the oldest"
    assert "" in history.lens
