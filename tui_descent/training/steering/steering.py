"""Turning a knob between two steps: check, change, probe, read the value back. What cannot act says why."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from tui_descent.instruments.same_batch import undisturbed
from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import KnobState
from tui_descent.scenario import knobs
from tui_descent.training.optim import clipping
from tui_descent.training.optim.parameter_groups import fill_momentum_buffers
from tui_descent.training.setup.build import Setup
from tui_descent.training.setup.nets.block import Block
from tui_descent.training.steering import surgery
from tui_descent.training.steering.knobs.context import Knob, KnobContext, Turned
from tui_descent.training.steering.knobs.rate_multiplier import RateMultiplier
from tui_descent.training.steering.knobs.table import knobs_of
from tui_descent.training.steering.transaction import Transaction
from tui_descent.training.undo.snapshot import HoldsState, Snapshot

__all__ = ["RateMultiplier", "Steering", "Turned"]


class Steering:
    """The knobs of one run. `pace` is in steps a second, None as fast as it goes.

    `setup`, `seed` and `steps` are a scenario's; an own loop has none, and knobs that need them say so. `clip` and
    `init` are what it begins with.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        pace: float | None = None,
        setup: Setup | None = None,
        seed: int = 0,
        steps: int | None = None,
        clip: float | None = None,
        init: str = "",
    ) -> None:
        self.context = KnobContext(
            model=model,
            optimizer=optimizer,
            rate=RateMultiplier(optimizer),
            pace=pace,
            setup=setup,
            seed=seed,
            steps=steps,
            clip=clip,
            init=init,
            blocks={name: m for name, m in model.named_modules() if isinstance(m, Block)},
            no_blocks=f"residual acts on the blocks of a built-in net; {type(model).__name__} has none that can be "
            "steered",
        )
        self._knobs = knobs_of(self.context)
        self._finder: surgery.BlockFinder | None = None
        # No instrument may measure the passes that a turn makes: they are not the step's own.
        self._muted: Callable[[], AbstractContextManager[None]] = nullcontext
        assert set(self._knobs) == set(knobs.KNOBS)

    @property
    def rate(self) -> RateMultiplier:
        """The turned learning rate."""
        return self.context.rate

    @property
    def turned(self) -> bool:
        """Whether the learning rate is multiplied around each update."""
        return self.rate.multiplier != 1.0

    @property
    def turned_at(self) -> int:
        """Before which update the last turn was made; 0 without any."""
        return self.context.step

    @property
    def pace(self) -> float | None:
        """Steps a second, None as fast as it goes."""
        return self.context.pace

    @property
    def clips(self) -> bool:
        """Whether gradients are clipped before the update."""
        return self.context.clip is not None

    @property
    def norms_to_come(self) -> int:
        """How many layers a surgery can add: a norm in each block that has none. All others leave the layers alone."""
        return sum(block.norm is None for block in self.context.blocks.values())

    @property
    def moving(self) -> bool:
        """Whether a change is under way, which every update takes further."""
        return bool(self.context.under_way)

    @property
    def version(self) -> int:
        """Of the network's structure: grows when modules come or go."""
        return self.context.version

    def watched(
        self,
        follow: Callable[[torch.optim.Optimizer], None],
        muted: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Who follows a change of the optimizer, and how to keep the instruments off a turn's own passes."""
        self.context.followers.append(follow)
        follow(self.context.optimizer)
        self._muted = muted

    def muted(self) -> AbstractContextManager[None]:
        """No instrument measures inside: for passes that are not the step's own."""
        return self._muted()

    def states(self) -> tuple[KnobState, ...]:
        """Every knob's present value, or why it cannot act here."""
        return tuple(self._state(name) for name in knobs.KNOBS)

    def check(self, turn: TurnKnob) -> None:
        """Raises `ValueError` for what the table does not allow, and for a knob that cannot act in this run."""
        if (why := self._knobs[knobs.check(turn).knob].unavailable()) is not None:
            raise ValueError(why)

    def turn(self, turn: TurnKnob, *, step: int = 0, before: Snapshot | None = None) -> Turned:
        """Turn one knob before update `step`; `before` is the snapshot taken for an undo, where there is one.

        Raises `ValueError`, with nothing changed, when it cannot be.
        """
        self.check(turn)
        row, knob = knobs.KNOBS[turn.knob], self._knobs[turn.knob]
        if row.touches == "run":
            self.context.step = step
            return knob.turn(turn)
        states = self.states()
        with self._muted():
            turned = self._whole_turn(knob, turn, row, step, before)
        one = turn.target != "all"
        changed = (now for now, then in zip(self.states(), states, strict=True) if now != then)
        return replace(turned, knobs=tuple(state for state in changed if one or state.name != turn.knob))

    def _whole_turn(
        self, knob: Knob, turn: TurnKnob, row: knobs.KnobSpec, step: int, snapshot: Snapshot | None
    ) -> Turned:
        """Change, probe, and put all back where either raises."""
        before = self._probed(whole=False)
        transaction = Transaction(self.context, snapshot)
        self.context.step = step
        try:
            turned = knob.turn(turn)
            fill_momentum_buffers(self.context.optimizer)
            if row.touches != "net" or before is None:
                return turned
            self.context.advance(at_once=True)
            after = self._probed(whole=True)
            assert after is not None
            return _with_receipt(turned, before, after)
        except Exception as error:
            transaction.roll_back()
            if isinstance(error, ValueError):
                raise
            line = next(iter(str(error).splitlines()), "")[:200]
            raise ValueError(f"nothing was changed: the net then raised {type(error).__name__}: {line}") from error

    def holders(self) -> list[HoldsState]:
        """What a snapshot of the run is taken of."""
        return self.context.holders()

    def restored(self) -> None:
        """A snapshot was restored: the net has changed, and the optimizer may be another object."""
        self.context.version += 1
        self.context.change_optimizer(self.context.optimizer)

    def advance(self) -> None:
        """Take every change that is under way one update further; called before each forward pass."""
        self.context.advance()

    @property
    def needs_loss(self) -> bool:
        """Whether the next update's rate depends on this one's loss, as plateau's does."""
        setup = self.context.setup
        return setup is not None and setup.schedule is not None and setup.schedule.needs_loss

    def update_made(self) -> None:
        """An update was made, its turned rate taken off: the schedule moves on, unless it has to know the loss."""
        setup = self.context.setup
        if setup is not None and setup.schedule is not None and not setup.schedule.needs_loss:
            setup.schedule.step(math.nan)

    def loss_known(self, loss: float) -> None:
        """The loss of an update is known, before any turn that comes after the update."""
        context = self.context
        if self.needs_loss:
            assert context.setup is not None
            assert context.setup.schedule is not None
            context.setup.schedule.step(loss)
        if context.first_loss is None:
            context.first_loss = loss
        context.losses.append(loss)

    def move_back(self, updates: int) -> None:
        """The last updates turned out to be none: the schedule goes back."""
        setup = self.context.setup
        if setup is not None and setup.schedule is not None and not self.needs_loss:
            setup.schedule.step_back(updates)
        self.context.version += 1  # the gradient that the instruments remember is that of no step

    def clip(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """Before the update, where gradients are to be clipped: their global norm before, None where they are not."""
        if self.context.clip is None:
            return None
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        return clipping.clip(parameters, self.context.clip, grad_scale=clipping.grad_scale(optimizer))

    def heal(self) -> None:
        """Between two steps: a step that raised never came to its post-hooks."""
        self.context.rate.take_off()

    def listen(self) -> None:
        """An own net's first forward pass tells which of its modules can bear a skip."""
        if not self.context.blocks:
            try:
                self._finder = surgery.BlockFinder(self.context.model)
            except ValueError as error:
                self.context.no_blocks = f"residual: {error}"
                return
            self._finder.listen()

    def heard(self) -> None:
        """That pass is over."""
        if self._finder is None:
            return
        blocks, reasons = self._finder.found()
        self._finder = None
        self.context.around = {name: surgery.Around(module) for name, module in blocks.items()}
        if not blocks and reasons:
            name, reason = next(iter(reasons.items()))
            self.context.no_blocks += f"; {name}: {reason}"

    def _state(self, name: str) -> KnobState:
        knob = self._knobs[name]
        if (why := knob.unavailable()) is not None:
            return KnobState(name=name, unavailable=why)
        return KnobState(name=name, value=knob.value())

    def _probed(self, *, whole: bool) -> tuple[Tensor, float] | None:
        """Outputs and loss on the fixed samples, `whole` with a backward pass; None where there are none to be had."""
        setup, model = self.context.setup, self.context.model
        if setup is None:
            return None
        with undisturbed(model), torch.set_grad_enabled(whole):
            try:
                outputs, loss = setup.probe_outputs_and_loss()
                if whole:
                    trained = [p for p in model.parameters() if p.requires_grad]
                    torch.autograd.grad(loss, trained, allow_unused=True)
            except RuntimeError:
                if whole:
                    raise
                return None  # the net as it stands cannot be run: a turn may be what helps
            return outputs.detach().clone(), float(loss.detach())


def _with_receipt(turned: Turned, before: tuple[Tensor, float], after: tuple[Tensor, float]) -> Turned:
    """What changed on the probe batch. Raises `ValueError` where numbers became none."""
    if math.isfinite(before[1]) and not math.isfinite(after[1]):
        raise ValueError(f"nothing was changed: the loss would be {after[1]}")
    change = float((after[0] - before[0]).abs().max())
    return replace(turned, function_change=change, loss_before=before[1], loss_after=after[1])
