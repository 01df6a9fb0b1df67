"""The way in for an own training loop: whom its watch talks to, and what is done when a number is none."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Mapping

import torch
from torch import nn

from tui_descent.instruments.sampler import DEFAULT_BUDGET, Sampler
from tui_descent.protocol.channel import ChannelError
from tui_descent.protocol.events import Noted
from tui_descent.training.keeper_link import KeeperLink
from tui_descent.training.optim.optimizers import check_watchable
from tui_descent.training.undo.user_state import user_holders
from tui_descent.training.watch.watch import Watch

SECOND = "this process has a run that is watched already: another watch() goes on unwatched"


class Shown:
    """The run of this process that `exec` shows. A fork of the process has none: the line is not its own."""

    def __init__(self) -> None:
        self._pid = 0
        self._run: weakref.ref[Watch] | None = None
        self._said = False

    @property
    def here(self) -> bool:
        """Whether there is or was one."""
        return self._pid == os.getpid()

    def take(self, run: Watch) -> None:
        """Make it the one."""
        self._pid, self._run, self._said = os.getpid(), weakref.ref(run), False

    def say_second(self) -> None:
        """Tell of another watch(), once: in the script's output, and to the viewers while the run goes on."""
        if self._said:
            return
        self._said = True
        print(f"tui-descent: {SECOND}", file=sys.stderr)
        run = self._run() if self._run is not None else None
        if run is not None and run.outcome is None:
            run.progress.emit(Noted(step=run.next_step, text=SECOND, level="warning"))


_shown = Shown()


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    name: str = "run",
    watch_every: int | None = None,
    watch_budget: float | None = None,
    state: Mapping[str, object] | None = None,
) -> Watch:
    """Watch an own loop: under `tui-descent exec` on its dashboard, otherwise through a keeper of its own.

    The dashboard has room for one run a process: the first one's; another trains on unwatched, and that is said.

    `watch_every=N` measures every Nth step; otherwise readings take at most the share `watch_budget` of the time. With
    neither, the command line's hold: 1 % unless told otherwise. `state={"scheduler": …, "scaler": …}` is what an undo
    puts back beside model and optimizer: all with a `state_dict` to load, nets, tensors, dicts; the loop's counter
    and data go on. Raises `ValueError` for what cannot be put back or watched; without a keeper the loop goes on alone.
    """
    check_watchable(optimizer)
    put_back = user_holders(state or {})
    link = KeeperLink.inherited()
    if link is None and _shown.here:
        _shown.say_second()
    elif link is None:
        try:
            link = KeeperLink.to_own_keeper(name)
        except (ChannelError, OSError) as error:
            print(f"tui-descent: training goes on unwatched: {error}", file=sys.stderr)
    launch = link.launch if link else None
    if launch is not None and watch_every is None and watch_budget is None:
        watch_every, watch_budget = launch.watch_every, launch.watch_budget
    under_exec = launch is not None and launch.command is not None
    run = Watch(
        model,
        optimizer,
        link=link,
        name=name,
        sampler=Sampler(every=watch_every, budget=DEFAULT_BUDGET if watch_budget is None else watch_budget),
        on_fault="hold" if launch is not None and launch.attended else "end" if under_exec else "note",
        state=put_back,
    )
    if under_exec:
        _shown.take(run)
    return run
