"""A script gives the losses of its run bit for bit, in a process that cannot import this package."""

from __future__ import annotations

import gzip
import itertools
import random
import subprocess
import sys
from pathlib import Path

import factories
import pytest
from exported_runs import MadeRun, make_run, printed_losses
from msgspec import structs

from tui_descent.export.errors import ExportError
from tui_descent.export.python.script import About, python_script
from tui_descent.export.python.text import quoted
from tui_descent.scenario import presets
from tui_descent.scenario.optimizers import NAMES
from tui_descent.scenario.toml import from_text

RATES = dict(zip(NAMES, (0.1, 0.05, 0.05, 0.002, 0.002, 0.002, 0.005), strict=True))
DIGITS = '[data]\nname = "digits"\nbatch_size = 48\nsubset = 200\n'
MOONS = '[data]\nname = "moons"\npoints = 50\nbatch_size = 16\n'
MLP = '[model]\nname = "mlp"\ndepth = 2\nwidth = 8\nactivation = "tanh"\n'
CONV = '[model]\nname = "conv"\ndepth = 2\nwidth = 4\n'
TRANSFORMER = (
    '[data]\nname = "own-text"\nbatch_size = 3\n[model]\nname = "transformer"\ndepth = 1\nwidth = 12\nheads = 3\n'
    "context = 10\n"
)
SURFACE = '[model]\nname = "surface"\nstart = [0.8, -0.6]\n'
TWO_LAYER = '[model]\nname = "two_layer"\nwidth = 5\ninputs = 4\nstd = 0.1\nsingular_values = [2.0, 1.0]\n'

Case = tuple[str, str, str, tuple[str, ...]]  # tables of the scenario, optimizer, dtype, interventions

KINDS: dict[str, Case] = {
    "toy": (MOONS + MLP, "adam", "float32", ()),
    "toy-full-mse": (MOONS + "full = true\n" + MLP + '[loss]\nname = "mse"\n', "sgd", "float64", ("3:lr=*2",)),
    "circles": (MOONS.replace("moons", "circles") + MLP, "sgd", "float32", ()),
    "xor": (MOONS.replace("moons", "xor") + MLP, "sgd", "float32", ()),
    "spirals": (MOONS.replace("moons", "spirals") + MLP, "sgd", "float32", ()),
    "modular": ('[data]\nname = "modular-addition"\nmodulus = 7\nbatch_size = 8\n' + MLP, "adamw", "float32", ()),
    "rare": ('[data]\nname = "rare-classes"\ngroups = 4\nbatch_size = 8\n' + MLP, "sgd", "float32", ()),
    "balanced": ('[data]\nname = "rare-classes"\ngroups = 4\nbalanced = true\n' + MLP, "sgd", "float32", ()),
    "own-points": ('[data]\nname = "own-points"\n' + MLP, "adam", "float32", ("2:batch_size=7",)),
    "own-images": ('[data]\nname = "own-images"\n' + CONV, "adam", "float32", ()),
    "conv": (
        DIGITS + CONV + 'norm = { name = "rms", where = "mid" }\nresidual = "on"\ninit = { name = "he", bias = 0.1 }\n',
        "adam",
        "float32",
        (),
    ),
    "conv-layer-norm": (
        DIGITS + CONV + 'norm = { name = "layer", where = "post" }\ninit = "orthogonal"\n', "sgd", "float32", ()
    ),
    "mlp-rezero": (
        DIGITS + MLP + 'residual = { name = "on", way = "rezero" }\nnorm = "layer"\n', "momentum", "float32", ()
    ),
    "mlp-dropout": (
        DIGITS + MLP + 'residual = { name = "on", scale = 0.3 }\nnorm = { name = "rms", where = "post" }\n'
        'dropout = 0.2\ninit = { name = "normal", std = 0.3, gain = 2.0, bias = -0.5 }\n',
        "nesterov",
        "float64",
        ("5:lr=*3",),
    ),
    "transformer": (TRANSFORMER, "adamw", "float32", ("3:batch_size=5", "6:lr=/2")),
    "post-norm": (
        TRANSFORMER + 'residual = "on"\nnorm = { name = "layer", where = "post" }\ndropout = 0.1\n',
        "muon",
        "float32",
        ("3:lr=*2",),
    ),
    "help-pages": (TRANSFORMER.replace("own-text", "text"), "adam", "float64", ()),
    "formula": (SURFACE + 'formula = "-(-x)^2 - 2*x/(y^2 + 1) + x*x*x*x + abs(y) - -y + sin(pi*x*y)"\n', "momentum",
                "float32", ("5:lr=*2",)),
    "formula-64": (SURFACE + 'formula = "x^2^1 - (x - (y - 2)) + y**4 + x^4/8*3"\n', "sgd", "float64", ("5:clip=0.5",)),
    **{
        f"surface-{name}": (SURFACE + f'function = "{name}"\n', "sgd", "float64", ("0:lr=1e-4", "5:lr=*2"))
        for name in ("bowl", "valley", "saddle", "monkey_saddle", "rosenbrock", "beale", "himmelblau")
    },
    "one-number": ('[model]\nname = "surface"\nstart = [0.3]\n', "adam", "float32", ()),
    "two-layer": (TWO_LAYER, "sgd", "float64", ("5:lr=*2", "7:clip=0.1")),
    "two-layer-tanh": (TWO_LAYER + 'activation = "tanh"\n', "adam", "float32", ()),
    "large-gradients": (DIGITS + MLP.replace("width = 8", "width = 260"), "sgd", "float32", ("3:clip=0.3",)),
    "diverges": (DIGITS + MLP.replace("tanh", "relu"), "sgd", "float32", ("4:lr=1e6",)),
}  # fmt: skip
TURNS: dict[str, Case] = {
    "clip": (DIGITS + MLP, "sgd", "float32", ("2:clip=0.1", "4:clip=off", "6:clip=0.3", "8:clip=*2")),
    "decay": (DIGITS + MLP, "adam", "float32", ("2:weight_decay=0.01", "4:weight_decay=*2", "6:optimizer=adamw")),
    "momentum": (
        DIGITS + MLP,
        "sgd",
        "float32",
        ("2:momentum=0.5", "4:momentum=0", "6:momentum=0.9", "8:optimizer=adam", "9:betas=0.8/0.99", "9:betas=0.7/0.9"),
    ),
    "nesterov": (DIGITS + MLP, "nesterov", "float32", ("3:momentum=0", "5:momentum=0.7", "7:optimizer=momentum")),
    "first-step": (
        DIGITS + MLP,
        "momentum",
        "float32",
        ("0:optimizer=adam", "0:betas=0.8/0.9", "1:optimizer=momentum", "1:optimizer=muon", "2:momentum=0"),
    ),
    "muon": (
        DIGITS + MLP + 'norm = "rms"\n',
        "muon",
        "float32",
        ("3:betas=0.7/0.8", "4:momentum=0.5", "5:weight_decay=0.1", "6:clip=0.1", "9:optimizer=rmsprop"),
    ),
    "batch": (
        DIGITS + MLP + "dropout = 0.3\n", "sgd", "float32", ("1:batch_size=16", "3:batch_size=*2", "5:batch_size=200")
    ),
    "pace": (DIGITS + MLP, "sgd", "float32", ("1:pace=5000", "3:lr=*2", "5:pace=max")),
    **{
        f"schedule-{name}": (
            DIGITS + MLP + f'[schedule]\nname = "{name}"\n',
            "adam",
            "float32",
            ("2:lr=*1.25", "3:lr=/3", "4:lr=0.01", "5:optimizer=momentum", "7:lr=*0.7", f"8:schedule={name}"),
        )
        for name in ("step", "cosine", "warmup_cosine", "one_cycle", "wsd", "plateau")
    },
    "schedules": (
        DIGITS + MLP + '[schedule]\nname = "plateau"\npatience = 1\n',
        "sgd",
        "float32",
        ("3:lr=*1.3", "4:schedule=wsd,warmup=3,decay=0.5,floor=0.1", "4:lr=0.1", "8:schedule=constant", "9:lr=*1.1"),
    ),
    "later-schedule": (
        DIGITS + MLP, "sgd", "float32", ("2:lr=*1.3", "5:schedule=cosine", "5:schedule=plateau,patience=1")
    ),
    **{
        f"swap-{old}-{new}": (
            DIGITS + MLP, old, "float32", (f"3:optimizer={new}", f"7:optimizer={old}", "9:lr=*1.25")
        )
        for old, new in itertools.combinations(NAMES, 2)
    },
}  # fmt: skip


def made(case: Case, *, steps: int = 12) -> MadeRun:
    tables, optimizer, dtype, given = case
    text = (
        f'title = "t"\n{tables}[optimizer]\nname = "{optimizer}"\nlr = {RATES[optimizer]}\n'
        f'[run]\nsteps = {steps}\nseed = 5\nthreads = 1\ndtype = "{dtype}"\ndevice = "cpu"\nevaluate_every = 0\n'
    )
    run = make_run(from_text(text, source="t"), given)
    assert run.rejected == []
    assert len(run.interventions) == len(given)
    return run


@pytest.fixture(scope="module")
def home_of_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


def own_files(folder: Path) -> dict[str, MadeRun]:
    """Runs on files of a user's, one with a heading, a byte-order mark and blanks, the other compressed."""
    r = random.Random(1)
    rows = "".join(f"{r.gauss(0, 1)}; {r.gauss(2, 3)};{r.choice(('b', '10'))}\r\n" for _ in range(60))
    (folder / "my points.csv").write_bytes(b"\xef\xbb\xbf" + f"x;y;label\r\n# note\r\n{rows}".encode())
    with gzip.open(folder / "quotes.gz", "wb") as file:
        file.write('Ünïcödé “quotes”\tand \'a\\b\' """\r\n'.encode() * 100)
    runs = {}
    for name, path, tables in (("points", "my points.csv", MLP), ("text", "quotes.gz", TRANSFORMER.split("3\n", 1)[1])):
        data = f'[data]\nname = "own-{name}"\npath = "{folder / path}"\nbatch_size = 5\n'
        runs[f"file-{name}"] = made((data + tables, "adam", "float32", ()))
    return runs


HOSTILE = 'a"""; raise SystemExit(9)  # \\""" \n raise SystemExit(9)'


def hostile(folder: Path) -> tuple[MadeRun, str]:
    """A run and its script, with names that would run code if they could end a docstring or a comment."""
    points = folder / 'p"""; raise SystemExit(9)  # \\.csv'
    points.write_text("".join(f"{n},{n * n % 7},{'ab'[n % 2]}\n" for n in range(30)))
    tables = f"[data]\nname = 'own-points'\npath = '{points}'\n{MLP}"
    scenario = from_text(f"title = 't'\n{tables}[run]\nsteps = 2\nthreads = 1\n", source="t")
    run = make_run(structs.replace(scenario, title=HOSTILE))
    about = About(run=HOSTILE, steps=2, threads=1, device=HOSTILE, versions={"torch": HOSTILE})
    turned = [structs.replace(factories.turned(1, "0.1", "0.2", knob="lr", value="0.1"), old=HOSTILE)]
    return run, python_script(run.scenario, turned, about)


@pytest.fixture(scope="module")
def both(home_of_module: Path) -> dict[str, tuple[list[float], list[float]]]:
    """The losses of each run and those of its script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUI_DESCENT_HOME", str(home_of_module / "home"))
        runs = {name: made(case) for name, case in (KINDS | TURNS).items()} | own_files(home_of_module)
        scripts = {name: run.script() for name, run in runs.items()}
        runs["hostile"], scripts["hostile"] = hostile(home_of_module)
    printed = printed_losses(home_of_module, scripts)
    return {name: (run.losses, printed[name]) for name, run in runs.items()}


@pytest.mark.parametrize("name", [*KINDS, *TURNS, "file-points", "file-text"])
def test_losses_are_those_of_the_run(name: str, both: dict[str, tuple[list[float], list[float]]]) -> None:
    of_run, of_script = both[name]
    assert len(of_run) >= (4 if name == "diverges" else 12)
    assert of_script == of_run


def test_names_from_others_stay_text(both: dict[str, tuple[list[float], list[float]]]) -> None:
    of_run, of_script = both["hostile"]
    assert len(of_run) == 2
    assert of_script == of_run


def test_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("".join(f"{n},{n * n % 7},{'ab'[n % 2]}\n" for n in range(30)))
    run = made((f"[data]\nname = 'own-points'\npath = '{path}'\n{MLP}", "sgd", "float32", ()), steps=1)
    path.unlink()
    with pytest.raises(ExportError, match="no such file"):
        run.script()


def test_scripts_are_formatted_and_have_no_unused_names(
    home_of_module: Path, both: dict[str, tuple[list[float], list[float]]]
) -> None:
    names = [name for name in both if not name.startswith("formula") and name != "hostile"]  # they have long lines
    files = [str(home_of_module / f"{name}.py") for name in names]
    options = ["--isolated", "--line-length", "120"]
    for command in (["check", "--select", "E,F,W,B,I,UP"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options, *files], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.heavy
@pytest.mark.parametrize("name", presets.names())
def test_every_preset_has_a_script_with_its_losses(name: str, tmp_path: Path) -> None:
    steps = 5 if name == "rezero-1000" else 40
    _, scenario = presets.find(name, overrides=["run.threads=1", "run.device=cpu", f"run.steps={steps}"])
    run = make_run(scenario)
    assert printed_losses(tmp_path, {name: run.script()})[name] == run.losses


def test_changes_of_the_net_are_refused_with_their_steps() -> None:
    run = made((DIGITS + MLP, "sgd", "float32", ("1:activation=gelu", "3:lr=*2", "7:residual@blocks.1=on")))
    with pytest.raises(ExportError) as caught:
        run.script()
    assert str(caught.value) == (
        "a PyTorch script cannot repeat changes of the net (step 1: activation tanh → gelu; "
        "step 7: residual of blocks.1 off → on); a scenario can: use --to scenario"
    )


@pytest.mark.parametrize("turn", ["norm=layer", "dropout=0.1", "init=xavier", "freeze@head=on", "kick=0.01"])
def test_each_change_of_the_net_is_refused(turn: str) -> None:
    run = made((DIGITS + MLP, "sgd", "float32", (f"2:{turn}",)), steps=4)
    with pytest.raises(ExportError, match=f"step 2: {turn.split('=')[0].split('@')[0]} "):
        run.script()


def test_script_ends_where_the_run_ended() -> None:
    run = made((DIGITS + MLP, "sgd", "float32", ()), steps=3)
    assert "STEPS = 3\n" in run.script()


@pytest.mark.parametrize("text", ["a'b", 'a"b', "\\n\n\t\\'\"é\x07", "", "''", "\\", "C:\\x'\\\""])
def test_string_literals_are_read_back(text: str) -> None:
    assert eval(quoted(text)) == text
