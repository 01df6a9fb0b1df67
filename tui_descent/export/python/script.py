"""A run as one plain PyTorch script. On a CPU its losses are bit for bit those of the run."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

import msgspec

from tui_descent.export.python import data, nets, optimizers, schedules, surfaces
from tui_descent.export.python.interventions import Plan
from tui_descent.export.python.text import block, joined, plain
from tui_descent.protocol.events import KnobTurned
from tui_descent.scenario.spec import (
    Scenario,
    SurfaceModel,
    TextData,
    TwoLayerModel,
    WithoutData,
)

LARGE = 1 << 16  # a gradient with more numbers is summed in parts, as in `training/optim/clipping.py`
_MODULES = ("base64", "csv", "gzip", "lzma", "math", "unicodedata")


class About(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about the run: its id, the steps that it made, its threads and device, and the versions it used."""

    run: str
    steps: int
    threads: int
    device: str = "cpu"
    versions: dict[str, str] = {}


def python_script(scenario: Scenario, interventions: Sequence[KnobTurned], about: About) -> str:
    """The source of the script. `interventions` are those of the run's final lineage, in their order.

    Raises `ExportError` if an intervention has changed the net, or if the user's data file cannot be read.
    """
    has_data = scenario.data is not None
    surface = isinstance(scenario.model, SurfaceModel)
    plan = Plan(scenario, [t for t in interventions if t.step < about.steps], "[w]" if surface else "net.parameters()")
    loaded = data.data(scenario) if has_data else None
    match scenario.model:
        case SurfaceModel() as model:
            net = surfaces.surface(model)
        case TwoLayerModel() as model:
            net = surfaces.two_layer(model)
        case model:
            assert loaded is not None
            net = nets.net(model, features=loaded.features, classes=loaded.classes, image=loaded.image)
    pieces = [
        net,
        *([] if loaded is None else [loaded.load]),
        *([] if scenario.data is None else [data.batches(scenario.data, changes=plan.resizes)]),
        _loss_function(scenario, loaded),
        *_schedules(plan),
        _clip(scenario, loaded) if plan.clips else "",
        _main(scenario, plan, loaded, about),
        "" if loaded is None else loaded.embedded,
        'if __name__ == "__main__":\n    main()',
    ]
    body = joined(*pieces, blank_lines=2)
    return f"{_head(scenario, about, body)}\n\n\n{body}\n"


def _head(scenario: Scenario, about: About, body: str) -> str:
    """The docstring, the imports that the body needs, and the settings."""
    versions = [plain(f"{name} {about.versions[name]}") for name in ("torch", "python") if name in about.versions]
    with_ = f" with {' and '.join(versions)}" if versions else ""
    threads = f"{about.threads} thread{'s' * (about.threads != 1)}"
    note = f"It needs torch alone. On a CPU{with_} and {threads}, its losses are bit for bit those of the run."
    if about.device != "cpu":
        note = f"It needs torch alone. The run was on {plain(about.device)}; on a CPU the losses differ a little."
    intro = "\n".join(
        [
            f'"""{plain(scenario.title)}',
            "",
            *textwrap.wrap(f"A plain PyTorch script of the tui-descent run {plain(about.run)}. {note}", 98),
            '"""',
        ]
    )
    code = "\n".join(line for line in body.splitlines() if len(line) < 1000)
    modules = [name for name in _MODULES if re.search(rf"\b{name}\.", code)]
    imports = [f"import {name}" for name in modules]
    if "pydoc_data." in code:
        imports.append("import pydoc_data.topics")
    torch = ["import torch"]
    torch += ["from torch import nn"] if re.search(r"(?<!torch\.)\bnn\.", code) else []
    torch += ["from torch.nn import functional as F"] if re.search(r"\bF\.", code) else []
    settings = [f"STEPS = {about.steps}"]
    if re.search(r"\bSEED\b", code) or _has_dropout(scenario):
        settings.insert(0, f"SEED = {scenario.run.seed}")
    if re.search(r"\bLR\b", code):
        settings.append(f"LR = {scenario.optimizer.lr!r}")
    match scenario.model:
        case SurfaceModel():
            pass
        case TwoLayerModel() as model:
            settings.append(surfaces.sizes(model))
        case model:
            settings.append(nets.sizes(model))
    if re.search(r"\bDTYPE\b", code):
        settings.append(f"DTYPE = torch.{scenario.run.dtype}")
    if re.search(r"\bBATCH_SIZE\b", code):
        settings.append(f"BATCH_SIZE = {_batch_size(scenario)}")
    return joined(
        intro,
        "\n".join(sorted(imports)),
        "\n".join(torch),
        "\n".join([*settings, f"torch.set_num_threads({about.threads})  # the last bits depend on it"]),
        blank_lines=1,
    )


def _batch_size(scenario: Scenario) -> int:
    assert scenario.data is not None
    return scenario.data.batch_size


def _has_dropout(scenario: Scenario) -> bool:
    return bool(getattr(scenario.model, "dropout", 0))


def _loss_function(scenario: Scenario, loaded: data.DataCode | None) -> str:
    if loaded is None:
        return ""
    if scenario.loss is not None and scenario.loss.name == "mse":
        return block(f'''
def loss_function(outputs, y):
    """The squared error of one-hot targets."""
    return F.mse_loss(outputs, F.one_hot(y, {loaded.classes}).to(outputs.dtype))
''')
    if isinstance(scenario.data, TextData):
        return block('''
def loss_function(logits, y):
    """Cross-entropy, averaged over all positions of all sequences."""
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())
''')
    return ""


def _schedules(plan: Plan) -> list[str]:
    found = [
        schedules.function(phase.spec, phase.begin, phase.end)
        for phase in plan.acting
        if phase.spec.name not in ("constant", "plateau")
    ]
    return [*found, schedules.PLATEAU] if plan.plateaus else found


def _clip(scenario: Scenario, loaded: data.DataCode | None) -> str:
    largest = 0
    if loaded is not None and not isinstance(scenario.model, WithoutData):
        largest = nets.largest_parameter(scenario.model, features=loaded.features, classes=loaded.classes)
    if largest <= LARGE:
        return block('''
@torch.no_grad()
def clip(parameters, limit):
    """Scale the gradients so that their total norm is at most `limit`."""
    grads = [p.grad for p in parameters]
    norm = torch.nn.utils.get_total_norm(grads)
    if not 1e-13 < norm < 1e13:  # float32 squares would underflow or overflow
        norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in grads]
        norm = torch.linalg.vector_norm(torch.stack(norms))
    if norm.isfinite() and norm > limit:
        for g in grads:
            g.mul_((limit / norm).to(g.dtype))
''')
    return block('''
def norm_of(gradient):
    """The norm of a gradient. A long float32 sum is inexact, so it is made in parts of 1,024 numbers."""
    row = gradient.reshape(1, -1)
    if row.numel() <= 4096 or row.dtype == torch.float64:
        return float(torch.linalg.vector_norm(row, dim=1))
    whole = row.numel() - row.numel() % 1024
    parts = torch.linalg.vector_norm(row[:, :whole].reshape(1, -1, 1024), dim=2)
    rest = torch.linalg.vector_norm(row[:, whole:], dim=1, keepdim=True)
    parts = torch.cat([parts, rest], dim=1) if rest.numel() and whole < row.numel() else parts
    return float(torch.linalg.vector_norm(parts, dim=1, dtype=torch.float64))


@torch.no_grad()
def clip(parameters, limit):
    """Scale the gradients so that their total norm is at most `limit`."""
    grads = [p.grad for p in parameters]
    norm = torch.tensor(math.hypot(*(norm_of(g) for g in grads)), dtype=torch.float64)
    if norm.isfinite() and norm > limit:
        for g in grads:
            g.mul_((limit / norm).to(g.dtype))
''')


def _main(scenario: Scenario, plan: Plan, loaded: data.DataCode | None, about: About) -> str:
    surface = isinstance(scenario.model, SurfaceModel)
    double = scenario.run.dtype == "float64"
    lines = ["def main():", '    """Train, and print the loss of each step. Returns all losses."""']
    body: list[str] = []
    if loaded is not None:
        body.append("x, y, held_out_x, held_out_y = load()")
        if double and not isinstance(scenario.data, TextData):
            body.append("x, held_out_x = x.double(), held_out_x.double()")
    if isinstance(scenario.model, SurfaceModel):
        body.append(f"w = torch.nn.Parameter(torch.tensor({list(scenario.model.start)!r}, dtype=DTYPE))")
    elif isinstance(scenario.model, TwoLayerModel):
        body.append("net = Net().to(DTYPE)")
    else:
        body.append("net = Net().double()" if double else "net = Net()")
    if plan.several:
        body += _muon_parts(scenario)
    body += _created(plan, scenario)
    if plan.clips:
        body.append(f"limit = {scenario.optimizer.clip!r}  # of the gradient's norm")
    if plan.scales:
        body.append("scale = 1.0  # of the learning rate")
    if plan.base_changes:
        body.append(f"base_lr = {scenario.optimizer.lr!r}")
    for number, phase in plan.plateaus:
        if number == 0:
            base = "base_lr" if plan.base_changes else "LR"
            body.append(f"plateau = {schedules.plateau(phase.spec, phase.begin, phase.end, base)}")
    body += _batches(scenario, plan)
    if _has_dropout(scenario):
        body.append("torch.manual_seed(SEED)  # for dropout")
    body += ["losses = []", "for step in range(STEPS):", *_indent(_loop(scenario, plan))]
    body += _evaluation(scenario, surface=surface)
    body.append("return losses")
    return "\n".join([*lines, *_indent(body)])


def _indent(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" if line else line for line in lines]


def _muon_parts(scenario: Scenario) -> list[str]:
    assert not isinstance(scenario.model, SurfaceModel | TwoLayerModel)
    return [
        f"hidden = {nets.hidden_matrices(scenario.model)}  # for Muon",
        "others = [p for p in net.parameters() if all(p is not q for q in hidden)]",
    ]


def _created(plan: Plan, scenario: Scenario) -> list[str]:
    made = optimizers.constructor(plan.first, "LR", plan.parameters)
    if not plan.several:
        return [f"optimizer = {made}"]
    return f"optimizers = {made if plan.first.name == 'muon' else f'[{made}]'}".splitlines()


def _batches(scenario: Scenario, plan: Plan) -> list[str]:
    if scenario.data is None or (not isinstance(scenario.data, TextData) and scenario.data.full):
        return []
    if isinstance(scenario.data, TextData):
        return ["batches = Batches(x, BATCH_SIZE)"]
    size = "min(BATCH_SIZE, len(x))"
    if plan.resizes:
        return [f"batches = Batches(x, y, {size})"]
    return [f"batches = shuffled_batches(x, y, {size})"]


def _loop(scenario: Scenario, plan: Plan) -> list[str]:
    lines: list[str] = []
    for step, made in sorted(plan.lines.items()):
        lines += [f"if step == {step}:", *_indent(made if any(_acts(line) for line in made) else [*made, "pass"])]
    lines += _rates(plan)
    if scenario.data is None:
        lines.append("loss = f(w)" if isinstance(scenario.model, SurfaceModel) else "loss = net()")
    else:
        if isinstance(scenario.data, TextData) or not scenario.data.full:
            drawn = "batches.next()" if plan.resizes or isinstance(scenario.data, TextData) else "next(batches)"
            lines.append(f"batch_x, batch_y = {drawn}")
            inputs, targets = "batch_x", "batch_y"
        else:
            inputs, targets = "x", "y"
        lines.append(f"loss = {_loss_name(scenario)}(net({inputs}), {targets})")
    lines += ["if not loss.isfinite():", '    print("the loss is not finite")', "    break"]
    if plan.several:
        lines += ["for one in optimizers:", "    one.zero_grad()"]
    else:
        lines.append("optimizer.zero_grad()")
    lines.append("loss.backward()")
    if plan.clips:
        always = scenario.optimizer.clip is not None and not any(t.knob == "clip" for t in plan.interventions)
        call = f"clip({plan.parameters}, limit)"
        lines += [call] if always else ["if limit is not None:", f"    {call}"]
    lines += ["for one in optimizers:", "    one.step()"] if plan.several else ["optimizer.step()"]
    lines += ["losses.append(loss.item())", "print(step, losses[-1])"]
    for number, phase in plan.plateaus:
        end = plan.acting[number + 1].begin if number + 1 < len(plan.acting) else None
        condition = f"step >= {phase.begin}" if end is None else f"{phase.begin} <= step < {end}"
        counted = "plateau.step(losses[-1])"
        lines += [counted] if phase.begin == 0 and end is None else [f"if {condition}:", f"    {counted}"]
    return lines


def _acts(line: str) -> bool:
    return not line.lstrip().startswith("#")


def _loss_name(scenario: Scenario) -> str:
    own = isinstance(scenario.data, TextData) or (scenario.loss is not None and scenario.loss.name == "mse")
    return "loss_function" if own else "F.cross_entropy"


def _rates(plan: Plan) -> list[str]:
    """Lines that set the rate of this step; none if it changes only by interventions."""
    if not plan.scheduled:
        return []
    lines: list[str] = []
    current = plan.acting
    if len(current) == 1:
        lines.append(f"lr = {plan.rate(current[0])}")
    else:
        for number, phase in enumerate(current):
            last = number == len(current) - 1
            word = "else" if last else f"{'el' * bool(number)}if step < {current[number + 1].begin}"
            lines += [f"{word}:", f"    lr = {plan.rate(phase)}"]
    value = "lr * scale" if plan.scales else "lr"
    if plan.several:
        return [*lines, "for one in optimizers:", f'    one.param_groups[0]["lr"] = {value}']
    return [*lines, f'optimizer.param_groups[0]["lr"] = {value}']


def _evaluation(scenario: Scenario, *, surface: bool) -> list[str]:
    """Lines for what the run's summary shows: the loss after the last update, and the accuracy."""
    if surface:
        return ['print(f"w = {w.tolist()}, loss {f(w).item()}")']
    if scenario.data is None:
        return ['print(f"loss {net().item()}")']
    return [
        "net.eval()",
        "with torch.no_grad():",
        "    outputs = net(held_out_x)",
        "    accuracy = (outputs.argmax(dim=-1) == held_out_y).double().mean()",
        f"    held_out_loss = {_loss_name(scenario)}(outputs, held_out_y)",
        'print(f"held-out loss {held_out_loss:.6g}, accuracy {accuracy:.4f}")',
    ]
