"""What single interventions do, how they are recorded, and that a record replays bit for bit."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch
from fake_keeper import FakeKeeper
from knob_turns import grouped, ids, steering_of, step
from net_families import setup as make_setup

from tui_descent.protocol.commands import Redo, Undo
from tui_descent.protocol.events import CommandDone, CommandRejected, KnobState, KnobTurned
from tui_descent.scenario.knobs import KNOBS, parse, text_of
from tui_descent.training.undo.random_state import RandomState
from tui_descent.training.undo.snapshot import Snapshot
from tui_descent.training.watch.watch import Watch


def trained(text: tuple[tuple[int, str], ...], keeper: FakeKeeper | None = None, *, steps: int = 30) -> list[float]:
    made = make_setup("mlp", optimizer={"name": "adam", "lr": 3e-3})
    plan = [(at, parse(turn)) for at, turn in text]
    link = keeper.link if keeper else None
    with Watch(made.model, made.optimizer, link=link, steering=steering_of(made), plan=plan) as run:
        run.begin_step()
        return [step(made, run) for _ in range(steps)]


PLAN = (
    (1, "lr=*1.25"),
    (2, "lr=/1.37"),
    (3, "residual=on"),
    (4, "activation=tanh"),
    (5, "norm=layer"),
    (6, "init@blocks.1=orthogonal"),
    (7, "activation@blocks.2=silu"),
    (8, "kick=0.05"),
    (9, "weight_decay=0.01"),
    (10, "optimizer=muon"),
    (11, "betas=0.8/0.95"),
    (12, "schedule=warmup_cosine,warmup=4,floor=0.25"),
    (13, "lr=*1.25"),
    (14, "batch_size=32"),
    (15, "clip=0.5"),
    (16, "dropout=0.1"),
    (18, "norm=none"),
    (20, "optimizer=sgd"),
    (20, "momentum=0.7"),
    (21, "freeze@head=on"),
    (24, "freeze=off"),
    (25, "pace=5000"),
)


def test_recorded_interventions_replay_bit_for_bit(keeper: FakeKeeper) -> None:
    found = trained(PLAN, keeper)
    turned = keeper.events(KnobTurned)
    assert [event.knob for event in turned] == [text.split("=")[0].split("@")[0] for _, text in PLAN]
    assert {event.knob for event in turned} == set(KNOBS)
    assert not keeper.events(CommandRejected)
    record = tuple((event.step, text_of(event.again)) for event in turned)
    assert "residual=on,way=ramp" in record[2][1]
    assert "where=pre" in record[4][1]
    assert trained(record) == found
    assert trained(())[:2] == found[:2]
    assert trained(())[2:] != found[2:]


def test_the_reported_effect_is_zero_if_nothing_changed(keeper: FakeKeeper) -> None:
    trained(((3, "residual=on"), (4, "residual=off,way=instant"), (5, "kick=0.1"), (6, "lr=*2")), keeper)
    ramp, instant, kick, rate = keeper.events(KnobTurned)
    assert ramp.function_change == 0.0
    assert ramp.loss_before == ramp.loss_after
    for event in (instant, kick):
        assert event.function_change is not None
        assert event.function_change > 1e-3
        assert event.loss_before != event.loss_after
    assert rate.function_change is None


@pytest.mark.parametrize("texts", [("optimizer=muon", "norm=layer"), ("norm=none", "optimizer=sgd"), ("schedule=wsd",)])
def test_a_snapshot_is_restored_after_several_interventions(texts: tuple[str, ...]) -> None:
    made = make_setup("mlp", optimizer={"name": "adam", "lr": 1e-3}, norm="rms")
    steering, first = steering_of(made), made.optimizer
    with Watch(made.model, made.optimizer, link=None, steering=steering) as run:
        run.begin_step()
        for _ in range(3):
            step(made, run)
        snapshot = Snapshot([*steering.holders(), RandomState()], segment=0, step=3)
        losses = [step(made, run) for _ in range(5)]
        snapshot.restore()
        steering.after_restore()
        for text in (*texts, "residual=on", "freeze@head=on", "init@stem=he", "kick=0.1", "clip=1"):
            steering.turn(parse(text), step=3)
        assert [step(made, run) for _ in range(5)] != losses
        snapshot.restore()
        steering.after_restore()
        assert run.optimizer is made.optimizer is first
        assert sorted(grouped(first)) == sorted(ids(made.model))
        assert [step(made, run) for _ in range(5)] == losses


def test_clipping_limits_the_gradient_norm() -> None:
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


def test_a_new_schedule_covers_the_remaining_steps() -> None:
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


def test_another_activation_revives_dead_units() -> None:
    """With biases of −4, relu blocks all gradients; leaky_relu passes a hundredth per block."""

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


def test_residual_with_the_default_way_restores_vanishing_gradients(keeper: FakeKeeper) -> None:
    """20 sigmoid layers: the first gradient over the last is under 1e-6, and over 1e-2 60 steps after residual=on."""

    def ratio(turn: str | None) -> float:
        made = make_setup("mlp", optimizer={"name": "sgd", "lr": 0.1}, depth=20, width=32, activation="sigmoid")
        plan = [(5, parse(turn))] if turn else []
        link = keeper.link if turn else None
        with Watch(made.model, made.optimizer, link=link, steering=steering_of(made), plan=plan) as run:
            run.begin_step()
            for _ in range(65):
                step(made, run)
        grad = made.model.get_parameter
        return float(grad("blocks.0.linear.weight").grad.norm() / grad("blocks.19.linear.weight").grad.norm())

    assert ratio(None) < 1e-6
    assert ratio("residual=on") > 1e-2
    (event,) = keeper.events(KnobTurned)
    assert (event.way, event.scale) == ("ramp", 20**-0.5)


def test_an_intervention_reports_every_knob_that_it_changed(keeper: FakeKeeper) -> None:
    made = make_setup("mlp", optimizer={"name": "momentum", "lr": 1e-2})
    texts = (
        "optimizer=adam",
        "norm=layer",
        "activation@blocks.1=tanh",
        "schedule=warmup_cosine",
        "optimizer=sgd",
        "lr=*2",
    )
    plan = [(at, parse(text)) for at, text in enumerate(texts, 2)]
    steering = steering_of(made)
    states = []
    with Watch(made.model, made.optimizer, link=keeper.link, steering=steering, plan=plan) as run:
        run.begin_step()
        for _ in range(12):
            states.append({state.name: state for state in steering.states()})
            step(made, run)
    turned = keeper.events(KnobTurned)
    adam, norm, one, schedule, sgd, rate = ({state.name: state for state in event.knobs} for event in turned)
    assert {"lr", "momentum", "betas"} <= set(adam)
    assert adam["betas"].value == "0.9/0.999"
    assert "adam" in (adam["momentum"].unavailable or "").lower()
    assert norm == {}
    assert one["activation"].value == "mixed"
    assert float(schedule["lr"].value) < float(adam["lr"].value)
    assert sgd["momentum"].value == "0"
    assert sgd["betas"].unavailable
    assert rate == {}
    # A viewer that applies the events one by one knows the trainer's state at each of them.
    known = dict(states[0])
    for event in turned:
        known[event.knob] = KnobState(name=event.knob, value=event.new)
        known |= {state.name: state for state in event.knobs}
        now = states[event.step]
        assert {n: s for n, s in known.items() if n != "lr"} == {n: s for n, s in now.items() if n != "lr"}, event


def test_a_new_optimizer_starts_at_the_rate_that_the_scenario_gives_it(keeper: FakeKeeper) -> None:
    made = make_setup("mlp", optimizer={"name": "sgd", "lr": 0.05, "rates": {"adam": 3e-3, "sgd": 0.02}})
    plan = [
        (1, parse("lr=*10")),  # belongs to SGD, so it ends with SGD
        (2, parse("optimizer=adam")),
        (3, parse("lr=*2")),
        (4, parse("optimizer=rmsprop")),  # the scenario gives no rate: converted
        (5, parse("optimizer=sgd")),
    ]
    with Watch(made.model, made.optimizer, link=keeper.link, steering=steering_of(made), plan=plan) as run:
        run.begin_step()
        for _ in range(6):
            step(made, run)
    assert [record.lr for record in keeper.steps()] == pytest.approx([0.05, 0.5, 3e-3, 6e-3, 6e-3, 0.02])
    notes = [event.note.partition(";")[0] for event in keeper.events(KnobTurned) if event.knob == "optimizer"]
    assert notes == [
        "lr 0.5 → 0.003 (the scenario's rate for Adam)",
        "lr 0.006 kept: Adam and RMSprop use similar rates",
        "lr 0.006 → 0.02 (the scenario's rate for SGD)",
    ]


def test_undo_by_value_of_an_optimizer_change_restores_the_changed_rate(keeper: FakeKeeper) -> None:
    made = make_setup("mlp", optimizer={"name": "sgd", "lr": 0.05, "rates": {"adam": 3e-3}})
    keeper.link.launch = msgspec.structs.replace(keeper.link.launch, socket="there", undo_budget=1000)
    plan = [(1, parse("lr=*10")), (2, parse("optimizer=adam"))]
    with Watch(
        made.model, made.optimizer, link=keeper.link, steering=steering_of(made), plan=plan, is_scenario=True
    ) as run:
        run.begin_step()
        for n in range(6):
            if n in (3, 4):
                keeper.send(Undo() if n == 3 else Redo())
            step(made, run)
    assert all("only the value was restored" in event.what for event in keeper.events(CommandDone))
    assert [record.lr for record in keeper.steps()] == pytest.approx([0.05, 0.5, 3e-3, 3e-3, 0.5, 3e-3])


def test_returning_to_the_first_optimizer_restores_its_own_rate(keeper: FakeKeeper) -> None:
    made = make_setup("mlp", optimizer={"name": "sgd", "lr": 0.05, "rates": {"adam": 3e-3}})
    plan = [(1, parse("optimizer=adam")), (2, parse("optimizer=sgd"))]
    with Watch(made.model, made.optimizer, link=keeper.link, steering=steering_of(made), plan=plan) as run:
        run.begin_step()
        for _ in range(3):
            step(made, run)
    assert [record.lr for record in keeper.steps()] == pytest.approx([0.05, 3e-3, 0.05])


def test_a_schedule_continues_from_the_rate_that_the_scenario_gives(keeper: FakeKeeper) -> None:
    made = make_setup("mlp", optimizer={"name": "sgd", "lr": 0.1, "rates": {"adam": 1e-3}})
    plan = [(0, parse("schedule=step,every=2,gamma=0.5")), (3, parse("optimizer=adam"))]
    rates = []
    with Watch(made.model, made.optimizer, link=keeper.link, steering=steering_of(made), plan=plan) as run:
        run.begin_step()
        for _ in range(5):
            rates.append(run.steering.rate.value)
            step(made, run)
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.5e-3, 0.25e-3])
    (note,) = [event.note for event in keeper.events(KnobTurned) if event.knob == "optimizer"]
    assert note.startswith("lr 0.05 → 0.0005 (the scenario's rate for Adam), 0.001 times the schedule's factor; ")


def test_leaky_relu_gets_the_slope_that_the_scenario_gives() -> None:
    made = make_setup("mlp", activation={"name": "relu", "slope": 0.2})
    with Watch(
        made.model, made.optimizer, link=None, steering=steering_of(made), plan=[(1, parse("activation=leaky_relu"))]
    ) as run:
        run.begin_step()
        for _ in range(60):
            step(made, run)
    slopes = [m.negative_slope for m in made.model.modules() if isinstance(m, torch.nn.LeakyReLU)]
    assert slopes == [0.2] * 3
