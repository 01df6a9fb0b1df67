"""What the commands on recorded runs do: `runs`, and `export` into other formats."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tui_descent import output
from tui_descent.export.errors import ExportError
from tui_descent.protocol.channel import ChannelError, remove_dead_socket
from tui_descent.protocol.launch import Launch
from tui_descent.protocol.run_lock import is_held
from tui_descent.run_list import RunFolder, RunNotFoundError, find_run, list_runs
from tui_descent.scenario.validate import escape_controls
from tui_descent.telemetry.record import Record, RecordError, RunInfo

if TYPE_CHECKING:
    from tui_descent.dashboard.view import Compared

USAGE = 2
MOST_SHOWN = 40  # characters of a value in a comparison
LEFT_OUT = ("title", "story", "theme", "sources", "claim", "cause_off", "remedy")  # not parameters of a run
ALWAYS_COMPARED = ("steps made", "training loss", "held-out loss")
DAY_S = 86_400


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the list. `state` is that of a live run, else how it has ended. `size` is the folder's, in bytes.

    `train_loss` is an average over the last steps. `held_out_loss` is the newest one; None if none is known. `loss` is
    the loss that was reported last: that of the last step, or what was evaluated after the end.
    """

    run: str
    name: str
    state: str
    live: bool
    step: int
    loss: float
    train_loss: float | None
    held_out_loss: float | None
    seconds: float
    size: int
    started: float
    folder: str
    problem: str = ""


def summary_of(run: RunFolder) -> RunSummary:
    """What the list shows of a run. A record that cannot be read is a `problem`, not an error."""
    fields: dict[str, Any] = {"step": 0, "loss": math.nan, "held_out_loss": None, "seconds": 0.0, "started": 0.0}
    train_loss = None
    state, problem = "starting" if run.live else "lost", ""
    if run.recorded:
        try:
            with Record.open(run.folder) as record:
                about, train_loss = record.about, record.training_loss()
            fields = {name: getattr(about, name) for name in fields}
            state = _state(about, live=run.live)
        except RecordError as error:
            state, problem = "unreadable", str(error)
    return RunSummary(
        run=run.run,
        name=run.name,
        live=run.live,
        state=state,
        train_loss=train_loss,
        folder=str(run.folder),
        size=_size(run.folder),
        problem=problem,
        **fields,
    )


def _state(about: RunInfo, *, live: bool) -> str:
    if about.status != "running":
        return about.status
    return about.state or "starting" if live else "lost"


def _size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            size += path.lstat().st_size
    return size


def print_runs(args: argparse.Namespace) -> int:
    """List the runs. Returns the exit code."""
    found = _named(lambda: list_runs(args.runs_dir))
    if isinstance(found, int):
        return found
    summaries = [summary_of(run) for run in found]
    if args.json:
        for n, summary in enumerate(summaries):
            print(json.dumps(({} if n else {"v": 1}) | _plain(msgspec.to_builtins(summary))))
        return 0
    if not summaries:
        output.say("tui-descent: there is no run yet; start one with: tui-descent vanishing")
        return 0
    heads = ("run", "scenario", "state", "step", "train loss", "held-out", "for", "size")
    rows = [
        (
            one.run,
            one.name,
            one.state,
            f"{one.step:,}",
            shown_loss(one.train_loss),
            shown_loss(one.held_out_loss),
            duration(one.seconds),
            megabytes(one.size),
        )
        for one in summaries
    ]
    _print_table([heads, *rows], right=(3, 4, 5, 6, 7))
    live = sum(one.live for one in summaries)
    total = megabytes(sum(one.size for one in summaries))
    print(f"{len(summaries)} run{'s' * (len(summaries) != 1)}, {live} live, {total}")
    return 0


def remove(args: argparse.Namespace) -> int:
    """Remove the named runs. Each is named in full, because there is no way back. Returns the exit code."""
    found = _named(lambda: [find_run(name, args.runs_dir) for name in args.names])
    if isinstance(found, int):
        return found
    for name, run in zip(args.names, found, strict=True):
        if not run.is_called(name):
            return _usage(f"{name}: rm takes a whole name, as in: tui-descent runs rm {run.run}")
    runs = list(dict.fromkeys(found))
    for run in runs:
        if run.live:
            return _usage(f"{run.run} is live; stop it first: tui-descent stop {run.run}")
    return _delete(runs)


def prune(args: argparse.Namespace) -> int:
    """Remove all but the newest runs that have ended. Returns the exit code."""
    if not args.keep.isdecimal() or len(args.keep) > 15:
        return _usage(f"--keep {args.keep[:40]}: allowed: a whole number ≥ 0")
    found = _named(lambda: list_runs(args.runs_dir))
    if isinstance(found, int):
        return found
    return _delete([run for run in found if not run.live][int(args.keep) :])


def _delete(runs: Sequence[RunFolder]) -> int:
    """Remove the folders of runs that have ended."""
    count = size = 0
    for run in runs:
        bytes_used = _size(run.folder)
        try:
            if is_held(run.folder):  # it was resumed just now
                continue
            with contextlib.suppress(OSError, msgspec.DecodeError):
                if socket := Launch.read(run.folder).socket:
                    remove_dead_socket(Path(socket))
            shutil.rmtree(run.folder)
        except OSError as error:
            output.say(f"tui-descent: cannot remove {run.folder}: {error.strerror or error}")
            return 1
        print(f"removed {run.run}, {megabytes(bytes_used)}")
        count, size = count + 1, size + bytes_used
    print(f"removed {count} run{'s' * (count != 1)}, {megabytes(size)}")
    return 0


def compare(args: argparse.Namespace) -> int:
    """Print what differs between two runs. Returns the exit code."""
    found = _named(lambda: [find_run(name, args.runs_dir, newest=True) for name in args.names])
    if isinstance(found, int):
        return found
    try:
        columns = [_parameters(run) for run in found]
    except (RecordError, OSError, msgspec.DecodeError) as error:
        return _usage(str(error))
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [(name, *(column.get(name, "–") for column in columns)) for name in names]
    differing = [row for row in rows if row[1] != row[2] or row[0] in ALWAYS_COMPARED]
    shown = [(name, *(_cut(value) for value in values)) for name, *values in differing]
    _print_table([("", *(run.run for run in found)), *shown])
    return 0


def _cut(value: str) -> str:
    """The value, cut if it is long: the plan of a demonstration would make the table wider than any terminal."""
    return value if len(value) <= MOST_SHOWN else f"{value[: MOST_SHOWN - 1]}…"


def _parameters(run: RunFolder) -> dict[str, str]:
    """What defines a run and what came of it, as text by name."""
    launch = Launch.read(run.folder)
    with Record.open(run.folder) as record:
        about, train_loss, turned = record.about, record.training_loss(), record.interventions()
    found = {place: text for place, text in _flat(launch.scenario or {}) if place.partition(".")[0] not in LEFT_OUT}
    if launch.command is not None:
        found["command"] = " ".join(launch.command)
    for at, turn in launch.plan:
        found[f"--at {at}"] = turn
    for made in turned:
        if made.source != "plan":
            target = "" if made.target == "all" else f"@{made.target}"
            found[f"step {made.step}: {made.knob}{target}"] = made.value or made.new
    found["state"] = _state(about, live=run.live)
    found["steps made"] = f"{about.step:,}"
    found["training loss"] = shown_loss(train_loss)
    found["held-out loss"] = shown_loss(about.held_out_loss)
    if about.accuracy is not None:
        found["accuracy"] = f"{about.accuracy:.4f}"
    found["took"] = duration(about.seconds)
    return found


def _flat(table: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    places: list[tuple[str, str]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            places += _flat(value, f"{before}{key}.")
        else:
            places.append((f"{before}{key}", value if isinstance(value, str) else json.dumps(value)))
    return places


def compared_run(name: str, runs_dir: str | None) -> Compared:
    """The loss of a recorded run, to draw beside that of another run.

    Raises `RunNotFoundError`, `RecordError`, and `ChannelError` if the path of the runs folder cannot be used.
    """
    from tui_descent.dashboard.view import Compared

    run = find_run(name, runs_dir, recorded=True, newest=True)
    with Record.open(run.folder) as record:
        history = record.history()
    if history.segment not in history.losses:
        raise RecordError(f"{run.run} has no loss to compare with")
    return Compared(run.run, history.losses[history.segment], history.steps)


def replay(args: argparse.Namespace) -> int:
    """Open the dashboard over a record. Returns the exit code."""
    if not output.on_a_terminal():
        return _usage("replay needs a terminal; to print a run: tui-descent export RUN --to jsonl")
    found = _named(lambda: find_run(args.name, args.runs_dir, recorded=True, newest=True))
    if isinstance(found, int):
        return found
    launch = None
    with contextlib.suppress(OSError, msgspec.DecodeError):
        launch = Launch.read(found.folder)
    try:
        compared = None if args.ghost is None else compared_run(args.ghost, args.runs_dir)
        with Record.open(found.folder) as record:
            output.draw_on_stdout()
            from tui_descent.dashboard.replay import replay as show

            left = show(record, launch, compared)
            if record.damage:
                output.say(f"tui-descent: {record.damage}")
            return left.code
    except (RunNotFoundError, RecordError) as error:
        return _usage(str(error))


def export(args: argparse.Namespace) -> int:
    """Write a run in another format. Returns the exit code."""
    found = _named(lambda: find_run(args.name, args.runs_dir, newest=True))
    if isinstance(found, int):
        return found
    try:
        with Record.open(found.folder) as record:
            code = FORMATS[args.to](record, found, args.out)
            if record.damage:
                output.say(f"tui-descent: {record.damage}")
            return code
    except (RecordError, ExportError) as error:
        return _usage(str(error))


def _export_csv(record: Record, _: RunFolder, out: str | None) -> int:
    from tui_descent.export.tables import write_csv

    return _written(record, write_csv, out)


def _export_jsonl(record: Record, _: RunFolder, out: str | None) -> int:
    from tui_descent.export.tables import write_jsonl

    return _written(record, write_jsonl, out)


def _export_tensorboard(record: Record, run: RunFolder, out: str | None) -> int:
    from tui_descent.export.tensorboard import MISSING, write_tensorboard

    folder = Path(out or f"tensorboard-{run.run}")
    try:
        write_tensorboard(record, folder)
    except ImportError:
        return _usage(MISSING)
    output.say(f"tui-descent: written: {folder}; look at it with: tensorboard --logdir {folder}")
    return 0


def _export_scenario(record: Record, _: RunFolder, out: str | None) -> int:
    from tui_descent.export import recorded_run

    made = recorded_run.read(record).as_scenario()
    return _text_written(record, made.text, made.notes, out)


def _export_python(record: Record, _: RunFolder, out: str | None) -> int:
    from tui_descent.export import recorded_run

    run = recorded_run.read(record)
    return _text_written(record, run.as_script(), run.notes, out)


def _text_written(record: Record, text: str, notes: Sequence[str], out: str | None) -> int:
    """Write a text, and say what it cannot repeat. It may contain data, so no character may be replaced."""
    import sys

    if out is None and not text.isascii() and sys.stdout.encoding and not output.is_utf8(sys.stdout):
        return _usage("stdout cannot show all characters of this file; write it with --out PATH")
    code = _written(record, lambda _, file: file.write(text), out)
    output.say(*(f"tui-descent: {note}" for note in notes))
    return code


def _written(record: Record, write: Callable[[Record, Any], object], out: str | None) -> int:
    import sys

    if out is None:
        write(record, sys.stdout)
        return 0
    with open(out, "w", encoding="utf-8", newline="") as file:
        write(record, file)
    output.say(f"tui-descent: written: {out}")
    return 0


# What `--to` takes. Each gets the record, its run and `--out`, and returns the exit code.
FORMATS: dict[str, Callable[[Record, RunFolder, str | None], int]] = {
    "csv": _export_csv,
    "jsonl": _export_jsonl,
    "tensorboard": _export_tensorboard,
    "scenario": _export_scenario,
    "python": _export_python,
}


def shown_loss(loss: float | None) -> str:
    """A loss as text; a dash if none is known."""
    return "–" if loss is None else f"{loss:.4g}"


def duration(seconds: float) -> str:
    """A time span in two units: `4.1 s`, `3 min 20 s`, `5 h 2 min`, `3 d 4 h`."""
    whole = int(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if seconds < DAY_S:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // DAY_S} d {whole % DAY_S // 3600} h"


def megabytes(size: int) -> str:
    """A size: `0.3 MB`, `12 MB`, `1.2 GB`."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size < 1e7 else f"{size / 1e6:.0f} MB"


def _named(find: Callable[[], Any]) -> Any:
    """What `find` returns, or the exit code after a message."""
    try:
        return find()
    except (RunNotFoundError, ChannelError) as error:
        return _usage(str(error))


def _print_table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    for row in rows:
        cells = [
            f"{text:>{width}}" if n in right else f"{text:<{width}}"
            for n, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        print(escape_controls("  ".join(cells).rstrip()))


def _plain(table: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinities as strings, as `--json` has them."""
    return {
        key: ("nan" if math.isnan(value) else "inf" if value > 0 else "-inf")
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in table.items()
    }


def _usage(*lines: str) -> int:
    output.say(*(f"tui-descent: {line}" for line in lines))
    return USAGE
