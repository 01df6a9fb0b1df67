"""Steering a user's net does what it says: nets as people write them, changes that are taken back, files, errors."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from fake_keeper import FakeKeeper
from foreign_nets import CASES, BertLayer
from nets import copy_of, same, same_state, state_of
from torch import Tensor, nn
from torch.nn import functional as F

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import Undo
from tui_descent.protocol.events import (
    CommandDone,
    CommandRejected,
    KnobTurned,
    Noted,
    Rewound,
    RunEnded,
    RunStarted,
    SnapshotTaken,
)
from tui_descent.scenario.knobs import parse
from tui_descent.training.watch.watch import Watch

KEYS = ("activation=relu", "activation=tanh,way=instant", "residual=on", "norm=layer", "init=he", "dropout=0.3")
COLUMNS = 80


@pytest.fixture
def keeper_with_undo(keeper: FakeKeeper) -> FakeKeeper:
    keeper.link.launch = msgspec.structs.replace(keeper.link.launch, socket="there")
    return keeper


@pytest.mark.parametrize("name", CASES)
def test_every_key_is_applied_or_refused_with_a_reason_and_undone_bitwise(
    name: str, keeper_with_undo: FakeKeeper
) -> None:
    case, keeper = CASES[name], keeper_with_undo
    net = case.make()
    texts = [*KEYS, f"freeze@{next(n for n, m in net.named_modules() if list(m.parameters(recurse=False)))}=on"]
    before: list[Any] = []
    replies: dict[str, Any] = {}

    def state(run: Watch) -> Any:
        return copy_of(net), state_of(run.optimizer), repr(net)

    undone = 0
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    with Watch(net, optimizer, link=keeper.link, sampler=Sampler(every=1)) as run:
        for n in range(2 * len(texts)):
            loss = case.loss(net, case.batch())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            # A change at each even step; it is undone at the next one.
            text = texts[n // 2]
            if n % 2 == 0:
                before.append(state(run))
                keeper.send(parse(text))
            else:
                (replies[text],) = keeper.events(KnobTurned | CommandRejected | CommandDone)  # type: ignore[arg-type]
                if isinstance(replies[text], KnobTurned):
                    keeper.send(Undo())
            run.step(loss)
            assert torch.isfinite(loss)
            if n % 2 and keeper.events(Rewound):
                undone += 1
                weights, adam, structure = state(run)
                assert same(weights, before[-1][0])
                assert same_state(adam, before[-1][1])
                assert structure == before[-1][2]
        assert not run.failures._off
    applied = [text for text, reply in replies.items() if isinstance(reply, KnobTurned)]
    assert undone == len(applied) >= 2
    for text, reply in replies.items():
        if isinstance(reply, CommandRejected):
            shown = f" rejected  {text}  {reply.reason}"
            assert len(shown) <= COLUMNS, shown
        elif isinstance(reply, CommandDone):
            assert reply.what.endswith(" already")
    assert not any("forward" in vars(module) for module in net.modules())


class Then(nn.Module):
    """A net that needs positive numbers from its hidden softplus."""

    def __init__(self, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.act, self.head = nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 1)
        self.norm, self.use = nn.BatchNorm1d(8), use
        self.calls: list[int] = []
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.calls.append(self.count)
        return self.head(F.dropout(self.norm(self.use(self.act(self.first(x))))))  # type: ignore[no-any-return]


def checked(h: Tensor) -> Tensor:
    torch.distributions.Normal(0.0, h, validate_args=True)  # raises unless all are positive
    return h


def positive(h: Tensor) -> Tensor:
    if bool((h < 0).any()):
        raise IndexError("negative numbers have no place")
    return h


def steered(net: nn.Module, x: Tensor, texts: dict[int, str], keeper: FakeKeeper, steps: int = 6) -> list[Tensor]:
    """Train with changes before some steps; returns the losses."""
    torch.manual_seed(2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    losses = []
    with Watch(net, optimizer, link=keeper.link) as run:
        for n in range(steps):
            loss = net(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if n + 1 in texts:
                keeper.send(parse(texts[n + 1]))
            run.step(loss)
    return losses


@pytest.mark.parametrize("way", ["blend", "instant"])
@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (torch.log, "nothing was changed: the outputs would be non-finite"),
        (lambda h: 1 / h.square(), "nothing was changed: the outputs would be non-finite"),
        (checked, "nothing was changed: the net would raise ValueError: Expected"),
        (positive, "nothing was changed: the net would raise IndexError: negative numbers"),
    ],
)
def test_a_change_that_breaks_the_forward_pass_is_taken_back_before_the_next_step(
    use: Callable[[Tensor], Tensor], reason: str, way: str, keeper_with_undo: FakeKeeper
) -> None:
    x, results = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), []
    for texts in ({}, {3: f"activation={'tanh' if use is positive else 'relu'},way={way}"}):
        torch.manual_seed(0)
        net = Then(use)
        losses = steered(net, x, texts, keeper_with_undo) if texts else steered_alone(net, x)
        results.append((losses, copy_of(net), net.calls, net.count, repr(net)))
    assert same(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])
    assert results[0][2:] == results[1][2:]
    (rejected,) = keeper_with_undo.events(CommandRejected)
    assert rejected.reason.startswith(reason)


def steered_alone(net: nn.Module, x: Tensor, steps: int = 6) -> list[Tensor]:
    """The same loop without watching."""
    torch.manual_seed(2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        loss = net(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("text", ["init=he", "kick=0.5", "activation=tanh,way=instant"])
def test_trying_a_change_disturbs_neither_random_numbers_nor_buffers_nor_attributes(
    text: str, keeper_with_undo: FakeKeeper
) -> None:
    net, x = Then(lambda h: h + torch.rand(()) + float(torch.rand(()) > 2)), torch.randn(16, 6)
    net.act = nn.ReLU()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with Watch(net, optimizer, link=keeper_with_undo.link) as run:
        for _ in range(3):
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step()
            run.step(loss)
        before = [b.clone() for b in net.buffers()], net.calls.copy(), net.count, torch.get_rng_state()
        grads = [p.grad for p in net.parameters()]
        ran = []
        handle = net.first.register_forward_hook(lambda *_: ran.append(1))
        run.steering.turn(parse(text), step=3)
        handle.remove()
        assert len(ran) == 2, "before and after the change"
        assert same(before[0], list(net.buffers()))
        assert (net.calls, net.count) == before[1:3]
        assert torch.equal(torch.get_rng_state(), before[3])
        assert all(p.grad is g for p, g in zip(net.parameters(), grads, strict=True)) or text.startswith("init")


@pytest.mark.parametrize(
    ("text", "likely"),
    [
        ("activation=tanh,way=instant", True),
        ("activation=tanh", True),
        ("kick=0.1", True),
        ("lr=*0.5", False),
    ],
)
def test_an_error_of_the_next_step_names_the_change_as_its_likely_cause(
    text: str, likely: bool, keeper_with_undo: FakeKeeper
) -> None:
    net, x = Then(lambda h: h), torch.randn(16, 6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with (  # noqa: PT012
        pytest.raises(IndexError) as caught,
        Watch(net, optimizer, link=keeper_with_undo.link) as run,
    ):
        for n in range(6):
            if n == 3:
                raise IndexError("my data ended")
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step()
            if n == 2:
                keeper_with_undo.send(parse(text))
            run.step(loss)
    events = keeper_with_undo.events()
    (ended,) = [event for event in events if isinstance(event, RunEnded)]
    notes = [event.text for event in events if isinstance(event, Noted)]
    assert ended.reason.startswith("IndexError: my data ended")
    assert ("likely cause" in ended.reason) == likely
    assert any("likely cause" in note for note in notes) == likely
    assert len(getattr(caught.value, "__notes__", [])) == likely
    if likely:
        assert f"likely cause: {text.partition('=')[0]}" in ended.reason
        assert "at step 3" in ended.reason


PRESENT = (
    "lr=0.01", "activation=tanh", "activation@1=tanh,way=instant", "residual=off", "dropout=0.2", "freeze=off",
    "freeze@0=off", "momentum=0.5", "weight_decay=0.001", "clip=off", "pace=max",
)  # fmt: skip


def test_choosing_the_present_value_is_no_intervention(keeper_with_undo: FakeKeeper) -> None:
    keeper = keeper_with_undo
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.5, weight_decay=1e-3)
    with Watch(net, optimizer, link=keeper.link) as run:
        for n in range(len(PRESENT) + 2):
            loss = net(torch.randn(8, 6)).square().mean()
            loss.backward()
            optimizer.step()
            if n:
                keeper.send(parse(PRESENT[n - 1]) if n <= len(PRESENT) else Undo())
            run.step(loss)
        stack = run.control.undo_stack
        assert stack is not None
        assert stack.in_force == ()
    events = keeper.events()
    done = [event.what for event in events if isinstance(event, CommandDone)]
    assert done[0] == "lr is 0.01 already"
    assert done[2] == "activation of 1 is tanh already"
    assert len(done) == len(PRESENT)
    assert all(what.endswith(" already") for what in done)
    assert not any(isinstance(event, KnobTurned) for event in events)
    assert not [event for event in events if isinstance(event, SnapshotTaken) and event.reason != "periodic"]
    (rejected,) = [event for event in events if isinstance(event, CommandRejected)]
    assert rejected.reason.startswith("nothing to undo")


@pytest.mark.parametrize(
    "text", ["kick=0.01", "init=he", "residual=on", "lr=0.02", "activation=relu", "dropout=0.3", "freeze@0=on"]
)
def test_another_value_is_an_intervention_and_once_more_is_none_except_for_a_new_draw(
    text: str, keeper_with_undo: FakeKeeper
) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 1))
    steered(net, torch.randn(8, 6), {2: text, 4: text}, keeper_with_undo)
    again = text.startswith(("kick", "init"))
    assert len(keeper_with_undo.events(KnobTurned)) == 1 + again


def test_the_receipt_says_which_modules_changed_and_what_saved_models_need(keeper_with_undo: FakeKeeper) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 1), nn.Sigmoid()
    )
    texts = {1: "activation=gelu", 2: "residual=on", 3: "activation=elu,way=instant"}
    steered(net, torch.randn(8, 6), texts, keeper_with_undo)
    notes = [event.note for event in keeper_with_undo.events(KnobTurned)]
    assert notes == [
        "2 modules: 1, 2.1; 1 left alone; models saved before step 51 need tui_descent",
        "1 module: 2; saved models need tui_descent, copies by run.plain do not",
        "2 modules: 1, 2.1; 1 left alone",
    ]


class Masked(nn.Module):
    """A block whose `forward` has more arguments than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        y = torch.tanh(self.inner(x)) * scale
        return y if mask is None else y * mask


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(6, 8), nn.ModuleList([Masked(), Masked()]), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, mask=torch.ones(8), scale=0.5)
        return self.head(h)  # type: ignore[no-any-return]


def sequential() -> nn.Module:
    inner = (nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.5)) for _ in range(2))
    return nn.Sequential(nn.Linear(6, 8), *inner, nn.Linear(8, 1))


def convolutional() -> nn.Module:
    blocks = (nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU()) for _ in range(2))
    return nn.Sequential(nn.Unflatten(1, (6, 1)), *blocks, nn.Flatten(), nn.Linear(6, 1))


def test_rezero_is_refused_because_it_would_add_parameters(keeper_with_undo: FakeKeeper) -> None:
    net, x = sequential(), torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    steered(net, x, {2: "residual=on,way=rezero"}, keeper_with_undo)
    (rejected,) = keeper_with_undo.events(CommandRejected)
    assert rejected.reason == "rezero adds parameters, which only built-in nets can have: choose another way"
    assert len(rejected.reason) <= COLUMNS
    assert not any("alpha" in name for name, _ in net.named_parameters())


LOADER = """
import sys
sys.modules["tui_descent"] = None
import torch
model = torch.load(sys.argv[1], weights_only=False)
x, expected = torch.load(sys.argv[2])
torch.manual_seed(5)
assert torch.equal(model(x), expected)
model(x).sum().backward()
assert all(p.grad is not None for p in model.parameters())
"""


@pytest.mark.parametrize(("make", "way"), [(sequential, "rotation"), (convolutional, "ramp"), (sequential, "instant")])
def test_a_plain_copy_loads_without_this_package_and_gives_bitwise_the_same_outputs(
    make: Callable[[], nn.Module], way: str, keeper_with_undo: FakeKeeper, tmp_path: Path
) -> None:
    net, x = make(), torch.randn(8, 6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with Watch(net, optimizer, link=keeper_with_undo.link) as run:
        for n in range(5):
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step()
            if n == 1:
                keeper_with_undo.send(parse(f"residual=on,way={way}"))
                keeper_with_undo.send(parse("activation=gelu,way=instant"))
            run.step(loss)
        for model in (net, copy.deepcopy(net)):
            plain = run.plain(model)
            torch.manual_seed(5)
            expected = net(x)
            torch.manual_seed(5)
            assert torch.equal(plain(x), expected)
            assert plain.training == net.training
            file = io.BytesIO()
            torch.save(plain, file)
            assert b"tui_descent" not in file.getvalue()
        assert "forward" in vars(net[1]), "the watched net keeps its skips"  # type: ignore[index]
        (tmp_path / "model").write_bytes(file.getvalue())
        torch.save((x, expected.detach()), tmp_path / "outputs")
    if way == "rotation":
        files = [str(tmp_path / "model"), str(tmp_path / "outputs")]
        subprocess.run([sys.executable, "-c", LOADER, *files], check=True)


def test_a_plain_copy_keeps_the_arguments_of_a_block(keeper_with_undo: FakeKeeper) -> None:
    net, x = Stack(), torch.randn(8, 6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with Watch(net, optimizer, link=None) as run:
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
        run.step(loss)
        run.steering.turn(parse("residual=on,way=instant"))
        run.steering.advance()
        plain = run.plain()
        assert torch.equal(plain(x), net(x))
        assert not [m for m in plain.modules() if type(m).__module__.startswith("tui_descent")]


class Variadic(Masked):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return super().forward(x, *args, **kwargs)


def test_what_cannot_be_made_plain_is_said(keeper_with_undo: FakeKeeper) -> None:
    net, x = Stack(), torch.randn(8, 6)
    net.blocks[1] = Variadic()
    net.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with Watch(net, optimizer, link=None) as run:
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
        run.step(loss)
        run.steering.turn(parse("activation=gelu"))
        with pytest.raises(ValueError, match=r"head\.1 is a Blend of tui_descent; it becomes plain when"):
            run.plain()
        run.steering.turn(parse("activation=gelu,way=instant"))
        run.steering.turn(parse("residual=on"))
        with pytest.raises(ValueError, match=r"skip around Variadic cannot be made plain: its forward takes \*args"):
            run.plain()


@pytest.mark.parametrize("text", ["activation=relu", "residual=on", "norm=layer", "dropout=0.5"])
def test_a_refusal_names_the_true_reason(text: str, keeper_with_undo: FakeKeeper) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Sequential(BertLayer(8)), nn.Linear(8, 1))
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    net[1][0].intermediate_act_fn = nn.Identity()  # type: ignore[index]
    steered(net, torch.randn(4, 5, 6), {2: text}, keeper_with_undo)
    reasons = {
        "activation": "no activation modules; F.relu etc. cannot be changed",
        "residual": "each block adds its input in its own code",
        "norm": "only built-in nets have a place for new norm layers",
    }
    events = keeper_with_undo.events()
    reason = next((event.reason for event in events if isinstance(event, CommandRejected)), None)
    assert reason == reasons.get(text.partition("=")[0])
    (started,) = [event for event in events if isinstance(event, RunStarted)]
    states = {state.name: state for state in started.knobs}
    assert (states["residual"].value, states["norm"].unavailable is None) == ("own", False)


@pytest.mark.parametrize("frozen", [[0], [0, 2], [0, 2, 4]])
@pytest.mark.parametrize("held", [True, False])
def test_frozen_layers_are_unfrozen_only_if_an_optimizer_would_train_them(
    frozen: list[int], held: bool, keeper_with_undo: FakeKeeper
) -> None:
    keeper = keeper_with_undo
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 1))
    for n in frozen:
        net[n].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if held or p.requires_grad], lr=0.01)
    with Watch(net, optimizer, link=keeper.link) as run:
        for n in range(4):
            loss = net(torch.randn(8, 6)).square().mean()
            loss.backward()
            optimizer.step()
            if n == 1:
                keeper.send(parse("freeze=off"))
            run.step(loss)
    assert all(p.requires_grad for p in net.parameters()) == held
    events = keeper.events()
    assert not [event for event in events if isinstance(event, CommandDone)], "it does not claim that nothing is frozen"
    assert len([event for event in events if isinstance(event, KnobTurned)]) == held
    reasons = [event.reason for event in events if isinstance(event, CommandRejected)]
    assert reasons == ([] if held else ["the frozen weights are in no watched optimizer: add them in your script"])
