"""Whole screens as text. GOLDEN=write rewrites the files; review the diff."""

from __future__ import annotations

import msgspec
import pytest
from driver import compare, open_dashboard
from factories import curved, ledger, logged, started, steps, vanishing

from tui_descent.protocol.events import RunEnded, StateChanged


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_overview_screen(size: tuple[int, int]) -> None:
    async with open_dashboard(size, vanishing(420)) as dashboard:
        await dashboard.drawn()
        compare(f"overview-{size[0]}x{size[1]}", dashboard.text())


async def test_layers_screen() -> None:
    async with open_dashboard((80, 24), vanishing(140)) as dashboard:
        await dashboard.press("2")
        await dashboard.drawn()
        compare("layers-80x24", dashboard.text())


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_chain_rule_screen(size: tuple[int, int]) -> None:
    async with open_dashboard(size, [*vanishing(140), ledger(130, 0.3)]) as dashboard:
        await dashboard.press("4")
        await dashboard.drawn()
        compare(f"chain-{size[0]}x{size[1]}", dashboard.text())


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_curvature_screen(size: tuple[int, int]) -> None:
    climbing = [curved(n, min(2.0, 0.5 + n / 80), -0.3 + n / 500, negative_fraction=0.2) for n in range(10, 140, 20)]
    async with open_dashboard(size, [*vanishing(140), *climbing]) as dashboard:
        await dashboard.press("5")
        await dashboard.drawn()
        compare(f"curvature-{size[0]}x{size[1]}", dashboard.text())


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_metrics_screen(size: tuple[int, int]) -> None:
    async with open_dashboard(size, [*vanishing(420), *logged(420)]) as dashboard:
        await dashboard.press("6")
        await dashboard.drawn()
        compare(f"metrics-{size[0]}x{size[1]}", dashboard.text())


async def test_metrics_screen_without_metrics_says_how_to_log() -> None:
    own_loop = msgspec.structs.replace(started(), scenario=None, name="train")
    async with open_dashboard((80, 24), [own_loop, StateChanged(state="running"), steps(0, [1.0] * 50)]) as dashboard:
        await dashboard.press("6")
        await dashboard.drawn()
        compare("metrics-empty-80x24", dashboard.text())


async def test_events_screen() -> None:
    async with open_dashboard((120, 40), vanishing(420)) as dashboard:
        await dashboard.press("3")
        await dashboard.drawn()
        compare("events-120x40", dashboard.text())


async def test_screen_before_the_first_step() -> None:
    async with open_dashboard((80, 24), [StateChanged(state="importing torch")]) as dashboard:
        await dashboard.shows("importing torch…")
        dashboard.keeper.publish(StateChanged(state="building"))
        await dashboard.shows("setting up the run…")
        dashboard.keeper.publish(started(), StateChanged(state="running"))
        await dashboard.shows("waiting for the first step…", "sigmoid")
        await dashboard.drawn()
        compare("starting-80x24", dashboard.text())


async def test_screen_after_the_trainer_is_lost() -> None:
    end = RunEnded(
        status="lost",
        step=420,
        reason="signal 9",
        exit_code=-9,
        log_tail=("Traceback (most recent call last):", "  File x.py", "MemoryError"),
        log_path="/runs/r1/trainer.log",
    )
    async with open_dashboard((80, 24), [*vanishing(420), end]) as dashboard:
        await dashboard.shows("MemoryError")
        await dashboard.drawn()
        compare("lost-80x24", dashboard.text())
