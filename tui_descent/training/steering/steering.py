"""Turns knobs between two steps: checks the command, changes the run, tests the result on a probe batch, and reads the
new value back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from tui_descent.training.run_description import describe
from tui_descent.training.setup.build import Setup
from tui_descent.training.setup.nets.block import Block
from tui_descent.training.several_nets import SeveralNets
from tui_descent.training.steering import surgery
from tui_descent.training.steering.knobs.context import Knob, KnobChange, KnobContext
from tui_descent.training.steering.knobs.learning_rate import RateMultiplier
from tui_descent.training.steering.knobs.table import knobs_of
from tui_descent.training.steering.steered_optimizer import SteeredOptimizer
from tui_descent.training.steering.transaction import Transaction
from tui_descent.training.steering.trial import Trial, problem
from tui_descent.training.undo.snapshot import HoldsState, Snapshot

MAX_LISTED = 64  # modules that a knob's state names

__all__ = ["KnobChange", "RateMultiplier", "SteeredOptimizer", "Steering"]


class Steering:
    """The knobs of one run. `pace` is in steps per second, None for full speed.

    `setup`, `seed` and `steps` come from a scenario. A user loop has none, and knobs that need them are not available
    there. `clip` and `init` are the initial settings. `optimizer` is a sequence if several optimizers train the net.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[SteeredOptimizer],
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
            optimizers=[SteeredOptimizer(optimizer, clip=clip)]
            if isinstance(optimizer, torch.optim.Optimizer)
            else list(optimizer),
            pace=pace,
            setup=setup,
            seed=seed,
            steps=steps,
            init=init,
            blocks={name: m for name, m in model.named_modules() if isinstance(m, Block)},
            no_blocks_reason="no block keeps its input's shape",
        )
        self._knobs = knobs_of(self.context)
        self._trial = Trial(model)
        self._last_change: tuple[int, str] | None = None  # the last change of the net: its step and its description
        self._observer: surgery.ForwardObserver | None = None
        # Returns a context in which the instruments do not measure, for passes that are not part of a step.
        self._muted: Callable[[], AbstractContextManager[None]] = nullcontext
        assert set(self._knobs) == set(knobs.KNOBS)

    @property
    def rate(self) -> RateMultiplier:
        """The learning rate and its multiplier; those of the first optimizer if there are several."""
        return self.context.rate

    @property
    def optimizers(self) -> Sequence[SteeredOptimizer]:
        """The optimizers that train the net, usually one."""
        return self.context.optimizers

    @property
    def last_change_step(self) -> int:
        """The number of the update before which a knob was last turned; 0 if no knob was turned."""
        return self.context.step

    @property
    def pace(self) -> float | None:
        """Steps per second, None for full speed."""
        return self.context.pace

    @property
    def clips_gradients(self) -> bool:
        """Whether gradients are clipped before each update."""
        return any(one.clip is not None for one in self.context.optimizers)

    @property
    def max_new_layers(self) -> int:
        """How many layers the knobs can add: a norm layer in each block without one. Only the norm knob adds layers."""
        return sum(block.norm is None for block in self.context.blocks.values())

    @property
    def in_transition(self) -> bool:
        """Whether a transition, that is a change spread over several updates, is in progress."""
        return bool(self.context.transitions)

    @property
    def version(self) -> int:
        """The version number of the network's structure. It is increased by each change."""
        return self.context.version

    def attach(
        self,
        on_optimizer: Callable[[torch.optim.Optimizer], None],
        muted: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Call `on_optimizer` with the optimizer now, and again whenever the optimizer is replaced. `muted` has to
        return a context in which the instruments do not measure.
        """
        self.context.optimizer_listeners.append(on_optimizer)
        on_optimizer(self.context.optimizer)
        self._muted = muted

    def muted(self) -> AbstractContextManager[None]:
        """A context in which no instrument measures, for passes that are not part of a step."""
        return self._muted()

    def states(self) -> tuple[KnobState, ...]:
        """Every knob's current value, or why it is not available."""
        return tuple(self._state(name) for name in knobs.KNOBS)

    def check(self, turn: TurnKnob) -> None:
        """Raises `ValueError` if the knobs table does not allow the command, or the knob is not available here."""
        if (reason := self._knobs[knobs.check(turn).knob].unavailable()) is not None:
            raise ValueError(reason)

    def is_set(self, turn: TurnKnob) -> bool:
        """Whether a checked command asks for the current value. Raises `ValueError` if the command cannot be carried
        out.
        """
        return self._knobs[turn.knob].is_set(turn)

    def turn(self, turn: TurnKnob, *, step: int = 0, before: Snapshot | None = None) -> KnobChange:
        """Turn one knob before update `step`; `before` is the snapshot taken for an undo, if there is one.

        Raises `ValueError` with the reason if that fails; nothing is changed then.
        """
        self.check(turn)
        row, knob = knobs.KNOBS[turn.knob], self._knobs[turn.knob]
        if row.touches == "run":
            self.context.step = step
            change = knob.turn(turn)
            # If only one of several optimizers was changed, the value of the whole run is listed too.
            return change if turn.target == "all" else replace(change, knobs=(self._state(turn.knob),))
        old_states = self.states()
        with self._muted():
            change = self._turn_or_roll_back(knob, turn, row, step, before)
        changed = (new for new, old in zip(self.states(), old_states, strict=True) if new != old)
        # `change` contains this knob's own value. If only one layer was changed, that is the value of the layer, so the
        # value for the whole net is listed too.
        one_layer = turn.target != "all"
        return replace(change, knobs=tuple(state for state in changed if one_layer or state.name != turn.knob))

    def _turn_or_roll_back(
        self, knob: Knob, turn: TurnKnob, row: knobs.KnobSpec, step: int, snapshot: Snapshot | None
    ) -> KnobChange:
        """Change the run and test the result on the probe batch. If either raises, roll back."""
        before = self._probe(backward=False)
        tried = self._try(turn)
        transaction = Transaction(self.context, snapshot)
        self.context.step = step
        try:
            change = knob.turn(turn)
            for one in self.context.optimizers:
                fill_momentum_buffers(one.optimizer)
            if tried is not None:
                self._try_again(tried)
            if row.touches == "net":
                self._last_change = step, f"{turn.knob} {change.old} → {change.new}"
            if row.touches != "net" or before is None:
                return change
            self.context.advance(at_once=True)
            after = self._probe(backward=True)
            assert after is not None
            return _with_effect(change, before, after)
        except Exception as error:
            transaction.roll_back()
            if isinstance(error, ValueError):
                raise
            line = next(iter(str(error).splitlines()), "")[:200]
            raise ValueError(f"nothing was changed: the net raised {type(error).__name__}: {line}") from error

    def _try(self, turn: TurnKnob) -> list[Tensor] | None:
        """The outputs of a user's net on the last inputs; None if there are none, or if this knob needs no trial."""
        if self.context.setup is not None or knobs.KNOBS[turn.knob].touches != "net" or turn.knob == "freeze":
            return None
        try:
            return self._trial.run()
        except Exception:  # noqa: BLE001 - the inputs are of no use, for example because their memory was freed
            return None

    def _try_again(self, before: list[Tensor]) -> None:
        """Try the changed net, with all transitions at their ends. Raises `ValueError` if the change must not stay."""
        try:
            with self.context.transitions_at_end():
                after = self._trial.run()
        except Exception as error:
            raise ValueError(f"nothing was changed: the net would raise {describe(error)}") from error
        if after is not None and (reason := problem(before, after)) is not None:
            raise ValueError(f"nothing was changed: {reason}")

    def plain(self, model: nn.Module | None) -> nn.Module:
        """A deep copy of `model`, or of the run's net, without anything of this package.

        Raises `ValueError` if that is not possible, or if the copy behaves differently on the last inputs.
        """
        if model is None and isinstance(self.context.model, SeveralNets):
            raise ValueError("several nets are watched; pass one of them, as in run.plain(model)")
        copy = surgery.plain(self.context.model if model is None else model)
        if model is None or model is self.context.model:
            try:
                outputs, expected = self._trial.run(copy), self._trial.run()
            except Exception as error:
                raise ValueError(f"the plain copy raises {describe(error)}") from error
            same = zip(outputs or (), expected or (), strict=True)
            if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in same):
                raise ValueError("the plain copy has different outputs")
        return copy

    def likely_cause(self, step: int) -> str | None:
        """What may have made the user's step raise: a change of the net that was made just before or is still in
        transition.
        """
        if self.context.setup is not None or self._last_change is None:
            return None
        at, what = self._last_change
        return f"likely cause: {what}, at step {at}" if step - at <= 1 or self.in_transition else None

    def listen_to_inputs(self) -> None:
        """Keep the inputs of the coming forward pass of a user's net, to try changes on them."""
        if self.context.setup is None:
            self._trial.listen()

    def holders(self) -> list[HoldsState]:
        """The objects whose states make up a snapshot of the run."""
        return self.context.holders()

    def after_restore(self) -> None:
        """Call this after a snapshot was restored: the net, and perhaps the optimizer object, has then changed."""
        self._last_change = None
        self.context.version += 1
        self.context.change_optimizer(self.context.optimizer)

    def advance(self) -> None:
        """Advance every transition by one update. Call this before each forward pass."""
        self._trial.stop_listening()
        self.context.advance()

    @property
    def needs_loss(self) -> bool:
        """Whether the rate of the next update depends on the loss of this update, as in the plateau schedule."""
        setup = self.context.setup
        return setup is not None and setup.schedule is not None and setup.schedule.needs_loss

    def after_update(self) -> None:
        """Step the schedule, unless it needs the loss. Call this after each update."""
        setup = self.context.setup
        if setup is not None and setup.schedule is not None and not setup.schedule.needs_loss:
            setup.schedule.step(math.nan)

    def add_loss(self, loss: float) -> None:
        """Record the loss of an update. Call this in the order of the updates, and before any later knob is turned."""
        context = self.context
        if self.needs_loss:
            assert context.setup is not None
            assert context.setup.schedule is not None
            context.setup.schedule.step(loss)
        if context.first_loss is None:
            context.first_loss = loss
        context.losses.append(loss)

    def drop_updates(self, updates: int) -> None:
        """Step the schedule back. Call this when a GPU reports, some time later, that it skipped the last `updates`
        updates.
        """
        setup = self.context.setup
        if setup is not None and setup.schedule is not None and not self.needs_loss:
            setup.schedule.step_back(updates)
        self.context.version += 1  # this makes the instruments forget the gradient of a skipped update

    @staticmethod
    def clip(one: SteeredOptimizer) -> Tensor | None:
        """Clip an optimizer's gradients. Returns their global norm before clipping; None if clipping is off."""
        if one.clip is None:
            return None
        return clipping.clip(one.parameters(), one.clip, grad_scale=clipping.grad_scale(one.optimizer))

    def remove_rate_multiplier(self) -> None:
        """Remove the rate multipliers after a step that raised: its post-hook, which normally removes them, was not
        called.
        """
        for one in self.context.optimizers:
            one.rate.remove()

    def start_observing(self) -> None:
        """Observe a user's net in its first forward pass: which parts of it the knobs can change."""
        if not self.context.blocks:
            try:
                self._observer = surgery.ForwardObserver(self.context.model)
            except ValueError as error:
                self.context.no_blocks_reason = str(error)
                return
            self._observer.attach()
            self._trial.listen()

    def finish_observing(self) -> None:
        """Keep what was observed, or the reason why there are no blocks. Call this after the first forward pass. If
        observing the net raised an exception, it is raised again here, after the hooks have been removed.
        """
        observer, self._observer = self._observer, None
        self._trial.stop_listening()
        if observer is None:
            return
        seen = self.context.observation = observer.finish()
        # Blocks that a resumption has given a skip. The observed pass has taken this skip for the net's own.
        restored = self.context.user_blocks
        seen.own_skips -= restored.keys()
        self.context.user_blocks = {
            **{name: surgery.UserBlock(module) for name, module in seen.blocks.items()},
            **restored,
        }
        others = [(name, reason) for name, reason in seen.reasons.items() if "shape" not in reason]
        if not seen.reasons:
            self.context.no_blocks_reason = "the net has no Sequential or ModuleList"
        elif len(others) == len(seen.reasons):
            self.context.no_blocks_reason = f"no blocks; {others[0][0]}: {others[0][1]}"
        if observer.error is not None:
            raise observer.error

    def close(self) -> None:
        """Remove all hooks, and free what was kept for trials."""
        self._trial.forget()
        if self._observer is not None:
            self._observer.finish()
            self._observer = None

    def _state(self, name: str) -> KnobState:
        knob = self._knobs[name]
        if (reason := knob.unavailable()) is not None:
            # In a user loop the class of the optimizer cannot be changed, but the diagnosis has to know it.
            value = knob.value() if name == "optimizer" and self.context.setup is None else ""
            return KnobState(name=name, value=value, unavailable=reason)
        return KnobState(
            name=name,
            value=knob.value(),
            acts_on=knob.acts_on()[:MAX_LISTED],
            left_alone=tuple(knob.leaves_alone().items())[:MAX_LISTED],
        )

    def _probe(self, *, backward: bool) -> tuple[Tensor, float] | None:
        """Outputs and loss on the probe batch, which is always the same. With `backward`, run a backward pass too.

        None if there is no probe batch. If the net raises an exception: with `backward` it is passed on, otherwise the
        result is None.
        """
        setup, model = self.context.setup, self.context.model
        if setup is None:
            return None
        with undisturbed(model), torch.set_grad_enabled(backward):
            try:
                outputs, loss = setup.probe_outputs_and_loss()
                if backward:
                    trainable = [p for p in model.parameters() if p.requires_grad]
                    torch.autograd.grad(loss, trainable, allow_unused=True)
            except RuntimeError:
                if backward:
                    raise
                return None  # not an error: turning the knob may repair the net
            return outputs.detach().clone(), float(loss.detach())


def _with_effect(change: KnobChange, before: tuple[Tensor, float], after: tuple[Tensor, float]) -> KnobChange:
    """Add the effect on the probe batch to `change`. Raises `ValueError` if the loss became non-finite.

    `before` and `after` are the outputs and the loss on the probe batch.
    """
    if math.isfinite(before[1]) and not math.isfinite(after[1]):
        raise ValueError(f"nothing was changed: the loss would become {after[1]}")
    moved = float((after[0] - before[0]).abs().max())
    return replace(change, function_change=moved, loss_before=before[1], loss_after=after[1])
