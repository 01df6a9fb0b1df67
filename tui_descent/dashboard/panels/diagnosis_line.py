"""The sentence about the run: what holds it up or, while it runs, how much of the gradient reaches the first block."""

from __future__ import annotations

from rich.style import Style

from tui_descent.dashboard import colours
from tui_descent.dashboard.text.layer_names import target_of
from tui_descent.dashboard.text.numbers import count, scientific
from tui_descent.dashboard.text.safe_text import plain
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import Diagnosed, RunEnded
from tui_descent.scenario.claims import first_to_last_grad

# Under one part in a thousand the first block sees next to nothing of what the last one does, and the other way round.
FADES, GROWS = 1e-3, 1e3
# Under this a diagnosis is right about five times in six, from it on nearly always: said with a "perhaps".
SURE = 0.8
LEAVES = ", q leaves"

Words = tuple[str, Style, str, Style]


def finding(view: View) -> Words:
    """A word with its colour, and the sentence behind it with its own."""
    history = view.history
    if history.ended is not None:
        return _ended(history.ended)
    if not view.connected:
        if not view.trouble:
            return "connecting", colours.DIM, "looking for the keeper of this run", colours.DIM
        return (
            "keeper lost",
            colours.RED,
            f"{plain(view.trouble)}; what was seen stays on screen, q leaves",
            colours.TEXT,
        )
    state, reason = history.state.state, plain(history.state.reason)
    if state == "held":
        advice = "" if reason.endswith(LEAVES) else f"; space goes on{LEAVES}"
        return "held", colours.ORANGE, f"{reason or 'at step ' + count(history.steps)}{advice}", colours.TEXT
    if state == "waiting":
        return (
            "waiting",
            colours.state("waiting"),
            "at its end: space goes on for as many steps, q leaves",
            colours.TEXT,
        )
    if state == "paused":
        return (
            "paused",
            colours.state("paused"),
            f"before step {count(history.steps)}: space goes on, . makes one step",
            colours.TEXT,
        )
    if state in ("importing torch", "building"):
        what = "the network is made" if state == "building" else "takes some seconds once a run"
        return f"{state}…", colours.DIM, what, colours.DIM
    if state == "testing":
        return "testing", colours.state(state), f"{reason}; all is put back, then it goes on as it was", colours.TEXT
    if state == "stopping":
        return "stopping…", colours.ORANGE, reason, colours.TEXT
    found = history.diagnosis
    if found is not None and (since := _unread(view, found)):
        return "reading", colours.DIM, f"anew since {since}", colours.DIM
    if found is not None:
        word = plain(found.finding, 40)
        return (
            word if found.sure >= SURE else f"perhaps {word}",
            colours.verdict(found.finding),
            plain(found.sentence),
            colours.TEXT,
        )
    return _flow(view)


def _unread(view: View, found: Diagnosed) -> str:
    """What has happened since it was found that makes it a thing of the past; empty where nothing has."""
    history = view.history
    if found.segment != history.segment:
        return "the run stands elsewhere"
    turns = (turn for turn in reversed(history.interventions) if turn.segment == history.segment)
    last = next((turn for turn in turns if turn.knob != "pace"), None)  # the pace changes nothing that is read
    return f"{plain(last.knob)} at step {count(last.step)}" if last is not None and found.step < last.step else ""


def _flow(view: View) -> Words:
    readings = view.history.readings
    ratio = first_to_last_grad(view.layers, readings) if readings else None
    if ratio is None:
        return "", colours.DIM, "", colours.DIM
    blocks = [layer for layer in view.layers if layer.block is not None]
    first, last = (plain(target_of(layer) or layer.name, 40) for layer in (blocks[0], blocks[-1]))
    text = f"{first} gets {scientific(ratio)} of {last}'s gradient"
    if ratio < FADES:
        return "fades", colours.ORANGE, text, colours.TEXT
    if ratio > GROWS:
        return "grows", colours.ORANGE, text, colours.TEXT
    return "flows", colours.GREEN, text, colours.TEXT


def _ended(ended: RunEnded) -> Words:
    at, reason = f"at step {count(ended.step)}", plain(ended.reason)
    if ended.status == "lost":
        stays = "what was seen stays on screen, q leaves"
        if reason.startswith("trainer lost"):  # the keeper's is a whole sentence: "trainer lost (signal 9) at step 124"
            return reason, colours.RED, stays, colours.TEXT
        return f"trainer lost ({reason})" if reason else "trainer lost", colours.RED, f"{at}; {stays}", colours.TEXT
    numbers = []
    if ended.loss is not None:
        numbers.append(f"loss {ended.loss:.4g}")
    if ended.accuracy is not None:
        numbers.append(f"accuracy {ended.accuracy:.1%}")
    text = ", ".join([at, *numbers]) + (f": {reason}" if reason else "") + "; q leaves"
    return ended.status, colours.end(ended), text, colours.TEXT
