"""What the shell shows when a run is over: why it failed, and the last lines that its trainer or script printed."""

from __future__ import annotations

from pathlib import Path

from tui_descent import output
from tui_descent.protocol.events import RunEnded, name_of_loss
from tui_descent.scenario.validate import escape_controls
from tui_descent.telemetry.history import History
from tui_descent.telemetry.last_verdict import verdict_of_ended
from tui_descent.telemetry.race_history import first_to_reach, standing
from tui_descent.telemetry.script_output import last_lines

LINES = 12


def print_end(ended: RunEnded, script_log: Path | None = None, *, with_log: bool = True) -> None:
    """Print the last lines and the reason on stderr, with the file that has the whole output.

    `script_log` is the file to which a user's script printed; its last lines are shown even after a success. Without
    `with_log` no lines are printed, because the log of a scenario's trainer has only our own traceback.
    """
    lines, path = ended.log_tail, ended.log_path
    if not lines and script_log is not None:
        lines, path = last_lines(script_log, LINES), str(script_log)
    if with_log:
        output.say(*(f"  | {line[:500]}" for line in lines))
    if ended.reason:
        output.say(f"tui-descent: {ended.reason}")
    if path and (lines or script_log is None):
        output.say(f"tui-descent: the trainer's output is in {path}")


def print_summary(history: History, *, seconds: str = "") -> None:
    """Print on stdout how a run has ended, after so many `seconds`, and the last finding of its diagnosis."""
    ended, (found, sentence) = history.ended, verdict_of_ended(history)
    if ended is None:
        return
    if history.lanes:
        print_race(history, ended, seconds=seconds)
        return
    name = history.started.name if history.started else "run"
    facts = [f"{name}: {ended.status}", f"{ended.step:,} step{'s' * (ended.step != 1)}{seconds}"]
    if history.losses.get(history.segment) and (ended.loss is None or ended.accuracy is not None):
        facts.append(f"training loss {history.shown_loss:.4g}")
    if ended.loss is not None:
        facts.append(f"{name_of_loss(ended)} {ended.loss:.6g}")
    if ended.accuracy is not None:
        facts.append(f"accuracy {ended.accuracy:.4f}")
    if ended.position is not None:
        facts.append("w = " + ", ".join(f"{v:.12g}" for v in ended.position))
    print(escape_controls(" · ".join(facts)))
    if found:
        print(f"  diagnosis: {escape_controls(found)}. {escape_controls(sentence)}")


def print_race(history: History, ended: RunEnded, *, seconds: str = "") -> None:
    """Print on stdout the table of a race: the steps to the target and the loss at the end of each lane."""
    started = history.started
    assert started is not None
    print(escape_controls(f"{started.name}: race {ended.status} · {history.steps:,} steps{seconds}"))
    accuracies = any(lane.ended is not None and lane.ended.accuracy is not None for lane in history.lanes)
    heads = ["optimizer", "rate", "" if started.target is None else f"steps to loss {started.target:.4g}"]
    heads += ["held-out loss" if accuracies else "final loss", "accuracy" if accuracies else "", ""]
    rows = [heads]
    first = first_to_reach(history.lanes)
    for number, (info, lane) in enumerate(zip(started.lanes, history.lanes, strict=True)):
        reached = "" if started.target is None else "-" if lane.reached is None else f"{lane.reached:,}"
        loss, accuracy = (None, None) if lane.ended is None else (lane.ended.loss, lane.ended.accuracy)
        row = [info.name, f"{info.lr:.3g}", reached, "-" if loss is None else f"{loss:.6g}"]
        row += ["" if accuracy is None else f"{accuracy:.4f}", standing(lane) or ("first" if number in first else "")]
        rows.append(row)
    widths = [max(len(row[n]) for row in rows) for n in range(len(heads))]
    for row in rows:
        cells = [
            f"{text:<{width}}" if n in (0, len(heads) - 1) else f"{text:>{width}}"
            for n, (text, width) in enumerate(zip(row, widths, strict=True))
            if width
        ]
        print(escape_controls(("  " + "   ".join(cells)).rstrip()))


def print_detached(history: History, run: str, come_back: str) -> None:
    """Print where a run is that goes on without a dashboard, and the command to come back to it."""
    place = f"at step {history.steps:,}" if history.started is not None else f"({history.state.state})"
    loss = f", training loss {history.shown_loss:.3g}" if history.losses else ""
    if history.state.state == "waiting":  # it ends when the last dashboard leaves
        output.say(f"detached: {run} {place}{loss}; all steps done; see it again with: tui-descent replay {run}")
        return
    output.say(f"detached: {run} {place}{loss}; come back with: {come_back}")


def print_trouble(trouble: str, log_path: Path | None, come_back: str = "") -> None:
    """Print why the connection to a run was lost, and which file has the output of a script that may still run.

    `come_back` is the command to come back to a run that goes on.
    """
    output.say(f"tui-descent: {trouble}")
    if come_back:
        output.say(f"tui-descent: the run goes on; come back with: {come_back}")
    if log_path is not None and log_path.exists():
        output.say(f"tui-descent: the script may still be running; its output is in {log_path}")
