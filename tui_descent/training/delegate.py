"""Another optimizer's updates under a loop that goes on calling the one it made, which stands aside by its own hooks.

Its pre-hook makes the other's step and empties the groups, so that its own step finds nothing to do; its post-hook
fills them again. Between two steps the loop finds its optimizer as it was, for `zero_grad`, schedulers and checkpoints.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tui_descent.training.optimizers import name_of

KEY = "tui_descent"  # in the old one's state_dict, what the new one remembers
_HOOKED_STEP = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__


def steps_under_way(optimizer: torch.optim.Optimizer) -> int:
    """How many of its steps the caller is within: two where a subclass called `super().step()`."""
    count = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # torch's wrapper, which runs the hooks, has the optimizer as the first of its args.
        count += frame.f_code is _HOOKED_STEP and frame.f_locals["args"][:1] == (optimizer,)
        frame = frame.f_back
    return count


@dataclass(frozen=True, slots=True)
class GroupRate:
    """One group's rates when the turn was made, and the factor from the old one's to the new one's ever after."""

    old: float
    new: float
    factor: float

    def of(self, lr: float) -> float:
        """The new one's rate beside this one of the old one's; at the turn's own, to the last bit what was mapped."""
        return self.new if lr == self.old else lr * self.factor


class Delegate:
    """The optimizer that a loop calls, `outer`, and the one that makes its updates, `inner`: None while it does itself.

    `build` makes an optimizer of that name as a turn would; `changed` is told who makes the updates once a checkpoint
    says another than now. An optimizer keeps its delegate when its watch is over: the next one goes on with it.
    """

    def __init__(self, outer: torch.optim.Optimizer) -> None:
        self.outer = outer
        self.inner: torch.optim.Optimizer | None = None
        self.build: Callable[[str], torch.optim.Optimizer] | None = None
        self.changed: Callable[[torch.optim.Optimizer], None] = lambda _: None
        self._rates: list[GroupRate] = []
        self._handles: list[RemovableHandle] = []
        self._hooked = False
        self._emptied: list[tuple[dict[str, Any], list[Tensor]]] = []
        self._depth = 0
        self._read: dict[str, Any] | None = None

    @classmethod
    def of(cls, outer: torch.optim.Optimizer) -> Delegate:
        """The one that the optimizer has, or a new one."""
        found = getattr(outer, KEY, None)
        if not isinstance(found, cls):
            found = cls(outer)
            setattr(outer, KEY, found)
        return found

    def state(self) -> tuple[torch.optim.Optimizer | None, list[GroupRate]]:
        """Who makes the updates, at which rates."""
        return self.inner, list(self._rates)

    def restore(self, state: tuple[torch.optim.Optimizer | None, list[GroupRate]]) -> None:
        """Back to it."""
        self.inner, self._rates = state[0], list(state[1])

    @property
    def acting(self) -> torch.optim.Optimizer:
        """Who makes the updates."""
        return self.inner or self.outer

    def listen(self) -> None:
        """A checkpoint that the loop loads may hold what another optimizer remembers."""
        if self._handles:
            return
        self._handles = [
            self.outer.register_load_state_dict_pre_hook(self._reads),
            self.outer.register_load_state_dict_post_hook(self._loaded),
        ]

    def hand_over(self, inner: torch.optim.Optimizer) -> None:
        """From the next step on `inner` makes the updates; its groups are the outer one's, rates and all.

        Raises `ValueError` within the outer one's step, and for one that would not stand aside.
        """
        if steps_under_way(self.outer):
            raise ValueError("the run is held within optimizer.step(); make a step first, then turn the optimizer")
        if not type(self.outer).__module__.startswith("torch.optim."):
            self._try_standing_aside()
        self._hook()
        self._rates = [_rate(old, new) for old, new in zip(self.outer.param_groups, inner.param_groups, strict=True)]
        self.inner = inner

    def give_back(self) -> None:
        """The outer one makes its updates itself again, with what it remembered when it was relieved."""
        self.inner, self._rates = None, []

    def sync(self) -> None:
        """The inner one's rates as the outer one's stand now, and groups and parameters that the loop has added."""
        inner = self.inner
        if inner is None:
            return
        for n, group in enumerate(self.outer.param_groups):
            if n == len(inner.param_groups):
                self._rates.append(GroupRate(-1.0, 0.0, self._rates[0].factor))
                inner.add_param_group({"params": list(group["params"])})
            mine, rate = inner.param_groups[n], self._rates[n]
            for key in ("lr", "initial_lr"):
                if key in group:
                    mine[key] = rate.of(float(group[key]))
            known = {id(p) for p in mine["params"]} if len(mine["params"]) != len(group["params"]) else None
            if known is not None:
                mine["params"] += [p for p in group["params"] if id(p) not in known]

    def heal(self) -> None:
        """A step that raised never came to its post-hook: the groups are filled again."""
        self._depth = 0
        for group, parameters in self._emptied:
            group["params"] = parameters
        self._emptied = []

    def _hook(self) -> None:
        if self._hooked:
            return
        self._hooked = True
        outer = self.outer
        outer.register_step_pre_hook(self._instead)  # behind all others, which may still change gradients
        after = outer.register_step_post_hook(self._filled)
        # Before all others, which may want the weights.
        outer._optimizer_step_post_hooks.move_to_end(after.id, last=False)  # type: ignore[attr-defined]
        outer.register_state_dict_post_hook(self._saved)

    def _instead(
        self, outer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._depth > 0 and steps_under_way(outer) > 1:
            self._depth += 1
            return None
        self.heal()
        if self.inner is None:
            return None
        self._depth = 1
        self.sync()
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 and callable(args[1]) else None)
        loss = self._step(self.inner, closure)
        self._empty()
        if closure is None:
            return None
        # It has run: the outer step is only told what came of it.
        if "closure" in kwargs:
            return args, {**kwargs, "closure": lambda: loss}
        return (args[0], lambda: loss, *args[2:]), kwargs

    def _step(self, inner: torch.optim.Optimizer, closure: Callable[[], Any] | None) -> Any:
        """One update; a GradScaler leaves scaled gradients, and whether one overflowed, to a fused optimizer's step."""
        scale, overflow = getattr(self.outer, "grad_scale", None), getattr(self.outer, "found_inf", None)
        if scale is None and overflow is None:
            return inner.step(closure) if closure is not None else inner.step()
        if getattr(inner, "_step_supports_amp_scaling", False):
            inner.grad_scale, inner.found_inf = scale, overflow  # type: ignore[attr-defined]
            try:
                return inner.step(closure) if closure is not None else inner.step()
            finally:
                del inner.grad_scale, inner.found_inf  # type: ignore[attr-defined]
        if overflow is not None and bool(overflow):  # waits for the device, as the scaler does for such a one
            return None
        if scale is not None:
            for parameter in _parameters(inner):
                if parameter.grad is not None:
                    parameter.grad.div_(scale)
        return inner.step(closure) if closure is not None else inner.step()

    def _empty(self) -> None:
        # Another list in its place: whoever holds on to the old one still finds the parameters in it.
        self._emptied = [(group, group["params"]) for group in self.outer.param_groups]
        for group, _ in self._emptied:
            group["params"] = []

    def _filled(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth <= 0:
            self.heal()

    def _try_standing_aside(self) -> None:
        """A step with nothing in the groups, for a class that is not torch's. Raises `ValueError` if it does more."""
        kind = type(self.outer).__name__
        grads = [(p, p.grad) for p in _parameters(self.outer)]
        before = [p.detach().clone() for p, _ in grads]
        for p, _ in grads:
            p.grad = torch.ones_like(p)
        self._empty()
        try:
            with _without_hooks(self.outer):
                self.outer.step()
            moved = any(not torch.equal(p, old) for (p, _), old in zip(grads, before, strict=True))
        except Exception as error:
            raise ValueError(
                f"{kind} cannot stand aside: its step raises {type(error).__name__} where its groups are empty"
            ) from error
        finally:
            self.heal()
            for p, grad in grads:
                p.grad = grad
        if moved:
            raise ValueError(f"{kind} cannot stand aside: it moves weights that are not in its groups")

    def _saved(self, outer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        if self.inner is None:
            return None
        rates = [[rate.old, rate.new, rate.factor] for rate in self._rates]
        return state | {KEY: {"name": name_of(self.inner), "state": self.inner.state_dict(), "rates": rates}}

    def _reads(self, outer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        self._read = state.get(KEY)

    def _loaded(self, outer: torch.optim.Optimizer) -> None:
        read, self._read = self._read, None
        if read is None:
            return
        if self.inner is None or name_of(self.inner) != read["name"]:
            assert self.build is not None
            self.hand_over(self.build(read["name"]))
        assert self.inner is not None
        self.inner.load_state_dict(read["state"])
        self._rates = [GroupRate(*numbers) for numbers in read["rates"]]
        self.changed(self.inner)


def _rate(old: dict[str, Any], new: dict[str, Any]) -> GroupRate:
    before, after = (float(group.get("initial_lr", group["lr"])) for group in (old, new))
    return GroupRate(float(old["lr"]), float(new["lr"]), after / before if before else 0.0)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


@contextmanager
def _without_hooks(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    hooks: tuple[Any, ...] = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    kept = [dict(each) for each in hooks]
    for each in hooks:
        each.clear()
    try:
        yield
    finally:
        for each, entries in zip(hooks, kept, strict=True):
            each.update(entries)
