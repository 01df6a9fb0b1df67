"""The settings of one run, stored in its folder. The command line writes them; keeper and trainer read them."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from io import BufferedWriter
from pathlib import Path
from typing import Any

import msgspec

from tui_descent.protocol.inherited_fds import socket_pair
from tui_descent.protocol.resume import Resume
from tui_descent.protocol.ring import ring_file
from tui_descent.protocol.run_lock import lock_fds

# Environment variables of the trainer: the run's folder, the inherited socket to the keeper, the shared memory.
ENV_FOLDER = "TUI_DESCENT_RUN"
ENV_LINK = "TUI_DESCENT_LINK"
ENV_RING = "TUI_DESCENT_RING"
# Files in the run's folder. `run.log` has what the trainer or the script prints. `claimed` exists after `watch()` has
# connected. `closed` exists after the script has closed the connection. `second` exists after another process of the
# script has called `watch()`.
LAUNCH_FILE, LOG_FILE, KEEPER_LOG_FILE = "launch.json", "run.log", "keeper.log"
CONNECTED_FILE, CLOSED_FILE, SECOND_FILE = "claimed", "closed", "second"
NAME_FILE = "name"  # the name that a script of `exec` passed to `watch()`
EXIT_CODE_FILE = "exit-code"  # the exit code of a script whose keeper has died
CLOSED = "the script has closed the file descriptors of exec, so its steps are not shown"
ENV_UNDO_BUDGET = "TUI_DESCENT_UNDO_BUDGET"
ENV_SNAPSHOT_EVERY, ENV_SNAPSHOT_SIZE = "TUI_DESCENT_SNAPSHOT_EVERY", "TUI_DESCENT_SNAPSHOT_SIZE"
ENV_RESUME = "TUI_DESCENT_RESUME"  # for a script that starts its own keeper: the run to go on with
DEFAULT_NAME = "run"  # of `watch()`
MOST_NAME = 200  # characters
SNAPSHOT_EVERY_S = 300.0
SNAPSHOTS_FOLDER = "snapshots"  # in the run's folder
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one run. It runs the user's `command` if given, otherwise it trains the scenario.

    If `attended`, a person has started it with a dashboard: the run is held on a failure, and waits at its end for as
    long as a viewer is attached. `pace` is in steps per second, None for full speed. At the steps `watch_at`, readings
    are always measured. With `curvature`, the curvature is measured from the start on; `curvature_at` are steps at
    which it is always measured. `range_test_at` are the steps before which a range test runs. `undo_budget` is the
    memory for all snapshots together, in bytes; with 0 there are no snapshots, with None it depends on the device's
    free memory. With `force`, the run starts even if it does not seem to fit into memory. With `demo`, the entries of
    the scenario's plan that are only for a demonstration are played too. `terminal_size` is the number of columns and
    rows of the terminal on which the `command` runs; it is started in `working_folder`. `race` are the optimizers of a
    race, as `scenario/race.py` takes them.

    A snapshot is saved on disk every `snapshot_every_s` seconds, never with None; all of them together have at most
    `snapshot_bytes`, None for the default. With `resume`, the run goes on from a snapshot. After a non-finite loss the
    run is set back to its last good snapshot in memory, with half of the learning rate, at most `rollback` times.
    """

    run: str
    name: str
    folder: str
    socket: str | None
    scenario: dict[str, Any] | None = None
    command: tuple[str, ...] | None = None
    attended: bool = False
    pace: float | None = None
    plan: tuple[tuple[int, str], ...] = ()
    watch_every: int | None = None
    watch_budget: float = 0.01
    watch_at: tuple[int, ...] = ()
    curvature: bool = False
    curvature_at: tuple[int, ...] = ()
    range_test_at: tuple[int, ...] = ()
    undo_budget: int | None = None
    force: bool = False
    demo: bool = False
    race: tuple[str, ...] = ()
    snapshot_every_s: float | None = None
    snapshot_bytes: int | None = None
    resume: Resume | None = None
    rollback: int = 0
    working_folder: str = ""
    terminal_size: tuple[int, int] = (80, 24)
    notify: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return Path(self.folder)

    @property
    def keeps_undo(self) -> bool:
        """Whether snapshots are kept in memory, for an undo or a rollback: viewers can connect, or a rollback was asked
        for.
        """
        return self.attended or self.socket is not None or self.rollback > 0

    @property
    def keeps_good_state(self) -> bool:
        """Whether a snapshot is also taken from time to time, to go back to after a NaN. A headless run ends then."""
        is_own_loop = self.has_own_terminal and self.socket is not None
        return self.attended or is_own_loop or self.rollback > 0

    @property
    def has_own_terminal(self) -> bool:
        """Whether the run is that of a script that we have not started, so that we do not have what it prints."""
        return self.scenario is None and self.command is None

    def write(self) -> None:
        """Write the settings into the run's folder. Raises `OSError`, and `ValueError` for text that is not UTF-8."""
        content = msgspec.json.encode(self)
        path = self.path / LAUNCH_FILE
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with open(file, "wb") as opened:
                opened.write(content)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None

    @classmethod
    def read(cls, folder: Path) -> Launch:
        """Read the settings from the run's folder. Raises `OSError` or `msgspec.DecodeError`.

        The settings contain a command to run, so a file that another user may have written is refused.
        """
        path = folder / LAUNCH_FILE
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            found = os.fstat(file.fileno())
            if found.st_uid != os.getuid() or found.st_mode & 0o022:
                raise PermissionError(errno.EPERM, "another user can have written this file", str(path))
            return msgspec.json.decode(file.read(), type=cls)


def open_log(path: Path) -> BufferedWriter:
    """Open a log to append to it. Other users cannot read what this creates."""
    return open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab")


def unreachable(folder: Path) -> str:
    """Why the loop that called `watch()` cannot be reached; empty if it can, or if `watch()` was not called yet."""
    return CLOSED if (folder / CLOSED_FILE).exists() else ""


def keep_name(launch: Launch, name: str) -> None:
    """Keep the name that a script of `exec` passed to `watch()`: people look for the run by it, too."""
    if launch.command is None or name in ("", DEFAULT_NAME, launch.name):
        return
    with contextlib.suppress(OSError):
        file = os.open(launch.path / NAME_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(file, "w", encoding="utf-8", errors="replace") as written:
            written.write(name[:MOST_NAME])


def kept_name(folder: Path) -> str:
    """The name that a script of `exec` passed to `watch()`; empty if there is none."""
    with contextlib.suppress(OSError):
        return (folder / NAME_FILE).read_text(encoding="utf-8", errors="replace")[:MOST_NAME]
    return ""


def undo_budget(asked: str | None) -> int | None:
    """Convert a size such as `256MB` to bytes; None for `auto`, the default. Raises `ValueError`.

    If `asked` is None, the size comes from the environment variable.
    """
    return _bytes(asked, "--undo-budget", ENV_UNDO_BUDGET, "0 keeps no snapshots")


def snapshot_bytes(asked: str | None) -> int | None:
    """The same for the disk space of a run's snapshots."""
    return _bytes(asked, "--snapshot-size", ENV_SNAPSHOT_SIZE, "0 saves no snapshots")


def snapshot_every_s(asked: str | None) -> float | None:
    """Convert minutes to seconds, and `off` to None. Raises `ValueError`.

    If `asked` is None, the text comes from the environment variable.
    """
    where, text = _asked(asked, "--snapshot-every", ENV_SNAPSHOT_EVERY)
    if text is None:
        return SNAPSHOT_EVERY_S
    if text.strip() == "off":
        return None
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text.strip()) or float(text) == 0:
        raise ValueError(f"{where} {text[:40]!a}: allowed: minutes, as in 5 or 0.5, or off")
    return 60 * float(text)


def _asked(asked: str | None, option: str, variable: str) -> tuple[str, str | None]:
    """The text of an option, or else of an environment variable, and where it comes from."""
    return (option, asked) if asked is not None else (variable, os.environ.get(variable) or None)


def _bytes(asked: str | None, option: str, variable: str, zero: str) -> int | None:
    where, text = _asked(asked, option, variable)
    if text is None or text.strip() in ("", "auto"):
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or len(found[1]) > 30:
        raise ValueError(f"{where} {text[:40]!a}: allowed: a size, as in 256MB or 2GB, or auto; {zero}")
    return int(float(found[1]) * unit)


_ENV_PATH = "TUI_DESCENT_PYTHONPATH"  # the PYTHONPATH for the user's command


def module_command(module: str, *arguments: str, python_options: Sequence[str] = ()) -> list[str]:
    """The command that runs one of our modules. With `-P`, Python does not import files of the current folder."""
    return [sys.executable, "-P", *python_options, "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """The environment for `module_command`. Empty entries of PYTHONPATH are left out, because Python takes them for the
    current folder.
    """
    environment = dict(os.environ)
    path = environment.get("PYTHONPATH", "")
    if path and "" in (entries := path.split(os.pathsep)):
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, entries)), _ENV_PATH: path}
    return environment


def command_environment() -> dict[str, str]:
    """The environment for the user's command: the environment with which we were started."""
    environment = dict(os.environ)
    if (path := environment.pop(_ENV_PATH, None)) is not None:
        environment["PYTHONPATH"] = path
    return environment


PARENT_OPTION, LISTENER_OPTION = "--parent", "--listener"


@contextlib.contextmanager
def open_connection(launch: Launch) -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """Our socket, the other process's socket and the ring's file descriptor. Start the other process inside the `with`.

    When the `with` ends, the other process's socket is closed in this process. Our socket and the ring's descriptor are
    closed only on an exception. Raises `OSError`.
    """
    with contextlib.ExitStack() as failed:
        ours, theirs = socket_pair()
        failed.callback(ours.close)
        with theirs:
            file = ring_file(launch.path)
            failed.callback(os.close, file)
            yield ours, theirs, file
        failed.pop_all()


def start_keeper(
    launch: Launch,
    *,
    trainer: tuple[socket.socket, int, int | None] | None = None,
    listener: socket.socket | None = None,
) -> subprocess.Popen[bytes]:
    """Start a keeper in its own session, so that closing the terminal does not end it. Raises `OSError`.

    If the caller is the trainer, `trainer` is the keeper's socket, the file descriptor of the shared ring, and, if an
    earlier keeper has died, how many events were sent to it that will not be sent again. If the caller has opened the
    socket for viewers, `listener` is that socket.
    """
    command = module_command("tui_descent.keeper.process", launch.folder)
    shared: list[int] = []
    if trainer is not None:
        shared = [trainer[0].fileno(), trainer[1]]
        sent = [] if trainer[2] is None else [trainer[2]]
        command += [PARENT_OPTION, *map(str, [*shared, os.getpid(), *sent])]
    elif listener is not None:
        shared = [listener.fileno()]
        command += [LISTENER_OPTION, *map(str, shared)]
    with open_log(launch.path / KEEPER_LOG_FILE) as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=module_environment(),
            pass_fds=[*shared, *lock_fds(launch.path)],  # the folder is never without a lock
            start_new_session=True,
        )
