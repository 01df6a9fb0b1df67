"""The data of a scenario as source: `load()` gives the training data and the held-out data.

Data that is shipped with this package is embedded at the end of the script; the user's own files are read where they
are. Random numbers are drawn in the order of `training/setup/data`, so the data is equal.
"""

from __future__ import annotations

import base64
import textwrap
from pathlib import Path

import msgspec

from tui_descent.export.errors import ExportError
from tui_descent.export.python.text import block, joined, plain, quoted
from tui_descent.scenario.own_data import images, points
from tui_descent.scenario.own_data import text as own_text
from tui_descent.scenario.own_data.files import GZIP_MAGIC, SAMPLES, read_text
from tui_descent.scenario.spec import (
    SYMBOLS,
    Data,
    DigitsData,
    ModularAdditionData,
    OwnImagesData,
    OwnPointsData,
    OwnTextData,
    RareClassesData,
    Scenario,
    TextData,
    ToyData,
    TransformerModel,
    ends,
)

DIGITS = Path(__file__).resolve().parents[2] / "training/setup/data/digits.xz"


class DataCode(msgspec.Struct, frozen=True, kw_only=True):
    """The source of `load()`, data to put at the end of the script, and the sizes that the net needs."""

    load: str
    embedded: str = ""
    features: int
    classes: int
    image: tuple[int, int] | None = None


def data(scenario: Scenario) -> DataCode:
    """The source for the scenario's data. Raises `ExportError` if the user's file cannot be read."""
    spec = scenario.data
    assert spec is not None
    features, classes = ends(spec)
    try:
        match spec:
            case OwnTextData():
                assert isinstance(scenario.model, TransformerModel)
                return _own_text(spec, scenario.model.context)
            case TextData():
                load = joined(block(_PAGES), block(_SPLIT), blank_lines=2)
            case DigitsData():
                return _digits(spec)
            case ModularAdditionData():
                load = block(_MODULAR_ADDITION.format(p=spec.modulus, share=spec.share))
            case RareClassesData():
                load = _rare_classes(spec)
            case OwnImagesData():
                return _own_images(spec)
            case OwnPointsData():
                return _own_points(spec)
            case _:
                load = _toy(spec)
    except ValueError as error:  # from the readers of the user's files
        raise ExportError(str(error)) from None
    return DataCode(load=load, features=features, classes=classes)


def batches(spec: Data, *, changes: bool) -> str:
    """The source of the batches; if the batch size `changes`, of a class with that size."""
    if isinstance(spec, TextData):
        return block(_WINDOWS)
    if spec.full:
        return ""
    return block(_BATCHES_OF_ANY_SIZE if changes else _BATCHES)


def _digits(spec: DigitsData) -> DataCode:
    first = f"x[:{spec.subset}], y[:{spec.subset}]" if spec.subset else "x[:TRAIN], y[:TRAIN]"
    load = block(f'''
def load():
    """The 1,797 hand-written digits of 8×8 pixels, normalised; the last 360 are held out."""
    TRAIN = 1437
    table = lzma.decompress(base64.b64decode(DIGITS))
    table = torch.frombuffer(bytearray(table), dtype=torch.uint8).view(-1, 65)
    x, y = table[:, :64].float() / 16, table[:, 64].long()
    x = x - x[:TRAIN].mean(dim=0)
    x = x / x[:TRAIN].std()
    return {first}, x[TRAIN:], y[TRAIN:]
''')
    embedded = _bytes("DIGITS", DIGITS.read_bytes(), "Pixels and class of each image, 65 bytes, compressed by xz.")
    return DataCode(load=load, embedded=embedded, features=64, classes=10, image=(8, 8))


def _bytes(name: str, content: bytes, comment: str) -> str:
    """A constant with bytes as text."""
    lines = textwrap.wrap(base64.b64encode(content).decode(), 96)
    return "\n".join([f"# {comment}", f'{name} = """', *lines, '"""'])


_TOYS = {
    "moons": (
        "Two interleaved half circles",
        """
    angle = torch.rand(len(y), generator=g) * math.pi
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
    x = torch.where(y[:, None] == 0, upper, lower)""",
    ),
    "circles": (
        "A circle inside a circle",
        """
    angle = torch.rand(len(y), generator=g) * 2 * math.pi
    radius = torch.where(y == 0, 1.0, 0.5)
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)""",
    ),
    "xor": (
        "Four clusters; opposite corners share a class",
        """
    left = torch.randint(0, 2, (len(y),), generator=g) * 2.0 - 1
    up = torch.where(y == 0, left, -left)
    x = torch.stack([left, up], dim=1)""",
    ),
    "spirals": (
        "Two interleaved spirals",
        """
    radius = torch.rand(len(y), generator=g).sqrt()
    angle = radius * 3 * math.pi + y * math.pi
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)""",
    ),
}


def _toy(spec: ToyData) -> str:
    what, draw = _TOYS[str(type(spec).__struct_config__.tag)]
    n = spec.points - int(spec.points * 0.2)
    return block(f'''
def load():
    """{what}: {spec.points} points with noise; a fifth is held out."""
    g = torch.Generator().manual_seed(SEED)
    y = torch.arange({spec.points}) % 2{draw}
    x = x + {spec.noise!r} * torch.randn(x.shape, generator=g)
    x = (x - x.mean(dim=0)) / x.std()
    order = torch.randperm({spec.points}, generator=g)
    x, y = x[order], y[order]
    return x[:{n}], y[:{n}], x[{n}:], y[{n}:]
''')


_MODULAR_ADDITION = '''
def load():
    """All pairs (a, b), one-hot, with the class a + b mod {p}; a share of {share} is for training."""
    p = {p}
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    x, y = torch.cat([F.one_hot(a, p), F.one_hot(b, p)], dim=1).float(), (a + b) % p
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(SEED))
    n = int(p * p * {share})
    return x[order[:n]], y[order[:n]], x[order[n:]], y[order[n:]]
'''


def _rare_classes(spec: RareClassesData) -> str:
    sizes = spec.class_sizes()
    if spec.balanced:
        how, expression = f"{len(sizes)} classes of {sizes[0]} samples", f"[{sizes[0]}] * {len(sizes)}"
    else:
        how = f"1 class of {sizes[0]} samples, 2 of {sizes[0] // 2}, and so on"
        groups = spec.groups
        expression = f"[2 ** ({groups} - 1 - n) for n in range({groups}) for _ in range(2**n)]"
    return block(f'''
def load():
    """{how}: the centre of the class plus noise. 2 of each are held out."""
    g = torch.Generator().manual_seed(SEED)
    sizes = torch.tensor({expression})
    centres = torch.randn(len(sizes), {spec.inputs}, generator=g)
    y = torch.arange(len(sizes)).repeat_interleave(sizes)
    held_out_y = torch.arange(len(sizes)).repeat_interleave(2)
    x = centres[y] + {spec.noise!r} * torch.randn(len(y), {spec.inputs}, generator=g)
    held_out_x = centres[held_out_y] + {spec.noise!r} * torch.randn(len(held_out_y), {spec.inputs}, generator=g)
    return x, y, held_out_x, held_out_y
''')


_PAGES = '''
SYMBOLS = "\\n" + "".join(chr(n) for n in range(32, 127))


def read_codes():
    """Python's help pages as numbers of characters. They differ between Python versions."""
    pages = pydoc_data.topics.topics
    text = "\\n".join(pages[name] for name in sorted(pages))
    code_of = {symbol: code for code, symbol in enumerate(SYMBOLS)}
    return torch.tensor([code_of[symbol] for symbol in text if symbol in code_of])
'''
_SPLIT = '''
def windows(codes, starts):
    """The windows that begin at `starts`, and the windows shifted by one: each (B, T)."""
    places = starts[:, None] + torch.arange(CONTEXT)
    return codes[places], codes[places + 1]


def load():
    """The codes for training, and 128 windows of the last tenth, which is held out."""
    codes = read_codes()
    cut = round(len(codes) * (1 - 0.1))
    train, held_out = codes[:cut], codes[cut:]
    starts = torch.linspace(0, len(held_out) - CONTEXT - 1, 128).long()
    return train, None, *windows(held_out, starts)
'''


def _own_text(spec: OwnTextData, context: int) -> DataCode:
    found = own_text.read(spec, context)
    path = Path(spec.path) if spec.path else SAMPLES / "sonnets.txt"
    embedded = ""
    if spec.path:
        text = f"{_open_text(path)}.read()"
        what = f"The text {plain(path.name)}"
    else:
        raw = read_text(path, own_text.MAX_BYTES)
        embedded = _text("TEXT", raw, "Shakespeare's sonnets, an extract.")
        text, what = "TEXT", "The text below"
    load = block(f'''
SYMBOLS = {quoted(found.symbols)}


def read_codes():
    """{what} as numbers of characters."""
    text = {text}
    text = unicodedata.normalize("NFC", text).replace("\\t", " ")
    code_of = {{symbol: code for code, symbol in enumerate(SYMBOLS)}}
    return torch.tensor([code_of[symbol] for symbol in text if symbol in code_of])
''')
    load = joined(load, block(_SPLIT), blank_lines=2)
    return DataCode(load=load, embedded=embedded, features=SYMBOLS, classes=SYMBOLS)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == GZIP_MAGIC


def _open_text(path: Path) -> str:
    """An expression that opens a text file of the user's."""
    opener, mode = ("gzip.open", '"rt", ') if _is_gzip(path) else ("open", "")
    return f'{opener}({quoted(str(path))}, {mode}encoding="utf-8-sig")'


def _text(name: str, content: str, comment: str) -> str:
    """A constant with a text."""
    quoted = content.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    return f'# {comment}\n{name} = """\\\n{quoted}"""'


def _own_points(spec: OwnPointsData) -> DataCode:
    found = points.read(spec)
    path = Path(spec.path) if spec.path else SAMPLES / "two-fields.csv"
    raw = read_text(path, points.MAX_BYTES)
    lines = [line for line in raw.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    separator = next((sign for sign in ";\t" if sign in lines[0]), ",")
    heading = len(lines) - len(found.x)
    skip = "" if not heading else f"[{heading}:]  # without the heading"
    embedded = ""
    if spec.path:
        text, what = f"{_open_text(path)}.read()", f"The points in {plain(path.name)}"
    else:
        embedded = _text("POINTS", raw, "x, y and label of each point.")
        text, what = "POINTS", "The points below"
    n = points.training_count(spec)
    load = block(f'''
def load():
    """{what}; a fifth is held out."""
    text = {text}
    lines = [line for line in text.split("\\n") if line.strip() and not line.lstrip().startswith("#")]
    rows = list(csv.reader(lines, delimiter={quoted(separator)})){skip}
    classes = [{", ".join(map(quoted, found.names))}]
    x = torch.tensor([[float(x) for x, _, _ in rows], [float(y) for _, y, _ in rows]], dtype=torch.float64).T
    x = ((x - x.mean(dim=0)) / x.std(dim=0)).float()
    y = torch.tensor([classes.index(label.strip()) for _, _, label in rows])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(SEED))
    x, y = x[order], y[order]
    return x[:{n}], y[:{n}], x[{n}:], y[{n}:]
''')
    return DataCode(load=load, embedded=embedded, features=2, classes=points.CLASSES)


def _own_images(spec: OwnImagesData) -> DataCode:
    sizes = images.sizes(spec)
    image_path, label_path = images.paths(spec)
    embedded, reads = "", []
    for name, path in (("IMAGES", image_path), ("LABELS", label_path)):
        if spec.path:
            opener = "gzip.open" if _is_gzip(path) else "open"
            reads.append(f'{opener}({quoted(str(path))}, "rb").read()')
        else:
            content = _bytes(name, path.read_bytes(), f"The file {path.name}.")
            embedded = joined(embedded, content, blank_lines=1)
            reads.append(f"gzip.decompress(base64.b64decode({name}))")
    what = f"The images in {plain(image_path.name)}" if spec.path else "The images below"
    load = block(f'''
def load():
    """{what}, normalised; {sizes.held_out:,} are held out."""
    pixels = {reads[0]}[16:]  # after the header of an IDX file
    labels = {reads[1]}[8:]
    raw = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, {sizes.pixels})
    y = torch.frombuffer(bytearray(labels), dtype=torch.uint8).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(SEED))
    chosen, held_out = order[:{sizes.training}], order[len(order) - {sizes.held_out} :]
    x, held_out_x = raw[chosen].float() / 255, raw[held_out].float() / 255
    mean = x.mean(dim=0)
    x, held_out_x = x - mean, held_out_x - mean
    std = x.std().clamp(min=1e-6)
    return x / std, y[chosen], held_out_x / std, y[held_out]
''')
    size = (sizes.height, sizes.width)
    return DataCode(load=load, embedded=embedded, features=sizes.pixels, classes=sizes.classes, image=size)


_WINDOWS = '''
class Batches:
    """Endless batches of windows at random positions."""

    def __init__(self, codes, size):
        self.codes, self.size = codes, size
        self.generator = torch.Generator().manual_seed(SEED)

    def next(self):
        starts = torch.randint(len(self.codes) - CONTEXT, (self.size,), generator=self.generator)
        return windows(self.codes, starts)
'''
_BATCHES = '''
def shuffled_batches(x, y, size):
    """Endless batches, shuffled in each epoch; an incomplete last batch is dropped."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        order = torch.randperm(len(x), generator=generator)
        for first in range(0, len(x) - size + 1, size):
            chosen = order[first : first + size]
            yield x[chosen], y[chosen]
'''
_BATCHES_OF_ANY_SIZE = '''
class Batches:
    """Endless batches, shuffled in each epoch; an incomplete last batch is dropped. `size` may change."""

    def __init__(self, x, y, size):
        self.x, self.y, self.size = x, y, size
        self.generator = torch.Generator().manual_seed(SEED)
        self.order, self.used = torch.arange(0), 0

    def next(self):
        if self.used + self.size > len(self.order):
            self.order, self.used = torch.randperm(len(self.x), generator=self.generator), 0
        chosen = self.order[self.used : self.used + self.size]
        self.used += self.size
        return self.x[chosen], self.y[chosen]
'''
