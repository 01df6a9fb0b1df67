"""Errors of our own code: reported once, never raised into the user's loop."""

import functools

import pytest
import torch
from fake_keeper import FakeKeeper
from nets import digit_batches, loss_of, mlp
from torch import nn

from tui_descent.instruments.activations import Activations
from tui_descent.instruments.block_boundaries import BlockBoundaries
from tui_descent.instruments.chain_rule_ledger import ChainRuleLedger
from tui_descent.instruments.deferred import Deferred
from tui_descent.instruments.failures import Failures
from tui_descent.instruments.forward_order import ForwardOrder
from tui_descent.instruments.gradient_hooks import GradientHooks
from tui_descent.instruments.instrument_set import InstrumentSet
from tui_descent.instruments.net_structure import structure
from tui_descent.instruments.norms import Norms
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.events import Noted
from tui_descent.training.watch.watch import Watch


def test_a_failing_part_is_switched_off_and_reported_once():
    reported = []
    failures = Failures(reported.append)
    for _ in range(3):
        with failures.guard("the norms"):
            raise RuntimeError("dot: expected both vectors to have the same dtype\nsecond line")
    assert "the norms" in failures
    assert "the cosines" not in failures
    assert reported == [
        "switched off: the norms (RuntimeError: dot: expected both vectors to have the same dtype); training goes on"
    ]


def test_an_error_in_the_report_is_not_raised():
    def report(text):
        raise OSError("the link is closed")

    failures = Failures(report)
    failures.add("the norms", ValueError())
    assert "the norms" in failures


def test_an_interrupt_is_not_caught():
    with pytest.raises(KeyboardInterrupt), Failures().guard("the norms"):
        raise KeyboardInterrupt


INSTRUMENTS: list[tuple[type, str, str]] = [
    (BlockBoundaries, "attach", "the chain-rule factors"),
    (BlockBoundaries, "factors", "the chain-rule factors"),
    (BlockBoundaries, "_before_unit", "the chain-rule factors at blocks.0"),
    (BlockBoundaries, "_after_unit", "the chain-rule factors at blocks.0"),
    (Activations, "attach", "the activations"),
    (Activations, "read", "the activations"),
    (Activations, "_keep_output", "the activations after stem"),
    (Activations, "_read_group", "the activations after stem"),
    (ChainRuleLedger, "attach", "the chain-rule ledger"),
    (ChainRuleLedger, "entries", "the chain-rule ledger"),
    (ChainRuleLedger, "_before_block", "the chain-rule ledger of blocks.0"),
    (ChainRuleLedger, "_after_linear", "the chain-rule ledger of blocks.0"),
    (ChainRuleLedger, "_after_activation", "the chain-rule ledger of blocks.0"),
    (ChainRuleLedger, "_after_block", "the chain-rule ledger of blocks.0"),
    (ChainRuleLedger, "_chain", "the chain-rule ledger of blocks.0"),
    (GradientHooks, "_add", "the chain-rule factors at blocks.0"),
    (GradientHooks, "get", "the chain-rule factors"),
    (Norms, "before_update", "the norms"),
    (Norms, "after_update", "the norms"),
    (Norms, "remember", "the norms"),
    (ForwardOrder, "_called", "the forward order of the layers"),
    (InstrumentSet, "_sample", "the norms"),
]


@functools.cache
def unwatched() -> tuple[list[float], list[bytes], list[float]]:
    return train(None)


def train(keeper: FakeKeeper | None) -> tuple[list[float], list[bytes], list[float]]:
    torch.manual_seed(0)
    net = mlp(depth=2, activation="relu", residual="on")
    net.stem = nn.Sequential(net.stem, nn.ReLU())  # type: ignore[assignment]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    run = None if keeper is None else Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)).__enter__()
    losses = []
    for batch in digit_batches(4):
        loss = loss_of(net, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if run is not None:
            run.step(loss)
    if run is not None:
        run.__exit__(None, None, None)
    return losses, [p.detach().numpy().tobytes() for p in net.parameters()], torch.rand(3).tolist()


@pytest.mark.parametrize(("kind", "method", "part"), INSTRUMENTS, ids=lambda value: getattr(value, "__name__", value))
def test_training_goes_on_bitwise_when_an_instrument_raises(kind, method, part, keeper, monkeypatch):
    plain = unwatched()

    def fail(*args, **kwargs):
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(kind, method, fail)
    assert train(keeper) == plain
    notes = [event.text for event in keeper.events(Noted) if event.text.startswith("switched off")]
    assert [note for note in notes if note.startswith(f"switched off: {part}")], notes
    assert len(set(notes)) == len(notes), "said once"
    assert not torch.nn.modules.module._has_any_global_hook()
    if part != "the norms":
        assert [value for value in keeper.readings()[-1].values["grad_norm"] if value], "the others go on"


def test_a_failure_when_the_numbers_are_read_is_not_raised(keeper, monkeypatch):
    def late(self):
        return Deferred((), lambda values: values[3])

    plain = unwatched()
    monkeypatch.setattr(BlockBoundaries, "factors", late)
    monkeypatch.setattr(Activations, "read", late)
    assert train(keeper) == plain
    notes = [event.text for event in keeper.events(Noted)]
    assert sum("the chain-rule factors" in note for note in notes) == 1
    assert sum("the activations" in note for note in notes) == 1
    assert keeper.readings()[-1].values["grad_norm"]


def test_one_failing_layer_leaves_the_others_of_its_group(monkeypatch):
    net = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.Tanh())))
    found, failures = structure(net), []
    instrument = Activations(found.activations, found.layers, Failures(failures.append))
    group = Activations._read_group

    def fail_with_the_second(self, members):
        if 1 in members:
            raise ValueError("broken")
        return group(self, members)

    monkeypatch.setattr(Activations, "_read_group", fail_with_the_second)
    for _ in range(2):
        instrument.attach()
        net(torch.randn(4, 8)).sum().backward()
        instrument.detach()
        assert list(instrument.read().result()) == [0, 2]
    assert failures == ["switched off: the activations after 2 (ValueError: broken); training goes on"]
