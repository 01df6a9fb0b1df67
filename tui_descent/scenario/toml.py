"""Read and check scenario files. Every error message names the file and the place in it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tui_descent.scenario import formula, knobs, own_data, schedules
from tui_descent.scenario.claim_problems import claim_problems
from tui_descent.scenario.race import lanes_of
from tui_descent.scenario.spec import (
    UNDO,
    ConvModel,
    DigitsData,
    OwnImagesData,
    Scenario,
    SurfaceModel,
    TextData,
    TransformerModel,
    TwoLayerModel,
    WithoutData,
    surface_name,
)
from tui_descent.scenario.toml_limits import excess
from tui_descent.scenario.validate import MAX_SHOWN, Problem, convert, escape_controls, shorten

MAX_BYTES = 1_000_000
PATHS = ("path", "labels")  # of a data file, in the table data
MAX_PATH = 4096
MAX_WEIGHTS = 4096  # of one layer of a two-layer net, whose full Hessian can be asked for


class ScenarioError(ValueError):
    """An invalid scenario: the file and all its problems. The message has the first `MAX_SHOWN` of them."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = escape_controls(shorten(source, 200))
        self.problems = tuple(problems)
        lines = [f"{self.source}: {p}" for p in self.problems[:MAX_SHOWN]]
        if (more := len(self.problems) - len(lines)) > 0:
            lines.append(f"{self.source}: … and {more:,} more")
        super().__init__("\n".join(lines))


def read(path: Path, *, overrides: Iterable[str] = ()) -> Scenario:
    """Read a scenario from a file and apply overrides of the form `place=value`. Raises `ScenarioError`.

    Its own data file has to be valid, too. Relative paths in the scenario file begin at its folder.
    """
    scenario = from_text(_text(path), source=str(path), overrides=overrides, folder=path.parent)
    if (problem := own_data.check(scenario)) is not None:
        raise ScenarioError(str(path), [Problem("data.path", problem)])
    return scenario


def from_text(text: str, *, source: str, overrides: Iterable[str] = (), folder: Path | None = None) -> Scenario:
    """Read a scenario from TOML text. Paths of data files are relative to `folder`. Raises `ScenarioError`."""
    if (found := excess(text)) is not None:
        raise ScenarioError(source, [Problem("", f"not valid TOML: {found}")])
    try:
        table = tomllib.loads(text)
    except (RecursionError, ValueError) as error:
        raise ScenarioError(source, [Problem("", f"not valid TOML: {shorten(str(error), 200)}")]) from None
    data = table.get("data")
    if folder is not None and isinstance(data, dict):
        data |= {name: _absolute(data[name], folder) for name in PATHS if name in data}
    return from_table(table, source=source, overrides=overrides)


def from_table(
    table: Mapping[str, Any], *, source: str, overrides: Iterable[str] = (), shortened: bool = False
) -> Scenario:
    """Read a scenario from a table of plain values. Raises `ScenarioError`.

    With `shortened`, an override may have made the run shorter, so steps beyond its end are not errors.
    """
    plain: dict[str, Any] = msgspec.to_builtins(table)
    overrides = tuple(overrides)
    for override in overrides:
        _override(plain, override)
    problems: list[Problem] = []
    scenario = convert(Scenario, plain, "", problems)
    if scenario is not None:
        # In a run shortened by an override, steps beyond the end are simply not reached.
        problems += _combinations(scenario, whole=not overrides and not shortened)
    if problems:
        raise ScenarioError(source, problems)
    assert isinstance(scenario, Scenario)
    return scenario


def variant(scenario: Scenario, overrides: Iterable[str]) -> Scenario:
    """The scenario with some overrides, without its claims. Raises `ScenarioError`."""
    table = to_table(scenario) | {"claim": [], "cause_off": []}
    return from_table(table, source=scenario.title, overrides=overrides)


def to_table(scenario: Scenario) -> dict[str, Any]:
    """The scenario as a table of plain values, the inverse of `from_table`."""
    table: dict[str, Any] = _without_none(msgspec.to_builtins(scenario))
    return table


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_none(v) for v in value]
    return value


def _text(path: Path) -> str:
    source = str(path)
    try:
        if path.is_dir():
            raise ScenarioError(source, [Problem("", "is a folder; give a .toml file")])
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ScenarioError(source, [Problem("", "no such file")]) from None
    except (OSError, ValueError) as error:
        raise ScenarioError(source, [Problem("", f"cannot be read: {error}")]) from None
    if len(data) > MAX_BYTES:
        raise ScenarioError(source, [Problem("", f"larger than {MAX_BYTES:,} bytes, the limit for a scenario file")])
    if data.startswith(b"\xef\xbb\xbf"):
        raise ScenarioError(source, [Problem("", "starts with a byte-order mark (BOM); save it as UTF-8 without BOM")])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ScenarioError(source, [Problem("", f"not UTF-8 at byte {error.start}; save it as UTF-8")]) from None


def _override(table: dict[str, Any], text: str) -> None:
    place, sign, value = text.partition("=")
    source = f"--set {text}"
    if not sign or not place:
        raise ScenarioError(source, [Problem("", "expected place=value, as in data.batch_size=128")])
    if (found := excess(f"{place} = {value}")) is not None:
        raise ScenarioError(source, [Problem("", found.partition(": ")[2])])
    try:
        item = tomllib.loads(f"x = {value}")["x"]
    except (ValueError, RecursionError):
        item = value  # a bare word, as in model.activation=gelu
    *path, last = place.split(".")
    if path == ["data"] and last in PATHS:
        item = _absolute(item, Path())
    for part in path:
        inner = table.setdefault(part, {})
        if isinstance(inner, str):
            inner = table[part] = {"name": inner}
        if not isinstance(inner, dict):
            raise ScenarioError(source, [Problem(place, f"{part} is not a table")])
        table = inner
    table[last] = item


def _absolute(value: Any, folder: Path) -> Any:
    """The absolute path of a data file, since trainer and dashboard may run in other folders."""
    if not isinstance(value, str) or not value or len(value) > MAX_PATH:
        return value
    try:
        return os.path.abspath(folder / Path(value).expanduser())
    except (RuntimeError, ValueError, OSError):  # no home folder, or the current folder was deleted
        return value


def _combinations(s: Scenario, *, whole: bool) -> list[Problem]:
    """Problems with values that are valid by themselves but not in combination."""
    found: list[Problem] = []
    if isinstance(s.model, WithoutData):
        found += _own_loss_problems(s)
        found += _surface_problems(s, s.model) if isinstance(s.model, SurfaceModel) else _two_layer_problems(s.model)
    else:
        if s.data is None:
            found.append(Problem("data", 'missing; a network needs data, for example [data] name = "digits"'))
        if s.run.dtype == "float64" and s.run.device == "mps":
            found.append(Problem("run.dtype", 'MPS has no float64; use float32 or device = "cpu"'))
        found += _family_problems(s)
        if isinstance(s.data, DigitsData | OwnImagesData) and s.data.subset and s.data.batch_size > s.data.subset:
            text = f"found {s.data.batch_size}; allowed: at most data.subset = {s.data.subset}"
            found.append(Problem("data.batch_size", text))
    if s.optimizer.name == "nesterov" and s.optimizer.momentum == 0:
        found.append(Problem("optimizer.momentum", 'found 0; allowed for nesterov: > 0; or use name = "sgd"'))
    schedule_problems = schedules.problems(s.schedule, s.run.steps if whole else None)
    found += [Problem(f"schedule.{field}", text) for field, text in schedule_problems]
    for n, planned in enumerate(s.plan):
        if whole and planned.at >= s.run.steps:
            text = f"found {planned.at}; allowed: less than run.steps = {s.run.steps}"
            found.append(Problem(f"plan[{n}].at", text))
        if not planned.turn:
            if not planned.say:
                found.append(Problem(f"plan[{n}]", 'has neither turn nor say; for example turn = "residual=on"'))
            continue
        try:
            command = knobs.parse(planned.turn)
        except ValueError as error:
            found.append(Problem(f"plan[{n}].turn", str(error)))
            continue
        if knobs.KNOBS[command.knob].needs == "blocks" and isinstance(s.model, WithoutData):
            found.append(Problem(f"plan[{n}].turn", f"{command.knob} needs a network with blocks; {_what(s)} has none"))
    try:
        lanes_of(s.optimizer, s.race.optimizers)
    except ValueError as error:
        found.append(Problem("race.optimizers", str(error)))
    for n, remedy in enumerate(s.remedy):
        found += _remedy_problems(s, n, remedy)
    found += claim_problems(s, lambda overrides: _variant_problems(s, overrides), whole=whole)
    return found


def _variant_problems(s: Scenario, overrides: tuple[str, ...]) -> list[Problem]:
    try:
        variant(s, overrides)
    except ScenarioError as error:
        return [*error.problems]
    return []


def _remedy_problems(s: Scenario, n: int, text: str) -> list[Problem]:
    if text == UNDO:
        return []
    try:
        command = knobs.parse(text)
    except ValueError as error:
        return [Problem(f"remedy[{n}]", f'{error}; "{UNDO}" is allowed, too')]
    if knobs.KNOBS[command.knob].needs == "blocks" and isinstance(s.model, WithoutData):
        return [Problem(f"remedy[{n}]", f"{command.knob} needs a network with blocks; {_what(s)} has none")]
    return []


def _family_problems(s: Scenario) -> list[Problem]:
    """Problems that depend on the type of the network: its data and its own fields."""
    found: list[Problem] = []
    residual = None if isinstance(s.model, WithoutData) else s.model.residual
    if residual is not None and residual.way == "rezero" and residual.scale is not None:
        text = f"found {residual.scale:g}; with rezero the scale is learnt and starts at 0; remove it"
        found.append(Problem("model.residual.scale", text))
    data = "" if s.data is None else type(s.data).__struct_config__.tag
    if isinstance(s.model, ConvModel):
        if s.data is not None and not isinstance(s.data, DigitsData | OwnImagesData):
            found.append(Problem("data.name", f'found "{data}"; allowed for a conv net: digits, own-images'))
    elif isinstance(s.model, TransformerModel):
        if s.data is not None and not isinstance(s.data, TextData):
            found.append(Problem("data.name", f'found "{data}"; allowed for a transformer: text, own-text'))
        if s.model.width % s.model.heads:
            text = f"found {s.model.heads}; allowed: a divisor of model.width = {s.model.width}"
            found.append(Problem("model.heads", text))
        if s.model.norm.name != "none" and s.model.norm.where == "mid":
            found.append(Problem("model.norm.where", 'found "mid"; allowed for a transformer: "pre", "post"'))
    elif isinstance(s.data, TextData):
        found.append(Problem("data.name", f'found "{data}"; only a transformer can use it'))
    return found


def _what(s: Scenario) -> str:
    return "a test surface" if isinstance(s.model, SurfaceModel) else "a two-layer net"


def _own_loss_problems(s: Scenario) -> list[Problem]:
    """Problems with tables that a model without data does not accept."""
    found = []
    if s.data is not None:
        found.append(Problem("data", f"{_what(s)} does not accept data; remove the table"))
    if s.loss is not None:
        found.append(Problem("loss", f"{_what(s)} is itself the loss; remove the table"))
    return found


def _two_layer_problems(model: TwoLayerModel) -> list[Problem]:
    found = []
    if (weights := model.ends * model.width) > MAX_WEIGHTS:
        text = (
            f"found {model.width}, times {model.ends} inputs {weights:,}; allowed: a product of at most {MAX_WEIGHTS:,}"
        )
        found.append(Problem("model.width", text))
    if len(model.singular_values) > (most := min(model.ends, model.width)):
        what = "model.width" if model.ends >= model.width else "model.inputs"
        text = f"found {len(model.singular_values)} values; allowed: at most {what} = {most}"
        found.append(Problem("model.singular_values", text))
    return found


def _surface_problems(s: Scenario, model: SurfaceModel) -> list[Problem]:
    found = []
    if s.optimizer.name == "muon":
        found.append(Problem("optimizer.name", "muon needs weight matrices; a test surface has no matrices"))
    if model.formula is not None:
        return found + _formula_problems(model, model.formula)
    want = 1 if model.function in (None, "fragment") else 2
    if len(model.start) != want:
        text = f"found {len(model.start)} values; allowed: {want} for {surface_name(model)}"
        found.append(Problem("model.start", text))
    return found


def _formula_problems(model: SurfaceModel, text: str) -> list[Problem]:
    if model.function is not None:
        return [Problem("model.formula", f'found function = "{model.function}", too; allowed: one of the two')]
    try:
        program = formula.parse(text)
    except formula.FormulaError as error:
        return [Problem("model.formula", str(error))]
    if formula.uses_y(program) and len(model.start) == 1:
        return [Problem("model.start", "found 1 value; allowed: 2, because the formula depends on y")]
    return []
