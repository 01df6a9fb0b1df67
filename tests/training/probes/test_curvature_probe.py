"""Curvature readings during a run: at the right steps, while a client watches, without changing the run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from nets import copy_of, digit_batches, loss_of, mlp, same, same_state, state_of
from torch import Tensor

from tui_descent.instruments.curvature import Curvature, preconditioner
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import TurnKnob, WatchCurvature
from tui_descent.protocol.events import (
    CommandDone,
    CommandRejected,
    CurvatureTaken,
    LedgerTaken,
    Measured,
    Noted,
    ReadingsTaken,
)
from tui_descent.scenario import presets
from tui_descent.training.probes.curvature_probe import COUNT_EVERY, CurvatureProbe
from tui_descent.training.setup.build import PROBE_SAMPLES, Setup, build
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.watch import Watch

HEAVY = pytest.mark.heavy
NAMES = ("vanishing", "saddle", pytest.param("healthy", marks=HEAVY), pytest.param("edge-of-stability", marks=HEAVY))


def made(name: str, *overrides: str) -> Setup:
    short = () if name == "saddle" else ("model.depth=3", "model.width=8")
    _, scenario = presets.find(name, overrides=[*short, *overrides])
    return build(scenario, on=torch.device("cpu"))


def probe_of(setup: Setup, sampler: Sampler, **options: Any) -> CurvatureProbe:
    return CurvatureProbe(
        setup.probe,
        setup.model,
        setup.optimizer,
        sampler=sampler,
        rate=lambda: float(setup.optimizer.param_groups[0]["lr"]),
        **options,
    )


def trained(
    setup: Setup,
    keeper: FakeKeeper | None,
    curvature_probe: CurvatureProbe | None,
    sampler: Sampler,
    *,
    steps: int = 18,
) -> list[float]:
    """The losses of a run that turns on residual connections at step 4 if the net has blocks."""
    steering = Steering(setup.model, setup.optimizer)
    plan = [(4, TurnKnob(knob="residual", value="on"))]
    losses = []
    link = keeper.link if keeper else None
    run = Watch(
        setup.model,
        setup.optimizer,
        link=link,
        sampler=sampler,
        steering=steering,
        plan=plan,
        replay=setup,
        curvature=curvature_probe,
    )
    with run:
        run.begin_step()
        for _ in range(steps):
            loss = setup.loss()
            run.loss(loss)
            setup.optimizer.zero_grad()
            loss.backward()
            setup.optimizer.step()
            losses.append(loss.item())
            run.step(loss)
    return losses


@pytest.mark.parametrize("name", NAMES)
def test_reading_curvature_does_not_change_the_run(name: str, keeper: FakeKeeper) -> None:
    plain, read = made(name), made(name)
    before = torch.get_rng_state()
    losses = trained(plain, None, None, Sampler(budget=0.0), steps=6)
    sampler = Sampler(every=1)
    probe = probe_of(read, sampler, at_steps=range(100), watched=True)
    assert trained(read, keeper, probe, sampler, steps=6) == losses
    assert same(copy_of(read.model), copy_of(plain.model))
    assert same_state(state_of(read.optimizer), state_of(plain.optimizer))
    assert read.model.training == plain.model.training
    assert torch.equal(torch.get_rng_state(), before)
    taken = keeper.events(CurvatureTaken)
    assert [event.step for event in taken] == list(range(7)), "before every update and after the last one"


def readings_of(keeper: FakeKeeper) -> dict[str, list[Any]]:
    events = keeper.events()
    readings: list[ReadingsTaken] = keeper.readings()
    return {
        "readings": [(r.step, repr(r.values), r.global_cosine) for r in readings],
        "ledgers": [e for e in events if isinstance(e, LedgerTaken)],
        "rare": [e for e in events if isinstance(e, Measured) and e.name in ("local_step", "noise_scale")],
    }


def test_curvature_does_not_change_other_readings(keeper: FakeKeeper) -> None:
    sampler, setup = Sampler(every=2), made("vanishing")
    trained(setup, keeper, probe_of(setup, sampler, at_steps=range(100)), sampler, steps=8)
    with_it = readings_of(keeper)
    assert all(with_it.values())
    folder = keeper.link.launch.path / "other"
    folder.mkdir()
    other = FakeKeeper(folder)
    try:
        trained(made("vanishing"), other, None, Sampler(every=2), steps=8)
        assert readings_of(other) == with_it
    finally:
        other.close()


@pytest.mark.parametrize("name", ["vanishing", "healthy"])
def test_curvature_is_of_the_probe_batch_before_the_update(name: str, keeper: FakeKeeper) -> None:
    setup = made(name)
    steps = 6
    sampler = Sampler(budget=0.0)
    trained(setup, keeper, probe_of(setup, sampler, at_steps=(0, steps)), sampler, steps=steps)
    first, last = keeper.events(CurvatureTaken)
    fresh = made(name)
    assert fresh.batches is not None
    data = fresh.batches.data

    def by_hand(net: Setup) -> Tensor:
        assert net.loss_function is not None
        return net.loss_function(net.model(data.x[:PROBE_SAMPLES]), data.y[:PROBE_SAMPLES])

    for taken, net in ((first, fresh), (last, setup)):
        parameters = list(net.model.parameters())
        instrument = Curvature(lambda net=net: by_hand(net), parameters)  # type: ignore[misc]
        wanted = instrument.measure(index=True)
        assert taken.sharpness == pytest.approx(wanted.lambda_max, rel=1e-3)
        assert taken.hessian.lambda_min == pytest.approx(wanted.lambda_min, rel=1e-2)
        assert taken.hessian.negative_fraction == pytest.approx(wanted.negative_fraction, abs=0.02)
    assert last.limit is not None
    if name == "vanishing":
        assert (last.limit.lambda_max, last.limit.formula, last.scaled) == (pytest.approx(20), "2/η", None)
        assert last.edge == pytest.approx(last.sharpness / 20)
    else:
        scales = preconditioner(setup.optimizer, list(setup.model.parameters()))
        assert scales is not None
        assert (first.scaled, first.edge) == (None, None), "Adam has no scale before its first step"
        assert last.limit.preconditioned
        wanted = Curvature(lambda: by_hand(setup), list(setup.model.parameters())).measure(preconditioner=scales)
        assert last.limited == pytest.approx(wanted.lambda_max, rel=1e-3)
        assert last.edge == pytest.approx(wanted.lambda_max / 38_000, rel=1e-3)


def test_curvature_is_also_emitted_as_measured_events(keeper: FakeKeeper) -> None:
    setup, sampler = made("vanishing"), Sampler(budget=0.0)
    trained(setup, keeper, probe_of(setup, sampler, at_steps=(3,)), sampler)
    events = keeper.events()
    (taken,) = [e for e in events if isinstance(e, CurvatureTaken)]
    measured = {e.name: e for e in events if isinstance(e, Measured)}
    assert set(measured) == {"sharpness", "lambda_min", "stability_limit"}
    assert {e.step for e in measured.values()} == {3}
    assert measured["sharpness"].value == taken.sharpness
    assert measured["lambda_min"].value == taken.hessian.lambda_min
    assert taken.hessian.how in measured["sharpness"].how
    assert (measured["stability_limit"].value, measured["stability_limit"].how) == (pytest.approx(20), "2/η")


def test_probe_batch_of_a_full_batch_run_is_the_full_batch() -> None:
    setup = made("edge-of-stability", "data.subset=400")
    assert setup.probe().item() == pytest.approx(setup.loss().item(), rel=1e-6)


def test_curvature_is_not_read_unless_a_client_watches(keeper: FakeKeeper) -> None:
    setup, sampler = made("vanishing"), Sampler(every=1)
    trained(setup, keeper, probe_of(setup, sampler), sampler)
    assert keeper.events(CurvatureTaken) == []


def test_curvature_is_read_while_any_client_watches() -> None:
    setup = made("saddle")
    curvature_probe = probe_of(setup, Sampler(every=1, budget=0.01))
    assert not curvature_probe.due(0, paced=True)
    assert (
        curvature_probe.set_watching(1, on=True) == curvature_probe.set_watching(2, on=True) == "curvature is measured"
    )
    assert curvature_probe.due(0, paced=True)
    assert curvature_probe.set_watching(1, on=False) == "curvature is measured"
    assert curvature_probe.due(0, paced=False)
    assert curvature_probe.set_watching(2, on=False) == "curvature is no longer measured"
    assert not curvature_probe.due(0, paced=True)
    assert curvature_probe.set_watching(3, on=False) == "curvature is no longer measured", (
        "a client that was not watching"
    )


def test_paused_run_is_read_again_only_at_another_step_or_rate() -> None:
    setup = made("saddle")
    curvature_probe = probe_of(setup, Sampler(every=1, budget=0.01), watched=True)
    assert curvature_probe.due(5, paced=True, paused=True)
    curvature_probe.read(0, 5, paid=False)
    curvature_probe._sampler.curvature.last_s = -1e9  # as if long ago
    assert not curvature_probe.due(5, paced=True, paused=True)
    assert curvature_probe.due(6, paced=True, paused=True)
    setup.optimizer.param_groups[0]["lr"] *= 2
    assert curvature_probe.due(5, paced=True, paused=True), "the stability limit has changed"


def test_negative_fraction_is_part_of_every_fourth_reading() -> None:
    setup = made("vanishing")
    curvature_probe = probe_of(setup, Sampler(), watched=True)
    shares = [curvature_probe.read(0, n, paid=True)[0].hessian.negative_fraction for n in range(2 * COUNT_EVERY)]  # type: ignore[union-attr]
    assert [n for n, share in enumerate(shares) if share is not None] == [0, COUNT_EVERY]
    few = probe_of(made("saddle"), Sampler(), watched=True)
    assert all(few.read(0, n, paid=True)[0].hessian.negative_fraction == 0.5 for n in range(3))  # type: ignore[union-attr]


def test_failed_reading_warns_once_and_is_not_retried_until_asked() -> None:
    setup = made("saddle")
    tries = []

    def failing_loss() -> Tensor:
        tries.append(1)
        raise RuntimeError("no second derivative\nof this")

    sampler = Sampler()
    curvature_probe = CurvatureProbe(
        failing_loss, setup.model, setup.optimizer, sampler=sampler, rate=lambda: 0.1, watched=True
    )
    assert curvature_probe.due(0, paced=True)
    (noted,) = curvature_probe.read(0, 0, paid=False)
    assert noted == Noted(step=0, text="the curvature could not be measured: no second derivative", level="warning")
    sampler.curvature.last_s = -1e9
    assert not curvature_probe.due(1, paced=True)
    curvature_probe.set_watching(1, on=True)
    assert curvature_probe.due(1, paced=True)
    assert tries == [1]


def test_non_finite_weights_give_a_nan_reading(keeper: FakeKeeper) -> None:
    setup = made("vanishing")
    with torch.no_grad():
        next(setup.model.parameters()).fill_(torch.nan)
    (taken, *_) = probe_of(setup, Sampler(), watched=True).read(0, 0, paid=True)
    assert isinstance(taken, CurvatureTaken)
    assert taken.sharpness != taken.sharpness
    keeper.link.emit(taken)
    (received,) = keeper.events(CurvatureTaken)
    assert received.hessian.lambda_min != received.hessian.lambda_min


def test_curvature_is_rejected_for_a_user_loop_with_the_reason(keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=keeper.link) as run:
        for n, batch in enumerate(digit_batches(3)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if n == 1:
                request = keeper.send(WatchCurvature(on=True))
            run.step(loss)
    events = keeper.events()
    (reply,) = [e for e in events if isinstance(e, CommandRejected | CommandDone)]
    assert isinstance(reply, CommandRejected)
    assert reply.request == request
    assert "its batches cannot be replayed" in reply.reason
    assert not [e for e in events if isinstance(e, CurvatureTaken)]
