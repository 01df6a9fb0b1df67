"""Describes how to make an intervention with keys: `residual=on` is "press r"."""

from __future__ import annotations

from tui_descent.protocol.commands import TurnKnob, Undo
from tui_descent.scenario.keys import KEYS, KeyBinding
from tui_descent.scenario.knobs import KNOBS, parse
from tui_descent.scenario.spec import UNDO


def how_to_press(turn: str) -> str:
    """The keys for an intervention in the grammar of `--at`, or for `undo`: `press n, choose layer`.

    Raises `ValueError` if `turn` is not valid.
    """
    if turn == UNDO:
        return f"press {next(key.shown for key in KEYS if key.command == Undo())}"
    command = parse(turn)
    binding, at_once = _binding(command)
    where = "" if command.target == "all" else f"select {command.target}, then "
    if binding is None:
        return f"{where}choose {KNOBS[command.knob].title} {command.value} in the palette (ctrl+p)"
    press = f"{where}press {binding.shown}"
    if at_once or binding.action in ("toggle_residual", "toggle_freeze"):
        return press
    if binding.action == "type_number":
        return f"{press} and type {command.value}"
    options = [
        f"{name} {value}" for name, value in (("where", command.where), ("way", command.way)) if value is not None
    ]
    return ", ".join([f"{press} and choose {command.value}", *options])


def _binding(command: TurnKnob) -> tuple[KeyBinding | None, bool]:
    """The key for an intervention, and whether the key alone makes it, without a dialog."""
    for key in KEYS:
        known = key.command
        same = isinstance(known, TurnKnob) and (known.knob, known.value) == (command.knob, command.value)
        if same and key.knob == command.knob:
            return key, True
    dialogs = [key for key in KEYS if key.command is None and command.knob in (key.knob, *key.more_knobs)]
    return (dialogs[0] if dialogs else None), False
