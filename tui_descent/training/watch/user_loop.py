"""`watch()`: the entry point for user loops. It finds or starts the keeper and creates the `Watch`."""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from tui_descent.instruments.sampler import DEFAULT_BUDGET, Sampler
from tui_descent.protocol.channel import ChannelError
from tui_descent.protocol.events import Noted
from tui_descent.protocol.launch import DEFAULT_NAME, ENV_FOLDER, SECOND_FILE
from tui_descent.training.keeper_link import KeeperLink, ShownElsewhereError
from tui_descent.training.several_nets import as_one_net
from tui_descent.training.undo.user_state import user_holders
from tui_descent.training.watch.arguments import steered_optimizers
from tui_descent.training.watch.watch import Watch

Nets = nn.Module | Mapping[str, nn.Module] | Sequence[nn.Module]
Optimizers = torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer] | Sequence[torch.optim.Optimizer]
ANOTHER = "exec shows another process of this script; this one trains normally"
SECOND = "this process already has a watched run: a second watch() trains normally but is not shown"


class ShownRun:
    """The run of this process that `exec` shows. A forked child has none: the connection belongs to its parent."""

    def __init__(self) -> None:
        self._pid = 0
        self._run: weakref.ref[Watch] | None = None
        self._warned = False

    @property
    def exists(self) -> bool:
        """Whether this process shows a run or has shown one."""
        return self._pid == os.getpid()

    def set(self, run: Watch) -> None:
        """Make `run` the run that is shown."""
        self._pid, self._run, self._warned = os.getpid(), weakref.ref(run), False

    def warn_second(self) -> None:
        """Warn about a second `watch()`, but only once: in the script's output, and to viewers if the first run has not
        ended.
        """
        if self._warned:
            return
        self._warned = True
        print(f"tui-descent: {SECOND}", file=sys.stderr)
        run = self._run() if self._run is not None else None
        if run is not None and run.outcome is None:
            run.progress.emit(Noted(step=run.next_step, text=SECOND, level="warning"))


_shown = ShownRun()


def watch(
    model: Nets,
    optimizer: Optimizers,
    *,
    name: str = DEFAULT_NAME,
    watch_every: int | None = None,
    watch_budget: float | None = None,
    state: Mapping[str, object] | None = None,
) -> Watch:
    """Watch a user loop: on the dashboard of `tui-descent exec`, or through a keeper that this call starts.

    Under `exec`, only the first run of a process is shown. A loop with a second `watch()` trains normally but is not
    shown; a warning says so. Of several processes that a launcher such as torchrun has started, the one with rank 0 is
    shown, or the first if they have no ranks.

    With `watch_every=N` a reading is taken at every Nth step. Otherwise readings take at most the share `watch_budget`
    of the time. If neither is given, the options of the command line apply; their default is a budget of 1 %.

    Several nets and optimizers are passed as a dict or list: `watch({"g": G, "d": D}, {"g": opt_g, "d": opt_d})`. A
    command can then name an optimizer, as in `lr@optimizer.g=*0.5`. In a list the names are `optimizer.0`,
    `optimizer.1`, …. An optimizer may also be a wrapper, such as Accelerate's or Fabric's.

    `state={"scheduler": …, "scaler": …}` lists what an undo restores in addition to model and optimizer: objects with
    `state_dict` and `load_state_dict`, modules, tensors, dicts. The loop's own counter and data are not restored.

    Raises `ValueError` for a `state` that cannot be restored and for an optimizer that cannot be watched. Later no
    error of ours reaches the loop: a part that fails is switched off, and a note says so. Only `StopRun` does, which
    ends the run. If no keeper can be started, a message says so and the loop trains unwatched.
    """
    # These raise now, before a keeper is started.
    as_one_net(model), steered_optimizers(optimizer), user_holders(state or {})
    link = KeeperLink.inherited()
    if link is None and _shown.exists:
        _shown.warn_second()
    elif link is None:
        link = _connect(name)
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
        state=state or {},
    )
    if under_exec:
        _shown.set(run)
    return run


def _connect(name: str) -> KeeperLink | None:
    """The connection of a process that has not inherited one. None, with a message, if it trains unwatched."""
    if _rank() > 0:
        return None  # the process with rank 0 is shown
    try:
        if (link := KeeperLink.joined()) is not None:
            return link
        link = KeeperLink.with_own_keeper(name)
    except ShownElsewhereError:
        with contextlib.suppress(OSError):  # only the first of several processes prints it
            second = os.path.join(os.environ[ENV_FOLDER], SECOND_FILE)
            os.close(os.open(second, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            print(f"tui-descent: {ANOTHER}", file=sys.stderr)
        return None
    except (ChannelError, OSError) as error:
        print(f"tui-descent: training continues unwatched: {error}", file=sys.stderr)
        return None
    print(f"tui-descent: watching: tui-descent attach {link.launch.run}", file=sys.stderr)
    return link


def _rank() -> int:
    """The number of this process on this machine, among those of a launcher; 0 without a launcher."""
    for name in ("LOCAL_RANK", "RANK"):
        if (text := os.environ.get(name, "")).isdecimal():
            return int(text)
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
