"""Folders for runs and sockets. If `TUI_DESCENT_HOME` is set, all of them are in that folder."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
import warnings
from pathlib import Path

import msgspec

from tui_descent.protocol.channel import MAX_PATH, ChannelError, check_path, remove_dead_socket
from tui_descent.protocol.launch import LOG_FILE, Launch
from tui_descent.protocol.private_folder import ADVICE, private_folder
from tui_descent.protocol.run_lock import create_lock, keep_folder, left_behind

APP = "tui-descent"
SHORT = "/tmp"  # the socket's folder if its path would be too long otherwise


def runs_folder(chosen: str | None = None) -> Path:
    """The folder for runs: `chosen`, or else one from the environment, or else one in the user's data folder.

    Raises `ChannelError` if this path cannot be used.
    """
    if chosen:
        return _absolute("--runs-dir", chosen)
    if chosen := os.environ.get("TUI_DESCENT_RUNS_DIR"):
        return _absolute("TUI_DESCENT_RUNS_DIR", chosen)
    if home := os.environ.get("TUI_DESCENT_HOME"):
        return _absolute("TUI_DESCENT_HOME", home) / "runs"
    from platformdirs import user_data_path

    return _absolute("data folder", str(user_data_path(APP))) / "runs"


def socket_path(run: str) -> Path:
    """The path of a run's socket in a private folder, which is created.

    If that path would be too long, the socket is in a folder in /tmp instead. Raises `ChannelError`.
    """
    if home := os.environ.get("TUI_DESCENT_HOME"):
        folder = _absolute("TUI_DESCENT_HOME", home) / "sockets"
    else:
        from platformdirs import user_runtime_path

        try:
            with warnings.catch_warnings(action="ignore"):  # XDG_RUNTIME_DIR is not set there
                folder = _absolute("runtime folder", str(user_runtime_path(APP)))
        except OSError as error:
            raise ChannelError(f"no folder for the socket: {error}; {ADVICE}") from None
    path = folder / f"{run}.sock"
    if len(os.fsencode(path)) > MAX_PATH:
        path = Path(SHORT) / f"{APP}-{os.getuid()}" / f"{run[-40:]}.sock"
    check_path(path)
    private_folder(path.parent)
    return path


def new_run(name: str, chosen: str | None = None) -> tuple[str, Path]:
    """Create a run's folder with mode 0700, and hold its lock; returns the run's id and the folder.

    Folders that killed runs have left behind are removed. Raises `ChannelError`.
    """
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:40] or "run"
    run = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder = runs_folder(chosen)
    private_folder(folder / run, advice="choose another with --runs-dir")
    remove_left_behind(folder)
    create_lock(folder / run)
    return run, folder / run


def remove_left_behind(runs: Path) -> None:
    """Remove the folders and sockets that killed runs have left behind. Records with steps are kept, and what a script
    has printed.
    """
    with contextlib.suppress(OSError):
        for folder in [Path(entry.path) for entry in os.scandir(runs) if entry.is_dir(follow_symlinks=False)]:
            with left_behind(folder) as abandoned, contextlib.suppress(OSError, msgspec.DecodeError):
                if abandoned:
                    _remove_run(folder)


def _remove_run(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # no settings yet, or no socket any more
        if socket := Launch.read(folder).socket:
            remove_dead_socket(Path(socket))
    from tui_descent.telemetry.record import has_steps

    log = folder / LOG_FILE
    if (log.exists() and log.stat().st_size) or has_steps(folder):
        keep_folder(folder)
    else:
        shutil.rmtree(folder)


def _absolute(source: str, text: str) -> Path:
    try:
        path = Path(text).expanduser().absolute()
        str(path).encode()
    except RuntimeError:
        reason = "no such user or no home folder"
    except UnicodeEncodeError:
        reason = "not valid UTF-8"
    except OSError:
        reason = "the current folder does not exist"
    else:
        return path
    raise ChannelError(f"{source}: {text[:80]!a}: {reason}; give another path")
