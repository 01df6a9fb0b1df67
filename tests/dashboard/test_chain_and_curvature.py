"""The ledger's view and the curvature's: what they say, what they ask the run for, and when they ask it no longer."""

from __future__ import annotations

import math

import msgspec
import pytest
from driver import playing
from fake_run import curved, eigenvalues, ledger, started, vanishing

from tui_descent.dashboard.panels.chain_rule import ChainPanel, conclusion, dies, explodes
from tui_descent.dashboard.panels.curvature import CurvaturePanel
from tui_descent.dashboard.panels.sharpness import SharpnessPanel
from tui_descent.dashboard.panels.smallest_curvature import LowestPanel
from tui_descent.dashboard.view import View
from tui_descent.protocol.commands import Mark, WatchCurvature
from tui_descent.protocol.curvature import Limit
from tui_descent.protocol.events import AnyEvent, KnobState, LedgerEntry, LedgerTaken, StateChanged
from tui_descent.telemetry.history import History

PAST = vanishing(30)
ON, OFF = WatchCurvature(on=True), WatchCurvature(on=False)


def view(*events: AnyEvent) -> View:
    history = History()
    for event in [*PAST, *events]:
        history.apply(event)
    return View(history=history)


def text(panel: ChainPanel | CurvaturePanel | SharpnessPanel | LowestPanel, look: View, *size: int) -> str:
    return "\n".join(strip.text for strip in panel.draw(look, *(size or (100, 30))))


def test_a_row_a_block_with_the_output_at_the_top_and_the_one_where_it_dies() -> None:
    rows = text(ChainPanel(), view(ledger(20, 0.3))).splitlines()
    assert [row.split()[0] for row in rows[1:21]] == [f"blocks.{n}" for n in range(19, -1, -1)]
    assert rows[1].split()[1:4] == ["3.0e-01", "3.0e-01", "1e-07"]
    (marked,) = [row for row in rows if "◀ dies" in row]
    assert marked.split()[0] == "blocks.15", "0.3^4 is over 3e-3 and 0.3^5 is under it"
    assert "2.4e-03" in marked
    assert "dies at blocks.15" in rows[-1]


def test_one_that_explodes_and_one_that_flows() -> None:
    rows = text(ChainPanel(), view(ledger(20, 2.0))).splitlines()
    assert [row.split()[0] for row in rows if "◀ explodes" in row] == ["blocks.11"], "2^9 is the first over 333"
    flowing = ledger(20, 1.01).entries[::-1]
    assert (dies(flowing), explodes(flowing)) == (None, None)
    assert "flows: 1.220 times" in "".join(s.text for s in conclusion(flowing).segments)


def test_what_the_two_measurements_do_not_agree_on_is_said() -> None:
    assert "parts and autograd differ by up to 5.0e-02" in text(ChainPanel(), view(ledger(20, 1.0, off=0.05)))
    assert "differ" not in text(ChainPanel(), view(ledger(20, 1.0)))


@pytest.mark.parametrize("size", [(20, 3), (58, 16), (78, 18), (118, 34), (198, 54)])
def test_numbers_that_are_none_are_drawn_all_the_same(size: tuple[int, int]) -> None:
    odd: list[float | None] = [None, math.nan, math.inf, -math.inf, 0.0, 1e-300, 1e300, 1.0]
    entries = [
        LedgerEntry(block=f"[red]{n}", factor=a, autograd=b, discrepancy=a, product=b)
        for n, (a, b) in enumerate((a, b) for a in odd for b in odd)
    ]
    taken = ledger(9, 1.0)
    look = view(
        msgspec.structs.replace(taken, entries=entries),
        *(curved(n, a or 0.0, b or 0.0, a or 0.0) for n, (a, b) in enumerate((a, b) for a in odd for b in odd)),
    )
    for log in (True, False):
        seen = View(history=look.history, log=log)
        for panel in (ChainPanel(), SharpnessPanel(), LowestPanel(), CurvaturePanel()):
            drawn = panel.draw(seen, *size)
            assert len(drawn) <= size[1]
            assert {strip.cell_length for strip in drawn} <= {size[0]}
            panel.heading(seen)


async def test_a_deep_net_scrolls() -> None:
    async with playing((80, 24), [*vanishing(30, depth=60), ledger(20, 0.9, 60)]) as play:
        await play.press("4")
        await play.sees("blocks.59", "blocks 1-16 of 60")
        await play.press("down", "down", "down")
        await play.sees("blocks 4-19 of 60", "blocks.56")
        await play.press("up")
        await play.sees("blocks 3-18 of 60")
        assert play.keeper.asked == []


async def test_waiting_for_the_first_ledger_and_why_it_may_never_come() -> None:
    async with playing((120, 40), PAST) as play:
        await play.press("4")
        await play.sees("waiting for the first ledger")
    async with playing((120, 40), PAST) as play:
        play.keeper.tell(LedgerTaken(segment=0, step=30, entries=[]))
        await play.press("4")
        await play.sees("no ledger of this run", "this net has none of them")
    foreign = started(scenario=None, knobs=(KnobState(name="residual", unavailable="Net has none"),))
    async with playing((120, 40), [foreign, StateChanged(state="running")]) as play:
        await play.press("4")
        await play.sees("no ledger of this run", "Linear, activation, norm, skip")
        await play.press("5")
        await play.sees("no curvature of an own loop", "cannot be asked for")


async def test_the_view_asks_for_the_curvature_and_leaving_it_takes_that_back() -> None:
    async with playing((120, 40), PAST) as play:
        await play.sees("residual off")
        await play.press("m")
        await play.sees("done", "mark")
        await play.press("5")
        await play.until(lambda: play.keeper.asked == [Mark(), ON])
        await play.sees("waiting for the first curvature")
        play.keeper.tell(curved(30, 1.5, -0.2, negative_fraction=0.125))
        await play.sees("Sharpness", "1.500", "12.5%", "0.75 of it", "a way down on both sides", "Lanczos, converged")
        assert "mark" in play.text(), "it is no answer to the person"
        await play.press("4")
        await play.until(lambda: play.keeper.asked == [Mark(), ON, OFF])


async def test_a_view_opened_before_the_run_is_built_asks_once_it_is() -> None:
    async with playing((120, 40), [StateChanged(state="building")]) as play:
        await play.press("5")
        await play.sees("Sharpness")
        assert play.keeper.asked == []
        play.keeper.tell(started(), StateChanged(state="running"))
        await play.until(lambda: play.keeper.asked == [ON])


async def test_a_refusal_is_told() -> None:
    async with playing((120, 40), PAST) as play:
        play.keeper.reject = "an own loop's cannot be asked for"
        await play.press("5")
        await play.sees("rejected", "an own loop's cannot be asked for")


def test_each_figure_says_how_it_was_got_and_how_far_it_converged() -> None:
    found = text(CurvaturePanel(), view(curved(20, 3.0, 1e-5, 2.0, residual_min=9.0)), 100, 6).splitlines()
    assert "3.000 ± 3e-06" in found[0]
    assert "1.5 of it: steps grow" in found[1]
    assert "not converged: 0 as far as can be told" in found[2]
    assert "not counted yet" in found[3]
    whole = text(CurvaturePanel(), view(curved(20, 3.0, 1.0, None, how="full Hessian", residual_min=0.0)), 100, 6)
    assert "full Hessian, exact: a bowl" in whole
    assert "not known for this optimizer" in whole


def test_an_adaptive_optimizers_limit_is_about_the_hessian_as_it_scales_it() -> None:
    limit = Limit(lambda_max=38_000.0, formula="2(1+β₁)/((1−β₁)η)", preconditioned=True)
    plain = msgspec.structs.replace(curved(20, 3.0, -1.0), limit=limit)
    assert "after the first step" in text(CurvaturePanel(), view(plain), 100, 6)
    scaled = msgspec.structs.replace(plain, scaled=eigenvalues(19_000.0, -5.0))
    found = text(CurvaturePanel(), view(scaled), 100, 6)
    assert "scaled λmax is 0.5 of it: steps settle" in found
    assert "28 Hessian-vector products" in found
    assert "scaled by the optimizer" in SharpnessPanel().heading(view(scaled))[1]


def test_a_zoomed_panel_is_one_of_the_view() -> None:
    look = view(curved(20, 1.0, -1.0))
    rows = text(SharpnessPanel(), look, 80, 8)
    assert "─" in rows
    assert "•" in rows
