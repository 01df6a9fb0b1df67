"""Folders for runs and sockets. If `TUI_DESCENT_HOME` is set, all of them are in that folder."""

from __future__ import annotations

import os
import re
import secrets
import time
from pathlib import Path

from tui_descent.protocol.channel import MAX_PATH, ChannelError, check_path, private_folder

APP = "tui-descent"


def runs_folder(chosen: str | None = None) -> Path:
    """The folder for runs: `chosen`, or else one from the environment, or else one in the user's data folder."""
    if chosen or (chosen := os.environ.get("TUI_DESCENT_RUNS_DIR")):
        return Path(chosen).expanduser().absolute()
    if home := os.environ.get("TUI_DESCENT_HOME"):
        return Path(home).expanduser().absolute() / "runs"
    from platformdirs import user_data_path

    return user_data_path(APP) / "runs"


def socket_path(run: str) -> Path:
    """The path of a run's socket. If that path would be too long, the socket is in a folder in /tmp instead."""
    if home := os.environ.get("TUI_DESCENT_HOME"):
        folder = Path(home).expanduser().absolute() / "sockets"
    else:
        from platformdirs import user_runtime_path

        folder = user_runtime_path(APP)
    path = folder / f"{run}.sock"
    if len(os.fsencode(path)) > MAX_PATH:
        path = Path(f"/tmp/{APP}-{os.getuid()}") / f"{run[-40:]}.sock"
    check_path(path)
    return path


def new_run(name: str, chosen: str | None = None) -> tuple[str, Path]:
    """Create a run's folder with mode 0700; returns the run's id and the folder. Raises `ChannelError`."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:40] or "run"
    run = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder = runs_folder(chosen)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ChannelError(f"cannot write to {folder}: {error.strerror}; choose another with --runs-dir") from None
    private_folder(folder / run)
    return run, folder / run
