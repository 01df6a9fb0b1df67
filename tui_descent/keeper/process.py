"""The keeper's own process, started by a dashboard or by a user loop.

`python -m tui_descent.keeper.process FOLDER [--parent SOCKET RING]`; SOCKET and RING are inherited file descriptors.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

from tui_descent.keeper.keeper import Keeper
from tui_descent.keeper.trainer import Trainer
from tui_descent.protocol.channel import ChannelError
from tui_descent.protocol.launch import PARENT_OPTION, Launch
from tui_descent.protocol.run_lock import hold_lock, keep_folder, release_lock


def main(argv: list[str]) -> int:
    """Run the keeper of one run. Errors go to stderr, which is redirected to the run's log."""
    folder = Path(argv[0])
    try:
        hold_lock(folder)
        launch = Launch.read(folder)
        keeper = Keeper(launch)

        def stop(number: int, _: FrameType | None) -> None:
            keeper.stop(signal.Signals(number).name)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, stop)
        if len(argv) == 4 and argv[1] == PARENT_OPTION:
            parent = os.getppid()
            link, file = socket.socket(fileno=int(argv[2])), int(argv[3])
            ended = keeper.run(lambda: Trainer.adopt(link, file, parent=parent))
        else:
            ended = keeper.run(lambda: Trainer.start(launch))
    except (ChannelError, OSError) as error:
        print(f"keeper: {error}", file=sys.stderr)
        return 1
    if ended.status in ("finished", "stopped") and ended.log_path is None:
        clear(folder)
    else:
        keep_folder(folder)
    return 0


def clear(folder: Path) -> None:
    """Remove the folder of a run that ended well."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
    release_lock(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
