"""Keys: the commands they send, the replies, and the dialogs they open."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from driver import open_dashboard
from factories import reading, started, steps, turned, vanishing
from test_lens_view import taken
from textual import events
from textual.command import CommandPalette
from textual.keys import _character_to_key
from textual.screen import Screen
from textual.widgets import OptionList

from tui_descent.dashboard import actions
from tui_descent.dashboard.app import DescentApp
from tui_descent.dashboard.bridge import Exchange
from tui_descent.dashboard.colours import state_glyph
from tui_descent.dashboard.dialogs.help import HelpDialog
from tui_descent.dashboard.dialogs.layer import DEFINITIONS, LayerDialog
from tui_descent.dashboard.dialogs.leave import LeaveDialog
from tui_descent.dashboard.dialogs.number import NumberDialog
from tui_descent.dashboard.dialogs.range_test import RangeTestDialog
from tui_descent.dashboard.dialogs.schedule import curve
from tui_descent.dashboard.panels.loss_chart import LossPanel
from tui_descent.dashboard.screens.run import RunScreen
from tui_descent.dashboard.view import VIEWS
from tui_descent.protocol.commands import (
    AnyCommand,
    Evaluate,
    Mark,
    Pause,
    Redo,
    Resume,
    RunSteps,
    TurnKnob,
    Undo,
)
from tui_descent.protocol.events import Advice, Diagnosed, KnobState, RunEnded, RunStarted, StateChanged
from tui_descent.scenario import presets, schedules
from tui_descent.scenario.keys import BINDING_OF, KEYS
from tui_descent.scenario.knobs import KNOBS
from tui_descent.scenario.spec import ScheduleSpec
from tui_descent.scenario.toml import to_table

EARLIER = vanishing(30)


def turn(knob: str, value: str, target: str = "all") -> TurnKnob:
    return TurnKnob(knob=knob, value=value, target=target)


def test_every_action_has_a_handler_and_every_handler_a_key() -> None:
    assert {binding.action for binding in KEYS} == set(actions.HANDLERS)


def test_keys_have_textual_names() -> None:
    for key in KEYS:
        if len(key.shown) == 1 and key.shown.isascii():
            assert _character_to_key(key.shown) in key.keys


def test_no_key_is_bound_twice() -> None:
    names = [name for key in KEYS for name in key.keys]
    assert len(names) == len(set(names))


def _shows_view(name: str, screen: RunScreen) -> bool:
    return screen.has_class(f"view-{name}") and screen.view.shown == name


def _opens(dialog: type[Screen[Any]], screen: RunScreen) -> bool:
    return isinstance(screen.app.screen, dialog)


_suspended: list[None] = []  # one entry for each time that ctrl+z was pressed


def test_every_key_is_tested() -> None:
    tested = {key for keys, _ in [*KEYS_AND_COMMANDS, *KEYS_AND_EFFECTS] for key in keys}
    assert set(BINDING_OF) - tested == set()


KEYS_AND_COMMANDS: list[tuple[list[str], AnyCommand]] = [
    (["plus"], turn("lr", "*1.25")),
    (["equals_sign"], turn("lr", "*1.25")),
    (["add"], turn("lr", "*1.25")),
    (["minus"], turn("lr", "/1.25")),
    (["subtract"], turn("lr", "/1.25")),
    (["right_square_bracket"], turn("lr", "*10")),
    (["left_square_bracket"], turn("lr", "/10")),
    (["r"], turn("residual", "on")),
    (["space"], Pause()),
    (["full_stop"], RunSteps(steps=1)),
    (["comma"], turn("pace", "10")),
    (["semicolon"], turn("pace", "60")),
    (["m"], Mark()),
    (["e"], Evaluate()),
    (["l", "3", "e", "minus", "4", "enter"], turn("lr", "3e-4")),
    (["greater_than_sign", "2", "5", "enter"], RunSteps(steps=25)),
    (["a", "down", "enter"], turn("activation", "tanh")),
    # `inlet` is the first of the layers, `blocks.0` the next one up.
    (["up", "up", "r"], turn("residual", "on", "blocks.0")),
    (["up", "up", "a", "up", "enter"], turn("activation", "silu", "blocks.0")),
    (["up", "up", "escape", "r"], turn("residual", "on")),
    (["n", "down", "enter"], turn("norm", "layer")),
    (["up", "up", "n", "down", "enter"], turn("norm", "layer", "blocks.0")),
    (["o", "down", "down", "down", "down", "enter"], turn("optimizer", "adam")),
    (
        ["o", "end", "enter", "0", "full_stop", "9", "enter", "0", "full_stop", "8", "enter"],
        turn("betas", "0.9/0.8"),
    ),
    (["s", "down", "down", "enter"], turn("schedule", "cosine")),
    (["i", "down", "enter"], turn("init", "xavier")),
    (["up", "i", "enter"], turn("init", "he", "inlet")),
    (["c", "1", "enter"], turn("clip", "1")),
    (["c", "o", "f", "f", "enter"], turn("clip", "off")),
    (["b", "1", "2", "8", "enter"], turn("batch_size", "128")),
    (["w", "0", "enter"], turn("weight_decay", "0")),
    (["d", "full_stop", "1", "enter"], turn("dropout", ".1")),
    (["up", "x"], turn("freeze", "on", "inlet")),
    (["x"], turn("freeze", "off")),
    (["k"], turn("kick", "0.01")),
    (["K"], TurnKnob(knob="kick", value="0.01", way="curvature")),
    (["u"], Undo()),
    (["U"], Redo()),
]
# What other keys change on the screen: keys to press, and what must hold after the last of them.
KEYS_AND_EFFECTS: list[tuple[list[str], Callable[[RunScreen], bool]]] = [
    *(([str(n)], partial(_shows_view, name)) for n, name in reversed([*enumerate(VIEWS, 1)])),
    (["h"], lambda screen: screen.view.story_open and screen.view.predict),
    (["h"], lambda screen: screen.view.story_open and not screen.view.predict),
    (["1"], partial(_shows_view, "overview")),
    (["g"], lambda screen: not screen.view.ghosts),
    (["E"], lambda screen: not screen.view.all_events),
    (["y"], lambda screen: not screen.view.log),
    (["t"], lambda screen: screen.view.recent),
    (["v"], lambda screen: screen.view.hidden == {"smooth", "held-out"}),
    (["v"], lambda screen: screen.view.hidden == {"raw", "held-out"}),
    (["v"], lambda screen: screen.view.hidden == {"raw", "smooth"}),
    (["v"], lambda screen: not screen.view.hidden),
    (["tab"], lambda screen: isinstance(screen.focused, LossPanel)),
    (["z"], lambda screen: screen.has_class("zoomed")),
    (["z"], lambda screen: not screen.has_class("zoomed")),
    (["up"], lambda screen: screen.view.selected == 0),
    (["up", "up", "down"], lambda screen: screen.view.selected == 1),
    (["enter"], partial(_opens, LayerDialog)),
    (["escape"], lambda screen: screen.app.screen is screen),
    (["escape"], lambda screen: screen.view.selected is None),
    (["9", "right"], lambda screen: screen.view.nudge.x > 1.0),
    (["left", "left"], lambda screen: screen.view.nudge.x < 1.0),
    (["left_parenthesis"], lambda screen: screen.view.nudge.h == 0.5),
    (["right_parenthesis", "right_parenthesis"], lambda screen: screen.view.nudge.h == 2.0),
    *((["escape", key], partial(_opens, LeaveDialog)) for key in ("q", "ctrl+c", "ctrl+q", "R", "p", "O")),
    (["escape", "question_mark"], partial(_opens, HelpDialog)),
    (["escape", "f"], partial(_opens, RangeTestDialog)),
    (["escape", "ctrl+p"], partial(_opens, CommandPalette)),
    (["escape", "ctrl+z"], lambda screen: screen.app.screen is screen and len(_suspended) == 1),
]


async def test_a_key_sends_its_command() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        dashboard.keeper.reject = "so every key starts from the same values"
        await dashboard.shows("residual off")
        for keys, command in KEYS_AND_COMMANDS:
            dashboard.app.bridge.exchange = Exchange()
            await dashboard.press(*keys)
            await dashboard.wait_until(lambda: dashboard.app.bridge.exchange.reply is not None)
            assert dashboard.keeper.steered == [command], keys
            dashboard.keeper.received.clear()
            await dashboard.press("escape")  # now no layer is selected


async def test_a_key_changes_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    _suspended.clear()
    monkeypatch.setattr(DescentApp, "action_suspend_process", lambda app: _suspended.append(None))
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("residual off")
        dashboard.keeper.publish(taken())
        for keys, effect in KEYS_AND_EFFECTS:
            for key in keys[:-1]:
                await dashboard.press(key)
            before = effect(dashboard.app.run_screen)
            assert not before, f"{keys}: nothing would be tested"
            await dashboard.press(keys[-1])
            await dashboard.wait_until(lambda effect=effect: effect(dashboard.app.run_screen))  # type: ignore[misc]


async def test_a_request_is_shown_then_its_application() -> None:
    async with open_dashboard((120, 40), EARLIER, replies=False) as dashboard:
        await dashboard.shows("residual off")
        await dashboard.press("r")
        await dashboard.shows("requested", "residual=on")
        assert "applied" not in dashboard.text()
        assert "residual off" in dashboard.text()
        dashboard.keeper.replies = True
        await dashboard.press("plus")
        await dashboard.shows("applied at step 30", "lr 0.1 → *1.25")


async def test_a_rejection_shows_the_reason() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        dashboard.keeper.reject = "lr would become 1e+07; allowed: at most 1e+06"
        await dashboard.shows("residual off")
        await dashboard.press("right_square_bracket")
        await dashboard.shows("rejected", "lr=*10", "allowed: at most 1e+06")


async def test_space_pauses_and_resumes() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.press("space")
        await dashboard.shows("‖ paused", "space resume")
        await dashboard.press("space")
        await dashboard.shows("● running")
        assert dashboard.keeper.received == [Pause(), Resume()]


@pytest.mark.parametrize("state", ["held", "waiting"])
async def test_space_resumes_a_stopped_run(state: str) -> None:
    async with open_dashboard((120, 40), [*EARLIER, StateChanged(state=state, reason="loss is nan")]) as dashboard:  # type: ignore[arg-type]
        await dashboard.shows(f"{state_glyph(state)} {state}")
        await dashboard.press("space")
        await dashboard.wait_until(lambda: dashboard.keeper.received == [Resume()])


async def test_an_unavailable_knob_shows_the_reason_and_sends_nothing() -> None:
    knobs = (KnobState(name="lr", value="0.1"), KnobState(name="residual", unavailable="a surface has no blocks"))
    async with open_dashboard((120, 40), [started(knobs=knobs), StateChanged(state="running")]) as dashboard:
        await dashboard.shows("residual –")
        await dashboard.press("r")
        await dashboard.shows("not now", "residual connection: a surface has no blocks")
        assert dashboard.keeper.received == []


async def test_a_second_press_starts_from_the_requested_value() -> None:
    async with open_dashboard((120, 40), EARLIER, replies=False) as dashboard:
        await dashboard.shows("residual off")
        await dashboard.press("semicolon", "semicolon", "r", "r")
        await dashboard.wait_until(lambda: len(dashboard.keeper.received) == 4)
        assert dashboard.keeper.received == [
            turn("pace", "60"),
            turn("pace", "120"),
            turn("residual", "on"),
            turn("residual", "off"),
        ]


async def test_every_press_in_one_frame_is_sent() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("residual off")
        for _ in range(20):
            dashboard.app.post_message(events.Key("plus", "+"))
        await dashboard.wait_until(lambda: len(dashboard.keeper.received) == 20)
        await dashboard.shows("applied at step 30")
        assert dashboard.keeper.received == [turn("lr", "*1.25")] * 20


async def test_requests_keep_the_order_of_the_keys() -> None:
    async with open_dashboard((120, 40), EARLIER, replies=False) as dashboard:
        await dashboard.shows("residual off")
        for key, character in (("plus", "+"), ("minus", "-"), ("m", "m"), ("plus", "+"), ("r", "r")):
            dashboard.app.post_message(events.Key(key, character))
        await dashboard.wait_until(lambda: len(dashboard.keeper.received) == 5)
        assert dashboard.keeper.received == [
            turn("lr", "*1.25"),
            turn("lr", "/1.25"),
            Mark(),
            turn("lr", "*1.25"),
            turn("residual", "on"),
        ]


async def test_a_layer_outside_any_block_cannot_be_a_target() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("residual off")
        await dashboard.press("up", "r")
        await dashboard.shows("inlet is not in a block")
        assert dashboard.keeper.received == []


async def test_pasted_text_is_not_taken_for_keys() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("residual off")
        dashboard.app.post_message(events.Paste("r++qs"))
        await dashboard.press("m")
        await dashboard.wait_until(lambda: bool(dashboard.keeper.received))
        assert dashboard.keeper.received == [Mark()]


async def test_schedule_dialog_draws_the_curve_and_takes_parameters() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("residual off")
        await dashboard.press("s", "down", "down", "down")
        await dashboard.shows(
            "Schedule for the remaining 1,970 steps", "half a cosine to 0 in", "rate by step", "warmup 0.1"
        )
        await dashboard.press("tab", *typed("985"), "tab", "tab", *typed("0.5"))
        await dashboard.shows("up from 0.04 of the base rate in 985 steps", "half a cosine to 0.5 of")
        await dashboard.press("enter")
        await dashboard.wait_until(lambda: bool(dashboard.keeper.received))
        parameters = (("warmup", 985), ("floor", 0.5))
        assert dashboard.keeper.received == [TurnKnob(knob="schedule", value="warmup_cosine", parameters=parameters)]


@pytest.mark.parametrize("size", [(60, 20), (80, 24), pytest.param((120, 40), marks=pytest.mark.heavy)])
async def test_schedule_dialog_shows_the_axis_of_every_schedule(size: tuple[int, int]) -> None:
    async with open_dashboard(size, EARLIER) as dashboard:
        await dashboard.shows("step    30")
        await dashboard.press("s")
        for schedule in KNOBS["schedule"].choices[:-1]:  # the curve of the last one depends on the loss
            about = schedules.about(ScheduleSpec(name=schedule), 1970)[:20]  # type: ignore[arg-type]
            await dashboard.shows(about, "now, 30", "2,000")
            await dashboard.pilot.pause()
            assert "now, 30" in dashboard.text(), dashboard.text()
            await dashboard.press("down")


async def test_schedule_dialog_rejects_wrong_parameters() -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await dashboard.shows("Gradient flow")
        await dashboard.press("s", "w", "s", "d", "tab", "tab", "tab", *typed("5000"), "enter")
        await dashboard.shows("5,000 updates; allowed: at most the remaining steps")
        await dashboard.press("escape", "s", "end")
        await dashboard.shows("the curve cannot be predicted")
        await dashboard.press("escape", "m")
        await dashboard.wait_until(lambda: bool(dashboard.keeper.received))
        assert dashboard.keeper.received == [Mark()]


def typed(text: str) -> list[str]:
    names = {"=": "equals_sign", " ": "space", ".": "full_stop"}
    return [names.get(c, c) for c in text]


async def test_norm_dialog_takes_position_and_way() -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await dashboard.shows("Gradient flow")
        await dashboard.press("n", "down")
        await dashboard.shows("where", "pre", "mid", "post", "calibrated")
        await dashboard.press("tab", "right", "right", "tab", "right", "right", "enter")
        await dashboard.wait_until(lambda: bool(dashboard.keeper.received))
        assert dashboard.keeper.received == [TurnKnob(knob="norm", value="layer", where="mid", way="instant")]


async def test_schedule_dialog_follows_the_run() -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await dashboard.shows("Gradient flow")
        await dashboard.press("s", "down", "down")
        await dashboard.shows("Schedule for the remaining 1,970 steps", "now, 30", "over 1,970 steps")
        dashboard.keeper.publish(steps(30, [2.3] * 470))
        await dashboard.shows("Schedule for the remaining 1,500 steps", "now, 500", "over 1,500 steps")
        await dashboard.press("enter")
        await dashboard.wait_until(lambda: bool(dashboard.keeper.received))


USER_LOOP = (KnobState(name="lr", value="0.1"), KnobState(name="optimizer", unavailable="your loop owns its optimizer"))


@pytest.mark.parametrize(
    ("more", "typing", "command"),
    [
        ([("momentum", None), ("betas", "sgd has no betas")], [*typed("0.9")], turn("momentum", "0.9")),
        (
            [("momentum", "adam has none"), ("betas", None)],
            [*"0", "full_stop", *"8/0", "full_stop", "9"],
            turn("betas", "0.8/0.9"),
        ),
        ([("momentum", None), ("betas", None)], [*typed("0.5")], turn("momentum", "0.5")),
    ],
)
async def test_momentum_and_betas_can_be_set_where_the_optimizer_cannot_be_changed(
    more: list[tuple[str, str | None]], typing: list[str], command: TurnKnob
) -> None:
    knobs = (*USER_LOOP, *(KnobState(name=name, value="0", unavailable=reason) for name, reason in more))
    async with open_dashboard(
        (80, 24), [started(scenario=None, knobs=knobs), StateChanged(state="running")]
    ) as dashboard:
        await dashboard.shows("● running")
        await dashboard.press("o")
        await dashboard.shows("Your loop owns its optimizer")
        choices = dashboard.app.screen.query_one(OptionList)
        assert [option.id for option in choices.options] == [f"knob:{name}" for name, reason in more if reason is None]
        await dashboard.press("enter", *("tab" if key == "/" else key for key in typing), "enter")
        await dashboard.wait_until(lambda: bool(dashboard.keeper.received))
        assert dashboard.keeper.received == [command]


async def test_optimizer_key_says_why_if_nothing_of_it_can_be_set() -> None:
    knobs = (*USER_LOOP, *(KnobState(name=name, unavailable="none") for name in ("momentum", "betas")))
    async with open_dashboard(
        (80, 24), [started(scenario=None, knobs=knobs), StateChanged(state="running")]
    ) as dashboard:
        await dashboard.shows("● running")
        await dashboard.press("o")
        await dashboard.shows("not now", "your loop owns its optimizer")


async def test_palette_asks_for_the_value_of_a_number_knob() -> None:
    async with open_dashboard((100, 30), EARLIER) as dashboard:
        await dashboard.shows("● running")
        for knob in ("momentum", "betas", "weight_decay"):
            await dashboard.press("ctrl+p", *("underscore" if c == "_" else c for c in knob), "space", "equals_sign")
            await dashboard.shows(f"{knob} = …")
            await dashboard.press("enter")
            await dashboard.wait_until(lambda: isinstance(dashboard.app.screen, NumberDialog))
            await dashboard.press("escape")
            await dashboard.wait_until(lambda: dashboard.app.screen is dashboard.app.run_screen)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_no_row_of_a_choice_dialog_is_wrapped_or_cut(size: tuple[int, int]) -> None:
    knobs = (*started().knobs, KnobState(name="optimizer", value="rmsprop"), KnobState(name="norm", value="none"))
    named = [started(knobs=knobs) if isinstance(event, RunStarted) else event for event in EARLIER]
    async with open_dashboard(size, [*named, turned(12, "0.1", "0.000128205", knob="lr")]) as dashboard:
        await dashboard.shows("Gradient flow")
        for key in ("o", "n", "i", "a"):
            await dashboard.press(key)
            await dashboard.shows("escape cancels")
            choices = dashboard.app.screen.query_one(OptionList)
            assert choices.virtual_size.height == choices.option_count, f"{key}: one row per choice"
            text = dashboard.text()
            for n in range(choices.option_count):
                assert str(choices.get_option_at_index(n).prompt).rstrip() in text, key
            await dashboard.press("escape")
            await dashboard.wait_until(lambda: "escape cancels" not in dashboard.text())


async def test_optimizer_dialog_shows_the_rate_of_the_scenario() -> None:
    knobs = (*started().knobs, KnobState(name="optimizer", value="sgd"))
    scenario = {"title": "t", "story": "s", "optimizer": {"name": "sgd", "lr": 0.1, "rates": {"adam": 0.003}}}
    named = started(knobs=knobs, scenario=scenario)
    async with open_dashboard(
        (80, 24), [named if isinstance(event, RunStarted) else event for event in EARLIER]
    ) as dashboard:
        await dashboard.shows("Gradient flow")
        await dashboard.press("o")
        await dashboard.shows(
            "adam       lr 0.1 → 0.003 (the scenario's rate for Adam)", "rmsprop    lr 0.1 → 0.0026 (÷39"
        )


async def test_no_dialog_opens_after_the_run_has_ended() -> None:
    async with open_dashboard((80, 24), [*EARLIER, RunEnded(status="finished", step=30)]) as dashboard:
        await dashboard.shows("✓ finished")
        for key in ("o", "n", "i", "a", "s", "l", "c", ">"):
            dashboard.app.bridge.exchange = Exchange()
            await dashboard.press(key)
            await dashboard.wait_until(lambda: dashboard.app.bridge.exchange.refusal == "the run has ended")
            await dashboard.shows("not now  the run has ended")
            assert "escape cancels" not in dashboard.text(), key


async def test_not_built_yet_disappears_once_the_net_is_built() -> None:
    async with open_dashboard((80, 24), [StateChanged(state="building")]) as dashboard:
        await dashboard.shows("setting up the run…")
        await dashboard.press("n")
        await dashboard.shows("not now  the network is not built yet")
        dashboard.keeper.publish(started(), StateChanged(state="running"))
        await dashboard.wait_until(lambda: "not built yet" not in dashboard.text())


@pytest.mark.parametrize("base", [0.02, None])
def test_schedule_curve_has_the_shape_of_the_schedule(base: float | None) -> None:
    spec, left, width, height = ScheduleSpec(name="wsd", warmup=250, decay=0.25, start=0.2), 1000, 90, 12
    *rows, foot = curve(spec, 500, left, base, width, height).plain.split("\n")
    assert len(rows) == height - 1
    assert all(len(row) <= width for row in (*rows, foot))
    assert foot.split() == [
        "now,",
        "500",
        *("learning rate by step" if base else "factor on the base rate by step").split(),
        "1500",
    ]
    assert next(row.split("│")[0].strip() for row in rows if row.startswith(" " * 4)) == ("0.02" if base else "1.00")
    canvas = [row.split("│")[1] for row in rows]
    heights = [next((len(canvas) - n for n, row in enumerate(canvas) if row[x] not in " ⠀"), 0) for x in range(80)]
    assert max(heights) == heights[40] == len(canvas)
    assert heights[0] <= 3
    assert heights[-1] == 1
    assert heights.index(len(canvas)) == pytest.approx(80 * 0.25, abs=3)
    assert 79 - heights[::-1].index(len(canvas)) == pytest.approx(80 * 0.75, abs=3)


@pytest.mark.parametrize(
    ("advice", "keys", "command"),
    [
        (Advice("weight_decay", "0", "w"), ["w", "enter"], turn("weight_decay", "0")),
        (Advice("weight_decay", "0", "w"), ["w", "1", "enter"], turn("weight_decay", "1")),
        (Advice("lr", "/10", "["), ["l", "enter"], turn("lr", "/10")),
    ],
)
async def test_what_is_advised_is_in_the_field_until_something_is_typed(
    advice: Advice, keys: list[str], command: TurnKnob
) -> None:
    found = Diagnosed(
        segment=0, step=30, finding="weights decaying", sure=0.9, evidence={}, sentence="They shrink.", advice=(advice,)
    )
    async with open_dashboard((80, 24), [*EARLIER, found]) as dashboard:
        await dashboard.shows("They shrink.")
        await dashboard.press(keys[0])
        await dashboard.shows(f"advised: {advice.value}")
        await dashboard.press(*keys[1:])
        await dashboard.wait_until(lambda: bool(dashboard.keeper.received))
        assert dashboard.keeper.received == [command]


async def test_number_dialog_rejects_wrong_numbers() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("residual off")
        await dashboard.press("l", "minus", "3", "enter")
        await dashboard.shows("allowed: a number > 0")
        await dashboard.press("escape")
        await dashboard.press("greater_than_sign", "0", "enter")
        await dashboard.shows("a whole number from 1 to")
        await dashboard.press("escape", "m")
        await dashboard.wait_until(lambda: bool(dashboard.keeper.received))
        assert dashboard.keeper.received == [Mark()]


async def test_the_palette_sets_a_knob() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("residual off")
        await dashboard.press("ctrl+p")
        await dashboard.shows("Search")
        await dashboard.press(*"activation = gelu".replace(" ", ""))
        await dashboard.shows("activation = gelu")
        await dashboard.press("enter", "enter")
        await dashboard.wait_until(lambda: bool(dashboard.keeper.received))
        assert dashboard.keeper.received == [turn("activation", "gelu")]


async def test_the_palette_offers_the_ways_of_a_residual_connection() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("residual off")
        await dashboard.press("ctrl+p")
        await dashboard.shows("Search")
        await dashboard.press(*"residualwayrezero")
        await dashboard.shows("residual = on, way = rezero")
        await dashboard.press("enter", "enter")
        await dashboard.wait_until(lambda: bool(dashboard.keeper.received))
        assert dashboard.keeper.received == [TurnKnob(knob="residual", value="on", way="rezero")]


async def test_r_switches_residual_connections_on_as_advised() -> None:
    advice = (Advice("residual", "on,way=rezero", "r"),)
    found = Diagnosed(segment=0, step=9, finding="vanishing", sure=0.9, advice=advice)
    async with open_dashboard((120, 40), [*EARLIER, found]) as dashboard:
        await dashboard.shows("residual off")
        await dashboard.press("r")
        await dashboard.wait_until(lambda: bool(dashboard.keeper.received))
        assert dashboard.keeper.received == [TurnKnob(knob="residual", value="on", way="rezero")]


async def test_r_switches_residual_connections_on_as_the_presets_remedy_says() -> None:
    _, scenario = presets.find("rezero-1000")
    table = to_table(scenario)
    earlier = [msgspec.structs.replace(e, scenario=table) if isinstance(e, RunStarted) else e for e in EARLIER]
    async with open_dashboard((120, 40), earlier) as dashboard:
        await dashboard.shows("residual off")
        await dashboard.press("r")
        await dashboard.wait_until(lambda: bool(dashboard.keeper.received))
        assert dashboard.keeper.received == [TurnKnob(knob="residual", value="on", way="rezero")]


async def test_help_lists_keys_and_panels() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.press("question_mark")
        await dashboard.shows("residual connections on or off", "learning rate ÷ 10")
        await dashboard.press("end")
        await dashboard.shows("All lanes begin at the circle", "The story of the preset")


async def test_enter_opens_the_selected_layer() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("residual off")
        await dashboard.press("up", "up", "enter")
        await dashboard.shows("blocks.0.linear", "L2 norm of the (clipped) weight gradient", "5.7e+00")
        await dashboard.press("up")
        await dashboard.shows("blocks.1.linear")


async def test_views_zoom_and_axis_settings() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("Gradient flow", "Update")
        await dashboard.press("2")
        await dashboard.wait_until(lambda: "Gradient flow" not in dashboard.text())
        await dashboard.press("1", "tab", "tab", "z")
        await dashboard.wait_until(lambda: "Loss" not in dashboard.text() and "Gradient flow" in dashboard.text())
        await dashboard.press("z", "y", "t")
        await dashboard.shows("Loss  linear", "last 200+ steps")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_layer_dialog_shows_all_readings_without_scrolling(size: tuple[int, int]) -> None:
    many = dict.fromkeys(DEFINITIONS, 0.5)
    newest = msgspec.structs.replace(reading(29, 0.5), values={name: [v] * 22 for name, v in many.items()})
    async with open_dashboard(size, [*EARLIER, newest]) as dashboard:
        await dashboard.shows("Gradient flow")
        await dashboard.press("up", "enter")
        await dashboard.shows("measured at", *(symbol for symbol, _, _ in DEFINITIONS.values()))
