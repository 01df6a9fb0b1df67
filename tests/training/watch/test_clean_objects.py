"""Copies, pickles and files of the user's objects, made at any time inside the `with`, know nothing of the watch."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.optim.swa_utils import AveragedModel

from tui_descent.instruments.sampler import Sampler
from tui_descent.training.watch.watch import Watch

HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def blocks() -> nn.Module:
    inner = [nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.GELU()) for _ in range(2)]
    return nn.Sequential(nn.Linear(8, 16), nn.Sequential(*inner), nn.BatchNorm1d(16), nn.Linear(16, 3))


NETS: list[Callable[[], nn.Module]] = [perceptron, blocks]
X, Y = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3


def file_of(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def hooks_on(net: nn.Module) -> int:
    return sum(len(getattr(m, table)) for m in net.modules() for table in HOOK_TABLES)


def loss_of(net: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(net(X), Y)


def nothing_left(net: nn.Module) -> bool:
    globally = torch_module._has_any_global_hook()  # type: ignore[no-untyped-call]
    hooked = any(p._backward_hooks or p._post_accumulate_grad_hooks for p in net.parameters())  # type: ignore[attr-defined]
    ours = any("global hooks" in str(pattern) for _, pattern, *_ in warnings.filters)
    return not (globally or hooked or ours or hooks_on(net) or torch._dynamo.callback_handler.start_callbacks)


@pytest.mark.parametrize("made", NETS)
def test_files_and_copies_inside_the_with_equal_those_without_us(made: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = made()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    before = file_of(net), pickle.dumps(optimizer)
    with Watch(net, optimizer, link=None, sampler=Sampler(every=1)) as run:
        assert (file_of(net), pickle.dumps(optimizer)) == before, "before the first step"
        ema = AveragedModel(net)
        for step in range(6):
            loss = loss_of(net)
            inside = copy.deepcopy(net)  # between the forward and the backward pass
            optimizer.zero_grad()
            loss.backward()
            after_backward = file_of(net)
            optimizer.step()
            assert b"tui_descent" not in after_backward + file_of(net) + pickle.dumps(optimizer)
            run.step(loss)
            ema.update_parameters(net)
            copied, copied_optimizer = copy.deepcopy((net, optimizer))
            twin = pickle.loads(pickle.dumps(net))
            assert [hooks_on(m) for m in (net, copied, inside, twin, ema)] == [0] * 5, step
            assert not copied_optimizer._optimizer_step_pre_hooks
            assert b"tui_descent" not in file_of(net) + file_of(optimizer) + file_of(ema)
    assert nothing_left(net)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def raise_in_the_forward_pass(net: nn.Module) -> None:
    net(torch.randn(2, 9))


def raise_in_the_backward_pass(net: nn.Module) -> None:
    loss = loss_of(net)
    loss.backward()
    loss.backward()


def raise_between(net: nn.Module) -> None:
    loss_of(net)
    raise RuntimeError("own")


def make_no_step(net: nn.Module) -> None:
    loss_of(net).backward()


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(
    "end", [raise_in_the_forward_pass, raise_in_the_backward_pass, raise_between, make_no_step, lambda net: None]
)
def test_nothing_is_left_after_the_with(end: Callable[[nn.Module], None], steps: int) -> None:
    net = perceptron()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    clean = file_of(nn.Sequential(*net))
    with contextlib.suppress(RuntimeError), Watch(net, optimizer, link=None, sampler=Sampler(every=1)) as run:
        for _ in range(steps):
            loss = loss_of(net)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
        end(net)
    assert nothing_left(net)
    assert len(file_of(net)) == len(clean)


def test_nothing_is_left_when_the_start_of_a_watch_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    net = perceptron()
    run = Watch(net, torch.optim.SGD(net.parameters(), lr=0.01), link=None)

    def fail() -> None:
        raise RuntimeError("no shared memory")

    monkeypatch.setattr(run._wiring, "start", fail)
    with pytest.raises(RuntimeError, match="no shared memory"):
        run.__enter__()
    assert nothing_left(net)


def test_warnings_of_the_loop_are_shown_as_often_as_without_us() -> None:
    net = perceptron()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        with Watch(net, optimizer, link=None, sampler=Sampler(every=1)) as run:
            for _ in range(4):
                loss = loss_of(net)
                loss.backward()
                optimizer.step()
                run.step(loss)
                warnings.warn("own", stacklevel=1)
    assert len(shown) == 1
