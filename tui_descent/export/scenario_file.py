"""A run as a scenario file: the scenario that it trained, with its interventions as `[[plan]]` entries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from tui_descent.export.errors import ExportError
from tui_descent.protocol.events import KnobTurned
from tui_descent.scenario import knobs, schedules
from tui_descent.scenario.knob_table import NEUTRAL_KNOBS
from tui_descent.scenario.spec import PlannedIntervention, Scenario, ScheduleSpec
from tui_descent.scenario.toml import ScenarioError, from_text

# Written even if they have their default values: a scenario file should say what it trains.
ALWAYS = {"run": ("steps", "seed", "threads", "device"), "optimizer": ("name", "lr")}


class ScenarioFile(msgspec.Struct, frozen=True):
    """The text of the file, and what it cannot repeat, as sentences for the user."""

    text: str
    notes: tuple[str, ...] = ()


def scenario_file(
    scenario: Scenario,
    interventions: Iterable[KnobTurned],
    *,
    run: str,
    steps: int,
    threads: int | None = None,
    device: str | None = None,
) -> ScenarioFile:
    """The run as a scenario file. Headless, it has bit for bit the same losses on a CPU.

    `interventions` are those of the run's final lineage, in their order, including those that the scenario or `--at`
    had planned. `steps` is the number of updates that the run has made, `threads` and `device` are those it used.
    Raises `ExportError` if there are more interventions or steps than a scenario may have.
    """
    turned = [turn for turn in interventions if turn.knob not in NEUTRAL_KNOBS]
    total, notes = _steps(scenario, turned, steps)
    plan = [PlannedIntervention(at=turn.step, turn=knobs.text_of(turn.again)) for turn in turned if turn.step < total]
    captions = [entry for entry in scenario.plan if entry.say and not entry.demo and entry.at < total]
    plan += [PlannedIntervention(at=entry.at, say=entry.say) for entry in captions]
    changed = msgspec.structs.replace(
        scenario,
        claim=(),
        cause_off=(),
        plan=tuple(sorted(plan, key=lambda entry: entry.at)),
        schedule=_cut(scenario.schedule, total),
        run=msgspec.structs.replace(
            scenario.run,
            steps=total,
            threads=scenario.run.threads if threads is None else threads,
            device=device or scenario.run.device,
        ),
    )
    text = f"# The run {run}, exported by tui-descent.\n\n{to_toml(changed)}"
    try:
        same = from_text(text, source=run) == changed
    except ScenarioError as error:  # too many interventions, or too many steps
        raise ExportError(f"the run does not fit into a scenario: {error}") from None
    assert same
    return ScenarioFile(text, tuple(notes))


def _steps(scenario: Scenario, turned: Sequence[KnobTurned], steps: int) -> tuple[int, list[str]]:
    """The number of updates that the file makes, and what has to be said about it.

    A run may have gone on after its last planned update. The file then makes these updates, too, unless a schedule
    depends on how many updates are planned.
    """
    planned = scenario.run.steps
    if steps <= planned:
        return planned, []
    specs: list[ScheduleSpec] = [scenario.schedule]
    specs += [knobs.spec_of(turn.again) for turn in turned if turn.knob == "schedule"]
    # The other schedules stay at their last value from the planned end on, and would be stretched.
    if all(spec.name in ("constant", "plateau") for spec in specs):
        return steps, []
    return planned, [
        f"the run went on to step {steps:,}, but its schedule ends at step {planned:,}, and so does this scenario"
    ]


def _cut(spec: ScheduleSpec, total: int) -> ScheduleSpec:
    """The same schedule with lengths that fit. In a run that an override has shortened, they are cut anyway."""
    if not schedules.problems(spec, total):
        return spec
    resolved = schedules.resolve_schedule(spec, total)
    lengths = {field: getattr(resolved, field) for field in ("warmup", "decay") if field in schedules.FIELDS[spec.name]}
    return msgspec.structs.replace(spec, **lengths)


def to_toml(scenario: Scenario) -> str:
    """The scenario as TOML text without the values that are defaults; the inverse of `from_text`."""
    tables: list[str] = []
    heads: list[str] = []
    for field in msgspec.structs.fields(scenario):
        value = getattr(scenario, field.name)
        if isinstance(value, tuple) and value and isinstance(value[0], msgspec.Struct):
            tables += [_table(f"[[{field.encode_name}]]", _entries(item)) for item in value]
        elif isinstance(value, msgspec.Struct):
            if field.required or value != field.default or field.name in ALWAYS:
                tables.append(_table(f"[{field.encode_name}]", _entries(value, ALWAYS.get(field.name, ()))))
        elif (field.required or value != field.default) and value is not None:
            heads.append(f"{field.encode_name} = {_value(value, multiline=field.name == 'story')}")
    return "\n\n".join(["\n".join(heads), *tables]) + "\n"


def _entries(struct: msgspec.Struct, always: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a table that are not defaults, those that are always written, and its name."""
    config = struct.__struct_config__
    found: dict[str, Any] = {config.tag_field: config.tag} if config.tag_field else {}
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        is_default = not field.required and value == field.default
        if value is not None and (not is_default or field.name in (*always, "name")):
            found[field.encode_name] = _entries(value) if isinstance(value, msgspec.Struct) else value
    return found


def _table(head: str, entries: Mapping[str, Any]) -> str:
    return "\n".join([head, *(f"{key} = {_value(value)}" for key, value in entries.items())])


def _value(value: Any, *, multiline: bool = False) -> str:
    """A value as TOML."""
    match value:
        case bool():
            return str(value).lower()
        case str() if multiline and "\n" in value:
            lines = [_escaped(line) for line in value.split("\n")]
            return '"""\n' + "\n".join(lines) + '"""'
        case str():
            return f'"{_escaped(value)}"'
        case dict():
            if list(value) == ["name"]:
                return _value(value["name"])
            return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
        case list() | tuple():
            return "[" + ", ".join(_value(item) for item in value) + "]"
        case _:
            return repr(value)


def _escaped(text: str) -> str:
    """The inside of a basic string. JSON escapes what TOML does not allow, except for the character 127."""
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("\x7f", "\\u007f")
