"""The steps of the backward pass: their product, a block's formula and parts, the keys, and the screen."""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec
import pytest
from driver import compare, open_dashboard
from factories import ledger, rewound, started, turned, vanishing
from nets import digit_batches, loss_of, mlp

from tui_descent.dashboard.panels.backward_pass import backward_steps, draw_backward_pass
from tui_descent.dashboard.panels.block_parts import OTHER_PARTS, BlockParts, parts_of
from tui_descent.dashboard.panels.chain_rule import ChainRulePanel
from tui_descent.dashboard.text.line import Line
from tui_descent.dashboard.view import View
from tui_descent.instruments.chain_rule_ledger import ChainRuleLedger
from tui_descent.instruments.net_structure import structure
from tui_descent.protocol.commands import MeasureBackwardPass
from tui_descent.protocol.events import AnyEvent, BlockPart, KnobState, LedgerEntry, LedgerTaken, PartFactor, RunEnded
from tui_descent.scenario.knobs import CHANGE_STEPS
from tui_descent.telemetry.history import History
from tui_descent.training.steering import surgery

SIZES = [(80, 24), (120, 40), (200, 60)]
READING = [*vanishing(140), ledger(130, 0.3)]


def history_of(*events: AnyEvent) -> History:
    history = History()
    for event in (started(), *events):
        history.apply(event)
    return history


def taken(factors: list[float | None]) -> LedgerTaken:
    """A reading with these factors, the block at the input first."""
    entries = [
        LedgerEntry(block=f"blocks.{n}", factor=f, autograd=f, discrepancy=0.0, product=None)
        for n, f in enumerate(factors)
    ]
    return LedgerTaken(segment=0, step=5, entries=entries)


@pytest.mark.parametrize(
    "form",
    [{"activation": "sigmoid"}, {"activation": "relu", "norm": {"name": "layer", "where": "mid"}, "residual": "on"}],
    ids=str,
)
def test_the_product_of_the_steps_is_that_of_the_ledger(form: dict[str, Any]) -> None:
    net = mlp(depth=7, **form)
    instrument = ChainRuleLedger([(u.name, u.module) for u in structure(net).units])
    instrument.attach()
    loss_of(net, digit_batches(1)[0]).backward()
    instrument.detach()
    entries = instrument.entries().result()
    steps = backward_steps(LedgerTaken(segment=0, step=0, entries=entries), history_of())
    assert [step.block for step in steps] == [entry.block for entry in reversed(entries)]
    assert [step.product for step in steps] == pytest.approx([e.product for e in reversed(entries)], rel=1e-12)
    assert [step.before for step in steps] == [1.0, *(step.product for step in steps[:-1])]


def test_an_unknown_factor_counts_as_one() -> None:
    steps = backward_steps(taken([0.5, None, 3.0]), history_of())
    assert [step.product for step in steps] == [3.0, 3.0, 1.5]
    drawn = "\n".join(strip.text for strip in draw_backward_pass(steps, 1, {}, Line(), 78, 18))
    assert "product 3: the factor of this block is not known, it counts as 1" in drawn


@pytest.mark.parametrize(
    ("norm", "where", "skip", "formula", "order"),
    [
        ("none", "pre", False, "Wᵀ(φ′ ⊙ δ)", ["φ′", "Wᵀ"]),
        ("none", "pre", True, "g·δ + Wᵀ(φ′ ⊙ s·δ)", ["s", "φ′", "Wᵀ", "g·δ"]),
        ("layer", "pre", False, "N′(Wᵀ(φ′ ⊙ δ))", ["φ′", "Wᵀ", "N′"]),
        ("rms", "mid", True, "g·δ + Wᵀ N′(φ′ ⊙ s·δ)", ["s", "φ′", "N′", "Wᵀ", "g·δ"]),
        ("layer", "post", True, "g·δ + Wᵀ(φ′ ⊙ N′(s·δ))", ["s", "N′", "φ′", "Wᵀ", "g·δ"]),
    ],
)
def test_formula_and_explanations_follow_the_order_of_the_parts(
    norm: str, where: str, skip: bool, formula: str, order: list[str]
) -> None:
    parts = BlockParts("silu", norm, where, skip)  # silu has the longest slope
    assert parts.formula() == f"∂L/∂in = {formula}, δ = ∂L/∂out"
    assert [part.symbol for part in parts.explanations()] == order
    assert all(len(part.meaning) <= 61 for part in parts.explanations()), "has to fit a screen of 80 columns"


def test_parts_are_those_at_the_step_of_the_reading() -> None:
    history = history_of(
        turned(20, "sigmoid", "relu", knob="activation", target="blocks.3", way="blend"),
        turned(30, "off", "on", scale=0.25),
        turned(40, "none", "rms", knob="norm", where="mid"),
    )

    def parts(block: str, step: int) -> BlockParts:
        return parts_of(history, block, step, 20)

    assert parts("blocks.3", 19) == BlockParts("sigmoid", gate=1.0, branch=20**-0.5)
    assert parts("blocks.3", 25)[:1] == ("relu",)
    assert "slope of sigmoid → relu" in parts("blocks.3", 68).explanations()[1].meaning
    assert "slope of relu, 1 if z > 0" in parts("blocks.3", 69).explanations()[1].meaning
    assert parts("blocks.2", 69).activation == "sigmoid"
    assert not parts("blocks.2", 29).skip
    assert (parts("blocks.2", 48).skip_changes, parts("blocks.2", 49).skip_changes) == (True, False)
    explained = parts("blocks.2", 49).explanations()
    assert "s = 0.25" in explained[0].meaning
    assert "g = 1" in explained[-1].meaning
    assert (parts("blocks.2", 39).norm, parts("blocks.2", 40).norm, parts("blocks.2", 40).where) == (
        *("none", "rms", "mid"),
    )


def test_a_skip_that_is_being_closed_is_still_a_part() -> None:
    history = history_of(turned(10, "on", "off", way="rotation"))
    assert parts_of(history, "blocks.0", 58, 4).skip
    assert not parts_of(history, "blocks.0", 59, 4).skip


def test_an_undone_change_is_no_part_of_a_block() -> None:
    history = history_of(turned(10, "off", "on"), rewound((0, 60), (0, 10), 1, back=True))
    assert not parts_of(history, "blocks.0", 20, 4).skip
    kept = history_of(turned(10, "off", "on"), rewound((0, 60), (0, 40), 1, back=True, in_force=(1,)))
    assert parts_of(kept, "blocks.0", 50, 4).skip


def test_parts_at_the_start_are_those_of_the_scenario() -> None:
    model = {
        "name": "mlp",
        "norm": {"name": "layer", "where": "post"},
        "residual": {"name": "on", "scale": 0.5},
    }
    knobs = tuple(KnobState(name=n, value=v) for n, v in (("norm", "layer"), ("residual", "on")))
    history = history_of(started(scenario={"model": model}, knobs=knobs))
    assert parts_of(history, "blocks.0", 0, 4) == BlockParts("", "layer", "post", skip=True, gate=1.0, branch=0.5)
    assert "slope of the activation" in parts_of(history, "blocks.0", 0, 4).explanations()[2].meaning
    own_loop = history_of(started(scenario=None, knobs=()))
    assert parts_of(own_loop, "blocks.0", 0, 4).formula().startswith("∂L/∂in = Wᵀ(φ′ ⊙ δ)")


def test_gradual_changes_take_as_many_steps_as_in_the_trainer() -> None:
    ways = {way: steps for way, steps in surgery.WAY_STEPS.items() if steps > 1}
    assert {**ways, "blend": surgery.BLEND_STEPS} == CHANGE_STEPS


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.0], ids=["shrinks", "stays as it is", "grows"])
def test_the_bar_grows_away_from_one(factor: float) -> None:
    steps = backward_steps(ledger(20, factor), history_of())
    rows = [strip.text for strip in draw_backward_pass(steps, 19, {}, Line(), 118, 34)]
    bars = [row.count("█") for row in rows[1:21]]
    assert bars == sorted(bars)
    assert bars[-1] > 5 * bars[0] or factor == 1.0
    word = "shrinks" if factor < 1 else "grows" if factor > 1 else "stays as it is"
    assert f"here the gradient {word}" in "\n".join(rows)
    column = rows[0].index(" 1 ") + 1
    sides = {("left" if row.index("█") < column else "right") for row in rows[1:21] if "█" in row}
    assert sides == ({"left"} if factor < 1 else {"right"} if factor > 1 else set())


def attention_pass(step: int) -> LedgerTaken:
    """A backward pass of a transformer with one layer, without formulas."""
    inner = PartFactor("out", 2.0), PartFactor("activation", 0.5), PartFactor("weights", 1.5), PartFactor("norm", 0.4)
    attention = PartFactor("scale", 0.5), PartFactor("attention", 0.25), PartFactor("skip", 8.0)
    parts = attention, (PartFactor("scale", 0.5), *inner, PartFactor("skip", 4.0))
    entries = [
        LedgerEntry(block=f"blocks.{n}", factor=f, autograd=f, discrepancy=None, product=p, parts=parts[n])
        for n, (f, p) in enumerate([(1.0, 1.2), (1.2, 1.2)])
    ]
    return LedgerTaken(segment=0, step=step, entries=entries)


def test_other_parts_fit_a_screen_of_80_columns() -> None:
    assert all(len(symbol) <= 4 and len(meaning) <= 61 for symbol, meaning in OTHER_PARTS.values())


def test_a_norm_after_the_skip_is_part_of_both_terms() -> None:
    parts: list[BlockPart] = ["norm", "scale", "dropout", "out", "activation", "weights", "skip"]
    block = BlockParts("gelu", "rms", "post", gate=1.0, branch=0.5)
    assert block.formula(parts) == "∂L/∂in = g·N′ δ + Wᵀ φ′ W₂ᵀ m s·N′ δ, δ = ∂L/∂out"
    assert [one.part for one in block.explanations(parts)] == parts


@pytest.mark.parametrize("size", [(1, 1), (5, 2), (20, 3), (38, 7), (58, 16), (78, 18), (118, 34), (198, 54)])
def test_every_reading_fits_every_size(size: tuple[int, int]) -> None:
    odd: list[float | None] = [None, math.nan, math.inf, -math.inf, 0.0, 5e-324, 1e300, 1e300, 1.0, 1e-300, 0.5]
    random.Random(4).shuffle(odd)
    readings = [*(taken([f]) for f in odd), taken(odd), taken([0.9] * 300), attention_pass(5)]
    for reading in readings:
        steps = backward_steps(reading, history_of(turned(0, "off", "on")))
        for at in {0, len(steps) // 2, len(steps) - 1}:
            drawn = draw_backward_pass(steps, at, {"blocks.0": "◀ explodes"}, Line().add("end"), *size)
            assert len(drawn) <= size[1]
            assert {strip.cell_length for strip in drawn} == {size[0]}
            if size[0] > 20:
                assert any("▸" in strip.text for strip in drawn), "the block at hand is always on the screen"


def measured(reading: LedgerTaken, step: int, *, skip: bool = False) -> LedgerTaken:
    """The same reading with factors of the parts: φ′ 0.2 and Wᵀ 1.5; with a skip also the scale 0.5 and the rest."""

    def parts(factor: float) -> tuple[PartFactor, ...]:
        inner = PartFactor("activation", 0.2), PartFactor("weights", 1.5)
        return (PartFactor("scale", 0.5), *inner, PartFactor("skip", factor / 0.15)) if skip else inner

    entries = [msgspec.structs.replace(entry, parts=parts(entry.factor or 0.0)) for entry in reading.entries]
    return msgspec.structs.replace(reading, step=step, entries=entries)


@pytest.mark.parametrize("size", SIZES)
async def test_backward_pass_screen(size: tuple[int, int]) -> None:
    events = [*vanishing(180), measured(ledger(175, 0.3), 175, skip=True)]
    async with open_dashboard(size, events) as dashboard:
        await dashboard.press("4", *["enter"] * 6)
        await dashboard.shows("block 6 of 20")
        await dashboard.drawn()
        compare(f"backward-{size[0]}x{size[1]}", dashboard.text())


@pytest.mark.parametrize("size", SIZES[:2])
async def test_backward_pass_of_a_transformer(size: tuple[int, int]) -> None:
    async with open_dashboard(size, [*vanishing(180), attention_pass(175)]) as dashboard:
        await dashboard.press("4", "enter")
        await dashboard.shows("block 1 of 2")
        await dashboard.drawn()
        compare(f"backward-transformer-{size[0]}x{size[1]}", dashboard.text())


async def test_enter_goes_down_block_by_block_and_leaves_at_the_end() -> None:
    async with open_dashboard((80, 24), [*vanishing(140, depth=3), ledger(130, 0.05, 3)]) as dashboard:
        await dashboard.press("4")
        await dashboard.shows("enter step by step")
        await dashboard.press("enter")
        await dashboard.shows("at step 130, frozen · block 1 of 3", "1 × 0.05 = 0.05", "next block")
        await dashboard.press("enter", "enter")
        await dashboard.shows("block 3 of 3", "0.0025 × 0.05 = 0.000125", "enter ends", "vanishes at blocks.1")
        await dashboard.press("enter")
        await dashboard.shows("by parts", "enter step by step")
        assert dashboard.keeper.received == [MeasureBackwardPass()], "asked once, when the steps begin"


async def test_arrows_move_and_escape_leaves_the_steps() -> None:
    async with open_dashboard((120, 40), READING) as dashboard:
        await dashboard.press("4", "enter", "down", "down", "up")
        await dashboard.shows("block 2 of 20")
        await dashboard.press(*["up"] * 4)
        await dashboard.shows("block 1 of 20")
        await dashboard.press(*["down"] * 30)
        await dashboard.shows("block 20 of 20")
        await dashboard.press("escape")
        await dashboard.shows("by parts")


async def test_the_keys_in_the_border_can_be_clicked() -> None:
    async with open_dashboard((120, 40), READING) as dashboard:
        await dashboard.press("4")

        async def click(words: str) -> None:
            await dashboard.shows(words)
            rows = dashboard.text().splitlines()
            x, y = next((row.index(words), y) for y, row in enumerate(rows) if words in row)
            await dashboard.pilot.click(offset=(x, y))

        await click("enter step by step")
        await dashboard.shows("block 1 of 20")
        await click("enter next block")
        await dashboard.shows("block 2 of 20")
        await click("escape leaves")
        await dashboard.shows("by parts")


async def test_numbers_are_frozen_while_stepping() -> None:
    async with open_dashboard((120, 40), READING) as dashboard:
        await dashboard.press("4", "enter")
        await dashboard.shows("at step 130, frozen")
        dashboard.keeper.publish(ledger(160, 0.7))
        await dashboard.press("enter")
        await dashboard.shows("block 2 of 20", "0.3 × 0.3 = 0.09")
        await dashboard.press("escape")
        await dashboard.shows("at step 160", "7.0e-01")


async def test_the_parts_get_their_factors_when_they_have_been_measured() -> None:
    async with open_dashboard((120, 40), READING) as dashboard:
        await dashboard.press("4", "enter", "enter")
        await dashboard.shows("at step 130, frozen", "block 2 of 20", "unit by unit × the slope of sigmoid")
        assert "× 0.2" not in dashboard.text()
        dashboard.keeper.publish(measured(ledger(137, 0.3), 137))
        dashboard.keeper.publish(ledger(138, 0.7))  # a usual reading, without parts
        await dashboard.shows("at step 137, frozen", "block 2 of 20", "× 0.200   = 6.0e-02", "× 1.50    = 9.0e-02")
        dashboard.keeper.publish(measured(ledger(150, 0.7), 150))  # for another viewer
        await dashboard.press("enter")
        await dashboard.shows("at step 137, frozen", "block 3 of 20", "× 0.200   = 1.8e-02")


async def test_a_net_without_formulas_is_measured_when_asked() -> None:
    nothing = LedgerTaken(segment=0, step=20, entries=[])
    async with open_dashboard((80, 24), [*vanishing(30), nothing]) as dashboard:
        await dashboard.press("4")
        await dashboard.shows("press enter to measure a backward pass")
        await dashboard.press("enter")
        await dashboard.wait_until(lambda: dashboard.keeper.received == [MeasureBackwardPass()])
        dashboard.keeper.publish(attention_pass(31))
        dashboard.keeper.publish(nothing)
        await dashboard.shows("at step 31, frozen", "block 1 of 2", "g·δ + N′ Wᵀ φ′ W₂ᵀ s·δ, δ", "W₂ᵀ  × 2.00")
        await dashboard.press("enter")
        await dashboard.shows("block 2 of 2", "g·δ + A′ s·δ, δ", "A′   × 0.250", "softmax")
        await dashboard.press("escape")
        await dashboard.shows("of each block at step 31", "blocks.1", "enter step by step")


async def test_steps_of_a_run_that_has_ended_ask_for_nothing() -> None:
    async with open_dashboard((80, 24), [*READING, RunEnded(status="finished", step=140)]) as dashboard:
        await dashboard.press("4", "enter")
        await dashboard.shows("block 1 of 20")
        assert dashboard.keeper.received == []


async def test_another_view_leaves_the_steps_and_there_enter_opens_a_layer() -> None:
    async with open_dashboard((120, 40), READING) as dashboard:
        await dashboard.press("4", "enter", "2", "enter")
        await dashboard.shows("L2 norm of the (clipped) weight gradient")
        await dashboard.press("escape", "4")
        await dashboard.shows("by parts")


async def test_enter_opens_a_layer_while_another_panel_of_the_view_is_zoomed() -> None:
    async with open_dashboard((200, 60), READING) as dashboard:
        await dashboard.press("4", "tab", "z", "enter")
        await dashboard.shows("L2 norm of the (clipped) weight gradient")


async def test_escape_leaves_the_steps_before_the_zoom() -> None:
    async with open_dashboard((200, 60), READING) as dashboard:
        await dashboard.press("4", "z", "enter")
        await dashboard.shows("block 1 of 20")
        await dashboard.press("escape")
        await dashboard.shows("by parts")
        assert dashboard.app.run_screen.has_class("zoomed")
        await dashboard.press("escape")
        await dashboard.wait_until(lambda: not dashboard.app.run_screen.has_class("zoomed"))


async def test_enter_without_a_reading_says_so() -> None:
    async with open_dashboard((80, 24), vanishing(30)) as dashboard:
        await dashboard.press("4", "enter")
        await dashboard.shows("no chain-rule reading to step through")


def test_a_reading_without_blocks_cannot_be_stepped_through() -> None:
    history = history_of(msgspec.structs.replace(ledger(5, 1.0), entries=[]))
    panel = ChainRulePanel()
    assert not panel.step(View(history=history))
    assert not panel.stepping
