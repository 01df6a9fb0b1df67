"""Every knob on every family of nets with every optimizer: applied or rejected, never partly applied."""

from __future__ import annotations

import math
from typing import Any

import pytest
from knob_turns import VALUES, UserNet, fingerprint, grouped, ids, refusal, steering_of, step
from net_families import setup as make_setup
from nets import OPTIMIZERS as FOREIGN_OPTIMIZERS
from torch import nn

from tui_descent.instruments.sampler import Sampler
from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario.knobs import KNOBS, parse
from tui_descent.scenario.optimizers import NAMES
from tui_descent.training.steering.steering import Steering
from tui_descent.training.watch.watch import Watch

# The only commands that a built-in net may reject.
MAY_BE_REJECTED = ("betas", "momentum", "norm=layer,where=mid", "activation@blocks.1")

# Muon needs a matrix between the first layer and the last; a conv net has none.
ALL_CASES = [(f, o) for f in ("mlp", "conv", "transformer") for o in NAMES if (f, o) != ("conv", "muon")]
# Usually every optimizer with one family. Plain momentum is left out, because Nesterov's uses the same state.
USUAL_CASES = {
    *(("mlp", o) for o in ("sgd", "nesterov", "adam", "rmsprop", "muon")),
    *(("conv", "adam"), ("transformer", "adamw"), ("transformer", "muon")),
}
CASES = [pytest.param(*case, marks=() if case in USUAL_CASES else pytest.mark.heavy) for case in ALL_CASES]
USUAL_FOREIGN = ("sgd", "adam", "rmsprop")
FOREIGN = [pytest.param(o, marks=() if o in USUAL_FOREIGN else pytest.mark.heavy) for o in FOREIGN_OPTIMIZERS]


def test_values_cover_every_knob() -> None:
    assert set(VALUES) == set(KNOBS)


@pytest.mark.parametrize(("family", "optimizer"), CASES)
def test_a_knob_is_applied_or_rejected_and_the_run_goes_on(family: str, optimizer: str) -> None:
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
                step(made, run)
                names = {id(p): n for n, p in made.model.named_parameters()}
                state = {p: dict(s) for p, s in made.optimizer.state.items()}
                before, old = fingerprint(made.model, made.optimizer, steering), made.optimizer
                if (reason := refusal(steering, turn, run.next_step)) is not None:
                    assert len(reason) > 10
                    assert text.startswith(MAY_BE_REJECTED) or "muon" in text, f"{text}: {reason}"
                    assert fingerprint(made.model, made.optimizer, steering) == before
                    continue
                assert sorted(grouped(made.optimizer)) == sorted(ids(made.model)), text
                if made.optimizer is old and turn.knob != "init":
                    for p, known in state.items():
                        if id(p) in ids(made.model) and id(p) in names and turn.knob not in ("betas", "momentum"):
                            assert made.optimizer.state[p].keys() == known.keys(), text
                run.begin_step()
                for _ in range(2):
                    assert math.isfinite(step(made, run)), text
                assert run.next_step == 3
                assert run.optimizer is made.optimizer


@pytest.mark.parametrize("optimizer", FOREIGN)
def test_a_knob_in_a_user_loop_is_applied_or_rejected_with_a_reason(optimizer: str) -> None:
    data = make_setup("mlp")
    applied: set[str] = set()
    for knob, texts in VALUES.items():
        for text in texts:
            if text.startswith("activation@"):
                text = "activation@blocks.1.2=silu,way=instant"
            net = UserNet()
            made = FOREIGN_OPTIMIZERS[optimizer](net.parameters())
            with Watch(net, made, link=None, sampler=Sampler(every=1)) as run:
                for n in range(4):
                    assert data.batches is not None
                    x, y = data.batches.next()
                    loss = nn.functional.cross_entropy(net(x), y)
                    made.zero_grad()
                    loss.backward()
                    made.step()
                    run.step(loss)
                    assert math.isfinite(loss.item()), text
                    if n == 1:
                        steering = run.steering
                        before = fingerprint(net, made, steering)
                        reason = refusal(steering, parse(text), run.next_step)
                        if reason is None:
                            applied.add(knob)
                        else:
                            assert len(reason) > 10
                            assert fingerprint(net, made, steering) == before
                        assert run.optimizer is made
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
    assert ("momentum" in applied) == (optimizer in ("sgd", "momentum"))
    assert ("betas" in applied) == (optimizer in ("adam", "adamw"))
    assert not applied & {"norm", "optimizer", "schedule", "batch_size"}


@pytest.mark.parametrize(("family", "optimizer"), CASES)
def test_a_change_that_fails_half_way_is_rolled_back(
    family: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe after the change raises; the one before it succeeds."""
    made = make_setup(family, optimizer={"name": optimizer, "lr": 1e-3}, norm="rms")
    steering = steering_of(made)
    with Watch(made.model, made.optimizer, link=None, steering=steering) as run:
        run.begin_step()
        for _ in range(2):
            step(made, run)
        steering.turn(parse("residual=on,way=gentle"))
        steering.advance()
        probe = Steering._probe

        def fails(self: Steering, *, backward: bool) -> Any:
            if backward:
                raise RuntimeError("injected")
            return probe(self, backward=backward)

        tried = 0
        monkeypatch.setattr(Steering, "_probe", fails)
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


@pytest.mark.parametrize("optimizer", FOREIGN)
@pytest.mark.parametrize("knob", [name for name in VALUES if KNOBS[name].touches != "run"])
def test_a_change_that_fails_half_way_in_a_user_loop_is_rolled_back(
    knob: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole change is made, then it raises."""
    data, net = make_setup("mlp"), UserNet()
    made = FOREIGN_OPTIMIZERS[optimizer](net.parameters())
    assert data.batches is not None

    def once(run: Watch) -> float:
        assert data.batches is not None
        x, y = data.batches.next()
        loss = nn.functional.cross_entropy(net(x), y)
        made.zero_grad()
        loss.backward()
        made.step()
        run.step(loss)
        return loss.item()

    with Watch(net, made, link=None, sampler=Sampler(every=1)) as run:
        steering = run.steering
        for _ in range(2):
            once(run)
        turn = type(steering._knobs[knob]).turn

        def fails(self: Any, asked: TurnKnob) -> Any:
            turn(self, asked)
            raise RuntimeError("injected")

        for text in VALUES[knob]:
            before = fingerprint(net, made, steering)
            with monkeypatch.context() as patch:
                patch.setattr(type(steering._knobs[knob]), "turn", fails)
                assert refusal(steering, parse(text), 2) is not None
            assert fingerprint(net, made, steering) == before, text
            assert run.optimizer is made
        assert math.isfinite(once(run))


@pytest.mark.parametrize("text", ["optimizer=adam", "optimizer=muon", "schedule=cosine"])
def test_a_change_of_optimizer_that_fails_half_way_is_rolled_back(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
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

        monkeypatch.setattr("tui_descent.training.steering.knobs.optimizer.KnobChange", fails)
        with pytest.raises(ValueError, match="injected"):
            steering.turn(parse(text), step=2)
        assert fingerprint(made.model, made.optimizer, steering) == before
        assert run.optimizer is made.optimizer
