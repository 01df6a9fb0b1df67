"""The activation dialog: what it shows of the highlighted activation, and the live pre-activations below the curves."""

from __future__ import annotations

import re

import pytest
from driver import Dashboard, compare, open_dashboard
from factories import started, vanishing
from test_lens_view import histogram, taken

from tui_descent.dashboard.activation_functions import FUNCTIONS, ActivationFunction
from tui_descent.dashboard.dialogs.activation import FORMULAS
from tui_descent.dashboard.pictures.lens import draw_choice
from tui_descent.protocol.commands import WatchLens
from tui_descent.protocol.events import AnyEvent, KnobState, RunStarted
from tui_descent.protocol.lens import ActivationPart
from tui_descent.scenario.knobs import KNOBS

EARLIER = vanishing(30)
SIZES = [(80, 24), (120, 40), pytest.param((200, 60), marks=pytest.mark.heavy)]


async def open_on(dashboard: Dashboard, name: str) -> None:
    await dashboard.drawn()
    await dashboard.press("a", "home", *["down"] * KNOBS["activation"].choices.index(name))
    await dashboard.shows("escape cancels")


def test_every_choice_has_a_formula_a_use_and_curves() -> None:
    choices = KNOBS["activation"].choices
    assert set(choices) == set(FORMULAS)
    assert set(choices) <= set(FUNCTIONS)
    for formula, derivative, use in FORMULAS.values():
        assert all((formula, derivative, use))
        assert len(formula) < 38, "fits beside the list at 80 columns"
        assert len(derivative) < 38
        assert len(use) <= 76, "fits into two rows there"


@pytest.mark.parametrize("size", SIZES)
async def test_each_activation_shows_its_formulas_and_its_use(size: tuple[int, int]) -> None:
    async with open_dashboard(size, EARLIER) as dashboard:
        await open_on(dashboard, "relu")
        for formula, derivative, use in FORMULAS.values():
            await dashboard.shows(f"= {formula.format(slope=0.01)}", f"f′(z) = {derivative}")
            await dashboard.wait_until(lambda use=use: all(word in dashboard.text() for word in use.split()))  # type: ignore[misc]
            assert dashboard.text().count("f′") >= 2, "the derivative's curve has a label"
            await dashboard.press("down")


@pytest.mark.parametrize("size", SIZES)
async def test_activation_dialog_screens(size: tuple[int, int]) -> None:
    name = f"{size[0]}x{size[1]}"
    async with open_dashboard(size, EARLIER) as dashboard:
        await open_on(dashboard, "gelu")
        await dashboard.shows("Φ(z) + z·φ(z)")
        await dashboard.drawn()
        compare(f"activation-gelu-{name}", dashboard.text())
        dashboard.keeper.publish(taken())
        await dashboard.press("down", "down")
        await dashboard.shows("how often z", "LSTM")
        await dashboard.drawn()
        compare(f"activation-sigmoid-{name}", dashboard.text())


async def test_pre_activations_are_requested_only_while_the_dialog_is_open() -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await dashboard.drawn()
        await dashboard.press("down", "down", "a")
        layer = dashboard.app.run_screen.view.layers[dashboard.app.run_screen.view.selected or 0].name
        received = dashboard.keeper.received
        await dashboard.wait_until(lambda: received == [WatchLens(on=True, layer=layer)])
        dashboard.keeper.publish(taken(asked=layer, layer=layer, histogram=histogram(16.0)))
        await dashboard.shows("how often z")
        await dashboard.press("escape")
        await dashboard.wait_until(lambda: received[1:] == [WatchLens(on=False)])


async def test_a_layer_without_a_histogram_shows_the_curves_alone() -> None:
    async with open_dashboard((80, 24), EARLIER) as dashboard:
        await open_on(dashboard, "tanh")
        dashboard.keeper.publish(taken(parts=(), histogram=None, reason="no activation module follows this layer"))
        await dashboard.drawn()
        assert "how often z" not in dashboard.text()
        assert "1 − tanh² z ≤ 1" in dashboard.text()


@pytest.mark.parametrize("size", SIZES)
async def test_the_modules_of_a_user_net_leave_room_for_the_curves(size: tuple[int, int]) -> None:
    hidden = tuple(f"features.{n}.block.{m}" for n in range(40) for m in ("0.2", "1.activation"))
    state = KnobState(name="activation", value="mixed", acts_on=hidden, left_alone=(("head.3", "the net's output"),))
    knobs = (*(s for s in started().knobs if s.name != "activation"), state)
    earlier: list[AnyEvent] = [started(knobs=knobs) if isinstance(e, RunStarted) else e for e in EARLIER]
    async with open_dashboard(size, earlier) as dashboard:
        await open_on(dashboard, "silu")
        dashboard.keeper.publish(taken())
        await dashboard.shows("changes 80: features.0", "keeps head.3", "how often z")
        rows = [row for row in dashboard.text().splitlines() if re.search("[⠁-⣿]", row[30:-6])]
        assert len(rows) >= 3, dashboard.text()


@pytest.mark.parametrize("name", KNOBS["activation"].choices)
@pytest.mark.parametrize("limit", [4.0, 8.0, 1024.0])
def test_the_picture_has_the_size_asked_for_and_shows_both_curves(name: str, limit: float) -> None:
    function = ActivationFunction((ActivationPart(name=name),))
    for histogram_ in (None, histogram(limit)):
        for width, height in ((46, 14), (84, 28), (14, 5), (12, 3), (9, 2), (0, 0)):
            rows = draw_choice(function, histogram_, width, height)
            assert len(rows) <= max(0, height)
            assert all(row.cell_length == width for row in rows)
            text = "\n".join(row.text for row in rows)
            if width >= 46:
                assert "f′" in text
                assert re.search(r"f(?!′)", text), text
