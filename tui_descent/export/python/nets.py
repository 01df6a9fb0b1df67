"""The net of a scenario as source: a class `Net`, its blocks, and how its weights are drawn.

The modules are created and the random numbers drawn in the order of `training/setup/nets`, so the weights are equal.
"""

from __future__ import annotations

from tui_descent.export.python.text import block, joined, times
from tui_descent.scenario.spec import (
    ActivationSpec,
    ConvModel,
    InitSpec,
    MlpModel,
    NormSpec,
    TransformerModel,
)

Blocks = MlpModel | ConvModel | TransformerModel
_ACTIVATIONS = {
    "relu": "nn.ReLU()",
    "gelu": "nn.GELU()",
    "silu": "nn.SiLU()",
    "sigmoid": "nn.Sigmoid()",
    "tanh": "nn.Tanh()",
    "elu": "nn.ELU()",
    "softplus": "nn.Softplus()",
    "identity": "nn.Identity()",
}
_INIT_WORDS = {
    "he": "normal with variance 2 / fan_in (He et al. 2015)",
    "xavier": "normal with variance 2 / (fan_in + fan_out) (Glorot & Bengio 2010)",
    "lecun": "normal with variance 1 / fan_in",
    "orthogonal": "a random orthogonal matrix (Saxe et al. 2014)",
    "normal": "normal",
}
_STD = {
    "he": "(2 / fan_in) ** 0.5",
    "xavier": "(2 / (fan_in + fan_out)) ** 0.5",
    "lecun": "(1 / fan_in) ** 0.5",
}
_CHANNEL_RMS = '''
class ChannelRMSNorm(nn.RMSNorm):
    """RMSNorm over channels and positions together, with one gain per channel."""

    def forward(self, x):
        return F.rms_norm(x, x.shape[1:], eps=self.eps) * self.weight[:, None, None]
'''
_EMBEDDING = '''
def embedding(rows):
    """An embedding with its weights drawn as those of a Linear layer with one input."""
    layer = nn.Embedding(rows, WIDTH)
    draw(layer.weight, 1, WIDTH)
    return layer
'''
_ATTENTION = '''
class Attention(nn.Module):
    """Causal self-attention with several heads, followed by a Linear."""

    def __init__(self):
        super().__init__()
        self.qkv = linear(WIDTH, 3 * WIDTH)
        for part in self.qkv.weight.chunk(3):  # queries, keys and values are drawn separately
            draw(part, WIDTH, WIDTH)
        self.out = linear(WIDTH, WIDTH)

    def forward(self, x):  # (B, T, W) → (B, T, W)
        b, t, w = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, HEADS, w // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, W/H)
        return self.out(mixed.transpose(1, 2).reshape(b, t, w))
'''


def activation(spec: ActivationSpec) -> str:
    """The constructor of an activation."""
    return f"nn.LeakyReLU({spec.slope!r})" if spec.name == "leaky_relu" else _ACTIVATIONS[spec.name]


def sizes(spec: Blocks) -> str:
    """The line with the sizes of the net."""
    if isinstance(spec, TransformerModel):
        return f"DEPTH, WIDTH, HEADS, CONTEXT = {spec.depth}, {spec.width}, {spec.heads}, {spec.context}"
    return f"DEPTH, WIDTH = {spec.depth}, {spec.width}"


def net(spec: Blocks, *, features: int, classes: int, image: tuple[int, int] | None) -> str:
    """The source of the net with all that it needs. `image` is the height and width of the images of a conv net."""
    match spec:
        case MlpModel():
            return _mlp(spec, features, classes)
        case ConvModel():
            assert image is not None
            return _conv(spec, image, classes)
        case TransformerModel():
            return _transformer(spec, classes)


def hidden_matrices(spec: Blocks) -> str:
    """The weights that Muon updates, as an expression: all matrices but embeddings, the first and the last."""
    if isinstance(spec, MlpModel):
        return "[block.linear.weight for block in net.blocks]"
    return (
        '[p for name, p in net.blocks.named_parameters() if p.ndim == 2 and "norm" not in name]'
        if isinstance(spec, TransformerModel)
        else "[]"
    )


def largest_parameter(spec: Blocks, *, features: int, classes: int) -> int:
    """How many numbers the largest weight has."""
    width = spec.width
    match spec:
        case MlpModel():
            return width * max(features, width, classes)
        case ConvModel():
            return width * max(9 * width, classes)
        case TransformerModel():
            return width * max(4 * width, classes, spec.context)


def _mlp(spec: MlpModel, features: int, classes: int) -> str:
    body = _Body(spec, core="linear", width=spec.width, scale=spec.depth**-0.5)
    bias = f", bias={spec.init.bias!r}" if spec.init.bias else ""
    return joined(
        _weights(spec.init),
        _linear(spec.init),
        block(f'''
class Block(nn.Module):
    """{body.about("Linear")}"""

    def __init__(self):
        super().__init__()
{body.parts(f"linear(WIDTH, WIDTH{bias})")}

    def forward(self, x):
{body.forward()}
'''),
        block(f'''
class Net(nn.Module):
    """Linear → {spec.depth} blocks → Linear."""

    def __init__(self):
        super().__init__()
        self.stem = linear({features}, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.head = linear(WIDTH, {classes})

    def forward(self, x):  # (batch, {features}) → (batch, {classes})
        return self.head(self.blocks(self.stem(x)))
'''),
        blank_lines=2,
    )


def _conv(spec: ConvModel, image: tuple[int, int], classes: int) -> str:
    body = _Body(spec, core="conv", width=spec.width, scale=spec.depth**-0.5)
    bias = f", bias={spec.init.bias!r}" if spec.init.bias else ""
    height, width = image
    return joined(
        _weights(spec.init),
        block('''
def conv(channels_in, channels_out, bias=0.0):
    """A 3×3 convolution with drawn weights."""
    layer = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    fan_in, fan_out = channels_in * 9, channels_out * 9
    draw(layer.weight, fan_in, fan_out)
    nn.init.constant_(layer.bias, bias)
    return layer
'''),
        _linear(spec.init),
        block(_CHANNEL_RMS) if spec.norm.name == "rms" else "",
        block(f'''
class Block(nn.Module):
    """{body.about("Conv")}"""

    def __init__(self):
        super().__init__()
{body.parts(f"conv(WIDTH, WIDTH{bias})")}

    def forward(self, x):
{body.forward()}
'''),
        block(f'''
class Net(nn.Module):
    """Conv → {spec.depth} blocks → mean over positions → Linear."""

    def __init__(self):
        super().__init__()
        self.stem = conv(1, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.head = linear(WIDTH, {classes})

    def forward(self, x):  # (batch, {height * width}) → (batch, {classes})
        h = self.blocks(self.stem(x.view(-1, 1, {height}, {width})))
        return self.head(h.mean(dim=(2, 3)))
'''),
        blank_lines=2,
    )


def _transformer(spec: TransformerModel, symbols: int) -> str:
    scale = (2 * spec.depth) ** -0.5
    attention = _Body(spec, core="attention", width=spec.width, scale=scale, has_activation=False)
    mlp = _Body(spec, core="up", width=spec.width, scale=scale, out="out")
    bias = f", bias={spec.init.bias!r}" if spec.init.bias else ""
    return joined(
        _weights(spec.init),
        _linear(spec.init),
        block(_EMBEDDING),
        block(_ATTENTION),
        block(f'''
class AttentionBlock(nn.Module):
    """{attention.about("attention")}"""

    def __init__(self):
        super().__init__()
{attention.parts("Attention()")}

    def forward(self, x):
{attention.forward()}
'''),
        block(f'''
class MlpBlock(nn.Module):
    """{mlp.about("Linear")}"""

    def __init__(self):
        super().__init__()
{mlp.parts(f"linear(WIDTH, 4 * WIDTH{bias})", "linear(4 * WIDTH, WIDTH)")}

    def forward(self, x):
{mlp.forward()}
'''),
        block(f'''
class Net(nn.Module):
    """Token and position embeddings → {spec.depth} layers of attention and MLP → logits of the next token."""

    def __init__(self):
        super().__init__()
        self.tokens = embedding({symbols})
        self.places = embedding(CONTEXT)
        blocks = []
        for _ in range(DEPTH):
            blocks += [AttentionBlock(), MlpBlock()]
        self.blocks = nn.Sequential(*blocks)
        self.head = linear(WIDTH, {symbols})

    def forward(self, x):  # tokens (B, T) → (B, T, {symbols})
        h = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        return self.head(self.blocks(h))
'''),
        blank_lines=2,
    )


def _weights(init: InitSpec) -> str:
    """The function that draws a weight."""
    words = _INIT_WORDS[init.name]
    if init.name == "normal":
        words += f" with standard deviation {init.std * init.gain:g}"
    elif init.gain != 1.0:
        words += f", times {init.gain:g}"
    if init.name == "orthogonal":
        gain = "" if init.gain == 1.0 else f", gain={init.gain!r}"
        code = f"nn.init.orthogonal_(weight{gain}, generator=weights)"
    else:
        std = repr(init.std) if init.name == "normal" else _STD[init.name]
        code = f"weight.normal_(0, {std}{times(init.gain)}, generator=weights)"
    return joined(
        "weights = torch.Generator().manual_seed(SEED)  # draws the initial weights and nothing else",
        block(f'''
@torch.no_grad()
def draw(weight, fan_in, fan_out):
    """Initialise a weight: {words}."""
    {code}
'''),
        blank_lines=2,
    )


def _linear(init: InitSpec) -> str:
    return block('''
def linear(fan_in, fan_out, bias=0.0):
    """A Linear layer with drawn weights."""
    layer = nn.Linear(fan_in, fan_out)
    draw(layer.weight, fan_in, fan_out)
    nn.init.constant_(layer.bias, bias)
    return layer
''')


class _Body:
    """The inside of a block class. Modules are registered in the order in which they act, as those of the run are."""

    def __init__(
        self, spec: Blocks, *, core: str, width: int, scale: float, has_activation: bool = True, out: str | None = None
    ) -> None:
        self._spec, self._core, self._out = spec, core, out
        self._has_activation = has_activation
        self._norm = _norm(spec.norm, images=isinstance(spec, ConvModel))
        self._where = spec.norm.where
        self._after_skip = isinstance(spec, TransformerModel)
        residual = spec.residual
        self._learnt = residual.name == "on" and residual.way == "rezero"
        self._scale = None if residual.name == "off" or self._learnt else residual.scale or scale

    def about(self, core: str) -> str:
        """What the block computes, for its docstring."""
        spec = self._spec
        inside = core
        if self._has_activation:
            inside = f"{spec.activation.name}({core})"
        if self._out:
            inside = f"Linear({inside})"
        if self._learnt:
            return f"x + α·{inside}; α is learnt and starts at 0 (ReZero)."
        return f"{inside}." if self._scale is None else f"x + {self._scale:.3g}·{inside}."

    def parts(self, core: str, out: str = "") -> str:
        """The lines of `__init__` that create the modules."""
        norm = [f"self.norm = {self._norm}"] if self._norm else []
        lines = ["self.alpha = nn.Parameter(torch.zeros(()))"] if self._learnt else []
        lines += norm if self._where == "pre" else []
        lines += [f"self.{self._core} = {core}"]
        lines += norm if self._where == "mid" else []
        lines += [f"self.activation = {activation(self._spec.activation)}"] if self._has_activation else []
        lines += [f"self.{self._out} = {out}"] if self._out else []
        lines += [f"self.dropout = nn.Dropout({self._spec.dropout!r})"] if self._spec.dropout else []
        lines += norm if self._where == "post" else []
        return "\n".join(f"        {line}" for line in lines)

    def forward(self) -> str:
        """The lines of `forward`."""
        steps = ["norm"] if self._norm and self._where == "pre" else []
        steps += [self._core]
        steps += ["norm"] if self._norm and self._where == "mid" else []
        steps += ["activation"] if self._has_activation else []
        steps += [self._out] if self._out else []
        steps += ["dropout"] if self._spec.dropout else []
        post = bool(self._norm) and self._where == "post"
        steps += ["norm"] if post and not self._after_skip else []
        inner = "x"
        for step in steps:
            inner = f"self.{step}({inner})"
        branch = "self.alpha" if self._learnt else "" if self._scale is None else repr(self._scale)
        whole = f"x + {branch} * {inner}" if branch else inner
        if post and self._after_skip:
            whole = f"self.norm({whole})"
        return f"        return {whole}"


def _norm(spec: NormSpec, *, images: bool) -> str:
    """The constructor of a norm layer; empty for none."""
    if spec.name == "none":
        return ""
    if images:
        return "nn.GroupNorm(1, WIDTH)" if spec.name == "layer" else "ChannelRMSNorm(WIDTH)"
    return "nn.LayerNorm(WIDTH)" if spec.name == "layer" else "nn.RMSNorm(WIDTH)"
