"""Skips opened and closed in every way, around built-in blocks and blocks of a user's net, and what `auto` means."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from net_families import setup, train
from torch import Tensor, nn

from tui_descent.training.setup.nets.block import Skip
from tui_descent.training.steering import surgery
from tui_descent.training.steering.surgery import Transition

FAMILIES = ["mlp", "conv", "transformer"]


def opened(made: Any, way: Any, scale: float) -> list[Transition]:
    return [surgery.open_skip(b, scale, steps=surgery.WAY_STEPS[way], way=way) for b in made.model.blocks]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", surgery.WAY_STEPS)
def test_every_way_starts_at_the_old_outputs_and_ends_as_a_net_built_that_way(family: str, way: Any) -> None:
    made = setup(family)
    x, _ = made.batches.next()  # type: ignore[union-attr]
    before = made.model(x)
    scale = surgery.default_scale(way, 7)
    transitions = opened(made, way, scale)
    assert torch.equal(made.model(x), before)
    for t in transitions:
        t.finish()
    twin = setup(family, residual={"name": "on", "scale": scale})
    if way == "rotation":
        for block in twin.model.blocks:  # type: ignore[union-attr]
            block.skip.gate = math.sqrt(0.5)  # type: ignore[union-attr]
    assert torch.equal(made.model(x), twin.model(x))
    assert repr(made.model) == repr(twin.model)
    closing = [surgery.close_skip(b, steps=surgery.WAY_STEPS[way], way=way) for b in made.model.blocks]  # type: ignore[arg-type, union-attr]
    assert torch.equal(made.model(x), twin.model(x))
    for t in closing:
        t.finish()
    assert torch.equal(made.model(x), before)
    assert all(b.skip is None for b in made.model.blocks)  # type: ignore[union-attr]


def test_a_rotation_keeps_the_sum_of_squares_at_one() -> None:
    (block, *_) = setup("mlp").model.blocks  # type: ignore[misc]
    transition = surgery.open_skip(block, 0.1, steps=50, way="rotation")
    for n in range(1, 51):
        assert transition.advance() == (n == 50)
        assert block.skip.gate == pytest.approx(math.sin(n / 50 * math.pi / 4))
        assert block.skip.branch == pytest.approx(math.cos(n / 50 * math.pi / 4))


def test_a_restored_transition_continues_as_before() -> None:
    (block, *_) = setup("mlp").model.blocks  # type: ignore[misc]
    transition = surgery.open_skip(block, 0.5, steps=20)
    for _ in range(7):
        transition.advance()
    keeper = (transition.steps_done, block.skip, block.skip.gate, block.skip.branch)
    while not transition.advance():
        pass
    transition.steps_done, block.skip, block.skip.gate, block.skip.branch = keeper
    transition.advance()
    assert block.skip.gate == pytest.approx(8 / 20)
    assert block.skip.branch == pytest.approx(1 - 8 / 20 * 0.5)


def test_a_half_open_skip_continues_from_its_current_state_in_any_way() -> None:
    (block, *_) = setup("mlp").model.blocks  # type: ignore[misc]
    first = surgery.open_skip(block, 0.5, steps=20)
    for _ in range(10):
        first.advance()
    assert (block.skip.gate, block.skip.branch) == (0.5, 0.75)
    second = surgery.open_skip(block, 0.5, steps=50, way="rotation")
    second.advance()
    assert block.skip.gate == pytest.approx(0.5, abs=0.03)
    assert block.skip.branch == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("start", "now", "depth", "way"),
    [(2.3, 0.1, 8, "rotation"), (2.3, 1.1, 10, "rotation"), (2.3, 0.1, 11, "gentle"), (2.3, 2.3, 20, "ramp"),
     (2.3, 2.3, 8, "ramp"), (2.3, math.nan, 8, "ramp"), (2.3, 1.15, 8, "ramp")],
)  # fmt: skip
def test_auto_depends_on_the_loss_and_the_depth(start: float, now: float, depth: int, way: str) -> None:
    assert surgery.resolve_way(start, now, depth) == way


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.heavy) for n in (2, 3, 4, 5))])
def test_the_default_way_spares_a_trained_net_that_an_instant_skip_wrecks(seed: int) -> None:
    peaks = {}
    trained = setup("mlp", seed=seed, depth=8, width=48)
    losses = train(trained, 250)
    now = sum(losses[-10:]) / 10
    for way in ("auto", "instant"):
        made = copy.deepcopy(trained)
        chosen: Any = surgery.resolve_way(losses[0], now, 8) if way == "auto" else way
        assert chosen != "ramp"
        scale = 1.0 if way == "instant" else surgery.default_scale(chosen, 8)
        peaks[way] = max(train(made, 70, opened(made, chosen, scale)))
    assert peaks["auto"] < 1.5
    assert peaks["instant"] > 50


@pytest.mark.parametrize("optimizer", [{"name": "sgd", "lr": 0.1}, {"name": "adam", "lr": 1e-3}], ids=["sgd", "adam"])
def test_auto_cures_vanishing_gradients(optimizer: Any) -> None:
    made = setup("mlp", depth=20, width=32, activation="sigmoid", optimizer=optimizer)
    losses = train(made, 100)
    way: Any = surgery.resolve_way(losses[0], losses[-1], 20)
    after = train(made, 80, opened(made, way, surgery.default_scale(way, 20)))
    assert losses[-1] > 2.2
    assert max(after) < 5
    assert sum(after[-10:]) / 10 < 1.15


def find_blocks(net: nn.Module, x: Tensor) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The blocks and reasons that are found during one forward pass."""
    observer = surgery.ForwardObserver(net)
    observer.attach()
    net(x)
    found = observer.finish()
    assert observer.error is None
    return found.blocks, found.reasons


class UserNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.body = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)])
        self.body.append(nn.Linear(8, 4))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for module in self.body:
            h = module(h)
        return self.drop(h)


def test_blocks_of_a_user_net_keep_their_shape_and_other_children_give_a_reason() -> None:
    net = UserNet()
    blocks, reasons = find_blocks(net, torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))
    assert list(blocks) == ["body.0", "body.1", "body.2"]
    assert reasons == {"body.3": "its output's shape (5, 4) differs from its input's (5, 8)"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_passes_without_gradients_and_earlier_passes_do_not_count_as_calls_of_a_block() -> None:
    net, x = UserNet(), torch.randn(5, 6)
    observer = surgery.ForwardObserver(net)
    observer.attach()
    with torch.no_grad():
        net(x)
    for _ in range(3):  # gradient accumulation
        net(x).sum().backward()
    assert list(observer.finish().blocks) == ["body.0", "body.1", "body.2"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # raised by torch when its compiler is imported
def test_a_block_that_was_compiled_after_the_search_began_gives_a_reason() -> None:
    net = UserNet()
    observer = surgery.ForwardObserver(net)
    observer.attach()
    net.body[1].compile(backend="eager")
    net(torch.randn(5, 6))
    found = observer.finish()
    assert list(found.blocks) == ["body.0", "body.2"]
    assert found.reasons["body.1"] == "the net is compiled by torch.compile; its graph cannot be changed"


class InPlace(nn.Module):
    """Adds to its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x += 1.0
        return x * self.w


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), InPlace(), nn.LSTM(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body[0](self.body[0](x))
        return self.body[2](self.body[1](h))[0]


def test_children_that_cannot_have_a_skip_give_a_reason() -> None:
    blocks, reasons = find_blocks(Twice(), torch.randn(5, 8))
    assert blocks == {}
    assert reasons["body.0"] == "it runs 2 times in a pass, not once"
    assert reasons["body.1"] == "it changes its input in place"
    assert reasons["body.2"].startswith("its input or output is a tuple")


class Backwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body[0](self.body[1](x))


def test_children_that_do_not_run_in_order_are_not_blocks() -> None:
    blocks, reasons = find_blocks(Backwards(), torch.randn(5, 8))
    assert blocks == {}
    assert set(reasons.values()) == {"children run in another order than registered"}


def test_a_skip_in_a_user_net_keeps_names_and_is_removed_without_a_trace() -> None:
    net = UserNet().eval()
    x = torch.randn(5, 6)
    names, before, tree = list(net.state_dict()), net(x), repr(net)
    block_with_skip = surgery.UserBlock(net.body[1])
    opening = surgery.open_skip(block_with_skip, 0.5, steps=4)
    assert torch.equal(net(x), before)
    opening.finish()
    assert list(net.state_dict()) == names
    h = net.body[0](net.stem(x))
    block = net.body[1]
    joined = h + 0.5 * block[1](block[0](h))
    assert torch.equal(net(x), net.body[3](net.body[2](joined)))
    assert torch.equal(block(h), joined)
    assert (type(block), repr(net)) == (nn.Sequential, tree)
    surgery.close_skip(block_with_skip, steps=4).finish()
    assert torch.equal(net(x), before)
    assert repr(net) == tree
    assert "forward" not in vars(block)
    assert not block._forward_hooks


def test_a_net_with_a_skip_can_be_copied_and_saved() -> None:
    net = UserNet().eval()
    x = torch.randn(5, 6)
    surgery.open_skip(surgery.UserBlock(net.body[1]), 0.5, steps=1).finish()
    before = net(x)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for twin in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x), before)
        with torch.no_grad():
            twin.body[1][0].weight.mul_(2)
            h = twin.body[0](twin.stem(x))
            joined = h + 0.5 * twin.body[1][1](twin.body[1][0](h))
            assert torch.equal(twin(x), twin.body[3](twin.body[2](joined))), "with the copy's weights"
        assert torch.equal(net(x), before)


def test_hooks_on_a_user_block_see_its_output_with_the_skip() -> None:
    block, x, outputs = nn.Linear(8, 8), torch.randn(5, 8), []
    block_with_skip = surgery.UserBlock(block)
    for skip in (None, Skip(0.5)):
        block_with_skip.skip = skip
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
    left = block(x)
    assert [torch.equal(output, left) for output in outputs] == [True, True]


def test_a_forward_set_by_the_user_is_used_and_restored() -> None:
    block, x = nn.Linear(8, 8), torch.randn(5, 8)
    block.forward = own = lambda x: x.sin()  # type: ignore[assignment, method-assign]
    block_with_skip = surgery.UserBlock(block)
    block_with_skip.skip = Skip(0.5)
    assert torch.equal(block(x), x + 0.5 * x.sin())
    block_with_skip.skip = None
    assert block.forward is own


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # raised by torch when its compiler is imported
def test_a_skip_is_rejected_for_a_changed_shape_and_a_compiled_net() -> None:
    block_with_skip = surgery.UserBlock(nn.Linear(8, 4))
    block_with_skip.skip = Skip(1.0)
    with pytest.raises(ValueError, match=r"output's shape \(5, 4\) differs from its input's \(5, 8\)"):
        block_with_skip.module(torch.randn(5, 8))
    with pytest.raises(ValueError, match=r"compiled by torch\.compile"):
        surgery.UserBlock(torch.compile(nn.Linear(8, 8)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the net is compiled by torch\.jit"):
        surgery.UserBlock(torch.jit.script(nn.Linear(8, 8)))
