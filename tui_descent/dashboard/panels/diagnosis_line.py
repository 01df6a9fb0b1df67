"""The footer's first line: the run's state if it is not running, else the newest diagnosis."""

from __future__ import annotations

from rich.style import Style

from tui_descent.dashboard import colours
from tui_descent.dashboard.text.numbers import with_commas
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import Diagnosed, NotFinite, RunEnded, name_of_loss
from tui_descent.protocol.layer_names import of_one_net, pair_in_words
from tui_descent.scenario.metrics import first_to_last_grad
from tui_descent.telemetry.diagnosis import MIN_STEPS, verdict, without_advice
from tui_descent.telemetry.history import History
from tui_descent.telemetry.last_verdict import last_turn, turned_since
from tui_descent.telemetry.race_history import first_to_reach

LEAVE = " · q: leave"
# The states before the first step. They take seconds in which the trainer has nothing to report.
STARTING = frozenset({"importing torch", "building"})
KILL = " · q: kill it"

# A word and its style, then a sentence and its style.
Words = tuple[str, Style, str, Style]


def diagnosis_line(view: View) -> Words:
    """The line's word and sentence, with their styles."""
    history = view.history
    if history.ended is not None:
        return _ended(history.ended)
    if not view.connected:
        return _not_connected(view)
    if view.keeper_silent_s:
        text = f"the run's keeper does not respond (suspended?){LEAVE}"
        return f"silent for {view.silent_s} s", colours.ORANGE, text, colours.TEXT
    state, reason = history.state.state, safe(history.state.reason)
    if view.replay and state in ("held", "paused", "waiting"):
        return _replayed(history, state, reason)
    if view.replay and state in STARTING:
        return "", colours.DIM, "before the first step", colours.DIM
    if view.stopping and state != "stopping":
        text = f"waiting for the script's next step{KILL}"
        return "stopping…", colours.state_style("stopping"), text, colours.TEXT
    style, silent_s = colours.state_style(state), view.silent_s
    if silent_s and state not in STARTING:
        ours = history.started is None or history.started.scenario is not None
        text = "the trainer is suspended or in a long step" if ours else "your loop has not called run.step since"
        return f"silent for {silent_s} s", colours.ORANGE, f"{text}{LEAVE}", colours.TEXT
    if state == "held":
        # The trainer's reason may name the keys already.
        keys = "" if reason.endswith((", q leaves", LEAVE)) else f" · space: resume{LEAVE}"
        text = _cause_first(history, reason) or f"at step {with_commas(history.steps)}"
        return "held", style, f"{text}{keys}", colours.TEXT
    if history.lanes and state in ("waiting", "running"):
        word, keys = ("race over", f" · R: again{LEAVE}") if state == "waiting" else ("race", "")
        return word, style, f"{race_words(history)}{keys}", colours.TEXT
    if state == "waiting":
        more = history.started.steps if history.started is not None else None
        resume = f"{with_commas(more)} more steps" if more else "more steps"
        return "waiting", style, f"all steps done · space: {resume}{LEAVE}", colours.TEXT
    if state == "paused":
        text = f"before step {with_commas(history.steps)} · space: resume · .: one step"
        return "paused", style, text, colours.TEXT
    so_far, so_far_style = (f"silent for {silent_s} s", colours.TEXT) if silent_s else ("", colours.DIM)
    if state == "importing torch":
        usual = f"{so_far}; importing usually takes a few seconds" if so_far else "takes a few seconds"
        return "importing torch…", colours.DIM, usual, so_far_style
    if state == "building":
        return "setting up the run…", colours.DIM, so_far, so_far_style
    if state == "testing":
        return "testing", style, f"{reason}; the run is restored afterwards", colours.TEXT
    if state == "stopping":
        return "stopping…", style, f"{reason}{KILL if view.stopping else ''}", colours.TEXT
    if history.started is None and reason:  # a script's `watch()` that cannot be reached
        return "not shown", colours.ORANGE, reason, colours.TEXT
    return _diagnosis(view)


def _diagnosis(view: View) -> Words:
    """What the diagnosis of a running run says."""
    history, found = view.history, view.history.diagnosis
    if found is None:
        steps = history.started.steps if history.started is not None else None
        if steps is not None and max(steps, history.steps) < MIN_STEPS:
            return "no diagnosis", colours.DIM, f"it needs {MIN_STEPS} steps; this run has {steps}", colours.DIM
        measured = _measured(view) if history.steps else ""
        return "still measuring" if measured else "", colours.DIM, measured, colours.DIM
    if outdated := _outdated_by(view, found):
        return "re-evaluating", colours.DIM, outdated, colours.DIM
    dropped = found.advice and found.advice[0].knob == "resume"  # the run goes on: its bad batch has been dropped
    sentence = without_advice(found) if dropped else found.sentence
    return safe(verdict(found), 40), colours.diagnosis_style(found.finding), safe(sentence), colours.TEXT


def _replayed(history: History, state: str, reason: str) -> Words:
    """The words for a moment at which a recorded run waited. The keys that the run offered then have no effect now."""
    at = f"before step {with_commas(history.steps)}"
    return state, colours.state_style(state), f"{at}: {reason}" if reason else at, colours.TEXT


def race_words(history: History) -> str:
    """Which lanes of a race reached the target with the fewest steps."""
    target = history.started.target if history.started is not None else None
    first = first_to_reach(history.lanes)
    if target is None or history.started is None:
        return f"{len(history.lanes)} optimizers from the same start"
    if not first:
        return f"no lane has reached loss {target:.4g} yet"
    names = " and ".join(safe(history.started.lanes[number].name) for number in first)
    steps = with_commas(history.lanes[first[0]].reached or 0)
    return f"{names} {'was' if len(first) == 1 else 'were'} the first at loss {target:.4g}, after {steps} steps"


def _cause_first(history: History, reason: str) -> str:
    """The reason why a run is held. For a non-finite number, it begins with what the number comes from."""
    fault = next((fact for fact in reversed(history.log) if isinstance(fact, NotFinite)), None)
    if fault is None or not reason.startswith(text := safe(fault.text)):
        return reason
    keys, found = reason.removeprefix(text), history.diagnosis
    if found is not None and found.finding == "diverged" and found.step == fault.step and "; u goes back" in keys:
        # The next batch would meet the same large weights, so dropping this one does not help.
        back = keys.replace("; space drops this batch", "").removesuffix(LEAVE)
        slower = ", then [: lr ÷10" if any(advice.knob == "lr" for advice in found.advice) else ""
        return f"{safe(without_advice(found)).rstrip('.')}{back}{slower}{keys[len(keys.removesuffix(LEAVE)) :]}"
    if not fault.where:
        if fault.what == "loss" and history.started is not None and history.started.scenario is None:
            return f"loss {fault.value} (step {with_commas(fault.step)}); run.step(loss, batch=…) names the cause{keys}"
        return reason
    damage = next((text.rpartition(sign)[2] for sign in ("; now ", "? Now ") if sign in text), "")
    if damage:
        damage = f" Now {damage}" if fault.where.endswith("?") else f"; now {damage}"
    loss = "" if fault.what == "loss" or fault.loss is None else f", loss {fault.loss:.3g}"
    place = f" (step {with_commas(fault.step)}{loss})"
    return f"{fault.what} {fault.value}: {safe(fault.where)}{damage}{place}{keys}"


def _outdated_by(view: View, found: Diagnosed) -> str:
    """What has changed since the diagnosis and makes it outdated; empty if it still holds."""
    history = view.history
    if found.segment != history.segment:
        return "after an undo or redo"
    last = turned_since(history)
    return "" if last is None else f"since {safe(last.knob)} changed at step {with_commas(last.step)}"


def _measured(view: View) -> str:
    """The progress towards the first diagnosis, and what the newest reading shows."""
    last, flow = last_turn(view.history), _gradient_flow(view)
    steps = view.history.steps - (last.step if last is not None else 0)
    since = f" since {safe(last.knob)} changed" if last is not None else ""
    far = f"step {steps} of {MIN_STEPS}{since}" if steps < MIN_STEPS else "not clear yet"
    return f"{far} · {flow}" if flow else far


def _gradient_flow(view: View) -> str:
    readings = view.history.readings
    started = view.history.started
    layers = of_one_net(view.layers, started.nets if started is not None else ())
    ratio = first_to_last_grad(layers, readings) if readings else None
    if ratio is None:
        return ""
    blocks = [layer.name for layer in layers if layer.block is not None]
    first, last = (safe(name, 40) for name in pair_in_words(blocks[0], blocks[-1]))
    if ratio == 0:
        return f"{first} gets no gradient"
    return f"{first} gets {ratio:.2g}× of {last}'s gradient"


def _not_connected(view: View) -> Words:
    if view.reconnecting:
        return "reconnecting…", colours.ORANGE, "the connection to the run's keeper was lost", colours.TEXT
    if not view.trouble:
        return "connecting", colours.DIM, "to the run's keeper", colours.DIM
    return "disconnected", colours.RED, f"{safe(view.trouble)} · display frozen{LEAVE}", colours.TEXT


def _ended(ended: RunEnded) -> Words:
    at, reason = f"at step {with_commas(ended.step)}", safe(ended.reason)
    if ended.status == "lost":
        if " at step " in reason:  # the keeper's reason is a whole sentence
            return reason, colours.RED, f"display frozen{LEAVE}", colours.TEXT
        word = f"trainer lost ({reason})" if reason else "trainer lost"
        return word, colours.RED, f"{at} · display frozen{LEAVE}", colours.TEXT
    facts = [at]
    if ended.loss is not None:
        facts.append(f"{name_of_loss(ended)} {ended.loss:.4g}")
    if ended.accuracy is not None:
        facts.append(f"accuracy {ended.accuracy:.1%}")
    text = ", ".join(facts) + (f": {reason}" if reason else "") + LEAVE
    return ended.status, colours.end_style(ended), text, colours.TEXT
