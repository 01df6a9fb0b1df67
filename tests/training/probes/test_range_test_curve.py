"""Range test and look-ahead compared with plain torch loops; the suggested rate."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from nets import loss_of
from range_test_runs import (
    CPU,
    SHUFFLED,
    SMALL,
    NanAtLargeOutputs,
    new_range_test,
    nothing_asked,
    setup_of,
    train_setup,
)
from torch import nn

from tui_descent.protocol.commands import RunRangeTest
from tui_descent.protocol.events import RangeTestCompleted
from tui_descent.scenario import presets
from tui_descent.training.probes.look_ahead import SCALES, look_ahead
from tui_descent.training.probes.range_test import SMOOTHING, STEPS, Curve, rate_range, suggest_rate
from tui_descent.training.setup.build import Setup, build

# Compared with a plain loop.


def twin_of(made: Setup, kind: Any, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A copy of the net, and a torch optimizer with a copy of the state."""
    net = copy.deepcopy(made.model)
    optimizer = kind(net.parameters(), lr=1.0, **options)
    state = copy.deepcopy(made.optimizer.state_dict())
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})
    return net, optimizer


def clipped(net: nn.Module, limit: float) -> None:
    """Clips to the exact norm; torch's own function adds 1e-6 to the divisor."""
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in net.parameters() if p.grad is not None))
    for p in net.parameters():
        if p.grad is not None and norm > limit:
            p.grad *= limit / norm


OPTIMIZERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sgd": ({"lr": 0.05, "weight_decay": 0.01}, {"kind": torch.optim.SGD, "weight_decay": 0.01}),
    "momentum": ({"lr": 0.02}, {"kind": torch.optim.SGD, "momentum": 0.9}),
    "nesterov": ({"lr": 0.02}, {"kind": torch.optim.SGD, "momentum": 0.9, "nesterov": True}),
    "adam": ({"lr": 1e-3}, {"kind": torch.optim.Adam}),
    "adamw": ({"lr": 1e-3, "weight_decay": 0.3}, {"kind": torch.optim.AdamW, "weight_decay": 0.3}),
    "rmsprop": ({"lr": 1e-3}, {"kind": torch.optim.RMSprop}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.3])
def test_range_test_losses_equal_a_plain_loop_at_the_same_rates(name: str, clip: float | None) -> None:
    spec, options = OPTIMIZERS[name]
    made = setup_of(SMALL, name=name, **spec)
    train_setup(made, 5)
    steering, test = new_range_test(made, clip=clip)
    steering.rate.turn("*4")  # the tested rates are not multiplied
    net, optimizer = twin_of(made, **options)
    found = test.run(0, 5, nothing_asked)
    assert tuple(found.scales) == SCALES
    assert found.rate == pytest.approx(4 * spec["lr"])
    # The test has restored the batches, so these are the ones it used.
    batches = [made.batches.next() for _ in range(len(found.rates) + 1)]  # type: ignore[union-attr]
    still = [loss_of(net, batch).item() for batch in batches]
    losses = []
    for n, rate in enumerate(found.rates):
        optimizer.zero_grad()
        loss_of(net, batches[n]).backward()
        if clip is not None:
            clipped(net, clip)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses.append(loss_of(net, batches[n + 1]).item())
    assert found.still == pytest.approx(still[1:], rel=1e-9)
    upto = next((n for n, loss in enumerate(losses) if loss > 20), len(losses))  # larger losses are chaotic
    assert upto > 50
    assert found.losses[:upto] == pytest.approx(losses[:upto], rel=1e-6)
    mean = 0.0
    for n, (loss, base) in enumerate(zip(found.losses, still[1:], strict=True), 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * (loss - base)
        assert found.smooth[n - 1] == pytest.approx(found.level + mean / (1 - SMOOTHING**n), rel=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_look_ahead_losses_lie_along_a_real_update(name: str, clip: float | None, dtype: str) -> None:
    spec, options = OPTIMIZERS[name]
    made = setup_of(SMALL.replace("float64", dtype), name=name, **spec)
    train_setup(made, 5)
    steering, _ = new_range_test(made, clip=clip)
    steering.rate.turn("*2")
    net, optimizer = twin_of(made, **options)
    assert made.batches is not None
    position = made.batches.state()
    found = look_ahead(steering, made)
    made.batches.restore(position)
    batch = made.batches.next()
    start = [p.detach().clone() for p in net.parameters()]
    loss_of(net, batch).backward()
    if clip is not None:
        clipped(net, clip)
    optimizer.param_groups[0]["lr"] = 2 * spec["lr"]
    optimizer.step()
    ends = [p.detach().clone() for p in net.parameters()]
    assert 1.0 in SCALES
    for scale, loss in zip(SCALES, found, strict=True):
        with torch.no_grad():
            for p, a, b in zip(net.parameters(), start, ends, strict=True):
                p.copy_(a + scale * (b - a))
        assert abs(loss - loss_of(net, batch).item()) <= 1e-6 * max(1.0, abs(loss)), scale


def test_look_ahead_drops_the_same_units_at_every_scale() -> None:
    made = setup_of(SHUFFLED)
    train_setup(made, 5)
    steering, _ = new_range_test(made)
    made.optimizer.param_groups[0]["lr"] = 1e-12  # so small that the net hardly changes
    found = look_ahead(steering, made)
    assert found == pytest.approx([found[0]] * len(SCALES), abs=1e-6)
    assert made.loss().item() != pytest.approx(found[0], abs=1e-3)  # another batch and other dropped units


def test_look_ahead_uses_the_update_that_the_run_then_makes(start_run: Any) -> None:
    """On a surface the loss after the next update is the look-ahead's loss at s = 1."""
    _, scenario = presets.find("saddle")
    run = start_run(build(scenario, on=CPU))
    run.go(6, {5: [RunRangeTest()]})
    (found,) = run.keeper.events(RangeTestCompleted)
    assert (found.step, found.ahead[0]) == (5, run.losses[5])
    run.go(7)
    assert found.ahead[SCALES.index(1.0)] == run.losses[6]


def test_look_ahead_is_empty_at_a_rate_of_zero() -> None:
    made = setup_of(SHUFFLED)
    made.optimizer.param_groups[0]["lr"] = 0.0
    _, test = new_range_test(made)
    found = test.run(0, 0, nothing_asked)
    assert (found.rate, found.ahead, found.scales) == (0.0, [], [])
    assert len(found.rates) > 50, "the test has its own rates"


# The suggestion.


def quadratic(curvature: float, rates: list[float]) -> list[float]:
    """½λw² after each update of gradient descent from w = 1, in closed form."""
    w, losses = 1.0, []
    for rate in rates:
        w *= 1 - rate * curvature
        losses.append(0.5 * curvature * w * w)
    return losses


def test_lowest_rate_on_a_quadratic_is_just_below_two_over_the_curvature() -> None:
    _, scenario = presets.find("first-descent")  # (2w − 3)², w₀ = 1: λ = 8, ½λ(w − 1.5)²
    made = build(scenario, on=CPU)
    _, test = new_range_test(made)
    found = test.run(0, 0, nothing_asked)
    twin = [0.25 * loss for loss in quadratic(8.0, found.rates)]
    assert found.losses == pytest.approx(twin, rel=1e-9)
    assert found.smooth == pytest.approx(found.losses), "without noise nothing is smoothed"
    factor = found.rates[1] / found.rates[0]
    assert found.lowest is not None
    assert 2 / 8 / factor < found.lowest <= 2 / 8
    assert found.suggestion == pytest.approx(found.lowest / 10)
    assert found.ended_at is not None
    assert found.losses[-1] > 4 * min(found.losses)


def test_suggestion_for_the_healthy_preset_is_a_good_rate() -> None:
    _, scenario = presets.find("healthy")
    torch.manual_seed(0)
    made = build(scenario, on=CPU)
    _, test = new_range_test(made)
    suggestion = test.run(0, 0, nothing_asked).suggestion
    assert suggestion is not None
    reached = {}
    for lr in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1):
        torch.manual_seed(0)
        _, scenario = presets.find("healthy", overrides=[f"optimizer.lr={lr}"])
        one, losses = build(scenario, on=CPU), []
        for _ in range(120):
            loss = one.loss()
            one.optimizer.zero_grad()
            loss.backward()
            one.optimizer.step()
            losses.append(loss.item())
        reached[lr] = sum(losses[-20:])
    best = min(reached, key=reached.__getitem__)
    assert best / 5 < suggestion < best * 5, reached


def curve(losses: list[float], *, still: float = 1.0, low: float = 1e-7, high: float = 1.0) -> Curve:
    made = Curve(still=[still] * (STEPS + 1), smoothing=0.0)
    for n, loss in enumerate(losses):
        if not made.add(low * (high / low) ** (n / (STEPS - 1)), loss):
            break
    return made


def test_suggestion_is_a_tenth_of_the_lowest_rate() -> None:
    made = curve([1.0] * 40 + [1 - n / 50 for n in range(1, 31)] + [0.4 + n for n in range(1, 31)])
    assert made.ended_at == made.rates[-1]
    assert made.losses[-1] == 2.4, "over four times the best"
    lowest, suggestion, reason = suggest_rate(made)
    assert (lowest, suggestion, reason) == (made.rates[69], made.rates[69] / 10, "")


@pytest.mark.parametrize(
    ("losses", "start"),
    [
        ([1.0] * STEPS, "flat"),
        ([1.0] * 50 + [0.995] * 30 + [9.0] * 20, "flat"),
        ([0.5] * 5 + [1.0] * 60 + [9.0] * 35, "flat"),
        ([1.0] * 8 + [30.0] * 92, "too short"),
        ([math.nan] * STEPS, "too short"),
        ([1 - n / 200 for n in range(STEPS)], "the loss still falls at 1, the largest"),
    ],
)
def test_unclear_curve_gives_a_reason_instead_of_a_suggestion(losses: list[float], start: str) -> None:
    _, suggestion, reason = suggest_rate(curve(losses))
    assert suggestion is None
    assert reason.startswith(start)


def test_noise_alone_gives_no_suggestion() -> None:
    torch.manual_seed(0)
    for _ in range(50):
        made = Curve(still=[1.0] * (STEPS + 1))
        for n in range(STEPS):
            made.add(1e-7 * 10 ** (n * 7 / 99), 1.0 + 0.05 * float(torch.randn(())))
        assert suggest_rate(made)[2].startswith(("flat", "unclear"))


def test_non_finite_loss_ends_the_range_test_and_is_not_kept() -> None:
    made = setup_of(SMALL, name="sgd", lr=0.05)
    made.model = nn.Sequential(made.model, NanAtLargeOutputs())
    _, test = new_range_test(made)
    found = test.run(0, 0, nothing_asked)
    assert found.ended_at is not None
    assert found.ended_at > found.rates[-1]
    assert all(math.isfinite(v) for v in (*found.losses, *found.smooth, *found.still))


@pytest.mark.parametrize(("name", "size"), [("sgd", 1500**0.5), ("momentum", 10.0), ("adam", 1.0), ("muon", 1.0)])
def test_rate_range_fits_the_optimizer_and_contains_the_present_rate(name: str, size: float) -> None:
    made = setup_of(SHUFFLED, name=name, lr=1e-2)
    assert rate_range(made.optimizer, 1e-2 * size) == pytest.approx((1e-7 * size, size))
    assert rate_range(made.optimizer, 1e-12) == pytest.approx((1e-13, size))
    assert rate_range(made.optimizer, 1e3) == pytest.approx((1e-7 * size, 1e4))
    assert rate_range(made.optimizer, 0.0) == pytest.approx((1e-7 * size, size))


def test_parameter_groups_keep_their_rate_ratio() -> None:
    made = setup_of(SMALL, name="sgd", lr=0.05)
    first, *rest = made.model.parameters()
    made.optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": rest, "lr": 0.0}])
    _, test = new_range_test(made)
    seen: list[list[float]] = []
    step = made.optimizer.step

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append([group["lr"] for group in made.optimizer.param_groups])
        return step(*args, **kwargs)

    made.optimizer.step = watched  # type: ignore[method-assign]
    test.run(0, 0, nothing_asked)
    assert len(seen) > 50
    assert all(second == 0.0 for _, second in seen)
