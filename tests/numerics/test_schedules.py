"""Schedules at work: against torch's own schedulers, taken and restored to the bit, and made mid-run."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from nets import digit_batches, loss_of, mlp
from torch.optim import lr_scheduler as torchs

from tui_descent.scenario.schedules import FIELDS, PROGRESS, SMOOTHED_OVER, factor
from tui_descent.scenario.spec import ScheduleSpec
from tui_descent.training.clipping import clip
from tui_descent.training.optimizers import set_momentum, set_weight_decay, swap
from tui_descent.training.schedules import Schedule, base_rates, make

BASE, N = 0.3, 200
Twin = Callable[[torch.optim.Optimizer], torchs.LRScheduler]


def sgd(*rates: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.ones(3))], "lr": lr} for lr in rates or (BASE,)]
    return torch.optim.SGD(groups, lr=BASE, momentum=momentum)


def update(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def after(optimizer: torch.optim.Optimizer, step: Callable[[], None], count: int) -> list[list[float]]:
    """The rates of so many updates."""
    used = []
    for _ in range(count):
        used.append(rates_of(optimizer))
        update(optimizer)
        step()
    return used


def spec(name: str, **fields: float) -> ScheduleSpec:
    return ScheduleSpec(name=name, **fields)  # type: ignore[arg-type]


TWINS: list[tuple[ScheduleSpec, Twin]] = [
    (spec("constant"), lambda o: torchs.ConstantLR(o, factor=1.0)),
    (spec("step", every=30, gamma=0.5), lambda o: torchs.StepLR(o, 30, gamma=0.5)),
    (spec("cosine"), lambda o: torchs.CosineAnnealingLR(o, N)),
    (spec("cosine", floor=0.1), lambda o: torchs.CosineAnnealingLR(o, N, eta_min=0.1 * BASE)),
    (
        spec("warmup_cosine", warmup=40, start=0.2, floor=0.1),
        lambda o: torchs.SequentialLR(
            o,
            [torchs.LinearLR(o, 0.2, 1.0, 40), torchs.CosineAnnealingLR(o, N - 40, eta_min=0.1 * BASE)],
            milestones=[40],
        ),
    ),
    (
        spec("one_cycle"),
        lambda o: torchs.OneCycleLR(o, max_lr=BASE, total_steps=N, cycle_momentum=False),
    ),
    (
        spec("one_cycle", warmup=50, start=0.1, floor=0.01),
        lambda o: torchs.OneCycleLR(
            o, BASE, total_steps=N, pct_start=0.25, div_factor=10, final_div_factor=10, cycle_momentum=False
        ),
    ),
    (
        spec("wsd", warmup=20, start=0.2, decay=50, floor=0.1),
        lambda o: torchs.SequentialLR(
            o,
            [torchs.LinearLR(o, 0.2, 1.0, 20), torchs.ConstantLR(o, 1.0), torchs.LinearLR(o, 1.0, 0.1, 50)],
            milestones=[20, 150],
        ),
    ),
]


# torch's SequentialLR itself calls its parts with an epoch, which torch has deprecated.
@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize(("what", "twin"), TWINS, ids=[f"{n}-{s.name}" for n, (s, _) in enumerate(TWINS)])
def test_torchs_own_schedulers_give_the_same_rates(what: ScheduleSpec, twin: Twin) -> None:
    theirs, ours = sgd(), sgd()
    scheduler, schedule = twin(theirs), make(what, ours, total_steps=N, from_step=0)
    expected = after(theirs, scheduler.step, N - 1)
    used = after(ours, lambda: schedule.step(1.0), N - 1)
    for k, (a, b) in enumerate(zip(used, expected, strict=True)):
        assert a == pytest.approx(b, abs=1e-12), k
        assert a[0] == BASE * factor(what, k, N)
    assert len({tuple(r) for r in used}) > 1 or what.name == "constant"


@pytest.mark.parametrize("name", [n for n in FIELDS if n != "plateau"])
def test_made_in_mid_run_it_runs_over_what_is_left_from_the_base_rate(name: str) -> None:
    optimizer = sgd(0.3, 0.06)
    first = make(spec("cosine"), optimizer, total_steps=100, from_step=0)
    after(optimizer, lambda: first.step(1.0), 60)
    assert rates_of(optimizer)[0] < 0.15
    second = make(spec(name), optimizer, total_steps=100, from_step=60)
    used = after(optimizer, lambda: second.step(1.0), 50)  # ten beyond the end
    for k, (a, b) in enumerate(used):
        assert a == 0.3 * factor(spec(name), k, 40)
        assert b == 0.06 * factor(spec(name), k, 40)
        assert second.factor_at(60 + k) == factor(spec(name), k, 40)
    drawn = second.curve(points=11)
    assert (drawn[0], drawn[-1]) == ((60, factor(spec(name), 0, 40)), (100, factor(spec(name), 40, 40)))
    assert base_rates(optimizer) == [0.3, 0.06]


def test_one_cycle_leaves_the_momentum_alone() -> None:
    optimizer = sgd()
    schedule = make(spec("one_cycle"), optimizer, total_steps=20, from_step=0)
    for _ in range(25):
        update(optimizer)
        schedule.step(1.0)
        assert optimizer.param_groups[0]["momentum"] == 0.9


def test_plateau_waits_and_lowers_as_worked_out_by_hand() -> None:
    optimizer = sgd(0.4, 0.1)
    schedule = make(spec("plateau", patience=5, gamma=0.5, floor=0.2), optimizer, total_steps=1000, from_step=0)
    used = after(optimizer, lambda: schedule.step(2.0), 40)
    # The first loss is the best; the sixth after it that is no better lowers the rate, and so every six.
    assert [r[0] for r in used] == [0.4] * 7 + [0.2] * 6 + [0.1] * 6 + [0.2 * 0.4] * 21
    assert used[-1] == pytest.approx([0.08, 0.02])
    assert schedule.factor == pytest.approx(0.2)
    with pytest.raises(ValueError, match="plateau has no curve to predict"):
        schedule.factor_at(3)


def test_plateau_looks_at_the_smoothed_loss_and_passes_over_what_is_no_number() -> None:
    optimizer, twin = sgd(), sgd()
    schedule = make(spec("plateau", patience=10), optimizer, total_steps=1000, from_step=0)
    scheduler = torchs.ReduceLROnPlateau(twin, factor=0.5, patience=10, threshold=PROGRESS, eps=0.0)
    noise = torch.Generator().manual_seed(3)
    smooth = seen = 0.0
    for k in range(600):
        loss = max(0.5, 2 - k / 100) + 0.3 * float(torch.randn((), generator=noise))
        if k % 50 == 7:
            schedule.step(float("nan"))
            schedule.step(torch.tensor(float("inf"), requires_grad=True))
        seen = min(seen + 1, SMOOTHED_OVER)
        smooth += (loss - smooth) / seen
        schedule.step(torch.tensor(loss, dtype=torch.float64))
        scheduler.step(smooth)
        assert rates_of(optimizer) == rates_of(twin)
    assert rates_of(optimizer)[0] < BASE / 2


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("at", [0, 1, 37])
def test_restored_it_goes_on_with_the_same_bits(name: str, at: int) -> None:
    def losses(k: int) -> float:
        return 1.0 + 0.1 * ((k * 7919) % 13)

    def go(schedule: Schedule, optimizer: torch.optim.Optimizer, start: int, stop: int) -> list[list[float]]:
        used = []
        for k in range(start, stop):
            update(optimizer)
            schedule.step(losses(k))
            used.append(rates_of(optimizer))
        return used

    what = spec(name, patience=8) if name == "plateau" else spec(name)
    optimizer = sgd(0.3, 0.07)
    schedule = make(what, optimizer, total_steps=120, from_step=20)
    go(schedule, optimizer, 0, at)
    kept, before = json.loads(json.dumps(schedule.state())), rates_of(optimizer)  # plain values, through a file
    expected = go(schedule, optimizer, at, 100)

    schedule.restore(kept)  # back in time on the same optimizer
    assert rates_of(optimizer) == before
    assert go(schedule, optimizer, at, 100) == expected

    fresh = sgd(0.3, 0.07)  # and in another process
    again = make(what, fresh, total_steps=120, from_step=20)
    again.restore(kept)
    assert (again.state(), rates_of(fresh)) == (kept, before)
    assert go(again, fresh, at, 100) == expected
    assert len({tuple(r) for r in expected}) > 1 or name == "constant"


def test_a_state_of_another_schedule_is_refused_and_changes_nothing() -> None:
    optimizer = sgd(0.3, 0.1)
    schedule = make(spec("cosine"), optimizer, total_steps=100, from_step=0)
    after(optimizer, lambda: schedule.step(1.0), 10)
    before = schedule.state()
    for wrong in (
        make(spec("step"), sgd(0.3, 0.1), total_steps=9, from_step=0),
        make(spec("cosine"), sgd(), total_steps=9, from_step=0),
    ):
        with pytest.raises(ValueError, match=r"the state is of .*; allowed: cosine over 2$"):
            schedule.restore(wrong.state())
    assert schedule.state() == before


@pytest.mark.parametrize("name", FIELDS)
def test_after_a_swap_it_goes_on_over_the_new_optimizer(name: str) -> None:
    net, batches = mlp(), digit_batches(4)
    old = torch.optim.SGD([{"params": net.stem.parameters()}, {"params": net.blocks.parameters(), "lr": 0.02}], lr=0.1)
    what = spec(name, patience=3) if name == "plateau" else spec(name)
    schedule = make(what, old, total_steps=50, from_step=0)
    for k in range(20):
        old.zero_grad()
        loss_of(net, batches[k % 4]).backward()
        old.step()
        schedule.step(2.0)
    swapped = swap(old, "adam")
    ratio = swapped.rate.lr / 0.1
    assert rates_of(swapped.optimizer) == pytest.approx([lr * ratio for lr in rates_of(old)], rel=1e-14)
    moved = schedule.onto(swapped.optimizer)
    assert rates_of(swapped.optimizer) == pytest.approx([lr * ratio for lr in rates_of(old)], rel=1e-14)
    assert moved.factor == pytest.approx(schedule.factor, rel=1e-14)
    for _ in range(25):
        for optimizer, at_work in ((old, schedule), (swapped.optimizer, moved)):
            optimizer.step()
            at_work.step(2.0)
        assert rates_of(swapped.optimizer) == pytest.approx([lr * ratio for lr in rates_of(old)], rel=1e-14)


USERS: dict[str, Twin] = {
    "lambda": lambda o: torchs.LambdaLR(o, lambda k: 0.9**k),
    "one cycle": lambda o: torchs.OneCycleLR(o, 0.5, total_steps=30),
    "plateau": lambda o: torchs.ReduceLROnPlateau(o, patience=2),
}


@pytest.mark.parametrize("name", USERS)
def test_a_users_own_scheduler_does_not_notice_clip_settings_or_swap(name: str) -> None:
    def go(*, touched: bool) -> list[list[float]]:
        optimizer = sgd(0.3, 0.1)
        scheduler = USERS[name](optimizer)
        used = []
        for k in range(25):
            update(optimizer)
            if touched and k == 9:
                assert clip((p for g in optimizer.param_groups for p in g["params"]), 0.1) is not None
                set_momentum(optimizer, 0.5)
                set_weight_decay(optimizer, 0.1)
                swap(optimizer, "adam")
            scheduler.step(1.0) if name == "plateau" else scheduler.step()  # type: ignore[arg-type]
            used.append(rates_of(optimizer))
        return used

    used = go(touched=False)
    assert go(touched=True) == used
    assert len({tuple(r) for r in used}) > 2


def test_a_rate_held_in_a_tensor_stays_that_tensor() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter], lr=torch.tensor(0.5, dtype=torch.float64), foreach=False)
    held = optimizer.param_groups[0]["lr"]
    schedule = make(spec("cosine"), optimizer, total_steps=10, from_step=0)
    kept = schedule.state()
    for _ in range(5):
        update(optimizer)
        schedule.step(1.0)
    assert held.item() == pytest.approx(0.25)
    schedule.restore(kept)
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == 0.5
