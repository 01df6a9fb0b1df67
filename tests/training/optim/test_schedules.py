"""Schedules compared with torch's own schedulers; restored bit for bit; started during a run."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import pytest
import torch
from fake_keeper import FakeKeeper
from knob_turns import steering_of, step
from net_families import setup as make_setup
from nets import digit_batches, loss_of, mlp
from played_run import ABOUT
from torch.optim import lr_scheduler as torchs

from tui_descent.protocol.commands import Undo
from tui_descent.scenario.knobs import parse
from tui_descent.scenario.schedules import FIELDS, PROGRESS, SMOOTHED_OVER, factor
from tui_descent.scenario.spec import ScheduleSpec
from tui_descent.training.optim.clipping import clip
from tui_descent.training.optim.optimizers import set_momentum, set_weight_decay, swap
from tui_descent.training.optim.schedules import Schedule, base_rates, make_schedule
from tui_descent.training.watch.watch import Watch

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


def rates_used(optimizer: torch.optim.Optimizer, step: Callable[[], None], count: int) -> list[list[float]]:
    """The rates of the next `count` updates."""
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


# torch's SequentialLR calls its schedulers with an epoch, which torch has deprecated.
@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize(("what", "twin"), TWINS, ids=[f"{n}-{s.name}" for n, (s, _) in enumerate(TWINS)])
def test_rates_equal_torch_schedulers(what: ScheduleSpec, twin: Twin) -> None:
    theirs, ours = sgd(), sgd()
    scheduler, schedule = twin(theirs), make_schedule(what, ours, total_steps=N, from_step=0)
    expected = rates_used(theirs, scheduler.step, N - 1)
    used = rates_used(ours, lambda: schedule.step(1.0), N - 1)
    for k, (a, b) in enumerate(zip(used, expected, strict=True)):
        assert a == pytest.approx(b, abs=1e-12), k
        assert a[0] == BASE * factor(what, k, N)
    assert len({tuple(r) for r in used}) > 1 or what.name == "constant"


CLOSED = [n for n in FIELDS if n != "plateau"]
RATES = (0.3, 0.1, 3e-4, 1 / 7)


def torchs_lambda(optimizer: torch.optim.Optimizer, what: ScheduleSpec, total: int) -> torchs.LambdaLR:
    return torchs.LambdaLR(optimizer, lambda k: factor(what, k, total))


@pytest.mark.parametrize("total", [600, 450])
@pytest.mark.parametrize("name", CLOSED)
def test_rates_equal_lambda_lr_bit_for_bit(name: str, total: int) -> None:
    theirs, ours = sgd(*RATES), sgd(*RATES)
    scheduler = torchs_lambda(theirs, spec(name), total)
    schedule = make_schedule(spec(name), ours, total_steps=total, from_step=0)
    assert rates_used(ours, lambda: schedule.step(1.0), 600) == rates_used(theirs, scheduler.step, 600)
    assert base_rates(ours) == [group["initial_lr"] for group in theirs.param_groups] == list(RATES)


@pytest.mark.parametrize("name", CLOSED)
def test_step_back_equals_lambda_lr_bit_for_bit(name: str) -> None:
    theirs, ours = sgd(*RATES), sgd(*RATES)
    expected = rates_used(theirs, torchs_lambda(theirs, spec(name), 600).step, 601)
    schedule = make_schedule(spec(name), ours, total_steps=600, from_step=0)
    made = 0
    for forward, back in ((1, 1), (40, 7), (200, 150), (30, 1), (350, 17)):
        assert rates_used(ours, lambda: schedule.step(1.0), forward) == expected[made : made + forward]
        schedule.step_back(back)
        made += forward - back
        assert rates_of(ours) == expected[made]
        assert schedule.factor == schedule.factor_at(made)


@pytest.mark.parametrize("name", CLOSED)
def test_schedule_started_during_a_run_equals_a_new_lambda_lr_bit_for_bit(name: str) -> None:
    theirs, ours = sgd(*RATES), sgd(*RATES)
    first = make_schedule(spec("warmup_cosine"), ours, total_steps=600, from_step=0)
    rates_used(ours, lambda: first.step(1.0), 217)
    scheduler = torchs_lambda(theirs, spec(name), 600 - 217)
    schedule = make_schedule(spec(name), ours, total_steps=600, from_step=217)
    assert rates_used(ours, lambda: schedule.step(1.0), 600) == rates_used(theirs, scheduler.step, 600)


def test_undo_restores_the_rates_of_a_run_bit_for_bit(keeper: FakeKeeper) -> None:
    keeper.link.launch = msgspec.structs.replace(keeper.link.launch, socket="there")
    made = make_setup("mlp", optimizer={"name": "sgd", "lr": 0.3})
    steering = steering_of(made)  # of 40 steps
    used: list[float] = []
    made.optimizer.register_step_post_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))
    # The watch's own post-hook, which removes the multiplier, runs after this one.
    asked = {4: parse("schedule=cosine"), 7: parse("lr=*3"), 11: Undo(), 15: Undo()}
    with Watch(made.model, made.optimizer, link=keeper.link, steering=steering, about=ABOUT, is_scenario=True) as run:
        run.begin_step()
        for n in range(20):
            if n + 1 in asked:
                keeper.send(asked[n + 1])
            step(made, run)
    cosine = [0.3 * factor(spec("cosine"), k, 36) for k in range(36)]
    twin = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.3)
    assert [r for (r,) in rates_used(twin, torchs_lambda(twin, spec("cosine"), 36).step, 36)] == cosine
    multiplier = 3 * cosine[3] / cosine[3]
    assert used[:4] == [0.3] * 4
    assert used[4:7] == cosine[:3]
    assert used[7:11] == [rate * multiplier for rate in cosine[3:7]]
    assert used[11:15] == cosine[3:7], "the multiplier is undone: back before update 7"
    assert used[15:] == [0.3] * 5, "the schedule is undone"


@pytest.mark.parametrize("name", CLOSED)
def test_schedule_started_during_a_run_covers_the_remaining_steps_from_the_base_rate(name: str) -> None:
    optimizer = sgd(0.3, 0.06)
    first = make_schedule(spec("cosine"), optimizer, total_steps=100, from_step=0)
    rates_used(optimizer, lambda: first.step(1.0), 60)
    assert rates_of(optimizer)[0] < 0.15
    second = make_schedule(spec(name), optimizer, total_steps=100, from_step=60)
    used = rates_used(optimizer, lambda: second.step(1.0), 50)  # 10 past the end
    for k, (a, b) in enumerate(used):
        assert a == 0.3 * factor(spec(name), k, 40)
        assert b == 0.06 * factor(spec(name), k, 40)
        assert second.factor_at(60 + k) == factor(spec(name), k, 40)
    drawn = second.curve(points=11)
    assert (drawn[0], drawn[-1]) == ((60, factor(spec(name), 0, 40)), (100, factor(spec(name), 40, 40)))
    assert base_rates(optimizer) == [0.3, 0.06]


def test_one_cycle_does_not_change_momentum() -> None:
    optimizer = sgd()
    schedule = make_schedule(spec("one_cycle"), optimizer, total_steps=20, from_step=0)
    for _ in range(25):
        update(optimizer)
        schedule.step(1.0)
        assert optimizer.param_groups[0]["momentum"] == 0.9


def test_plateau_lowers_the_rate_as_computed_by_hand() -> None:
    optimizer = sgd(0.4, 0.1)
    schedule = make_schedule(
        spec("plateau", patience=5, gamma=0.5, floor=0.2), optimizer, total_steps=1000, from_step=0
    )
    used = rates_used(optimizer, lambda: schedule.step(2.0), 40)
    # The first loss is the best; the sixth without progress lowers the rate, and every sixth after that.
    assert [r[0] for r in used] == [0.4] * 7 + [0.2] * 6 + [0.1] * 6 + [0.2 * 0.4] * 21
    assert used[-1] == pytest.approx([0.08, 0.02])
    assert schedule.factor == pytest.approx(0.2)
    with pytest.raises(ValueError, match="plateau: the curve cannot be predicted"):
        schedule.factor_at(3)


@pytest.mark.parametrize("floor", [0.0, 0.3])
@pytest.mark.parametrize("gamma", [0.5, 0.7])
def test_plateau_equals_reduce_lr_on_plateau_on_the_smoothed_finite_losses(gamma: float, floor: float) -> None:
    optimizer, twin = sgd(*RATES), sgd(*RATES)
    what = spec("plateau", patience=10, gamma=gamma, floor=floor)
    schedule = make_schedule(what, optimizer, total_steps=1000, from_step=0)
    lowest = [rate * floor for rate in RATES]
    scheduler = torchs.ReduceLROnPlateau(twin, factor=gamma, patience=10, threshold=PROGRESS, min_lr=lowest, eps=0.0)
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
def test_restored_schedule_continues_bit_for_bit(name: str, at: int) -> None:
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
    schedule = make_schedule(what, optimizer, total_steps=120, from_step=20)
    go(schedule, optimizer, 0, at)
    kept, before = json.loads(json.dumps(schedule.state())), rates_of(optimizer)  # plain values survive JSON
    expected = go(schedule, optimizer, at, 100)

    schedule.restore(kept)  # back in time on the same optimizer
    assert rates_of(optimizer) == before
    assert go(schedule, optimizer, at, 100) == expected

    fresh = sgd(0.3, 0.07)  # and in another process
    again = make_schedule(what, fresh, total_steps=120, from_step=20)
    again.restore(kept)
    assert (again.state(), rates_of(fresh)) == (kept, before)
    assert go(again, fresh, at, 100) == expected
    assert len({tuple(r) for r in expected}) > 1 or name == "constant"


def test_restoring_the_state_of_another_schedule_is_refused_and_changes_nothing() -> None:
    optimizer = sgd(0.3, 0.1)
    schedule = make_schedule(spec("cosine"), optimizer, total_steps=100, from_step=0)
    rates_used(optimizer, lambda: schedule.step(1.0), 10)
    before = schedule.state()
    for wrong in (
        make_schedule(spec("step"), sgd(0.3, 0.1), total_steps=9, from_step=0),
        make_schedule(spec("cosine"), sgd(), total_steps=9, from_step=0),
    ):
        with pytest.raises(ValueError, match=r"the state is of .*; allowed: cosine over 2$"):
            schedule.restore(wrong.state())
    assert schedule.state() == before


@pytest.mark.parametrize("name", FIELDS)
def test_schedule_continues_on_a_swapped_optimizer(name: str) -> None:
    net, batches = mlp(), digit_batches(4)
    old = torch.optim.SGD([{"params": net.stem.parameters()}, {"params": net.blocks.parameters(), "lr": 0.02}], lr=0.1)
    what = spec(name, patience=3) if name == "plateau" else spec(name)
    schedule = make_schedule(what, old, total_steps=50, from_step=0)
    for k in range(20):
        old.zero_grad()
        loss_of(net, batches[k % 4]).backward()
        old.step()
        schedule.step(2.0)
    swapped = swap(old, "adam")
    ratio = swapped.rate.lr / 0.1
    assert rates_of(swapped.optimizer) == pytest.approx([lr * ratio for lr in rates_of(old)], rel=1e-14)
    moved = schedule.transfer_to(swapped.optimizer)
    assert rates_of(swapped.optimizer) == pytest.approx([lr * ratio for lr in rates_of(old)], rel=1e-14)
    assert moved.factor == pytest.approx(schedule.factor, rel=1e-14)
    for _ in range(25):
        for optimizer, active in ((old, schedule), (swapped.optimizer, moved)):
            optimizer.step()
            active.step(2.0)
        assert rates_of(swapped.optimizer) == pytest.approx([lr * ratio for lr in rates_of(old)], rel=1e-14)


USERS: dict[str, Twin] = {
    "lambda": lambda o: torchs.LambdaLR(o, lambda k: 0.9**k),
    "one cycle": lambda o: torchs.OneCycleLR(o, 0.5, total_steps=30),
    "plateau": lambda o: torchs.ReduceLROnPlateau(o, patience=2),
}


@pytest.mark.parametrize("name", USERS)
def test_clipping_options_and_swap_do_not_disturb_a_users_scheduler(name: str) -> None:
    def go(*, changed: bool) -> list[list[float]]:
        optimizer = sgd(0.3, 0.1)
        scheduler = USERS[name](optimizer)
        used = []
        for k in range(25):
            update(optimizer)
            if changed and k == 9:
                assert clip((p for g in optimizer.param_groups for p in g["params"]), 0.1) is not None
                set_momentum(optimizer, 0.5)
                set_weight_decay(optimizer, 0.1)
                swap(optimizer, "adam")
            scheduler.step(1.0) if name == "plateau" else scheduler.step()  # type: ignore[arg-type]
            used.append(rates_of(optimizer))
        return used

    used = go(changed=False)
    assert go(changed=True) == used
    assert len({tuple(r) for r in used}) > 2


def test_tensor_rate_is_written_in_place() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter], lr=torch.tensor(0.5, dtype=torch.float64), foreach=False)
    held = optimizer.param_groups[0]["lr"]
    schedule = make_schedule(spec("cosine"), optimizer, total_steps=10, from_step=0)
    kept = schedule.state()
    for _ in range(5):
        update(optimizer)
        schedule.step(1.0)
    assert held.item() == pytest.approx(0.25)
    schedule.restore(kept)
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == 0.5
