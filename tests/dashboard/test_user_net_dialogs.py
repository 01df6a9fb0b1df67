"""Steering a user's net on screen: the activation dialog lists its modules, refusals name the reason and are logged."""

from __future__ import annotations

import pytest
from driver import open_dashboard
from factories import started, vanishing

from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import CommandDone, KnobState, RunStarted
from tui_descent.scenario.knobs import KNOBS

HIDDEN = tuple(f"features.{n}.block.{m}" for n in range(8) for m in ("0.2", "1.activation"))
GATES = tuple((f"features.{n}.block.1.scale_activation", "a gate (it multiplies another tensor)") for n in range(8))
LEFT = (*GATES, ("head.3", "the net's output"))


def events(*states: KnobState) -> list[object]:
    others = tuple(state for state in started().knobs if state.name not in {state.name for state in states})
    knobs = (*others, *states)
    return [started(knobs=knobs) if isinstance(event, RunStarted) else event for event in vanishing(30)]


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
@pytest.mark.parametrize("many", [True, False])
async def test_the_activation_dialog_lists_what_it_changes_and_what_it_leaves(
    size: tuple[int, int], *, many: bool
) -> None:
    hidden, left = (HIDDEN, LEFT) if many else (HIDDEN[:2], LEFT[-1:])
    state = KnobState(name="activation", value="mixed", acts_on=hidden, left_alone=left)
    async with open_dashboard(size, events(state)) as dashboard:  # type: ignore[arg-type]
        await dashboard.shows("Gradient flow")
        await dashboard.press("a")
        await dashboard.shows(f"Activation of {len(hidden)} hidden modules", "escape cancels", "identity")
        await dashboard.shows(f"changes {len(hidden)}: features.0.block.0.2, features.0.block.1.activation")
        if many and size == (80, 24):
            await dashboard.shows("more gates and outputs")
        else:
            await dashboard.shows("keeps head.3: the net's output")
        assert "multiplies" not in dashboard.text()


async def test_the_activation_dialog_of_a_block_lists_its_own_modules() -> None:
    names = ("blocks.12.act", "blocks.13.act", "blocks.13.gate")
    state = KnobState(name="activation", acts_on=names[:2], left_alone=((names[2], "a gate (it multiplies)"),))
    async with open_dashboard((120, 40), events(state)) as dashboard:  # type: ignore[arg-type]
        await dashboard.shows("Gradient flow")
        await dashboard.press("down")
        layer = dashboard.app.run_screen.view.layers[dashboard.app.run_screen.view.selected or 0]
        block = ".".join(layer.name.split(".")[:2])
        number = block.split(".")[1] if layer.block is not None else None
        await dashboard.press("a")
        if number is None:
            await dashboard.shows("is not in a block")
            return
        await dashboard.shows(f"Activation of {block}")
        assert ("changes 1" in dashboard.text()) == (number in ("12", "13"))


@pytest.mark.parametrize(
    ("key", "knob", "reason"),
    [
        ("a", "activation", "no activation modules; F.relu etc. cannot be changed"),
        ("a", "activation", "none may change; …der.main.decoder.3: unknown function"),
        ("r", "residual", "no block keeps its input's shape"),
        ("n", "norm", "only built-in nets have a place for new norm layers"),
    ],
)
async def test_a_refusal_fits_eighty_columns_and_stands_in_the_log(key: str, knob: str, reason: str) -> None:
    async with open_dashboard((80, 24), events(KnobState(name=knob, unavailable=reason))) as dashboard:  # type: ignore[arg-type]
        await dashboard.shows("Gradient flow")
        await dashboard.press(key, key)
        await dashboard.shows(f"not now  {KNOBS[knob].title}: {reason}")
        await dashboard.press("3")
        await dashboard.shows("Events", reason[:40])
        assert sum(reason in getattr(entry, "text", "") for entry in dashboard.app.bridge.history.log) == 1
        assert dashboard.keeper.steered == []


async def test_the_present_value_is_answered_in_words() -> None:
    async with open_dashboard((80, 24), vanishing(30), replies=False) as dashboard:
        await dashboard.shows("Gradient flow")
        await dashboard.press("a", "enter")
        await dashboard.wait_until(lambda: bool(dashboard.keeper.steered))
        assert dashboard.keeper.steered == [TurnKnob(knob="activation", value="sigmoid")]
        client = dashboard.app.bridge.client
        assert client is not None
        what = "activation is sigmoid already"
        asked = dashboard.app.bridge._unanswered
        (request,) = (number for number, command in asked.items() if isinstance(command, TurnKnob))
        dashboard.keeper.publish(CommandDone(client=client, request=request, segment=0, step=30, what=what))
        await dashboard.shows("nothing to change  activation is sigmoid already")


async def test_keys_that_cannot_act_on_blocks_are_not_offered_for_them() -> None:
    states = (KnobState(name="residual", value="own"), KnobState(name="norm", unavailable="only built-in nets"))
    async with open_dashboard((120, 40), events(*states)) as dashboard:  # type: ignore[arg-type]
        await dashboard.shows("select a layer · a acts on all blocks", "residual own")
