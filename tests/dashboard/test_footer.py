"""The footer's lines: state and diagnosis, and the answer to the last request."""

from __future__ import annotations

import msgspec
import pytest
from driver import open_dashboard
from factories import reading, reading_of, started, steps, turned, vanishing

from tui_descent.dashboard import colours
from tui_descent.dashboard.bridge import Exchange
from tui_descent.dashboard.panels.diagnosis_line import diagnosis_line
from tui_descent.dashboard.panels.footer import FooterPanel
from tui_descent.dashboard.text.numbers import plural
from tui_descent.dashboard.view import View
from tui_descent.end_report import print_summary
from tui_descent.protocol.commands import Resume, RunSteps
from tui_descent.protocol.events import (
    Advice,
    AnyEvent,
    CommandDone,
    Diagnosed,
    Layer,
    NotFinite,
    RunEnded,
    StateChanged,
    Status,
    WiringFound,
)
from tui_descent.telemetry.history import History
from tui_descent.telemetry.last_verdict import verdict_of_ended

FOUND = Diagnosed(segment=0, step=60, finding="healthy", sure=0.9, evidence={}, sentence="It trains.")


def line_of(*events: AnyEvent) -> tuple[str, str]:
    history = History()
    for event in (started(), StateChanged(state="running"), steps(0, [1.0] * 80), *events):
        history.apply(event)
    word, _, text, _ = diagnosis_line(View(history=history, connected=True))
    return word, text


def test_a_diagnosis_is_shown_until_a_knob_is_changed() -> None:
    assert line_of(FOUND) == ("healthy", "It trains.")
    assert line_of(FOUND, turned(80, "30", "10", knob="pace")) == ("healthy", "It trains.")
    assert line_of(FOUND, turned(80, "off", "on")) == ("re-evaluating", "since residual changed at step 80")
    again = msgspec.structs.replace(FOUND, step=140)
    assert line_of(FOUND, turned(80, "off", "on"), steps(80, [1.0] * 60), again) == ("healthy", "It trains.")


def test_a_diagnosis_from_just_before_a_change_is_outdated() -> None:
    """It is published between two updates, and so is the change: both have the same step."""
    found, change = msgspec.structs.replace(FOUND, step=80), turned(80, "layer", "layer", knob="norm")
    assert line_of(found, change) == ("re-evaluating", "since norm changed at step 80")
    assert line_of(found, change, msgspec.structs.replace(found, step=80)) == ("healthy", "It trains.")
    assert line_of(found, turned(80, "30", "10", knob="pace")) == ("healthy", "It trains.")


def test_first_and_last_block_of_one_list_have_different_names() -> None:
    names = ["embed", "enc.layers.0.linear", "enc.layers.1.linear", "enc.layers.2.linear", "head"]
    layers = tuple(
        Layer(name=name, kind="Linear", params=9, block=n - 1 if 0 < n < 4 else None) for n, name in enumerate(names)
    )
    _, text = line_of(started(3, layers=layers), reading(79, 0.5, depth=3))
    assert text.endswith("enc.layers.0 gets 0.25× of enc.layers.2's gradient")


@pytest.mark.parametrize(
    ("names", "nets", "text"),
    [
        (["0", "2", "4", "6"], (), "layer 0 gets 0.12× of layer 6's gradient"),
        (["blocks.0", "blocks.1", "blocks.2", "blocks.3"], (), "blocks.0 gets 0.12× of blocks.3's gradient"),
        (["g.0", "g.2", "d.0", "d.2"], ("g", "d"), "g.0 gets 0.5× of g.2's gradient"),
        (["g.0", "d.0", "d.2", "d.4"], ("g", "d"), "d.0 gets 0.25× of d.4's gradient"),
        (["g.0", "d.0"], ("g", "d"), ""),
        (["a.0", "a.1", "a.2"], (), "a.0 gets no gradient"),
    ],
    ids=["numbers", "paths", "two nets", "a net of one layer", "nothing to compare", "none"],
)
def test_gradients_of_one_net_are_compared(names: list[str], nets: tuple[str, ...], text: str) -> None:
    layers = tuple(Layer(name=name, kind="Linear", params=9, block=n) for n, name in enumerate(names))
    rms = [0.0 if "no gradient" in text and not n else 2.0**n for n in range(len(names))]
    _, shown = line_of(started(layers=layers, nets=nets), reading_of(79, {"grad_rms": rms}))
    assert shown == (f"not clear yet · {text}" if text else "not clear yet")


def test_a_fact_that_has_ended_is_not_shown_any_more() -> None:
    fact = WiringFound(segment=0, step=60, fault="frozen layers")
    found = msgspec.structs.replace(FOUND, kind="wiring", finding="frozen layers", sentence="2 of 3 layers are frozen.")
    assert line_of(fact, found) == ("frozen layers", "2 of 3 layers are frozen.")
    assert line_of(found, msgspec.structs.replace(fact, present=False)) == ("still measuring", "not clear yet")
    other = msgspec.structs.replace(fact, fault="rate zero", present=False)
    assert line_of(found, other) == ("frozen layers", "2 of 3 layers are frozen.")


def test_measuring_begins_again_after_a_change() -> None:
    assert line_of(turned(70, "off", "on"))[1] == "step 10 of 50 since residual changed"
    assert line_of(turned(20, "off", "on"))[1] == "not clear yet"


def test_a_diagnosis_of_another_segment_is_not_shown() -> None:
    assert line_of(msgspec.structs.replace(FOUND, segment=1)) == ("re-evaluating", "after an undo or redo")


def test_a_lost_trainer_is_named_only_once() -> None:
    lost = RunEnded(status="lost", step=80, reason="trainer lost (signal 9) at step 80")
    assert line_of(lost) == ("trainer lost (signal 9) at step 80", "display frozen · q: leave")


def test_a_script_that_failed_after_its_run_is_shown_in_red() -> None:
    ended = RunEnded(status="finished", step=80, reason="the script then failed with exit code 1", exit_code=1)
    assert line_of(ended) == ("finished", "at step 80: the script then failed with exit code 1 · q: leave")
    assert colours.end_style(ended) == colours.GREEN, "without a log it does not count as a failure"
    assert colours.end_style(msgspec.structs.replace(ended, log_path="/x/run.log")) == colours.RED


@pytest.mark.parametrize("width", [60, 72, 78, 79, 83, 84, 100])
def test_a_long_diagnosis_is_cut_but_keeps_its_advice(width: int) -> None:
    long = "The loss stays at 2.061 though the gradient arrives. Try r residual."
    found = msgspec.structs.replace(FOUND, finding="plateau", sure=0.7, sentence=long)
    history = History()
    for event in (started(), StateChanged(state="running"), steps(0, [1.0] * 80), found):
        history.apply(event)
    row = FooterPanel().draw(View(history=history), width, 3)[0].text.rstrip()
    doubt = "maybe plateau" if width >= 84 else "plateau?"
    assert row.startswith(f" {doubt}  The loss stays at 2.061")
    assert row.endswith(" Try r residual.")
    assert ("…" in row) == (width < 79)
    assert len(row) <= width


@pytest.mark.parametrize("width", [60, 72, 80, 100, 120, 160])
@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize("back", ["; u goes back 123456 steps", "; u goes back 1 step", ""])
def test_a_held_run_keeps_its_advice_at_every_width(width: int, back: str, dropped: bool) -> None:
    sentence = "loss is nan at step 6: matmul overflows in blocks.1.linear, before the update"
    advice = f"; space drops this batch{back} · q: leave" if dropped else f"{back} · space: resume · q: leave"
    reason = f"{sentence}{advice if dropped else back}"
    history = History()
    for event in (started(), steps(0, [1.0] * 6), StateChanged(state="held", reason=reason)):
        history.apply(event)
    view = View(history=history, connected=True)
    rows = [row.text.rstrip() for row in FooterPanel().draw(view, width, 3)]
    assert all(len(row) <= width for row in rows)
    if width >= len(f" held  {sentence}{advice}"):
        assert rows[0] == f" held  {sentence}{advice}"
        return
    for row, whole in zip(rows, (f" held  {sentence}", f" {advice.lstrip(' ;·')}"), strict=False):
        kept = row.removesuffix("…")
        assert whole.startswith(kept)
        assert (kept == whole) == (len(whole) <= width)
        assert whole[len(kept) :][:1] in ("", " ", ",", ";") or row is rows[1], "a sentence is cut between words"
    asked = View(history=history, connected=True, exchange=Exchange(refusal="wait"))
    rows = [row.text.rstrip() for row in FooterPanel().draw(asked, width, 3)]
    first_advice = advice.lstrip(" ;·").partition(";")[0].partition(" ·")[0]
    assert first_advice in rows[0], "an answer needs the second row"
    assert rows[1].endswith("wait")


FAULT = NotFinite(
    segment=0, step=6, what="gradient", layer=None, loss=0.00191, value="nan", cause="loss function",
    where="sqrt at 0 in the loss function?", weights_finite=True, then="hold",
    text="gradient is nan at step 6, loss 0.00191: sqrt at 0 in the loss function?, before the update",
)  # fmt: skip
SPOILT = msgspec.structs.replace(FAULT, text=f"{FAULT.text}; now fc.weight is nan")
CAUSE = "sqrt at 0 in the loss function?"


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        (FAULT, f" held  gradient nan: {CAUSE} (step 6, loss 0.00191)"),
        (SPOILT, f" held  gradient nan: {CAUSE} Now fc.weight is nan"),
    ],
)
def test_a_held_line_begins_with_the_cause(fault: NotFinite, shown: str) -> None:
    advice = "; space drops this batch; u goes back 398 steps · q: leave"
    history = History()
    for event in (started(), steps(0, [1.0] * 6), fault, StateChanged(state="held", reason=f"{fault.text}{advice}")):
        history.apply(event)
    look = View(history=history, connected=True)
    rows = [row.text.rstrip() for row in FooterPanel().draw(look, 80, 3)]
    assert rows[0].removesuffix("…").startswith(shown)
    assert rows[1] == " space drops this batch; u goes back 398 steps · q: leave"
    resumed = Exchange(command=Resume(), reply=CommandDone(segment=0, step=5, client=7, request=3, what="resume"))
    again = View(history=history, exchange=resumed)
    assert [row.text.rstrip() for row in FooterPanel().draw(again, 80, 3)][:2] == rows[:2], "held again: an old answer"
    asked = View(history=history, exchange=Exchange(refusal="wait"))
    rows = [row.text.rstrip() for row in FooterPanel().draw(asked, 80, 3)]
    assert CAUSE in rows[0]
    assert rows[0].endswith("; space drops this batch")


@pytest.mark.parametrize("quits", ["", " · q: leave"])
def test_a_run_that_is_held_because_it_diverged_is_not_told_to_drop_the_batch(quits: str) -> None:
    nan = msgspec.structs.replace(FAULT, what="loss", where="", cause="", value="nan", text="loss is nan at step 6")
    found = Diagnosed(
        segment=0, step=6, kind="numerics", finding="diverged", sure=1.0,
        sentence="Loss nan after it had risen (step 6). Press u to go back.",
        advice=(Advice("undo", "1", "u"), Advice("lr", "/10", "[")),
    )  # fmt: skip
    keys = f"; space drops this batch; u goes back 2 steps{quits}"
    held = StateChanged(state="held", reason=f"{nan.text}{keys}")
    more = quits or " · space: resume · q: leave"
    assert line_of(nan, found, held) == (
        "held", f"Loss nan after it had risen (step 6); u goes back 2 steps, then [: lr ÷10{more}",
    )  # fmt: skip
    only = msgspec.structs.replace(held, reason=f"{nan.text}; space drops this batch · q: leave")
    assert "space drops this batch" in line_of(nan, found, only)[1], "nothing can be undone"


def test_an_ended_run_keeps_the_quit_key() -> None:
    history = History()
    for event in (started(), steps(0, [1.0] * 6), RunEnded(status="failed", step=6, reason="no memory for it " * 9)):
        history.apply(event)
    row = FooterPanel().draw(View(history=history, connected=True), 80, 3)[0].text.rstrip()
    assert row.startswith(" failed  at step 6: no memory")
    assert row.endswith("… · q: leave")


def ended_after(*events: AnyEvent, status: Status = "finished") -> History:
    history = History()
    for event in (started(), StateChanged(state="running"), steps(0, [1.0] * 80), *events):
        history.apply(event)
    history.apply(RunEnded(status=status, step=80, loss=0.5))
    return history


PLATEAU = msgspec.structs.replace(
    FOUND, finding="plateau", sure=0.7, sentence="Loss stuck at 1. Press r: residual on.",
    advice=(Advice("residual", "on", "r"),),
)  # fmt: skip
NAN = msgspec.structs.replace(FOUND, finding="non-finite", kind="numerics", sentence="Loss nan (step 79).")


@pytest.mark.parametrize(
    ("history", "said"),
    [
        (ended_after(FOUND), ("healthy", "It trains.")),
        (ended_after(PLATEAU), ("maybe plateau", "Loss stuck at 1. Next time: residual on.")),
        (ended_after(PLATEAU, status="stopped"), ("maybe plateau", "Loss stuck at 1. Next time: residual on.")),
        (ended_after(PLATEAU, turned(70, "off", "on")), ("", "")),
        (ended_after(msgspec.structs.replace(FOUND, segment=1)), ("", "")),
        (ended_after(NAN, status="diverged"), ("", "")),
        (ended_after(NAN), ("non-finite", "Loss nan (step 79).")),
        (ended_after(), ("", "")),
    ],
    ids=["healthy", "maybe, with advice", "stopped", "changed since", "undone", "the reason says it", "NaN", "none"],
)
def test_an_ended_run_keeps_its_last_diagnosis(
    history: History, said: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verdict_of_ended(history) == said
    answered = Exchange(command=Resume(), reply=CommandDone(segment=0, step=5, client=7, request=3, what="resume"))
    rows = [row.text.rstrip() for row in FooterPanel().draw(View(history=history, exchange=answered), 80, 3)]
    assert (rows[1] == f" {said[0]}  {said[1]}") == bool(said[0])
    refused = View(history=history, exchange=Exchange(refusal="the run is over"))
    assert FooterPanel().draw(refused, 80, 3)[1].text.rstrip().endswith("the run is over")
    print_summary(history)
    assert history.ended is not None
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"vanishing: {history.ended.status} · 80 steps · loss 0.5"
    assert printed[1:] == ([f"  diagnosis: {said[0]}. {said[1]}"] if said[0] else [])


def test_the_diagnosis_stays_while_a_script_ends() -> None:
    history = History()
    for event in (started(), StateChanged(state="running"), steps(0, [1.0] * 80), PLATEAU):
        history.apply(event)
    history.apply(StateChanged(state="stopping", reason="the loop has ended; its script is still running"))
    rows = [row.text.rstrip() for row in FooterPanel().draw(View(history=history, connected=True), 80, 3)]
    assert rows[0].startswith(" stopping…")
    assert rows[1] == " maybe plateau  Loss stuck at 1. Next time: residual on."


def test_the_answer_to_run_steps_names_the_first_step() -> None:
    history = History()
    for event in (started(), steps(0, [1.0] * 6)):
        history.apply(event)
    done = CommandDone(segment=0, step=6, client=7, request=3, what="1 step, then a pause")
    look = View(history=history, exchange=Exchange(command=RunSteps(steps=1), reply=done))
    assert FooterPanel().draw(look, 80, 3)[1].text.rstrip() == " running  1 step from step 6, then pause"


def test_plural_adds_an_s_except_for_one() -> None:
    assert [plural(n, "layer") for n in (0, 1, 2, 1200)] == ["0 layers", "1 layer", "2 layers", "1,200 layers"]


@pytest.mark.parametrize(("scenario", "shown"), [({}, True), (None, False)], ids=["scenario", "user loop"])
def test_the_range_test_is_not_offered_in_a_user_loop(scenario: dict[str, object] | None, shown: bool) -> None:
    history = History()
    for event in (started(scenario=scenario), StateChanged(state="running"), steps(0, [1.0] * 80)):
        history.apply(event)
    row = FooterPanel().draw(View(history=history), 250, 3)[2].text
    assert ("f range test" in row) == shown
    assert "s schedule" in row


async def test_the_answer_to_a_key_does_not_wait_for_the_next_regular_redraw() -> None:
    async with open_dashboard((120, 40), vanishing(20), min_interval_s=1000.0) as dashboard:
        await dashboard.shows("20/2,000")
        dashboard.keeper.publish(steps(20, [1.0] * 5))
        await dashboard.wait_until(lambda: dashboard.app.bridge.history.steps == 25)
        await dashboard.pilot.pause(0.1)
        assert "20/2,000" in dashboard.text()
        await dashboard.press("plus")
        await dashboard.shows("applied", "*1.25", "25/2,000")
