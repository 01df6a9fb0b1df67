"""Keys pressed, and what the keeper is asked for; what it answers, and what the screen says of it."""

from __future__ import annotations

import msgspec
import pytest
from driver import playing
from fake_run import reading, started, steps, turned, vanishing
from textual import events
from textual.keys import _character_to_key
from textual.widgets import OptionList

from tui_descent.dashboard import actions
from tui_descent.dashboard.dialogs.layer import DEFINITIONS
from tui_descent.dashboard.dialogs.schedule import curve
from tui_descent.protocol.commands import AnyCommand, Evaluate, Mark, Pause, Resume, RunSteps, TurnKnob
from tui_descent.protocol.events import KnobState, RunEnded, RunStarted, StateChanged
from tui_descent.scenario.keys import KEYS
from tui_descent.scenario.spec import ScheduleSpec

PAST = vanishing(30)


def turn(knob: str, value: str, target: str = "all") -> TurnKnob:
    return TurnKnob(knob=knob, value=value, target=target)


def test_every_key_has_an_action_and_every_action_a_key() -> None:
    assert {key.action for key in KEYS} <= set(actions.ACTIONS)
    assert {key.action for key in actions.KEYS} == set(actions.ACTIONS)


def test_keys_are_named_as_textual_names_them() -> None:
    for key in KEYS:
        if len(key.shown) == 1 and key.shown.isascii():
            assert _character_to_key(key.shown) in key.keys


def test_no_key_is_bound_twice() -> None:
    names = [name for key in actions.KEYS for name in key.keys]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("keys", "command"),
    [
        (["plus"], turn("lr", "*1.25")),
        (["equals_sign"], turn("lr", "*1.25")),
        (["minus"], turn("lr", "/1.25")),
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
            ["o", "end", "enter", "0", "full_stop", "9", "slash", "0", "full_stop", "8", "enter"],
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
    ],
)
async def test_a_key_asks(keys: list[str], command: AnyCommand) -> None:
    async with playing((120, 40), PAST) as play:
        await play.sees("residual off")
        await play.press(*keys)
        await play.until(lambda: bool(play.keeper.asked))
        assert play.keeper.asked == [command]


async def test_requested_then_applied() -> None:
    async with playing((120, 40), PAST, replies=False) as play:
        await play.sees("residual off")
        await play.press("r")
        await play.sees("requested", "residual=on")
        assert "applied" not in play.text()
        assert "residual off" in play.text()
        play.keeper.replies = True
        await play.press("plus")
        await play.sees("applied at step 30", "lr 0.1 → *1.25")


async def test_rejected_shows_why() -> None:
    async with playing((120, 40), PAST) as play:
        play.keeper.reject = "lr would become 1e+07; allowed: at most 1e+06"
        await play.sees("residual off")
        await play.press("right_square_bracket")
        await play.sees("rejected", "lr=*10", "allowed: at most 1e+06")


async def test_pause_then_go_on() -> None:
    async with playing((120, 40), PAST) as play:
        await play.press("space")
        await play.sees("● paused", "space go on")
        await play.press("space")
        await play.sees("● running")
        assert play.keeper.asked == [Pause(), Resume()]


@pytest.mark.parametrize("state", ["held", "waiting"])
async def test_space_goes_on_from_a_rest(state: str) -> None:
    async with playing((120, 40), [*PAST, StateChanged(state=state, reason="loss is nan")]) as play:  # type: ignore[arg-type]
        await play.sees(f"● {state}")
        await play.press("space")
        await play.until(lambda: play.keeper.asked == [Resume()])


async def test_a_knob_that_cannot_act_says_why_and_asks_nothing() -> None:
    knobs = (KnobState(name="lr", value="0.1"), KnobState(name="residual", unavailable="a surface has no blocks"))
    async with playing((120, 40), [started(knobs=knobs), StateChanged(state="running")]) as play:
        await play.sees("residual –")
        await play.press("r")
        await play.sees("not now", "residual connection: a surface has no blocks")
        assert play.keeper.asked == []


async def test_pressed_twice_goes_two_steps() -> None:
    async with playing((120, 40), PAST, replies=False) as play:
        await play.sees("residual off")
        await play.press("semicolon", "semicolon", "r", "r")
        await play.until(lambda: len(play.keeper.asked) == 4)
        assert play.keeper.asked == [
            turn("pace", "60"),
            turn("pace", "120"),
            turn("residual", "on"),
            turn("residual", "off"),
        ]


async def test_every_press_in_one_frame_is_sent() -> None:
    async with playing((120, 40), PAST) as play:
        await play.sees("residual off")
        for _ in range(20):
            play.app.post_message(events.Key("plus", "+"))
        await play.until(lambda: len(play.keeper.asked) == 20)
        await play.sees("applied at step 30")
        assert play.keeper.asked == [turn("lr", "*1.25")] * 20


async def test_requests_keep_the_order_of_the_keys() -> None:
    async with playing((120, 40), PAST, replies=False) as play:
        await play.sees("residual off")
        for key, character in (("plus", "+"), ("minus", "-"), ("m", "m"), ("plus", "+"), ("r", "r")):
            play.app.post_message(events.Key(key, character))
        await play.until(lambda: len(play.keeper.asked) == 5)
        assert play.keeper.asked == [
            turn("lr", "*1.25"),
            turn("lr", "/1.25"),
            Mark(),
            turn("lr", "*1.25"),
            turn("residual", "on"),
        ]


async def test_a_layer_outside_all_blocks_is_no_target() -> None:
    async with playing((120, 40), PAST) as play:
        await play.sees("residual off")
        await play.press("up", "r")
        await play.sees("inlet lies in no block")
        assert play.keeper.asked == []


async def test_a_paste_never_steers() -> None:
    async with playing((120, 40), PAST) as play:
        await play.sees("residual off")
        play.app.post_message(events.Paste("r++qs"))
        await play.press("m")
        await play.until(lambda: bool(play.keeper.asked))
        assert play.keeper.asked == [Mark()]


async def test_a_schedules_curve_is_drawn_and_its_parameters_given() -> None:
    async with playing((120, 40), PAST) as play:
        await play.sees("residual off")
        await play.press("s", "down", "down", "down")
        await play.sees(
            "Schedule over the 1,970 steps left", "half a cosine to 0 over", "rate over steps", "warmup=0.1"
        )
        await play.press("tab", *typed("warmup=985 floor=0.5"))
        await play.sees("up from 0.04 of the base rate over 985 updates", "half a cosine to 0.5 of")
        await play.press("enter")
        await play.until(lambda: bool(play.keeper.asked))
        parameters = (("warmup", 985), ("floor", 0.5))
        assert play.keeper.asked == [TurnKnob(knob="schedule", value="warmup_cosine", parameters=parameters)]


async def test_a_schedule_that_cannot_be_is_told_and_not_sent() -> None:
    async with playing((80, 24), PAST) as play:
        await play.sees("Gradient flow")
        await play.press("s", "down", "tab", *typed("warmup=3"), "enter")
        await play.sees('unknown option "warmup"')
        await play.press(*["backspace"] * 8, "shift+tab", "up", "end", "up", "tab", *typed("decay=5000"), "enter")
        await play.sees("5,000 updates; allowed: at most the steps left")
        await play.press("escape", "s", "end")
        await play.sees("no curve to foretell")
        await play.press("escape", "m")
        await play.until(lambda: bool(play.keeper.asked))
        assert play.keeper.asked == [Mark()]


def typed(text: str) -> list[str]:
    names = {"=": "equals_sign", " ": "space", ".": "full_stop"}
    return [names.get(c, c) for c in text]


async def test_a_norm_is_put_where_it_is_wanted() -> None:
    async with playing((80, 24), PAST) as play:
        await play.sees("Gradient flow")
        await play.press("n", "down")
        await play.sees("where=pre|mid|post way=calibrated|instant", "tab where and how")
        await play.press("tab", *typed("where=midd"), "enter")
        await play.sees('where = "midd"; allowed: pre, mid, post')
        await play.press("backspace", *typed(" way=instant"), "enter")
        await play.until(lambda: bool(play.keeper.asked))
        assert play.keeper.asked == [TurnKnob(knob="norm", value="layer", where="mid", way="instant")]


async def test_the_schedules_picture_follows_the_run() -> None:
    async with playing((80, 24), PAST) as play:
        await play.sees("Gradient flow")
        await play.press("s", "down", "down")
        await play.sees("Schedule over the 1,970 steps left", "now, 30", "over 1,970 updates")
        play.keeper.tell(steps(30, [2.3] * 470))
        await play.sees("Schedule over the 1,500 steps left", "now, 500", "over 1,500 updates")
        await play.press("enter")
        await play.until(lambda: bool(play.keeper.asked))


@pytest.mark.parametrize("key", ["o", "n", "i", "a"])
@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_no_row_of_a_picker_is_wrapped_or_cut(key: str, size: tuple[int, int]) -> None:
    knobs = (*started().knobs, KnobState(name="optimizer", value="rmsprop"), KnobState(name="norm", value="none"))
    named = [started(knobs=knobs) if isinstance(event, RunStarted) else event for event in PAST]
    async with playing(size, [*named, turned(12, "0.1", "0.000128205", knob="lr")]) as play:
        await play.sees("Gradient flow")
        await play.press(key)
        await play.sees("escape leaves it")
        choices = play.app.screen.query_one(OptionList)
        assert choices.virtual_size.height == choices.option_count, "a row each"
        text = play.text()
        for n in range(choices.option_count):
            assert str(choices.get_option_at_index(n).prompt).rstrip() in text


async def test_the_picker_shows_the_rate_that_the_scenario_names() -> None:
    knobs = (*started().knobs, KnobState(name="optimizer", value="sgd"))
    scenario = {"title": "t", "story": "s", "optimizer": {"name": "sgd", "lr": 0.1, "rates": {"adam": 0.003}}}
    begun = started(knobs=knobs, scenario=scenario)
    async with playing((80, 24), [begun if isinstance(event, RunStarted) else event for event in PAST]) as play:
        await play.sees("Gradient flow")
        await play.press("o")
        await play.sees("adam       lr 0.1 → 0.003 (the scenario's rate for Adam)", "rmsprop    lr 0.1 → 0.0026 (÷39")


@pytest.mark.parametrize("key", ["o", "n", "i", "a", "s", "l", "c", ">"])
async def test_no_dialog_opens_on_a_run_that_is_over(key: str) -> None:
    async with playing((80, 24), [*PAST, RunEnded(status="finished", step=30)]) as play:
        await play.sees("● finished")
        await play.press(key)
        await play.sees("not now  the run has ended")
        assert "escape leaves it" not in play.text()


async def test_not_built_yet_is_forgotten_once_it_is() -> None:
    async with playing((80, 24), [StateChanged(state="building")]) as play:
        await play.sees("building the network…")
        await play.press("n")
        await play.sees("not now  the network is not built yet")
        play.keeper.tell(started(), StateChanged(state="running"))
        await play.until(lambda: "not built yet" not in play.text())


@pytest.mark.parametrize("base", [0.02, None])
def test_the_curve_is_the_schedules(base: float | None) -> None:
    spec, left, width, height = ScheduleSpec(name="wsd", warmup=250, decay=0.25, start=0.2), 1000, 90, 12
    *rows, foot = curve(spec, 500, left, base, width, height).plain.split("\n")
    assert len(rows) == height - 1
    assert all(len(row) <= width for row in (*rows, foot))
    assert foot.split() == [
        "now,",
        "500",
        *("rate over steps" if base else "share of the base rate over steps").split(),
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


async def test_a_wrong_number_is_told_and_not_sent() -> None:
    async with playing((120, 40), PAST) as play:
        await play.sees("residual off")
        await play.press("l", "minus", "3", "enter")
        await play.sees("allowed: a number > 0")
        await play.press("escape")
        await play.press("greater_than_sign", "0", "enter")
        await play.sees("a whole number from 1 to")
        await play.press("escape", "m")
        await play.until(lambda: bool(play.keeper.asked))
        assert play.keeper.asked == [Mark()]


async def test_the_palette_turns_a_knob() -> None:
    async with playing((120, 40), PAST) as play:
        await play.sees("residual off")
        await play.press("ctrl+p")
        await play.sees("Search")
        await play.press(*"activation = gelu".replace(" ", ""))
        await play.sees("activation = gelu")
        await play.press("enter", "enter")
        await play.until(lambda: bool(play.keeper.asked))
        assert play.keeper.asked == [turn("activation", "gelu")]


async def test_help_tells_every_key_and_panel() -> None:
    async with playing((120, 40), PAST) as play:
        await play.press("question_mark")
        await play.sees("residual connections on or off", "learning rate ÷ 10")
        await play.press("end")
        await play.sees("thrown about")


async def test_one_layer_in_full() -> None:
    async with playing((120, 40), PAST) as play:
        await play.sees("residual off")
        await play.press("up", "up", "enter")
        await play.sees("blocks.0.linear", "L2 norm of the weights' gradient", "5.7e+00")
        await play.press("up")
        await play.sees("blocks.1.linear")


async def test_views_zoom_axis() -> None:
    async with playing((120, 40), PAST) as play:
        await play.sees("Gradient flow", "Update")
        await play.press("2")
        await play.until(lambda: "Gradient flow" not in play.text())
        await play.press("1", "tab", "tab", "z")
        await play.until(lambda: "Loss" not in play.text() and "Gradient flow" in play.text())
        await play.press("z", "y", "t")
        await play.sees("Loss  linear", "last 200+ steps")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_all_readings_of_a_layer_are_in_sight(size: tuple[int, int]) -> None:
    many = dict.fromkeys(DEFINITIONS, 0.5)
    told = msgspec.structs.replace(reading(29, 0.5), values={name: [v] * 22 for name, v in many.items()})
    async with playing(size, [*PAST, told]) as play:
        await play.sees("Gradient flow")
        await play.press("up", "enter")
        await play.sees("measured at", *(symbol for symbol, _, _ in DEFINITIONS.values()))
