"""The chain-rule and curvature views: what they show, and when they request the curvature."""

from __future__ import annotations

import math

import msgspec
import pytest
from driver import open_dashboard
from factories import curved, eigenvalues, ledger, started, vanishing

from tui_descent.dashboard.panels.chain_rule import ChainRulePanel, conclusion, exploding_at, vanishing_at
from tui_descent.dashboard.panels.curvature import CurvaturePanel
from tui_descent.dashboard.panels.sharpness import SharpnessPanel
from tui_descent.dashboard.panels.smallest_curvature import SmallestCurvaturePanel
from tui_descent.dashboard.view import View
from tui_descent.protocol.commands import Mark, WatchCurvature
from tui_descent.protocol.curvature_reading import StabilityLimit
from tui_descent.protocol.events import AnyEvent, KnobState, LedgerEntry, LedgerTaken, Noted, RunEnded, StateChanged
from tui_descent.telemetry.history import History

EARLIER = vanishing(30)
ON, OFF = WatchCurvature(on=True), WatchCurvature(on=False)


def view(*events: AnyEvent) -> View:
    history = History()
    for event in [*EARLIER, *events]:
        history.apply(event)
    return View(history=history)


def text(
    panel: ChainRulePanel | CurvaturePanel | SharpnessPanel | SmallestCurvaturePanel, look: View, *size: int
) -> str:
    return "\n".join(strip.text for strip in panel.draw(look, *(size or (100, 30))))


def test_chain_rule_panel_has_a_row_per_block_and_flags_where_the_gradient_vanishes() -> None:
    rows = text(ChainRulePanel(), view(ledger(20, 0.3))).splitlines()
    assert [row.split()[0] for row in rows[1:21]] == [f"blocks.{n}" for n in range(19, -1, -1)]
    assert rows[1].split()[1:4] == ["3.0e-01", "3.0e-01", "1e-07"]
    (marked,) = [row for row in rows if "◀ vanishes" in row]
    assert marked.split()[0] == "blocks.15", "0.3^4 is over 3e-3 and 0.3^5 is under it"
    assert "2.4e-03" in marked
    assert "vanishes at blocks.15" in rows[-1]


def test_chain_rule_panel_tells_exploding_from_healthy_gradients() -> None:
    rows = text(ChainRulePanel(), view(ledger(20, 2.0))).splitlines()
    assert [row.split()[0] for row in rows if "◀ explodes" in row] == ["blocks.11"], "2^9 is the first over 333"
    flowing = ledger(20, 1.01).entries[::-1]
    assert (vanishing_at(flowing), exploding_at(flowing)) == (None, None)
    assert "flows: the gradient at the first block is 1.220 times" in "".join(
        s.text for s in conclusion(flowing).segments
    )


def test_chain_rule_panel_says_why_there_will_be_no_reading() -> None:
    note = Noted(
        step=0, text="not measured: the chain-rule factors, because g.0 ran 4 times in one step", level="warning"
    )
    shown = text(ChainRulePanel(), view(note))
    assert "waiting" not in shown
    assert "cannot be measured in this run" in shown
    assert "g.0 ran 4 times in one step" in shown


def test_chain_rule_panel_reports_a_discrepancy() -> None:
    assert "the two computations differ by up to 5.0e-02" in text(ChainRulePanel(), view(ledger(20, 1.0, off=0.05)))
    assert "differ" not in text(ChainRulePanel(), view(ledger(20, 1.0)))


@pytest.mark.parametrize("size", [(20, 3), (58, 16), (78, 18), (118, 34), (198, 54)])
def test_panels_draw_non_finite_readings(size: tuple[int, int]) -> None:
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
        for panel in (ChainRulePanel(), SharpnessPanel(), SmallestCurvaturePanel(), CurvaturePanel()):
            drawn = panel.draw(seen, *size)
            assert len(drawn) <= size[1]
            assert {strip.cell_length for strip in drawn} <= {size[0]}
            panel.heading(seen)


async def test_chain_rule_panel_of_a_deep_net_scrolls() -> None:
    async with open_dashboard((80, 24), [*vanishing(30, depth=60), ledger(20, 0.9, 60)]) as dashboard:
        await dashboard.press("4")
        await dashboard.shows("blocks.59", "blocks 1-16 of 60")
        await dashboard.press("down", "down", "down")
        await dashboard.shows("blocks 4-19 of 60", "blocks.56")
        await dashboard.press("up")
        await dashboard.shows("blocks 3-18 of 60")
        assert dashboard.keeper.received == []


async def test_chain_rule_and_curvature_views_say_why_they_are_empty() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.press("4")
        await dashboard.shows("waiting for the first chain-rule reading")
    nothing = LedgerTaken(segment=0, step=30, entries=[])
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.press("4")
        dashboard.keeper.publish(nothing)
        await dashboard.shows("press enter to measure a backward pass", "enter step by step")
        dashboard.keeper.publish(RunEnded(status="finished", step=30))
        await dashboard.shows("enter was not pressed here during the run")
    async with open_dashboard((120, 40), [started(scenario=None, knobs=()), nothing]) as dashboard:
        await dashboard.press("4")
        await dashboard.shows("not available for this run", "this net has no such blocks")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=str)
async def test_views_without_readings_in_a_user_loop_say_why_in_full(size: tuple[int, int]) -> None:
    user_loop = started(scenario=None, knobs=(KnobState(name="residual", unavailable="Net has none"),))
    async with open_dashboard(size, [user_loop, StateChanged(state="running")]) as dashboard:
        await dashboard.press("4")
        await dashboard.shows("not available for this run", "Linear, activation, norm layer, skip")
        await dashboard.press("5")
        await dashboard.shows("not available for your own loop", "cannot be replayed")
        assert not any("…" in row for row in dashboard.text().splitlines()[:-3])
        await dashboard.press("4", "m")
        await dashboard.wait_until(lambda: dashboard.keeper.received == [Mark()])  # no request that would be rejected


async def test_curvature_is_requested_only_while_its_view_is_open() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        await dashboard.shows("residual off")
        await dashboard.press("m")
        await dashboard.shows("done", "mark")
        await dashboard.press("5")
        await dashboard.wait_until(lambda: dashboard.keeper.received == [Mark(), ON])
        await dashboard.shows("waiting for the first curvature reading")
        dashboard.keeper.publish(curved(30, 1.5, -0.2, negative_fraction=0.125))
        await dashboard.shows(
            "Sharpness", "1.500", "12.5%", "0.75× the limit", "a saddle direction", "Lanczos, converged"
        )
        assert "mark" in dashboard.text(), "the reply to the curvature request is not shown"
        await dashboard.press("4")
        await dashboard.wait_until(lambda: dashboard.keeper.received == [Mark(), ON, OFF])


async def test_curvature_is_requested_once_the_net_is_built() -> None:
    async with open_dashboard((120, 40), [StateChanged(state="building")]) as dashboard:
        await dashboard.press("5")
        await dashboard.shows("Sharpness")
        assert dashboard.keeper.received == []
        dashboard.keeper.publish(started(), StateChanged(state="running"))
        await dashboard.wait_until(lambda: dashboard.keeper.received == [ON])


async def test_a_rejected_curvature_request_is_shown() -> None:
    async with open_dashboard((120, 40), EARLIER) as dashboard:
        dashboard.keeper.reject = "no memory for it"
        await dashboard.press("5")
        await dashboard.shows("rejected", "no memory for it")


def test_curvature_numbers_show_their_method_and_error() -> None:
    found = text(CurvaturePanel(), view(curved(20, 3.0, 1e-5, 2.0, residual_min=9.0)), 100, 6).splitlines()
    assert "3.000 ± 3e-06" in found[0]
    assert "1.5× the limit: steps grow" in found[1]
    assert "not converged; zero within the error" in found[2]
    assert "not measured yet" in found[3]
    nan = text(CurvaturePanel(), view(curved(20, math.nan, math.nan, 2.0)), 100, 6)
    assert "λmax is not a number" in nan
    assert "stable" not in nan
    whole = text(CurvaturePanel(), view(curved(20, 3.0, 1.0, None, how="full Hessian", residual_min=0.0)), 100, 6)
    assert "exact, full Hessian; positive in every direction" in whole
    tiny = text(CurvaturePanel(), view(curved(20, 8.0, -7e-8, None, how="full Hessian", residual_min=0.0)), 100, 6)
    assert "exact, full Hessian; zero next to λmax" in tiny
    saddle = text(CurvaturePanel(), view(curved(20, 8.0, -1e-3, None, how="full Hessian", residual_min=0.0)), 100, 6)
    assert "exact, full Hessian; the loss curves downwards" in saddle
    assert "not known for this optimizer" in whole


def test_the_limit_of_an_adaptive_optimizer_applies_to_the_scaled_hessian() -> None:
    limit = StabilityLimit(lambda_max=38_000.0, formula="2(1+β₁)/((1−β₁)η)", preconditioned=True)
    plain = msgspec.structs.replace(curved(20, 3.0, -1.0), limit=limit)
    assert "after the first step" in text(CurvaturePanel(), view(plain), 100, 6)
    scaled = msgspec.structs.replace(plain, scaled=eigenvalues(19_000.0, -5.0))
    found = text(CurvaturePanel(), view(scaled), 100, 6)
    assert "precond. λmax is 0.5× the limit: stable" in found
    assert "28 Hessian-vector products" in found
    at_edge = msgspec.structs.replace(plain, scaled=eigenvalues(36_765.0, -5.0))
    assert "precond. λmax is 0.968× the limit: at the edge  " in text(CurvaturePanel(), view(at_edge), 78, 6)
    assert "0.968× the limit: at the edge of stability" in text(CurvaturePanel(), view(at_edge), 100, 6)
    assert "preconditioned" in SharpnessPanel().heading(view(scaled))[1]


def test_sharpness_panel_draws_the_limit_and_the_readings() -> None:
    look = view(curved(20, 1.0, -1.0))
    rows = text(SharpnessPanel(), look, 80, 8)
    assert "─" in rows
    assert "•" in rows


def test_the_curvature_panel_is_not_cut_at_80_columns() -> None:
    limit = StabilityLimit(lambda_max=12_667.0, formula="2(1+β₁)/((1−β₁)η)", preconditioned=True)
    first = msgspec.structs.replace(curved(10, 3.0, -1.0), limit=limit, scaled=eigenvalues(3.0, -1.0))
    rare = msgspec.structs.replace(first.hessian, negative_fraction=0.19, parameters=13_130)
    later = msgspec.structs.replace(first, step=1_200)
    history = view(msgspec.structs.replace(first, hessian=rare), later)
    assert "…" not in text(CurvaturePanel(), history, 78, 6)
    assert "at step 10" in text(CurvaturePanel(), history, 118, 6)
