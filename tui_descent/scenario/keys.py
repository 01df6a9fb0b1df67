"""Everything that can be pressed: one table makes bindings, footer, help, palette and the README's keys."""

from __future__ import annotations

import msgspec

from tui_descent.protocol.commands import (
    AnyCommand,
    Evaluate,
    Mark,
    Pause,
    Redo,
    Resume,
    RunRangeTest,
    RunSteps,
    TurnKnob,
    Undo,
)

RATE_STEP = 1.25
PAUSE, RESUME = Pause(), Resume()


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What a key does: `action` is the dashboard's word for it, `command` what it always sends, if anything.

    `also` are further knobs that its dialog leads to.
    """

    keys: tuple[str, ...]
    shown: str
    label: str
    help: str
    action: str
    command: AnyCommand | None = None
    knob: str | None = None
    also: tuple[str, ...] = ()


KEYS: tuple[Key, ...] = (
    Key(
        keys=("plus", "equals_sign", "add"),
        shown="+",
        label="rate up",
        help="learning rate × 1.25",
        action="turn",
        knob="lr",
        command=TurnKnob(knob="lr", value=f"*{RATE_STEP}"),
    ),
    Key(
        keys=("minus", "subtract"),
        shown="-",
        label="rate down",
        help="learning rate ÷ 1.25",
        action="turn",
        knob="lr",
        command=TurnKnob(knob="lr", value=f"/{RATE_STEP}"),
    ),
    Key(
        keys=("right_square_bracket",),
        shown="]",
        label="rate ×10",
        help="learning rate × 10",
        action="turn",
        knob="lr",
        command=TurnKnob(knob="lr", value="*10"),
    ),
    Key(
        keys=("left_square_bracket",),
        shown="[",
        label="rate ÷10",
        help="learning rate ÷ 10",
        action="turn",
        knob="lr",
        command=TurnKnob(knob="lr", value="/10"),
    ),
    Key(
        keys=("l",),
        shown="l",
        label="exact rate",
        help="type an exact learning rate",
        action="exact_rate",
        knob="lr",
    ),
    Key(
        keys=("a",),
        shown="a",
        label="activation",
        help="pick the activation of the net or of the selected layer",
        action="pick_activation",
        knob="activation",
    ),
    Key(
        keys=("r",),
        shown="r",
        label="residual",
        help="residual connections on or off: all blocks or the selected one",
        action="toggle_residual",
        knob="residual",
    ),
    Key(
        keys=("n",),
        shown="n",
        label="norm",
        help="pick the normalisation of all blocks or the selected one; in it tab: where and how",
        action="pick",
        knob="norm",
    ),
    Key(
        keys=("o",),
        shown="o",
        label="optimizer",
        help="another optimizer, its learning rate mapped; momentum and betas",
        action="pick",
        knob="optimizer",
        also=("momentum", "betas"),
    ),
    Key(
        keys=("s",),
        shown="s",
        label="schedule",
        help="another schedule over the steps that are left, its curve drawn; its parameters",
        action="pick_schedule",
        knob="schedule",
    ),
    Key(
        keys=("i",),
        shown="i",
        label="init",
        help="draw the weights anew: the whole net's or the selected layer's",
        action="pick",
        knob="init",
    ),
    Key(
        keys=("c",),
        shown="c",
        label="clip",
        help="clip the gradient to a global norm, or off",
        action="number",
        knob="clip",
    ),
    Key(
        keys=("b",),
        shown="b",
        label="batch size",
        help="another batch size",
        action="number",
        knob="batch_size",
    ),
    Key(
        keys=("w",),
        shown="w",
        label="weight decay",
        help="another weight decay",
        action="number",
        knob="weight_decay",
    ),
    Key(
        keys=("d",),
        shown="d",
        label="dropout",
        help="another share of dropout",
        action="number",
        knob="dropout",
    ),
    Key(
        keys=("x",),
        shown="x",
        label="freeze",
        help="freeze the selected layer, or let it go; with none selected let all go",
        action="toggle_freeze",
        knob="freeze",
    ),
    Key(
        keys=("k",),
        shown="k",
        label="kick",
        help="push all weights by a hundredth, at random; on a surface down its most negative curvature",
        action="turn",
        knob="kick",
        command=TurnKnob(knob="kick", value="0.01"),
    ),
    Key(
        keys=("K",),
        shown="K",
        label="kick down",
        help="push all weights by a hundredth along the most negative curvature, off a saddle",
        action="turn",
        knob="kick",
        command=TurnKnob(knob="kick", value="0.01", way="curvature"),
    ),
    Key(
        keys=("f",),
        shown="f",
        label="range test",
        help="find a learning rate: sweep it from here, all put back after; enter adopts",
        action="range_test",
        command=RunRangeTest(),
    ),
    Key(
        keys=("u",),
        shown="u",
        label="undo",
        help="back to the exact state before the last intervention; after NaN, to the last good one",
        action="send",
        command=Undo(),
    ),
    Key(
        keys=("U",),
        shown="U",
        label="redo",
        help="forward again to where the last undo was made",
        action="send",
        command=Redo(),
    ),
    Key(
        keys=("g",),
        shown="g",
        label="ghosts",
        help="show or hide the curves that an undo left behind",
        action="toggle_ghosts",
    ),
    Key(
        keys=("space",),
        shown="space",
        label="pause",
        help="pause, and go on",
        action="toggle_pause",
    ),
    Key(
        keys=("full_stop",),
        shown=".",
        label="one step",
        help="make one step, then pause",
        action="send",
        command=RunSteps(steps=1),
    ),
    Key(
        keys=("greater_than_sign",),
        shown=">",
        label="N steps",
        help="make N steps, then pause",
        action="run_steps",
    ),
    Key(
        keys=("comma",),
        shown=",",
        label="slower",
        help="fewer steps a second",
        action="slower",
        knob="pace",
    ),
    Key(
        keys=("semicolon",),
        shown=";",
        label="faster",
        help="more steps a second, up to max",
        action="faster",
        knob="pace",
    ),
    Key(
        keys=("m",),
        shown="m",
        label="mark",
        help="mark this moment on the time axis",
        action="send",
        command=Mark(),
    ),
    Key(
        keys=("e",),
        shown="e",
        label="evaluate",
        help="evaluate on the held-out data now",
        action="send",
        command=Evaluate(),
    ),
    Key(
        keys=("y",),
        shown="y",
        label="log/linear",
        help="loss axis: logarithmic or linear",
        action="toggle_log",
    ),
    Key(
        keys=("t",),
        shown="t",
        label="time",
        help="time axis: the whole run, or the last 200 steps",
        action="toggle_window",
    ),
    Key(
        keys=("tab",),
        shown="tab",
        label="focus",
        help="next panel; arrows scroll and select a layer",
        action="focus_next_panel",
    ),
    Key(
        keys=("z",),
        shown="z",
        label="zoom",
        help="the focused panel alone, and back",
        action="zoom",
    ),
    Key(
        keys=("1", "2", "3", "4", "5"),
        shown="1-5",
        label="views",
        help="overview · layers · events · chain rule · curvature",
        action="view",
    ),
    Key(
        keys=("question_mark",),
        shown="?",
        label="help",
        help="all keys, and what the panels mean",
        action="help",
    ),
    Key(
        keys=("ctrl+p",),
        shown="ctrl+p",
        label="palette",
        help="every action and knob by name",
        action="command_palette",
    ),
    Key(
        keys=("q", "ctrl+c"),
        shown="q",
        label="leave",
        help="stop the run and leave, or stay",
        action="leave",
    ),
    Key(
        keys=("up",),
        shown="↑",
        label="layer up",
        help="select the layer above; in events and chain rule, scroll",
        action="up",
    ),
    Key(
        keys=("down",),
        shown="↓",
        label="layer down",
        help="select the layer below; in events and chain rule, scroll",
        action="down",
    ),
    Key(
        keys=("enter",),
        shown="enter",
        label="one layer",
        help="all readings of the selected layer",
        action="open_layer",
    ),
    Key(
        keys=("escape",),
        shown="escape",
        label="whole net",
        help="select no layer: knobs act on the whole net",
        action="clear",
    ),
    Key(
        keys=("ctrl+z",),
        shown="ctrl+z",
        label="suspend",
        help="back to the shell; fg returns",
        action="suspend",
    ),
)


def keys_table() -> str:
    """The keys as a Markdown table: the README's."""
    rows = [f"| `{key.shown}` | {key.label} | {key.help} |" for key in KEYS]
    return "\n".join(["| key | | what it does |", "|---|---|---|", *rows])
