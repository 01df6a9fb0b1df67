"""Whether the working tree trains and reports exactly as another commit does: `python benchmarks/fingerprint.py BASE`.

Each case (a preset, knobs turned on a net, a range test, an undo, a loop of a user's own) runs at BASE and in the
working tree, in processes of their own with one thread. Compared are the loss of every step as a double and what the
events say; a case is `equal`, or `DIFFERS` with its first difference. The exit code is 1 if any differs.

Left out of the comparison, since it depends on the clock, on the machine or on wording alone:

- the events of LEFT_OUT_EVENTS and the fields of LEFT_OUT_FIELDS;
- of states their reasons, repetitions and `testing`'s progress; the order of events of different kinds;
- curvature between a run's start and end, which is read as the clock allows;
- of a run that is steered over its socket all but the fields in WIRE_FIELDS (the protocol between our own processes may
  rename the others), and snapshots that were not taken before an intervention.

BASE's results are kept in the cache folder until this script, torch or Python changes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import pty
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from run_client import Client, ClientError

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
WITHIN_S = 900.0
# Everything that a case reports, by kind of event, in the order in which the run reported it.
Fingerprint = dict[str, list[Any]]

LEFT_OUT_EVENTS = {
    "diagnosis": "a matter of its own",
    "outcome": "belongs to the diagnosis",
    "device": "memory",
    "note": "prose",
}
LEFT_OUT_FIELDS = {
    "run_started": {"run", "versions", "title", "about", "scenario", "v"},  # the scenario is the case's own, and prose
    "state": {"reason", "v"},
    "step": {"time_s"},
    "reading": {"watch_cost"},
    "measured": {"how"},
    "curvature": {"how", "limit", "seconds"},
    "range_test": {"words", "seconds"},
    "intervention": {"note"},
    "rejected": {"reason"},
    "rewound": {"undone", "redone"},  # prose
    "snapshot": {"reason"},
    "not_finite": {"text"},
    "run_ended": {"reason", "log_tail", "log_path"},
}
WIRE_FIELDS = {
    "reading": ("segment", "step", "values", "ages", "global_grad_norm", "grad_norm_preclip"),
    "evaluated": ("segment", "step", "loss", "accuracy"),
    "intervention": (
        "id", "segment", "step", "knob", "target", "old", "new", "way", "scale", "where", "function_change",
        "loss_before", "loss_after",
    ),
    "rejected": ("segment", "step", "knob"),
    "rewound": ("from_segment", "from_step", "to_segment", "to_step", "segment", "step"),
    "run_ended": ("status", "step", "loss", "accuracy"),
}  # fmt: skip


# ---- cases

NETS = {
    "mlp": """
[data]
name = "digits"
batch_size = 48
[model]
name = "mlp"
depth = 4
width = 24
activation = "tanh"
[optimizer]
lr = 0.05
""",
    "conv": """
[data]
name = "digits"
batch_size = 32
[model]
name = "conv"
depth = 3
width = 8
[optimizer]
lr = 0.05
""",
    "transformer": """
[data]
name = "text"
batch_size = 4
[model]
name = "transformer"
depth = 2
width = 16
context = 16
[optimizer]
name = "adamw"
lr = 0.003
""",
    "spirals": """
[data]
name = "spirals"
[model]
name = "mlp"
depth = 3
width = 16
[loss]
name = "mse"
[optimizer]
name = "rmsprop"
lr = 0.003
""",
    "surface": """
[model]
name = "surface"
function = "rosenbrock"
start = [-1.0, 1.0]
[optimizer]
lr = 0.001
""",
}
OPTIMIZERS = {
    "sgd": ('optimizer.name="sgd"', "optimizer.lr=0.05"),
    "momentum": ('optimizer.name="momentum"', "optimizer.lr=0.02"),
    "nesterov": ('optimizer.name="nesterov"', "optimizer.lr=0.02", "optimizer.weight_decay=0.001"),
    "rmsprop": ('optimizer.name="rmsprop"', "optimizer.lr=0.001"),
    "adam": ('optimizer.name="adam"', "optimizer.lr=0.003"),
    "adamw": ('optimizer.name="adamw"', "optimizer.lr=0.003", "optimizer.weight_decay=0.01"),
    "muon": ('optimizer.name="muon"', "optimizer.lr=0.003"),
}
PRESET_STEPS = {"saddle": 500, "edge-of-stability": 120, "transformer": 60}
USUAL_PRESET_STEPS = 150


def spaced(*turns: str, start: int = 10, gap: int = 8) -> dict[int, str]:
    """One turn every `gap` steps."""
    return {start + gap * n: turn for n, turn in enumerate(turns)}


# Turns by step; a longer gap where a change takes its time (a ramp 20 steps, a blend or rotation 50, gentle 200).
RESIDUAL = {
    10: "residual=on,way=ramp", 40: "residual=off,way=ramp", 70: "residual=on,way=instant,scale=0.5",
    80: "residual=off,way=instant", 90: "residual=on,way=rotation", 150: "residual=off,way=rotation",
    210: "residual=on,way=auto", 270: "residual=off", 330: "residual@blocks.1=on,way=instant",
    340: "residual=on,way=gentle", 550: "residual=off,way=gentle", 570: "residual=on,way=ramp",
}  # fmt: skip
ACTIVATION = {
    10: "activation=gelu,way=blend", 70: "activation=silu,way=instant", 80: "activation=sigmoid",
    100: "activation=elu,way=instant", 110: "activation=softplus", 170: "activation=leaky_relu,way=instant",
    180: "activation@blocks.1=tanh", 240: "activation@blocks.1=identity,way=instant", 250: "activation=relu",
}  # fmt: skip
NORM = spaced(
    *(
        f"norm={kind},where={where},way={way}"
        for kind in ("layer", "rms")
        for where in ("pre", "mid", "post")
        for way in ("calibrated", "instant")
    ),
    "norm=none", "norm=layer", "norm@blocks.1=rms", "norm=none",
)  # fmt: skip
WEIGHTS = spaced(
    "init=orthogonal", "init=xavier", "init=lecun", "init=normal", "init@head=he", "freeze@head=on",
    "freeze@blocks.1.linear=on", "kick=0.01", "freeze=off", "kick=0.02,way=random", "kick=0.01,way=curvature",
    "dropout=0.2", "init@blocks.0.linear=lecun", "dropout=0",
)  # fmt: skip
NUMBERS = spaced(
    "lr=*2", "lr=0.02", "lr=/3", "clip=0.5", "batch_size=16", "weight_decay=0.01", "momentum=0.5", "betas=0.8/0.95",
    "dropout=0.1", "clip=*2", "batch_size=*2", "pace=5000", "pace=max", "weight_decay=0", "momentum=0", "clip=off",
)  # fmt: skip
TOUR = spaced(
    "optimizer=momentum", "optimizer=adam", "optimizer=nesterov", "optimizer=rmsprop", "optimizer=adamw",
    "optimizer=sgd", "optimizer=muon", "optimizer=adam", "optimizer=sgd", "optimizer=adamw",
)  # fmt: skip
SCHEDULES = spaced(
    "schedule=cosine", "schedule=warmup_cosine,warmup=8,floor=0.1", "lr=*1.5", "schedule=one_cycle",
    "schedule=step,every=5,gamma=0.5", "schedule=wsd,warmup=3,decay=0.5,floor=0.1", "optimizer=adam",
    "schedule=plateau,patience=2", "lr=/2", "schedule=constant", "schedule=warmup_cosine", "optimizer=momentum",
    gap=12,
)  # fmt: skip
MIXED = {
    10: "residual=on", 16: "clip=1", 24: "activation=silu", 40: "dropout=0.1", 48: "norm=layer",
    56: "optimizer=adam", 64: "schedule=cosine", 72: "lr=*1.25", 80: "init@head=xavier", 88: "freeze@head=on",
    96: "kick=0.01", 104: "freeze=off", 112: "residual=off", 140: "batch_size=/2", 148: "weight_decay=0.01",
    156: "norm=none", 164: "optimizer=momentum", 172: "activation=relu,way=instant",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is run. `take` makes the fingerprint, given the tree and an empty folder."""

    name: str
    take: Callable[[Case, Tree, Path], Fingerprint]
    scenario: str = ""  # a preset, or a net of NETS
    steps: int = 0
    sets: tuple[str, ...] = ()
    turns: dict[int, str] = field(default_factory=dict)
    options: tuple[str, ...] = ("--watch-every", "7")
    kinds: tuple[str, ...] = ()  # of events that are compared; all of them without any


def cases(presets: list[str]) -> Iterator[Case]:
    """All of them."""
    watched = ("--watch-every", "7")
    for name in presets:
        options = (*watched, "--curvature") if name in ("edge-of-stability", "saddle", "healthy") else watched
        steps = PRESET_STEPS.get(name, USUAL_PRESET_STEPS)
        yield Case(f"preset {name}", headless, name, steps=steps, options=options)

    for optimizer in ("sgd", "adam"):
        sets = OPTIMIZERS[optimizer]
        yield Case(f"residual, mlp, {optimizer}", headless, "mlp", 600, sets, RESIDUAL)
        yield Case(f"activation, mlp, {optimizer}", headless, "mlp", 310, sets, ACTIVATION)
        yield Case(f"norm, mlp, {optimizer}", headless, "mlp", 150, sets, NORM)
        yield Case(f"schedule, mlp, {optimizer}", headless, "mlp", 160, sets, SCHEDULES)
    for optimizer in ("momentum", "adamw"):
        yield Case(f"init, freeze, kick, mlp, {optimizer}", headless, "mlp", 130, OPTIMIZERS[optimizer], WEIGHTS)
    for optimizer in OPTIMIZERS:
        yield Case(f"numbers, mlp, {optimizer}", headless, "mlp", 150, OPTIMIZERS[optimizer], NUMBERS)
    for optimizer in ("sgd", "adam", "muon"):
        yield Case(f"optimizer, mlp, from {optimizer}", headless, "mlp", 100, OPTIMIZERS[optimizer], TOUR)
    yield Case("mixed, conv, sgd", headless, "conv", 180, OPTIMIZERS["sgd"], MIXED)
    yield Case("residual, conv, momentum", headless, "conv", 220, OPTIMIZERS["momentum"], until(220, RESIDUAL))
    yield Case("norm, conv, adam", headless, "conv", 150, OPTIMIZERS["adam"], NORM)
    yield Case("mixed, transformer, adamw", headless, "transformer", 180, turns=MIXED)
    yield Case("residual, transformer, adamw", headless, "transformer", 220, turns=until(220, RESIDUAL))
    yield Case("norm, transformer, muon", headless, "transformer", 150, OPTIMIZERS["muon"], NORM)
    yield Case("schedule, transformer, adamw", headless, "transformer", 160, turns=SCHEDULES)
    yield Case("numbers, spirals, mse", headless, "spirals", 150, turns=NUMBERS)
    yield Case("optimizer, surface", headless, "surface", 100, turns=TOUR)
    yield Case("kick, surface", headless, "surface", 60, turns=spaced("kick=0.01", "kick=0.1,way=curvature", "lr=*2"))
    float64 = ('run.dtype="float64"', 'run.device="cpu"')
    yield Case("float64, mlp", headless, "mlp", 180, (*OPTIMIZERS["adam"], *float64), MIXED)
    scheduled = ('schedule.name="one_cycle"', "optimizer.clip=1.0", "model.dropout=0.1", 'model.norm="layer"')
    yield Case("a schedule from the start", headless, "mlp", 180, (*OPTIMIZERS["adamw"], *scheduled), MIXED)
    plateau = ('schedule.name="plateau"', "schedule.patience=2")
    yield Case("plateau from the start", headless, "mlp", 180, (*OPTIMIZERS["momentum"], *plateau), MIXED)
    # Readings come as the clock allows: only the steps compare.
    yield Case("usual budget, mlp", headless, "mlp", 600, (), RESIDUAL, options=(), kinds=("step",))

    tests = (*watched, "--range-test", "30", "--range-test", "90")
    yield Case("range test, mlp, adam", headless, "mlp", 180, (*OPTIMIZERS["adam"], "model.dropout=0.1"), MIXED, tests)
    yield Case("range test, conv, momentum", headless, "conv", 120, OPTIMIZERS["momentum"], until(110, MIXED), tests)
    yield Case("range test, transformer", headless, "transformer", 120, (), until(110, MIXED), tests)

    yield Case("undo and redo, mlp, adam", steered, "mlp", 20, (*OPTIMIZERS["adam"], "model.dropout=0.1"))
    yield Case("undo and redo, conv, momentum", steered, "conv", 20, OPTIMIZERS["momentum"])
    yield Case("undo and redo, transformer", steered, "transformer", 20, ('schedule.name="warmup_cosine"',))
    for name in ("plain-sgd", "adam-scheduler", "conv-accumulation", "transformer-clipping"):
        yield Case(f"user loop {name}", user_loop, name)
        yield Case(f"user loop {name}, steered", steered_user_loop, name)


def until(end: int, turns: dict[int, str]) -> dict[int, str]:
    """Those before step `end`."""
    return {at: turn for at, turn in turns.items() if at < end}


# ---- running a case


@dataclass(frozen=True)
class Tree:
    """A checkout of the package."""

    path: Path

    def environment(self, home: Path) -> dict[str, str]:
        """Of a process that runs this tree's package, with this home."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TUI_DESCENT_", "PYTHON"))}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        return kept | threads | {
            "PYTHONPATH": str(self.path), "PYTHONDONTWRITEBYTECODE": "1", "TUI_DESCENT_HOME": str(home),
            "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40",
        }  # fmt: skip

    def run(self, folder: Path, *command: str, stdin: str = "") -> str:
        """Run a command to its end in this folder, which is its home too; what it printed."""
        done = subprocess.run(
            command, cwd=folder, env=self.environment(folder), input=stdin, capture_output=True, text=True,
            timeout=WITHIN_S, check=False,
        )  # fmt: skip
        if done.returncode not in (0, 1, 3):
            raise ClientError(f"exit code {done.returncode}: {done.stderr[-600:]}")
        if done.returncode == 1:
            raise ClientError(f"the run failed: {done.stderr[-600:]}")
        return done.stdout

    def check(self, folder: Path) -> None:
        """That this tree's package is what runs."""
        found = self.run(folder, sys.executable, "-c", "import tui_descent; print(tui_descent.__file__)").strip()
        assert Path(found).is_relative_to(self.path), f"{found} is not in {self.path}"


PROGRAM = (sys.executable, "-m", "tui_descent")


def arguments(case: Case, folder: Path) -> list[str]:
    """Of `tui-descent run`."""
    name = case.scenario
    if name in NETS:
        file = folder / f"{name}.toml"
        file.write_text(f'title = "{name}"\n{NETS[name]}')
        name = str(file)
    fixed = ("--steps", str(case.steps), "--seed", "3", "--threads", "1", "--device", "cpu", "--pace", "max")
    args = ["run", name, *fixed, *case.options]
    args += [word for place in case.sets for word in ("--set", place)]
    return args + [word for at, turn in case.turns.items() for word in ("--at", f"{at}:{turn}")]


def headless(case: Case, tree: Tree, folder: Path) -> Fingerprint:
    """A scenario's run from the command line, to its end."""
    args = arguments(case, folder)
    pace = args.index("--pace")
    del args[pace : pace + 2]  # headless runs are at full speed; with the option the knob would start there
    return of_lines(tree.run(folder, *PROGRAM, *args, "--headless", "--json"), case.kinds)


def user_loop(case: Case, tree: Tree, folder: Path) -> Fingerprint:
    """A user's loop under `exec`, to its end."""
    losses = folder / "losses"
    script = (sys.executable, str(HERE / "user_loops.py"), case.scenario, str(losses))
    options = ("--headless", "--json", "--watch-every", "7")
    printed = tree.run(folder, *PROGRAM, "exec", *options, "--", *script)
    return {"loss of a pass": losses.read_text().split()} | of_lines(printed, ())


def steered_user_loop(case: Case, tree: Tree, folder: Path) -> Fingerprint:
    """A user's loop by itself, steered over its socket."""
    losses = folder / "losses"
    command = (sys.executable, str(HERE / "user_loops.py"), case.scenario, str(losses), "--wait")
    with (folder / "stderr").open("w") as errors, subprocess.Popen(
        command, cwd=folder, env=tree.environment(folder), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=errors,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdout.readline()  # before its first step
            client = Client.of_run(folder)
            print(file=process.stdin, flush=True)
            process.stdout.readline()  # in the midst of a step
            client.until(lambda event: event["event"] == "run_started")
            number = client.ask("pause")
            client.passed_on()
            print(file=process.stdin, flush=True)
            paused = client.until(lambda event: event.get("request") == number)
            client.until_state("paused")
            client.run(12 - paused["step"])
            for turn in ({"knob": "activation", "value": "tanh"}, {"knob": "residual", "value": "on"}):
                client.do("turn", **turn)
                client.run(15)
            client.do("turn", knob="lr", value="*1.25")
            client.run(10)
            _undo_and_redo(client)
            for knob, value in (("dropout", "0.2"), ("clip", "0.5"), ("weight_decay", "0.01"), ("momentum", "0.5")):
                client.do("turn", knob=knob, value=value)
                client.run(5)
            client.do("undo")
            client.run(5)
            client.do("resume")
            client.until(lambda event: event["event"] == "run_ended")
            client.close()
            process.wait(WITHIN_S)
        except ClientError as error:
            raise ClientError(f"{error}; {(folder / 'stderr').read_text()[-600:]}") from None
        finally:
            process.kill()
    return {"loss of a pass": losses.read_text().split()} | of_wire(client.heard, from_step=0)


def steered(case: Case, tree: Tree, folder: Path) -> Fingerprint:
    """A scenario's run with its dashboard in a pseudo-terminal, steered over its socket once it waits at its end."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        (*PROGRAM, *arguments(case, folder)), cwd=folder, env=tree.environment(folder), stdin=theirs, stdout=theirs,
        stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    reader = threading.Thread(target=_drain, args=(ours,))
    reader.start()
    try:
        client = Client.of_run(folder)
        client.until(_waits)
        client.do("turn", knob="activation", value="gelu")
        client.run(30)
        client.do("turn", knob="residual", value="on")
        client.run(15)
        client.do("turn", knob="lr", value="*1.25")
        client.run(10)
        _undo_and_redo(client)
        for knob, value in (("norm", "layer"), ("optimizer", "sgd"), ("schedule", "cosine"), ("batch_size", "16")):
            client.do("turn", knob=knob, value=value)
            client.run(5)
        for _ in range(5):
            client.do("undo")
            client.run(5)
        client.do("turn", knob="kick", value="0.01")
        client.run(5)
        client.do("stop")
        client.until(lambda event: event["event"] == "run_ended")
        client.close()
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        os.close(ours)
    return of_wire(client.heard, from_step=case.steps)


def _undo_and_redo(client: Client) -> None:
    """After three turns: back twice, forth twice, and back once more."""
    for command in ("undo", "undo", "redo", "redo", "undo"):
        client.do(command)
        if command == "undo":
            client.run(5)


def _waits(event: dict[str, Any]) -> bool:
    """Whether the run waits at its end: told now, or by the history that a new client gets."""
    if event["event"] == "history":
        states = [fact for fact in event["facts"] if fact["event"] == "state"]
        return bool(states) and states[-1]["state"] == "waiting"
    return bool(event["event"] == "state" and event["state"] == "waiting")


def _drain(fd: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(fd, 1 << 16):
            pass


# ---- what is compared


def of_lines(text: str, kinds: tuple[str, ...]) -> Fingerprint:
    """The lines of `--json`, by event."""
    found: Fingerprint = {}
    last = None
    for line in text.splitlines():
        table = json.loads(line)
        kind = table.pop("event")
        left_out = LEFT_OUT_FIELDS.get(kind, set())
        table = {key: value for key, value in table.items() if key not in left_out}
        if kind in LEFT_OUT_EVENTS or (kinds and kind not in kinds) or table == {"state": "testing"}:
            continue
        if kind == "state":
            if table == last:
                continue
            last = table
        for knob in table.get("knobs", ()):
            if "unavailable" in knob:
                knob["unavailable"] = bool(knob["unavailable"])  # otherwise a reason in prose
        found.setdefault(kind, []).append(table)
    if "curvature" in found:
        last_step = found["run_ended"][-1]["step"]
        found["curvature"] = [read for read in found["curvature"] if read["step"] in (0, last_step)]
    return found


def of_wire(heard: list[dict[str, Any]], *, from_step: int) -> Fingerprint:
    """The events of a steered run from a step on, by kind."""
    found: Fingerprint = {"step": []}
    turned = {(event["segment"], event["step"]) for event in heard if event["event"] == "intervention"}
    for event in heard:
        kind = event["event"]
        if kind == "steps":
            for n, loss in enumerate(event["losses"]):
                step = event["first"] + n
                place = {"segment": event["segment"], "step": step}
                rest = {"lr": event["lrs"][n], "skipped": step in event.get("skipped", ())}
                found["step"].append(place | {"loss": loss} | rest)
        elif kind == "snapshot" and (event["segment"], event["step"]) in turned:
            found.setdefault(kind, []).append({"segment": event["segment"], "step": event["step"]})
        elif kind == "run_ended" or (kind in WIRE_FIELDS and event["step"] >= from_step):
            found.setdefault(kind, []).append({name: event.get(name) for name in WIRE_FIELDS[kind]})
    found["step"] = [step for step in found["step"] if step["step"] >= from_step]
    return json.loads(json.dumps(found))  # the same types as out of the cache


def difference(base: Fingerprint, tree: Fingerprint) -> str | None:
    """The first one in words: losses first, then the other kinds of events."""
    first = ("loss of a pass", "step")
    for kind in (*first, *sorted((base.keys() | tree.keys()) - set(first))):
        ours, theirs = base.get(kind, []), tree.get(kind, [])
        for n, (a, b) in enumerate(zip(ours, theirs, strict=False)):
            if text := _difference(a, b):
                step = a.get("step", n) if isinstance(a, dict) else n
                return f"{kind} {n}, step {step}: {text}"
        if len(ours) != len(theirs):
            return f"{kind}: {len(ours)} of them at the base, {len(theirs)} in the working tree"
    return None


def _difference(a: Any, b: Any, path: str = "") -> str | None:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            if (key in a) != (key in b):
                return f"{path}{key} only {'at the base' if key in a else 'in the working tree'}"
            if text := _difference(a[key], b[key], f"{path}{key}."):
                return text
        return None
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return f"{path[:-1]} has {len(a)} entries at the base, {len(b)} in the working tree"
        return next((text for n in range(len(a)) if (text := _difference(a[n], b[n], f"{path}{n}."))), None)
    # The text of a double is exact, and tells 0.0 from -0.0 and NaN as itself.
    return None if repr(a) == repr(b) else f"{path[:-1] or 'value'} is {a!r} at the base, {b!r} in the working tree"


# ---- the program


@contextlib.contextmanager
def exported(commit: str, *, keep: bool) -> Iterator[Tree]:
    """The tree of a commit in a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="tdbase"))
    try:
        packed = subprocess.run(["git", "archive", commit], cwd=REPOSITORY, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        yield Tree(folder)
    finally:
        if keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)


def taken(case: Case, tree: Tree, *, keep: bool) -> Fingerprint:
    """The case's fingerprint; what went wrong is one too, which equals no other."""
    folder = Path(tempfile.mkdtemp(prefix="tdfp"))  # short: a socket's path is
    try:
        return case.take(case, tree, folder)
    except (ClientError, KeyError, OSError, subprocess.TimeoutExpired) as error:
        return {"error": [f"{type(error).__name__}: {error} [{os.urandom(4).hex()}]"]}
    finally:
        if keep:
            print(f"kept: {folder} ({case.name})")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def cached(path: Path, case: Case, tree: Tree, *, keep: bool) -> Fingerprint:
    """The fingerprint from the cache, or taken and put there."""
    if path.is_file():
        found: Fingerprint = json.loads(path.read_text())
        return found
    made = taken(case, tree, keep=keep)
    if "error" not in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made))
    return made


def setting() -> str:
    """What a kept result depends on besides the commit and the case."""
    sources = b"".join((HERE / name).read_bytes() for name in ("fingerprint.py", "run_client.py", "user_loops.py"))
    machine = f"{sys.version} {version('torch')}".encode()
    return hashlib.sha256(sources + machine).hexdigest()[:16]


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description="Compare the working tree with a commit: losses and events.")
    parser.add_argument("base", metavar="BASE", help="a git commit")
    parser.add_argument(
        "--only", metavar="TEXT", action="append", default=[], help="only cases with this in their name"
    )
    parser.add_argument("--jobs", metavar="N", type=int, default=2, help="cases at a time (2)")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folders")
    parser.add_argument("--cache", metavar="DIR", type=Path, default=Path(tempfile.gettempdir()) / "tui-descent-base")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    args = parser.parse_args()
    listed = subprocess.run(
        ["git", "ls-tree", "--name-only", args.base, "presets/"], cwd=REPOSITORY, capture_output=True, text=True,
        check=False,
    ).stdout.split()  # fmt: skip
    files = [*listed, *(REPOSITORY / "presets").glob("*.toml")]
    names = sorted({Path(file).stem for file in files})
    chosen = [case for case in cases(names) if not args.only or any(text in case.name for text in args.only)]
    if args.list:
        print(*(case.name for case in chosen), sep="\n")
        return 0
    found = subprocess.run(
        ["git", "rev-parse", "--verify", f"{args.base}^{{commit}}"], cwd=REPOSITORY, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if found.returncode:
        parser.error(f"{args.base}: no such commit")
    commit, begun_s = found.stdout.strip(), time.monotonic()
    cache = args.cache / commit / setting()
    differ = 0
    with exported(commit, keep=args.keep) as base, ThreadPoolExecutor(args.jobs) as pool:
        here = Tree(REPOSITORY)
        for tree in (base, here):
            with tempfile.TemporaryDirectory() as folder:
                tree.check(Path(folder))
        pairs = []
        for case in chosen:
            file = cache / f"{case.name.replace(' ', '-')}.json"
            before = pool.submit(cached, file, case, base, keep=args.keep)
            pairs.append((case, before, pool.submit(taken, case, here, keep=args.keep)))
        for case, before, after in pairs:
            if "error" in before.result():
                text: str | None = f"at the base: {before.result()['error'][0]}"
            else:
                text = difference(before.result(), after.result())
            differ += text is not None
            print(f"{case.name:<44}{'equal' if text is None else f'DIFFERS: {text}'}", flush=True)
    what = f"{differ} of {len(chosen)} cases differ" if differ else f"all {len(chosen)} cases are equal"
    print(f"{what}; {time.monotonic() - begun_s:.0f} s against {commit[:12]}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
