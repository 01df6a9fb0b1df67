"""The keeper's own process, started by a dashboard or by a user loop.

`python -m tui_descent.keeper.process FOLDER [--parent SOCKET RING PID [SENT] | --listener SOCKET]`; SOCKET and RING are
inherited file descriptors, PID is the trainer that has started it. With SENT, this keeper takes the place of one that
has died: the trainer sends its events again, except the first SENT.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from types import FrameType

from tui_descent.keeper.keeper import Keeper
from tui_descent.keeper.trainer import Trainer
from tui_descent.protocol.channel import ChannelError
from tui_descent.protocol.events import RunEnded
from tui_descent.protocol.launch import LOG_FILE, PARENT_OPTION, Launch
from tui_descent.protocol.run_lock import hold_lock, keep_folder, release_lock
from tui_descent.telemetry.record import has_steps


def main(argv: list[str]) -> int:
    """Run the keeper of one run. Errors go to stderr, which is redirected to the keeper's log."""
    folder, option, shared = Path(argv[0]), argv[1:2], [int(text) for text in argv[2:]]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, the trainer's exit code cannot be read
    try:
        hold_lock(folder)
        launch = Launch.read(folder)
        is_child = option == [PARENT_OPTION]
        is_foreign = launch.scenario is None and launch.command is None
        takes_over = is_child and len(shared) > 3
        listener = None if is_child or not shared else socket.socket(fileno=shared[0])
        keeper = Keeper(launch, listener=listener, takes_over=takes_over)

        def stop(number: int, _: FrameType | None) -> None:
            # A user's loop that has started this keeper must not end together with it, for example at a logout.
            (keeper.leave if is_foreign else keeper.stop)(signal.Signals(number).name)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, stop)
        if is_child:
            # The parent's number is passed, because the parent may have died already.
            link, file, parent = socket.socket(fileno=shared[0]), shared[1], shared[2]
            adopt = partial(Trainer.adopt, link, file, parent=parent, launch=launch)
            ended = keeper.run(adopt, sent_before=shared[3] if takes_over else 0)
        else:
            ended = keeper.run(lambda: Trainer.start(launch))
    except (ChannelError, OSError) as error:
        print(f"keeper: {error}", file=sys.stderr)
        return 1
    if is_kept(launch, ended) or not (is_child or ended.status in ("finished", "stopped")):
        keep_folder(folder)
    else:
        clear(folder)
    return 0


def is_kept(launch: Launch, ended: RunEnded) -> bool:
    """Whether the run's folder stays: with the record of a step, after a failure, and if a user's script has printed
    anything.
    """
    printed = ended.log_path is not None or (launch.command is not None and _printed(launch.path))
    return printed or has_steps(launch.path)


def _printed(folder: Path) -> bool:
    try:
        return (folder / LOG_FILE).stat().st_size > 0
    except OSError:
        return False


def clear(folder: Path) -> None:
    """Remove the folder of a run that ended well."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
    release_lock(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
