"""The handlers of the keys: one for every action in the table of key bindings. The command palette runs them too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from tui_descent.dashboard.bridge import STOPPED_STATES
from tui_descent.dashboard.dialogs.activation import ActivationDialog
from tui_descent.dashboard.dialogs.choice import OTHER, ChoiceDialog
from tui_descent.dashboard.dialogs.help import HelpDialog
from tui_descent.dashboard.dialogs.number import knob_dialog, steps_dialog
from tui_descent.dashboard.dialogs.range_test import RangeTestDialog
from tui_descent.dashboard.dialogs.schedule import ScheduleDialog
from tui_descent.dashboard.panels.lens import asked_layer
from tui_descent.dashboard.screens.run import RunScreen
from tui_descent.dashboard.view import RACE_VIEWS, VIEWS
from tui_descent.protocol.commands import Pause, Resume, RunSteps, TurnKnob
from tui_descent.scenario.keys import BINDING_OF, KeyBinding
from tui_descent.scenario.knobs import PACES, parse
from tui_descent.scenario.spec import ActivationSpec, OptimizerSpec
from tui_descent.scenario.validate import convert

Handler = Callable[[RunScreen, KeyBinding, str], None]


def press(screen: RunScreen, key: str) -> None:
    """Run the handler of a key. `key` is Textual's name for it."""
    screen.follow_layers()
    binding = BINDING_OF[key]
    HANDLERS[binding.action](screen, binding, key)


def _send(screen: RunScreen, binding: KeyBinding, key: str) -> None:
    assert binding.command is not None
    screen.send(binding.command)


def _send_answer(screen: RunScreen, knob: str, target: str = "all") -> Callable[[str | None], None]:
    """A dialog's callback that sends the answer as the knob's value."""

    def answered(value: str | None) -> None:
        if value:
            screen.send(TurnKnob(knob=knob, value=value, target=target))

    return answered


def _run_steps(screen: RunScreen, binding: KeyBinding, key: str) -> None:
    def answered(text: str | None) -> None:
        if text:
            screen.send(RunSteps(steps=int(text)))

    if screen.bridge.unavailable:
        screen.bridge.refuse(screen.bridge.unavailable)
    else:
        screen.app.push_screen(steps_dialog(), answered)


def _choose_activation(screen: RunScreen, binding: KeyBinding, key: str) -> None:
    target = screen.selected_block()
    if target is not None and screen.can_turn("activation"):
        state = screen.bridge.history.initial_state("activation")
        dialog = ActivationDialog(
            screen.bridge,
            screen.knob_value("activation", target),
            target,
            asked=asked_layer(screen.view),
            slope=_leaky_slope(screen),
            acts_on=tuple(name for name in state.acts_on if _is_inside(name, target)),
            left_alone=tuple(entry for entry in state.left_alone if _is_inside(entry[0], target)),
            advised=_advised(screen, "activation"),
        )
        screen.app.push_screen(dialog, _send_answer(screen, "activation", target))


def _advised(screen: RunScreen, knob: str) -> str:
    """The value that the newest diagnosis advises for this knob; empty if it advises none."""
    found = screen.bridge.history.diagnosis
    return next((advice.value for advice in found.advice if advice.knob == knob), "") if found is not None else ""


def _remedy(screen: RunScreen, knob: str) -> str:
    """The value that the preset itself names as a remedy for this knob; empty if it names none."""
    started = screen.bridge.history.started
    remedies = ((started.scenario if started is not None else None) or {}).get("remedy", ())
    return next((text.partition("=")[2] for text in remedies if text.partition("=")[0] == knob), "")


def _leaky_slope(screen: RunScreen) -> float:
    """The slope that leaky_relu gets in this run: the scenario's, or the usual one."""
    started = screen.bridge.history.started
    model: dict[str, Any] = ((started.scenario if started is not None else None) or {}).get("model", {})
    found = convert(ActivationSpec, model.get("activation", {}), "", [])
    return found.slope if isinstance(found, ActivationSpec) else ActivationSpec().slope


def _is_inside(module: str, target: str) -> bool:
    return target == "all" or module == target or module.startswith(f"{target}.")


def _choose(screen: RunScreen, binding: KeyBinding, key: str) -> None:
    assert binding.knob is not None
    knob = binding.knob
    target, history = screen.target_for(knob), screen.bridge.history
    # In a user loop the optimizer's class cannot be changed, but its momentum can.
    only_more = knob in history.unavailable and any(more not in history.unavailable for more in binding.more_knobs)
    if target is None or not (screen.can_send() if only_more else screen.can_turn(knob)):
        return

    def answered(choice: str | None) -> None:
        if choice and choice.startswith(OTHER):
            ask_number(screen, choice.removeprefix(OTHER))
        elif choice:
            screen.send(msgspec.structs.replace(parse(f"{knob}={choice}"), target=target))

    scenario = (history.started.scenario if history.started is not None else None) or {}
    spec: OptimizerSpec | None = convert(OptimizerSpec, scenario.get("optimizer", {}), "", [])
    dialog = ChoiceDialog(
        knob,
        screen.knob_value(knob, target),
        target,
        more_knobs=tuple(more for more in binding.more_knobs if not only_more or more not in history.unavailable),
        unavailable=history.unavailable.get(knob, ""),
        lr=history.knobs.get("lr", ""),
        spec=spec,
        advised=_advised(screen, knob),
    )
    screen.app.push_screen(dialog, answered)


def _choose_schedule(screen: RunScreen, binding: KeyBinding, key: str) -> None:
    def answered(turn: TurnKnob | None) -> None:
        if turn is not None:
            screen.send(turn)

    if screen.can_turn("schedule"):
        screen.app.push_screen(ScheduleDialog(screen.bridge, screen.knob_value("schedule")), answered)


def _type_number(screen: RunScreen, binding: KeyBinding, key: str) -> None:
    assert binding.knob is not None
    ask_number(screen, binding.knob)


def ask_number(screen: RunScreen, knob: str) -> None:
    """Ask for a knob's new value and send it."""
    if screen.can_turn(knob):
        now, rates = screen.bridge.history.knobs.get(knob, ""), screen.bridge.history.rates
        known = rates.rates if knob == "lr" and rates is not None else None
        screen.app.push_screen(
            knob_dialog(knob, now, known, advised=_advised(screen, knob)), _send_answer(screen, knob)
        )


def _range_test(screen: RunScreen, binding: KeyBinding, key: str) -> None:
    own_loop = "range test: not available for your own loop: its batches cannot be replayed"
    if _is_single_scenario(screen, own_loop=own_loop, race="range test: not in a race; run the preset alone"):
        screen.app.push_screen(RangeTestDialog(screen.bridge), _send_answer(screen, "lr"))


def _is_single_scenario(screen: RunScreen, *, own_loop: str, race: str) -> bool:
    """Whether the run is a scenario's, and not a race. If not, the reason is shown: `own_loop` or `race`."""
    started = screen.bridge.history.started
    reason = ""
    if started is None:
        reason = "the network is not built yet"
    elif started.scenario is None:
        reason = own_loop
    elif started.lanes:
        reason = race
    if reason:
        screen.bridge.refuse(reason)
    return not reason


def _toggle_freeze(screen: RunScreen, binding: KeyBinding, key: str) -> None:
    target = screen.target_for("freeze")
    if target == "all":
        if screen.can_turn("freeze") and screen.knob_value("freeze") == "off":
            screen.bridge.refuse("no layer is frozen; select the layer to freeze with the arrow keys")
            return
        screen.send(TurnKnob(knob="freeze", value="off"))
    elif target is not None:
        frozen = screen.knob_value("freeze", target) == "on"
        screen.send(TurnKnob(knob="freeze", value="off" if frozen else "on", target=target))


def _toggle_residual(screen: RunScreen, binding: KeyBinding, key: str) -> None:
    target = screen.selected_block()
    if target is not None:
        on = screen.knob_value("residual", target).startswith("on")
        advised = _advised(screen, "residual") or _remedy(screen, "residual")
        value = "off" if on else advised if advised.partition(",")[0] == "on" else "on"
        screen.send(msgspec.structs.replace(parse(f"residual={value}"), target=target))


def _toggle_pause(screen: RunScreen, binding: KeyBinding, key: str) -> None:
    stopped = screen.bridge.history.state.state in STOPPED_STATES
    screen.send(Resume() if stopped else Pause())


def _slower(screen: RunScreen, binding: KeyBinding, key: str) -> None:
    now = _steps_per_s(screen.knob_value("pace"))
    _set_pace(screen, [pace for pace in reversed(PACES) if _steps_per_s(pace) < now])


def _faster(screen: RunScreen, binding: KeyBinding, key: str) -> None:
    now = _steps_per_s(screen.knob_value("pace"))
    _set_pace(screen, [pace for pace in PACES if _steps_per_s(pace) > now])


def _set_pace(screen: RunScreen, candidates: list[str]) -> None:
    if candidates:
        screen.send(TurnKnob(knob="pace", value=candidates[0]))
    elif screen.can_turn("pace"):
        now = screen.knob_value("pace")
        screen.bridge.refuse(f"the pace is already {now}; it ranges from {PACES[0]} to {PACES[-1]} steps per second")


def _steps_per_s(pace: str) -> float:
    """The pace as a number; infinite for `max` and for text that is not a number."""
    try:
        return float(pace)
    except ValueError:
        return math.inf


def _race(screen: RunScreen, binding: KeyBinding, key: str) -> None:
    own_loop = "race: not available for your own loop: it cannot be started again from here"
    if _is_single_scenario(screen, own_loop=own_loop, race="this is a race already; R starts it again"):
        screen.leave("race")


def _show_view(screen: RunScreen, binding: KeyBinding, key: str) -> None:
    view = list(VIEWS)[binding.keys.index(key)]
    if screen.bridge.history.lanes and view not in RACE_VIEWS:
        screen.bridge.refuse(f"no view {VIEWS[view]} in a race; 1: race, 3: events, 8: map")
    else:
        screen.show_view(view)


def _help(screen: RunScreen, binding: KeyBinding, key: str) -> None:
    screen.app.push_screen(HelpDialog())


HANDLERS: dict[str, Handler] = {
    "send": _send,
    "run_steps": _run_steps,
    "choose_activation": _choose_activation,
    "toggle_residual": _toggle_residual,
    "choose": _choose,
    "choose_schedule": _choose_schedule,
    "type_number": _type_number,
    "range_test": _range_test,
    "toggle_freeze": _toggle_freeze,
    "toggle_pause": _toggle_pause,
    "slower": _slower,
    "faster": _faster,
    "help": _help,
    "command_palette": lambda screen, binding, key: screen.app.action_command_palette(),
    "show_view": _show_view,
    "toggle_log": lambda screen, binding, key: screen.toggle_log(),
    "toggle_recent": lambda screen, binding, key: screen.toggle_recent(),
    "toggle_events": lambda screen, binding, key: screen.toggle_events(),
    "show_other_lines": lambda screen, binding, key: screen.show_other_lines(),
    "toggle_ghosts": lambda screen, binding, key: screen.toggle_ghosts(),
    "focus_next_panel": lambda screen, binding, key: screen.focus_next_panel(),
    "zoom": lambda screen, binding, key: screen.zoom(),
    "show_story": lambda screen, binding, key: screen.show_story(),
    "race": _race,
    "restart": lambda screen, binding, key: screen.leave("restart"),
    "gallery": lambda screen, binding, key: screen.leave("gallery"),
    "leave": lambda screen, binding, key: screen.leave(),
    "up": lambda screen, binding, key: screen.select_or_scroll(1),
    "down": lambda screen, binding, key: screen.select_or_scroll(-1),
    "nudge": lambda screen, binding, key: screen.change_nudge(key),
    "open_layer": lambda screen, binding, key: screen.open_layer_or_step(),
    "clear_selection": lambda screen, binding, key: screen.deselect_layer(),
    "suspend": lambda screen, binding, key: screen.app.action_suspend_process(),
}
