"""What the eye meets, as text. GOLDEN=write makes the files anew: look at them before believing them."""

from __future__ import annotations

import pytest
from driver import compare, playing
from fake_run import curved, ledger, started, vanishing

from tui_descent.protocol.events import RunEnded, StateChanged


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_overview(size: tuple[int, int]) -> None:
    async with playing(size, vanishing(420)) as play:
        await play.drawn()
        compare(f"overview-{size[0]}x{size[1]}", play.text())


async def test_layers_at_80() -> None:
    async with playing((80, 24), vanishing(140)) as play:
        await play.press("2")
        await play.drawn()
        compare("layers-80x24", play.text())


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_chain_rule(size: tuple[int, int]) -> None:
    async with playing(size, [*vanishing(140), ledger(130, 0.3)]) as play:
        await play.press("4")
        await play.drawn()
        compare(f"chain-{size[0]}x{size[1]}", play.text())


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_curvature(size: tuple[int, int]) -> None:
    climbing = [curved(n, min(2.0, 0.5 + n / 80), -0.3 + n / 500, negative_fraction=0.2) for n in range(10, 140, 20)]
    async with playing(size, [*vanishing(140), *climbing]) as play:
        await play.press("5")
        await play.drawn()
        compare(f"curvature-{size[0]}x{size[1]}", play.text())


async def test_events() -> None:
    async with playing((120, 40), vanishing(420)) as play:
        await play.press("3")
        await play.drawn()
        compare("events-120x40", play.text())


async def test_before_the_first_step() -> None:
    async with playing((80, 24), [StateChanged(state="importing torch")]) as play:
        await play.sees("importing torch…")
        play.keeper.tell(StateChanged(state="building"))
        await play.sees("building the network…")
        play.keeper.tell(started(), StateChanged(state="running"))
        await play.sees("waiting for the first step…", "sigmoid")
        await play.drawn()
        compare("starting-80x24", play.text())


async def test_lost() -> None:
    end = RunEnded(
        status="lost",
        step=420,
        reason="signal 9",
        exit_code=-9,
        log_tail=("Traceback (most recent call last):", "  File x.py", "MemoryError"),
        log_path="/runs/r1/trainer.log",
    )
    async with playing((80, 24), [*vanishing(420), end]) as play:
        await play.sees("MemoryError")
        await play.drawn()
        compare("lost-80x24", play.text())
