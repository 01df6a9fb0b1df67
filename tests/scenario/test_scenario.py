"""Scenario files: defaults, and errors with place, what was found, what is allowed, and the closest word."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
from small_scenario import CONV, SMALL, SURFACE, TEXT, make, problems

from tui_descent.scenario import presets
from tui_descent.scenario.spec import (
    ActivationSpec,
    DigitsData,
    MlpModel,
    MoonsData,
    NormSpec,
    SurfaceModel,
    about,
)
from tui_descent.scenario.toml import MAX_BYTES, ScenarioError, from_table, from_text, read, to_table
from tui_descent.scenario.validate import nearest


def test_omitted_values_have_defaults() -> None:
    scenario = make(SMALL)
    assert scenario.data == DigitsData()
    assert scenario.model == MlpModel()
    assert (scenario.optimizer.name, scenario.optimizer.lr, scenario.run.seed) == ("sgd", 0.1, 0)


def test_a_name_alone_replaces_its_table() -> None:
    long = SMALL + '[model.activation]\nname = "gelu"\n[model.norm]\nname = "layer"\nwhere = "mid"\n'
    assert make(SMALL + 'activation = "gelu"\nnorm = { name = "layer", where = "mid" }\n') == make(long)
    assert make(SMALL + 'activation = "gelu"').model.activation == ActivationSpec(name="gelu")  # type: ignore[union-attr]
    assert make(long).model.norm == NormSpec(name="layer", where="mid")  # type: ignore[union-attr]
    assert make('title = "t"\ndata = "moons"\nmodel = "mlp"').data == MoonsData()
    assert make('title = "t"\nmodel = "surface"').model == SurfaceModel()


def test_an_integer_is_accepted_for_a_float() -> None:
    assert make(SMALL + "[optimizer]\nlr = 1\n[run]\npace = 60\n").optimizer.lr == 1.0


CLAIM = '[[claim]]\nmetric = "loss"\nbelow = 1\n'
LADDER = f'{CLAIM}largest = "optimizer.lr"\nat_least = 0.2\n'
CASES: list[tuple[str, str, str, str]] = [
    # test id, text of the file, place, start of the message
    ("lr nan", "[optimizer]\nlr = nan", "optimizer.lr", "found nan; allowed: a number > 0 and ≤ 1e+06"),
    ("lr inf", "[optimizer]\nlr = inf", "optimizer.lr", "found inf; allowed: a number > 0 and ≤ 1e+06"),
    ("lr too large", "[optimizer]\nlr = 1e400", "optimizer.lr", "found inf; allowed: a number > 0"),
    ("lr below 0", "[optimizer]\nlr = -1", "optimizer.lr", "found -1; allowed: a number > 0"),
    ("lr 0", "[optimizer]\nlr = 0.0", "optimizer.lr", "found 0.0; allowed: a number > 0"),
    ("lr in words", '[optimizer]\nlr = "fast"', "optimizer.lr", 'found "fast"; allowed: a number > 0'),
    ("lr a date", "[optimizer]\nlr = 2020-01-01", "optimizer.lr", 'found "2020-01-01"; allowed: a number'),
    ("lr a list", "[optimizer]\nlr = [0.1]", "optimizer.lr", "found a list; allowed: a number"),
    ("lr a table", "[optimizer]\nlr = { a = 1 }", "optimizer.lr", "found a table; allowed: a number"),
    ("steps true", "[run]\nsteps = true", "run.steps", "found true; allowed: a whole number ≥ 1 and ≤ 10,000,000"),
    ("steps 1.0", "[run]\nsteps = 1.0", "run.steps", "found 1.0; allowed: a whole number ≥ 1"),
    ("steps 0", "[run]\nsteps = 0", "run.steps", "found 0; allowed: a whole number ≥ 1"),
    ("steps huge", f"[run]\nsteps = {10**30}", "run.steps", f"found {10**30}; allowed: a whole number ≥ 1"),
    ("steps huger", f"[run]\nsteps = {10**200}", "run.steps", f"found {str(10**200)[:57]}…; allowed: a whole number"),
    ("pace true", "[run]\npace = true", "run.pace", "found true; allowed: a number > 0 and ≤ 1e+06 or"),
    ("pace a word", '[run]\npace = "mux"', "run.pace", 'found "mux"; allowed: a number > 0 and ≤ 1e+06 or'),
    ("seed below 0", "[run]\nseed = -1", "run.seed", "found -1; allowed: a whole number ≥ 0"),
    ("device", '[run]\ndevice = "gpu"', "run.device", 'found "gpu"; allowed: auto, cpu, mps, cuda or cuda:N'),
    ("device and a line", '[run]\ndevice = "cuda:1\\n"', "run.device", "found "),
    ("dtype", '[run]\ndtype = "float16"', "run.dtype", 'found "float16"; allowed: "float32", "float64"'),
    ("unknown key", "[optimizer]\nlearning_rat = 1", "optimizer.learning_rat", "unknown key; allowed here: name, lr,"),
    ("unknown table", "[optimiser]\nlr = 1", "optimiser", "unknown key; allowed here: title, theme,"),
    ("nearest key", "[optimizer]\nmomentun = 0.9", "optimizer.momentun", 'did you mean "momentum"?'),
    ("nearest word", '[optimizer]\nname = "adamm"', "optimizer.name", 'did you mean "adam"?'),
    ("far from all words", '[optimizer]\nname = "zzz"', "optimizer.name", 'allowed: "sgd", "momentum", "nesterov"'),
    ("a table for a number", "[run]\n[run.steps]\na = 1", "run.steps", "found a table; allowed: a whole number"),
    ("a number for a table", "optimizer = 3", "optimizer", "found 3; allowed: a table"),
    ("betas too few", "[optimizer]\nbetas = [0.9]", "optimizer.betas", "found 1 values; allowed: 2"),
    ("betas 1", "[optimizer]\nbetas = [0.9, 1.0]", "optimizer.betas[1]", "found 1.0; allowed: a number ≥ 0 and < 1"),
    ("a callable", '[loss]\nname = "os.system"', "loss.name", 'found "os.system"; allowed: "cross_entropy", "mse"'),
    ("plan", '[[plan]]\nat = 3\nturn = "lr=-1"', "plan[0].turn", "lr = -1; allowed: a number > 0"),
    ("plan's knob", '[[plan]]\nat = 3\nturn = "resid=on"', "plan[0].turn", 'unknown knob "resid"; allowed: lr,'),
    (
        "plan too late",
        '[[plan]]\nat = 1000\nturn = "lr=1"',
        "plan[0].at",
        "found 1000; allowed: less than run.steps = 1000",
    ),
    (
        "plan without turn and caption",
        "[[plan]]\nat = 3",
        "plan[0]",
        'has neither turn nor say; for example turn = "residual=on"',
    ),
    (
        "claim without a condition",
        '[[claim]]\nmetric = "loss"',
        "claim[0]",
        "has no condition; add below, above or equals",
    ),
    ("claim's metric", '[[claim]]\nmetric = "los"\nbelow = 1', "claim[0].metric", 'found "los"; allowed: loss,'),
    ("claim's given", '[[claim]]\nmetric = "loss"\nbelow = 1\ngiven = ["x"]', "claim[0].given[0]", "expected STEP:"),
    (
        "claim too late",
        '[[claim]]\nmetric = "loss"\nat = 1001\nbelow = 1',
        "claim[0].at",
        "found 1001; allowed: at most",
    ),
    ("claim's target", f"{CLAIM}target = 1", "claim[0].target", "found a number; allowed only for steps_to"),
    ("no target", '[[claim]]\nmetric = "steps_to"\nbelow = 9', "claim[0].target", "missing; steps_to needs the loss"),
    ("share without seeds", f"{CLAIM}at_least = 0.5", "claim[0]", "at_least and at_most need seeds or largest"),
    ("seeds without a share", f"{CLAIM}seeds = 9", "claim[0]", "has no bound for the share of the seeds; add at_least"),
    ("one seed", f"{CLAIM}seeds = 1\nat_least = 1", "claim[0].seeds", "found 1; allowed: a whole number ≥ 2"),
    ("share", f"{CLAIM}seeds = 9\nat_least = 85", "claim[0].at_least", "found 85; allowed: a share of the seeds"),
    ("one rung", f"{LADDER}among = [0.1]", "claim[0].among", "found 1 values; allowed: two or more"),
    ("descending", f"{LADDER}among = [0.1, 0.3, 0.2]", "claim[0].among", "is not in ascending order"),
    ("bad rung", f"{LADDER}among = [-1, 0.3]", "claim[0].among[0]", "optimizer.lr: found -1; allowed: a number > 0"),
    ("among alone", f"{CLAIM}among = [1, 2]", "claim[0].among", "needs largest, the place of the number"),
    ("seeds and largest", f"{LADDER}among = [1, 2]\nseeds = 3", "claim[0]", "has both seeds and largest"),
    ("with a wrong place", f'{CLAIM}with = ["model.dept=3"]', "claim[0].with", "model.dept: unknown key; allowed"),
    ("with a wrong value", f'{CLAIM}with = ["optimizer.lr=x"]', "claim[0].with", 'optimizer.lr: found "x"; allowed:'),
    ("with a story", f'{CLAIM}with = ["story=x"]', "claim[0].with", 'found "story=x"; allowed: a place=value in data,'),
    ("with no value", f'{CLAIM}with = ["run"]', "claim[0].with", "expected place=value, as in data.batch_size=128"),
    ("divided by itself", f"{CLAIM}divided_by = {{}}", "claim[0].divided_by", "is empty; say what differs"),
    ("divided by", f'{CLAIM}divided_by = {{ with = ["run.x=1"] }}', "claim[0].divided_by.with", "run.x: unknown key"),
    ("divided at", f"{CLAIM}divided_by = {{ at = 1001 }}", "claim[0].divided_by.at", "found 1001; allowed: at most"),
    ("divisor's given", f'{CLAIM}divided_by = {{ given = ["x"] }}', "claim[0].divided_by.given[0]", "expected STEP:"),
    (
        "a word divided",
        '[[claim]]\nmetric = "status"\nequals = "finished"\ndivided_by = { at = 3 }',
        "claim[0].divided_by",
        "status is a word, which cannot be divided",
    ),
    ("cause_off", 'cause_off = ["model.activation=rely"]', "cause_off", 'found "rely"; allowed: "relu",'),
]
DATA_NAMES = ("digits", "moons", "circles", "xor", "spirals", "text")
IN_DATA: list[tuple[str, str, str, str]] = [
    ("data", "data", "imagenet", 'found "imagenet"; allowed: digits, moons, circles, xor, spirals, text'),
    ("nearest data", "data", "moon", 'did you mean "moons"?'),
    ("model a callable", "model", "os.system", 'found "os.system"; allowed: mlp, conv, transformer, surface'),
    ("model a module", "model", "torch.nn:Linear", "allowed: mlp, conv, transformer, surface"),
]


@pytest.mark.parametrize(("text", "place", "said"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_an_error_names_the_place_what_was_found_and_what_is_allowed(text: str, place: str, said: str) -> None:
    base = SMALL if text.startswith("[") else SMALL.replace('title = "t"', f'title = "t"\n{text}')
    found = problems(base + text if text.startswith("[") else base)
    assert list(found) == [place]
    assert said in found[place]


def test_a_claim_may_be_about_a_longer_run() -> None:
    text = f'{SMALL}{CLAIM}at = 1500\nwith = ["run.steps=2000"]'
    assert from_text(text, source="x").claim[0].at == 1500


def test_only_a_limited_number_of_variants_is_read() -> None:
    rungs = ", ".join(str(n) for n in range(1, 101))
    ladders = "".join(f'{LADDER}among = [{rungs}]\nwith = ["run.seed={n}"]\n' for n in range(5))
    assert problems(SMALL + ladders) == {"claim": "found 505 different variants; allowed: at most 300"}


@pytest.mark.parametrize(
    ("typed", "words", "meant"),
    [
        ("moon", DATA_NAMES, "moons"),
        ("spiral", DATA_NAMES, "spirals"),
        ("SGD", ("sgd", "adam"), "sgd"),
        ("rsmprop", ("sgd", "rmsprop"), "rmsprop"),
        ("batch", ("name", "batch_size"), "batch_size"),
        ("mnist", DATA_NAMES, ""),
        ("cifar", DATA_NAMES, ""),
        ("swish", ("silu", "sigmoid"), ""),
        ("x", ("xor", "xavier"), ""),
    ],
)
def test_only_a_similar_word_is_suggested(typed: str, words: tuple[str, ...], meant: str) -> None:
    assert nearest(typed, words) == (f' — did you mean "{meant}"?' if meant else "")


@pytest.mark.parametrize(("table", "name", "said"), [c[1:] for c in IN_DATA], ids=[c[0] for c in IN_DATA])
def test_an_unknown_data_or_model_name_is_an_error(table: str, name: str, said: str) -> None:
    words = {"data": "digits", "model": "mlp"} | {table: name}
    text = f'title = "t"\n[data]\nname = "{words["data"]}"\n[model]\nname = "{words["model"]}"'
    found = problems(text)
    assert list(found) == [f"{table}.name"]
    assert said in found[f"{table}.name"]


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("", "title", "missing; allowed: text of 1 to 200 characters"),
        ('title = ""\nmodel = "surface"', "title", 'found ""; allowed: text of 1 to 200 characters'),
        (f'title = "{"x" * 300}"\nmodel = "surface"', "title", "…; allowed: text of 1 to 200 characters"),
        ("title = 3", "title", "found 3; allowed: text"),
        ('title = "t"', "model", "missing; allowed: a table"),
        ('title = "t"\n[model]\ndepth = 3', "model.name", "found nothing; allowed: mlp, conv, transformer, surface"),
        ('title = "t"\nmodel = 3', "model", "found 3; allowed: a table"),
        ('title = "t"\n[model]\nname = "mlp"', "data", "missing; a network needs data"),
        (SURFACE + "start = [1.0, 2.0]", "model.start", "found 2 values; allowed: 1 for fragment"),
        (SURFACE + 'function = "saddle"', "model.start", "found 1 values; allowed: 2 for saddle"),
        (SURFACE + "start = []", "model.start", "found 0 values; allowed: 1 to 2"),
        (SURFACE + '[data]\nname = "digits"', "data", "a test surface does not accept data; remove the table"),
        (SURFACE + '[loss]\nname = "mse"', "loss", "a test surface is itself the loss; remove the table"),
        (SURFACE + '[[plan]]\nat = 1\nturn = "residual=on"', "plan[0].turn", "residual needs a network with blocks"),
        (
            CONV.replace("digits", "moons"),
            "data.name",
            'found "moons"; allowed for a conv net: digits, own-images',
        ),
        (TEXT.replace('"text"', '"digits"'), "data.name", 'found "digits"; allowed for a transformer: text'),
        (SMALL.replace("digits", "text"), "data.name", 'found "text"; only a transformer can use it'),
        (CONV.replace("digits", "text"), "data.name", 'found "text"; allowed for a conv net: digits, own-images'),
        (TEXT + "heads = 3", "model.heads", "found 3; allowed: a divisor of model.width = 32"),
        (
            TEXT + 'norm = { name = "rms", where = "mid" }',
            "model.norm.where",
            'found "mid"; allowed for a transformer: "pre"',
        ),
        (TEXT + "dropout = 1.0", "model.dropout", "found 1.0; allowed: a number ≥ 0 and < 1"),
        (TEXT + "context = 1", "model.context", "found 1; allowed: a whole number ≥ 2"),
        (SMALL + '[run]\ndtype = "float64"\ndevice = "mps"', "run.dtype", "MPS has no float64; use float32 or"),
        (
            SMALL.replace('"digits"', '"digits"\nsubset = 50\nbatch_size = 60'),
            "data.batch_size",
            "found 60; allowed: at most data.subset = 50",
        ),
    ],
)
def test_missing_values_and_invalid_combinations_are_errors(text: str, place: str, said: str) -> None:
    found = problems(text)
    assert said in found[place]


def test_all_errors_are_reported_at_once() -> None:
    text = (
        SMALL.replace('"mlp"', '"mlp"\ndepht = 3\nactivation = "rely"')
        + "[optimizer]\nlr = nan\nx = 1\n[run]\nsteps = true"
    )
    found = problems(text)
    assert set(found) == {"model.depht", "model.activation", "optimizer.lr", "optimizer.x", "run.steps"}
    assert 'did you mean "depth"?' in found["model.depht"]
    assert 'did you mean "relu"?' in found["model.activation"]


@pytest.mark.parametrize("kind", ["", 'name = "mpl"\n'], ids=["no kind", "unknown kind"])
def test_a_misspelt_key_is_reported_even_if_the_name_of_its_table_is_invalid(kind: str) -> None:
    found = problems(f"[data]\nname = 'digits'\n[model]\n{kind}depht = 3\nheads = 2\nwidth = 8")
    assert set(found) == {"title", "model.name", "model.depht"}
    assert 'did you mean "depth"?' in found["model.depht"]


def test_a_duplicate_key_is_one_error_with_its_line() -> None:
    (text,) = problems(SMALL + "[run]\nsteps = 1\nsteps = 2\nseed = 3\n").values()
    assert text.startswith("not valid TOML: Cannot overwrite a value (at ")
    (text,) = problems(SMALL + '[model]\nname = "mlp"').values()
    assert text.startswith("not valid TOML: Cannot declare ('model',) twice")


@pytest.mark.parametrize("text", ["title = ", "[", "\0", "title = 't' x", "a = " + "[" * 5000, f"a = {'9' * 5000}"])
def test_invalid_toml_is_one_clear_error(text: str) -> None:
    (said,) = problems(text).values()
    assert said.startswith("not valid TOML: ")


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(n, marks=pytest.mark.heavy) for n in range(3, 10))])
def test_random_values_give_a_clear_error_or_a_scenario(seed: int) -> None:
    random_ = random.Random(seed)
    values = [
        "true",
        "nan",
        "-inf",
        "-1",
        "0",
        "1e309",
        f"{2**70}",
        '""',
        '"\\u0000"',
        "[]",
        "[[1]]",
        "{}",
        "1979-05-27",
    ]
    values += ["[{}]", '{ name = "he" }', '"max"', "0.5", "{ name = [] }", "{ name = {} }", '["a", 1]']
    _, whole = presets.find("vanishing")
    places = [(t, k) for t, inner in to_table(whole).items() if isinstance(inner, dict) for k in inner]
    tables = ("title", "theme", "story", "remedy", "claim", "plan", "data", "model", "loss", "run", "optimizer")
    places += [("", k) for k in tables]
    for _ in range(200):
        overrides = [
            f"{table}.{key}={random_.choice(values)}".lstrip(".")
            for table, key in random_.sample(places, random_.randrange(1, 3))
        ]
        with contextlib.suppress(ScenarioError):
            from_table(to_table(whole), source="x", overrides=overrides)


def test_a_byte_order_mark_is_reported(home: Path) -> None:
    path = home / "a.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    with pytest.raises(
        ScenarioError, match=r"a\.toml: starts with a byte-order mark \(BOM\); save it as UTF-8 without BOM"
    ):
        read(path)


def test_a_file_in_another_encoding_is_reported(home: Path) -> None:
    path = home / "a.toml"
    path.write_bytes(SMALL.encode() + 'theme = "größe"'.encode("latin-1"))
    with pytest.raises(ScenarioError, match="not UTF-8 at byte"):
        read(path)
    path.write_bytes(SMALL.encode("utf-16"))
    with pytest.raises(ScenarioError, match="not UTF-8 at byte 0"):
        read(path)


def test_a_huge_file_is_refused_without_being_read(home: Path) -> None:
    path = home / "a.toml"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse terabyte
    with pytest.raises(ScenarioError, match=f"larger than {MAX_BYTES:,} bytes"):
        read(path)


@pytest.mark.parametrize("bad", ["missing.toml", ".", "/dev/null/x.toml", "nul\0.toml"])
def test_an_unreadable_file_is_a_clear_error(home: Path, bad: str) -> None:
    with pytest.raises(ScenarioError, match=r"no such file|is a folder|cannot be read"):
        read(home / bad)


def test_a_scenario_cannot_run_code(home: Path) -> None:
    mark = home / "ran"
    code = f"__import__('pathlib').Path('{mark}').touch()"
    for place in ("model.name", "data.name", "optimizer.name", "model.init", "model.activation", "run.device"):
        assert problems(SMALL, f'{place}="{code}"')
    assert problems(SMALL + f'[[plan]]\nat = 1\nturn = "lr={code}"')
    assert not mark.exists()


def test_control_characters_in_errors_are_escaped() -> None:
    for text in (
        '[optimizer]\nlr = "\\u001b[2J\\u009b31m\\u202e"',
        '[optimizer]\n"\\u001b[2J" = 1',
        '[[plan]]\nat = 1\nturn = "lr=\\u001b[2J"',
        '[[plan]]\nat = 1\nturn = "\\u001b]0;x\\u0007=1"',
        '[[claim]]\nmetric = "\\u001b[2J"\nbelow = 1',
    ):
        with pytest.raises(ScenarioError) as caught:
            make(SMALL + text)
        assert str(caught.value).isprintable(), text


def test_about_describes_a_scenario_in_one_phrase() -> None:
    assert about(make(SMALL, "model.depth=20")) == "digits · mlp 64→32×20→10"
    assert about(make(SMALL, 'data="moons"', "model.width=8")) == "moons · mlp 2→8×2→2"
    assert about(make(CONV)) == "digits · conv 8×8→16×4→10"
    assert about(make(TEXT, "model.depth=6")) == "text · transformer 32×6, 2 heads, context 32"
    assert about(make(SURFACE)) == "surface fragment"
