"""What a GPU tells only later, on a CPU: told late it is told the same, in its place; nothing waits for a number."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from kept import Kept
from nets import OPTIMIZERS, ConvNet, Words, copy_of, digit_batches, loss_of, mlp, same, same_state, state_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tui_descent.instruments import deferred
from tui_descent.instruments.deferred import Arrival
from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import Mark, Resume, TurnKnob, Undo
from tui_descent.protocol.events import (
    CommandDone,
    KnobTurned,
    LedgerTaken,
    Marked,
    Measured,
    MetricLogged,
    NotFinite,
    Rewound,
    RunEnded,
    StateChanged,
)
from tui_descent.scenario import presets
from tui_descent.training import late, verdict
from tui_descent.training.build import build
from tui_descent.training.past import Past
from tui_descent.training.steering import Steering
from tui_descent.training.watch import Watch


class Slow(Arrival):
    """Arrived only when it has been asked so many times."""

    asks = 3
    waited = 0
    open = 0
    most_open = 0

    def __init__(self, columns: Any) -> None:
        super().__init__(columns)
        self._left = type(self).asks
        self._told = False
        Slow.open += 1
        Slow.most_open = max(Slow.most_open, Slow.open)

    @property
    def here(self) -> bool:
        self._left -= 1
        return self._left < 0

    def values(self) -> list[float]:
        Slow.waited += self._left >= 0
        if not self._told:
            self._told = True
            Slow.open -= 1
        return super().values()


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's numbers are not to be looked at at once: sums are wide, as on a GPU."""
    monkeypatch.setattr(deferred, "FAR", {"cuda", "cpu"})


@pytest.fixture(params=[(64, 0), (7, 3), (3, 9)], ids=["at once", "soon", "further and further behind"])
def slow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Slow]:
    """So many rows go together, and have come when asked for so many times."""
    rows, asks = request.param
    monkeypatch.setattr(verdict, "ROWS", rows)
    monkeypatch.setattr(verdict, "SEND_AFTER_S", 0.0 if asks == 0 else math.inf)
    monkeypatch.setattr(Slow, "asks", asks)
    monkeypatch.setattr(late, "Arrival", Slow)
    Slow.waited = Slow.open = Slow.most_open = 0
    return Slow


@pytest.fixture
def at_hand(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Whether losses are read at once; a GPU's instruments in either case."""
    return lambda yes: monkeypatch.setattr(late, "comes_late", lambda device: not yes)


class Again:
    """The batch once more."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.batch = digit_batches(1)[0]

    def forward_again(self) -> Tensor:
        return loss_of(self.net, self.batch)

    def part(self, where: slice) -> Tensor | None:
        return loss_of(self.net, (self.batch[0][where], self.batch[1][where]))

    def size(self) -> int:
        return len(self.batch[0])


def train(
    kept: Kept | None,
    *,
    steps: int = 90,
    every: int = 7,
    plan: dict[int, TurnKnob] | None = None,
    micro: int = 1,
    around: Any = None,
    hand: bool = False,
) -> list[float]:
    """Its losses. `plan` turns knobs before updates; `around` is entered for everything but the loop's own work."""
    torch.manual_seed(0)
    net = mlp(depth=3, activation="gelu", residual="on", norm="layer")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    again, losses = Again(net), []
    batches = digit_batches(20)
    run = Watch(
        net,
        optimizer,
        link=kept.link if kept else None,
        sampler=Sampler(every=every),
        again=again,
        plan=[] if plan is None else plan.items(),
    )
    with run:
        for n in range(steps * micro):
            again.batch = batches[n % 20]
            loss = loss_of(net, again.batch)
            if hand:
                run.loss(loss)
            (loss / micro).backward()
            if n % micro == micro - 1:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
            run.step(loss)
            if n == 10:
                run.log("mine", loss.detach() * 2)
    return [float(loss) for loss in losses]


def told(folder: Path, **how: Any) -> tuple[list[Any], list[Any], list[Any], list[float]]:
    """Records without their times, readings, and the events that belong to steps."""
    folder.mkdir()
    kept = Kept(folder)
    try:
        losses = train(kept, **how)
        steps = [(s.segment, s.step, s.loss, s.lr, s.skipped) for s in kept.steps()]
        readings = [
            (r.step, r.global_grad_norm, r.global_cosine, r.grad_norm_preclip, r.values) for r in kept.readings()
        ]
        events = kept.events()
    finally:
        kept.close()
    kinds = (Measured, LedgerTaken, MetricLogged)
    return steps, readings, [e for e in events if isinstance(e, kinds)], losses


@pytest.mark.parametrize("hand", [False, True], ids=["", "loss handed over"])
@pytest.mark.parametrize("micro", [1, 3])
def test_told_late_it_is_told_the_same_and_nothing_is_lost(
    micro: int, hand: bool, far: None, slow: type[Slow], at_hand: Callable[[bool], None], tmp_path: Path
) -> None:
    how: dict[str, Any] = {"micro": micro, "hand": hand, "steps": 150 // micro}
    at_hand(True)
    now = told(tmp_path / "now", **how)
    at_hand(False)
    later = told(tmp_path / "later", **how)
    assert len(now[0]) == 150 // micro
    assert [step[1] for step in later[0]] == list(range(150 // micro))
    for a, b in zip(now, later, strict=True):
        assert repr(a) == repr(b)
    if micro == 1:
        assert [step[2] for step in later[0]] == later[3]
    assert slow.open == 0, "whatever was set off has been read"


def fused(name: str, net: nn.Module) -> torch.optim.Optimizer:
    """The optimizers whose update can be stopped on the device."""
    if name == "adam":
        return torch.optim.Adam(net.parameters(), lr=1e-2, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    momentum = 0.9 if name == "momentum" else 0.0
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=momentum, fused=True)


FUSED = ("sgd", "momentum", "adam", "adamw")
BAD_AT = 5


def steer_into(
    kept: Kept | None,
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer],
    *,
    bad_at: int = BAD_AT,
    steps: int = 60,
    on_fault: Any = "hold",
    spoil: Any = math.nan,
    hand: bool = False,
    each: Callable[[int, Watch], None] = lambda n, run: None,
) -> tuple[nn.Module, torch.optim.Optimizer, Watch, list[tuple[list[Tensor], list[Any]]]]:
    """At `bad_at` all gradients are spoilt, or the loss itself; weights and state after every step."""
    net = mlp()
    optimizer = optimizer_of(net)
    after = []
    batches = digit_batches(20)
    with Watch(net, optimizer, link=kept.link if kept else None, sampler=Sampler(every=0), on_fault=on_fault) as run:
        for n in range(steps):
            each(n, run)
            loss = loss_of(net, batches[n % 20])
            if n == bad_at and spoil == "loss":
                loss = loss * math.inf
            if hand:
                assert run.loss(loss), "nothing is known yet"
            optimizer.zero_grad()
            loss.backward()
            if n == bad_at and spoil != "loss":
                for p in net.parameters():
                    assert p.grad is not None
                    p.grad.fill_(spoil)
            optimizer.step()
            after.append((copy_of(net), state_of(optimizer)))
            assert run.step(loss), "as far as anybody knows yet"
    return net, optimizer, run, after


@pytest.mark.parametrize("name", [*FUSED, "rmsprop"])
def test_watched_late_or_not_at_all_the_bits_are_the_same(name: str, far: None, slow: type[Slow]) -> None:
    def made(net: nn.Module) -> torch.optim.Optimizer:
        return OPTIMIZERS[name](net.parameters()) if name == "rmsprop" else fused(name, net)

    _, _, _, watched = steer_into(None, made, bad_at=-1, hand=True)
    net = mlp()
    optimizer = made(net)
    batches = digit_batches(20)
    for n in range(60):
        optimizer.zero_grad()
        loss_of(net, batches[n % 20]).backward()
        optimizer.step()
        assert same(copy_of(net), watched[n][0])
        assert same_state(state_of(optimizer), watched[n][1])


def resumes(kept: Kept, *commands: Any) -> list[int]:
    """What is ordered once the run stands; the numbers of steps that had been written by then."""
    stood: list[int] = []
    wait = kept.link.wait

    def still(timeout_s: float | None) -> None:
        if timeout_s is None and not stood:
            assert kept.link.ring is not None
            stood.append(kept.link.ring._written)
            for command in (*commands, Resume()):
                kept.order(command)
        wait(timeout_s)

    kept.link.wait = still  # type: ignore[method-assign]
    return stood


@pytest.mark.parametrize("spoil", [math.nan, math.inf, "loss"], ids=str)
@pytest.mark.parametrize("name", FUSED)
def test_a_bad_update_of_a_fused_optimizer_is_none_and_none_is_made_until_the_run_is_held(
    name: str, spoil: Any, far: None, slow: type[Slow]
) -> None:
    net, optimizer, run, after = steer_into(None, lambda net: fused(name, net), spoil=spoil, hand=spoil == "loss")
    weights, state = after[BAD_AT - 1]
    still = [same(w, weights) and same_state(s, state) for w, s in after]
    going_on = still.index(False, BAD_AT)
    assert going_on > BAD_AT, "the bad one at least was not made"
    assert all(still[BAD_AT:going_on])
    assert not any(still[going_on:]), "and so it went on"
    assert all(p.isfinite().all() for p in net.parameters())
    assert not hasattr(optimizer, "found_inf")
    assert run.outcome == ("finished", "")


def test_a_late_hold_names_the_step_and_comes_behind_all_that_was_made(far: None, slow: type[Slow], kept: Kept) -> None:
    stood = resumes(kept)
    steer_into(kept, lambda net: fused("adam", net))
    records = kept.steps()
    assert [r.step for r in records] == list(range(60))
    (held_at,) = stood
    assert [r.step for r in records if r.skipped] == list(range(BAD_AT, held_at))
    (fault,) = kept.events(NotFinite)
    since = held_at - BAD_AT - 1
    when = f"found {since} update{'s' * (since != 1)} later" if since else "found just after the update"
    assert fault.step == BAD_AT
    assert fault.text == (
        f"the gradient that reaches the input is not finite at step {BAD_AT}, {when}; "
        "no update was made from there on: the weights are as they were"
    )


@pytest.mark.parametrize("spoil", [math.nan, "loss"], ids=str)
def test_where_it_cannot_be_stopped_the_last_good_moment_is_offered_and_an_undo_goes_there(
    spoil: Any, far: None, slow: type[Slow], kept: Kept
) -> None:
    net = mlp()
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-3)
    batches = digit_batches(20)
    with Watch(net, optimizer, link=kept.link, sampler=Sampler(every=0), on_fault="hold") as run:
        run.control.past = Past(lambda: [net, run.control.steering], lambda: run.optimizer, net, randoms=False)
        resumes(kept, Undo())
        start = copy_of(net)
        for n in range(40):
            loss = loss_of(net, batches[n % 20]) * (math.nan if spoil == "loss" and n == BAD_AT else 1)
            optimizer.zero_grad()
            loss.backward()
            if n == BAD_AT:
                assert net.stem.weight.grad is not None
                net.stem.weight.grad.fill_(math.nan)
            optimizer.step()
            run.step(loss)
    events = kept.events()
    (fault,) = [e for e in events if isinstance(e, NotFinite)]
    assert (fault.step, fault.layer) == (BAD_AT, "stem")
    assert f"at step {BAD_AT}, found" in fault.text
    assert "the update was made and the weights of stem went bad" in fault.text
    (held,) = [e for e in events if isinstance(e, StateChanged) and e.state == "held"]
    assert held.reason == f"{fault.text}; u goes back to step 1"
    (rewound,) = [e for e in events if isinstance(e, Rewound)]
    assert rewound.to_step == 1
    assert all(p.isfinite().all() for p in net.parameters())
    assert not same(copy_of(net), start)
    records = kept.steps()
    assert [r.step for r in records] == list(range(40))
    assert {r.segment for r in records if r.step < rewound.from_step} == {0}
    assert {r.segment for r in records if r.step >= rewound.from_step} == {1}


def test_a_first_update_with_momentum_is_looked_at_beforehand(far: None, slow: type[Slow]) -> None:
    net = mlp()
    optimizer = fused("momentum", net)
    with Watch(net, optimizer, link=None, on_fault="hold", own_loop=True) as run:
        for n, batch in enumerate(digit_batches(4)):
            optimizer.zero_grad()
            loss = loss_of(net, batch)
            loss.backward()
            weights = copy_of(net)
            if n == 0:
                net.stem.weight.grad.fill_(math.nan)
            optimizer.step()
            assert run.step(loss) == (n > 0)
            assert same(copy_of(net), weights) == (n == 0)
            assert bool(optimizer.state) == (n > 0), "no buffer that nothing has filled"
    assert run.next_step == 3


@pytest.mark.parametrize("come_late", [False, True], ids=["direct", "late"])
@pytest.mark.parametrize("on_fault", ["hold", "end"])
def test_an_overflow_under_a_scaler_is_a_skipped_step_and_no_fault(
    on_fault: Any, come_late: bool, at_hand: Callable[[bool], None], slow: type[Slow], kept: Kept
) -> None:
    at_hand(not come_late)
    net = mlp()
    optimizer = fused("adamw", net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with Watch(net, optimizer, link=kept.link, sampler=Sampler(every=1), on_fault=on_fault) as run:
        for n, batch in enumerate(digit_batches(20)):
            optimizer.zero_grad()
            loss = loss_of(net, batch)
            scaler.scale(loss).backward()
            weights = copy_of(net)
            if n in (BAD_AT, BAD_AT + 3):
                # The second where the guard does not look.
                layer = net.stem if n == BAD_AT else net.blocks[-1].linear
                layer.weight.grad[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update()
            run.step(loss)
            assert same(copy_of(net), weights) == (n in (BAD_AT, BAD_AT + 3))
    assert run.outcome == ("finished", "")
    assert not kept.events(NotFinite)
    assert [r.step for r in kept.steps() if r.skipped] == [BAD_AT, BAD_AT + 3]
    assert [r.step for r in kept.readings()] == [n for n in range(20) if n not in (BAD_AT, BAD_AT + 3)]
    assert scaler.get_scale() == 2.0**8


def test_rows_go_together_while_steps_are_short_and_each_by_itself_when_they_are_long() -> None:
    rows = verdict.Verdicts(torch.device("cpu"), Arrival)
    sent = []
    for n, now_s in enumerate((0.0, 0.01, 0.02, 0.035, 1.0, 2.0)):
        rows.loss(float(n))
        rows.close_row(now_s)
        sent.append([row.loss for row in rows.arrived()])
    assert sent == [[0.0], [], [], [1.0, 2.0, 3.0], [4.0], [5.0]]
    for n in range(verdict.ROWS):
        rows.loss(float(n))
        rows.close_row(2.0)
    assert len(rows.arrived()) == verdict.ROWS, "as many as there is room for, however short they were"


def test_a_row_that_is_begun_outlasts_the_sending_of_those_before_it() -> None:
    rows = verdict.Verdicts(torch.device("cpu"), Arrival)
    weight = nn.Parameter(torch.zeros(2))
    for loss in (1.0, 2.0):
        rows.loss(torch.tensor(loss))
        rows.look(torch.tensor([loss, -3 * loss]), torch.optim.SGD([weight]), stop=False)
        if loss == 2.0:
            rows.send()
        rows.close_row(0.0)
    rows.send()
    assert rows.arrived() == [(1.0, 3.0, 0.0), (2.0, 6.0, 0.0)]


@pytest.mark.parametrize("bad_at", [BAD_AT, 59], ids=["midway", "the last step"])
def test_without_a_viewer_the_run_ends_diverged_with_good_weights(
    bad_at: int, far: None, slow: type[Slow], kept: Kept
) -> None:
    nets = []

    def made(net: nn.Module) -> torch.optim.Optimizer:
        nets.append(net)
        return fused("adam", net)

    with suppress(UnboundLocalError):
        steer_into(kept, made, on_fault="end", bad_at=bad_at)
    (ended,) = kept.events(RunEnded)
    assert ended.status == "diverged"
    assert ended.reason.startswith(f"the gradient that reaches the input is not finite at step {bad_at}, found")
    assert all(p.isfinite().all() for p in nets[0].parameters())
    assert [r.step for r in kept.steps()] == list(range(ended.step))


def test_a_loop_that_is_only_told_makes_its_own_update(far: None, slow: type[Slow], kept: Kept) -> None:
    *_, after = steer_into(kept, lambda net: fused("sgd", net), on_fault="note")
    assert not after[BAD_AT][0][0].isfinite().all()
    noted = kept.events(NotFinite)
    assert noted[0].step == BAD_AT
    assert not any(r.skipped for r in kept.steps())


def order_of(kept: Kept, link: Any) -> list[Any]:
    """Every event with the steps that had been written when it was told."""
    found: list[Any] = []
    tell = link.tell

    def told_now(event: Any, **more: Any) -> None:
        if isinstance(event, KnobTurned | Marked | StateChanged | CommandDone):
            found.append((type(event).__name__, getattr(event, "step", None), steps()))
        tell(event, **more)

    def steps() -> int:
        return link.ring._written if link.ring is not None else 0

    link.tell = told_now
    return found


@pytest.mark.parametrize("every", [0, 3])
def test_turns_and_marks_keep_their_place_among_the_steps(
    every: int, far: None, slow: type[Slow], at_hand: Callable[[bool], None], tmp_path: Path
) -> None:
    seen = []
    for direct in (True, False):
        at_hand(direct)
        folder = tmp_path / str(direct)
        folder.mkdir()
        kept = Kept(folder)
        places = order_of(kept, kept.link)
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        plan = [(17, TurnKnob(knob="lr", value="*2")), (17, TurnKnob(knob="lr", value="*2"))]
        with Watch(net, optimizer, link=kept.link, plan=plan, sampler=Sampler(every=every)) as run:
            for n in range(50):
                loss = loss_of(net, digit_batches(1)[0])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if n == 30:
                    kept.order(Mark(text="here"))
                    kept.order(TurnKnob(knob="lr", value="0.01"))
                run.step(loss)
        records = [(r.step, r.loss, r.lr) for r in kept.steps()]
        seen.append((places, records))
        kept.close()
    assert seen[0] == seen[1]
    turned = [(at, written) for kind, at, written in seen[1][0] if kind == "KnobTurned"]
    assert turned == [(17, 17), (17, 17), (31, 31)]


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
def test_a_schedule_moves_as_it_does_where_losses_are_at_hand(
    schedule: str, far: None, slow: type[Slow], at_hand: Callable[[bool], None], tmp_path: Path
) -> None:
    rates = []
    for direct in (True, False):
        at_hand(direct)
        folder = tmp_path / str(direct)
        folder.mkdir()
        kept = Kept(folder)
        _, scenario = presets.find("healthy")
        setup = build(scenario, on=torch.device("cpu"))
        steering = Steering(setup.model, setup.optimizer, setup=setup, steps=400)
        turn = TurnKnob(knob="schedule", value=schedule)
        with Watch(
            setup.model,
            setup.optimizer,
            link=kept.link,
            steering=steering,
            plan=[(3, turn)],
            own_loop=True,
            sampler=Sampler(every=0),
        ) as run:
            run.begin_step()
            for _ in range(400):
                loss = setup.loss() * 0 + 1  # no progress at all
                assert run.loss(loss)
                setup.optimizer.zero_grad()
                loss.backward()
                setup.optimizer.step()
                run.step(loss)
        rates.append([r.lr for r in kept.steps()])
        kept.close()
    assert rates[0] == rates[1]
    assert len(set(rates[1])) > 1, "it has moved, and a plateau was met"


def test_what_waits_is_bounded_and_nothing_is_lost(far: None, monkeypatch: pytest.MonkeyPatch, kept: Kept) -> None:
    monkeypatch.setattr(late, "MOST_WAITING", 50)
    monkeypatch.setattr(late, "Arrival", Slow)
    monkeypatch.setattr(Slow, "asks", 10**9)
    Slow.waited = Slow.open = Slow.most_open = 0
    losses = train(kept, steps=400, every=2)
    assert Slow.waited > 0
    assert Slow.most_open <= 51
    assert Slow.open == 0
    assert [r.loss for r in kept.steps()] == losses
    assert {r.step for r in kept.readings()} <= set(range(0, 400, 2))


def test_a_step_that_raises_leaves_the_optimizers_own_flag(far: None) -> None:
    net = mlp()
    optimizer = fused("adam", net)
    with Watch(net, optimizer, link=None, on_fault="hold") as run:
        for n, batch in enumerate(digit_batches(3)):
            loss = loss_of(net, batch)
            optimizer.zero_grad()
            loss.backward()
            if n == 1:
                optimizer.param_groups[0]["betas"] = None
                with pytest.raises(TypeError):
                    optimizer.step()
                assert hasattr(optimizer, "found_inf")
                optimizer.param_groups[0]["betas"] = (0.9, 0.999)
            else:
                optimizer.step()
            run.step(loss)
            assert not hasattr(optimizer, "found_inf")


# Reads on the host, results whose size hangs on numbers, and `torch.tensor`, which copies from unpinned memory.
WAITS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "lift_fresh"}


class NoLook(TorchDispatchMode):
    """Raises where somebody wants a number on the host; the twin of torch.cuda.set_sync_debug_mode on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self._kept = {name: getattr(Tensor, name) for name in ("tolist", "cpu", "numpy")}

    def __enter__(self) -> Any:
        for name, method in self._kept.items():
            setattr(Tensor, name, self._but_for_arrivals(name, method))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for name, method in self._kept.items():
            setattr(Tensor, name, method)
        super().__exit__(*error)

    @staticmethod
    def _but_for_arrivals(name: str, method: Any) -> Any:
        def looked(tensor: Tensor) -> Any:
            # These do not pass by the dispatcher; what has arrived in pinned memory may be read.
            assert sys._getframe(1).f_code is Arrival.values.__code__, f"{name} waits for the device"
            return method(tensor)

        return looked

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        assert name not in WAITS, f"{name} waits for the device"
        moved = (kwargs or {}).get("device")
        assert moved is None or torch.device(moved).type == "cpu"
        assert not (name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("hand", [False, True])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", [*FUSED, "rmsprop"])
def test_fifty_watched_steps_with_every_tier_look_at_no_number(
    name: str, clip: float | None, hand: bool, far: None, monkeypatch: pytest.MonkeyPatch, kept: Kept
) -> None:
    monkeypatch.setattr(late, "Arrival", Slow)
    monkeypatch.setattr(Slow, "asks", 2)
    Slow.waited = 0
    watched_steps(kept.link, torch.device("cpu"), name, clip, hand, NoLook)


NETS: dict[str, Callable[[], nn.Module]] = {
    kind: lambda kind=kind: mlp(depth=3, activation=kind, norm="rms")  # type: ignore[misc]
    for kind in ("gelu", "silu", "sigmoid", "tanh", "elu", "softplus", "leaky_relu")
} | {"conv": ConvNet, "transformer": Words}


@pytest.mark.parametrize("kind", NETS)
def test_nor_do_the_instruments_of_any_net(kind: str, far: None, monkeypatch: pytest.MonkeyPatch, kept: Kept) -> None:
    monkeypatch.setattr(late, "Arrival", Slow)
    monkeypatch.setattr(Slow, "asks", 2)
    Slow.waited = 0
    watched_steps(kept.link, torch.device("cpu"), "adam", None, True, NoLook, NETS[kind]())
    assert len(kept.readings()) == 28


def watched_steps(
    link: Any, on: torch.device, name: str, clip: float | None, hand: bool, strict: Any, net: nn.Module | None = None
) -> None:
    """Within `strict` everything but the first steps and the run's end."""
    net = (net or mlp(depth=3, activation="relu", residual="on", norm="layer")).to(on)
    optimizer = OPTIMIZERS[name](net.parameters()) if name == "rmsprop" else fused(name, net)
    steering = Steering(net, optimizer, clip=clip)
    again = Again(net)
    batches = [(x.to(on), y.to(on)) for x, y in digit_batches(20)]
    with Watch(
        net, optimizer, link=link, steering=steering, sampler=Sampler(every=2), again=again, on_fault="hold"
    ) as run:
        for n in range(56):
            again.batch = batches[n % 20]
            with strict() if 4 <= n < 54 else nullcontext():
                loss = loss_of(net, again.batch)
                if hand:
                    run.loss(loss)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.step(loss)
                run.log("mine", loss)
        assert Slow.waited == 0, "only the end waits"


@contextmanager
def no_sync() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: NoLook stands in for its own check")
@pytest.mark.parametrize("hand", [False, True])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", [*FUSED, "rmsprop"])
def test_fifty_watched_steps_on_a_gpu_synchronise_nowhere(
    name: str, clip: float | None, hand: bool, kept: Kept
) -> None:
    watched_steps(kept.link, torch.device("cuda"), name, clip, hand, no_sync)
    records = kept.steps()
    assert [r.step for r in records] == list(range(56))
    assert all(math.isfinite(r.loss) for r in records)
    assert len(kept.readings()) > 0


LOOKS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x > 0).all()),
    "mask": lambda x: x[x > 0],
    "list": lambda x: x.tolist(),
    "made of numbers": lambda x: torch.tensor([1.0], device=x.device),
    "by numbers": lambda x: x[[0, 2]],
}


@pytest.mark.parametrize("what", LOOKS)
def test_the_stand_in_sees_a_look(what: str) -> None:
    x = torch.ones(3)
    with pytest.raises(AssertionError), NoLook():
        LOOKS[what](x)
    assert x.tolist() == [1.0, 1.0, 1.0]
