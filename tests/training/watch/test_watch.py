"""A watched loop trains bitwise as an unwatched one, and what is recorded is what happened."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from fake_keeper import FakeKeeper
from nets import OPTIMIZERS, OptimizerFactory, copy_of, digit_batches, loss_of, mlp, same, same_state, state_of
from torch import nn

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import Evaluate, Mark, Pause, Resume, RunSteps, Stop, TurnKnob
from tui_descent.protocol.events import (
    CommandDone,
    CommandRejected,
    Evaluated,
    KnobTurned,
    Marked,
    MetricLogged,
    RunEnded,
    RunStarted,
)
from tui_descent.training.probes.evaluation import evaluate
from tui_descent.training.watch.user_loop import watch
from tui_descent.training.watch.watch import Watch
from tui_descent.training.watch.wiring import LOOKS


def train(
    made: OptimizerFactory, *, watched: bool, keeper: FakeKeeper | None = None, steps: int = 20, dropout: bool = False
) -> tuple[nn.Module, torch.optim.Optimizer, list[float]]:
    torch.manual_seed(3)
    net: nn.Module = mlp(norm="layer")
    if dropout:
        net = nn.Sequential(net, nn.ReLU(), nn.Dropout(0.2), nn.BatchNorm1d(10))
    optimizer = made(net.parameters())
    losses = []

    def step(batch: Any) -> torch.Tensor:
        loss = loss_of(net, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        return loss

    if not watched:
        for batch in digit_batches(steps):
            step(batch)
        return net, optimizer, losses
    with Watch(net, optimizer, link=keeper.link if keeper else None, sampler=Sampler(every=1)) as run:
        for batch in digit_batches(steps):
            run.step(step(batch))
    return net, optimizer, losses


@pytest.mark.parametrize("dropout", [False, True], ids=["plain", "dropout and batch norm"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_watching_every_step_leaves_weights_and_state_bitwise_equal(
    name: str, dropout: bool, keeper: FakeKeeper
) -> None:
    plain, plain_optimizer, plain_losses = train(OPTIMIZERS[name], watched=False, dropout=dropout)
    net, optimizer, losses = train(OPTIMIZERS[name], watched=True, keeper=keeper, dropout=dropout)
    assert len(keeper.readings()) == 20
    assert losses == plain_losses
    assert same(copy_of(net), copy_of(plain))
    assert same([b.clone() for b in net.buffers()], [b.clone() for b in plain.buffers()])
    assert same_state(state_of(optimizer), state_of(plain_optimizer))
    assert optimizer.state_dict()["param_groups"] == plain_optimizer.state_dict()["param_groups"]


def test_no_hook_remains_after_the_run() -> None:
    net, optimizer, _ = train(OPTIMIZERS["adam"], watched=True)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    for module in net.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert not module._backward_hooks


@pytest.mark.parametrize("clears", [True, False])
def test_forward_hooks_are_removed_after_the_first_steps(clears: bool) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with Watch(net, optimizer, link=None, sampler=Sampler(budget=0.0)) as run:
        assert torch.nn.modules.module._global_forward_pre_hooks
        for batch in digit_batches(LOOKS):
            if clears:
                optimizer.zero_grad()
            loss = loss_of(net, batch)
            loss.backward()
            optimizer.step()
            assert not torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
            run.step(loss)
            assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())
            assert not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in net.parameters())
        assert not torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]


def test_every_step_is_recorded_with_its_own_loss_and_rate(keeper: FakeKeeper) -> None:
    _, _, losses = train(OPTIMIZERS["sgd"], watched=True, keeper=keeper)
    steps = keeper.steps()
    assert [record.step for record in steps] == list(range(20))
    assert [record.loss for record in steps] == losses
    assert {record.lr for record in steps} == {0.05}
    assert not any(record.skipped for record in steps)
    times = [record.time_s for record in steps]
    assert times == sorted(times)
    assert times[0] >= 0


def test_run_is_reported_from_start_to_end(keeper: FakeKeeper) -> None:
    train(OPTIMIZERS["sgd"], watched=True, keeper=keeper)
    events = keeper.events()
    assert isinstance(events[0], RunStarted)
    assert events[0].parameters == 64 * 16 + 16 + 3 * (256 + 16 + 32) + 170
    assert isinstance(events[-1], RunEnded)
    assert (events[-1].status, events[-1].step) == ("finished", 20)


@pytest.mark.parametrize("micro", [2, 3, 5])
def test_accumulated_gradients_are_one_step_with_the_mean_loss(micro: int, keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    wanted, answers = [], []
    batches = digit_batches(4 * micro)
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)) as run:
        for n in range(4):
            losses = []
            optimizer.zero_grad()
            for k in range(micro):
                loss = loss_of(net, batches[n * micro + k])
                (loss / micro).backward()
                losses.append(loss.item())
                if k == micro - 1:
                    optimizer.step()
                answers.append(run.step(loss))
            wanted.append(math.fsum(losses) / micro)
        assert run.next_step == 4
    assert answers == ([False] * (micro - 1) + [True]) * 4
    steps = keeper.steps()
    assert [record.step for record in steps] == [0, 1, 2, 3]
    assert [record.loss for record in steps] == pytest.approx(wanted, rel=1e-12)
    assert [reading.step for reading in keeper.readings()] == [0, 1, 2, 3]


def test_several_updates_before_one_call_count_as_one_step_of_the_loop(keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=keeper.link) as run:
        for batch in digit_batches(3):
            for _ in range(2):
                loss = loss_of(net, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            run.step(loss)
    assert [record.step for record in keeper.steps()] == [0, 1, 2]


class SubclassedSGD(torch.optim.SGD):
    """Its step calls the base's, so that the hooks run twice."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class SubclassedAdam(torch.optim.Adam):
    """Its step calls the base's, so that the hooks run twice."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_subclass_that_calls_super_step_makes_one_update_a_step(keeper: FakeKeeper) -> None:
    plain, _, plain_losses = train(lambda p: torch.optim.SGD(p, lr=0.05), watched=False)
    net, _, losses = train(lambda p: SubclassedSGD(p, lr=0.05), watched=True, keeper=keeper)
    assert losses == plain_losses
    assert same(copy_of(net), copy_of(plain))
    assert [record.step for record in keeper.steps()] == list(range(20))
    assert [reading.step for reading in keeper.readings()] == list(range(20))


class HalvingSGD(torch.optim.SGD):
    """Halves the weights before the base's step."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.5)
        return super().step(closure)


def test_update_norm_includes_what_a_subclass_does_around_super_step(keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = HalvingSGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)) as run:
        loss = loss_of(net, digit_batches(1)[0])
        loss.backward()
        before = net.stem.weight.detach().clone()
        optimizer.step()
        run.step(loss)
        (reading,) = keeper.readings()
    wanted = (net.stem.weight.detach() - before).double().norm().item()
    assert reading.values["update_norm"][0] == pytest.approx(wanted, rel=1e-5)
    assert reading.values["weight_norm"][0] == pytest.approx(before.double().norm().item(), rel=1e-5)


@pytest.mark.parametrize("kind", [torch.optim.Adam, SubclassedAdam])
@pytest.mark.parametrize("by_name", [False, True], ids=["positional", "by name"])
def test_closure_is_watched(by_name: bool, kind: type[torch.optim.Optimizer], keeper: FakeKeeper) -> None:
    calls = 0

    def run_with(optimizer: torch.optim.Optimizer, net: nn.Module, batch: Any) -> torch.Tensor:
        def closure() -> torch.Tensor:
            nonlocal calls
            calls += 1
            optimizer.zero_grad()
            loss = loss_of(net, batch)
            loss.backward()
            return loss

        loss: torch.Tensor = optimizer.step(closure=closure) if by_name else optimizer.step(closure)  # type: ignore[assignment,arg-type]
        return loss

    plain, net = mlp(), mlp()
    plain_optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    optimizer = kind(net.parameters(), lr=1e-3)  # type: ignore[call-arg]
    plain_losses = [run_with(plain_optimizer, plain, batch).item() for batch in digit_batches(10)]
    losses = []
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)) as run:
        for batch in digit_batches(10):
            loss = run_with(optimizer, net, batch)
            losses.append(loss.item())
            assert run.step(loss)
        readings = keeper.readings()
    assert calls == 20
    assert losses == plain_losses
    assert same(copy_of(net), copy_of(plain))
    # The layers are known only after the first closure has run, too late for a reading of that step.
    assert [reading.step for reading in readings] == list(range(1, 10))
    assert all(value is not None for reading in readings for value in reading.values["grad_norm"])


@pytest.mark.parametrize("make", [lambda net, o: watch(net, o), lambda net, o: Watch(net, o, link=None)])
def test_lbfgs_is_refused_by_name(make: Any) -> None:
    net = mlp()
    with pytest.raises(ValueError, match="LBFGS cannot be watched"):
        make(net, torch.optim.LBFGS(net.parameters()))
    with pytest.raises(ValueError, match="LBFGS cannot be watched"):
        make(net, [torch.optim.SGD(net.parameters(), lr=0.1), torch.optim.LBFGS(net.parameters())])
    with pytest.raises(ValueError, match=r"watch\(\) takes torch\.optim\.Optimizer objects; found dict"):
        make(net, [{"lr": 0.1}])


def test_logged_metric_has_the_number_of_the_next_step(keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=keeper.link) as run:
        for n, batch in enumerate(digit_batches(3)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
            run.log("x", torch.tensor(n * 0.5))
    assert [(e.step, e.name, e.value) for e in keeper.events(MetricLogged)] == [
        (1, "x", 0.0),
        (2, "x", 0.5),
        (3, "x", 1.0),
    ]


def test_every_request_gets_one_reply_at_the_step_it_acts_on(keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    requests = {}
    with Watch(net, optimizer, link=keeper.link) as run:
        for n, batch in enumerate(digit_batches(6)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if n == 2:
                for command in (
                    TurnKnob(knob="lr", value="*2"),
                    TurnKnob(knob="lr", value="-1"),
                    TurnKnob(knob="nope", value="1"),
                    TurnKnob(knob="residual", value="on", target="blocks.77"),
                    TurnKnob(knob="residual", value="on", way="instant"),
                    Evaluate(),
                    Mark(text="m" * 200),
                    RunSteps(steps=0),
                    Pause(),
                    Resume(),
                ):
                    requests[keeper.send(command)] = command
            run.step(loss)
    events = keeper.events()
    replies = [e for e in events if isinstance(e, KnobTurned | CommandDone | CommandRejected)]
    assert sorted(e.request for e in replies) == sorted(requests)
    assert {e.step for e in replies} == {3}
    by_request = {e.request: e for e in replies}
    assert (by_request[1].old, by_request[1].new) == ("0.1", "0.2")
    assert by_request[2].reason.startswith("lr = -1; allowed: a number > 0")
    assert by_request[3].reason.startswith('unknown knob "nope"')
    assert by_request[4].reason.startswith('no block "blocks.77"; blocks are blocks.0')
    assert (by_request[5].old, by_request[5].new, by_request[5].way) == ("off", "on", "instant")
    assert by_request[6].reason == 'in your own loop, call run.log("val_loss", loss) instead'
    assert [e.text for e in events if isinstance(e, Marked)] == ["m" * 80]
    assert by_request[8].reason == "steps = 0; allowed: 1 to 10,000,000"
    assert [record.lr for record in keeper.steps()] == [0.1] * 3 + [0.2] * 3


def test_stop_ends_the_loop_after_the_step_without_an_exception(keeper: FakeKeeper) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    made = 0
    with Watch(net, optimizer, link=keeper.link) as run:
        for batch in digit_batches(10):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            made += 1
            if made == 4:
                keeper.send(Stop())
            run.step(loss)
    assert made == 4
    (ended,) = keeper.events(RunEnded)
    assert (ended.status, ended.step, ended.reason) == ("stopped", 4, "stop requested")


def test_evaluation_leaves_weights_mode_and_random_state_unchanged(keeper: FakeKeeper) -> None:
    from tui_descent.scenario import presets
    from tui_descent.training.setup.build import build

    _, scenario = presets.find("healthy")
    setup = build(scenario, on=torch.device("cpu"))
    setup.model.train()
    before, numbers = copy_of(setup.model), torch.get_rng_state()
    loss, accuracy = evaluate(setup)
    assert setup.model.training
    assert same(copy_of(setup.model), before)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert setup.batches is not None
    data = setup.batches.data
    out = setup.model(data.held_out_x)
    assert loss == pytest.approx(nn.functional.cross_entropy(out, data.held_out_y).item(), rel=1e-6)
    assert accuracy == pytest.approx((out.argmax(dim=1) == data.held_out_y).double().mean().item())
    with Watch(setup.model, setup.optimizer, link=keeper.link, evaluate=lambda: evaluate(setup)) as run:
        loss_tensor = setup.loss()
        loss_tensor.backward()
        setup.optimizer.step()
        run.step(loss_tensor)
        keeper.send(Evaluate())
        run.control.before_update()
    assert [e.step for e in keeper.events(Evaluated)] == [1, 1], "once asked for, once at the end"


@pytest.mark.parametrize(
    ("losses", "mean"), [((1e308, 1e308), math.inf), ((math.inf, -math.inf), math.nan), ((1.0, math.inf), math.inf)]
)
def test_losses_without_a_finite_mean_do_not_raise(
    losses: tuple[float, float], mean: float, keeper: FakeKeeper
) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=keeper.link) as run:
        for n, loss in enumerate((1.0, *losses)):
            loss_of(net, digit_batches(1)[0]).backward()
            if n != 1:
                optimizer.step()
            run.step(loss)
    (_, second) = keeper.steps()
    assert second.loss == pytest.approx(mean, nan_ok=True)


def test_net_with_torchscript_is_watched(keeper: FakeKeeper) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        inner = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    net = nn.Sequential(nn.Linear(4, 8), inner, nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)) as run:
        for _ in range(3):
            loss = net(torch.randn(3, 4)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
    (started,) = keeper.events(RunStarted)
    assert {layer.name for layer in started.layers} == {"0", "1.0", "2"}
    norms = [p.grad.norm() for p in net.parameters() if p.grad is not None]
    assert keeper.readings()[-1].global_grad_norm == pytest.approx(float(torch.stack(norms).norm()), rel=1e-5)
