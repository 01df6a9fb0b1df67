"""The text form of knob commands: parsing, writing, and error messages."""

from __future__ import annotations

import math
import random
import re

import pytest

from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario.knobs import KNOBS, check, combined, new_value, parse, parse_at, shown_value, text_of

GOOD = {
    "lr=0.1": TurnKnob(knob="lr", value="0.1"),
    "lr=1e-300": TurnKnob(knob="lr", value="1e-300"),
    "lr=*1.25": TurnKnob(knob="lr", value="*1.25"),
    "lr=/10": TurnKnob(knob="lr", value="/10"),
    "  lr = 0.1 ": TurnKnob(knob="lr", value="0.1"),
    "residual=on": TurnKnob(knob="residual", value="on"),
    "residual=on,way=instant": TurnKnob(knob="residual", value="on", way="instant"),
    "residual=on,way=ramp,scale=0.25": TurnKnob(knob="residual", value="on", way="ramp", scale=0.25),
    "residual=on,scale=0.25,way=ramp": TurnKnob(knob="residual", value="on", way="ramp", scale=0.25),
    "residual@blocks.3=off": TurnKnob(knob="residual", value="off", target="blocks.3"),
    "lr@optimizer.g=*0.5": TurnKnob(knob="lr", value="*0.5", target="optimizer.g"),
    "betas@optimizer.0=0.9/0.95": TurnKnob(knob="betas", value="0.9/0.95", target="optimizer.0"),
    "clip@optimizer.net.a-b=off": TurnKnob(knob="clip", value="off", target="optimizer.net.a-b"),
    "activation@blocks.3=gelu": TurnKnob(knob="activation", value="gelu", target="blocks.3"),
    "activation=leaky_relu,way=blend": TurnKnob(knob="activation", value="leaky_relu", way="blend"),
    "residual@=on": TurnKnob(knob="residual", value="on"),
    "pace=max": TurnKnob(knob="pace", value="max"),
    "schedule=cosine": TurnKnob(knob="schedule", value="cosine"),
    "schedule=warmup_cosine,warmup=100, floor = 0.1": TurnKnob(
        knob="schedule", value="warmup_cosine", parameters=(("warmup", 100), ("floor", 0.1))
    ),
    "pace=0.5": TurnKnob(knob="pace", value="0.5"),
    "norm=layer,where=post": TurnKnob(knob="norm", value="layer", where="post"),
    "norm@blocks.1=rms,where=mid,way=instant": TurnKnob(
        knob="norm", value="rms", target="blocks.1", way="instant", where="mid"
    ),
    "betas=0.9/0.95": TurnKnob(knob="betas", value="0.9/0.95"),
    "clip=off": TurnKnob(knob="clip", value="off"),
    "clip=*0.5": TurnKnob(knob="clip", value="*0.5"),
    "batch_size=/2": TurnKnob(knob="batch_size", value="/2"),
    "dropout=0": TurnKnob(knob="dropout", value="0"),
    "freeze@stem=on": TurnKnob(knob="freeze", value="on", target="stem"),
    "freeze=off": TurnKnob(knob="freeze", value="off"),
    "residual=on,way=rotation": TurnKnob(knob="residual", value="on", way="rotation"),
}


@pytest.mark.parametrize(("text", "turn"), GOOD.items())
def test_valid_text_is_parsed(text: str, turn: TurnKnob) -> None:
    assert parse(text) == turn


@pytest.mark.parametrize("turn", GOOD.values(), ids=GOOD.keys())
def test_written_text_parses_to_the_same_command(turn: TurnKnob) -> None:
    assert parse(text_of(turn)) == turn


def test_a_scale_survives_the_text_form_exactly() -> None:
    random_ = random.Random(0)
    for scale in [20**-0.5, 0.1 + 0.2, *(random_.uniform(1e-9, 10) for _ in range(200))]:
        turn = TurnKnob(knob="residual", value="on", scale=scale)
        assert parse(text_of(turn)).scale == scale, "a replay must get the same bits"


BAD = {
    "norm=layer,where=over": 'where = "over"; allowed: pre, mid, post',
    "lr=1,where=pre": "lr does not accept `where`",
    "betas=0.9": 'betas = "0.9"; allowed: two numbers',
    "betas=0.9/1": "betas = 0.9/1; allowed: two numbers ≥ 0 and < 1",
    "dropout=1": "dropout = 1; allowed: a number ≥ 0 and < 1",
    "batch_size=1.5": "batch_size = 1.5; allowed: a whole number",
    "kick=2": "kick = 2; allowed: a size > 0 and ≤ 1",
    "freeze=on": "allowed: freeze@LAYER=on",
    "": 'unknown knob ""; allowed: lr, activation, residual, norm,',
    "lrr=1": 'unknown knob "lrr"; allowed: lr, activation, residual, norm,',
    "LR=1": "unknown knob",
    "residul=on": 'did you mean "residual"?',
    "lr": "expected lr=value; allowed values: a number > 0, or relative to the current rate: *1.25, /10",
    "lr=": "expected lr=value",
    "lr=  ": "expected lr=value",
    "lr=fast": 'lr = "fast"; allowed: a number',
    "lr=-1": "lr = -1; allowed: a number > 0",
    "lr=0": "lr = 0; allowed: a number > 0",
    "lr=nan": "lr = nan; allowed: a finite number",
    "lr=inf": "lr = inf; allowed: a finite number",
    "lr=1e400": "lr = 1e400; allowed: a finite number",
    "lr=1e7": "at most 1e+06",
    "lr=*0": "lr = *0; allowed: a number > 0",
    "lr=/0": "lr = /0; allowed: a number > 0",
    "lr=*-2": "allowed: a number > 0",
    "lr=*nan": "allowed: a finite number",
    "lr=**2": "allowed: a number",
    "lr=0.1=0.2": "allowed: a number",
    "lr=0.1,way=ramp": 'way = "ramp"; lr does not accept `way`',
    "lr=0.1,scale=2": "scale = 2; lr does not accept `scale`",
    "lr@blocks.0=0.1": 'lr does not accept the target "blocks.0"; allowed: lr@optimizer.NAME',
    "clip@optimizer=1": 'clip does not accept the target "optimizer"; allowed: clip@optimizer.NAME',
    "betas@0=0.9/0.99": 'betas does not accept the target "0"; allowed: betas@optimizer.NAME',
    "pace@x=1": "pace does not accept a target",
    "pace=0": 'pace = 0; allowed: a number of steps per second > 0, or "max"',
    "pace=-3": "allowed: a number of steps per second > 0",
    "pace=min": 'pace = "min"; allowed: a number',
    "pace=1e7": "pace = 1e7; allowed: a number of steps per second > 0",
    "residual=maybe": 'residual = "maybe"; allowed: off, on',
    "residual=On": 'allowed: off, on — did you mean "on"?',
    "residual=on,way=teleport": 'way = "teleport"; allowed: auto, ramp, gentle, rotation, instant, rezero',
    "residual=on,scale=0": "scale = 0; allowed: a number > 0 and ≤ 10",
    "residual=on,scale=-1": "scale = -1; allowed: a number > 0 and ≤ 10",
    "residual=on,scale=11": "scale = 11; allowed: a number > 0 and ≤ 10",
    "residual=on,scale=nan": "scale = nan; allowed: a finite number",
    "residual=on,scale=big": 'scale = "big"; allowed: a number',
    "residual=on,speed=3": 'unknown option "speed" of residual; allowed: way, scale',
    "residual=on,": 'unknown option "" of residual',
    "activation=rely": 'activation = "rely"; allowed: relu, leaky_relu, gelu, silu, sigmoid, tanh, elu, softplus, '
    'identity — did you mean "relu"?',
    "activation=relu,scale=1": "scale = 1; activation does not accept `scale`",
    "activation=os.system": "allowed: relu",
}


@pytest.mark.parametrize(("text", "message"), BAD.items())
def test_an_invalid_command_names_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(text)


def test_an_error_message_shortens_long_input() -> None:
    for text in ("x" * 9000, f"lr={'9' * 9000}x", f"residual={'x' * 9000}", f"residual=on,{'x' * 9000}=1"):
        with pytest.raises(ValueError, match="allowed") as caught:
            parse(text)
        assert len(str(caught.value)) < 300


def test_structs_are_checked_as_strictly_as_text() -> None:
    for text, turn in GOOD.items():
        assert check(turn) is turn, text
    for turn in (
        TurnKnob(knob="nope", value="1"),
        TurnKnob(knob="lr", value=""),
        TurnKnob(knob="pace", value=""),
        TurnKnob(knob="residual", value=""),
        TurnKnob(knob="residual", value="on", scale=math.nan),
        TurnKnob(knob="residual", value="on", scale=math.inf),
    ):
        with pytest.raises(ValueError, match="allowed"):
            check(turn)


def test_parse_at_reads_a_step_and_a_command() -> None:
    assert parse_at("150:residual=on") == (150, TurnKnob(knob="residual", value="on"))
    assert parse_at("0:lr=*2") == (0, TurnKnob(knob="lr", value="*2"))


@pytest.mark.parametrize(
    "text", ["", "residual=on", ":residual=on", "-1:residual=on", "1.5:lr=1", "x:lr=1", "1e3:lr=1"]
)
def test_parse_at_shows_the_expected_form_on_a_bad_step(text: str) -> None:
    with pytest.raises(ValueError, match="expected STEP:knob=value, as in 150:residual=on"):
        parse_at(text)


def test_new_value_takes_exact_and_relative_numbers() -> None:
    assert new_value("0.3", 0.1) == 0.3
    assert new_value("*1.25", 0.1) == 0.125
    assert new_value("/10", 0.5) == 0.05


@pytest.mark.parametrize(("text", "old"), [("*10", 9e5), ("/10", 5e-324), ("*1e6", 2.0), ("*2", 0.0)])
def test_a_relative_change_out_of_range_is_rejected(text: str, old: float) -> None:
    with pytest.raises(ValueError, match=r"lr would become .*; allowed: a number > 0"):
        new_value(text, old)


def test_every_knob_documents_its_values_and_effect() -> None:
    for name, knob in KNOBS.items():
        assert knob.name == name
        assert knob.title
        assert knob.values
        assert knob.acts
        assert knob.choices or knob.kind != "choice"
        for choice in knob.choices:
            target = "@blocks.0" if choice in knob.one_layer_values else ""
            assert parse(f"{name}{target}={choice}").value == choice


def lr(value: str, target: str = "all") -> TurnKnob:
    return TurnKnob(knob="lr", value=value, target=target)


@pytest.mark.parametrize(
    ("first", "then", "both"),
    [
        ("*2", "*3", "*6.0"),
        ("*2", "/4", "*0.5"),
        ("/4", "/2", "*0.125"),
        ("0.1", "*2", "0.2"),
        ("0.1", "0.3", "0.3"),
        ("*1e-9", "*1e-9", "*1e-18"),
    ],
)
def test_two_consecutive_commands_combine_into_one(first: str, then: str, both: str) -> None:
    one = combined(lr(first), lr(then))
    assert one is not None
    assert parse(text_of(one)) == one
    assert one.value[0] == both[0] or one.value[0].isdigit()
    for old in (0.1, 3e-7):
        assert new_value(one.value, old) == pytest.approx(new_value(then, new_value(first, old)), rel=1e-15)
        assert new_value(one.value, old) == pytest.approx(new_value(both, old), rel=1e-15)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (lr("*2"), lr("0.1")),  # the first alone might be rejected
        (lr("-1"), lr("0.1")),
        (lr("0.1"), lr("nan")),
        (lr("*1e5"), lr("*1e5")),  # the product is beyond the largest factor
        (lr("1e5"), lr("*1e5")),
        (lr("*2"), TurnKnob(knob="weight_decay", value="*2")),
        (TurnKnob(knob="clip", value="off"), TurnKnob(knob="clip", value="*2")),
        (TurnKnob(knob="kick", value="0.01"), TurnKnob(knob="kick", value="0.01")),
        (TurnKnob(knob="batch_size", value="*2"), TurnKnob(knob="batch_size", value="*2")),
        (TurnKnob(knob="activation", value="relu"), TurnKnob(knob="activation", value="gelu")),
        (TurnKnob(knob="nonsense", value="1"), TurnKnob(knob="nonsense", value="1")),
    ],
)
def test_commands_that_cannot_be_combined(first: TurnKnob, then: TurnKnob) -> None:
    assert combined(first, then) is None


def test_twenty_combined_presses_equal_twenty_single_ones_up_to_rounding() -> None:
    one, old = lr("*1.25"), 0.1
    for _ in range(19):
        after = combined(one, lr("*1.25"))
        assert after is not None
        one = after
    single = old
    for _ in range(20):
        single = new_value("*1.25", single)
    assert new_value(one.value, old) == pytest.approx(single, rel=20 * 2**-53)
    assert f"{new_value(one.value, old):.6g}" == f"{single:.6g}" == "8.67362"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("schedule=cosine,warmup=3", 'unknown option "warmup" of schedule; allowed: floor'),
        ("schedule=wsd,floor=2", "floor: found 2.*allowed: a number ≥ 0"),
        ("schedule=wsd,warmup=nan", "warmup = nan; allowed: a finite number"),
        ("schedule=plateau,patience=0.5", "patience: found 0.5; allowed: a whole number"),
        ("schedule=step,every=0.1,every=0.2", "given twice"),
        ("lr=0.1,warmup=3", 'unknown option "warmup" of lr'),
    ],
)
def test_an_invalid_schedule_parameter_is_rejected_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(text)


def test_parameters_of_a_struct_are_checked_as_strictly_as_text() -> None:
    for parameters in ((("warmup", 3),), (("floor", 2.0),), (("floor", math.nan),), (("floor", 0.1), ("floor", 0.2))):
        with pytest.raises(ValueError, match=r"floor|warmup|twice"):
            check(TurnKnob(knob="schedule", value="cosine", parameters=parameters))


@pytest.mark.parametrize(
    ("knob", "value", "shown"),
    [
        ("lr", "0.195312", "0.1953"),
        ("lr", "1.23456e-05", "1.235e-05"),
        ("lr", "0.1", "0.1"),
        ("lr", "its own", "its own"),
        ("batch_size", "12345", "12345"),
        ("activation", "relu", "relu"),
    ],
)
def test_a_learning_rate_is_shown_with_four_digits(knob: str, value: str, shown: str) -> None:
    assert shown_value(knob, value) == shown
