"""The runs in the gallery: those that are going on, to attach to, and recorded ones, to replay."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from rich.text import Text
from textual.widgets.option_list import Option

from tui_descent.dashboard import colours
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.protocol.channel import ChannelError
from tui_descent.run_actions import RunSummary, duration, megabytes, summary_of
from tui_descent.run_list import list_runs

LIVE, RECORDED = "Running now", "Recorded runs"
MOST_RECORDED = 10  # the newest; `tui-descent runs` lists all
PREFIX = "run:"  # of the options that are runs


def listed_runs() -> list[RunSummary]:
    """All live runs and the newest recorded ones. Without a folder for runs there are none."""
    with contextlib.suppress(ChannelError, OSError):
        runs = list_runs()
        recorded = [run for run in runs if not run.live][:MOST_RECORDED]
        return [summary_of(run) for run in runs if run.live or run in recorded]
    return []


def run_rows(runs: Sequence[RunSummary], *, live: bool, wanted: str) -> Iterator[Option]:
    """The live or the recorded runs whose id, name or state contains `wanted`, under their heading."""
    fitting = [one for one in runs if one.live == live and _matches(wanted, one)]
    if not fitting:
        return
    heading = LIVE if live else RECORDED
    yield Option(Text(heading, style=colours.DIM), disabled=True)
    for one in fitting:
        row = Text(f"  {safe(one.name, 19):<19}", no_wrap=True, overflow="ellipsis")
        row.append(safe(one.state, 20) if live else f"{one.step:,} steps", style=colours.DIM)
        yield Option(row, id=f"{PREFIX}{one.run}")


def _matches(wanted: str, one: RunSummary) -> bool:
    texts = (one.run.lower(), one.name.lower(), one.state.lower())
    return all(any(word in text for text in texts) for word in wanted.lower().split())


def about_run(one: RunSummary) -> Text:
    """What is known of a run, and what to do with it."""
    text = Text()
    text.append(safe(one.name), style=colours.BRIGHT).append(f"\n{safe(one.run)}\n\n", style=colours.DIM)
    text.append(f"{safe(one.state)} · step {one.step:,}", style=colours.TEXT)
    if one.train_loss is not None:
        text.append(f"\ntraining loss {one.train_loss:.4g}", style=colours.TEXT)
    if one.held_out_loss is not None:
        text.append(f"\nheld-out loss {one.held_out_loss:.4g}", style=colours.TEXT)
    text.append(f"\n{duration(one.seconds)} · {megabytes(one.size)} on disk\n\n", style=colours.DIM)
    if one.problem:
        text.append(f"{safe(one.problem)}\n\n", style=colours.ORANGE)
    commands = (
        (("attach", "open the dashboard on it"), ("stop", "end it"))
        if one.live
        else (("replay", "look at it again"), ("export", "with --to csv, jsonl, …"), ("runs rm", "delete it"))
    )
    text.append("enter", style=colours.KEY).append(" attaches\n\n" if one.live else " replays it\n\n")
    text.append("In a shell, with RUN as above or its beginning:\n", style=colours.DIM)
    for command, does in commands:
        text.append(f"  tui-descent {command} RUN\n", style=colours.TEXT)
        text.append(f"    {does}\n", style=colours.DIM)
    return text
