"""Runs the loops with a known fault through `watch()` and the keeper's diagnosis, in one process, and scores them.

As a script it prints a line for each loop and the figures: `python faulty_loop_runs.py [--every N] [LOOP…]`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self
from unittest import mock

import msgspec
import torch
from fake_keeper import FakeKeeper
from faulty_loops import LOOPS, FaultyLoop

from tui_descent.keeper.diagnosis import DiagnosisEvents
from tui_descent.keeper.event_stream import EventStream
from tui_descent.protocol.commands import TurnKnob, Undo
from tui_descent.protocol.events import (
    AnyEvent,
    CommandDone,
    CommandRejected,
    Diagnosed,
    KnobTurned,
    NotFinite,
    Rewound,
    RunEnded,
    WiringFound,
)
from tui_descent.scenario import knobs
from tui_descent.telemetry.history import History
from tui_descent.training.keeper_link import KeeperLink
from tui_descent.training.watch import user_loop

WITHIN = 30  # steps after which a fault of wiring or numerics must have been named
BETWEEN = 100  # steps with at most one change of verdict
POLLED_EVERY = 5  # how often, in calls of `run.step`, the keeper reads what the run has written
NEVER_REDRAWN = "init"  # no first advice in a user's loop


class DiagnosingKeeper(FakeKeeper):
    """A keeper in the test's process: it merges events as the real one does and asks the diagnosis after each."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.link.launch = msgspec.structs.replace(self.link.launch, socket="not used")  # so that undo works
        self.published: list[AnyEvent] = []
        self.replies: list[tuple[str, str]] = []  # advice that was tried, and what was wrong with it
        self._history = History()
        self._stream = EventStream(self._history)
        self._diagnosis = DiagnosisEvents()

    @property
    def trainer(self) -> Any:
        return _Trainer(self)

    def poll(self) -> None:
        """Publish what has arrived, and what the diagnosis says of it."""
        for event in self._stream.new_events(self.trainer):
            self._publish(event)

    def finish(self) -> None:
        self.poll()
        for event in self._stream.last_events():
            self._publish(event)

    def _publish(self, event: AnyEvent) -> None:
        for one in (event, *self._diagnosis.after(event)):
            self._history.apply(one)
            self.published.append(one)

    def close(self) -> None:
        if self._stream.ring is not None and self._stream.ring is not self._ring:
            self._stream.ring.close()
        super().close()


class _Trainer:
    """What `EventStream` needs of a trainer."""

    def __init__(self, keeper: DiagnosingKeeper) -> None:
        self.link = keeper._peer
        self._keeper = keeper

    def ring(self) -> Any:
        return self._keeper.ring


class WatchedRun:
    """The run that a loop gets: the real one, whose keeper reads along."""

    def __init__(self, keeper: DiagnosingKeeper, model: Any, optimizer: Any, **how: Any) -> None:
        self._keeper, self._run, self._calls = keeper, user_loop.watch(model, optimizer, **how), 0

    def __enter__(self) -> Self:
        self._run.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        self._keeper.poll()
        if error[0] is None:
            self._keeper.replies = list(self._try_advice())
        ended = self._run.__exit__(*error)
        self._keeper.finish()
        return ended

    def step(self, loss: Any) -> bool:
        made = self._run.step(loss)
        self._calls += 1
        if self._calls % POLLED_EVERY == 0:
            self._keeper.poll()
        return made

    def log(self, name: str, value: Any) -> None:
        self._run.log(name, value)

    def _try_advice(self) -> Iterator[tuple[str, str]]:
        """Send everything that the last finding advises; yields each piece of advice with what was wrong with it."""
        said = [event for event in self._keeper.published if isinstance(event, Diagnosed)]
        for advice in said[-1].advice if said else ():
            text = f"{advice.knob}={advice.value}"
            if advice.knob != "undo" and advice.knob not in knobs.KNOBS:
                continue
            command = Undo() if advice.knob == "undo" else _command(text)
            request, before = self._keeper.send(command), len(self._keeper.published)
            self._run.control.obey()
            self._keeper.poll()
            for event in self._keeper.published[before:]:
                if isinstance(event, CommandRejected) and event.request == request:
                    yield text, f"rejected: {event.reason}"
                elif isinstance(event, KnobTurned) and event.request == request:
                    yield text, f"already {event.old}" if event.old == event.new else ""
                    self._keeper.send(Undo())
                    self._run.control.obey()
                elif isinstance(event, CommandDone | Rewound):
                    yield text, ""


def _command(text: str) -> TurnKnob:
    return knobs.parse(text)


@dataclasses.dataclass(slots=True)
class Outcome:
    """What was published about one loop. `steps` is the number of steps that the run recorded."""

    loop: FaultyLoop
    steps: int
    said: list[Diagnosed]
    events: list[AnyEvent]
    tried: list[tuple[str, str]]

    @property
    def since(self) -> int:
        """The step from which the fault shows."""
        if self.loop.since is not None:
            return self.loop.since
        return next((e.step for e in self.events if isinstance(e, NotFinite)), 0)

    @property
    def first_said(self) -> dict[str, int]:
        """By finding: the step at which it was named first."""
        return {one.finding: one.step for one in reversed(self.said)}

    @property
    def final(self) -> str:
        return self.said[-1].finding if self.said else "nothing"

    @property
    def named(self) -> bool:
        """Whether what is to be said was said: wiring and numerics in time, a problem as the last verdict."""
        if self.loop.kind in ("wiring", "numerics"):
            return all(self.first_said.get(one, 10**9) <= self.since + WITHIN for one in self.loop.finds)
        return self.final in (self.loop.true if self.loop.kind == "healthy" else self.loop.finds)

    @property
    def false(self) -> list[Diagnosed]:
        """Findings that are not true, or about the wrong layer."""
        return [one for one in self.said if one.finding not in self.loop.true or not self._right_layer(one)]

    def _right_layer(self, one: Diagnosed) -> bool:
        return one.finding not in self.loop.finds or not self.loop.layers or one.layer in (None, *self.loop.layers)

    @property
    def most_changes(self) -> int:
        """The most changes of the verdict in `BETWEEN` steps; wiring and numerics speak at once and do not count."""
        judged = [one for one in self.said if one.kind == "dynamics"]
        changes = [b.step for a, b in itertools.pairwise(judged) if a.finding != b.finding]
        return max((sum(at <= step < at + BETWEEN for step in changes) for at in changes), default=0)

    @property
    def bad_advice(self) -> list[str]:
        """Advice that would do harm, that the run refuses, or that is so already."""
        bad = [f"{text} ({why})" for text, why in self.tried if why]
        for one in self.said:
            bad += [
                f"{a.knob}={a.value} at {one.step}"
                for a in one.advice
                if not {a.knob, f"{a.knob}={a.value}", f"{a.knob}={a.value[:3]}"}.isdisjoint(self.loop.harmful)
            ]
            if one.advice and one.advice[0].knob == NEVER_REDRAWN:
                bad.append(f"{NEVER_REDRAWN} first at {one.step}")
        return list(dict.fromkeys(bad))

    def __str__(self) -> str:
        parts: list[str] = []
        for one in self.said:
            text = f"{one.finding}@{one.step}"
            if not parts or parts[-1].partition("@")[0] != one.finding:
                parts.append(text)
        false = ", ".join(dict.fromkeys(f"{one.finding}/{one.layer}" for one in self.false))
        flags = [
            "" if self.named else "MISSED",
            f"FALSE {false}" if false else "",
            f"CHANGES {self.most_changes}" if self.most_changes > 1 else "",
            f"ADVICE {'; '.join(self.bad_advice)}" if self.bad_advice else "",
        ]
        marks = " | ".join(flag for flag in flags if flag)
        line = f"{self.loop.kind:9s}{self.loop.name[:50]:51s}{' '.join(parts) or '-'}"
        return f"{line}   <<< {marks}" if marks else line


def run_loop(
    loop: FaultyLoop, *, every: int | None = None, budget: float | None = None, under_exec: bool = False
) -> Outcome:
    """Train one loop watched. With neither `every` nor `budget` the usual budget applies.

    With `under_exec` the run ends where a number is not finite, as a headless one under `tui-descent exec`; otherwise
    it only reports that and goes on, as a script that was started by itself.
    """
    with (
        tempfile.TemporaryDirectory(prefix="td") as folder,
        warnings.catch_warnings(),
        contextlib.ExitStack() as patches,
    ):
        warnings.simplefilter("ignore")  # torch's own, about schedulers
        keeper = DiagnosingKeeper(Path(folder))
        patches.callback(keeper.close)
        connect = "with_own_keeper"
        if under_exec:
            keeper.link.launch = msgspec.structs.replace(keeper.link.launch, command=("train.py",))
            patches.enter_context(mock.patch.object(user_loop, "_shown", user_loop.ShownRun()))
            connect = "inherited"
        patches.enter_context(mock.patch.object(KeeperLink, connect, classmethod(lambda cls, *_: keeper.link)))
        torch.manual_seed(7)
        loop.train(lambda m, o: WatchedRun(keeper, m, o, watch_every=every, watch_budget=budget), loop.steps)
    events = keeper.published
    ended = next(e for e in events if isinstance(e, RunEnded))
    return Outcome(loop, ended.step, [e for e in events if isinstance(e, Diagnosed)], events, keeper.replies)


def figures(outcomes: Sequence[Outcome]) -> str:
    """The scores of a set of runs, as text."""
    facts = [one for one in outcomes if one.loop.kind in ("wiring", "numerics")]
    judged = [one for one in outcomes if one.loop.kind not in ("wiring", "numerics")]
    lines = [
        f"wiring and numerics named within {WITHIN} steps: {sum(o.named for o in facts)} of {len(facts)}",
        f"dynamics: the right last verdict: {sum(o.named for o in judged)} of {len(judged)}",
        f"loops with a false sentence: {sum(bool(o.false) for o in outcomes)} of {len(outcomes)}",
        f"at most one change in {BETWEEN} steps: {sum(o.most_changes <= 1 for o in outcomes)} of {len(outcomes)}",
        f"loops with bad advice: {sum(bool(o.bad_advice) for o in outcomes)} of {len(outcomes)}",
    ]
    return "\n".join(lines)


def print_details(outcome: Outcome) -> None:
    """The newest sentence of each finding with its advice, and the facts that the trainer has reported."""
    for said in {one.finding: one for one in outcome.said}.values():
        advice = ", ".join(f"{a.key} {a.knob}={a.value}" for a in said.advice)
        print(f"{said.step:14d} {said.sure:.2f} {said.finding} [{said.layer}] {said.sentence} | {advice}")
    for event in outcome.events:
        if isinstance(event, WiringFound):
            print(f"{event.step:14d} {event.fault} {event.present} {event.layer} {event.evidence}")
        elif isinstance(event, NotFinite):
            print(f"{event.step:14d} {event.text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, help="take a reading at every Nth step")
    parser.add_argument("--budget", type=float, help="the share of the time for readings")
    parser.add_argument("--under-exec", action="store_true", help="run as `exec` does: the run ends at a fault")
    parser.add_argument("--kind", choices=("wiring", "numerics", "dynamics", "healthy"))
    parser.add_argument("--sentences", action="store_true", help="print what was said and advised")
    parser.add_argument("--bad", action="store_true", help="print only loops with something wrong")
    parser.add_argument("loops", nargs="*", metavar="LOOP")
    args = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = []
    for loop in LOOPS.values():
        if (args.loops and loop.name not in args.loops) or (args.kind and loop.kind != args.kind):
            continue
        outcomes.append(one := run_loop(loop, every=args.every, budget=args.budget, under_exec=args.under_exec))
        text = str(one)
        if args.bad and "<<<" not in text:
            continue
        print(text, flush=True)
        if args.sentences:
            print_details(one)
    print(figures(outcomes))


if __name__ == "__main__":
    main()
