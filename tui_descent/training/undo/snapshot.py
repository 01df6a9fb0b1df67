"""The exact state of a loop at one moment, to stand there again: every object stays the same one, its contents return.

Tensors get their old numbers by `copy_`, modules and optimizers their old attributes, so whatever held on to one of
them (an optimizer to its parameters, a transition under way to its module) still holds on to the right one.
"""

from __future__ import annotations

import copy
import hashlib
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from tui_descent.training.surgery import Around

_SIMPLE = (type(None), bool, int, float, complex, str, bytes)
_CONTAINERS = (dict, list, set, deque)
_OWN = "tui_descent.training."
# What runs the loop is not the loop's state.
_OUTSIDE = frozenset({"control", "curving", "guard", "link", "memory", "updates", "watch"})


class HasStateDict(Protocol):
    """As GradScaler and most schedulers of one's own are."""

    def state_dict(self) -> Any:
        """All that `load_state_dict` needs."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Back to it."""


class Stateful:
    """An object known by its `state_dict` alone, called `name` by the loop that holds it."""

    def __init__(self, name: str, of: HasStateDict) -> None:
        self.name = name
        self._of = of

    def kept(self) -> Any:
        """Its state, in copies of its own."""
        return copy.deepcopy(self._of.state_dict())

    def load(self, kept: Any) -> None:
        """Stand there again. Raises `ValueError`, standing where it stood, when the object will not."""
        now = self.kept()
        try:
            self._of.load_state_dict(copy.deepcopy(kept))
        except Exception as error:
            self._of.load_state_dict(now)
            raise ValueError(f'state["{self.name}"] raised {type(error).__name__}: {error}'[:300]) from error


_KNOWN = (nn.Module, torch.optim.Optimizer, LRScheduler, torch.Generator, Stateful)


class Moment:
    """What `take` found below the roots, and the random numbers to come where the loop is our own.

    Of an object of this package its class may name attributes that stay as they are: `not_undone`. `.grad` belongs to
    no moment: there is none between two updates. Modules keep the hooks they have.
    """

    def __init__(self, *, segment: int, step: int) -> None:
        self.segment = segment
        self.step = step
        self._held: list[tuple[Any, Any]] = []
        self._place: dict[int, int] = {}
        self._random: dict[str, Any] = {}
        self.nbytes = 0  # memory its tensors take

    @classmethod
    def take(cls, roots: Iterable[object], *, segment: int, step: int, randoms: bool = True) -> Moment:
        """The state now. `randoms` adds torch's, Python's and NumPy's own generators."""
        moment = cls(segment=segment, step=step)
        waiting = deque(roots)
        while waiting:
            found = waiting.popleft()
            if id(found) in moment._place or not has_contents(found):
                continue
            moment._place[id(found)] = len(moment._held)
            contents = _contents(found)
            if isinstance(found, Tensor):
                moment.nbytes += contents[0].nbytes
            moment._held.append((found, contents))
            waiting.extend(_within(contents))
        if randoms:
            moment._random = {name: get() for name, (get, _) in _generators().items()}
        return moment

    @torch.no_grad()
    def restore(self, *, named: bool = True) -> None:
        """Stand where it was taken; as often as wanted. `named`: with what is known by its `state_dict` alone.

        Raises `ValueError`, with nothing changed, where one of those will not load it.
        """
        if named:
            self._load()
        for found, contents in self._held:
            if not isinstance(found, Stateful):
                _put_back(found, contents)
        generators = _generators()
        for name, state in self._random.items():
            generators[name][1](state)

    def _load(self) -> None:
        """First, since foreign code may refuse: what was loaded by then is loaded back."""
        loaded: list[tuple[Stateful, Any]] = []
        try:
            for found, contents in self._held:
                if isinstance(found, Stateful):
                    before = found.kept()
                    found.load(contents)
                    loaded.append((found, before))
        except ValueError:
            for found, before in loaded:
                found.load(before)
            raise

    def finite(self) -> bool:
        """Whether every weight in it is a number."""
        return all(bool(c[0].isfinite().all()) for f, c in self._held if isinstance(f, nn.Parameter))

    def digest(self) -> str:
        """SHA-256 over it all: the same for the same state, in another process too."""
        sha = hashlib.sha256()
        for found, contents in self._held:
            sha.update(type(found).__qualname__.encode())
            self._feed(sha.update, contents)
        self._feed(sha.update, self._random)
        return sha.hexdigest()

    def _feed(self, feed: Callable[[bytes], None], value: Any) -> None:
        if isinstance(value, _SIMPLE):
            feed(repr(value).encode())
        elif (place := self._place.get(id(value))) is not None:
            feed(b"@%d" % place)
        elif isinstance(value, Tensor):
            feed(f"{value.dtype}{tuple(value.shape)}".encode())
            feed(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key, inner in value.items():
                self._feed(feed, key)
                self._feed(feed, inner)
        elif isinstance(value, tuple | list | deque):
            feed(b"(%d" % len(value))
            for inner in value:
                self._feed(feed, inner)
        elif isinstance(value, set):
            feed(repr(sorted(map(repr, value))).encode())
        elif type(value).__module__ == "numpy":
            feed(value.tobytes())
        else:
            feed(type(value).__qualname__.encode())


def bytes_needed(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """What a moment of them takes, told without taking it."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return sum(t.nbytes for t in tensors)


def has_contents(found: object) -> bool:
    """Whether it can change in place and a moment knows how; the rest is kept by its name alone."""
    if isinstance(found, Tensor):
        return found.is_leaf  # one with a history is a result, and nobody's state
    if isinstance(found, (*_CONTAINERS, tuple, *_KNOWN)):
        return True
    if isinstance(found, type | msgspec.Struct):
        return False
    if is_dataclass(found):
        return not getattr(type(found), "__dataclass_params__").frozen  # noqa: B009 - not in typeshed
    home = type(found).__module__
    return home.startswith(_OWN) and home.removeprefix(_OWN).split(".")[0] not in (*_OUTSIDE, "undo")


def _contents(found: Any) -> Any:
    if isinstance(found, Tensor):
        return found.detach().clone(), found.requires_grad
    if isinstance(found, torch.Generator):
        return found.get_state()
    if isinstance(found, dict):
        return dict(found)
    if isinstance(found, list | deque | tuple):
        return list(found)
    if isinstance(found, set):
        return set(found)
    if isinstance(found, Around):
        return {"skip": found.skip}
    if isinstance(found, Stateful):
        return found.kept()
    return {name: value for name, value in _attributes(found) if not _stays(found, name)}


def _put_back(found: Any, contents: Any) -> None:
    if isinstance(found, Tensor):
        values, wanted = contents
        found.grad = None
        found.requires_grad_(False).copy_(values)
        found.requires_grad_(wanted)
    elif isinstance(found, torch.Generator):
        found.set_state(contents)
    elif isinstance(found, dict | set):
        found.clear()
        found.update(contents)
    elif isinstance(found, list | deque):
        found.clear()
        found.extend(contents)
    elif isinstance(found, Around):
        found.skip = contents["skip"]
    elif not isinstance(found, tuple):
        for name in [name for name, _ in _attributes(found) if not _stays(found, name) and name not in contents]:
            object.__delattr__(found, name)
        for name, value in contents.items():
            # Past nn.Module's own __setattr__, which would register a part a second time.
            object.__setattr__(found, name, value)


def _within(contents: Any) -> Iterator[Any]:
    if isinstance(contents, dict):
        yield from contents.keys()
        yield from contents.values()
    elif isinstance(contents, set | list):
        yield from contents


def _attributes(found: Any) -> Iterator[tuple[str, Any]]:
    yield from list(getattr(found, "__dict__", {}).items())
    for kind in type(found).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(found, name):
                yield name, getattr(found, name)


def _stays(found: Any, name: str) -> bool:
    if name in getattr(type(found), "not_undone", ()):
        return True
    # Instruments come and go by hooks, a skip around a module is `Around`'s; a `step` is wrapped once for all time.
    return isinstance(found, nn.Module | torch.optim.Optimizer) and ("_hooks" in name or name in ("step", "forward"))


def _generators() -> dict[str, tuple[Callable[[], Any], Callable[[Any], None]]]:
    found: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
        "torch": (torch.get_rng_state, torch.set_rng_state),
        "python": (random.getstate, random.setstate),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["cuda"] = (torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all)
    if torch.backends.mps.is_available():
        found["mps"] = (torch.mps.get_rng_state, torch.mps.set_rng_state)
    if (numpy := sys.modules.get("numpy")) is not None:
        found["numpy"] = (numpy.random.get_state, numpy.random.set_state)
    return found
