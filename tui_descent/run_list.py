"""The runs on this machine, live and recorded, and how one of them is found by what a person types."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from tui_descent.paths import runs_folder
from tui_descent.protocol.channel import ChannelError
from tui_descent.protocol.launch import LAUNCH_FILE, Launch, kept_name
from tui_descent.protocol.run_lock import is_held
from tui_descent.telemetry.record import RECORD_FILE

MOST_NAMED = 5  # how many runs a message lists


class RunNotFoundError(Exception):
    """No run, or more than one, has the given name. The text says which runs there are."""


class RunFolder(NamedTuple):
    """One run: its folder, id and name, whether a process works for it, and whether it has a record.

    `script` is the name of a script that has given the run another name; otherwise it is the same as `name`.
    """

    folder: Path
    run: str
    name: str
    live: bool
    recorded: bool
    script: str

    def is_called(self, text: str) -> bool:
        """Whether this is the run's id or one of its names."""
        return text in (self.run, self.name, self.script)

    def begins_with(self, text: str) -> bool:
        """Whether the run's id or one of its names begins so."""
        return any(name.startswith(text) for name in (self.run, self.name, self.script))


def list_runs(runs_dir: str | None = None) -> list[RunFolder]:
    """All runs that are live or have a record, the newest first. Folders of other users are left out.

    Raises `ChannelError` if the runs folder cannot be used.
    """
    found: list[tuple[int, RunFolder]] = []
    runs = runs_folder(runs_dir)
    if runs.is_dir() and not os.access(runs, os.R_OK | os.X_OK):
        raise ChannelError(f"no permission to read the folder {runs}; choose another with --runs-dir")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(runs) as entries:
        for entry in entries:
            folder = Path(entry.path)
            with contextlib.suppress(OSError, msgspec.DecodeError):
                if not entry.is_dir(follow_symlinks=False) or entry.stat().st_uid != os.getuid():
                    continue
                launch = Launch.read(folder)
                began = (folder / LAUNCH_FILE).stat().st_mtime_ns
                recorded, live = (folder / RECORD_FILE).exists(), is_held(folder)
                if recorded or live:
                    name = kept_name(folder) or launch.name
                    found.append((began, RunFolder(folder, launch.run, name, live, recorded, launch.name)))
    return [run for _, run in sorted(found, key=lambda one: (one[0], one[1].run), reverse=True)]


def find_run(
    text: str | None,
    runs_dir: str | None = None,
    *,
    live: bool | None = None,
    recorded: bool = False,
    newest: bool = False,
) -> RunFolder:
    """The run whose id or name is `text`, or the only one whose id or name begins with it; the newest if that is None.

    With `live`, only live runs are considered; with `live=False`, only those that have ended; with `recorded`, only
    those with a record. With `newest`, the newest of several runs with the name `text` is meant. Raises
    `RunNotFoundError`, and `ChannelError` if the path of the runs folder cannot be used.
    """
    what = {None: "run", True: "live run", False: "recorded run"}[live]
    runs = [run for run in list_runs(runs_dir) if (live is None or run.live is live) and run.recorded >= recorded]
    if not runs:
        raise RunNotFoundError(f"there is no {what}")
    if text is None:
        return runs[0]
    exact = [run for run in runs if run.run == text] or [run for run in runs if run.is_called(text)]
    if newest and exact:
        return exact[0]
    fitting = exact or [run for run in runs if run.begins_with(text)]
    if len(fitting) == 1:
        return fitting[0]
    listed = fitting or runs
    names = ", ".join(run.run for run in listed[:MOST_NAMED]) + (", …" if len(listed) > MOST_NAMED else "")
    if not fitting:
        raise RunNotFoundError(f"{text[:60]!a}: no such {what}; there are: {names}")
    raise RunNotFoundError(f"{text[:60]!a}: {len(fitting)} {what}s begin so: {names}")
