"""Watch: what a training loop holds to be seen and steered.

with watch(model, optimizer, name="my run") as run:
    for batch in batches:
        loss = loss_fn(model(batch.x), batch.y)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        run.step(loss)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from tui_descent.instruments.measuring import Measuring, Sample
from tui_descent.instruments.order import ForwardOrder
from tui_descent.instruments.samebatch import BatchAgain, SameBatch
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import MetricLogged, RunEnded, RunStarted, Status
from tui_descent.training.about import about_foreign, position, started
from tui_descent.training.control import Control, Evaluation
from tui_descent.training.curving import Curving
from tui_descent.training.faults import Faults, OnFault
from tui_descent.training.guard import Guard
from tui_descent.training.lane import Lane, LateLane
from tui_descent.training.late import Late
from tui_descent.training.link import Link
from tui_descent.training.memory import Memory
from tui_descent.training.optimizers import check_watchable
from tui_descent.training.records import Place, ReadingPlace
from tui_descent.training.rows import Rows
from tui_descent.training.steering import Steering
from tui_descent.training.stop import StopRun, outcome
from tui_descent.training.stretch import Stretch
from tui_descent.training.telling import AtOnce, Telling
from tui_descent.training.undo.snapshot import HoldsState
from tui_descent.training.undo.undo_stack import UndoStack
from tui_descent.training.updates import Updates


class Watch:
    """One watched run.

    `on_fault`: a loss or gradient that is no number holds the run, ends it, or is only noted. `again` gives the step's
    batch once more, for the instruments that need it; `curving` reads the curvature. `about` describes a scenario's
    run, whose loop (`own_loop`) does not count a dropped update as a step. `state` is what else an undo puts back.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        link: Link | None,
        name: str = "run",
        sampler: Sampler | None = None,
        on_fault: OnFault = "note",
        steering: Steering | None = None,
        plan: Iterable[tuple[int, TurnKnob]] = (),
        about: RunStarted | None = None,
        evaluate: Evaluation | None = None,
        again: BatchAgain | None = None,
        curving: Curving | None = None,
        own_loop: bool = False,
        state: Iterable[HoldsState] = (),
    ) -> None:
        check_watchable(optimizer)
        self.model = model
        self.optimizer = optimizer
        self.name = name
        self.outcome: tuple[Status, str] | None = None
        self._sampler = sampler or Sampler()
        self._guard = Guard(model, again.forward_again if again is not None else None)
        self._about = about
        self._own_loop = own_loop
        steering = steering or Steering(model, optimizer)
        self.control = Control(link, steering, plan=plan, evaluate=evaluate, needs_keeper=own_loop)
        self.control.curvature, self.control.while_still = curving, self._curve_still
        self._faults = Faults(self.control, on_fault)
        self._telling, self._lane = self._ways()
        self.control.settle = self._settle
        self._updates = Updates(
            optimizer,
            steering=steering,
            sampler=self._sampler,
            guard=self._guard,
            step=lambda: self.control.step,
            pauses=lambda ahead: self.control.going.stands_behind(self.control.step + ahead, ahead=ahead),
            measuring=self._instruments,
            fault=self._faults.face,
            lane=self._lane,
            telling=self._telling,
            reader=self._reader,
            again=None if again is None else SameBatch(model, again),
        )
        # What waits for a device waits for work that readings add to.
        waits = isinstance(self._telling, AtOnce)
        self._stretch = Stretch(self.control, self._updates, self._sampler, self._lane, waits=waits)
        steering.watched(self._follow, self._updates.deaf)
        if link is not None and link.launch.socket is not None:  # where nobody can ask, nothing is kept
            self.control.undo = UndoStack(steering.ground, tuple(state), link.launch.undo_budget, own_loop)
        self._segment = 0
        self._order = ForwardOrder()
        self._rows = Rows(model, self._order, self.control, self._guard)

    @property
    def next_step(self) -> int:
        """The number of the update that comes next; updates made so far."""
        return self.control.step

    @property
    def cost(self) -> float:
        """The share of the training thread's time that watching took so far, as declared to the viewers."""
        return self._sampler.cost

    def __enter__(self) -> Self:
        self._updates.attach()
        if self._about is not None:
            self._begin()
        else:
            # A foreign net's layers are known in forward order only once it has run.
            self._order.listen(self.model)
            self.control.steering.listen()
        self._lane.start_s = time.perf_counter()
        self._stretch.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._updates.detach()
        self._stretch.close()
        self._order.stop()
        ended_by = self._telling.at_end(error)
        status, reason = outcome(ended_by)
        self.outcome = (status, reason)
        self._end(status, reason)
        if error is None and ended_by is not None and not isinstance(ended_by, StopRun):
            raise ended_by
        return isinstance(ended_by, StopRun)

    def loss(self, loss: Tensor | float) -> bool:
        """Hand the loss over before `backward()`: one that is no number is held before it can do harm.

        False when this batch is to be dropped. Raises `StopRun` when the run is to end.
        """
        return self._telling.hand(loss)

    def step(self, loss: Tensor | float) -> bool:
        """After the optimizer's step: record it, obey commands, keep the pace. False if no update was made.

        Without an update since the last call the loss joins the next one's mean (gradient accumulation).
        Raises `StopRun` when the run is to end.
        """
        lane = self._lane
        return (lane.left > 0 and lane.step(loss)) or self._long_way(loss)

    def _long_way(self, loss: Tensor | float) -> bool:
        """`step` where anything may be asked of it. Where nothing is waited for, an update is what was asked for."""
        start_s = time.perf_counter()
        control, telling, steering = self.control, self._telling, self.control.steering
        self._lane.leave()
        made, dropped = self._updates.take()
        if not made and not dropped:
            telling.joins(loss, start_s)
            return False
        counts = made > 0 or not self._own_loop
        measured = telling.sampled
        self._stretch.went(1)
        self._stretch.look(now=dropped)
        place = self._lane.place(start_s)
        telling.step(loss, start_s, made=made > 0, place=place if counts else None)
        if made and not steering.needs_loss:
            steering.moved(math.nan)
        if counts:
            control.completed()
        if steering.needs_loss:
            telling.settle()  # on a GPU synchronises: plateau's next rate hangs on this loss
        else:
            telling.collect()
        self.begin_step()
        self._enter_lane()
        if not measured and not self._updates.reads:
            self._stretch.count_own(start_s)
        return made > 0

    def _lane_over(self) -> None:
        """Between two steps, behind a stretch of which nothing was asked."""
        start_s = time.perf_counter()
        self._lane.leave()
        self._stretch.look()
        self.begin_step()
        self._enter_lane()
        self._stretch.count_own(start_s, steps=0)

    def _settle(self) -> None:
        """Whatever is done next, a turn perhaps, is of another stretch: a run may be held in the midst of one."""
        self._lane.leave()
        self._telling.settle()

    def _enter_lane(self) -> None:
        self._lane.enter(0 if self._rows.net is None or self._telling.joined else self._stretch.unasked())

    def _ways(self) -> tuple[Telling, Lane]:
        """How steps are told, and how they go where nothing is asked."""
        how: dict[str, Any] = {
            "told": self._known,
            "fault": self._faults.face,
            "next_step": lambda: self.control.step,
        }
        uncount = self._uncount if self._own_loop else None
        late = Late.of(self.model, self._guard, stops=self._faults.on_fault != "note", uncount=uncount, **how)
        given = self.control, self._guard, self.optimizer
        if late is None:
            return AtOnce(self._guard, **how), Lane(*given, over=self._lane_over)
        return late, LateLane(*given, over=self._lane_over, late=late)

    def _uncount(self, updates: int) -> None:
        """The last updates were none, as a GPU tells only now: what was planned and heard is of no step."""
        self.control.uncount(updates)
        self._updates.forget()

    def begin_step(self) -> None:
        """Before the first forward pass; `step` does it before the others. Raises `StopRun`."""
        self.control.between()
        if (curving := self.control.curvature) is not None:
            paced = self.control.steering.pace is not None
            if curving.due(self.next_step, paced=paced):
                self._curve(curving, paid=not paced)
                self._stretch.forget()
        self.plan_step()

    def plan_step(self) -> None:
        """Whether the coming update is measured: once more where the run stood still since that was settled."""
        self._lane.leave()
        if self._rows.net is not None:
            if self._segment != self.control.segment:
                self._segment = self.control.segment
                self._updates.forget()
            self._updates.plan()
        if self.control.stood:
            self._stretch.forget()

    def _curve(self, curving: Curving, *, paid: bool) -> None:
        self.control.settle()
        with self._updates.deaf():
            for event in curving.read(self.control.segment, self.next_step, paid=paid):
                self.control.tell(event)

    def _curve_still(self) -> None:
        """The run stands: a reading costs nobody anything, but another one of the same place tells nothing."""
        curving = self.control.curvature
        if curving is not None and curving.due(self.next_step, paced=True, still=True):
            self._curve(curving, paid=False)

    def log(self, name: str, value: Tensor | float) -> None:
        """A metric of the user's own, placed at the step that comes next."""
        control = self.control

        def tell(number: float) -> None:
            control.tell(MetricLogged(segment=segment, step=step, name=name, value=number))

        segment, step = control.segment, control.step
        self._telling.log(value, tell)

    def _reader(self) -> Callable[[Sample, dict[str, float]], None]:
        """What tells a reading of the update under way."""
        self._rows.tell()
        control = self.control
        place = ReadingPlace(segment=control.segment, step=control.step, structure=self._rows.structure)

        def tell(sample: Sample, rare: dict[str, float]) -> None:
            place.write(control.link, sample, rare, cost=self._sampler.cost)

        return tell

    def _known(self, place: Place, loss: float, skipped: bool) -> None:
        """A step's loss has come late."""
        place.write(self.control.link, loss, skipped=skipped)
        if not skipped:
            steering = self.control.steering
            (steering.made if steering.needs_loss else steering.told)(loss)

    def _follow(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._updates.follow(optimizer)
        if self.control.curvature is not None:
            self.control.curvature.follow(optimizer)

    def _instruments(self) -> Measuring:
        """The instruments of the net as it stands."""
        self._begin()
        return self._rows.instruments(look=True)

    def _begin(self) -> None:
        """The layers are known: lay out the ring and tell of the run, once. Raises `RuntimeError`."""
        if self._rows.net is not None:
            return
        self._order.stop()
        self.control.steering.heard()
        self._rows.begin()
        link = self.control.link
        if link is not None:
            try:
                link.make_ring(self._rows.room)
            except OSError as error:
                raise RuntimeError(f"the run's shared memory cannot be laid out: {error}") from error
            about = self._about or about_foreign(self.name, self.model, self.optimizer)
            states = self.control.steering.states()
            link.tell(started(about, link.launch.run, self.model, self._rows.layers, states))
            self.control.state("running")
            self.control.memory = Memory(next((p.device for p in self.model.parameters()), torch.device("cpu")))

    def _end(self, status: Status, reason: str) -> None:
        control = self.control
        if control.link is None:
            return
        loss, accuracy = control.evaluated() if status != "failed" else (None, None)
        where = position(self.model)
        ended = RunEnded(status=status, step=control.step, loss=loss, accuracy=accuracy, reason=reason, position=where)
        control.tell(ended)
        control.close()
