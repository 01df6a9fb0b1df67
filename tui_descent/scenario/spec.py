"""The scenario as validated, immutable structs. A scenario is data and never names code to run."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import msgspec

Activation = Literal["relu", "leaky_relu", "gelu", "silu", "sigmoid", "tanh", "elu", "softplus", "identity"]
Switch = Literal["off", "on"]
Norm = Literal["none", "layer", "rms"]
Init = Literal["he", "xavier", "lecun", "orthogonal", "normal"]
Optimizer = Literal["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "muon"]
Schedule = Literal["constant", "step", "cosine", "warmup_cosine", "one_cycle", "wsd", "plateau"]
Toy = Literal["moons", "circles", "xor", "spirals"]
Surface = Literal["fragment", "bowl", "valley", "saddle", "monkey_saddle", "rosenbrock", "beale", "himmelblau"]

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Count = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
ShareOrCount = Annotated[float, msgspec.Meta(ge=0, lt=1)] | Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """A table of the scenario file."""


class DigitsData(Spec, frozen=True, kw_only=True, tag_field="name", tag="digits"):
    """1,797 hand-written digits of 8×8 pixels: 1,437 for training, 360 held out."""

    batch_size: Annotated[int, msgspec.Meta(ge=1, le=1437)] = 64
    subset: Annotated[int, msgspec.Meta(ge=10, le=1437)] | None = None
    full: bool = False


class ToyData(Spec, frozen=True, kw_only=True, tag_field="name"):
    """Points in the plane, generated from the seed; a fifth is held out."""

    points: Annotated[int, msgspec.Meta(ge=20, le=100_000)] = 500
    noise: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 64
    full: bool = False


class MoonsData(ToyData, frozen=True, kw_only=True, tag="moons"):
    """Two interleaved half circles."""


class CirclesData(ToyData, frozen=True, kw_only=True, tag="circles"):
    """A circle inside a circle."""


class XorData(ToyData, frozen=True, kw_only=True, tag="xor"):
    """Four clusters; opposite corners share a class."""


class SpiralsData(ToyData, frozen=True, kw_only=True, tag="spirals"):
    """Two interleaved spirals."""


class TextData(Spec, frozen=True, kw_only=True, tag_field="name", tag="text"):
    """Windows of characters from Python's help pages; the last tenth is held out."""

    batch_size: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 8


class ModularAdditionData(Spec, frozen=True, kw_only=True, tag_field="name", tag="modular-addition"):
    """All sums a + b mod `modulus`. A share of the pairs (a, b), drawn from the seed, is for training."""

    modulus: Annotated[int, msgspec.Meta(ge=5, le=97)] = 41
    share: Annotated[float, msgspec.Meta(ge=0.1, le=0.9)] = 0.5
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 64
    full: bool = False


class RareClassesData(Spec, frozen=True, kw_only=True, tag_field="name", tag="rare-classes"):
    """Classes of very different size: 1 of 2^(groups-1) samples, 2 of half as many, and so on, down to single samples.

    A sample is the centre of its class plus noise. With `balanced` all classes are of the same size instead.
    """

    groups: Annotated[int, msgspec.Meta(ge=2, le=10)] = 8
    inputs: Annotated[int, msgspec.Meta(ge=2, le=1024)] = 32
    noise: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.3
    balanced: bool = False
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 64
    full: bool = False

    def class_sizes(self) -> list[int]:
        """How many training samples each class has, the largest class first."""
        sizes = [2 ** (self.groups - 1 - n) for n in range(self.groups) for _ in range(2**n)]
        return [sum(sizes) // len(sizes)] * len(sizes) if self.balanced else sizes


# A file of the user's. A relative path begins at the scenario file's folder, or for `--set` at the current one.
# Without a path it is the small sample that is shipped.
FilePath = Annotated[str, msgspec.Meta(max_length=4096)]


class OwnTextData(TextData, frozen=True, kw_only=True, tag_field="name", tag="own-text"):
    """Windows of characters from a text file; its last tenth is held out."""

    path: FilePath = ""


class OwnImagesData(Spec, frozen=True, kw_only=True, tag_field="name", tag="own-images"):
    """Grey images from an IDX file, plain or gzip, with their classes from a second one; a fifth is held out.

    Without `labels`, it is the file whose name has "labels" instead of "images" and "idx1" instead of "idx3".
    """

    path: FilePath = ""
    labels: FilePath = ""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 64
    subset: Annotated[int, msgspec.Meta(ge=10, le=100_000)] | None = None
    full: bool = False


class OwnPointsData(Spec, frozen=True, kw_only=True, tag_field="name", tag="own-points"):
    """Points in the plane with two classes, from a CSV file of x, y, label; a fifth is held out."""

    path: FilePath = ""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 64
    full: bool = False


OwnData = OwnTextData | OwnImagesData | OwnPointsData
Data = (
    DigitsData
    | MoonsData
    | CirclesData
    | XorData
    | SpiralsData
    | TextData
    | ModularAdditionData
    | RareClassesData
    | OwnTextData
    | OwnImagesData
    | OwnPointsData
)
SYMBOLS = 96  # how many characters a net for text knows: as many as printable ASCII has, and the line feed


class ActivationSpec(Spec, frozen=True, kw_only=True):
    """An activation. `slope` is the slope of leaky_relu for z < 0; a later change to leaky_relu uses it too."""

    name: Activation = "relu"
    slope: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.01


class InitSpec(Spec, frozen=True, kw_only=True):
    """Initialisation. `std` is for `normal`; `gain` scales all other initialisations; `bias` is the value of the
    blocks' biases.
    """

    name: Init = "he"
    std: Positive = 0.02
    gain: Positive = 1.0
    bias: Annotated[float, msgspec.Meta(ge=-100, le=100)] = 0.0


class NormSpec(Spec, frozen=True, kw_only=True):
    """A normalisation and its place: pre (before the linear layer), mid (after it) or post (after the activation)."""

    name: Norm = "none"
    where: Literal["pre", "mid", "post"] = "pre"


class ResidualSpec(Spec, frozen=True, kw_only=True):
    """A skip connection around every block: x + scale·f(x). The default scale is 1/√depth.

    With the way `rezero`, the scale is learnt: one number per block, which starts at 0.
    """

    name: Switch = "off"
    way: Literal["fixed", "rezero"] = "fixed"
    scale: Annotated[float, msgspec.Meta(gt=0, le=10)] | None = None


class MlpModel(Spec, frozen=True, kw_only=True, tag_field="name", tag="mlp"):
    """Linear(in, width) → `depth` blocks of activation(Linear) → Linear(width, classes)."""

    depth: Annotated[int, msgspec.Meta(ge=1, le=2000)] = 2
    width: Annotated[int, msgspec.Meta(ge=1, le=8192)] = 32
    activation: ActivationSpec = ActivationSpec()
    residual: ResidualSpec = ResidualSpec()
    norm: NormSpec = NormSpec()
    init: InitSpec = InitSpec()
    dropout: Share = 0.0


class ConvModel(Spec, frozen=True, kw_only=True, tag_field="name", tag="conv"):
    """Conv3×3(1, width) → `depth` blocks of activation(Conv3×3) → mean over positions → Linear(width, classes)."""

    depth: Annotated[int, msgspec.Meta(ge=1, le=500)] = 4
    width: Annotated[int, msgspec.Meta(ge=1, le=512)] = 16
    activation: ActivationSpec = ActivationSpec()
    residual: ResidualSpec = ResidualSpec()
    norm: NormSpec = NormSpec()
    init: InitSpec = InitSpec()
    dropout: Share = 0.0


class TransformerModel(Spec, frozen=True, kw_only=True, tag_field="name", tag="transformer"):
    """Token and position embeddings → `depth` layers, each an attention and an MLP block → next-token logits."""

    depth: Annotated[int, msgspec.Meta(ge=1, le=500)] = 4
    width: Annotated[int, msgspec.Meta(ge=1, le=2048)] = 32
    heads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    context: Annotated[int, msgspec.Meta(ge=2, le=1024)] = 32
    activation: ActivationSpec = ActivationSpec(name="gelu")
    residual: ResidualSpec = ResidualSpec()
    norm: NormSpec = NormSpec()
    init: InitSpec = InitSpec(name="xavier")
    dropout: Share = 0.0


class SurfaceModel(Spec, frozen=True, kw_only=True, tag_field="name", tag="surface"):
    """A loss that is a function of one or two parameters, starting at `start`.

    It is one of ours, `function`, or a `formula` of x and y, as in "x^2 - y^2" (`scenario/formula.py`). Without either
    it is the fragment. A start with one number makes it a function of x alone.
    """

    function: Surface | None = None
    formula: str | None = None
    start: Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=2)] = (1.0,)


class TwoLayerModel(Spec, frozen=True, kw_only=True, tag_field="name", tag="two_layer"):
    """Two layers that learn a linear map with these singular values; all others are 0.

    The net has `inputs` inputs, `width` hidden units and as many outputs as inputs; without `inputs`, it has `width`.
    With `activation` "identity" it is a linear net. The loss is part of it: the squared error over whitened inputs.
    Weights begin normal with the standard deviation `std`. `picture` is what the task view shows: how much of each mode
    of the map is learnt, or the loss against the index, which is the share of negative curvatures.
    """

    width: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 8
    inputs: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    singular_values: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1, max_length=8)] = (4.0, 2.0, 1.0, 0.5)
    std: Positive = 1e-4
    activation: ActivationSpec = ActivationSpec(name="identity")
    picture: Literal["modes", "index"] = "modes"

    @property
    def ends(self) -> int:
        """The number of inputs, and of outputs."""
        return self.width if self.inputs is None else self.inputs


Model = MlpModel | ConvModel | TransformerModel | SurfaceModel | TwoLayerModel
WithoutData = SurfaceModel | TwoLayerModel  # their loss is a function of the parameters alone


class LossSpec(Spec, frozen=True, kw_only=True):
    """The loss function. A test surface is itself the loss, so it does not accept one."""

    name: Literal["cross_entropy", "mse"] = "cross_entropy"


class RatesSpec(Spec, frozen=True, kw_only=True):
    """Good learning rates for this data and net, by optimizer. They are used when a knob changes the optimizer."""

    sgd: Positive | None = None
    momentum: Positive | None = None
    nesterov: Positive | None = None
    rmsprop: Positive | None = None
    adam: Positive | None = None
    adamw: Positive | None = None
    muon: Positive | None = None


class OptimizerSpec(Spec, frozen=True, kw_only=True):
    """An optimizer and its settings.

    `momentum` is for momentum, nesterov and muon; None means the default (0.9; muon 0.95). `betas` are for adam, adamw
    and muon. `clip` is the largest global gradient norm, None for no clipping. If a knob changes the optimizer, the new
    one uses its rate in `rates`, or the converted current rate. If any rate is given, a change back to `name` uses
    `lr`.
    """

    name: Optimizer = "sgd"
    lr: Positive = 0.1
    momentum: Share | None = None
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.0
    clip: Positive | None = None
    rates: RatesSpec = RatesSpec()


class ScheduleSpec(Spec, frozen=True, kw_only=True):
    """A learning-rate schedule. `scenario/schedules.py` has the formulas and the defaults for None.

    A length is a fraction of the steps (0.1) or a number of steps (60). `start` and `floor` are fractions of the base
    rate.
    """

    name: Schedule = "constant"
    warmup: ShareOrCount | None = None
    start: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    every: Annotated[float, msgspec.Meta(gt=0, lt=1)] | Count | None = None
    gamma: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    decay: ShareOrCount | None = None
    floor: Share | None = None
    patience: Count | None = None


class RunSpec(Spec, frozen=True, kw_only=True):
    """How the scenario is run.

    `threads = 0` uses all cores but one. The number of threads affects the last bits of the results.
    """

    steps: Count = 1000
    pace: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | Literal["max"] = 30.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 0
    threads: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    device: Annotated[str, msgspec.Meta(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)\Z")] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    evaluate_every: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 50


Step = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]
Overrides = Annotated[tuple[str, ...], msgspec.Meta(max_length=100)]
Interventions = Annotated[tuple[str, ...], msgspec.Meta(max_length=1000)]


class Divisor(Spec, frozen=True, kw_only=True, rename={"overrides": "with"}):
    """The run whose value divides that of a claim. What is left out is as in the claim itself."""

    at: Step | None = None
    given: Interventions | None = None
    overrides: Overrides | None = None


class Claim(Spec, frozen=True, kw_only=True, rename={"overrides": "with"}):
    """A promise about a metric, at step `at` or at the end of a run with the interventions `given`.

    `with` changes the scenario, as `--set` does: `with = ["optimizer.lr=0.26"]`. `target` is the loss of `steps_to`.
    The condition is `below`, `above`, or `equals` and `within`. It is about the metric or, with `divided_by`, the
    metric divided by that of another run.

    Two claims need more runs, and have bounds `at_least` and `at_most` on what is counted. With `seeds`: the share of
    the seeds for which the condition holds. With `largest`, the place of a number in the scenario: the largest value
    of `among`, tried in ascending order up to the first for which the condition does not hold.
    """

    metric: str
    at: Step | None = None
    target: float | None = None
    below: float | None = None
    above: float | None = None
    equals: float | str | None = None
    within: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    given: Interventions = ()
    overrides: Overrides = ()
    divided_by: Divisor | None = None
    seeds: Annotated[int, msgspec.Meta(ge=2, le=1000)] | None = None
    largest: str | None = None
    among: Annotated[tuple[int | float, ...], msgspec.Meta(max_length=100)] = ()
    at_least: float | None = None
    at_most: float | None = None


UNDO = "undo"  # a remedy that is not a knob


class PlannedIntervention(Spec, frozen=True, kw_only=True):
    """A scripted intervention before update `at`, and what the screen says about it.

    Without `turn` it is only a caption. If `demo`, it is played by `--demo` alone; the story's hints follow it.
    """

    at: Step
    turn: str = ""
    say: Annotated[str, msgspec.Meta(max_length=300)] = ""
    demo: bool = False


MAX_LANES = 8


class RaceSpec(Spec, frozen=True, kw_only=True):
    """A race of optimizers (`scenario/race.py`): `NAME` or `NAME:RATE` of each, and the loss to reach.

    Without a `target` it is half of the first loss.
    """

    optimizers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=MAX_LANES)] = (
        "sgd",
        "momentum",
        "rmsprop",
        "adam",
    )
    target: float | None = None


class Scenario(Spec, frozen=True, kw_only=True):
    """Everything that defines a run, including the seed.

    `remedy` lists what helps if something is wrong, the best first: interventions such as `residual=on`, or `undo`. The
    diagnosis advises these remedies until something is changed. `cause_off` removes the cause of what the preset shows,
    by overrides as in a claim's `with`: with them, at least one claim fails. `sources` are author and year.
    """

    title: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    theme: str = ""
    story: str = ""
    remedy: Annotated[tuple[str, ...], msgspec.Meta(max_length=100)] = ()
    cause_off: Overrides = ()
    claim: Annotated[tuple[Claim, ...], msgspec.Meta(max_length=1000)] = ()
    sources: Annotated[tuple[str, ...], msgspec.Meta(max_length=100)] = ()
    data: Data | None = None
    model: Model
    loss: LossSpec | None = None
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    run: RunSpec = RunSpec()
    race: RaceSpec = RaceSpec()
    plan: Annotated[tuple[PlannedIntervention, ...], msgspec.Meta(max_length=1000)] = ()


def surface_name(model: SurfaceModel) -> str:
    """The name of the surface's function, or the beginning of its formula."""
    if model.formula is None:
        return model.function or "fragment"
    return model.formula if len(model.formula) <= 40 else model.formula[:39] + "…"


def about(scenario: Scenario) -> str:
    """Data and network in one phrase, for the status line."""
    model = scenario.model
    if isinstance(model, SurfaceModel):
        return f"surface {surface_name(model)}"
    if isinstance(model, TwoLayerModel):
        kind = "linear" if model.activation.name == "identity" else model.activation.name
        return f"two-layer {kind} net {model.ends}→{model.width}→{model.ends}"
    data = str(type(scenario.data).__struct_config__.tag) if scenario.data is not None else ""
    if isinstance(scenario.data, OwnData) and scenario.data.path:
        data = f"{data} {os.path.basename(scenario.data.path)[:40]}"
    if isinstance(model, TransformerModel):
        return f"{data} · transformer {model.width}×{model.depth}, {model.heads} heads, context {model.context}"
    if isinstance(scenario.data, OwnImagesData):  # the sizes are in the file
        return f"{data} · {'conv' if isinstance(model, ConvModel) else 'mlp'} {model.width}×{model.depth}"
    if isinstance(model, ConvModel):
        return f"{data} · conv 8×8→{model.width}×{model.depth}→10"
    inputs, classes = ends(scenario.data)
    return f"{data} · mlp {inputs}→{model.width}×{model.depth}→{classes}"


def ends(data: Data | None) -> tuple[int, int]:
    """How many inputs and classes the data has. The sizes of own images are in their files (`own_data/images.py`)."""
    match data:
        case TextData():
            return SYMBOLS, SYMBOLS
        case DigitsData():
            return 64, 10
        case ModularAdditionData():
            return 2 * data.modulus, data.modulus
        case RareClassesData():
            return data.inputs, 2**data.groups - 1
        case _:
            return 2, 2
