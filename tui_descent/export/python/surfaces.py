"""Test surfaces and two-layer nets as source. Their loss is a function of the parameters alone."""

from __future__ import annotations

from tui_descent.export.python.nets import activation
from tui_descent.export.python.text import block, joined
from tui_descent.scenario.formula import Operation, parse
from tui_descent.scenario.spec import SurfaceModel, TwoLayerModel

# As in `training/setup/nets/surface.py`: the operations and their order decide on the last bit.
_FUNCTIONS = {
    "fragment": "(2 * w[0] - 3) ** 2",
    "bowl": "(w[0] ** 2 + w[1] ** 2) / 2",
    "valley": "0.5 * (w[0] ** 2 + 100 * w[1] ** 2)",
    "saddle": "w[0] ** 2 - w[1] ** 2 + w[1] ** 4 / 4",
    "monkey_saddle": "w[0] ** 3 - 3 * w[0] * w[1] ** 2 + (w[0] ** 2 + w[1] ** 2) ** 2 / 4",
    "rosenbrock": "(1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2",
    "beale": "(1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2",
    "himmelblau": "(w[0] ** 2 + w[1] - 11) ** 2 + (w[0] + w[1] ** 2 - 7) ** 2",
}
_STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2, "negate": 3, "^": 4}


def surface(spec: SurfaceModel) -> str:
    """The source of the loss `f(w)`."""
    if spec.formula is not None:
        return _formula(spec.formula)
    name = spec.function or "fragment"
    unpacked = "    x, y = w[0], w[1]\n" if name == "beale" else ""
    return f'def f(w):\n    """The test surface "{name}"."""\n{unpacked}    return {_FUNCTIONS[name]}'


def _formula(text: str) -> str:
    program = parse(text)
    shown = " ".join(text.split())
    number = block('''
def n(number):
    """A number as a tensor. With plain numbers torch computes powers in another way, and the last bit may differ."""
    return torch.tensor(number, dtype=DTYPE)
''')
    function = f"def f(w):  # x and y are w[0] and w[1]\n    # {shown}\n    return {expression(program)}"
    return joined(number, function, blank_lines=2)


def expression(program: tuple[Operation, ...]) -> str:
    """The program of a formula as a Python expression with the same operations in the same order."""
    stack: list[tuple[str, int]] = []  # each with how strongly its parts belong together
    for operation in program:
        match operation.name:
            case "number":
                stack.append((f"n({operation.number!r})", 9))
            case "x" | "y" as name:  # selected each time, as in the run: the order in which gradients are added
                stack.append((f"w[{'xy'.index(name)}]", 9))
            case "negate":
                text, strength = stack.pop()
                stack.append((f"-{_bracketed(text, strength != 3 and strength < 9)}", 3))
            case "^":
                (power, power_strength), (base, strength) = stack.pop(), stack.pop()
                stack.append((f"{_bracketed(base, strength < 9)} ** {_bracketed(power, power_strength < 9)}", 4))
            case "+" | "-" | "*" | "/" as sign:
                (right, right_strength), (left, strength) = stack.pop(), stack.pop()
                own = _STRENGTH[sign]
                left, right = _bracketed(left, strength < own), _bracketed(right, right_strength <= own)
                stack.append((f"{left} {sign} {right}", own))
            case function:
                stack.append((f"torch.{function}({stack.pop()[0]})", 9))
    return stack[0][0]


def _bracketed(text: str, needed: bool) -> str:
    return f"({text})" if needed else text


def sizes(spec: TwoLayerModel) -> str:
    """The lines with the sizes of a two-layer net."""
    return f"ENDS, WIDTH = {spec.ends}, {spec.width}\nSINGULAR_VALUES = {list(spec.singular_values)!r}"


def two_layer(spec: TwoLayerModel) -> str:
    """The source of a two-layer net; calling it gives the loss."""
    phi = "" if spec.activation.name == "identity" else f"        self.activation = {activation(spec.activation)}\n"
    hidden = "self.activation(self.first(self.inputs))" if phi else "self.first(self.inputs)"
    return joined(
        block('''
def orthogonal(generator):
    """A random orthogonal matrix."""
    q, r = torch.linalg.qr(torch.randn(ENDS, ENDS, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()
'''),
        block(f'''
class Net(nn.Module):
    """Two layers that learn a linear map with these singular values. Calling the net gives the loss."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(SEED)
        self.first = nn.Linear(ENDS, WIDTH, bias=False)
        self.second = nn.Linear(WIDTH, ENDS, bias=False)
{phi}        kept = len(SINGULAR_VALUES)
        left, right = (orthogonal(generator)[:, :kept] for _ in range(2))
        with torch.no_grad():
            for layer in (self.first, self.second):
                drawn = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
                layer.weight.copy_(drawn * {spec.std!r})
        scales = torch.tensor(SINGULAR_VALUES, dtype=torch.float64)
        self.register_buffer("inputs", torch.eye(ENDS, dtype=torch.float64))
        self.register_buffer("targets", (left * scales @ right.T).T.contiguous())

    def forward(self):
        outputs = self.second({hidden})
        return (outputs - self.targets).square().sum() / 2
'''),
        blank_lines=2,
    )
