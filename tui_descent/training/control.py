"""Between two updates: plan, commands, pauses, pace. Knows where the run is; every request gets its reply."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tui_descent.protocol.commands import (
    AnyCommand,
    CancelSweep,
    Evaluate,
    Mark,
    Order,
    Pause,
    Redo,
    Resume,
    RunSteps,
    Stop,
    SweepRates,
    TurnKnob,
    Undo,
    WatchCurvature,
)
from tui_descent.protocol.events import (
    AnyEvent,
    CommandDone,
    CommandRejected,
    Evaluated,
    KnobTurned,
    Marked,
    Rewound,
    State,
    StateChanged,
)
from tui_descent.training.curving import Curving
from tui_descent.training.link import Link
from tui_descent.training.memory import Memory
from tui_descent.training.orders import Batch, Orders
from tui_descent.training.pace import Beat, Going
from tui_descent.training.ratesweep import RangeTest
from tui_descent.training.steering import Steering, Turned
from tui_descent.training.stop import StopRun
from tui_descent.training.sweeping import Sweeping
from tui_descent.training.undo.snapshot import Snapshot
from tui_descent.training.undo.undo_stack import INDIFFERENT, UndoStack, undo_entry

Evaluation = Callable[[], tuple[float, float | None]]


class Control:
    """One run's place and its obedience. `step` is the number of the update that comes next."""

    def __init__(
        self,
        link: Link | None,
        steering: Steering,
        *,
        plan: Iterable[tuple[int, TurnKnob]] = (),
        evaluate: Evaluation | None = None,
        needs_keeper: bool = False,
    ) -> None:
        self.link = link
        self.steering = steering
        self.evaluate = evaluate
        self.segment = self.step = 0
        self.stop_asked: str | None = None
        self.stood = False  # whether the last `between` did anything but wait for the pace
        self.curvature: Curving | None = None
        self.while_still: Callable[[], None] = lambda: None
        self.memory: Memory | None = None
        self.undo: UndoStack | None = None
        self.rewound = False  # since the last look between two updates
        self.told: tuple[State, str] | None = None
        setup = steering.ground.setup
        self._sweeping = None if setup is None else Sweeping(self, RangeTest(steering, setup))
        self._sweep_at = sorted(link.launch.range_at) if link is not None else []
        self._broken = False
        self._orders = Orders()
        self._plan = sorted(plan, key=lambda entry: entry[0])
        self._needs_keeper = needs_keeper
        self.going, self._beat = Going(), Beat()
        self._turns = self._segments = 0
        self.tell_layers: Callable[[], None] = lambda: None  # once a turn, an undo or a redo was told
        self.settle: Callable[[], None] = lambda: None  # before anything but going on: what is known only late is told

    def tell(self, event: AnyEvent, *, more: bool = False) -> None:
        """Send an event to the keeper, if there is one; with `more` behind it together with the next one."""
        if self.link is not None:
            self.link.tell(event, more=more)

    def close(self) -> None:
        """The run is over: nothing can be gone back to, and nobody is told any more."""
        if self.undo is not None:
            self.undo.close()
        if self.link is not None:
            self.link.close()

    def state(self, state: State, reason: str = "") -> None:
        """Tell what the run is doing now, once."""
        if self.told != (state, reason):
            self.told = (state, reason)
            self.tell(StateChanged(state=state, reason=reason))

    def evaluated(self) -> tuple[float | None, float | None]:
        """Evaluate before update `step`, tell it, and give loss and accuracy; nothing where there is no data."""
        if self.evaluate is None:
            return None, None
        self.settle()
        with self.steering.unheard():
            loss, accuracy = self.evaluate()
        self.tell(Evaluated(segment=self.segment, step=self.step, loss=loss, accuracy=accuracy))
        return loss, accuracy

    @property
    def idle(self) -> bool:
        """Whether nothing is under way, so that only the plan, the clock or the keeper's flag can ask for something."""
        steering = self.steering
        return (
            self.link is not None
            and self.link.ring is not None
            and not (self.going.paused or self.link.lost or steering.moving or self._orders.waiting)
            and self.going.steps_left is None
            and self.stop_asked is None
            and steering.pace is None
            and (self.curvature is None or not self.curvature.on)
        )

    @property
    def steps_to_plan(self) -> float:
        """Updates until the next planned turn or range test; infinite without one."""
        return min((*(at for at, _ in self._plan[:1]), *self._sweep_at[:1]), default=math.inf) - self.step

    def completed(self) -> None:
        """An update was made."""
        self.step += 1
        self.going.made(self.step)

    def uncount(self, updates: int) -> None:
        """The last ones were none, as a GPU tells only now: its counter and schedule stand where they stood before."""
        self.step -= updates
        self.steering.move_back(updates)

    def between(self) -> None:
        """Everything due before the next update, in the order that makes it repeatable. Raises `StopRun`."""
        self.stood = False
        if self.steps_to_plan <= 0 or self.stop_asked is not None or (self.undo is not None and self.undo.due):
            self.settle()
        while self._plan and self._plan[0][0] <= self.step:
            _, turn = self._plan.pop(0)
            self.carry_out(Batch(Order(client=0, request=0, source="plan", command=turn)))
        while self._sweep_at and self._sweep_at[0] <= self.step:
            self._sweep_at.pop(0)
            self.carry_out(Batch(Order(client=0, request=0, source="plan", command=SweepRates())))
        if self.undo is not None and self.undo.take_periodic(self.segment, self.step):
            self._snapshot("now and then" if self.step else "the run's start")
        link = self.link
        if link is not None and link.ring is not None:
            now_s = time.monotonic()
            link.ring.beat(now_s)
            self._tell_memory(now_s)
            alone = link.lost and self._needs_keeper
            slow = self.going.paused or self.steering.pace is not None
            if slow or link.ring.flagged() or alone or self._orders.due(now_s):
                self._obey()
        if self.stop_asked is not None:
            raise StopRun("stopped", self.stop_asked)
        self.rewound = False
        if self.undo is not None:
            self.undo.went_on()
        self.steering.advance()

    def hold(self, reason: str, *, broken: bool = False) -> None:
        """Stand still until somebody says how to go on; `broken` offers the last good snapshot. Raises `StopRun`."""
        self.going.stand()
        if broken and self.undo is not None:
            self.undo.went_on()
            self._broken = True
            if (good := self.undo.last_good()) is not None:
                reason = f"{reason}; u goes back to step {good.step}"
        self._obey(still=("held", reason))
        self._broken = False

    def wait_at_end(self, steps: int) -> int:
        """All steps are made: wait until more are asked for. Returns how many. Raises `StopRun` on Stop."""
        if not self.going.steps_left and not self.going.onward:  # otherwise it was asked for beforehand
            self.going.stand()
            self._obey(still=("waiting", f"all steps made: space goes on for {steps} more, q leaves"))
        self.going.onward = False
        return self.going.steps_left or steps

    def _obey(self, *, still: tuple[State, str] = ("paused", "")) -> None:
        """Carry out the commands at hand; stay while standing still or ahead of the pace."""
        self.settle()
        link = self.link
        while link is not None and self.stop_asked is None:
            for order in link.orders():
                self._orders.put(order)
            while batch := self._orders.take(at_once=self.going.paused or self.steering.pace is not None):
                start_s = time.perf_counter()
                self.carry_out(batch)
                self._orders.made(batch, time.perf_counter() - start_s)
            if link.lost:
                if self._needs_keeper:
                    raise StopRun("stopped", "the keeper is gone")
                self.going.paused = False
            if self.going.paused:
                self.stood = True
                self.state(*(("paused", "") if self.rewound else still))
                self.while_still()
                self._tell_memory(time.monotonic())
                link.wait(None)
                continue
            self.state("running")
            # Single steps do not wait.
            ahead_s = self._beat.ahead_s(None if self.going.steps_left is not None else self.steering.pace)
            if ahead_s <= 0:
                return
            link.wait(ahead_s)
        if self.stop_asked is not None:
            raise StopRun("stopped", self.stop_asked)

    def _tell_memory(self, now_s: float) -> None:
        if self.memory is not None and now_s >= self.memory.due_s:
            self.tell(self.memory.taken(self.segment, self.step, now_s))

    def carry_out(self, batch: Batch) -> None:
        """Do it and reply to every request in it, the one way or the other."""
        self.stood = True
        order, command = batch.order, batch.order.command
        try:
            if not isinstance(command, TurnKnob):
                self.done(order, self._do(command, order.client))
                return
            self.steering.check(command)
            undo = None if command.knob in INDIFFERENT else self.undo
            before = undo.take(self.segment, self.step) if undo is not None else None
            rate, turned = self.steering.rate.value, self._turn(command, before)
            if undo is not None:
                rates = rate, self.steering.rate.value
                turned = turned.noted(
                    undo.push(undo_entry(self._turns, self.step, command, turned, before, rates=rates))
                )
            at_once = 1 + len(batch.earlier)
            for request in batch.earlier:
                self.done(request, f"one of {at_once} turns made at once as intervention {self._turns}", more=True)
            self._tell_turned(order, command, turned, turns=at_once)
            if before is not None:
                self._snapshot(f"before intervention {self._turns}", at=before)
        except ValueError as error:
            for request in batch.earlier:
                self.reject(request, str(error), more=True)
            self.reject(order, str(error))

    def done(self, order: Order, what: str, *, more: bool = False) -> None:
        """The reply to a command that turned no knob by itself; `more` events follow at once."""
        self.tell(CommandDone(what=what, **_reply_to(order), **self._place()), more=more)

    def reject(self, order: Order, reason: str, *, more: bool = False) -> None:
        """The reply to a command that could not be carried out."""
        knob = order.command.knob[:60] if isinstance(order.command, TurnKnob) else ""
        rejected = CommandRejected(source=order.source, knob=knob, reason=reason, **_reply_to(order), **self._place())
        self.tell(rejected, more=more)

    def ordered(self, now_s: float) -> Iterator[Batch]:
        """What was asked in the midst of something long; a sign of life to the keeper."""
        if self.link is not None and self.link.ring is not None:
            self.link.ring.beat(now_s)
            if self.link.ring.flagged():
                for order in self.link.orders():
                    self._orders.put(order)
        while batch := self._orders.take(at_once=True):
            yield batch

    def put_off(self, batch: Batch) -> None:
        """It comes first when what is under way has ended."""
        self._orders.put_back(batch)

    def _snapshot(self, reason: str, *, at: Snapshot | None = None) -> None:
        assert self.undo is not None
        self.tell(self.undo.event(reason, *((self.segment, self.step) if at is None else (at.segment, at.step))))

    def _go(self, *, back: bool) -> str:
        """Undo or redo: what was done, in a word. Raises `ValueError` where it cannot be."""
        undo = self.undo
        if undo is None:
            raise ValueError("nothing to undo: this run keeps no snapshots")
        move = undo.undo(self.segment, self.step, broken=self._broken) if back else undo.redo()
        word = "undone" if back else "redone"
        try:
            if move.snapshot is None:
                for turn in move.turns:
                    order = Order(client=0, request=0, source="key", command=turn)
                    self._tell_turned(order, turn, self._turn(turn))
                return f"{word}: {move.what}"
            move.snapshot.restore()
        except ValueError:
            undo.cancel(move)
            raise
        self.steering.restored()
        self._broken, self.rewound = False, True
        left, place = (self.segment, self.step), move.snapshot
        self._segments += 1
        self.segment = self._segments
        if self._needs_keeper:  # a loop of the user's own goes on counting
            self.step = place.step
        self.tell(
            Rewound(
                from_segment=left[0],
                from_step=left[1],
                to_segment=place.segment,
                to_step=place.step,
                segment=self.segment,
                step=self.step,
                what=move.what,
                back=back,
                in_force=undo.in_force,
                knobs=self.steering.states(),
            )
        )
        self.tell_layers()
        return f"{word}: {move.what}"

    def _sweep(self, client: int) -> str:
        """Test the learning rates; in a word what came of it. Raises `ValueError` where it cannot be done."""
        if self._sweeping is None:
            raise ValueError("a range test needs further batches and their loss; an own loop's cannot be asked for")
        if self._broken:
            raise ValueError("a range test needs a loss that is a number; u goes back to the last good state")
        return self._sweeping.run(client)

    def _turn(self, turn: TurnKnob, before: Snapshot | None = None) -> Turned:
        turned = self.steering.turn(turn, step=self.step, before=before)
        self._turns += 1
        return turned

    def _tell_turned(self, order: Order, turn: TurnKnob, turned: Turned, *, turns: int = 1) -> None:
        self.tell(
            KnobTurned(
                id=self._turns,
                source=order.source,
                knob=turn.knob,
                target=turn.target,
                old=turned.old,
                new=turned.new,
                value=turn.value,
                parameters=turn.parameters,
                turns=turns,
                **turned.particulars(),
                **_reply_to(order),
                **self._place(),
            )
        )
        self.tell_layers()

    def _place(self) -> dict[str, Any]:
        return {"segment": self.segment, "step": self.step}

    def _do(self, command: AnyCommand, client: int) -> str:
        """What was done, in a word. Raises `ValueError` where it cannot be."""
        match command:
            case Pause():
                self.going.stand()
                return "paused"
            case Resume():
                self.going.go(self.step)
                return "running"
            case RunSteps():
                self.going.go(self.step, command.steps)
                return f"{command.steps} step{'s' * (command.steps > 1)}, then a pause"
            case Evaluate():
                if self.evaluate is None:
                    raise ValueError("this loop has told of no data to evaluate on")
                self.evaluated()
                return "evaluated"
            case Mark():
                self.tell(Marked(segment=self.segment, step=self.step, text=command.text[:80]))
                return "marked"
            case Undo() | Redo():
                return self._go(back=isinstance(command, Undo))
            case WatchCurvature():
                if self.curvature is None:
                    raise ValueError("curvature needs one batch again and again; an own loop's cannot be asked for")
                return self.curvature.want(client, on=command.on)
            case SweepRates():
                return self._sweep(client)
            case CancelSweep():
                return "no range test is under way"
            case Stop():
                self.state("stopping")
                self.stop_asked = "asked to stop"
                return "stopping"
            case TurnKnob():
                raise AssertionError("turned, not done")


def _reply_to(order: Order) -> dict[str, Any]:
    return {"client": order.client, "request": order.request}
