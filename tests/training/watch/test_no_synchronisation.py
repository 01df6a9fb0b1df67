"""Watching never waits for a number on the device."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from deferred_loops import FUSED, BatchReplay, SlowArrival, fused
from fake_keeper import FakeKeeper
from nets import OPTIMIZERS, ConvNet, PixelTransformer, digit_batches, loss_of, mlp
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tui_descent.instruments.deferred import HostCopy
from tui_descent.instruments.sampler import Sampler
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch import loss_readback, results
from tui_descent.training.watch.watch import Watch

# Reads on the host, results whose size depends on values, and `torch.tensor`, which copies from unpinned memory.
WAITS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "lift_fresh"}


class NoHostReads(TorchDispatchMode):
    """Fails if a number is read on the host: what torch.cuda.set_sync_debug_mode checks, on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self._methods = {name: getattr(Tensor, name) for name in ("tolist", "cpu", "numpy")}

    def __enter__(self) -> Any:
        for name, method in self._methods.items():
            setattr(Tensor, name, self._allow_arrivals(name, method))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for name, method in self._methods.items():
            setattr(Tensor, name, method)
        super().__exit__(*error)

    @staticmethod
    def _allow_arrivals(name: str, method: Any) -> Any:
        def checked(tensor: Tensor) -> Any:
            # These methods do not go through the dispatcher. Reading an `HostCopy` is allowed: it is in pinned memory.
            assert sys._getframe(1).f_code is HostCopy.values.__code__, f"{name} waits for the device"
            return method(tensor)

        return checked

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        assert name not in WAITS, f"{name} waits for the device"
        moved = (kwargs or {}).get("device")
        assert moved is None or torch.device(moved).type == "cpu"
        assert not (name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]))
        return func(*args, **(kwargs or {}))


def clip_and_check_cases() -> list[Any]:
    """Every optimizer with both values of each; the other two pairs of values usually with one optimizer only."""
    return [
        pytest.param(name, clip, check, marks=() if name == "adam" or (clip is None) != check else pytest.mark.heavy)
        for name in (*FUSED, "rmsprop")
        for clip in (None, 0.1)
        for check in (False, True)
    ]


@pytest.mark.parametrize(("name", "clip", "check"), clip_and_check_cases())
def test_fifty_watched_steps_with_every_tier_read_no_number(
    name: str,
    clip: float | None,
    check: bool,
    deferred_numbers: None,
    monkeypatch: pytest.MonkeyPatch,
    keeper: FakeKeeper,
) -> None:
    monkeypatch.setattr(loss_readback, "HostCopy", SlowArrival)
    monkeypatch.setattr(results, "HostCopy", SlowArrival)
    monkeypatch.setattr(SlowArrival, "asks", 2)
    SlowArrival.waited = 0
    watched_steps(keeper.link, torch.device("cpu"), name, clip, check, NoHostReads)


def every_activation() -> nn.Module:
    """An MLP whose blocks have an activation each."""
    kinds = (nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus, nn.LeakyReLU)
    net = mlp(depth=len(kinds), norm="rms")
    for block, kind in zip(net.blocks, kinds, strict=True):
        block.activation = kind()
    return net


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp of every activation": every_activation,
    "conv": ConvNet,
    "transformer": PixelTransformer,
}


@pytest.mark.parametrize("kind", NETS)
def test_instruments_of_every_net_read_no_number(
    kind: str, deferred_numbers: None, monkeypatch: pytest.MonkeyPatch, keeper: FakeKeeper
) -> None:
    monkeypatch.setattr(loss_readback, "HostCopy", SlowArrival)
    monkeypatch.setattr(results, "HostCopy", SlowArrival)
    monkeypatch.setattr(SlowArrival, "asks", 2)
    SlowArrival.waited = 0
    watched_steps(keeper.link, torch.device("cpu"), "adam", None, True, NoHostReads, NETS[kind]())
    assert len(keeper.readings()) == 28


def watched_steps(
    link: Any, on: torch.device, name: str, clip: float | None, check: bool, strict: Any, net: nn.Module | None = None
) -> None:
    """Train 56 watched steps, all but the first and last few inside `strict`."""
    net = (net or mlp(depth=3, activation="relu", residual="on", norm="layer")).to(on)
    optimizer = OPTIMIZERS[name](net.parameters()) if name == "rmsprop" else fused(name, net)
    steering = Steering(net, optimizer, clip=clip)
    again = BatchReplay(net)
    batches = [(x.to(on), y.to(on)) for x, y in digit_batches(20)]
    with Watch(
        net, optimizer, link=link, steering=steering, sampler=Sampler(every=2), replay=again, on_fault="hold"
    ) as run:
        for n in range(56):
            again.batch = batches[n % 20]
            with strict() if 4 <= n < 54 else nullcontext():
                loss = loss_of(net, again.batch)
                if check:
                    run.loss(loss)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.step(loss)
                run.log("mine", loss)
        assert SlowArrival.waited == 0, "only the end waits"


@contextmanager
def no_sync() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: NoHostReads checks the same on a CPU")
@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", [*FUSED, "rmsprop"])
def test_fifty_watched_steps_on_a_gpu_never_synchronise(
    name: str, clip: float | None, check: bool, keeper: FakeKeeper
) -> None:
    watched_steps(keeper.link, torch.device("cuda"), name, clip, check, no_sync)
    records = keeper.steps()
    assert [r.step for r in records] == list(range(56))
    assert all(math.isfinite(r.loss) for r in records)
    assert len(keeper.readings()) > 0


READS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x > 0).all()),
    "mask": lambda x: x[x > 0],
    "list": lambda x: x.tolist(),
    "made of numbers": lambda x: torch.tensor([1.0], device=x.device),
    "by numbers": lambda x: x[[0, 2]],
}


@pytest.mark.parametrize("what", READS)
def test_host_reads_are_detected(what: str) -> None:
    x = torch.ones(3)
    with pytest.raises(AssertionError), NoHostReads():
        READS[what](x)
    assert x.tolist() == [1.0, 1.0, 1.0]
