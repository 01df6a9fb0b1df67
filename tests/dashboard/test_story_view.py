"""The story view, predictions, the end card, restart and gallery, and captions."""

from __future__ import annotations

import pytest
from driver import Dashboard, compare, open_dashboard
from factories import started, steps, turned, vanishing
from textual import events

from tui_descent.dashboard.dialogs.end_card import EndCardDialog
from tui_descent.protocol.commands import Stop, TurnKnob
from tui_descent.protocol.events import AnyEvent, Noted, RunEnded, StateChanged
from tui_descent.scenario import presets
from tui_descent.scenario.toml import to_table

SIZES = [(80, 24), (120, 40), (200, 60)]


def run_of(until: int, name: str = "vanishing", *, cure: int = 10_000) -> list[AnyEvent]:
    scenario = to_table(presets.find(name)[1])
    return [started(scenario=scenario, steps=600) if event == started() else event for event in vanishing(until, cure)]


async def wait_for_commands(dashboard: Dashboard, count: int) -> None:
    await dashboard.wait_until(lambda: len(dashboard.keeper.received) >= count)


@pytest.mark.parametrize("size", SIZES)
async def test_story_screen(size: tuple[int, int]) -> None:
    async with open_dashboard(size, run_of(200)) as dashboard:
        await dashboard.press("h")
        await dashboard.shows("Next: press r.", "A change asks for your prediction first")
        await dashboard.drawn()
        compare(f"story-{size[0]}x{size[1]}", dashboard.text())


async def test_the_hint_follows_what_was_done() -> None:
    async with open_dashboard((200, 60), run_of(100)) as dashboard:
        await dashboard.press("h")
        await dashboard.shows("Next: watch until about step 150, then press r.")
        dashboard.keeper.publish(turned(100, "off", "on"))
        await dashboard.shows("u undoes the last change")


async def test_a_change_in_the_story_asks_first_and_reveals_the_answer() -> None:
    async with open_dashboard((120, 40), run_of(200)) as dashboard:
        await dashboard.press("h", "r")
        await dashboard.shows("residual=on: what will the loss do within 50 steps?")
        assert dashboard.keeper.received == []
        await dashboard.press("enter")
        await wait_for_commands(dashboard, 1)
        assert dashboard.keeper.received == [TurnKnob(knob="residual", value="on")]
        await dashboard.shows("You predicted: the loss falls.")
        for step in range(200, 260):
            dashboard.keeper.publish(steps(step, [2.3 if step < 205 else 0.5]))
        await dashboard.shows("Right!", "fell: from 2.36 to 0.5 in 50 steps.")


async def test_escape_makes_no_change() -> None:
    async with open_dashboard((120, 40), run_of(200)) as dashboard:
        await dashboard.press("h", "r")
        await dashboard.shows("what will the loss do")
        await dashboard.press("escape", "1", "plus")
        await wait_for_commands(dashboard, 1)
        assert dashboard.keeper.received == [TurnKnob(knob="lr", value="*1.25")]


async def test_h_answers_a_question_with_no_guess_and_asks_no_more() -> None:
    async with open_dashboard((120, 40), run_of(200)) as dashboard:
        await dashboard.press("h", "r")
        await dashboard.shows("h makes the change and asks no more questions")
        await dashboard.press("h")
        await wait_for_commands(dashboard, 1)
        assert dashboard.keeper.received == [TurnKnob(knob="residual", value="on")]
        await dashboard.shows("Predictions are off")


async def test_a_change_to_the_present_value_asks_no_question() -> None:
    async with open_dashboard((120, 40), run_of(200)) as dashboard:
        await dashboard.press("h", "a", "enter")
        await dashboard.wait_until(lambda: bool(dashboard.keeper.steered))
        assert dashboard.keeper.steered == [TurnKnob(knob="activation", value="sigmoid")]


async def test_predictions_can_be_switched_off() -> None:
    async with open_dashboard((120, 40), run_of(200)) as dashboard:
        await dashboard.press("h", "h")
        await dashboard.shows("Predictions are off")
        await dashboard.press("r")
        await wait_for_commands(dashboard, 1)


@pytest.mark.parametrize("size", SIZES)
async def test_end_card(size: tuple[int, int]) -> None:
    async with open_dashboard(size, run_of(600, cure=150)) as dashboard:
        await dashboard.drawn()
        dashboard.keeper.publish(StateChanged(state="waiting"))
        await dashboard.shows("The end of this run", "Step 150: residual off → on")
        compare(f"end-card-{size[0]}x{size[1]}", dashboard.text())


async def test_a_key_closes_the_end_card_and_acts() -> None:
    async with open_dashboard((120, 40), run_of(600)) as dashboard:
        await dashboard.drawn()
        dashboard.keeper.publish(StateChanged(state="waiting"))
        await dashboard.shows("Nothing was changed.")
        await dashboard.press("R")
        await dashboard.shows("Restart this run?")
        await dashboard.press("escape")
        await dashboard.wait_until(lambda: "Restart this run?" not in dashboard.text())
        assert "The end of this run" not in dashboard.text(), "it opens once"


@pytest.mark.parametrize(("key", "then"), [("R", "restart"), ("p", "gallery"), ("q", "quit")])
async def test_a_run_is_stopped_before_what_follows(key: str, then: str) -> None:
    async with open_dashboard((120, 40), run_of(100)) as dashboard:
        await dashboard.press(key)
        await dashboard.shows("enter answers · escape stays")
        await dashboard.press("s")
        await wait_for_commands(dashboard, 1)
        assert dashboard.keeper.received == [Stop()]
        await dashboard.wait_until(lambda: dashboard.app.return_value is not None)
        assert dashboard.app.then == then


async def test_a_restart_that_is_not_confirmed_leaves_the_run_alone() -> None:
    async with open_dashboard((120, 40), run_of(100)) as dashboard:
        await dashboard.press("R")
        await dashboard.shows("Restart this run?")
        await dashboard.press("escape")
        assert dashboard.keeper.received == []
        dashboard.keeper.publish(RunEnded(status="finished", step=100))
        await dashboard.shows("finished")
        await dashboard.press("q")
        await dashboard.wait_until(lambda: dashboard.app.return_value is not None)
        assert dashboard.app.then == "quit"


@pytest.mark.parametrize("key", ["R", "p"])
async def test_a_script_is_not_restarted(key: str) -> None:
    events = [started(scenario=None), StateChanged(state="running"), steps(0, [2.3, 2.2])]
    async with open_dashboard((120, 40), events, script=True) as dashboard:
        await dashboard.press(key)
        await dashboard.shows("q and run it again" if key == "R" else "the gallery is for presets")


async def test_a_caption_stays_until_the_next_one() -> None:
    async with open_dashboard((80, 24), run_of(100)) as dashboard:
        await dashboard.drawn()
        dashboard.keeper.publish(Noted(step=100, text="Twenty sigmoid layers. " * 5, level="caption"))
        await dashboard.shows("▸ Twenty sigmoid layers.")
        dashboard.keeper.publish(Noted(step=101, text="Now the residual connections.", level="caption"))
        await dashboard.shows("▸ Now the residual connections.")
        assert "Twenty sigmoid layers. Twenty" not in dashboard.text()


async def test_a_failed_run_can_be_restarted() -> None:
    async with open_dashboard((120, 40), run_of(100)) as dashboard:
        dashboard.keeper.publish(RunEnded(status="failed", step=100, reason="no memory"))
        await dashboard.shows("no memory")
        await dashboard.press("R")
        await dashboard.wait_until(lambda: dashboard.app.return_value is not None)
        assert (dashboard.app.return_value, dashboard.app.then) == (1, "restart")


async def test_the_story_can_be_read_while_torch_is_imported() -> None:
    table = to_table(presets.find("saddle")[1])
    async with open_dashboard((120, 40), [], scenario=table) as dashboard:
        await dashboard.press("h")
        await dashboard.shows("Story h", "A saddle: the gradient", "The run has not started yet.", "The loss is x^2")
        dashboard.keeper.publish(*run_of(100, "saddle"))
        await dashboard.shows("Next: watch until about step 300")


async def test_a_paused_run_asks_for_a_prediction_and_the_end_repeats_the_card() -> None:
    async with open_dashboard((120, 40), run_of(200)) as dashboard:
        dashboard.keeper.publish(StateChanged(state="paused"))
        await dashboard.press("h")
        await dashboard.shows("Next: press r, then space.")
        await dashboard.press("r")
        await dashboard.shows("what will the loss do")
        await dashboard.press("escape")
        dashboard.keeper.publish(StateChanged(state="waiting"))
        await dashboard.shows("The end of this run")
        await dashboard.press("y")
        await dashboard.wait_until(lambda: "The end of this run" not in dashboard.text())
        await dashboard.shows("What happened", "Nothing was changed.", "Next: restart (R), then press r.")


async def test_keys_that_come_faster_than_a_dialog_closes_do_nothing() -> None:
    async with open_dashboard((120, 40), run_of(600)) as dashboard:
        await dashboard.drawn()
        dashboard.keeper.publish(StateChanged(state="waiting"))
        await dashboard.shows("The end of this run")
        card = dashboard.app.screen
        assert isinstance(card, EndCardDialog)
        for key in ("semicolon", "semicolon", "escape"):
            card.post_message(events.Key(key, None))
        await dashboard.wait_until(lambda: dashboard.app.screen is dashboard.app.run_screen)
        await dashboard.press("h")
        await dashboard.shows("What happened")
        assert dashboard.app.screen is dashboard.app.run_screen
