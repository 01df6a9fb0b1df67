"""Every knob of the table on every family of nets with every optimizer: applied or refused, never half of it."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
import torch
from families import setup as make_setup
from kept import Kept
from nets import OPTIMIZERS as FOREIGN_OPTIMIZERS
from torch import Tensor, nn

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import TurnKnob
from tui_descent.protocol.events import CommandRejected, KnobTurned
from tui_descent.scenario.knobs import KNOBS, parse, text_of
from tui_descent.scenario.optimizers import NAMES
from tui_descent.training.build import Setup
from tui_descent.training.moments import Moment
from tui_descent.training.steering import Steering
from tui_descent.training.watch import Watch

VALUES: dict[str, tuple[str, ...]] = {
    "lr": ("lr=*0.5", "lr=1e-4"),
    "activation": ("activation=tanh", "activation@blocks.1=silu,way=instant"),
    "residual": ("residual=on", "residual=on,way=rotation", "residual@blocks.1=on,way=instant", "residual=off"),
    "norm": ("norm=layer", "norm=rms,where=post,way=instant", "norm=layer,where=mid", "norm=none"),
    "dropout": ("dropout=0.2", "dropout=0"),
    "init": ("init=orthogonal", "init@head=lecun"),
    "freeze": ("freeze@head=on", "freeze=off"),
    "kick": ("kick=0.01",),
    "optimizer": tuple(f"optimizer={name}" for name in NAMES),
    "schedule": tuple(f"schedule={name}" for name in KNOBS["schedule"].choices),
    "momentum": ("momentum=0.5", "momentum=0"),
    "betas": ("betas=0.8/0.99",),
    "weight_decay": ("weight_decay=0.01",),
    "clip": ("clip=0.1", "clip=off"),
    "batch_size": ("batch_size=16", "batch_size=*2"),
    "pace": ("pace=max", "pace=5000"),
}
# What a built-in net may refuse, and nothing else.
REFUSABLE = ("betas", "momentum", "norm=layer,where=mid", "activation@blocks.1")

# Muon asks for a matrix between the first layer and the last; a conv net has none.
CASES = [(f, o) for f in ("mlp", "conv", "transformer") for o in NAMES if (f, o) != ("conv", "muon")]


def test_the_table_has_no_knob_that_is_not_tried_here() -> None:
    assert set(VALUES) == set(KNOBS)


class Foreign(nn.Module):
    """An own net with modules of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(64, 16)
        self.act = nn.ReLU()
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()) for _ in range(3))
        )
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 64) → (B, 10)."""
        out: Tensor = self.head(self.drop(self.blocks(self.act(self.stem(x)))))
        return out


def steering_of(made: Setup) -> Steering:
    return Steering(made.model, made.optimizer, setup=made, seed=3, steps=40, init="he")


def step(made: Setup, run: Watch) -> float:
    loss = made.loss()
    made.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    made.optimizer.step()
    run.step(loss)
    return loss.item()


def refusal(steering: Steering, turn: TurnKnob, at: int) -> str | None:
    """Turn it; the reason where that cannot be."""
    try:
        steering.turn(turn, step=at)
    except ValueError as error:
        return str(error)
    return None


def ids(model: nn.Module) -> set[int]:
    return {id(p) for p in model.parameters()}


def grouped(optimizer: torch.optim.Optimizer) -> list[int]:
    return [id(p) for group in optimizer.param_groups for p in group["params"]]


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer, steering: Steering) -> str:
    """Everything a turn could change, bit by bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    digest.update(repr([(n, type(m).__name__, m.training) for n, m in model.named_modules()]).encode())
    digest.update(repr([(n, p.requires_grad) for n, p in model.named_parameters()]).encode())
    digest.update(repr([(b.skip, b.where) for b in steering.ground.blocks.values()]).encode())
    digest.update(repr([(key, t.made) for key, t in steering.ground.under_way.items()]).encode())
    digest.update(repr([{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]).encode())
    digest.update(repr((id(optimizer), grouped(optimizer))).encode())
    for p in model.parameters():
        for key, value in optimizer.state.get(p, {}).items():
            digest.update(
                key.encode() + (value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
            )
    digest.update(torch.get_rng_state().numpy().tobytes())
    schedule = steering.ground.setup.schedule if steering.ground.setup else None
    digest.update(repr((id(schedule), schedule.state() if schedule else None, steering.states())).encode())
    return digest.hexdigest()


@pytest.mark.parametrize(("family", "optimizer"), CASES)
def test_a_turn_is_made_or_refused_and_the_run_goes_on(family: str, optimizer: str) -> None:
    for texts in VALUES.values():
        for text in texts:
            turn = parse(text)
            if family == "transformer" and text.startswith("activation@"):
                turn = parse("activation@blocks.1=silu,way=instant")
            made = make_setup(
                family, optimizer={"name": optimizer, "lr": 1e-3}, norm="rms" if "none" in text else "none"
            )
            steering = steering_of(made)
            with Watch(made.model, made.optimizer, link=None, sampler=Sampler(every=1), steering=steering) as run:
                run.begin_step()
                for _ in range(2):
                    step(made, run)
                names = {id(p): n for n, p in made.model.named_parameters()}
                state = {p: dict(s) for p, s in made.optimizer.state.items()}
                before, old = fingerprint(made.model, made.optimizer, steering), made.optimizer
                if (reason := refusal(steering, turn, run.next_step)) is not None:
                    assert len(reason) > 10
                    assert text.startswith(REFUSABLE) or "muon" in text, f"{text}: {reason}"
                    assert fingerprint(made.model, made.optimizer, steering) == before
                    continue
                assert sorted(grouped(made.optimizer)) == sorted(ids(made.model)), text
                if made.optimizer is old and turn.knob != "init":
                    for p, known in state.items():
                        if id(p) in ids(made.model) and id(p) in names and turn.knob not in ("betas", "momentum"):
                            assert made.optimizer.state[p].keys() == known.keys(), text
                run.begin_step()
                for _ in range(3):
                    assert math.isfinite(step(made, run)), text
                assert run.next_step == 5
                assert run.optimizer is made.optimizer


@pytest.mark.parametrize("optimizer", FOREIGN_OPTIMIZERS)
def test_a_foreign_loop_is_steered_or_told_why_not(optimizer: str) -> None:
    data = make_setup("mlp")
    applied: set[str] = set()
    for knob, texts in VALUES.items():
        for text in texts:
            if text.startswith("activation@"):
                text = "activation@blocks.1.2=silu,way=instant"
            net = Foreign()
            made = FOREIGN_OPTIMIZERS[optimizer](net.parameters())
            with Watch(net, made, link=None, sampler=Sampler(every=1)) as run:
                for n in range(6):
                    assert data.batches is not None
                    x, y = data.batches.next()
                    loss = nn.functional.cross_entropy(net(x), y)
                    made.zero_grad()
                    loss.backward()
                    made.step()
                    run.step(loss)
                    assert math.isfinite(loss.item()), text
                    if n == 2:
                        steering = run.control.steering
                        before = fingerprint(net, made, steering)
                        reason = refusal(steering, parse(text), run.next_step)
                        if reason is None:
                            applied.add(knob)
                        else:
                            assert len(reason) > 10
                            assert fingerprint(net, made, steering) == before
                        assert sorted(grouped(made)) == sorted(ids(net))
    assert applied >= {
        "lr",
        "activation",
        "residual",
        "dropout",
        "init",
        "freeze",
        "kick",
        "weight_decay",
        "clip",
        "pace",
    }
    assert not applied & {"norm", "optimizer", "schedule", "batch_size"}


@pytest.mark.parametrize(("family", "optimizer"), CASES)
def test_a_turn_that_fails_half_way_leaves_nothing_behind(
    family: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The net raises in the probe behind the change; the one before it goes well."""
    made = make_setup(family, optimizer={"name": optimizer, "lr": 1e-3}, norm="rms")
    steering = steering_of(made)
    with Watch(made.model, made.optimizer, link=None, steering=steering) as run:
        run.begin_step()
        for _ in range(2):
            step(made, run)
        steering.turn(parse("residual=on,way=gentle"))
        steering.advance()
        probed = Steering._probed

        def fails(self: Steering, *, whole: bool) -> Any:
            if whole:
                raise RuntimeError("injected")
            return probed(self, whole=whole)

        tried = 0
        monkeypatch.setattr(Steering, "_probed", fails)
        for knob, texts in VALUES.items():
            for text in texts if KNOBS[knob].touches == "net" else ():
                before = fingerprint(made.model, made.optimizer, steering)
                with pytest.raises(ValueError, match=r"injected|allowed|attention"):
                    steering.turn(parse(text), step=2)
                assert fingerprint(made.model, made.optimizer, steering) == before, text
                tried += 1
        assert tried >= 15
        monkeypatch.undo()
        for _ in range(3):
            assert math.isfinite(step(made, run))


@pytest.mark.parametrize("text", ["optimizer=adam", "optimizer=muon", "schedule=cosine"])
def test_an_optimizer_turn_that_fails_half_way_leaves_nothing_behind(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_setup("mlp", optimizer={"name": "momentum", "lr": 1e-2})
    steering = steering_of(made)
    with Watch(made.model, made.optimizer, link=None, steering=steering) as run:
        run.begin_step()
        steering.turn(parse("schedule=wsd"))
        for _ in range(2):
            step(made, run)
        before = fingerprint(made.model, made.optimizer, steering)

        def fails(*_: Any, **__: Any) -> str:
            raise RuntimeError("injected")

        monkeypatch.setattr("tui_descent.training.knobs.optimizing.Turned", fails)
        with pytest.raises(ValueError, match="injected"):
            steering.turn(parse(text), step=2)
        assert fingerprint(made.model, made.optimizer, steering) == before
        assert run.optimizer is made.optimizer


def trained(text: tuple[tuple[int, str], ...], kept: Kept | None = None, *, steps: int = 30) -> list[float]:
    made = make_setup("mlp", optimizer={"name": "adam", "lr": 3e-3})
    plan = [(at, parse(turn)) for at, turn in text]
    link = kept.link if kept else None
    with Watch(made.model, made.optimizer, link=link, steering=steering_of(made), plan=plan) as run:
        run.begin_step()
        return [step(made, run) for _ in range(steps)]


PLAN = (
    (3, "residual=on"),
    (5, "norm=layer"),
    (6, "init@blocks.1=orthogonal"),
    (8, "kick=0.05"),
    (10, "optimizer=muon"),
    (12, "schedule=cosine"),
    (14, "batch_size=32"),
    (15, "clip=0.5"),
    (16, "dropout=0.1"),
    (18, "norm=none"),
    (20, "optimizer=sgd"),
    (21, "freeze@head=on"),
    (24, "freeze=off"),
)


def test_what_was_recorded_replays_to_the_last_bit(kept: Kept) -> None:
    found = trained(PLAN, kept)
    turned = kept.events(KnobTurned)
    assert [event.knob for event in turned] == [text.split("=")[0].split("@")[0] for _, text in PLAN]
    assert not kept.events(CommandRejected)
    record = tuple(
        (
            event.step,
            text_of(
                parse(f"{event.knob}{'' if event.target == 'all' else '@' + event.target}={event.new}"),
            )
            + (f",way={event.way}" if event.way else "")
            + (f",scale={event.scale!r}" if event.scale is not None else "")
            + (f",where={event.where}" if event.where else ""),
        )
        for event in turned
    )
    assert "residual=on,way=ramp" in record[0][1]
    assert "where=pre" in record[1][1]
    assert trained(record) == found
    assert trained(())[:3] == found[:3]
    assert trained(())[3:] != found[3:]


def test_a_receipt_tells_what_changed_and_nothing_where_nothing_did(kept: Kept) -> None:
    trained(((3, "residual=on"), (4, "residual=off,way=instant"), (5, "kick=0.1"), (6, "lr=*2")), kept)
    ramp, instant, kick, rate = kept.events(KnobTurned)
    assert ramp.function_change == 0.0
    assert ramp.loss_before == ramp.loss_after
    for event in (instant, kick):
        assert event.function_change is not None
        assert event.function_change > 1e-3
        assert event.loss_before != event.loss_after
    assert rate.function_change is None


@pytest.mark.parametrize("texts", [("optimizer=muon", "norm=layer"), ("norm=none", "optimizer=sgd"), ("schedule=wsd",)])
def test_a_moment_before_any_turn_can_be_stood_in_again(texts: tuple[str, ...]) -> None:
    made = make_setup("mlp", optimizer={"name": "adam", "lr": 1e-3}, norm="rms")
    steering, first = steering_of(made), made.optimizer
    with Watch(made.model, made.optimizer, link=None, steering=steering) as run:
        run.begin_step()
        for _ in range(3):
            step(made, run)
        moment = Moment.take([made.model, steering, made], segment=0, step=3)
        losses = [step(made, run) for _ in range(5)]
        moment.restore()
        steering.restored()
        for text in (*texts, "residual=on", "freeze@head=on", "init@stem=he", "kick=0.1", "clip=1"):
            steering.turn(parse(text), step=3)
        assert [step(made, run) for _ in range(5)] != losses
        moment.restore()
        steering.restored()
        assert run.optimizer is made.optimizer is first
        assert sorted(grouped(first)) == sorted(ids(made.model))
        assert [step(made, run) for _ in range(5)] == losses


def test_clipping_holds_the_gradients_norm_to_its_limit() -> None:
    made = make_setup("mlp", optimizer={"name": "sgd", "lr": 0.1})
    steering = steering_of(made)
    norms = []
    with Watch(made.model, made.optimizer, link=None, steering=steering) as run:
        made.optimizer.register_step_pre_hook(
            lambda *_: norms.append(torch.nn.utils.get_total_norm([p.grad for p in made.model.parameters()]).item())
        )
        run.begin_step()
        for text in ("clip=0.05", "clip=off"):
            steering.turn(parse(text))
            step(made, run)
    assert norms[0] == pytest.approx(0.05, rel=1e-5)
    assert norms[1] > 0.1


def test_a_schedule_runs_over_the_steps_that_are_left() -> None:
    made = make_setup("mlp", optimizer={"name": "sgd", "lr": 0.1})
    rates = []
    with Watch(
        made.model, made.optimizer, link=None, steering=steering_of(made), plan=[(20, parse("schedule=cosine"))]
    ) as run:
        made.optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        run.begin_step()
        for _ in range(40):
            step(made, run)
    assert rates[:21] == [0.1] * 21
    expected = [0.05 * (1 + math.cos(math.pi * k / 20)) for k in range(20)]
    assert rates[20:] == pytest.approx(expected, rel=1e-9)


def test_dead_units_live_again_with_another_activation() -> None:
    """Biases of −4 under relu let nothing through; leaky_relu, a hundredth a block."""

    def grads(turn: str | None) -> float:
        made = make_setup("mlp", optimizer={"name": "sgd", "lr": 0.05}, depth=4, init={"name": "he", "bias": -4.0})
        steering = steering_of(made)
        with Watch(made.model, made.optimizer, link=None, steering=steering) as run:
            run.begin_step()
            for _ in range(5):
                step(made, run)
            if turn is not None:
                steering.turn(parse(turn), step=5)
                run.begin_step()
            for _ in range(5):
                step(made, run)
            return float(made.model.get_parameter("blocks.0.linear.weight").grad.norm())

    sick, cured = grads(None), grads("activation=leaky_relu,way=instant")
    assert sick == 0.0
    assert cured > 1e-7


def test_vanishing_gradients_come_back_with_a_residual_by_itself(kept: Kept) -> None:
    """20 sigmoid layers: first over last gradient under 1e-6, and over 1e-2 within 60 steps of residual=on, auto."""

    def ratio(turn: str | None) -> float:
        made = make_setup("mlp", optimizer={"name": "sgd", "lr": 0.1}, depth=20, width=32, activation="sigmoid")
        plan = [(5, parse(turn))] if turn else []
        link = kept.link if turn else None
        with Watch(made.model, made.optimizer, link=link, steering=steering_of(made), plan=plan) as run:
            run.begin_step()
            for _ in range(65):
                step(made, run)
        grad = made.model.get_parameter
        return float(grad("blocks.0.linear.weight").grad.norm() / grad("blocks.19.linear.weight").grad.norm())

    assert ratio(None) < 1e-6
    assert ratio("residual=on") > 1e-2
    (event,) = kept.events(KnobTurned)
    assert (event.way, event.scale) == ("ramp", 20**-0.5)
