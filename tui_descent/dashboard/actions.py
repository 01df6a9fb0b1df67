"""Key → action → help, from the one table of knobs and keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec
from textual.binding import Binding

from tui_descent.protocol.commands import AnyCommand, RunSteps, TurnKnob
from tui_descent.scenario.keys import KEYS, PAUSE, RESUME, Key
from tui_descent.scenario.knobs import KNOBS, PACES, parse
from tui_descent.scenario.spec import OptimizerSpec
from tui_descent.scenario.validate import convert
from tui_descent.telemetry.history import History

if TYPE_CHECKING:
    from tui_descent.dashboard.screens.run import RunScreen

Action = Callable[["RunScreen", Key, str], None]
VIEWS = ("overview", "layers", "events", "chain", "curvature")
VIEW_NAMES = {"chain": "chain rule"}
AT_REST = frozenset({"paused", "held", "waiting"})


def bindings() -> list[Binding]:
    """Every key of the table, each bound to its place in it."""
    return [
        Binding(name, f"press({place}, '{name}')", key.label, show=False, key_display=key.shown, tooltip=key.help)
        for place, key in enumerate(KEYS)
        for name in key.keys
    ]


def _turn(screen: RunScreen, key: Key, pressed: str) -> None:
    assert key.command is not None
    screen.ask(key.command)


def _send(screen: RunScreen, key: Key, pressed: str) -> None:
    assert key.command is not None
    screen.ask(key.command)


def _exact_rate(screen: RunScreen, key: Key, pressed: str) -> None:
    from tui_descent.dashboard.dialogs.number import rate_dialog

    def answered(text: str | None) -> None:
        if text:
            screen.ask(TurnKnob(knob="lr", value=text))

    if screen.can_turn("lr"):
        screen.app.push_screen(rate_dialog(screen.bridge.history.knobs.get("lr", "")), answered)


def _run_steps(screen: RunScreen, key: Key, pressed: str) -> None:
    from tui_descent.dashboard.dialogs.number import steps_dialog

    def answered(text: str | None) -> None:
        if text:
            screen.ask(RunSteps(steps=int(text)))

    if screen.bridge.unavailable:
        screen.bridge.refuse(screen.bridge.unavailable)
    else:
        screen.app.push_screen(steps_dialog(), answered)


def _pick_activation(screen: RunScreen, key: Key, pressed: str) -> None:
    from tui_descent.dashboard.dialogs.activation import ActivationDialog

    target = screen.target()
    if target is None or not screen.can_turn("activation"):
        return

    def answered(choice: str | None) -> None:
        if choice:
            screen.ask(TurnKnob(knob="activation", value=choice, target=target))

    screen.app.push_screen(ActivationDialog(screen.value("activation", target), target), answered)


def _pick(screen: RunScreen, key: Key, pressed: str) -> None:
    from tui_descent.dashboard.dialogs.choice import OTHER, ChoiceDialog

    assert key.knob is not None
    knob = key.knob
    target = screen.target_for(knob)
    if target is None or not screen.can_turn(knob):
        return

    def answered(choice: str | None) -> None:
        if choice and choice.startswith(OTHER):
            _ask_number(screen, choice.removeprefix(OTHER))
        elif choice:
            screen.ask(msgspec.structs.replace(parse(f"{knob}={choice}"), target=target))

    now, lr = screen.value(knob, target), screen.bridge.history.knobs.get("lr", "")
    started = screen.bridge.history.started
    scenario = (started.scenario if started is not None else None) or {}
    spec: OptimizerSpec | None = convert(OptimizerSpec, scenario.get("optimizer", {}), "", [])
    screen.app.push_screen(ChoiceDialog(knob, now, target, also=key.also, lr=lr, spec=spec), answered)


def _pick_schedule(screen: RunScreen, key: Key, pressed: str) -> None:
    from tui_descent.dashboard.dialogs.schedule import ScheduleDialog

    def answered(turn: TurnKnob | None) -> None:
        if turn is not None:
            screen.ask(turn)

    if screen.can_turn("schedule"):
        screen.app.push_screen(ScheduleDialog(screen.bridge, screen.value("schedule")), answered)


def _number(screen: RunScreen, key: Key, pressed: str) -> None:
    assert key.knob is not None
    _ask_number(screen, key.knob)


def _ask_number(screen: RunScreen, knob: str) -> None:
    from tui_descent.dashboard.dialogs.number import knob_dialog

    def answered(text: str | None) -> None:
        if text:
            screen.ask(TurnKnob(knob=knob, value=text))

    if screen.can_turn(knob):
        screen.app.push_screen(knob_dialog(knob, screen.value(knob)), answered)


def _range_test(screen: RunScreen, key: Key, pressed: str) -> None:
    from tui_descent.dashboard.dialogs.range_test import RatesDialog

    started = screen.bridge.history.started
    if started is None:
        screen.bridge.refuse("the network is not built yet")
        return
    if started.scenario is None:
        screen.bridge.refuse(f"{key.label}: an own loop's batches cannot be asked for again")
        return

    def answered(text: str | None) -> None:
        if text:
            screen.ask(TurnKnob(knob="lr", value=text))

    screen.app.push_screen(RatesDialog(screen.bridge), answered)


def _toggle_freeze(screen: RunScreen, key: Key, pressed: str) -> None:
    target = screen.target_for("freeze")
    if target == "all":
        if screen.can_turn("freeze") and screen.value("freeze") == "off":
            screen.bridge.refuse("no layer is frozen; arrows select the one to freeze")
            return
        screen.ask(TurnKnob(knob="freeze", value="off"))
    elif target is not None:
        now = screen.value("freeze", target)
        screen.ask(TurnKnob(knob="freeze", value="off" if now == "on" else "on", target=target))


def _toggle_residual(screen: RunScreen, key: Key, pressed: str) -> None:
    target = screen.target()
    if target is not None:
        now = screen.value("residual", target)
        screen.ask(TurnKnob(knob="residual", value="off" if now.startswith("on") else "on", target=target))


def _toggle_pause(screen: RunScreen, key: Key, pressed: str) -> None:
    screen.ask(RESUME if screen.bridge.history.state.state in AT_REST else PAUSE)


def _slower(screen: RunScreen, key: Key, pressed: str) -> None:
    _pace(screen, [p for p in reversed(PACES) if float_of(p) < float_of(screen.value("pace"))])


def _faster(screen: RunScreen, key: Key, pressed: str) -> None:
    _pace(screen, [p for p in PACES if float_of(p) > float_of(screen.value("pace"))])


def _pace(screen: RunScreen, further: list[str]) -> None:
    if further:
        screen.ask(TurnKnob(knob="pace", value=further[0]))
    elif screen.can_turn("pace"):
        screen.bridge.refuse(f"pace is {screen.value('pace')} already; it goes from {PACES[0]} a second to {PACES[-1]}")


def float_of(pace: str) -> float:
    """Steps a second; `max` and what cannot be read are infinite."""
    try:
        return float(pace)
    except ValueError:
        return math.inf


def _help(screen: RunScreen, key: Key, pressed: str) -> None:
    from tui_descent.dashboard.dialogs.help import HelpDialog

    screen.app.push_screen(HelpDialog())


def _palette(screen: RunScreen, key: Key, pressed: str) -> None:
    screen.app.action_command_palette()


def _view(screen: RunScreen, key: Key, pressed: str) -> None:
    screen.show_view(VIEWS[key.keys.index(pressed)])


ACTIONS: dict[str, Action] = {
    "turn": _turn,
    "send": _send,
    "exact_rate": _exact_rate,
    "run_steps": _run_steps,
    "pick_activation": _pick_activation,
    "toggle_residual": _toggle_residual,
    "pick": _pick,
    "pick_schedule": _pick_schedule,
    "number": _number,
    "range_test": _range_test,
    "toggle_freeze": _toggle_freeze,
    "toggle_pause": _toggle_pause,
    "slower": _slower,
    "faster": _faster,
    "help": _help,
    "command_palette": _palette,
    "view": _view,
    "toggle_log": lambda screen, key, pressed: screen.toggle_log(),
    "toggle_window": lambda screen, key, pressed: screen.toggle_window(),
    "toggle_ghosts": lambda screen, key, pressed: screen.toggle_ghosts(),
    "focus_next_panel": lambda screen, key, pressed: screen.focus_next_panel(),
    "zoom": lambda screen, key, pressed: screen.zoom(),
    "leave": lambda screen, key, pressed: screen.leave(),
    "up": lambda screen, key, pressed: screen.move(1),
    "down": lambda screen, key, pressed: screen.move(-1),
    "open_layer": lambda screen, key, pressed: screen.open_layer(),
    "clear": lambda screen, key, pressed: screen.clear_selection(),
    "suspend": lambda screen, key, pressed: screen.app.action_suspend_process(),
}


def press(screen: RunScreen, place: int, pressed: str) -> None:
    """What the key at a place of the table does."""
    key = KEYS[place]
    ACTIONS[key.action](screen, key, pressed)


def value_of(history: History, knob: str, target: str = "all") -> str:
    """A knob's present value as the trainer told it, for one block where it was turned by itself."""
    if target == "all":
        return history.knobs.get(knob, "")
    for turned in reversed(history.interventions):
        if turned.knob == knob and turned.target in (target, "all") and turned.segment == history.segment:
            return turned.new
    if history.started is None:
        return ""
    return next((state.value for state in history.started.knobs if state.name == knob), "")


def palette() -> Iterator[tuple[str, str, int, str, AnyCommand | None]]:
    """Every action and every choice by name: text, help, place in the table and key, or the command itself."""
    for place, key in enumerate(KEYS):
        for n, name in enumerate(key.keys if key.action == "view" else key.keys[:1]):
            label = f"view: {VIEW_NAMES.get(VIEWS[n], VIEWS[n])}" if key.action == "view" else key.label
            shown = name if key.action == "view" else key.shown
            yield f"{label}  ({shown})", key.help, place, name, None
    for knob in KNOBS.values():
        for choice in knob.choices or (PACES if knob.kind == "pace" else ()):
            yield (
                f"{knob.name} = {choice}",
                f"{knob.title}: {knob.acts}",
                -1,
                "",
                TurnKnob(knob=knob.name, value=choice),
            )
