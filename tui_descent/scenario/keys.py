"""All key bindings in one table: the dashboard's bindings, footer, help, palette and the README are made from it."""

from __future__ import annotations

import msgspec

from tui_descent.protocol.commands import AnyCommand, Evaluate, Mark, Redo, RunRangeTest, RunSteps, TurnKnob, Undo

RATE_STEP = 1.25
VIEW_KEYS = "1-9"


class FooterEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The footer's entry for a binding: a word, and a shorter one for narrow screens.

    Where there is little room, the entry with the highest `rank` is left out first. `keys` is shown instead of the
    binding's own key if one entry stands for two keys. A `live_only` entry is shown only while the run is live, a
    `scenario_only` entry only in scenario runs.
    """

    word: str
    short: str = ""
    rank: int
    keys: str = ""
    live_only: bool = False
    scenario_only: bool = False


class KeyBinding(msgspec.Struct, frozen=True):
    """A key, its description and its action. `action` is the name of a handler in `dashboard/actions.py`.

    `shown` is the key as the screen shows it. `keys` are Textual's names for it and its synonyms. The action "send"
    sends `command`. `knob` is the knob that the key changes; its dialog also offers the knobs `more_knobs`.
    """

    shown: str
    keys: tuple[str, ...]
    label: str
    description: str
    action: str
    knob: str | None = None
    command: AnyCommand | None = None
    more_knobs: tuple[str, ...] = ()
    footer: FooterEntry | None = None


KEYS: tuple[KeyBinding, ...] = (
    KeyBinding(
        "+",
        ("plus", "equals_sign", "add"),
        "rate up",
        "learning rate × 1.25",
        "send",
        knob="lr",
        command=TurnKnob(knob="lr", value=f"*{RATE_STEP}"),
        footer=FooterEntry(word="rate", short="rate", rank=2, keys="+ -"),
    ),
    KeyBinding(
        "-",
        ("minus", "subtract"),
        "rate down",
        "learning rate ÷ 1.25",
        "send",
        knob="lr",
        command=TurnKnob(knob="lr", value=f"/{RATE_STEP}"),
    ),
    KeyBinding(
        "]",
        ("right_square_bracket",),
        "rate ×10",
        "learning rate × 10",
        "send",
        knob="lr",
        command=TurnKnob(knob="lr", value="*10"),
    ),
    KeyBinding(
        "[",
        ("left_square_bracket",),
        "rate ÷10",
        "learning rate ÷ 10",
        "send",
        knob="lr",
        command=TurnKnob(knob="lr", value="/10"),
    ),
    KeyBinding("l", ("l",), "exact rate", "type an exact learning rate", "type_number", knob="lr"),
    KeyBinding(
        "a",
        ("a",),
        "activation",
        "choose the activation of all blocks or of the selected block",
        "choose_activation",
        knob="activation",
        footer=FooterEntry(word="act", rank=5),
    ),
    KeyBinding(
        "r",
        ("r",),
        "residual",
        "switch residual connections on or off (on as advised), in all blocks or the selected block",
        "toggle_residual",
        knob="residual",
        footer=FooterEntry(word="residual", short="res", rank=3),
    ),
    KeyBinding(
        "n",
        ("n",),
        "norm",
        "choose the normalisation of all blocks or of the selected block",
        "choose",
        knob="norm",
        footer=FooterEntry(word="norm", short="norm", rank=8),
    ),
    KeyBinding(
        "o",
        ("o",),
        "optimizer",
        "switch optimizer (converting the learning rate), or set momentum or betas",
        "choose",
        knob="optimizer",
        more_knobs=("momentum", "betas"),
        footer=FooterEntry(word="optimizer", rank=10),
    ),
    KeyBinding(
        "s",
        ("s",),
        "schedule",
        "choose a learning-rate schedule for the remaining steps",
        "choose_schedule",
        knob="schedule",
        footer=FooterEntry(word="schedule", rank=11),
    ),
    KeyBinding(
        "i",
        ("i",),
        "init",
        "re-initialise the weights of the whole net or of the selected layer",
        "choose",
        knob="init",
    ),
    KeyBinding(
        "c",
        ("c",),
        "clip",
        "set the largest global gradient norm for clipping, or switch clipping off",
        "type_number",
        knob="clip",
    ),
    KeyBinding("b", ("b",), "batch size", "change the batch size", "type_number", knob="batch_size"),
    KeyBinding("w", ("w",), "weight decay", "change the weight decay", "type_number", knob="weight_decay"),
    KeyBinding("d", ("d",), "dropout", "change the dropout rate", "type_number", knob="dropout"),
    KeyBinding(
        "x",
        ("x",),
        "freeze",
        "freeze or unfreeze the selected layer; if none is selected, unfreeze all",
        "toggle_freeze",
        knob="freeze",
    ),
    KeyBinding(
        "k",
        ("k",),
        "kick",
        "move the weights in a random direction by 1 % of their norm; on a test surface (no net), same as K",
        "send",
        knob="kick",
        command=TurnKnob(knob="kick", value="0.01"),
    ),
    KeyBinding(
        "K",
        ("K",),
        "kick down",
        "move the weights in the direction of the most negative curvature, by 1 % of their norm (a surface: by 0.01)",
        "send",
        knob="kick",
        command=TurnKnob(knob="kick", value="0.01", way="curvature"),
    ),
    KeyBinding(
        ",",
        ("comma",),
        "slower",
        "fewer steps per second",
        "slower",
        knob="pace",
        footer=FooterEntry(word="pace", short="pace", rank=9, keys=", ;"),
    ),
    KeyBinding(";", ("semicolon",), "faster", "more steps per second, up to max", "faster", knob="pace"),
    KeyBinding(
        "u",
        ("u",),
        "undo",
        "undo the last change; after a NaN, return to the last good step",
        "send",
        command=Undo(),
        footer=FooterEntry(word="undo", short="undo", rank=4, live_only=True),
    ),
    KeyBinding("U", ("U",), "redo", "redo: return to the state just before the last undo", "send", command=Redo()),
    KeyBinding("g", ("g",), "ghosts", "show or hide the loss curves of undone steps", "toggle_ghosts"),
    KeyBinding(
        "space",
        ("space",),
        "pause",
        "pause or resume",
        "toggle_pause",
        footer=FooterEntry(word="pause", rank=6, live_only=True),
    ),
    KeyBinding(".", ("full_stop",), "one step", "run one step, then pause", "send", command=RunSteps(steps=1)),
    KeyBinding(">", ("greater_than_sign",), "N steps", "ask for a number of steps, run them, then pause", "run_steps"),
    KeyBinding(
        "f",
        ("f",),
        "range test",
        "try a hundred learning rates, and show how the next update would change the loss; the run is restored",
        "range_test",
        command=RunRangeTest(),
        footer=FooterEntry(word="range test", short="range", rank=12, live_only=True, scenario_only=True),
    ),
    KeyBinding("m", ("m",), "mark", "mark the current step on the time axis", "send", command=Mark()),
    KeyBinding("e", ("e",), "evaluate", "evaluate on the held-out data now", "send", command=Evaluate()),
    KeyBinding(
        "E",
        ("E",),
        "events",
        "event log (view 3): show everything, or leave out evaluations and plain notes",
        "toggle_events",
    ),
    KeyBinding("y", ("y",), "log/linear", "switch the loss axis between logarithmic and linear", "toggle_log"),
    KeyBinding(
        "t",
        ("t",),
        "time",
        "switch the time axis between the whole run and the last steps (200 or more)",
        "toggle_recent",
    ),
    KeyBinding(
        "v",
        ("v",),
        "lines",
        "show each line of a chart alone, then all again; a click on its legend hides one line",
        "show_other_lines",
    ),
    KeyBinding("tab", ("tab",), "focus", "focus the next panel", "focus_next_panel"),
    KeyBinding("z", ("z",), "zoom", "show the focused panel alone, or all panels again", "zoom"),
    KeyBinding(
        *(
            VIEW_KEYS,
            ("1", "2", "3", "4", "5", "6", "7", "8", "9"),
            "views",
            "show a view: overview, layers, events, chain rule, curvature, metrics, a script's output, task, lens",
            "show_view",
        ),
        footer=FooterEntry(word="", rank=7),
    ),
    KeyBinding(
        "h",
        ("h",),
        "story",
        "show the preset's story; pressed again, switch its prediction questions on or off",
        "show_story",
    ),
    KeyBinding(
        "O", ("O",), "race", "race several optimizers from this run's start (ends this run; asks first)", "race"
    ),
    KeyBinding("R", ("R",), "restart", "start the same run again from step 0 (asks first)", "restart"),
    KeyBinding("p", ("p",), "gallery", "leave this run and choose another preset (asks first)", "gallery"),
    KeyBinding(
        "?",
        ("question_mark",),
        "help",
        "show all keys, and what the panels show",
        "help",
        footer=FooterEntry(word="help", short="help", rank=1),
    ),
    KeyBinding("ctrl+p", ("ctrl+p",), "palette", "find any action or knob by name", "command_palette"),
    KeyBinding(
        "q",
        ("q", "ctrl+c", "ctrl+q"),
        "leave",
        "leave the run: it goes on without you, or is stopped (asks first)",
        "leave",
        footer=FooterEntry(word="leave", short="leave", rank=0),
    ),
    KeyBinding(
        "↑",
        ("up",),
        "layer up",
        "select the layer above; in panels that scroll, scroll up",
        "up",
    ),
    KeyBinding(
        "↓",
        ("down",),
        "layer down",
        "select the layer below; in panels that scroll, scroll down",
        "down",
    ),
    KeyBinding("←", ("left",), "x left", "activation lens (view 9): move x to the left", "nudge"),
    KeyBinding("→", ("right",), "x right", "activation lens (view 9): move x to the right", "nudge"),
    KeyBinding("(", ("left_parenthesis",), "halve h", "activation lens (view 9): halve the distance h", "nudge"),
    KeyBinding(")", ("right_parenthesis",), "double h", "activation lens (view 9): double the distance h", "nudge"),
    KeyBinding(
        "enter",
        ("enter",),
        "one layer",
        "show all readings of the selected layer; in view 4, step through the backward pass",
        "open_layer",
    ),
    KeyBinding(
        "escape",
        ("escape",),
        "whole net",
        "clear the selection, knobs then act on the whole net; in view 4, leave the steps of the backward pass",
        "clear_selection",
    ),
    KeyBinding(
        "ctrl+z", ("ctrl+z",), "suspend", "return to the shell; the command fg brings the dashboard back", "suspend"
    ),
)
BINDING_OF = {name: binding for binding in KEYS for name in binding.keys}


def keys_table() -> str:
    """The key bindings as the README's Markdown table."""
    rows = [f"| `{key.shown}` | {key.label} | {key.description} |" for key in KEYS]
    return "\n".join(["| key | | what it does |", "|---|---|---|", *rows])
